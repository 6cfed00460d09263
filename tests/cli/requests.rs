//! `generate` for machines: JSON lines in and out.

use crate::{PROMPT, generate, lines, ok, run, run_with_stdin, write};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

#[test]
fn json_tells_everything_about_an_answer() {
    let text = generate(&[]).stdout;
    let answers = lines(&generate(&["--json", "--logprobs", "2"]).stdout);
    assert_eq!(answers.len(), 1);
    let answer = &answers[0];
    assert_eq!((&answer["text"], &answer["finish"], &answer["index"]), (&json!(text), &json!("length"), &json!(0)));
    assert_eq!(answer["tokens"].as_array().unwrap().len(), 48);
    assert!(answer.get("seed").is_none(), "a greedy answer needs none to be repeated");
    let logprobs = answer["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), 48);
    for (at, token) in logprobs.iter().zip(answer["tokens"].as_array().unwrap()) {
        assert_eq!((&at["token"], &at["top"][0]["token"]), (token, token), "greedy takes the most probable token");
        assert!(at["logprob"].as_f64().unwrap() < 0.0 && at["top"].as_array().unwrap().len() == 2);
    }
    let stats = &answer["stats"];
    assert_eq!(stats["generated"], 48);
    let accepted = stats["accepted"].as_f64().unwrap() / stats["rounds"].as_f64().unwrap();
    assert!((stats["mean_accepted_length"].as_f64().unwrap() - 1.0 - accepted).abs() < 1e-9);
}

#[test]
fn samples_differ_and_their_seeds_reproduce_them() {
    let args = ["--temp", "1", "-s", "5", "-N", "3", "--json"];
    let answers = lines(&generate(&[&args[..], &["--batch-size", "3"]].concat()).stdout);
    let text = |index: u64| answers.iter().find(|answer| answer["index"] == index).unwrap()["text"].clone();
    assert!(text(0) != text(1) && text(1) != text(2));
    let single = generate(&["--temp", "1", "-s", "6", "--json"]);
    assert_eq!(lines(&single.stdout)[0]["text"], text(1), "sample i has seed + i");
    let printed = generate(&args[..args.len() - 1]).stdout;
    let expected = (0..3).map(|i| text(i).as_str().unwrap().to_owned() + "\n").collect::<String>();
    assert_eq!(printed, expected);
}

#[test]
fn answers_follow_the_schema_or_the_grammar_of_a_flag_or_of_a_line() {
    let dir = TempDir::new().unwrap();
    let schema = write(&dir, "schema.json", br#"{"enum": [{"a": 1}, {"a": 2}]}"#);
    let printed = generate(&["--json-schema", &schema]).stdout;
    assert!(["{\"a\": 1}", "{\"a\": 2}"].contains(&printed.as_str()), "{printed}");
    let grammar = write(&dir, "grammar.lark", b"start: \"yes\" | \"no\"\n");
    let answer = &lines(&generate(&["--grammar", &grammar, "--json"]).stdout)[0];
    assert!(["yes", "no"].contains(&answer["text"].as_str().unwrap()) && answer["finish"] == "complete", "{answer}");
    let requests = [
        json!({"prompt": PROMPT, "json_schema": {"type": "boolean"}}),
        json!({"prompt": PROMPT, "response_format": {"type": "text"}, "max_tokens": 20}),
        json!({"prompt": PROMPT, "grammar": "start: \"<\" /[0-9]{3}/ \">\""}),
        json!({"prompt": PROMPT, "json_schema": {"not": {}}}),
        json!({"prompt": PROMPT}),
    ];
    let requests: String = requests.iter().map(|request| format!("{request}\n")).collect();
    let input = write(&dir, "in.jsonl", requests.as_bytes());
    let found = run(&["generate", "--input", &input, "--grammar", &grammar, "-b", "2", "-q"]);
    let mut answers = lines(&found.stdout);
    answers.sort_by_key(|answer| answer["index"].as_u64());
    let text = |index: usize| answers[index]["text"].as_str().unwrap();
    assert!(["true", "false"].contains(&text(0)), "{}", text(0));
    assert_eq!(answers[1]["finish"], "length");
    assert!(text(2).len() == 5 && text(2).starts_with('<') && text(2).ends_with('>'), "{}", text(2));
    assert!(
        answers[3]["error"].as_str().unwrap().contains("\"json_schema\": \"/not\": this keyword"),
        "{}",
        answers[3]
    );
    assert!(["yes", "no"].contains(&text(4)), "{}", text(4));
}

#[test]
fn files_of_schemas_and_grammars_are_refused_by_flag_file_and_place() {
    let dir = TempDir::new().unwrap();
    for (flag, content, told) in [
        ("--json-schema", &b"{\"type\": "[..], "line 1"),
        (
            "--json-schema",
            b"{\"items\": {\"uniqueItems\": true}}",
            "\"/items/uniqueItems\": this keyword is not supported",
        ),
        ("--json-schema", b"\xff\xfe{\0", "UTF-16"),
        ("--grammar", b"start: nobody", "1(8): unknown name: \"nobody\""),
        ("--grammar", b"start: b\nb[stop=\"x\"]: /.*/", "line 2: the attribute \"stop\""),
    ] {
        let file = write(&dir, "file", content);
        let found = run(&["generate", "-p", "x", flag, &file]);
        assert!(found.code != 0 && found.stderr.contains(flag) && found.stderr.contains(told), "{}", found.stderr);
    }
    let missing = run(&["generate", "-p", "x", "--grammar", "nowhere.lark"]);
    assert!(missing.stderr.contains("--grammar: nowhere.lark: could not be read"), "{}", missing.stderr);
}

#[test]
fn a_wrong_line_fails_alone() {
    let dir = TempDir::new().unwrap();
    #[rustfmt::skip]
    let requests = [
        (r#"{"id": "plain", "prompt": "def fibonacci(n):", "max_tokens": 8}"#, ""),
        ("not json", "expected"),
        (r#"{"id": 1, "prompt": "x", "max_tokns": 3}"#, "max_tokns"),
        ("", ""),
        (r#"{"id": 2, "prompt": 5}"#, "\"prompt\": 5 (expected a text, or a list of tokens)"),
        (r#"{"id": 13, "prompt": "x", "max_tokens": 1.5}"#, "\"max_tokens\": invalid type: floating point `1.5`, expected a whole number"),
        (r#"{"id": 14, "messages": []}"#, "\"messages\" is empty"),
        (r#"{"id": 15, "messages": [{"role": "user", "content": "x", "tool_calls": 1}]}"#, "\"messages\"[0]: \"tool_calls\" is"),
        (r#"{"id": 3}"#, "neither"),
        (r#"{"id": 4, "prompt": "x", "messages": []}"#, "both"),
        (r#"{"id": 5, "messages": [{"role": "user", "content": "x"}]}"#, "chat template"),
        (r#"{"id": 6, "prompt": "x", "temperature": -1}"#, "temperature"),
        (r#"{"id": 7, "prompt": "x", "top_p": 3}"#, "top_p"),
        (r#"{"id": 8, "prompt": "x", "max_tokens": 0}"#, "max_tokens"),
        (r#"{"id": 9, "prompt": "x", "stop": [""]}"#, "stop"),
        (r#"{"id": 10, "prompt": "x", "stop": 3}"#, "\"stop\": 3 (expected a text or a list of texts)"),
        (r#"{"id": 11, "prompt": "x", "logit_bias": {"99999": 1}}"#, "99999"),
        (r#"{"id": 12, "prompt": "x", "verify": "no"}"#, "rejection"),
        (r#"{"id": {"any": [1]}, "prompt": "import os", "max_tokens": 4, "stop": "zzz", "temperature": 0.5, "seed": 3, "top_k": 20,
             "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1,
             "logit_bias": {"5": -1.5}, "verify": "coupled", "ignore_eos": true, "logprobs": 1, "speculate": false}"#, ""),
    ];
    let text: String =
        requests.iter().map(|(line, _)| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n").collect();
    let input = write(&dir, "in.jsonl", &text);
    let output = dir.path().join("out.jsonl");
    let run = run(&["generate", "--input", &input, "--output", output.to_str().unwrap(), "--batch-size", "2"]);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{}", run.stderr);
    assert!(run.stderr.contains("16 requests failed"), "{}", run.stderr);
    let answers = lines(&fs::read_to_string(&output).unwrap());
    let requests: Vec<_> = requests.iter().filter(|(line, _)| !line.is_empty()).collect();
    assert_eq!(answers.len(), requests.len());
    for (index, (line, fragment)) in requests.iter().enumerate() {
        let answer = answers.iter().find(|answer| answer["index"] == index).unwrap();
        match serde_json::from_str::<Value>(line) {
            Ok(request) => assert_eq!(answer.get("id"), request.get("id"), "{line}"),
            Err(_) => assert_eq!(answer.get("id"), None),
        }
        match answer.get("error") {
            Some(error) => {
                assert!(!fragment.is_empty() && error.as_str().unwrap().contains(fragment), "{line}: {error}")
            }
            None => assert!(fragment.is_empty() && answer["tokens"].is_array(), "{line}: {answer}"),
        }
    }
    let plain = answers.iter().find(|answer| answer["id"] == "plain").unwrap();
    assert_eq!(plain["text"].as_str().unwrap(), ok(&["generate", "-p", PROMPT, "-n", "8"]).stdout);
    let full = answers.last().unwrap();
    assert_eq!((&full["seed"], &full["stats"]["drafted"]), (&json!(3), &json!(0)), "\"speculate\": false never drafts");
}

#[test]
fn requests_come_from_a_pipe_and_go_to_one() {
    let input = "{\"prompt\": \"def f(x):\"}\r\n\n{\"prompt\": \"class A\"}";
    let run = run_with_stdin(&["generate", "--input", "-", "-n", "5", "-q"], input.as_bytes());
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    assert_eq!(lines(&run.stdout).len(), 2);
    let broken = run_with_stdin(
        &["generate", "--input", "-"],
        b"{\"prompt\": \"\xff\"}\n{\"prompt\": \"a\", \"max_tokens\": 2}\n",
    );
    let answers = lines(&broken.stdout);
    assert_eq!((broken.code, answers.len()), (1, 2));
    assert!(answers[0]["error"].is_string() && answers[1]["text"].is_string());
}

#[test]
fn a_seed_is_told_where_it_repeats_the_answer() {
    let generate = |flags: &[&str]| {
        let common = ["generate", "-p", PROMPT, "-n", "24", "--temp", "0.9", "--json"];
        ok(&[&common[..], flags].concat())
    };
    let drawn = lines(&generate(&["--verify", "coupled"]).stdout).remove(0);
    let seed = drawn["seed"].as_u64().expect("one was drawn").to_string();
    for again in [&["-s", &seed][..], &["-s", &seed, "--controller", "off"], &["-s", &seed, "--controller", "fixed:7"]]
    {
        assert_eq!(lines(&generate(again).stdout)[0]["text"], drawn["text"], "{again:?}");
    }
    // What is drawn by rejection depends on how long drafts were.
    let without = generate(&[]);
    assert!(lines(&without.stdout)[0].get("seed").is_none());
    let given = generate(&["-s", &seed, "--verify", "rejection"]);
    assert!(lines(&given.stdout)[0].get("seed").is_none());
    assert!(given.stderr.contains("--verify coupled"), "{}", given.stderr);
}
