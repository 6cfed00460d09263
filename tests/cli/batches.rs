//! `generate --batch-size auto` and `--cache-tokens`: they change the speed and nothing else.

use crate::{lines, ok, run, write};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use tempfile::TempDir;

fn requests(dir: &TempDir, count: usize) -> String {
    let request = |i: usize| json!({"prompt": format!("def f{i}(x):\n"), "max_tokens": 150 + 9 * i});
    write(dir, "in.jsonl", (0..count).map(|i| format!("{}\n", request(i))).collect::<String>())
}

/// Tokens by request.
fn tokens(text: &str) -> BTreeMap<u64, Value> {
    lines(text).into_iter().map(|mut line| (line["index"].as_u64().unwrap(), line["tokens"].take())).collect()
}

#[test]
fn the_machine_may_choose_how_many_are_answered_side_by_side() {
    let dir = TempDir::new().unwrap();
    let input = requests(&dir, 6);
    let alone = ok(&["generate", "--input", &input, "-t", "1"]);
    assert!(alone.stderr.contains(" 1 side by side"), "{}", alone.stderr);
    let auto = ok(&["generate", "--input", &input, "-b", "auto", "-t", "1"]);
    assert_eq!(tokens(&auto.stdout), tokens(&alone.stdout));
    let told = auto.stderr.split(" side by side").next().unwrap().rsplit(' ').next().unwrap();
    assert!((1..=6).contains(&told.parse().unwrap()), "{}", auto.stderr);
    let text = ok(&["generate", "-p", "x", "-n", "4", "-b", "auto", "-t", "1"]);
    assert!(text.stderr.contains("--batch-size changes nothing for text"), "{}", text.stderr);
}

/// A cache that is too small for all of them at once: they take turns.
#[test]
fn requests_share_a_small_cache() {
    let dir = TempDir::new().unwrap();
    let input = requests(&dir, 6);
    let summary = dir.path().join("s.json");
    let summary = summary.to_str().unwrap();
    let run_with = |more: &[&str]| {
        let text =
            ok(&[&["generate", "--input", &input, "-b", "6", "-t", "1", "--stats-json", summary], more].concat());
        let summary: Value = serde_json::from_str(&fs::read_to_string(summary).unwrap()).unwrap();
        (
            tokens(&text.stdout),
            summary["cache_pages"].as_u64().unwrap(),
            summary["preemptions"].as_u64().unwrap(),
            text.stderr,
        )
    };
    let (expected, pages, preemptions, told) = run_with(&[]);
    assert!(pages == 6 * 1024 / 64 && preemptions == 0, "{pages} pages, {preemptions} preemptions");
    assert!(!told.contains("--cache-tokens"), "{told}");
    let (found, pages, preemptions, told) = run_with(&["--cache-tokens", "250"]);
    assert!(pages == 4 && preemptions > 0, "{pages} pages, {preemptions} preemptions");
    assert!(found == expected, "other answers in a small cache");
    let note = "the KV cache has room for 256 positions: a request that needs more of its context of 1024 fails";
    assert!(told.contains(note), "{told}");
}

#[test]
fn a_request_that_the_cache_has_no_room_for_fails_alone() {
    let dir = TempDir::new().unwrap();
    let input =
        write(&dir, "in.jsonl", "{\"prompt\": \"x\", \"max_tokens\": 300}\n{\"prompt\": \"x\", \"max_tokens\": 9}\n");
    let run = run(&["generate", "--input", &input, "--cache-tokens", "128"]);
    let answers = lines(&run.stdout);
    assert_eq!((run.code, answers.len()), (1, 2), "{}", run.stderr);
    assert_eq!(answers[0]["error"], "the request needs 5 cache pages, but the cache has 2");
    assert_eq!(answers[1]["tokens"].as_array().unwrap().len(), 9);
}
