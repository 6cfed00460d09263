//! The command line from outside: what it prints where, its exit codes, and what it says to mistakes.

mod batches;
mod closed_streams;
mod drafts;
mod files;
mod forms;
mod gguf;
mod live;
mod mistakes;
mod monitoring;
mod notes;
mod perplexity;
mod prometheus;
mod prompts;
mod quantize;
mod recurrent;
#[path = "../common/recurrent.rs"]
mod recurrent_blocks;
mod reports;
mod requests;
mod resume;
mod sets;
mod text;

use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;
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

/// A command on one thread, unless it says on how many (or on what): tests run side by side, and passes wait for their threads.
fn command(args: &[&str]) -> Command {
    let (name, flags) = args.split_at(args.len().min(1));
    let computes = matches!(name, ["generate" | "chat" | "verify" | "bench" | "perplexity"]);
    let says = flags.iter().any(|flag| ["-t", "--threads", "--device"].contains(flag));
    let threads: &[&str] = if computes && !says { &["--threads", "1"] } else { &[] };
    let mut command = Command::new(env!("CARGO_BIN_EXE_eesd-run"));
    command.args(name).args(threads).args(flags).stdin(Stdio::null()).env_remove("NO_COLOR");
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
