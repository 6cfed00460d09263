//! What a line may ask, and the form in which it is answered.

use crate::{PROMPT, generate, lines, model_folder, ok, run, run_with_stdin, write};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

fn answers(input: &str, more: &[&str]) -> (i32, String) {
    let run = run_with_stdin(&[&["generate", "--input", "-", "-n", "4"], more].concat(), input.as_bytes());
    (run.code, run.stdout)
}

fn ids(text: &str) -> Vec<u64> {
    serde_json::from_str(&ok(&["tokenize", "-p", text, "--ids", "--no-begin"]).stdout).unwrap()
}

#[test]
fn an_id_comes_back_as_it_was_spelled() {
    for id in [
        "123456789012345678901234567890",
        "1e2",
        "-0.10",
        "1e999",
        r#""\ud83d""#,
        r#""\u00e9 \/""#,
        r#"{"b": [1.0, {"a":null}]}"#,
        "false",
    ] {
        let (code, out) = answers(&format!("{{\"id\": {id}, \"prompt\": \"x\"}}\n"), &[]);
        assert_eq!(code, 0, "{id}");
        assert!(out.starts_with(&format!("{{\"id\":{id},\"index\":0,")), "{out}");
    }
    // What is wrong with the line is told under its id too, wherever the id stands.
    for line in [
        r#"{"prompt": "\ud83d", "id": "7x"}"#,
        r#"{"id": "7x", "prompt": "x", "temperature": 1e999}"#,
        r#"{"id": "7x", "prompt": "x", "seed": 123456789012345678901234567890}"#,
        r#"{"id": "7x", "prompt": "x"#,
        r#"{"id": "7x", "prompt": "x", "prompt": "y"}"#,
        r#"{"id": "7x", "prompt": [1, -2]}"#,
        r#"{"id": "7x", "prompt": [99999]}"#,
        r#"{"id": "7x", "prompt": []}"#,
    ] {
        let (code, out) = answers(line, &[]);
        let answer = &lines(&out)[0];
        assert_eq!((code, &answer["id"]), (1, &json!("7x")), "{line}");
        assert!(answer["error"].is_string(), "{line}: {answer}");
    }
}

#[test]
fn a_line_may_ask_for_several_answers() {
    let dir = TempDir::new().unwrap();
    let input = "{\"id\": \"a\", \"prompt\": \"def f(x):\", \"n\": 3, \"temperature\": 1, \"seed\": 5}\n{\"prompt\": \"class A\"}\n";
    let (code, out) = answers(input, &["-b", "4"]);
    let all = lines(&out);
    assert_eq!((code, all.len()), (0, 4));
    let sample = |n: u64| all.iter().find(|answer| answer["index"] == 0 && answer["sample"] == n).unwrap();
    for n in 0..3 {
        let line = format!("{{\"prompt\": \"def f(x):\", \"temperature\": 1, \"seed\": {}}}", 5 + n);
        assert_eq!(lines(&answers(&line, &[]).1)[0]["tokens"], sample(n)["tokens"], "sample i has seed + i");
    }
    assert!(all.iter().any(|answer| answer["index"] == 1 && answer.get("sample").is_none()));

    // A run that was killed is gone on with answer by answer.
    let file = write(&dir, "in.jsonl", input);
    let kept: Vec<&str> = out.lines().filter(|line| !line.contains("\"sample\":1")).collect();
    let output = write(&dir, "out.jsonl", kept.join("\n") + "\n");
    ok(&["generate", "--input", &file, "--output", &output, "--resume", "-n", "4"]);
    let resumed = lines(&fs::read_to_string(&output).unwrap());
    assert_eq!(resumed.len(), 4);
    let added = resumed.last().unwrap();
    assert_eq!((&added["sample"], &added["tokens"]), (&json!(1), &sample(1)["tokens"]));
    let first = kept.iter().find(|line| line.contains("\"sample\":0")).unwrap();
    let beyond = write(&dir, "beyond.jsonl", first.replace("\"sample\":0", "\"sample\":3") + "\n");
    let refused = run(&["generate", "--input", &file, "--output", &beyond, "--resume", "-n", "4"]);
    assert!(refused.code == 1 && refused.stderr.contains("one of 3 samples"), "{}", refused.stderr);
    for n in ["0", "100000", "-1"] {
        let (code, out) = answers(&format!("{{\"prompt\": \"x\", \"n\": {n}}}"), &[]);
        assert!(code == 1 && out.contains("\\\"n\\\""), "{out}");
    }
}

