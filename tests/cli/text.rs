//! `generate` and `chat` for people: what goes to standard output, and what decides it.

use crate::{BUNDLED, PROMPT, command, generate, lines, model_folder, ok, run, run_with_stdin, write};
use serde_json::json;
use std::io::Read;
use std::process::{Command, Stdio};
use tempfile::TempDir;

#[test]
fn greedy_text_is_the_same_whoever_drafts() {
    let plain = generate(&["--controller", "off"]).stdout;
    assert!(plain.len() > 40, "{plain:?}");
    assert_eq!(generate(&["--no-exit"]).stdout, plain);
    for controller in ["goodput-ts", "fixed:1", "fixed:16", "threshold:0.6", "beta-ts", "calibration-ts"] {
        assert_eq!(generate(&["--controller", controller]).stdout, plain, "{controller}");
    }
    for more in [
        ["--exit", "1"],
        ["--exit", "3"],
        ["-m", BUNDLED],
        ["--threads", "2"],
        ["--device", "cpu"], // on all cores
        ["--prefill", "exact"],
    ] {
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
    let full = generate(&["-c", "16"]);
    assert!(full.stderr.contains("the context of 16 tokens is full"), "{}", full.stderr);
    assert!(run.stdout.starts_with(&full.stdout) && full.stdout.len() < run.stdout.len());
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
    let uncoloured =
        |text: &str| ["\x1b[32m", "\x1b[36m", "\x1b[0m"].iter().fold(text.to_owned(), |t, c| t.replace(c, ""));
    let always = |more: &[&str]| generate(&[&["--show-drafts", "--color", "always"], more].concat()).stdout;
    let by_exit = always(&["--draft", "exit", "--controller", "fixed:3"]);
    assert!(by_exit.contains("\x1b[32m") && !by_exit.contains("\x1b[36m"), "{by_exit}");
    // Whether anything is looked up is decided by what it costs here.
    let looked_up = always(&["--no-exit"]);
    assert!(!looked_up.contains("\x1b[32m"), "{looked_up}");
    for coloured in [by_exit, looked_up, always(&[])] {
        assert_eq!(uncoloured(&coloured), plain);
    }
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
    // Where nothing that is measured decides about drafts: what lookups are worth follows the clock.
    let rejection = |seed| sampled(seed, &["--verify", "rejection", "--controller", "fixed:4", "--draft", "exit"]);
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
fn without_an_exit_block_other_sources_draft() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[], &[]);
    let run = generate(&["-m", &folder]);
    assert_eq!(run.stdout, generate(&[]).stdout);
    assert!(run.stderr.contains("no exit-N.safetensors: drafting by lookup"), "{}", run.stderr);
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
fn flags_of_a_gpu_are_idle_on_the_processor() {
    let idle = generate(&["--device", "cpu", "--gpu-memory-fraction", "0.5", "--no-graphs", "--no-draft-loops"]);
    for flag in ["--gpu-memory-fraction", "--no-graphs", "--no-draft-loops"] {
        assert!(idle.stderr.contains(&format!("{flag} changes nothing on the processor")), "{}", idle.stderr);
    }
    assert_eq!(idle.stdout, generate(&[]).stdout);
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
    let other = "x = [1, 2, 3]\n";
    let cleared = chat(&format!("{other}/clear\ndef add(a, b):\n/stats\n/exit\nnot read\n"), &["--system", "# Python"]);
    let first = chat(other, &["--system", "# Python"]).stdout;
    assert_eq!(cleared.stdout, format!("{first}{}", once.stdout));
    assert!(cleared.stderr.contains("24 tokens"), "{}", cleared.stderr);
    let remembered = chat(&format!("{other}def add(a, b):\n"), &["--system", "# Python"]).stdout;
    assert!(remembered.starts_with(&first) && remembered != cleared.stdout, "{remembered}");
    let full = chat("def add(a, b):\ndef add(a, b):\n", &["-c", "24"]);
    assert!(full.stderr.contains("/clear starts anew"), "{}", full.stderr);
    let system = ok(&["generate", "-m", &folder, "-n", "12", "--system", "# Python", "-p", "def add(a, b):"]);
    assert_eq!(system.stdout + "\n", once.stdout);
}

/// An interrupt ends the text and the command well, with the statistics so far.
#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_text_with_its_statistics() {
    let args = ["generate", "-p", PROMPT, "-n", "900", "--ignore-eos", "--samples", "100000"];
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 1]).unwrap();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    std::io::copy(&mut stdout, &mut std::io::sink()).unwrap();
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(told.lines().last().unwrap().contains("tok/s"), "{told}");
}
