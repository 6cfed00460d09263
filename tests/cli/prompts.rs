//! Prompts as people have them, read the same way by every command.

use crate::{PROMPT, lines, model_folder, ok, run, run_with_stdin, write};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

const TEMPLATE: &str = "{% if tools %}{{ tools | length }} tools\n{% endif %}{% if shout %}LOUD\n{% endif %}\
    {% for m in messages %}{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}: {{ m.content }}\n{% endfor %}";

/// What `--show-prompt` says of one line.
fn shown(line: &str, more: &[&str]) -> Value {
    let args = [&["generate", "--input", "-", "--show-prompt"], more].concat();
    let run = run_with_stdin(&args, line.as_bytes());
    lines(&run.stdout).remove(0)
}

fn ids(text: &str) -> Value {
    serde_json::from_str(&ok(&["tokenize", "-p", text, "--ids"]).stdout).unwrap()
}

#[test]
fn byte_order_marks_are_passed_over_and_utf16_is_named() {
    let dir = TempDir::new().unwrap();
    let marked = |text: &str| [&b"\xef\xbb\xbf"[..], text.as_bytes()].concat();
    let utf16 = |text: &str| -> Vec<u8> {
        [0xfeff].into_iter().chain(text.encode_utf16()).flat_map(u16::to_le_bytes).collect()
    };
    let line = "{\"id\": 1, \"prompt\": \"def f(x):\", \"max_tokens\": 4}\n";
    let (good, bad) = (write(&dir, "good.jsonl", marked(line)), write(&dir, "bad.jsonl", utf16(line)));
    let (text, wide) = (write(&dir, "good.txt", marked("def f(x):\n")), write(&dir, "bad.txt", utf16("def f(x):\n")));
    let out = dir.path().join("blocks");
    let out = out.to_str().unwrap();

    let answers = lines(&ok(&["generate", "--input", &good]).stdout);
    assert_eq!((answers.len(), &answers[0]["id"]), (1, &json!(1)));
    assert_eq!(ok(&["generate", "-f", &text, "-n", "4"]).stdout, answers[0]["text"].as_str().unwrap());
    let bench = ["bench", "-r", "1", "-n", "4", "--pp", "8", "--controllers", "off", "--input"];
    let verify = ["verify", "-n", "4", "--samples", "20", "--controllers", "fixed:1", "--input"];
    let distill = ["distill", "-N", "2", "--steps", "0", "-n", "4", "--held-out", "0.5", "--output", out, "--prompts"];
    for command in [&bench[..], &verify] {
        ok(&[command, &[good.as_str()]].concat());
        ok(&[command, &[text.as_str()]].concat());
    }
    for (command, files) in [(&bench[..], [&bad, &wide]), (&verify, [&bad, &wide]), (&distill, [&bad, &wide])] {
        for file in files {
            let run = run(&[command, &[file.as_str()]].concat());
            assert!(run.code == 1 && run.stderr.contains("UTF-16"), "{command:?}: {}", run.stderr);
        }
    }
    for args in [["generate", "--input", &bad], ["generate", "-f", &wide], ["tokenize", "-f", &wide]] {
        let run = run(&args);
        assert!(run.code == 1 && run.stderr.contains("UTF-16"), "{args:?}: {}", run.stderr);
    }
}

#[test]
fn every_command_reads_the_lines_that_generate_answers() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[2], &[("chat_template.jinja", TEMPLATE)]);
    let tokens = ids("import os");
    let input = write(
        &dir,
        "in.jsonl",
        format!(
            "{{\"id\": 1, \"messages\": [{{\"role\": \"user\", \"content\": \"x = 1\"}}], \"temperature\": 0.5}}\n\
             {{\"prompt\": {tokens}, \"n\": 1}}\n\
             {{\"custom_id\": \"a\", \"method\": \"POST\", \"url\": \"/v1/completions\", \"body\": {{\"prompt\": \"y\"}}}}\n"
        ),
    );
    let bench =
        ok(&["bench", "-m", &folder, "--input", &input, "-r", "1", "-n", "4", "--pp", "8", "--controllers", "off"]);
    assert!(bench.stderr.contains("of no use here, where flags decide: n, temperature"), "{}", bench.stderr);
    let verified =
        ok(&["verify", "-m", &folder, "--input", &input, "-n", "4", "--samples", "20", "--controllers", "fixed:1"]);
    assert!(verified.stdout.contains("3 prompts"), "{}", verified.stdout);
    let output = dir.path().join("blocks");
    let distilled = ok(&[
        "distill",
        "-m",
        &folder,
        "--prompts",
        &input,
        "-N",
        "2",
        "--steps",
        "0",
        "-n",
        "4",
        "--shortest",
        "1",
        "--held-out",
        "0.5",
        "--output",
        output.to_str().unwrap(),
    ]);
    assert!(distilled.stderr.contains("3 answers"), "{}", distilled.stderr);
    let wrong = write(&dir, "wrong.jsonl", "{\"prompt\": \"x\"}\n\n{\"prompt\": \"x\", \"promtp\": 1}\n");
    for command in [["bench", "--input"], ["verify", "--input"]] {
        let run = run(&[&command[..], &[wrong.as_str()]].concat());
        assert!(run.code == 1 && run.stderr.contains("wrong.jsonl:3: unknown key \"promtp\""), "{}", run.stderr);
    }
}

