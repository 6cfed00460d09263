//! Recurrent blocks: what they learn, what is in their files, what is said of them.

use crate::{Place, metrics, ok, stderr};
use safetensors::SafeTensors;
use serde_json::Value;
use std::collections::HashMap;

const RUN: [&str; 8] = ["--recurrent", "3", "--steps", "40", "--measure-every", "8", "--draft-vocab", "600"];

fn held_out(place: &Place, output: &str) -> Vec<Value> {
    let lines = metrics(&place.path(output).join("exit-2.metrics.jsonl"));
    lines.into_iter().map(|line| line["held_out"].clone()).filter(|held_out| !held_out.is_null()).collect()
}

fn metadata(file: &[u8]) -> HashMap<String, String> {
    SafeTensors::read_metadata(file).unwrap().1.metadata().clone().unwrap()
}

fn figures(told: &str) -> &str {
    told.lines().find(|line| line.contains("top-1 agreement")).unwrap()
}

#[test]
fn every_draft_of_a_chain_is_learned() {
    let place = Place::new();
    let told = ok(place.training("out", &RUN));
    assert!(figures(&told).contains("draft by draft: top-1 "), "{told}");
    let held_out = held_out(&place, "out");
    let overlap = |at: usize, step: usize| held_out[at]["steps"][step]["overlap"].as_f64().unwrap();
    for step in 0..3 {
        let (first, last) = (overlap(0, step), overlap(4, step));
        assert!(last > first + 0.05, "step {step}: {first} {last}");
    }
    let file = place.read("out/exit-2.safetensors");
    let tensors = SafeTensors::deserialize(&file).unwrap();
    assert_eq!(tensors.tensor("exit.input.weight").unwrap().shape(), [192, 192]);
    assert_eq!(tensors.tensor("exit.recurrent.weight").unwrap().shape(), [192, 384]);
    let metadata = metadata(&file);
    assert_eq!((&metadata["format"][..], &metadata["recurrent_steps"][..]), ("eesd-exit-2", "3"));
    assert_eq!(metadata["held_out_agreement_by_draft"].split(' ').count(), 2);
    assert!(metadata["held_out_agreement_by_draft"].starts_with(&metadata["held_out_agreement"][..4]), "{metadata:?}");

    // What a run that only measures says of it is the same; without its steps it is no start.
    let block = place.path("out/exit-2.safetensors");
    let from = ["--init-from", block.to_str().unwrap(), "--steps", "0"];
    let measured = ok(place.training("other", &[&from[..], &["--recurrent", "3"]].concat()));
    assert_eq!(figures(&measured), figures(&told));
    let refused = place.training("other", &from).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(stderr(&refused).contains("the block is recurrent (expected --recurrent STEPS)"), "{}", stderr(&refused));
}

/// A block with an input matrix alone is one of the second format, and one without both of the first.
#[test]
fn an_input_matrix_may_come_alone() {
    let place = Place::new();
    ok(place.training("ridge", &["--steps", "2", "--input-matrix", "ridge", "--store", "q8"]));
    ok(place.training("none", &["--steps", "2"]));
    let [ridge, none] = ["ridge", "none"].map(|output| place.read(&format!("{output}/exit-2.safetensors")));
    let has = |file: &[u8], name: &str| SafeTensors::deserialize(file).unwrap().tensor(name).is_ok();
    assert!(has(&ridge, "exit.input.weight") && !has(&ridge, "exit.recurrent.weight"));
    assert!(!has(&none, "exit.input.weight"));
    assert_eq!((&metadata(&ridge)["format"][..], &metadata(&none)["format"][..]), ("eesd-exit-2", "eesd-exit-1"));
}

#[test]
fn threads_change_no_bit_of_a_recurrent_block() {
    let place = Place::new();
    let run = ["--recurrent", "2", "--steps", "4", "--store", "q8"];
    ok(place.training("one", &[&run[..], &["-t", "1"]].concat()));
    ok(place.training("two", &[&run[..], &["-t", "2"]].concat()));
    assert_eq!(place.read("one/exit-2.safetensors"), place.read("two/exit-2.safetensors"));
}

/// With a rate that rises until held-out text gets worse, a run ends early, and the block that was best is the one written.
#[test]
fn the_best_block_is_written() {
    let place = Place::new();
    ok(place.training("good", &["--steps", "40", "--measure-every", "40"]));
    let block = place.path("good/exit-2.safetensors");
    let from = ["--init-from", block.to_str().unwrap(), "--steps", "60", "--warmup", "60", "--lr", "0.2"];
    let told = ok(place.training("worse", &[&from[..], &["--measure-every", "1", "--patience", "3"]].concat()));
    assert!(told.contains("held-out text got no better") && told.contains("was best on held-out text"), "{told}");
    let losses: Vec<f64> = held_out(&place, "worse").iter().map(|means| means["loss"].as_f64().unwrap()).collect();
    let best = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).unwrap();
    assert_eq!(losses.len(), best + 1 + 3, "{losses:?}");
    let file = place.read("worse/exit-2.safetensors");
    let metadata = metadata(&file);
    assert_eq!((&metadata["best_update"], &metadata["updates"]), (&(best + 1).to_string(), &losses.len().to_string()));
    let written: f64 = metadata["held_out_overlap"].parse().unwrap();
    let overlap = |at: usize| held_out(&place, "worse")[at]["overlap"].as_f64().unwrap();
    // But for the rounding of the file.
    assert!((written - overlap(best)).abs() < 0.01, "{written} {}", overlap(best));
    assert!(overlap(losses.len() - 1) < overlap(best) - 0.02, "the last block is as good");
}

#[test]
fn a_draft_vocabulary_covers_what_is_asked_for() {
    let place = Place::new();
    let drafted = |part: &str| -> (usize, f64) {
        let told = ok(place.training(part, &["--steps", "1", "--draft-vocab", part]));
        let said = told.split("drafts ").nth(1).unwrap().split_whitespace().collect::<Vec<_>>();
        (said[0].parse().unwrap(), said[6].parse().unwrap())
    };
    let ((few, some), (many, most)) = (drafted("80%"), drafted("97.5%"));
    assert!(few < many && (80.0..83.0).contains(&some) && (97.5..98.5).contains(&most), "{few} {some} {many} {most}");
}
