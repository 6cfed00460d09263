//! Standard output and standard error whose reader goes away at any moment: no command panics or is killed, and what can
//! still be read is whole.
//!
//! How much of a stream is read is drawn, the same in every run; when the program notices is up to the machine, and every
//! claim here holds whenever that is. `EESD_MUTATIONS=100000` makes a thousand runs in all.

use crate::{PROMPT, command, lines, model_folder, write};
use eesd::sample::{Philox, Purpose};
use serde_json::{Value, json};
use std::io::{Read, Write, pipe};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use tempfile::TempDir;

/// Runs of each test where nobody asks for another number.
const RUNS: usize = 20;

fn runs() -> usize {
    std::env::var("EESD_MUTATIONS").map_or(RUNS, |lines| lines.parse::<usize>().unwrap() / 200)
}

/// How many bytes of a stream are read before nobody reads it any more.
#[derive(Debug, Clone, Copy)]
enum Reading {
    /// Its reader is gone before the program starts.
    Nothing,
    Bytes(usize),
    All,
}

/// What a run came to.
struct Ended {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// A command with what it reads on standard input.
struct Case {
    args: Vec<String>,
    input: Vec<u8>,
    /// Its exit code while everybody reads.
    code: i32,
}

impl Case {
    fn run(&self, out: Reading, err: Reading) -> Ended {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        let mut command: Command = command(&args);
        let ((out_reader, out_writer), (err_reader, err_writer)) = (pipe().unwrap(), pipe().unwrap());
        let mut out_reader = (!matches!(out, Reading::Nothing)).then_some(out_reader);
        let mut err_reader = (!matches!(err, Reading::Nothing)).then_some(err_reader);
        let mut child = command.stdin(Stdio::piped()).stdout(out_writer).stderr(err_writer).spawn().unwrap();
        // It holds the writing ends as well.
        drop(command);
        let mut stdin = child.stdin.take().unwrap();
        let read = |reader: &mut Option<std::io::PipeReader>, much: Reading| {
            let mut bytes = Vec::new();
            if let Some(reader) = reader.take() {
                let most = if let Reading::Bytes(most) = much { most as u64 } else { u64::MAX };
                reader.take(most).read_to_end(&mut bytes).unwrap();
            }
            bytes
        };
        thread::scope(|scope| {
            // A program that has ended early reads nothing more.
            scope.spawn(move || drop(stdin.write_all(&self.input)));
            let stdout = scope.spawn(|| read(&mut out_reader, out));
            let stderr = read(&mut err_reader, err);
            let stdout = stdout.join().unwrap();
            Ended { status: child.wait().unwrap(), stdout, stderr }
        })
    }

    /// What holds whoever reads what.
    fn check(&self, ended: &Ended, out: Reading, err: Reading) {
        let place = format!("{:?} read {out:?} and {err:?}", self.args);
        let told = String::from_utf8_lossy(&ended.stderr);
        assert!(!told.contains("panicked"), "{place}: {told}");
        let code = ended.status.code().unwrap_or_else(|| panic!("{place}: {}", ended.status));
        // Whoever stops reading the answers has what is wanted; a program that had written all of them did not notice.
        let fine = if matches!(out, Reading::All) { vec![self.code] } else { vec![self.code, 0] };
        assert!(fine.contains(&code), "{place}: exit code {code}, {told}");
    }
}

/// Good lines, wrong lines and damaged ones.
fn requests(dice: &mut Philox) -> Vec<u8> {
    let mut file = b"{\"id\": \"first\", \"prompt\": \"x\", \"max_tokens\": 2}\n".to_vec();
    for i in 0..24 {
        let line = match i % 4 {
            0 => json!({"id": i, "prompt": PROMPT, "max_tokens": 6, "n": 1 + i / 8}),
            1 => json!({"id": i, "prompt": [1, 2, 3], "max_tokens": 3, "stop": "\n"}),
            2 => json!({"custom_id": format!("{i}"), "method": "POST", "url": "/v1/chat/completions",
                "body": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}}),
            _ => json!({"id": i, "prompt": "x", "max_tokns": 3}),
        };
        let mut line = line.to_string().into_bytes();
        if i % 3 == 0 {
            let at = dice.word() as usize % line.len();
            line[at] ^= 1 << (dice.word() % 8);
        }
        file.extend(line.into_iter().filter(|&byte| byte != b'\n').chain([b'\n']));
    }
    file
}

