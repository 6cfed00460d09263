//! What training gives: a block that drafts better, whose file says so, and pictures.

use crate::{BUNDLED, Place, metrics, ok};
use std::fs;
use std::process::Command;

fn held_out(place: &Place, output: &str, field: &str) -> Vec<f64> {
    let lines = metrics(&place.path(output).join("exit-2.metrics.jsonl"));
    lines.iter().filter_map(|line| line["held_out"][field].as_f64()).collect()
}

#[test]
fn a_block_learns_and_is_used() {
    let place = Place::new();
    let told = ok(place.training("out", &["--steps", "60", "--measure-every", "1", "--plot", "/dev/null"]));
    assert!(told.contains("top-1 agreement") && told.contains("plot written"), "{told}");
    let overlaps = held_out(&place, "out", "overlap");
    let divergences = held_out(&place, "out", "divergence");
    assert_eq!(overlaps.len(), 60);
    assert!(overlaps[59] > overlaps[0] + 0.1, "{overlaps:?}");
    assert!(divergences[59] < 0.5 * divergences[0], "{divergences:?}");

    let block = place.path("out/exit-2.safetensors");
    let generate = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eesd-run"));
        command.args(["generate", "-m", BUNDLED, "-t", "1", "-p", "def main():", "-n", "40"]).args(more);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (plain, _) = generate(&["--no-exit"]);
    let (drafted, statistics) = generate(&["--exit", block.to_str().unwrap(), "--controller", "fixed:2"]);
    assert_eq!(drafted, plain);
    assert!(statistics.contains("mean accepted length"), "{statistics}");
}

/// What `--steps 0` says of a block is what training said of it at its end.
#[test]
fn a_block_can_be_measured_alone() {
    let place = Place::new();
    let trained = ok(place.training("out", &["--steps", "8"]));
    let block = place.path("out/exit-2.safetensors");
    let measured = ok(place.training("other", &["--steps", "0", "--init-from", block.to_str().unwrap()]));
    let figures = |told: &str| told.lines().find(|line| line.contains("top-1 agreement")).unwrap().to_owned();
    assert_eq!(figures(&measured), figures(&trained));
    assert!(!place.path("other/exit-2.safetensors").exists());
}

/// What is said of a block of 8 bits is measured with these, and they draft.
#[test]
fn a_block_may_be_kept_in_eight_bits() {
    let place = Place::new();
    ok(place.training("wide", &["--steps", "8"]));
    let trained = ok(place.training("out", &["--steps", "8", "--store", "q8"]));
    let block = place.path("out/exit-2.safetensors");
    let bytes = |path: &str| fs::metadata(place.path(path)).unwrap().len() as f64;
    let part = bytes("out/exit-2.safetensors") / bytes("wide/exit-2.safetensors");
    assert!((0.53..0.55).contains(&part), "34 bytes for 32 numbers, not 64: {part}");
    let again = ["--steps", "0", "--store", "q8", "--init-from", block.to_str().unwrap()];
    let figures = |told: &str| told.lines().find(|line| line.contains("top-1 agreement")).unwrap().to_owned();
    // But for the costs, which are those of the bytes that are read.
    let measured = ok(place.training("other", &again));
    assert_eq!(figures(&measured), figures(&trained));
    let generate = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_eesd-run"));
        command.args(["generate", "-m", BUNDLED, "-t", "1", "-p", "def main():", "-n", "40", "--json"]).args(more);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let drafted = generate(&["--exit", block.to_str().unwrap(), "--controller", "fixed:2"]);
    assert_eq!(drafted["tokens"], generate(&["--no-exit"])["tokens"]);
    assert!(drafted["stats"]["accepted"].as_u64().unwrap() > 0, "{drafted}");
}

#[test]
fn heads_may_be_shared_frozen_or_smaller() {
    let place = Place::new();
    let bytes = |output: &str, more: &[&str]| {
        ok(place.training(output, &[&["--steps", "2"], more].concat()));
        fs::metadata(place.path(output).join("exit-2.safetensors")).unwrap().len()
    };
    let full = bytes("full", &[]);
    let frozen = bytes("frozen", &["--freeze-head"]);
    let small = bytes("small", &["--draft-vocab", "1024"]);
    let shared = bytes("shared", &["--shared-head"]);
    let row = 192 * 2;
    // Metadata differ by a few bytes, and a list of tokens is an entry more.
    let near = |found: u64, expected: u64| found.abs_diff(expected) < 192;
    assert!(
        near(frozen, full) && near(small, full - 3072 * row + 1024 * 8) && near(shared, full - 4096 * row - 96),
        "{full} {frozen} {small} {shared}"
    );
    let head = |name: &str| {
        let file = place.read(&format!("{name}/exit-2.safetensors"));
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        tensors.tensor("exit.lm_head.weight").unwrap().data().to_vec()
    };
    let model = fs::read(format!("{BUNDLED}/model.safetensors")).unwrap();
    let model = safetensors::SafeTensors::deserialize(&model).unwrap();
    let embedding = model.tensor("model.embed_tokens.weight").unwrap().data().to_vec();
    assert_eq!(head("frozen"), embedding);
    assert_ne!(head("full"), embedding);
}

