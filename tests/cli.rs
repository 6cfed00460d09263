//! The command line from outside: what it prints where, its exit codes, and what it says to mistakes.

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m");
const PROMPT: &str = "def fibonacci(n):";

/// What a run left behind.
struct Run {
    code: i32,
    stdout: String,
    stderr: String,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eesd-run"));
    command.args(args).stdin(Stdio::null()).env_remove("NO_COLOR");
    command
}

fn run(args: &[&str]) -> Run {
    finish(command(args))
}

fn finish(mut command: Command) -> Run {
    let output = command.output().unwrap();
    Run {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run_with_stdin(args: &[&str], input: &[u8]) -> Run {
    let mut child = command(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that fails early does not read its input: that is no failure of the test.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    Run {
        code: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs what must succeed.
fn ok(args: &[&str]) -> Run {
    let run = run(args);
    assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
    run
}

fn generate(more: &[&str]) -> Run {
    ok(&[&["generate", "-p", PROMPT, "-n", "48"], more].concat())
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn write(dir: &TempDir, name: &str, text: impl AsRef<[u8]>) -> String {
    let path = dir.path().join(name);
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// A copy of the bundled model's folder with only these exit blocks, and with `more` files.
fn model_folder(dir: &TempDir, exits: &[usize], more: &[(&str, &str)]) -> String {
    let folder = dir.path().join("model");
    fs::create_dir(&folder).unwrap();
    let base =
        ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    let exits = exits.iter().map(|n| format!("exit-{n}.safetensors"));
    for name in base.into_iter().map(String::from).chain(exits) {
        fs::copy(Path::new(BUNDLED).join(&name), folder.join(&name)).unwrap();
    }
    for (name, text) in more {
        fs::write(folder.join(name), text).unwrap();
    }
    folder.to_str().unwrap().to_owned()
}

#[test]
fn mistakes_get_an_exit_code_and_a_message() {
    let dir = TempDir::new().unwrap();
    let missing = dir.path().join("missing");
    let missing = missing.to_str().unwrap();
    let not_json = write(&dir, "not.jsonl", "{\"prompt\": \"a\"}\nnot json\n");
    let no_prompt = write(&dir, "no-prompt.jsonl", "{\"text\": \"a\"}\n");
    let empty = write(&dir, "empty.jsonl", "\n");
    let garbage = write(&dir, "garbage.safetensors", "not tensors");
    let latin1 = write(&dir, "latin1.txt", b"caf\xe9");
    let long = write(&dir, "long.txt", "x = 1\n".repeat(2000));
    let several = model_folder(&dir, &[1, 3], &[]);
    let unwritable = format!("{missing}/out.jsonl");
    let plot = format!("{missing}/plot.svg");
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf/llama");
    let p = ["generate", "-p", "x"];
    let with = |more: &[&'static str]| -> Vec<&'static str> { [&p, more].concat() };

    #[rustfmt::skip]
    let usage: Vec<(Vec<&str>, &str)> = vec![
        (vec!["frobnicate"], "frobnicate"),
        (vec!["generate", "--tmep", "1"], "'--temp'"),
        (with(&["--temp", "-1"]), "0 or more"),
        (with(&["--temp", "hot"]), "--temp"),
        (with(&["--temperature", "nan"]), "0 or more"),
        (with(&["--temp", "inf"]), "0 or more"),
        (with(&["--top-k", "-3"]), "-3"),
        (with(&["--top-k", "1.5"]), "--top-k"),
        (with(&["--top-p", "0"]), "above 0 and at most 1"),
        (with(&["--top-p", "1.5"]), "above 0 and at most 1"),
        (with(&["--min-p", "-0.1"]), "from 0 to 1"),
        (with(&["--repeat-penalty", "0"]), "above 0"),
        (with(&["--presence-penalty", "much"]), "finite number"),
        (with(&["--frequency-penalty", "inf"]), "finite number"),
        (with(&["--logit-bias", "7"]), "15043+1"),
        (with(&["--logit-bias", "x+1"]), "15043+1"),
        (with(&["--logit-bias", "7=nan"]), "15043+1"),
        (with(&["--stop", ""]), "at least one character"),
        (with(&["--stop", "\\q"]), "unknown escape"),
        (with(&["--seed", "-1"]), "-1"),
        (with(&["-s", "abc"]), "abc"),
        (with(&["-n", "0"]), "1 or more"),
        (with(&["-n", "many"]), "1 or more"),
        (with(&["-c", "-5"]), "-5"),
        (with(&["--threads", "0"]), "1 or more"),
        (with(&["--batch-size", "0"]), "1 or more"),
        (with(&["--draft-max", "0"]), "1 or more"),
        (with(&["--samples", "0"]), "1 or more"),
        (with(&["--controller", "magic"]), "goodput-ts"),
        (with(&["--controller", "fixed:x"]), "fixed:4"),
        (with(&["--controller", "threshold:2"]), "from 0 to 1"),
        (with(&["--controller", "off:1"]), "expected nothing"),
        (with(&["--no-exit", "--exit", "2"]), "--no-exit"),
        (with(&["--no-exit", "--controller", "beta-ts"]), "--no-exit"),
        (with(&["--verify", "perhaps"]), "rejection"),
        (with(&["--device", "tpu"]), "cuda:N"),
        (with(&["--device", "cuda:first"]), "first"),
        (with(&["--file", "a.txt"]), "--file"),
        (with(&["--input", "a.jsonl"]), "--input"),
        (with(&["--logprobs", "3"]), "--json"),
        (with(&["--json", "--show-drafts"]), "--show-drafts"),
        (with(&["--color", "sometimes"]), "always"),
        (vec!["generate", "-p"], "--prompt"),
        (vec!["bench", "--controllers", "off,,fixed:1"], "expected one of"),
        (vec!["bench", "--output-format", "xml"], "jsonl"),
        (vec!["bench", "--temp", "1", "--verify", "rejection"], "coupled"),
        (vec!["bench", "-r", "0"], "1 or more"),
        (vec!["verify", "--temp", "0"], "above 0"),
        (vec!["verify", "-p", "a", "--input", "b"], "--input"),
        (vec!["completions", "tcsh"], "bash"),
        (vec!["completions"], "SHELL"),
    ];
    #[rustfmt::skip]
    let failed: Vec<(Vec<&str>, &str)> = vec![
        (vec!["generate", "-p", "x", "-m", missing], missing),
        (vec!["inspect", "-m", missing], missing),
        (vec!["generate", "-m", fixture, "-p", "x"], "tokenizer.json"),
        (vec!["generate", "-f", missing], missing),
        (vec!["generate", "-f", &latin1], "latin1.txt"),
        (vec!["generate", "-f", &long], "raise --ctx-size"),
        (vec!["generate", "--input", missing], missing),
        (vec!["generate", "-p", "x", "--output", &unwritable], "out.jsonl"),
        (vec!["generate", "-p", "x", "--exit", "7"], "exit blocks 1, 2, 3"),
        (vec!["generate", "-p", "x", "--exit", "0"], "exit blocks 1, 2, 3"),
        (vec!["generate", "-p", "x", "--exit", missing], missing),
        (vec!["generate", "-p", "x", "--exit", &garbage], "garbage.safetensors"),
        (vec!["generate", "-p", "x", "-m", &several], "--exit N with N one of 1, 3"),
        (vec!["generate", "-p", "x", "-m", &several, "--exit", "2"], "exit-2.safetensors"),
        (vec!["generate", "-p", "x", "--device", "cuda"], "no CUDA engine"),
        (vec!["generate", "-p", "x", "--device", "cuda:1"], "cuda:1"),
        (vec!["generate", "-p", "x", "--logit-bias", "4096+1"], "4096"),
        (vec!["generate", "-p", "x", "--system", "y"], "chat template"),
        (vec!["generate", "-p", "x", "-c", "1"], "context"),
        (vec!["chat"], "eesd-run generate"),
        (vec!["bench", "--input", missing], missing),
        (vec!["bench", "--input", &not_json], "not.jsonl:2"),
        (vec!["bench", "--input", &no_prompt], "no-prompt.jsonl:1"),
        (vec!["bench", "--input", &empty], "no prompts"),
        (vec!["bench", "--prompts", "1", "-n", "4", "-r", "1", "--controllers", "off", "--plot", &plot], "plot.svg"),
        (vec!["verify", "--input", &not_json], "not.jsonl:2"),
    ];
    for (code, cases) in [(2, usage), (1, failed)] {
        for (args, fragment) in cases {
            let run = run(&args);
            assert_eq!(run.code, code, "{args:?}: {}", run.stderr);
            assert_eq!(run.stdout, "", "{args:?}: nothing but text belongs on standard output");
            let errors: Vec<&str> = run.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
            assert_eq!(errors.len(), 1, "{args:?}: one line says what is wrong: {}", run.stderr);
            assert!(errors[0].contains(fragment), "{args:?}: {fragment:?} is not in {:?}", errors[0]);
        }
    }
}

#[test]
fn greedy_text_is_the_same_whoever_drafts() {
    let plain = generate(&["--controller", "off"]).stdout;
    assert!(plain.len() > 40, "{plain:?}");
    assert_eq!(generate(&["--no-exit"]).stdout, plain);
    for controller in ["goodput-ts", "fixed:1", "fixed:16", "threshold:0.6", "beta-ts", "calibration-ts"] {
        assert_eq!(generate(&["--controller", controller]).stdout, plain, "{controller}");
    }
    for more in [["--exit", "1"], ["--exit", "3"], ["-m", BUNDLED], ["--threads", "1"], ["--device", "cpu"]] {
        let exit: &[&str] = if more[0] == "-m" { &["--exit", "2"] } else { &[] };
        assert_eq!(generate(&[&more, exit].concat()).stdout, plain, "{more:?}");
    }
}

#[test]
fn only_text_on_stdout_and_one_line_of_statistics_on_stderr() {
    let run = generate(&[]);
    assert!(!run.stdout.contains('\x1b') && !run.stdout.contains("tok/s"));
    let told = run.stderr.trim_end();
    assert_eq!(told.lines().count(), 1, "{told}");
    for part in ["48 tokens", "tok/s", "rounds", "mean accepted length", "acceptance by position", "first token after"]
    {
        assert!(told.contains(part), "{part} is not in {told}");
    }
    let quiet = generate(&["--quiet"]);
    assert_eq!((quiet.stdout.as_str(), quiet.stderr.as_str()), (run.stdout.as_str(), ""));
    assert_eq!(generate(&["--echo"]).stdout, format!("{PROMPT}{}", run.stdout));
}

#[test]
fn prompts_come_from_flag_file_and_pipe() {
    let dir = TempDir::new().unwrap();
    let file = write(&dir, "prompt.txt", format!("{PROMPT}\n"));
    let text = generate(&["-q"]).stdout;
    assert_eq!(ok(&["generate", "-q", "-n", "48", "-f", &file]).stdout, text);
    let piped = run_with_stdin(&["generate", "-q", "-n", "48"], format!("{PROMPT}\n").as_bytes());
    assert_eq!((piped.code, piped.stdout), (0, text));
}

#[test]
fn drafts_are_coloured_only_when_asked() {
    let plain = generate(&[]).stdout;
    assert_eq!(generate(&["--show-drafts"]).stdout, plain, "a pipe is not a terminal");
    let coloured = generate(&["--show-drafts", "--color", "always"]).stdout;
    assert!(coloured.contains("\x1b[32m"));
    assert_eq!(coloured.replace("\x1b[32m", "").replace("\x1b[0m", ""), plain);
    let off = generate(&["--show-drafts", "--color", "always", "--controller", "off"]).stdout;
    assert_eq!(off, plain, "nothing is drafted");
}

#[test]
fn the_same_seed_gives_the_same_text() {
    let sampled = |seed: &str, more: &[&str]| generate(&[&["--temp", "0.9", "-s", seed], more].concat()).stdout;
    let text = sampled("7", &[]);
    for controller in ["off", "fixed:4", "beta-ts"] {
        assert_eq!(sampled("7", &["--controller", controller]), text, "{controller}");
    }
    assert_ne!(sampled("8", &[]), text);
    let rejection = |seed| sampled(seed, &["--verify", "rejection", "--controller", "fixed:4"]);
    assert_eq!(rejection("7"), rejection("7"));
}

#[test]
fn stop_strings_and_end_tokens_end_the_text() {
    let text = generate(&[]).stdout;
    let middle: String = text.chars().skip(30).take(6).collect();
    let at = text.find(&middle).unwrap();
    let escaped = middle.replace('\\', "\\\\").replace('\n', "\\n").replace('\t', "\\t");
    for controller in ["off", "fixed:8"] {
        assert_eq!(generate(&["--stop", &escaped, "--controller", controller]).stdout, text[..at]);
    }
    let json = generate(&["--stop", &escaped, "--json"]).stdout;
    let answer = &lines(&json)[0];
    assert_eq!((&answer["finish"], &answer["stop"]), (&json!("stop_string"), &json!(middle)));
    // The end token made certain: at once with it, never without.
    let ended = &lines(&generate(&["--logit-bias", "1+1000", "--json"]).stdout)[0];
    assert_eq!((&ended["finish"], &ended["text"], &ended["tokens"]), (&json!("end_token"), &json!(""), &json!([1])));
    let past = &lines(&generate(&["--logit-bias", "1+1000", "--json", "--ignore-eos"]).stdout)[0];
    assert_eq!((&past["finish"], past["tokens"].as_array().unwrap().len()), (&json!("length"), 48));
}

#[test]
fn json_tells_everything_about_an_answer() {
    let text = generate(&[]).stdout;
    let answers = lines(&generate(&["--json", "--logprobs", "2"]).stdout);
    assert_eq!(answers.len(), 1);
    let answer = &answers[0];
    assert_eq!((&answer["text"], &answer["finish"], &answer["index"]), (&json!(text), &json!("length"), &json!(0)));
    assert_eq!(answer["tokens"].as_array().unwrap().len(), 48);
    assert!(answer["seed"].is_u64());
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
fn a_wrong_line_fails_alone() {
    let dir = TempDir::new().unwrap();
    #[rustfmt::skip]
    let requests = [
        (r#"{"id": "plain", "prompt": "def fibonacci(n):", "max_tokens": 8}"#, ""),
        ("not json", "expected"),
        (r#"{"id": 1, "prompt": "x", "max_tokns": 3}"#, "max_tokns"),
        ("", ""),
        (r#"{"id": 2, "prompt": 5}"#, "invalid type"),
        (r#"{"id": 3}"#, "neither"),
        (r#"{"id": 4, "prompt": "x", "messages": []}"#, "both"),
        (r#"{"id": 5, "messages": [{"role": "user", "content": "x"}]}"#, "chat template"),
        (r#"{"id": 6, "prompt": "x", "temperature": -1}"#, "temperature"),
        (r#"{"id": 7, "prompt": "x", "top_p": 3}"#, "top_p"),
        (r#"{"id": 8, "prompt": "x", "max_tokens": 0}"#, "max_tokens"),
        (r#"{"id": 9, "prompt": "x", "stop": [""]}"#, "stop"),
        (r#"{"id": 10, "prompt": "x", "stop": 3}"#, "stop"),
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
    assert!(run.stderr.contains("13 requests failed"), "{}", run.stderr);
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
fn a_reader_that_leaves_ends_the_text_quietly() {
    let mut child = command(&["generate", "-p", PROMPT, "-n", "900", "--ignore-eos"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    child.stdout.take().unwrap().read_exact(&mut first).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(!told.contains("panicked") && !told.contains("error"), "{told}");
}

#[test]
fn without_an_exit_block_decoding_is_plain() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[], &[]);
    let run = generate(&["-m", &folder]);
    assert_eq!(run.stdout, generate(&[]).stdout);
    assert!(run.stderr.contains("decoding plainly"), "{}", run.stderr);
    let refused = self::run(&["generate", "-m", &folder, "-p", "x", "--controller", "fixed:2"]);
    assert!(refused.code == 1 && refused.stderr.contains("--exit FILE"), "{}", refused.stderr);
    let verify = self::run(&["verify", "-m", &folder]);
    assert!(verify.code == 1 && verify.stderr.contains("nothing to verify"), "{}", verify.stderr);
    let block = format!("{BUNDLED}/exit-3.safetensors");
    assert_eq!(generate(&["-m", &folder, "--exit", &block]).stdout, run.stdout);
}

#[test]
fn sampling_defaults_come_from_the_model_and_flags_go_before_them() {
    let dir = TempDir::new().unwrap();
    let sampled = r#"{"bos_token_id": 0, "eos_token_id": 1, "do_sample": true, "temperature": 0.9, "top_k": 40}"#;
    let folder = model_folder(&dir, &[2], &[("generation_config.json", sampled)]);
    let by_model = generate(&["-m", &folder, "-s", "3"]).stdout;
    assert_eq!(by_model, generate(&["-s", "3", "--temp", "0.9", "--top-k", "40"]).stdout);
    assert_eq!(generate(&["-m", &folder, "--temp", "0"]).stdout, generate(&[]).stdout);
    let idle = generate(&["--top-k", "3"]);
    assert!(idle.stderr.contains("--top-k changes nothing in greedy decoding"), "{}", idle.stderr);
}

#[test]
fn chat_keeps_the_conversation() {
    let dir = TempDir::new().unwrap();
    let template = "{% for m in messages %}{{ m.content }}\n{% endfor %}";
    let folder = model_folder(&dir, &[2], &[("chat_template.jinja", template)]);
    let chat = |input: &str, more: &[&str]| {
        let run = run_with_stdin(&[&["chat", "-m", &folder, "-n", "12"], more].concat(), input.as_bytes());
        assert_eq!(run.code, 0, "{}", run.stderr);
        run
    };
    let once = chat("def add(a, b):\n", &["--system", "# Python"]);
    assert!(once.stdout.ends_with('\n') && once.stderr.contains("12 tokens"), "{} {}", once.stdout, once.stderr);
    let cleared = chat("def add(a, b):\n/clear\ndef add(a, b):\n/stats\n/exit\nnot read\n", &["--system", "# Python"]);
    assert_eq!(cleared.stdout, once.stdout.repeat(2));
    assert!(cleared.stderr.contains("24 tokens"), "{}", cleared.stderr);
    let remembered = chat("def add(a, b):\ndef add(a, b):\n", &["--system", "# Python"]);
    assert!(remembered.stdout.starts_with(&once.stdout) && remembered.stdout != cleared.stdout);
    assert!(chat("/what\n", &[]).stderr.contains("unknown command /what"));
    let full = chat("def add(a, b):\ndef add(a, b):\n", &["-c", "24"]);
    assert!(full.stderr.contains("/clear starts anew"), "{}", full.stderr);
    let system = ok(&["generate", "-m", &folder, "-n", "12", "--system", "# Python", "-p", "def add(a, b):"]);
    assert_eq!(system.stdout + "\n", once.stdout);
}

#[test]
fn inspect_for_people_and_for_machines() {
    let text = ok(&["inspect"]).stdout;
    for part in ["pycode-4m", "8 layers", "3.94 M parameters", "N = 2", "predicted"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let report: Value = serde_json::from_str(&ok(&["inspect", "-m", BUNDLED, "--json"]).stdout).unwrap();
    assert_eq!((&report["layers"], &report["vocab_size"], &report["dtype"]), (&json!(8), &json!(4096), &json!("bf16")));
    let blocks = report["exit_blocks"].as_array().unwrap();
    assert_eq!(
        blocks.iter().map(|block| block["exit_layer"].clone()).collect::<Vec<_>>(),
        [json!(1), json!(2), json!(3)]
    );
    let r = blocks[1]["draft_step_cost"].as_f64().unwrap();
    assert!((r - 0.5).abs() < 0.01, "the model's README says half a plain step: {r}");
    assert_eq!(report["longest_context"][0], json!({"memory_gb": 8, "tokens": 1024, "sequences": 1523}));
}

#[test]
fn doctor_finds_the_processor() {
    let text = ok(&["doctor"]).stdout;
    for part in ["processor", "vector instructions", "memory bandwidth", "CUDA", "bundled model"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let findings: Value = serde_json::from_str(&ok(&["doctor", "--json"]).stdout).unwrap();
    assert!(findings.as_array().unwrap().iter().all(|finding| finding["found"].is_string()));
}

#[test]
fn completions_for_each_shell() {
    assert!(ok(&["completions", "bash"]).stdout.contains("complete -F _eesd__run"));
    for shell in ["zsh", "fish", "powershell", "elvish"] {
        assert!(ok(&["completions", shell]).stdout.contains("generate"));
    }
}

#[test]
fn help_and_version_are_not_errors() {
    assert!(ok(&["--version"]).stdout.starts_with("eesd-run "));
    let help = ok(&["generate", "--help"]).stdout;
    for part in ["generation_config.json", "JSON lines", "--draft-max", "[default: goodput-ts]"] {
        assert!(help.contains(part), "{part} is not in {help}");
    }
    for name in ["chat", "bench", "inspect", "verify", "doctor", "completions"] {
        assert!(ok(&[name, "--help"]).stdout.contains("Usage: eesd-run"));
    }
    assert_eq!(run(&[]).code, 2);
}

fn bench(more: &[&str]) -> String {
    let base =
        ["bench", "--prompts", "2", "-n", "8", "-r", "1", "--pp", "32", "--controllers", "off,fixed:2,goodput-ts"];
    ok(&[&base, more].concat()).stdout
}

#[test]
fn bench_prints_each_format() {
    let table = bench(&[]);
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 6, "{table}");
    assert!(rows.iter().all(|row| row.starts_with('|') && row.matches('|').count() == 14), "{table}");
    assert!(rows[0].contains("acceptance by position") && rows[2].contains("pp32") && rows[3].contains("| off"));

    let csv = bench(&["-o", "csv"]);
    assert!(csv.starts_with("model,bytes,") && csv.lines().count() == 5);
    let jsonl = lines(&bench(&["-o", "jsonl", "--batch-size", "2"]));
    let json: Value = serde_json::from_str(&bench(&["-o", "json", "--temp", "0.8"])).unwrap();
    for rows in [&jsonl, json.as_array().unwrap()] {
        let names: Vec<&Value> = rows.iter().map(|row| &row["controller"]).collect();
        assert_eq!(names, [&Value::Null, &json!("off"), &json!("fixed:2"), &json!("goodput-ts")]);
        assert!(rows.iter().all(|row| row["tokens_per_second"].as_f64().unwrap() > 0.0));
        assert_eq!((&rows[1]["speed_up"], &rows[1]["predicted"]), (&json!(1.0), &json!(1.0)));
        assert_eq!(rows[2]["tokens"], 16);
    }
}

#[test]
fn bench_draws_a_picture() {
    let dir = TempDir::new().unwrap();
    let path: PathBuf = dir.path().join("plot.svg");
    bench(&["--plot", path.to_str().unwrap()]);
    let svg = fs::read_to_string(path).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    let (opened, closed) = (svg.matches("<text").count(), svg.matches("</text>").count());
    assert!(opened == closed && opened > 20, "{opened} texts, {closed} ends");
    for part in ["goodput-ts", "fixed:2", "Acceptance by draft position", "Draft lengths", "tokens per second"] {
        assert!(svg.contains(part), "{part} is not in the picture");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn verify_proves_the_bundled_model_lossless() {
    let args = ["verify", "--prompts", "3", "-n", "24", "--samples", "300"];
    let text = ok(&args).stdout;
    assert!(text.contains("lossless: every check passed") && !text.contains("FAILED"), "{text}");
    let args = ["verify", "-p", PROMPT, "-n", "16", "--samples", "200", "--controllers", "fixed:3", "--json"];
    let verdict: Value = serde_json::from_str(&ok(&args).stdout).unwrap();
    assert_eq!(verdict["lossless"], true);
    let checks: Vec<&Value> = verdict["checks"].as_array().unwrap().iter().map(|check| &check["check"]).collect();
    assert_eq!(checks, [&json!("logits"), &json!("greedy"), &json!("coupled"), &json!("rejection")]);
}
