//! `generate --resume`: whatever ends a run, the next one goes on, and nothing is lost or answered twice.

use crate::live::{Live, pause, until};
use crate::{command, finish, lines, write};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Flags that the requests do not come without.
const HOW: [&str; 6] = ["-n", "12", "-s", "11", "--temp", "0.8"];

/// A line: with an id or without, sampled or greedy, and two in fifty wrong by themselves.
fn request(i: usize) -> String {
    let line = match i % 50 {
        7 => json!({"id": i, "prompt": "x", "max_tokns": 3}),
        23 => json!({"id": i, "prompt": "x", "logit_bias": {"99999": 1}}),
        kind if kind % 3 == 0 => {
            json!({"prompt": format!("def f{i}(x):"), "temperature": 0, "max_tokens": 4 + i % 9})
        }
        _ => json!({"id": format!("request {i}"), "prompt": format!("class C{i}:\n    def "), "stop": "(self"}),
    };
    format!("{line}\n")
}

/// A folder with an input.
struct Place {
    dir: TempDir,
    input: String,
}

impl Place {
    /// With `requests` of several kinds.
    fn new(requests: usize) -> Self {
        Self::with(&(0..requests).map(request).collect::<String>())
    }

    /// With more than any machine answers while a test runs: a run ends where the test ends it.
    fn endless() -> Self {
        Self::with(&"{\"prompt\": \"x\", \"max_tokens\": 400, \"ignore_eos\": true}\n".repeat(20_000))
    }

    fn with(requests: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let input = write(&dir, "in.jsonl", requests);
        Self { dir, input }
    }

