//! Files under several names, streams that cannot be written, and what long work says of itself.

use crate::{PROMPT, command, finish, model_folder, ok, run, write};
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use tempfile::TempDir;

const LINE: &str = "{\"prompt\": \"x\", \"max_tokens\": 2}\n";

#[test]
#[cfg(unix)]
fn no_file_that_is_read_is_written_over_under_another_name() {
    let dir = TempDir::new().unwrap();
    let input = write(&dir, "in.jsonl", LINE);
    let path = |name: &str| dir.path().join(name);
    fs::hard_link(&input, path("hard")).unwrap();
    std::os::unix::fs::symlink(&input, path("soft")).unwrap();
    let folder = model_folder(&dir, &[2], &[]);
    let weights = format!("{folder}/model.safetensors");
    fs::hard_link(&weights, path("weights")).unwrap();
    let name = |name: &str| path(name).to_str().unwrap().to_owned();
    let (hard, soft, linked) = (name("hard"), name("soft"), name("weights"));
    let before = fs::read(&weights).unwrap();
    for args in [
        vec!["generate", "--input", &input, "--output", &hard],
        vec!["generate", "--input", &input, "--output", &soft],
        vec!["generate", "--input", &soft, "--output", &hard, "--resume"],
        vec!["generate", "--input", &input, "--stats-json", &hard],
        vec!["generate", "--input", &input, "--metrics", &soft],
        vec!["generate", "-f", &input, "--output", &hard],
        vec!["bench", "--input", &input, "--plot", &hard],
        vec!["bench", "--input", &input, "--trace", &soft],
        vec!["distill", "--prompts", &input, "-N", "2", "--plot", &hard, "--output", dir.path().to_str().unwrap()],
        vec!["distill", "--corpus", &input, "-N", "2", "--plot", &hard, "--output", dir.path().to_str().unwrap()],
        vec!["generate", "-m", &folder, "--input", &input, "--output", &weights],
        vec!["generate", "-m", &folder, "--input", &input, "--output", &linked],
    ] {
        let refused = run(&args);
        assert!(refused.code == 2 && refused.stderr.contains("would overwrite"), "{args:?}: {}", refused.stderr);
        assert_eq!(fs::read_to_string(&input).unwrap(), LINE, "{args:?}");
    }
    assert!(fs::read(&weights).unwrap() == before);
    ok(&["generate", "--input", &input, "--output", "/dev/null"]);
}

/// `/dev/full` takes nothing: every write to it fails.
#[test]
#[cfg(target_os = "linux")]
fn nothing_fails_because_standard_error_cannot_be_written() {
    let dir = TempDir::new().unwrap();
    let input = write(&dir, "in.jsonl", format!("{LINE}wrong\n"));
    let folder = model_folder(&dir, &[2], &[("chat_template.jinja", "{{ messages[-1].content }}")]);
    let chat = write(&dir, "chat.txt", "x\n/clear\n/what\n");
    for (args, stdin, code) in [
        (vec!["generate", "-p", PROMPT, "-n", "4"], None, 0),
        (vec!["generate", "-p", PROMPT, "-n", "4", "-N", "2", "--json", "--stats"], None, 0),
        (vec!["generate", "--input", &input], None, 1),
        (vec!["chat", "-m", &folder, "-n", "4"], Some(&chat), 0),
        (vec!["bench", "--prompts", "1", "-n", "4", "-r", "1", "--controllers", "off"], None, 0),
        (vec!["verify", "--prompts", "1", "-n", "4", "--samples", "20", "--controllers", "fixed:1"], None, 0),
        (vec!["generate", "--nonsense"], None, 2),
        (vec!["generate", "-m", "/nowhere", "-p", "x"], None, 1),
        (vec!["--help"], None, 0),
    ] {
        let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
        let mut unheard = command(&args);
        let mut heard = command(&args);
        for command in [&mut unheard, &mut heard] {
            command.stdin(stdin.map_or(Stdio::null(), |path| Stdio::from(File::open(path).unwrap())));
        }
        let expected = finish(heard);
        let found = finish({
            unheard.stderr(full());
            unheard
        });
        assert_eq!((found.code, expected.code), (code, code), "{args:?}: {}", expected.stderr);
        // What tells of times differs from run to run.
        let timed = args[0] == "bench" || args.contains(&"--json") || args.contains(&"--input");
        match timed {
            true => assert_eq!(found.stdout.lines().count(), expected.stdout.lines().count(), "{args:?}"),
            false => assert_eq!(found.stdout, expected.stdout, "{args:?}"),
        }
    }
}