/// A block of a small draft vocabulary has the tokens that are frequent in what it learned from, drafts no others, and
/// loses nothing.
#[test]
fn a_small_draft_vocabulary_is_of_frequent_tokens() {
    let place = Place::new();
    let steps = ["--steps", "30", "--draft-vocab", "512"];
    let told = ok(place.training("out", &steps));
    assert!(told.contains("drafts 512 of 4096 tokens, which are 100.0 % of those to learn"), "{told}");
    let told = ok(place.training("few", &["--steps", "12", "--draft-vocab", "32"]));
    let share = told.split("drafts 32 of 4096 tokens, which are ").nth(1).unwrap().split(' ').next().unwrap();
    let share: f64 = share.parse().unwrap();
    assert!((25.0..95.0).contains(&share), "{share}");

    let ids = |output: &str| {
        let file = place.read(&format!("{output}/exit-2.safetensors"));
        let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
        let (ids, head) = (tensors.tensor("exit.draft_ids").unwrap(), tensors.tensor("exit.lm_head.weight").unwrap());
        assert_eq!((ids.dtype(), ids.shape()[0]), (safetensors::Dtype::I64, head.shape()[0]));
        let metadata = safetensors::SafeTensors::read_metadata(&file).unwrap().1;
        let coverage: f64 = metadata.metadata().as_ref().unwrap()["draft_coverage"].parse().unwrap();
        let ids = ids.data().chunks_exact(8).map(|id| i64::from_le_bytes(id.try_into().unwrap()));
        (ids.collect::<Vec<_>>(), coverage)
    };
    let ((many, all), (few, some)) = (ids("out"), ids("few"));
    assert_eq!((many.len(), few.len(), all), (512, 32, 1.0));
    assert!((100.0 * some - share).abs() < 0.06, "{some} {share}");
    assert!(few.iter().all(|id| many.contains(id)) && *few.last().unwrap() > 300, "{few:?}");

    // A start from a block keeps its tokens, or takes those that are frequent in the data, more of them too.
    let few_path = place.path("few/exit-2.safetensors");
    let from = ["--init-from", few_path.to_str().unwrap(), "--steps", "1"];
    for (output, more) in [("same", &[][..]), ("again", &["--draft-vocab", "32"])] {
        ok(place.training(output, &[&from[..], more].concat()));
        assert_eq!(ids(output), (few.clone(), some));
    }
    ok(place.training("fewer", &[&from[..], &["--draft-vocab", "16"]].concat()));
    assert!(ids("fewer").0.iter().all(|id| few.contains(id)));
    ok(place.training("more", &[&from[..], &["--draft-vocab", "512"]].concat()));
    assert_eq!(ids("more").0, many);

    let block = place.path("out/exit-2.safetensors");
    let mut verify = Command::new(env!("CARGO_BIN_EXE_eesd-run"));
    verify
        .args(["verify", "-m", BUNDLED, "-t", "1", "--prompts", "2", "-n", "24", "--samples", "200", "--exit"])
        .arg(&block);
    let verified = verify.output().unwrap();
    let table = String::from_utf8(verified.stdout).unwrap();
    assert!(verified.status.success() && table.contains("lossless: every check passed"), "{table}");
    let mut generate = Command::new(env!("CARGO_BIN_EXE_eesd-run"));
    generate.args(["generate", "-m", BUNDLED, "-t", "1", "-p", "def main():", "-n", "40", "--draft", "exit"]);
    generate.args(["--controller", "fixed:2", "--exit"]).arg(&block);
    let drafting = generate.output().unwrap();
    let statistics = String::from_utf8(drafting.stderr).unwrap();
    assert!(
        statistics.contains("mean accepted length 1.") || statistics.contains("mean accepted length 2."),
        "{statistics}"
    );
}

#[test]
fn a_sweep_compares_and_recommends() {
    let place = Place::new();
    let corpus = place.path("corpus.jsonl");
    let (output, plot) = (place.path("out"), place.path("sweep.svg"));
    let mut command = crate::distill(&["--sweep-exit", "1..2", "--budget", "2000", "--window", "48", "-t", "1"]);
    command
        .args(["--batch-tokens", "192", "--corpus"])
        .arg(&corpus)
        .arg("--output")
        .arg(&output)
        .arg("--plot")
        .arg(&plot);
    let done = command.output().unwrap();
    assert!(done.status.success(), "{}", crate::stderr(&done));
    let table = String::from_utf8(done.stdout).unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| 1 |") || line.starts_with("| 2 |")).collect();
    assert_eq!(rows.len(), 2, "{table}");
    assert!(table.contains("Recommended: --exit") || table.contains("No exit layer gains"), "{table}");
    for n in [1, 2] {
        assert!(output.join(format!("exit-{n}.safetensors")).exists());
    }
    let svg = fs::read_to_string(plot).unwrap();
    for text in ["KL from the teacher", "Acceptance on held-out text", "Speed against plain decoding", "exit after 2"] {
        assert!(svg.contains(text), "no {text:?} in the picture");
    }
}

/// Two runs of the same command, on different numbers of threads, write the same bytes.
#[test]
fn threads_change_no_bit() {
    let place = Place::new();
    ok(place.training("one", &["--steps", "6", "-t", "1"]));
    ok(place.training("two", &["--steps", "6", "-t", "2"]));
    assert_eq!(place.read("one/exit-2.safetensors"), place.read("two/exit-2.safetensors"));
}