#[test]
fn a_model_without_a_tokenizer_is_measured_checked_and_asked_by_tokens() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[2], &[]);
    fs::remove_file(format!("{folder}/tokenizer.json")).unwrap();
    let made_up = "no tokenizer.json, so the prompts are 8 of 64 made-up tokens";
    let bench = ok(&["bench", "-m", &folder, "--prompts", "2", "-r", "1", "-n", "4", "--controllers", "off,fixed:1"]);
    assert!(bench.stdout.contains("fixed:1") && bench.stderr.contains(made_up), "{}", bench.stderr);
    let verify =
        ok(&["verify", "-m", &folder, "--prompts", "2", "-n", "4", "--samples", "20", "--controllers", "fixed:1"]);
    assert!(verify.stdout.contains("lossless") && verify.stderr.contains(made_up), "{}", verify.stderr);

    let asked = format!("{{\"prompt\": {}, \"max_tokens\": 6}}\n{{\"id\": 2, \"prompt\": \"a text\"}}\n", ids(PROMPT));
    let run = run_with_stdin(&["generate", "-m", &folder, "--input", "-"], asked.as_bytes());
    let answers = lines(&run.stdout);
    let with_text = lines(&ok(&["generate", "-p", PROMPT, "-n", "6", "--json"]).stdout);
    let answered = answers.iter().find(|answer| answer["index"] == 0).unwrap();
    assert_eq!((&answered["tokens"], &answered["text"]), (&with_text[0]["tokens"], &json!("")));
    let refused = answers.iter().find(|answer| answer["id"] == 2).unwrap();
    assert!(refused["error"].as_str().unwrap().contains("tokenizer.json"), "{refused}");
}

#[test]
fn texts_may_begin_with_a_hyphen() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[2], &[("chat_template.jinja", TEMPLATE)]);
    assert_eq!(ok(&["generate", "--echo", "-n", "1", "-p", "- a list"]).stdout.split_at(8).0, "- a list");
    let shown = ok(&["generate", "-m", &folder, "--show-prompt", "--system", "--x", "-p", "-1", "--json"]).stdout;
    assert_eq!(lines(&shown)[0]["prompt"], "system: --x\nuser: -1\n");
    ok(&["verify", "-p", "-x", "-n", "2", "--samples", "20", "--controllers", "fixed:1"]);
    ok(&["generate", "-p", "x", "-n", "1", "--stop", "--", "--bad-word", "-b"]);
    assert_eq!(ids("--"), serde_json::from_str::<Value>(&ok(&["tokenize", "--prompt", "--", "--ids"]).stdout).unwrap());
    let chat = run_with_stdin(&["chat", "-m", &folder, "-n", "1", "--system", "-s"], b"x\n");
    assert_eq!(chat.code, 0, "{}", chat.stderr);
}

#[test]
fn messages_of_a_chat_may_begin_with_a_slash() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[2], &[("chat_template.jinja", "{{ messages[-1].content }}")]);
    let answer = |line: &str| {
        let run = run_with_stdin(&["chat", "-m", &folder, "-n", "6"], format!("{line}\n").as_bytes());
        assert_eq!(run.code, 0, "{}", run.stderr);
        run.stdout.strip_suffix('\n').unwrap_or_default().to_owned()
    };
    let text = |prompt: &str| {
        let prompt = format!("{{\"messages\": [{{\"role\": \"user\", \"content\": {prompt:?}}}], \"max_tokens\": 6}}");
        let run = run_with_stdin(&["generate", "-m", &folder, "--input", "-"], prompt.as_bytes());
        lines(&run.stdout)[0]["text"].as_str().unwrap().to_owned()
    };
    assert_eq!(answer("/no_think"), text("/no_think"));
    assert_eq!(answer("//clear"), text("/clear"));
    assert_eq!(answer("//"), text("/"));
    assert_eq!(answer("/clear"), "");
}

