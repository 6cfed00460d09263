//! Wrong flags and files: exit code and message.

use crate::{Place, distill, stderr};
use std::fs;

#[test]
fn mistakes_get_an_exit_code_and_a_message() {
    let place = Place::new();
    let write = |name: &str, text: &[u8]| {
        fs::write(place.path(name), text).unwrap();
        place.path(name).to_str().unwrap().to_owned()
    };
    let (out, corpus) =
        (place.path("out").to_str().unwrap().to_owned(), place.path("corpus.jsonl").to_str().unwrap().to_owned());
    let latin1 = write("latin1.txt", b"caf\xe9");
    let no_text = write("no-text.jsonl", b"{\"text\": \"a = 1\"}\n{\"prompt\": \"a\"}\n");
    let bad_prompts = write("bad.jsonl", b"{\"prompt\": \"a\"}\nnot json\n");
    let exit = concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m/exit-1.safetensors");
    let base = ["--corpus", &corpus, "--output", &out, "-N", "2", "--steps", "1"];
    let with = |more: &[&str]| -> Vec<String> { base.iter().chain(more).map(|s| (*s).to_string()).collect() };
    let only = |args: &[&str]| -> Vec<String> { args.iter().map(|s| (*s).to_string()).collect() };

    #[rustfmt::skip]
    let cases: Vec<(i32, Vec<String>, &str)> = vec![
        (2, only(&["--corpus", &corpus, "--output", &out]), "--exit-layer"),
        (2, only(&["-N", "2", "--output", &out]), "--prompts"),
        (2, only(&["-N", "2", "--corpus", &corpus]), "--output"),
        (2, only(&["-N", "8", "--corpus", &corpus, "--output", &out]), "at most 7"),
        (2, only(&["--sweep-exit", "3..1", "--corpus", &corpus, "--output", &out]), "A..B"),
        (2, only(&["--sweep-exit", "1..9", "--corpus", &corpus, "--output", &out]), "at most 7"),
        (2, with(&["--epochs", "2"]), "--epochs"),
        (2, with(&["--lr", "0"]), "above 0"),
        (2, with(&["--soft-temp", "-1"]), "above 0"),
        (2, with(&["--shared-head", "--draft-vocab", "9"]), "--draft-vocab"),
        (2, with(&["--draft-vocab", "5000"]), "1 to 4096"),
        (2, with(&["--draft-vocab", "0%"]), "99.5%"),
        (2, with(&["--recurrent", "1"]), "from 2 to 16"),
        (2, with(&["--input-matrix", "unit"]), "ridge, none"),
        (1, with(&["--states", &latin1]), "latin1.txt: not a folder (expected one to keep hidden states in)"),
        (2, with(&["--patience", "0"]), "1 or more"),
        (2, with(&["--keep-states", "8GB"]), "8G"),
        (1, with(&["--states", &corpus]), "corpus.jsonl"),
        (2, with(&["--init-from", "8"]), "0 to 7"),
        (2, with(&["--init-from", exit]), "after layer 1"),
        (2, with(&["--chat"]), "--prompts"),
        (2, with(&["--samples", "3"]), "--prompts"),
        (2, with(&["-n", "3"]), "--prompts"),
        (2, with(&["--temp", "0.5"]), "--prompts"),
        (2, with(&["--top-k", "3"]), "--prompts"),
        (2, with(&["--top-p", "0.5"]), "--prompts"),
        (2, with(&["--batch-size", "2"]), "--prompts"),
        (2, with(&["--soft", "-1"]), "0 or more"),
        (2, with(&["--tv", "-1"]), "0 or more"),
        (2, with(&["--weight-decay", "-1"]), "0 or more"),
        (2, with(&["--shortest", "-1"]), "0 or more"),
        (2, with(&["--half-life", "-1"]), "above 0"),
        (2, with(&["--plot", "/nowhere/at/all.svg"]), "/nowhere/at/all.svg"),
        (1, with(&["--init-from", "nowhere.safetensors"]), "nowhere.safetensors"),
        (1, with(&["--soft", "0"]), "at least one term"),
        (1, with(&["--window", "1"]), "window"),
        (1, with(&["--window", "64", "--batch-tokens", "32"]), "batch_tokens"),
        (1, with(&["--window", "9999", "--batch-tokens", "9999"]), "window"),
        (1, with(&["--device", "cuda:99"]), "cuda:99"),
        (1, with(&["--held-out", "1"]), "held_out"),
        (1, with(&["--prompts", &bad_prompts]), "bad.jsonl:2"),
        (1, with(&["--prompts", &corpus]), "corpus.jsonl:1"),
        (1, only(&["-N", "2", "--output", &out, "--corpus", &latin1]), "byte 3"),
        (1, only(&["-N", "2", "--output", &out, "--corpus", &no_text]), "no-text.jsonl:2"),
        (1, only(&["-N", "2", "--output", &out, "--corpus", "missing.txt"]), "missing.txt"),
        (1, only(&["-N", "2", "--output", &corpus, "--corpus", &corpus]), "corpus.jsonl"),
    ];
    for (code, args, message) in cases {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let output = distill(&args).output().unwrap();
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {told}");
        let error = told.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert!(error.contains(message), "{args:?}: {told} (expected {message:?})");
        assert!(!told.contains("panicked"), "{args:?}: {told}");
    }
}

/// A learning rate that no training survives: an error that says so, and no block.
#[test]
fn a_loss_that_is_no_number_ends_the_run() {
    let place = Place::new();
    let mut run = place.training("out", &["--steps", "30", "--lr", "1e30", "--warmup", "0", "--clip", "1e30"]);
    let output = run.output().unwrap();
    let told = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("lower learning rate"), "{told}");
    assert!(!place.path("out/exit-2.safetensors").exists());
}

/// A block that another run has made is not written over, and that is said before anything is done.
#[test]
fn a_block_in_the_way_is_told_at_once() {
    let place = Place::new();
    fs::create_dir(place.path("out")).unwrap();
    fs::write(place.path("out/exit-2.safetensors"), "precious").unwrap();
    let output = place.training("out", &["--steps", "3"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(told.starts_with("error: ") && told.contains("there already; --overwrite"), "{told}");
    assert_eq!(place.read("out/exit-2.safetensors"), b"precious");
}

/// A start that does not fit is told before the teacher writes a word.
#[test]
fn a_start_that_does_not_fit_is_told_at_once() {
    let place = Place::new();
    fs::write(place.path("prompts.jsonl"), "{\"prompt\": \"a\"}\n").unwrap();
    let (prompts, out) = (place.path("prompts.jsonl"), place.path("out"));
    let run = ["--prompts", prompts.to_str().unwrap(), "--output", out.to_str().unwrap(), "-N", "2", "--steps", "1"];
    for (more, message) in [(["--draft-vocab", "5000"], "1 to 4096"), (["--init-from", "8"], "0 to 7")] {
        let output = distill(&[&run[..], &more].concat()).output().unwrap();
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.starts_with("error: ") && told.contains(message), "{told}");
        assert!(!out.join("answers.jsonl").exists(), "the teacher wrote: {told}");
    }
}
