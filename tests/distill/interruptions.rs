//! Kills, interrupts, full disks: a run goes on as if nothing had happened.

use crate::{Place, metrics, ok, stderr};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::thread::sleep;
use std::time::Duration;

const RUN: [&str; 6] = ["--steps", "40", "--save-every", "3", "--measure-every", "10"];
/// More updates than any machine makes while a test runs: a run ends where the test ends it.
const ENDLESS: [&str; 4] = ["--steps", "1000000", "--save-every", "1000000"];

fn lines(log: &Path) -> usize {
    fs::read_to_string(log).map_or(0, |text| text.lines().count())
}

/// Waits until the log has so many lines, or the child has ended.
fn until_it_learns(child: &mut Child, log: &Path, least: usize) {
    while lines(log) < least && child.try_wait().unwrap().is_none() {
        // Between two looks: nothing depends on how many there are.
        sleep(Duration::from_millis(1));
    }
}

/// The same run, limited to files of so many KiB: beyond that it is killed, or told of an error.
pub fn limited(command: &Command, kib: u64, killed: bool) -> Output {
    let trap = if killed { "ulimit -c 0" } else { "trap '' XFSZ" };
    let mut limited = Command::new("bash");
    limited.args(["-c", &format!("{trap}; ulimit -f {kib}; exec \"$@\""), "bash"]);
    limited.arg(command.get_program()).args(command.get_args()).output().unwrap()
}

/// Killed within snapshots, since nothing else is written.
#[test]
fn twenty_kills_change_nothing() {
    twenty_kills(&["--keep-states", "0"]);
}

/// Killed within hidden states too, in the teacher's first pass and later.
#[test]
fn twenty_kills_of_a_recurrent_run_change_nothing() {
    twenty_kills(&["--recurrent", "3", "--draft-vocab", "300", "--patience", "100"]);
}