#[test]
fn chat_templates_get_what_lines_and_flags_give() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[2], &[("chat_template.jinja", TEMPLATE)]);
    let m = ["-m", &folder];
    let line = r#"{"id": "a", "messages": [{"role": "user", "name": "Ann", "content": [{"type": "text", "text": "hi"}]}],
        "tools": [{"type": "function", "function": {"name": "f"}}], "chat_template_kwargs": {"shout": true}}"#;
    let line = line.replace('\n', " ");
    let full = shown(&line, &m);
    assert_eq!((&full["id"], &full["index"]), (&json!("a"), &json!(0)));
    assert_eq!(full["prompt"], "1 tools\nLOUD\nuser Ann: hi\n");
    assert_eq!(full["tokens"], json!(ids(full["prompt"].as_str().unwrap()).as_array().unwrap()[1..]), "no begin token");
    // A line goes before a flag.
    let plain = r#"{"messages": [{"role": "user", "content": "hi"}]}"#;
    let loud = ["-m", &folder, "--template-arg", "shout=true"];
    assert_eq!(shown(plain, &loud)["prompt"], "LOUD\nuser: hi\n");
    let quiet = r#"{"messages": [{"role": "user", "content": "hi"}], "chat_template_kwargs": {"shout": false}}"#;
    assert_eq!(shown(quiet, &loud)["prompt"], "user: hi\n");
    // Another template, also for a folder whose own is broken.
    let other = write(&dir, "other.jinja", "<{{ messages[0].content }}>");
    assert_eq!(shown(plain, &["-m", &folder, "--chat-template", &other])["prompt"], "<hi>");
    fs::write(format!("{folder}/chat_template.jinja"), "{% if %}").unwrap();
    let broken = shown(plain, &m);
    assert!(broken["error"].as_str().unwrap().contains("--chat-template FILE"), "{broken}");
    ok(&["generate", "-m", &folder, "-p", "x", "-n", "1"]);
    let chat = run(&["chat", "-m", &folder]);
    assert!(chat.code == 1 && chat.stderr.contains("chat_template.jinja"), "{}", chat.stderr);
    assert_eq!(run_with_stdin(&["chat", "-m", &folder, "-n", "1", "--chat-template", &other], b"x\n").code, 0);
    for (args, fragment) in [
        (["--template-arg", "shout"], "KEY=JSON"),
        (["--template-arg", "=1"], "a key before"),
        (["--template-arg", "shout=yes"], "not JSON"),
    ] {
        let refused = run(&[&["generate", "-p", "x"], &args[..]].concat());
        assert!(refused.code == 2 && refused.stderr.contains(fragment), "{}", refused.stderr);
    }
    let missing = run(&["generate", "-p", "x", "--chat-template", "/nowhere.jinja"]);
    assert!(missing.code == 1 && missing.stderr.contains("--chat-template: /nowhere.jinja does not exist"));
    for command in [&["generate", "-p", "x", "-n", "1"][..], &["tokenize", "-p", "x"]] {
        let idle = ok(&[command, &["--template-arg", "shout=true", "--chat-template", &other]].concat());
        for flag in ["--template-arg", "--chat-template"] {
            assert!(idle.stderr.contains(&format!("{flag} changes nothing where text is")), "{}", idle.stderr);
        }
    }
    let beside = shown(r#"{"prompt": "x", "tools": []}"#, &m);
    assert!(beside["error"].as_str().unwrap().contains("\"tools\" is for a chat template"), "{beside}");
}

#[test]
fn tokens_of_a_text_and_back() {
    let listed = ok(&["tokenize", "-p", "import os"]).stdout;
    let tokens = ids("import os");
    assert_eq!(listed.lines().count(), tokens.as_array().unwrap().len());
    assert!(listed.contains("\"import\""), "{listed}");
    assert_eq!(run_with_stdin(&["tokenize", "--ids"], b"import os\n").stdout.trim_end(), tokens.to_string());
    let bare: Value =
        serde_json::from_str(&ok(&["tokenize", "-p", "import os", "--ids", "--no-begin"]).stdout).unwrap();
    assert_eq!(bare.as_array().unwrap()[..], tokens.as_array().unwrap()[1..]);
    assert_eq!(run_with_stdin(&["detokenize"], tokens.to_string().as_bytes()).stdout, "import os\n");
    let words: Vec<String> = tokens.as_array().unwrap().iter().map(Value::to_string).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(ok(&[&["detokenize"], &words[..]].concat()).stdout, "import os\n");
    let special = ok(&[&["detokenize", "--special"], &words[..]].concat()).stdout;
    assert!(special.ends_with("import os\n") && special.len() > "import os\n".len(), "{special}");
    for (args, fragment) in [(vec!["detokenize", "99999"], "99999 is no token"), (vec!["detokenize", "x"], "[ID]")] {
        let refused = run(&args);
        assert!(refused.code > 0 && refused.stderr.contains(fragment), "{}", refused.stderr);
    }
    let refused = run_with_stdin(&["detokenize"], b"[1, two]");
    assert!(refused.code == 1 && refused.stderr.contains("\"two\" is no token"), "{}", refused.stderr);
    let shown = ok(&["generate", "-p", "import os", "--show-prompt"]).stdout;
    assert_eq!(shown, format!("import os\n\n{listed}"));
}

/// The KV cache may hold less than the context: then it is what bounds an answer, and a message that does not fit is
/// told, and taken back.
#[test]
fn a_chat_goes_on_within_a_small_cache() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[2], &[("chat_template.jinja", "{{ messages[-1].content }}")]);
    let chat = |input: &str| run_with_stdin(&["chat", "-m", &folder, "--cache-tokens", "64"], input.as_bytes());
    let long = "x = 1; ".repeat(60);
    let run = chat(&format!("def f(x):\n{long}\n/stats\ndef g(x):\n"));
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stderr.contains("tokens, but the KV cache holds 64: /clear starts anew, --cache-tokens N"),
        "{}",
        run.stderr
    );
    let answer = |run: &str| run.lines().count();
    assert!(
        answer(&run.stdout) > answer(&chat("def f(x):\n").stdout),
        "the last message has its answer: {}",
        run.stdout
    );
}
