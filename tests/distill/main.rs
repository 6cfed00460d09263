//! `eesd-run distill` from outside: what it learns, that nothing is lost by a kill, what it says to mistakes.

#![cfg(unix)]

mod interruptions;
mod made_up;
mod mistakes;
mod recurrent;
mod results;
mod states;

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

const BUNDLED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m");

/// Text to learn from: the project's own prompts, many times over in different orders.
const TEXT: &str = include_str!("../../models/pycode-4m/prompts.jsonl");

/// A folder for a run, with a corpus in it.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let texts: Vec<String> = TEXT
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["prompt"].as_str().unwrap().to_owned())
            .collect();
        let document = |start: usize| {
            let text = texts.iter().cycle().skip(start).take(4).cloned().collect::<Vec<_>>().join("\n\n");
            serde_json::json!({ "text": text }).to_string() + "\n"
        };
        fs::write(dir.path().join("corpus.jsonl"), (0..texts.len()).map(document).collect::<String>()).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    /// A small run on the corpus into the folder `output`.
    fn training(&self, output: &str, more: &[&str]) -> Command {
        let (corpus, output) = (self.path("corpus.jsonl"), self.path(output));
        let mut command = distill(&[
            "--corpus",
            corpus.to_str().unwrap(),
            "--output",
            output.to_str().unwrap(),
            "--window",
            "48",
            "--batch-tokens",
            "192",
        ]);
        if !more.contains(&"-N") {
            command.args(["-N", "2"]);
        }
        if !more.contains(&"--held-out") {
            command.args(["--held-out", "0.2"]);
        }
        // Tests run side by side, and passes wait for their threads.
        if !more.contains(&"-t") {
            command.args(["-t", "1"]);
        }
        command.args(more);
        command
    }
}

fn distill(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eesd-run"));
    command.arg("distill").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs what must succeed; returns what it says.
fn ok(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", stderr(&output));
    stderr(&output)
}

/// The log of a run without what differs from run to run.
fn metrics(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let line = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().remove("seconds").unwrap();
        line
    };
    text.lines().map(line).collect()
}
