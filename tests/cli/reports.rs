//! `inspect`, `doctor`, `completions`, help, `bench` and `verify`.

use crate::{BUNDLED, PROMPT, lines, ok, run};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

#[test]
fn inspect_for_people_and_for_machines() {
    let text = ok(&["inspect"]).stdout;
    for part in ["pycode-4m", "8 layers", "3.94 M parameters", "N = 2", "predicted"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let report: Value = serde_json::from_str(&ok(&["inspect", "-m", BUNDLED, "--json"]).stdout).unwrap();
    assert_eq!((&report["layers"], &report["vocab_size"], &report["dtype"]), (&json!(8), &json!(4096), &json!("bf16")));
    let blocks = report["exit_blocks"].as_array().unwrap();
    assert_eq!(
        blocks.iter().map(|block| block["exit_layer"].clone()).collect::<Vec<_>>(),
        [json!(1), json!(2), json!(3)]
    );
    let r = blocks[1]["draft_step_cost"].as_f64().unwrap();
    assert!((r - 0.5).abs() < 0.01, "the model's README says half a plain step: {r}");
    assert_eq!(report["memory"][0], json!({"memory_gb": 8, "tokens": 1024, "sequences": 1523}));
}

#[test]
fn doctor_finds_the_processor() {
    let text = ok(&["doctor"]).stdout;
    for part in ["processor", "vector instructions", "GB/s", "CUDA", "bundled model"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let findings: Value = serde_json::from_str(&ok(&["doctor", "--json"]).stdout).unwrap();
    assert!(findings.as_array().unwrap().iter().all(|finding| finding["found"].is_string()));
}

#[test]
fn completions_for_each_shell() {
    assert!(ok(&["completions", "bash"]).stdout.contains("complete -F _eesd__run"));
    for shell in ["zsh", "fish", "powershell", "elvish"] {
        assert!(ok(&["completions", shell]).stdout.contains("generate"));
    }
}

#[test]
fn help_and_version_are_not_errors() {
    assert!(ok(&["--version"]).stdout.starts_with("eesd-run "));
    // Wherever its lines are broken.
    let help = ok(&["generate", "--help"]).stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    let told =
        ["generation_config.json", "JSON lines", "--draft-max", "[default: goodput-ts]", "speculation changes nothing"];
    for part in told {
        assert!(help.contains(part), "{part} is not in {help}");
    }
    for name in ["chat", "bench", "inspect", "verify", "doctor", "completions"] {
        assert!(ok(&[name, "--help"]).stdout.contains("Usage: eesd-run"));
    }
    assert_eq!(run(&[]).code, 2);
}

fn bench(more: &[&str]) -> String {
    let base =
        ["bench", "--prompts", "2", "-n", "8", "-r", "1", "--pp", "32", "--controllers", "off,fixed:2,goodput-ts"];
    ok(&[&base, more].concat()).stdout
}

#[test]
fn a_trace_has_every_round_with_what_was_believed_drafted_and_accepted() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("trace.json");
    let jsonl =
        lines(&bench(&["-o", "jsonl", "-b", "2", "--draft", "exit", "--trace", path.to_str().unwrap(), "--profile"]));
    let trace: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let span =
        |event: &Value| (event["ts"].as_f64().unwrap(), event["ts"].as_f64().unwrap() + event["dur"].as_f64().unwrap());
    let inside = |outer: &Value, name: &str| -> Vec<Value> {
        let (start, end) = span(outer);
        let within = |event: &&Value| event["name"] == name && start <= span(event).0 && span(event).1 <= end + 1e-3;
        events.iter().filter(within).cloned().collect()
    };
    let turn = |controller: &str| {
        let name = format!("{controller} on prompts 0 to 1");
        events.iter().find(|event| event["name"] == *name).unwrap_or_else(|| panic!("no range {name}")).clone()
    };
    let rounds = inside(&turn("fixed:2"), "round");
    let told = jsonl.iter().find(|line| line["controller"] == "fixed:2").unwrap();
    let sequences = || rounds.iter().flat_map(|round| round["args"]["sequences"].as_array().unwrap());
    assert_eq!(Some(sequences().count() as f64), told["rounds"].as_f64());
    for sequence in sequences() {
        let drafted = sequence["drafted"].as_u64().unwrap();
        assert!(drafted <= 2 && sequence["accepted"].as_u64().unwrap() <= drafted);
        assert_eq!(sequence["confidences"].as_array().unwrap().len() as u64, drafted);
    }
    for round in &rounds {
        let (verify, drafted) = (inside(round, "verify"), inside(round, "draft step").len() as u64);
        let sequences = round["args"]["sequences"].as_array().unwrap();
        let rows: u64 = sequences.iter().map(|sequence| sequence["drafted"].as_u64().unwrap() + 1).sum();
        assert_eq!((verify.len(), verify[0]["args"]["rows"].as_u64()), (1, Some(rows)));
        assert_eq!(Some(drafted), sequences.iter().filter_map(|sequence| sequence["drafted"].as_u64()).max());
    }
    let learned = inside(&turn("goodput-ts"), "round");
    assert!(learned.iter().all(|round| round["args"]["controller"].is_object()));
    assert!(inside(&turn("off"), "draft step").is_empty());
}

#[test]
fn bench_prints_each_format() {
    let table = bench(&["--draft", "exit"]);
    let rows: Vec<&str> = table.lines().collect();
    assert_eq!(rows.len(), 6, "{table}");
    assert!(rows.iter().all(|row| row.starts_with('|') && row.matches('|').count() == 16), "{table}");
    assert!(rows[0].contains("acceptance by position") && rows[0].contains("exit accepted in rounds"));
    assert!(rows[0].contains("slowest answer") && rows[2].contains("pp32") && rows[3].contains("| off"));

    let csv = bench(&["-o", "csv"]);
    assert!(csv.starts_with("model,bytes,") && csv.lines().count() == 5);
    let jsonl = lines(&bench(&["-o", "jsonl", "--batch-size", "2"]));
    let json: Value = serde_json::from_str(&bench(&["--json", "--temp", "0.8"])).unwrap();
    for rows in [&jsonl, json.as_array().unwrap()] {
        let names: Vec<&Value> = rows.iter().map(|row| &row["controller"]).collect();
        assert_eq!(names, [&Value::Null, &json!("off"), &json!("fixed:2"), &json!("goodput-ts")]);
        assert!(rows.iter().all(|row| row["tokens_per_second"].as_f64().unwrap() > 0.0));
        assert_eq!((&rows[1]["speed_up"], &rows[1]["predicted"]), (&json!(1.0), &json!(1.0)));
        assert_eq!(rows[2]["tokens"], 16);
    }
}

#[test]
fn bench_draws_a_picture() {
    let dir = TempDir::new().unwrap();
    let path: PathBuf = dir.path().join("plot.svg");
    bench(&["--plot", path.to_str().unwrap()]);
    let svg = fs::read_to_string(path).unwrap();
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    let (opened, closed) = (svg.matches("<text").count(), svg.matches("</text>").count());
    assert!(opened == closed && opened > 20, "{opened} texts, {closed} ends");
    for part in ["goodput-ts", "fixed:2", "Acceptance by draft position", "Draft lengths", "tokens per second"] {
        assert!(svg.contains(part), "{part} is not in the picture");
    }
    assert!(!svg.contains("NaN") && !svg.contains("inf"));
}

#[test]
fn verify_proves_the_bundled_model_lossless() {
    let args = ["verify", "--prompts", "3", "-n", "24", "--samples", "300"];
    let text = ok(&args).stdout;
    assert!(text.contains("lossless: every check passed") && !text.contains("FAILED"), "{text}");
    let args = ["verify", "-p", PROMPT, "-n", "16", "--samples", "200", "--controllers", "fixed:3", "--json"];
    let verdict: Value = serde_json::from_str(&ok(&args).stdout).unwrap();
    assert_eq!(verdict["lossless"], true);
    let checks: Vec<&Value> = verdict["checks"].as_array().unwrap().iter().map(|check| &check["check"]).collect();
    assert_eq!(checks, [&json!("logits"), &json!("greedy"), &json!("coupled"), &json!("rejection")]);
}