#[test]
fn long_work_tells_of_itself_in_a_file() {
    let dir = TempDir::new().unwrap();
    let prompts = write(&dir, "prompts.txt", "def f(x):\n\nimport os\n\nclass A:\n\nx = 1\n");
    let output = dir.path().join("blocks");
    let output = output.to_str().unwrap();
    let distill = [
        "distill",
        "-N",
        "2",
        "--prompts",
        &prompts,
        "-n",
        "16",
        "--shortest",
        "1",
        "--held-out",
        "0.25",
        "--steps",
        "2",
        "--output",
        output,
    ];
    let told = ok(&distill).stderr;
    for line in ["answers: 4 to do", "training: 2 to do"] {
        assert!(told.lines().any(|told| told == line), "{told}");
    }
    assert!(
        told.lines().any(|line| line.starts_with("training") && line.contains(": 2 of 2, ") && line.ends_with("ended")),
        "{told}"
    );
    assert!(Path::new(output).join("exit-2.safetensors").exists());
    let bench = ["bench", "--prompts", "1", "-n", "4", "-r", "1", "--controllers", "off"];
    let told = ok(&bench).stderr;
    assert!(told.contains("warm-up: 1 to do\n") && told.contains("measuring: 1 of 1, "), "{told}");
    let input = write(&dir, "in.jsonl", LINE.repeat(3));
    let told = ok(&["generate", "--input", &input, "-b", "2"]).stderr;
    assert!(told.lines().any(|line| line == "answering 3 requests, 2 side by side"), "{told}");
    for quiet in [&[&distill[..], &["--overwrite"]].concat(), &bench.to_vec(), &vec!["generate", "--input", &input]] {
        assert_eq!(ok(&[&quiet[..], &["-q"]].concat()).stderr, "", "{quiet:?}");
    }
}

/// Whatever a run fails by before its first answer, an output that is there already stays.
#[test]
fn a_run_that_fails_before_it_answers_leaves_the_output_alone() {
    let dir = TempDir::new().unwrap();
    let output = write(&dir, "out.jsonl", "an earlier run's answers\n");
    let folder = model_folder(&dir, &[1, 3], &[]);
    let folder = folder.as_str();
    let missing = dir.path().join("missing/stats.json").display().to_string();
    let input = write(&dir, "in.jsonl", LINE);
    for flags in [
        &["-p", "x", "--system", "y"][..],
        &["-p", "x", "-m", "nowhere"],
        &["-p", "x", "-m", folder, "--exit", "2"],
        &["-p", "x", "--bad-word", ""],
        &["-p", "x", "--stats-json", &missing],
        &["-p", "x", "--metrics", "nowhere.invalid:80"],
        &["-p", "x", "--prefill", "fast"],
        &["-p", "x", "--ctx-size", "99999999999999"],
        &["-p", "x", "--chat-template", &missing],
        &["-p", "x", "--logit-bias", "99999999=1"],
        &["--input", &missing],
        &["--input", &input, "-m", "nowhere"],
    ] {
        let run = run(&[&["generate", "--output", &output], flags].concat());
        assert_ne!(run.code, 0, "{flags:?}: {}", run.stderr);
        assert_eq!(fs::read_to_string(&output).unwrap(), "an earlier run's answers\n", "{flags:?}: {}", run.stderr);
    }
}