#[test]
fn lines_of_openais_batches_are_answered_in_their_form() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[2], &[("chat_template.jinja", "{{ messages[-1].content }}")]);
    let request = |id: &str, url: &str, body: Value| {
        json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string() + "\n"
    };
    let chat = "/v1/chat/completions";
    let hello = json!([{"role": "user", "content": "def f(x):"}]);
    let input = [
        request(
            "chat",
            chat,
            json!({"model": "m", "messages": hello, "max_completion_tokens": 3, "n": 2, "user": "u",
            "logprobs": true, "top_logprobs": 2}),
        ),
        request(
            "text",
            "/v1/completions",
            json!({"model": "m", "prompt": "def f(x):", "max_tokens": 3, "logprobs": 1}),
        ),
        request(
            "texts",
            "/v1/completions",
            json!({"prompt": ["def f(x):", "class A:"], "max_tokens": 3, "n": 2, "echo": true}),
        ),
        request("end", chat, json!({"messages": hello, "stop": ["\n"]})),
        request("stream", chat, json!({"messages": hello, "stream": true})),
        request("odd", chat, json!({"messages": hello, "tempratur": 1})),
        request("range", chat, json!({"messages": hello, "top_p": 7})),
        request("url", "/v1/embeddings", json!({"input": "x"})),
        "{\"custom_id\": \"bodiless\", \"method\": \"POST\", \"url\": \"/v1/completions\"}\n".into(),
        "{\"custom_id\": 7, \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {\"prompt\": \"x\"}}\n"
            .into(),
    ]
    .concat();
    let file = write(&dir, "in.jsonl", &input);
    let output = dir.path().join("out.jsonl");
    let arguments = ["generate", "-m", &folder, "--input", &file, "--output", output.to_str().unwrap(), "-b", "2"];
    let run_again = |more: &[&str]| run(&[&arguments[..], more].concat());
    assert_eq!(run_again(&[]).code, 1);
    let rows = lines(&fs::read_to_string(&output).unwrap());
    assert_eq!(rows.len(), 10);
    let row = |id: Value| rows.iter().find(|row| row["custom_id"] == id).unwrap();
    let body = |id: &str| &row(json!(id))["response"]["body"];

    let answered = body("chat");
    assert_eq!(
        (&row(json!("chat"))["error"], &row(json!("chat"))["response"]["status_code"]),
        (&json!(null), &json!(200))
    );
    assert_eq!((&answered["object"], &answered["model"]), (&json!("chat.completion"), &json!("m")));
    assert_eq!(answered["choices"].as_array().unwrap().len(), 2);
    let choice = &answered["choices"][1];
    assert_eq!((&choice["message"]["role"], &choice["finish_reason"]), (&json!("assistant"), &json!("length")));
    let logprobs = choice["logprobs"]["content"].as_array().unwrap();
    assert!(logprobs.len() == 3 && logprobs[0]["top_logprobs"].as_array().unwrap().len() == 2, "{choice}");
    let usage = &answered["usage"];
    assert_eq!(usage["completion_tokens"], 6);
    assert_eq!(usage["total_tokens"], usage["prompt_tokens"].as_u64().unwrap() + 6);
    let text = body("text");
    assert_eq!(
        (&text["object"], text["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len()),
        (&json!("text_completion"), 3)
    );
    assert_eq!(text["choices"][0]["text"], ok(&["generate", "-m", &folder, "-p", "def f(x):", "-n", "3"]).stdout);
    let texts = body("texts");
    let told: Vec<&str> = texts["choices"].as_array().unwrap().iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(told[0], format!("def f(x):{}", text["choices"][0]["text"].as_str().unwrap()));
    assert!(told[0] == told[1] && told[2] == told[3] && told[2].starts_with("class A:"), "{told:?}");
    let prompts = ids("def f(x):").len() + ids("class A:").len();
    assert!(texts["usage"]["prompt_tokens"].as_u64().unwrap() >= prompts as u64, "each prompt counts once: {texts}");
    assert_eq!(body("end")["choices"][0]["finish_reason"], "stop");
    for (id, fragment, param) in [
        (json!("stream"), "\"stream\": true is not supported (expected false, or nothing)", json!("stream")),
        (json!("odd"), "\"body\": unknown key \"tempratur\" (expected messages, ", json!("tempratur")),
        (json!("range"), "top_p: 7", json!("top_p")),
        (json!("url"), "\"/v1/embeddings\" (expected", json!("url")),
        (json!("bodiless"), "\"body\" is missing", json!(null)),
        (json!(7), "\"custom_id\"", json!("custom_id")),
    ] {
        let failed = row(id);
        assert_eq!((&failed["response"]["status_code"], &failed["error"]), (&json!(400), &json!(null)));
        let error = &failed["response"]["body"]["error"];
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(fragment), "{message}");
        assert_eq!(error["param"], param, "{message}");
    }

    // Gone on with, like any other output.
    let whole = fs::read_to_string(&output).unwrap();
    let kept: String = whole
        .lines()
        .filter(|line| !line.contains("\"custom_id\":\"text\""))
        .map(|line| line.to_owned() + "\n")
        .collect();
    fs::write(&output, &kept).unwrap();
    assert_eq!(run_again(&["--resume"]).code, 1, "the errors of the earlier run count");
    let resumed = fs::read_to_string(&output).unwrap();
    assert!(resumed.starts_with(&kept) && resumed.lines().count() == 10, "{resumed}");
    fs::write(&output, kept.replace("\"custom_id\":\"end\"", "\"custom_id\":\"dne\"")).unwrap();
    let refused = run_again(&["--resume"]);
    assert!(refused.stderr.contains("id \"dne\" (expected id \"end\""), "{}", refused.stderr);
}

