//! `bench` over several files of prompts, and of several sources of drafts.

use crate::{lines, ok, run, write};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

const CONTENDERS: [&str; 2] = ["fixed:2", "goodput-ts"];

/// Two files of prompts, one of which says everything twice.
fn two_sets(dir: &TempDir) -> [String; 2] {
    let plain = [json!({"prompt": "def fibonacci(n):"}), json!({"prompt": "import os"})];
    let twice =
        [json!({"prompt": "a = 1\nb = 2\nc = 3\na = 1\nb = 2\n"}), json!({"prompt": "x = f(y)\nx = f(y)\nx ="})];
    let file = |name: &str, prompts: [Value; 2]| write(dir, name, prompts.map(|prompt| format!("{prompt}\n")).concat());
    [file("plain.jsonl", plain), file("twice.jsonl", twice)]
}

/// A short benchmark.
fn bench(more: &[&str]) -> Vec<String> {
    ["bench", "-n", "12", "-r", "2", "-q"].iter().chain(more).map(|&arg| arg.to_owned()).collect()
}

fn benched(more: &[&str]) -> String {
    ok(&bench(more).iter().map(String::as_str).collect::<Vec<_>>()).stdout
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or_else(|| panic!("{key} of {row}"))
}

#[test]
fn each_set_has_its_row_and_the_last_is_their_geometric_mean() {
    let dir = TempDir::new().unwrap();
    let [plain, twice] = two_sets(&dir);
    let files = format!("{plain},{twice}");
    let with = |more: &[&str]| benched(&[&["--input", &files, "--controllers", "fixed:2,goodput-ts"], more].concat());
    let records: Vec<Value> = serde_json::from_str(&with(&["--json"])).unwrap();
    assert_eq!(records.len(), 2 * (1 + CONTENDERS.len()) + CONTENDERS.len());
    let of =
        |controller: &str| -> Vec<&Value> { records.iter().filter(|row| row["controller"] == controller).collect() };
    let sets = |rows: &[&Value]| rows.iter().map(|row| row["set"].clone()).collect::<Vec<_>>();
    let off = of("off");
    assert_eq!(sets(&off), ["plain", "twice"]);
    for row in off {
        assert_eq!(
            (&row["speed_up"], &row["slowest_answer"], &row["by_source"]),
            (&json!(1.0), &json!(1.0), &json!({}))
        );
        assert_eq!((&row["prompts"], &row["tokens"]), (&json!(2), &json!(48)));
    }
    for controller in CONTENDERS {
        let rows = of(controller);
        assert_eq!(sets(&rows), ["plain", "twice", "geometric mean"]);
        for key in ["speed_up", "mean_accepted_length"] {
            let mean = (number(rows[0], key) * number(rows[1], key)).sqrt();
            assert!((number(rows[2], key) / mean - 1.0).abs() < 1e-9, "{key}: {rows:?}");
        }
        let slowest = number(rows[0], "slowest_answer").min(number(rows[1], "slowest_answer"));
        assert_eq!(number(rows[2], "slowest_answer"), slowest);
        for row in &rows[..2] {
            assert!(number(row, "speed_up_least") <= number(row, "speed_up"), "{row}");
            assert!(number(row, "speed_up_most") >= number(row, "speed_up"), "{row}");
            let sources = row["by_source"].as_object().unwrap();
            let rounds: f64 = sources.values().map(|source| number(source, "rounds")).sum();
            assert!(rounds <= 2.0 * number(row, "rounds") + 1e-9, "{row}");
            for source in sources.values() {
                let accepted = number(source, "accepted") / number(source, "drafted").max(1.0);
                assert!(accepted <= 1.0 && (number(source, "acceptance") - accepted).abs() < 1e-9, "{row}");
            }
        }
        let drafted = |row: &Value, source: &str| row["by_source"][source]["drafted"].as_u64().unwrap_or(0);
        for source in ["exit", "lookup"] {
            assert_eq!(drafted(rows[2], source), drafted(rows[0], source) + drafted(rows[1], source), "{source}");
        }
        assert!(rows.iter().all(|row| row["by_source"]["shared"].is_null()), "texts are shared only where asked for");
    }

    let table = with(&[]);
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 2 + CONTENDERS.len() * 3, "{table}");
    for (row, part) in
        [(0, "tokens a round"), (0, "slowest answer"), (2, "| plain "), (3, "| twice "), (4, "| geometric mean ")]
    {
        assert!(rows[row].contains(part), "{part} is not in row {row} of {table}");
    }
    let columns = rows[0].matches('|').count();
    assert!(rows.iter().all(|row| row.matches('|').count() == columns), "{table}");
    let csv = with(&["-o", "csv"]);
    assert_eq!(csv.lines().count(), 1 + records.len(), "{csv}");
    let fields = csv.lines().next().unwrap().matches(',').count();
    assert!(csv.lines().skip(1).all(|line| line.matches(',').count() >= fields), "{csv}");
}