    fn output(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A run of all requests into `output`, eight side by side.
    fn generate(&self, output: &Path, more: &[&str]) -> Command {
        let base = ["generate", "--input", &self.input, "--output", output.to_str().unwrap()];
        let mut command = command(&[&base[..], &["-b", "8", "-t", "1"], &HOW, more].concat());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn resume(&self, output: &Path) -> Command {
        self.generate(output, &["--resume"])
    }

    /// What a run that nothing happened to leaves, and its answers by index.
    fn undisturbed(&self) -> (String, BTreeMap<u64, Value>) {
        let output = self.output("undisturbed.jsonl");
        let run = finish(self.generate(&output, &[]));
        let text = fs::read_to_string(output).unwrap();
        assert_eq!(run.code, i32::from(text.contains("\"error\"")), "{}", run.stderr);
        let answers = answers(&text);
        (text, answers)
    }
}

/// The lines of an output by index, without what differs from run to run: how the drafts fared, and times.
fn answers(text: &str) -> BTreeMap<u64, Value> {
    let mut answers = BTreeMap::new();
    for mut line in lines(text) {
        if let Some(stats) = line.get_mut("stats") {
            *stats = json!([stats["prompt_tokens"], stats["generated"]]);
        }
        let index = line["index"].as_u64().unwrap();
        assert!(answers.insert(index, line).is_none(), "request {index} has two lines");
    }
    answers
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |file| file.len())
}

/// The same run, killed by the system where it writes beyond a limit of so many KiB for files.
#[cfg(unix)]
fn killed_at(command: &Command, kib: u64) -> std::process::ExitStatus {
    let mut limited = Command::new("bash");
    limited.args(["-c", "ulimit -c 0; ulimit -f \"$0\"; exec \"$@\""]).arg(kib.to_string());
    limited.arg(command.get_program()).args(command.get_args());
    limited.stdin(Stdio::null()).output().unwrap().status
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// The whole lines of what a killed run left.
fn whole_lines(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).unwrap_or_default();
    let whole = bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
    String::from_utf8(bytes[..whole].to_vec()).unwrap().lines().map(String::from).collect()
}

fn lines_of(lines: &[String]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// `EESD_SEED` repeats a run of this test.
#[cfg(unix)]
#[test]
fn twenty_kills_change_nothing() {
    use std::os::unix::process::ExitStatusExt;
    let seed = std::env::var("EESD_SEED").ok().map(|seed| seed.parse().unwrap());
    let seed = seed.unwrap_or_else(|| RandomState::new().build_hasher().finish());
    println!("EESD_SEED={seed}");
    let mut random = Random(seed);
    let place = Place::new(400);
    let (text, expected) = place.undisturbed();
    let output = place.output("killed.jsonl");
    let mut finished: Vec<String> = Vec::new();
    let check = |finished: &mut Vec<String>, kill: usize| {
        // What was finished before is still there, byte for byte.
        let left = whole_lines(&output);
        assert!(finished.iter().all(|line| left.contains(line)), "kill {kill} lost a finished line");
        *finished = left;
        finished.retain(|line| !line.contains("\"interrupted\""));
    };
    for kill in 0..16 {
        // Killed at some byte, most of them within a line: nobody is too fast for that. All of them leave work to do.
        let mut limit = length(&output) + random.below(text.len() as u64 / 24);
        if kill % 4 == 3 {
            // A line that an interrupt cut short is taken out: killed while the output is rewritten.
            let answered = answers(&lines_of(&finished));
            let without_id = |index: &u64| (index % 50).is_multiple_of(3);
            let open = (0..400).rev().filter(without_id).find(|index| !answered.contains_key(index)).unwrap();
            fs::write(&output, format!("{}{{\"index\":{open},\"error\":\"interrupted\"}}\n", lines_of(&finished)))
                .unwrap();
            limit = random.below(length(&output));
        }
        let status = killed_at(&place.resume(&output), limit / 1024);
        assert_eq!(status.signal(), Some(libc::SIGXFSZ), "kill {kill} at {limit} bytes");
        check(&mut finished, kill);
    }
    for kill in 16..20 {
        // Killed at any time after some more lines.
        let mut child = place.resume(&output).spawn().unwrap();
        let longer = length(&output) + 1 + random.below(4000);
        while length(&output) < longer && child.try_wait().unwrap().is_none() {
            pause();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        check(&mut finished, kill);
    }
    let last = finish(place.resume(&output));
    assert_eq!(last.code, 1, "the errors of earlier runs count: {}", last.stderr);
    assert!(last.stderr.contains(&format!("{} taken over, ", finished.len())), "{}", last.stderr);
    assert!(last.stderr.contains("16 requests failed"), "{}", last.stderr);
    let text = fs::read_to_string(&output).unwrap();
    assert!(finished.iter().all(|line| text.contains(line)));
    assert!(answers(&text) == expected, "other answers after twenty kills");
}

/// The last line of a small file torn at every byte: that request is answered again, and no other. (An answer may be
/// torn at any byte as well, as unit tests show.)
#[test]
fn a_torn_last_line_is_answered_again() {
    let place = Place::with("{\"prompt\": \"def f(x):\", \"max_tokens\": 1}\n{}\n");
    let (text, expected) = place.undisturbed();
    // The short line, of the request that is wrong, comes last.
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    lines.sort_by_key(|line| line.contains("\"error\""));
    let (answer, text) = (lines[0], lines.concat());
    let output = place.output("torn.jsonl");
    for length in [1, 100, answer.len() - 1].into_iter().chain(answer.len()..=text.len()) {
        fs::write(&output, &text[..length]).unwrap();
        let run = finish(place.resume(&output));
        let told = match length {
            _ if length == text.len() => "2 taken over, 0 answered, 0 failed",
            _ if length >= answer.len() => "1 taken over, 0 answered, 1 failed",
            _ => "1 answered, 1 failed",
        };
        assert!(run.code == 1 && run.stderr.contains(told), "at byte {length}: {told:?} is not in {}", run.stderr);
        let left = fs::read_to_string(&output).unwrap();
        assert!(length < answer.len() || left.starts_with(answer), "torn at byte {length}");
        assert!(answers(&left) == expected, "torn at byte {length}");
    }
}

#[test]
fn without_an_output_or_with_an_empty_one_everything_is_answered() {
    let place = Place::new(3);
    let (_, expected) = place.undisturbed();
    let output = place.output("out.jsonl");
    for _ in 0..2 {
        let run = finish(place.resume(&output));
        assert_eq!(run.code, 0, "{}", run.stderr);
        assert!(run.stderr.contains("3 answered, 0 failed") && !run.stderr.contains("taken over"), "{}", run.stderr);
        assert_eq!(answers(&fs::read_to_string(&output).unwrap()), expected);
        fs::write(&output, "").unwrap();
    }
    let before = fs::read_to_string(place.output("undisturbed.jsonl")).unwrap();
    let run = finish(place.resume(&place.output("undisturbed.jsonl")));
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("3 taken over, 0 answered, 0 failed"), "{}", run.stderr);
    assert_eq!(fs::read_to_string(place.output("undisturbed.jsonl")).unwrap(), before);
}

/// An interrupt writes a line for what it cut short; these are taken out and answered again, the others stay.
#[cfg(unix)]
#[test]
fn what_an_interrupt_cut_short_is_answered_again() {
    let place = Place::new(0);
    let output = place.output("out.jsonl");
    let mut run = Live::start(output.to_str().unwrap(), &HOW);
    // Without those that are wrong: their errors name the input, which is to be another one.
    let mut more = (0..).filter(|i| ![7, 23].contains(&(i % 50))).map(request);
    let mut submitted: String = more.by_ref().take(100).collect();
    run.submit(&submitted);
    run.until_idle(100);
    assert!(Command::new("kill").args(["-INT", &run.child.id().to_string()]).status().unwrap().success());
    // One more after the other, until the run has heard of it.
    for line in more {
        submitted += &line;
        if run.try_submit(&line).is_err() {
            break;
        }
    }
    let run = run.end();
    assert!(run.code == 1 && run.stderr.contains("interrupted"), "{}", run.stderr);
    fs::write(&place.input, submitted).unwrap();
    let text = fs::read_to_string(&output).unwrap();
    let short = |line: &&str| line.contains("\"finish\":\"cancelled\"") || line.contains("\"error\":\"interrupted\"");
    let cut_short = text.lines().filter(short).count();
    assert!(cut_short > 0 && cut_short <= 8, "{cut_short} of at most eight side by side");
    let run = finish(place.resume(&output));
    assert!(run.stderr.contains(&format!("taken out and answered again: {cut_short}\n")), "{}", run.stderr);
    let after = fs::read_to_string(&output).unwrap();
    let kept: String = text.lines().filter(|line| !short(line)).map(|line| format!("{line}\n")).collect();
    assert!(after.starts_with(&kept), "lines that were kept changed");
    assert!(answers(&after) == place.undisturbed().1);
}

#[cfg(unix)]
#[test]
fn a_link_stays_one_and_so_do_permissions() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let place = Place::new(3);
    let (text, expected) = place.undisturbed();
    let (file, link) = (place.output("file.jsonl"), place.output("link.jsonl"));
    fs::write(&file, &text[..text.len() - 5]).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("file.jsonl", &link).unwrap();
    let run = finish(place.resume(&link));
    assert!(run.stderr.contains("2 taken over, 1 answered"), "{}", run.stderr);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
    assert_eq!(answers(&fs::read_to_string(&file).unwrap()), expected);
}

/// Wrong outputs are refused before anything is changed; which ones, unit tests say.
#[test]
fn the_output_of_another_input_is_refused_and_kept() {
    let place = Place::new(3);
    let (text, _) = place.undisturbed();
    let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
    lines.sort_by_key(|line| line.contains("\"index\":0"));
    let text = lines.concat();
    let output = place.output("other.jsonl");
    let torn = &text[..text.len() - 5];
    for (content, message) in [
        (
            torn.replace("\"request 1\"", "\"request 2\""),
            "id \"request 2\" (expected id \"request 1\", that of request 1",
        ),
        (torn.replace("\"index\":1", "\"index\":3"), "a line of request 3 (expected a request of "),
        (torn.replace("\"prompt_tokens\":", "\"prompt_tokens\":1"), "an answer to a prompt of 1"),
        (format!("{}\n{torn}", torn.lines().next().unwrap()), "a second line of request"),
        (format!("no JSON\n{torn}"), ":1: expected ident at column 2 in \"no JSON\""),
    ] {
        fs::write(&output, &content).unwrap();
        let run = finish(place.resume(&output));
        assert!(run.code == 1 && run.stderr.contains(message), "{message:?} is not in {}", run.stderr);
        assert!(run.stderr.starts_with(&format!("error: {}:", output.display())), "{}", run.stderr);
        assert_eq!(fs::read_to_string(&output).unwrap(), content);
    }
    let run = finish(place.resume(place.dir.path()));
    assert!(run.code == 1 && run.stderr.contains("is not a regular file"), "{}", run.stderr);
}

/// A disk without room for the lines that are kept: an error, and the output is as it was.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let place = Place::new(6);
    let (text, expected) = place.undisturbed();
    let output = place.output("out.jsonl");
    fs::write(&output, &text[..text.len() - 5]).unwrap();
    // A limit on the size of files stands in for a full disk: writing past it fails with an error.
    let resume = place.resume(&output);
    let mut limited = Command::new("bash");
    limited
        .args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "bash"])
        .arg(resume.get_program())
        .args(resume.get_args());
    let run = finish(limited);
    let message = format!("error: {}: could not be rewritten: ", output.display());
    assert!(run.code == 1 && run.stderr.contains(&message), "{}", run.stderr);
    assert_eq!(fs::read_to_string(&output).unwrap(), text[..text.len() - 5]);
    let files = fs::read_dir(place.dir.path()).unwrap().count();
    assert_eq!(files, 3, "something is left over");
    finish(place.resume(&output));
    assert!(answers(&fs::read_to_string(&output).unwrap()) == expected);
}