/// A model's folder with a chat template, and every kind of command.
fn cases(dir: &TempDir, dice: &mut Philox) -> Vec<Case> {
    let folder = model_folder(dir, &[2], &[("chat_template.jinja", "{{ messages[-1].content }}")]);
    let input = write(dir, "in.jsonl", requests(dice));
    let case = |args: &[&str], stdin: &str, code| {
        let model = ["-m", folder.as_str()];
        let model = if matches!(args[0], "doctor" | "completions" | "--help") { &[][..] } else { &model };
        let args = args.iter().chain(model).map(|&arg| arg.to_owned()).collect();
        Case { args, input: stdin.into(), code }
    };
    vec![
        case(&["generate", "--input", &input, "-b", "4", "-s", "1"], "", 1),
        case(&["generate", "--input", &input, "--stats", "-s", "1"], "", 1),
        case(&["generate", "--input", &input, "--show-prompt"], "", 1),
        case(&["generate", "-p", PROMPT, "-n", "24", "--echo"], "", 0),
        case(&["generate", "-p", PROMPT, "-n", "8", "--temp", "1", "-s", "1", "-N", "3", "--json"], "", 0),
        case(&["chat", "-n", "6"], "def f(x):\n/stats\n//x\n/clear\nclass A\n", 0),
        case(&["tokenize"], &"def f(x): return x\n".repeat(2000), 0),
        case(&["bench", "--prompts", "2", "-r", "1", "-n", "4", "--pp", "8", "--controllers", "off,fixed:1"], "", 0),
        case(&["inspect"], "", 0),
        case(&["completions", "bash"], "", 0),
        case(&["--help"], "", 0),
        case(&["generate", "--temp", "hot"], "", 2),
        case(&["generate", "--exit", "1", "-p", "x"], "", 1),
    ]
}

/// A reader that stops somewhere within what there is to read.
fn somewhere(dice: &mut Philox, length: usize) -> Reading {
    match dice.word() % 4 {
        0 => Reading::Nothing,
        1 => Reading::Bytes(dice.word() as usize % 40),
        _ => Reading::Bytes(dice.word() as usize % (length + 1)),
    }
}

/// What does not depend on the time that it took.
fn lasting(stdout: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(stdout);
    if !text.starts_with('{') {
        return vec![text.into()];
    }
    let mut rows = lines(&text);
    for row in &mut rows {
        row.as_object_mut().unwrap().remove("stats");
        row.pointer_mut("/response/body/created").map(Value::take);
    }
    let mut rows: Vec<String> = rows.iter().map(Value::to_string).collect();
    rows.sort();
    rows
}

#[test]
fn a_closed_standard_error_loses_no_answer() {
    let dir = TempDir::new().unwrap();
    let mut dice = Philox::new(13, 1, Purpose::Controller, 0);
    let cases = cases(&dir, &mut dice);
    let whole: Vec<Ended> = cases.iter().map(|case| case.run(Reading::All, Reading::All)).collect();
    for (case, whole) in cases.iter().zip(&whole) {
        case.check(whole, Reading::All, Reading::All);
    }
    for run in 0..runs().max(cases.len()) {
        let (case, whole) = (&cases[run % cases.len()], &whole[run % cases.len()]);
        let err = if run < cases.len() { Reading::Nothing } else { somewhere(&mut dice, whole.stderr.len()) };
        let ended = case.run(Reading::All, err);
        case.check(&ended, Reading::All, err);
        if case.args[0] == "bench" {
            let lines = |stdout: &[u8]| stdout.iter().filter(|&&byte| byte == b'\n').count();
            assert_eq!(lines(&ended.stdout), lines(&whole.stdout));
        } else {
            assert_eq!(lasting(&ended.stdout), lasting(&whole.stdout), "{:?} read {err:?}", case.args);
        }
    }
}

#[test]
fn readers_that_go_away_end_a_command_well() {
    let dir = TempDir::new().unwrap();
    let mut dice = Philox::new(13, 2, Purpose::Controller, 0);
    let cases = cases(&dir, &mut dice);
    for run in 0..runs().max(cases.len()) {
        let case = &cases[run % cases.len()];
        let out = if run < cases.len() { Reading::Nothing } else { somewhere(&mut dice, 6000) };
        let err = if run % 3 == 0 { somewhere(&mut dice, 300) } else { Reading::All };
        let ended = case.run(out, err);
        case.check(&ended, out, err);
        if let (Reading::All, Some(0)) = (err, ended.status.code()) {
            let told = String::from_utf8_lossy(&ended.stderr);
            assert!(!told.contains("error: "), "{:?} read {out:?}: {told}", case.args);
        }
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_told_by_whatever_writes_to_it() {
    let dir = TempDir::new().unwrap();
    for case in cases(&dir, &mut Philox::new(13, 3, Purpose::Controller, 0)).iter().filter(|case| case.code == 0) {
        let args: Vec<&str> = case.args.iter().map(String::as_str).collect();
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut child = command(&args).stdin(Stdio::piped()).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        // A program that has ended early reads nothing more.
        drop(child.stdin.take().unwrap().write_all(&case.input));
        let ended = child.wait_with_output().unwrap();
        let told = String::from_utf8(ended.stderr).unwrap();
        assert!(ended.status.code() == Some(1) && told.contains("error: standard output: "), "{args:?}: {told}");
    }
}