fn twenty_kills(more: &[&str]) {
    let run = [&RUN[..], more].concat();
    let place = Place::new();
    ok(place.training("undisturbed", &run));
    let log = place.path("killed/exit-2.metrics.jsonl");
    for kill in 0..20u64 {
        if kill % 4 == 0 {
            // Killed within a snapshot, at one byte or another.
            let output = limited(&place.training("killed", &run), 1 + 3 * kill, true);
            assert!(kill > 0 || output.status.signal() == Some(libc::SIGXFSZ), "{}", stderr(&output));
        } else {
            // Killed at any time after some more updates, so that in the end there are enough to have saved some.
            let before = lines(&log);
            let mut child = place.training("killed", &run).spawn().unwrap();
            until_it_learns(&mut child, &log, before + 1 + kill as usize % 3);
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
    let told = ok(place.training("killed", &run));
    assert!(told.contains("done before"), "nothing was saved in twenty runs: {told}");
    assert_eq!(place.read("killed/exit-2.safetensors"), place.read("undisturbed/exit-2.safetensors"));
    let undisturbed = metrics(&place.path("undisturbed/exit-2.metrics.jsonl"));
    assert_eq!(metrics(&log), undisturbed);
    assert_eq!(undisturbed.len(), 40);
}

fn interrupt(child: &Child) {
    // SAFETY: sends a signal to a child that was not waited for yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
}

/// Goes on with an endless run until its log has so many lines, and interrupts it; what it says.
fn interrupted(place: &Place, output: &str, least: usize) -> String {
    let mut child = place.training(output, &ENDLESS).spawn().unwrap();
    until_it_learns(&mut child, &place.path(output).join("exit-2.metrics.jsonl"), least);
    interrupt(&child);
    let ended = child.wait_with_output().unwrap();
    let told = stderr(&ended);
    assert!(ended.status.success() && told.contains("the same command goes on"), "{told}");
    told
}

#[test]
fn an_interrupt_saves_and_the_run_goes_on() {
    let place = Place::new();
    interrupted(&place, "interrupted", 2);
    assert!(!place.path("interrupted/exit-2.safetensors").exists());
    let log = place.path("interrupted/exit-2.metrics.jsonl");
    let before = metrics(&log);
    let told = interrupted(&place, "interrupted", before.len() + 3);
    assert!(told.contains("done before"), "{told}");
    let after = metrics(&log);
    assert!(after.len() >= before.len() + 3 && after.starts_with(&before), "{} then {}", before.len(), after.len());
    interrupted(&place, "undisturbed", after.len());
    let undisturbed = metrics(&place.path("undisturbed/exit-2.metrics.jsonl"));
    assert!(undisturbed.starts_with(&after), "the interrupt changed what is learnt");
}

/// A run with a small draft vocabulary goes on with the same tokens; other tokens are another run.
#[test]
fn a_draft_vocabulary_goes_on() {
    let place = Place::new();
    let run = ["--steps", "12", "--save-every", "2", "--draft-vocab", "300"];
    ok(place.training("undisturbed", &run));
    let mut child = place.training("killed", &run).spawn().unwrap();
    until_it_learns(&mut child, &place.path("killed/exit-2.metrics.jsonl"), 5);
    child.kill().unwrap();
    child.wait().unwrap();
    let mut other = place.training("killed", &["--steps", "12", "--save-every", "2", "--draft-vocab", "301"]);
    let refused = other.output().unwrap();
    assert!(stderr(&refused).contains("`start` is"), "{}", stderr(&refused));
    ok(place.training("killed", &run));
    assert_eq!(place.read("killed/exit-2.safetensors"), place.read("undisturbed/exit-2.safetensors"));
}

/// Another run's snapshot is not gone on with, and what differs is named.
#[test]
fn another_run_is_refused_by_what_differs() {
    let place = Place::new();
    ok(place.training("out", &["--steps", "3"]));
    for (more, key) in [
        (&["--steps", "4"][..], "plan.steps"),
        (&["--steps", "3", "--lr", "0.1"], "plan.rate"),
        (&["--steps", "3", "--seed", "9"], "data"),
        (&["--steps", "3", "--init-from", "1"], "start"),
        (&["--steps", "3", "--draft-vocab", "600"], "start"),
    ] {
        let output = place.training("out", more).output().unwrap();
        let told = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{more:?}: {told}");
        assert!(told.contains(&format!("`{key}` is")) && told.contains("exit-2.training"), "{more:?}: {told}");
    }
    let told = ok(place.training("out", &["--steps", "4", "--overwrite"]));
    assert!(told.contains("exit-2.training: removed, by --overwrite") && told.contains("`plan.steps` is 3"), "{told}");
    fs::write(place.path("out/exit-2.training"), "no snapshot").unwrap();
    assert_eq!(place.training("out", &["--steps", "4"]).output().unwrap().status.code(), Some(1));
    let told = ok(place.training("out", &["--steps", "4", "--overwrite"]));
    assert!(told.contains("exit-2.training: removed, by --overwrite"), "{told}");
}

/// `--overwrite` is for what another run has left: its own run it goes on with, as without.
#[test]
fn overwriting_goes_on_with_its_own_run() {
    let place = Place::new();
    let run = ["--steps", "12", "--save-every", "2", "--overwrite"];
    ok(place.training("undisturbed", &run));
    fs::create_dir(place.path("killed")).unwrap();
    fs::write(place.path("killed/exit-2.safetensors"), "somebody's").unwrap();
    let mut child = place.training("killed", &run).spawn().unwrap();
    until_it_learns(&mut child, &place.path("killed/exit-2.metrics.jsonl"), 5);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(place.read("killed/exit-2.safetensors"), b"somebody's");
    let told = ok(place.training("killed", &run));
    assert!(told.contains("done before") && !told.contains("removed"), "{told}");
    assert_eq!(place.read("killed/exit-2.safetensors"), place.read("undisturbed/exit-2.safetensors"));
    assert_eq!(
        metrics(&place.path("killed/exit-2.metrics.jsonl")),
        metrics(&place.path("undisturbed/exit-2.metrics.jsonl"))
    );
}

/// A run that only measures has nothing to do with the snapshot of one that trains, whatever the flags.
#[test]
fn measuring_leaves_a_training_run_alone() {
    let place = Place::new();
    let run = ["--steps", "12", "--save-every", "2"];
    let mut child = place.training("out", &run).spawn().unwrap();
    until_it_learns(&mut child, &place.path("out/exit-2.metrics.jsonl"), 5);
    child.kill().unwrap();
    child.wait().unwrap();
    let files = ["exit-2.training", "exit-2.metrics.jsonl"];
    let before = files.map(|file| place.read(&format!("out/{file}")));
    for more in [&[][..], &["--overwrite"], &["--held-out", "0.5"], &["--seed", "3", "--lr", "0.5"]] {
        ok(place.training("out", &[&["--steps", "0"], more].concat()));
        assert_eq!(files.map(|file| place.read(&format!("out/{file}"))), before, "{more:?}");
    }
    assert!(!place.path("out/exit-2.safetensors").exists());
    ok(place.training("undisturbed", &run));
    ok(place.training("out", &run));
    assert_eq!(place.read("out/exit-2.safetensors"), place.read("undisturbed/exit-2.safetensors"));
    // What a finished run has left is no matter either.
    ok(place.training("out", &["--steps", "0", "--held-out", "0.5"]));
}

#[test]
fn answers_go_on_too() {
    let place = Place::new();
    let prompts = concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m/prompts.jsonl");
    let command = |output: &str| -> Command {
        let output = place.path(output);
        let mut command = crate::distill(&["--prompts", prompts, "-n", "24", "-N", "1", "--steps", "2", "-t", "1"]);
        command.args(["--output", output.to_str().unwrap(), "--window", "64", "--batch-tokens", "256"]);
        command
    };
    ok(command("undisturbed"));
    for kill in 0..3 {
        let mut child = command("killed").spawn().unwrap();
        until_it_learns(&mut child, &place.path("killed/answers.jsonl"), 3 + 7 * kill);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    ok(command("killed"));
    let sorted = |name: &str| {
        let text = String::from_utf8(place.read(name)).unwrap();
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted("killed/answers.jsonl"), sorted("undisturbed/answers.jsonl"));
    assert_eq!(place.read("killed/exit-1.safetensors"), place.read("undisturbed/exit-1.safetensors"));
}

/// A disk without room: an error with the path, and the snapshot before it is still good.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let place = Place::new();
    ok(place.training("whole", &["--steps", "12"]));
    // A limit on the size of files stands in for a full disk: writing past it fails with an error.
    let run = ["--steps", "12", "--save-every", "4", "--keep-states", "0"];
    let output = limited(&place.training("out", &run), 64, false);
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    assert!(stderr(&output).contains("exit-2.training"), "{}", stderr(&output));
    let left: Vec<_> = fs::read_dir(place.path("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with(".tmp")), "{left:?}");
    ok(place.training("out", &["--steps", "12", "--save-every", "4"]));
    assert_eq!(place.read("out/exit-2.safetensors"), place.read("whole/exit-2.safetensors"));
}