/// One output has one writer, whether it goes on or begins anew.
#[test]
fn a_second_run_on_the_same_output_is_refused() {
    let place = Place::endless();
    let output = place.output("out.jsonl");
    let mut first = place.generate(&output, &[]).spawn().unwrap();
    until(&mut first, || length(&output) >= 1000);
    for more in [&["--resume"][..], &[]] {
        let second = finish(place.generate(&output, more));
        let message = format!("error: {}: another run is writing it", output.display());
        assert!(second.code == 1 && second.stderr.contains(&message), "{more:?}: {}", second.stderr);
        assert!(length(&output) >= 1000, "{more:?}: the first run's lines are gone");
    }
    first.kill().unwrap();
    first.wait().unwrap();
    // With the first run its lock is gone, and a file that was rewritten is locked as well as one that was not.
    fs::write(&output, "{\"index\":0,\"error\":\"interrupted\"}\n").unwrap();
    let mut third = place.resume(&output).spawn().unwrap();
    until(&mut third, || length(&output) >= 1000);
    let fourth = finish(place.resume(&output));
    assert!(fourth.code == 1 && fourth.stderr.contains("another run is writing it"), "{}", fourth.stderr);
    third.kill().unwrap();
    third.wait().unwrap();
}

/// Pipes and devices are nobody's: any number of runs may write there.
#[cfg(unix)]
#[test]
fn devices_are_not_locked() {
    let mut first = Live::start("/dev/null", &HOW);
    first.submit(&request(0));
    first.until_idle(1);
    let other = Place::new(3);
    let second = finish(other.generate(Path::new("/dev/null"), &[]));
    assert_eq!(second.code, 0, "{}", second.stderr);
    assert_eq!(first.end().code, 0);
}

/// The file that takes an output's place has a name of its own: one that could be guessed is somebody's.
#[test]
fn a_neighbour_of_the_output_is_left_alone() {
    let place = Place::new(3);
    let (text, expected) = place.undisturbed();
    let output = place.output("out.jsonl");
    let neighbours = ["out.jsonl.resume.tmp", "out.jsonl.tmp"].map(|name| place.output(name));
    neighbours.iter().for_each(|neighbour| fs::write(neighbour, "mine").unwrap());
    fs::write(&output, &text[..text.len() - 5]).unwrap();
    let run = finish(place.resume(&output));
    assert!(run.code == 0 && run.stderr.contains("2 taken over, 1 answered"), "{}", run.stderr);
    assert_eq!(answers(&fs::read_to_string(&output).unwrap()), expected);
    assert!(neighbours.iter().all(|neighbour| fs::read_to_string(neighbour).unwrap() == "mine"));
    assert_eq!(fs::read_dir(place.dir.path()).unwrap().count(), 5, "something is left over");
}