#[test]
fn answers_end_and_avoid_what_lines_and_flags_say() {
    let plain = &lines(&generate(&["--json"]).stdout)[0];
    let tokens: Vec<u64> = serde_json::from_value(plain["tokens"].clone()).unwrap();
    let same = |flags: &[&str], keys: Value| {
        let mut line = json!({"prompt": PROMPT, "max_tokens": 48});
        line.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let by_line = lines(&answers(&line.to_string(), &[]).1).remove(0);
        let by_flag = lines(&generate(&[flags, &["--json"]].concat()).stdout).remove(0);
        assert_eq!((&by_line["tokens"], &by_line["finish"]), (&by_flag["tokens"], &by_flag["finish"]), "{line}");
        let tokens: Vec<u64> = serde_json::from_value(by_line["tokens"].clone()).unwrap();
        (tokens, by_line)
    };
    let (fifth, seldom) = (tokens[5], tokens[5].to_string());
    let first = tokens.iter().position(|&token| token == fifth).unwrap();
    let (stopped, answer) = same(&["--stop-token", &seldom], json!({"stop_token_ids": [fifth]}));
    assert_eq!((&stopped[..], &answer["finish"]), (&tokens[..=first], &json!("end_token")));
    let least = (first + 3).to_string();
    let (longer, _) = same(
        &["--stop-token", &seldom, "--min-tokens", &least],
        json!({"stop_token_ids": [fifth], "min_tokens": first + 3}),
    );
    assert!(longer.len() >= first + 3 && !longer[..first + 3].contains(&fifth), "{longer:?}");
    let (without, _) = same(&["--suppress-token", &seldom], json!({"suppress_tokens": [fifth]}));
    assert!(!without.contains(&fifth));

    let word = "fibonacci";
    assert!(plain["text"].as_str().unwrap().contains(word));
    let (_, polite) = same(&["--bad-word", word], json!({"bad_words": [word]}));
    let runs = [ids(word), ids(&format!(" {word}"))];
    let polite: Vec<u64> = serde_json::from_value(polite["tokens"].clone()).unwrap();
    for run in &runs {
        assert!(!polite.windows(run.len()).any(|window| window == run), "{polite:?} has {run:?}");
    }
    let (_, by_tokens) = same(&["--bad-word", word], json!({"bad_words": runs}));
    assert!(by_tokens["error"].is_null());
    for (keys, fragment) in [
        (json!({"min_tokens": 49}), "min_tokens"),
        (json!({"stop_token_ids": [99999]}), "stop_token_ids"),
        (json!({"suppress_tokens": [99999]}), "suppress_tokens"),
        (json!({"bad_words": [[]]}), "bad_words"),
        (json!({"bad_words": [" "]}), "bad_words"),
        (json!({"bad_words": 3}), "\"bad_words\": invalid type: integer `3`"),
        (json!({"bad_words": [3]}), "texts or lists of tokens"),
    ] {
        let mut line = json!({"prompt": "x", "max_tokens": 48});
        line.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
        let (code, out) = answers(&line.to_string(), &[]);
        let error = lines(&out)[0]["error"].as_str().unwrap().to_owned();
        assert!(code == 1 && error.contains(fragment), "{line}: {error}");
    }
}

#[test]
fn the_folders_wishes_for_generation_are_honoured_or_named() {
    let dir = TempDir::new().unwrap();
    let tokens: Vec<u64> = serde_json::from_value(lines(&generate(&["--json"]).stdout)[0]["tokens"].clone()).unwrap();
    let wishes = json!({"bos_token_id": 0, "eos_token_id": 1, "max_new_tokens": 7, "min_new_tokens": 300, "stop_strings": "zzz",
        "suppress_tokens": [tokens[5]], "bad_words_ids": [[tokens[0], tokens[1]]], "num_beams": 4});
    let folder = model_folder(&dir, &[2], &[("generation_config.json", &wishes.to_string())]);
    let run = ok(&["generate", "-m", &folder, "-p", PROMPT, "--json"]);
    let answer = &lines(&run.stdout)[0];
    let found: Vec<u64> = serde_json::from_value(answer["tokens"].clone()).unwrap();
    assert_eq!((found.len(), &answer["finish"]), (7, &json!("length")));
    assert!(!found.contains(&tokens[5]) && found[..2] != tokens[..2], "{found:?}");
    assert!(run.stderr.contains("num_beams"), "{}", run.stderr);
    assert_eq!(
        lines(&ok(&["generate", "-m", &folder, "-p", PROMPT, "-n", "9", "--json"]).stdout)[0]["stats"]["generated"],
        9
    );
}