/// Which files there are is told by their names, as far as these tell them apart.
#[test]
fn files_called_the_same_are_told_apart_by_their_folders() {
    let dir = TempDir::new().unwrap();
    let [plain, _] = two_sets(&dir);
    fs::create_dir(dir.path().join("other")).unwrap();
    let other = dir.path().join("other/plain.jsonl");
    fs::copy(&plain, &other).unwrap();
    let inputs = ["--input", &plain, "--input", other.to_str().unwrap(), "--prompts", "1", "--draft", "off"];
    let rows = lines(&benched(&[&inputs[..], &["-o", "jsonl"]].concat()));
    let sets: Vec<&Value> = rows.iter().map(|row| &row["set"]).collect();
    assert_eq!(sets, [&json!(plain), &json!(other)]);
    // Nobody drafts, so there is nothing to take the mean of.
    assert!(rows.iter().all(|row| row["controller"] == "off" && row["speed_up"] == 1.0), "{rows:?}");
    assert!(benched(&inputs).lines().skip(2).all(|row| row.contains("plain.jsonl")));
}

#[test]
fn sources_without_an_exit_block_contend_under_their_own_names() {
    let dir = TempDir::new().unwrap();
    let [_, twice] = two_sets(&dir);
    for (flags, name) in [(&["--no-exit"][..], "lookup"), (&["--draft", "lookup,shared"], "lookup,shared")] {
        let rows = lines(&benched(&[&["--input", &twice, "-o", "jsonl", "--pp", "8"], flags].concat()));
        let names: Vec<&Value> = rows.iter().map(|row| &row["controller"]).collect();
        assert_eq!(names, [&Value::Null, &json!("off"), &json!(name)]);
        assert!(rows.iter().all(|row| row.get("set").is_none() && row["exit_layer"].is_null()), "{rows:?}");
        assert!(rows.iter().all(|row| row["by_source"]["exit"].is_null()), "{rows:?}");
    }
}

#[test]
fn a_picture_and_a_trace_tell_the_sets_apart() {
    let dir = TempDir::new().unwrap();
    let [plain, twice] = two_sets(&dir);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (plot, trace) = (path("plot.svg"), path("trace.json"));
    let files = ["--input", &plain, "--input", &twice, "--controllers", "fixed:2", "--plot", &plot, "--trace", &trace];
    benched(&files);
    let picture = fs::read_to_string(plot).unwrap();
    for part in ["plain, off", "twice, fixed:2"] {
        assert!(picture.contains(part), "{part} is not in the picture");
    }
    assert!(!picture.contains("NaN") && !picture.contains("inf"));
    let trace: Value = serde_json::from_str(&fs::read_to_string(trace).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    for name in ["off on prompts 1 to 1 of plain", "fixed:2 on prompts 0 to 0 of twice"] {
        assert_eq!(events.iter().filter(|event| event["name"] == name).count(), 2, "{name}: once a repetition");
    }
}

#[test]
fn what_makes_no_sense_together_is_refused_or_named() {
    let dir = TempDir::new().unwrap();
    let [plain, twice] = two_sets(&dir);
    let both = format!("{plain},{twice}");
    for (args, message) in [
        (["--input", &both, "--input", &plain], "is there twice"),
        (["--json", "--prompts", "1", "--output-format=csv"], "--output-format"),
        (["--no-exit", "--controllers", "fixed:1", "--json"], "--no-exit"),
        (
            ["--draft", "lookup", "--controllers", "fixed:1"],
            "--controllers is for --draft exit, not for --draft lookup",
        ),
        (["--draft", "off", "--controllers", "fixed:1"], "--controllers is for --draft exit, not for --draft off"),
        (
            ["--draft", "lookup,grammar", "--no-exit", "-q"],
            "--draft lookup,grammar: bench asks for no grammar that could draft",
        ),
    ] {
        let refused = run(&[&["bench"], &args[..]].concat());
        assert!(refused.code == 2 && refused.stderr.contains(message), "{args:?}: {}", refused.stderr);
        assert_eq!(refused.stdout, "");
    }
    let args = ["bench", "-n", "4", "-r", "1", "--prompts", "1", "--draft", "off", "--pp", "8", "--input", &both];
    assert!(ok(&args).stderr.contains("--pp changes nothing with several files"));
}
