//! Who drafts: `--draft`, `--draft-index`, the key `draft`.

use crate::{BUNDLED, PROMPT, generate, lines, run, run_with_stdin};
use eesd::draft::TEXT_END;
use eesd::load::Checkpoint;
use tempfile::TempDir;

#[test]
fn texts_are_the_same_whoever_drafts() {
    let plain = generate(&["--draft", "off"]).stdout;
    for draft in ["auto", "exit", "lookup", "shared", "exit,lookup,shared"] {
        assert_eq!(generate(&["--draft", draft]).stdout, plain, "{draft}");
    }
}

#[test]
fn texts_are_kept_for_the_next_run() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("texts");
    let index = file.to_str().unwrap();
    let model = Checkpoint::bundled().unwrap();
    let kept = || model.read_draft_index(&file).unwrap();
    let plain = generate(&["--draft", "off"]).stdout;
    assert_eq!(generate(&["--draft-index", index]).stdout, plain);
    let once = kept();
    assert!(once.len() > 48 && once.last() == Some(&TEXT_END), "{once:?}");
    assert_eq!(generate(&["--draft-index", index]).stdout, plain);
    assert_eq!(kept(), [&once[..], &once[..]].concat());

    let input = format!("{{\"prompt\": \"{PROMPT}\"}}\n{{\"prompt\": \"{PROMPT}\", \"draft\": \"exit,lookup\"}}\n");
    let args = ["generate", "--input", "-", "-n", "48", "--draft-index", index, "-q"];
    let answers = run_with_stdin(&args, input.as_bytes());
    assert_eq!(answers.code, 0, "{}", answers.stderr);
    assert_eq!(kept().len(), 3 * once.len(), "a request that does without other texts tells others nothing");
}

#[test]
fn what_is_no_index_is_refused_and_left_as_it_is() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("texts");
    std::fs::write(&file, "diary").unwrap();
    let refused = run(&["generate", "-m", BUNDLED, "-p", "x", "--draft-index", file.to_str().unwrap()]);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""));
    assert!(refused.stderr.contains("texts: damaged safetensors file"), "{}", refused.stderr);
    assert_eq!(std::fs::read(&file).unwrap(), b"diary");
    let nowhere = folder.path().join("no/such/folder");
    let refused = run(&["generate", "-m", BUNDLED, "-p", "x", "--draft-index", nowhere.to_str().unwrap()]);
    assert_eq!((refused.code, refused.stdout.as_str()), (1, ""), "told before anything is answered");
    assert!(refused.stderr.contains("folder: cannot be written: "), "{}", refused.stderr);
}

#[test]
fn what_contradicts_itself_is_a_usage_error_and_what_is_idle_is_said() {
    for (args, part) in [
        (
            ["--draft", "lookups", "-q"],
            "source of drafts \"lookups\" is unknown: expected off, or a list of exit,lookup,shared,grammar, or auto",
        ),
        (["--draft", "lookup", "--exit=2"], "--exit and --controller are for --draft exit, not for --draft lookup"),
        (["--draft", "lookup", "--draft-index=f"], "--draft-index is for --draft shared, not for --draft lookup"),
    ] {
        let refused = run(&[&["generate", "-p", "x"][..], &args].concat());
        assert_eq!(refused.code, 2, "{args:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(part), "{args:?}: {}", refused.stderr);
    }
    let idle =
        run(&["generate", "-p", "x", "-n", "1", "--controller", "off", "--draft", "lookup", "--draft-index", "none"]);
    for part in ["--draft changes nothing with --controller off", "--draft-index changes nothing with --controller off"]
    {
        assert!(idle.code == 0 && idle.stderr.contains(part), "{}", idle.stderr);
    }
    let answers = run_with_stdin(&["generate", "--input", "-", "-q"], br#"{"prompt": "x", "draft": "magic"}"#);
    let answer = &lines(&answers.stdout)[0];
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains(r#""draft": source of drafts "magic" is unknown"#), "{error}");
}
