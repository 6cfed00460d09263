//! What an H200 is expected to take for all that is measured, as tables: written down before there is a measurement. Needs no
//! device.

use crate::expected;
use crate::prefill;
use crate::quantised;
use crate::sizes::Size;
use crate::sources;
use crate::steps::{ELEMENT, Reads, cache_bytes};
use eesd::backend::KvFormat;

/// Prints them all.
pub fn predictions() {
    let (seven, thirteen, seventy) = (Size::seven(), Size::thirteen(), Size::seventy());
    kernels(&thirteen);
    sampling(&thirteen);
    for size in [&seven, &thirteen] {
        passes(size);
    }
    println!("{}", sources::heading(&thirteen));
    println!("| what | expected, ms |\n|---|--:|");
    for case in sources::Case::all(&thirteen) {
        println!("| {} | {:.3} |", case.name(), case.expected(&thirteen, thirteen.contexts[1]) * 1e3);
    }
    println!();
    for size in [&seven, &thirteen] {
        prompts(size);
    }
    println!("{}", quantised::HEADING);
    for case in [&thirteen, &seventy].into_iter().flat_map(quantised::Case::all) {
        println!("{} – | {:.3} |", case.told, case.expected * 1e3);
    }
}

fn header(first: &str, columns: impl Iterator<Item = String>) {
    let columns: Vec<String> = columns.collect();
    println!("| {first} | {} |\n|---|{}", columns.join(" | "), "--:|".repeat(columns.len()));
}

fn kernels(size: &Size) {
    println!("### Kernels, {}, µs\n", size.name);
    header("kernel, rows", size.kernel_rows.iter().map(usize::to_string));
    let line = |name: &str, times: Vec<f64>| {
        let times: Vec<String> = times.iter().map(|seconds| format!("{:.1}", seconds * 1e6)).collect();
        println!("| {name} | {} |", times.join(" | "));
    };
    for (name, outputs, inputs) in size.projections() {
        let bytes = outputs * inputs * ELEMENT;
        line(name, size.kernel_rows.iter().map(|&rows| expected::projection(bytes, rows)).collect());
    }
    println!();
    header("attention at", size.contexts.iter().map(usize::to_string));
    for (kept, kv) in [("any rows", KvFormat::Full), ("in 8 bits", KvFormat::Eight)] {
        let bytes = size.contexts.iter().map(|&context| cache_bytes(&size.geometry, kv, context));
        line(kept, bytes.map(expected::reading).collect());
    }
    println!();
}

fn sampling(size: &Size) {
    println!("### Sampling, vocabulary of {}, µs\n", size.sampled_vocab);
    let cases = [("greedy", None), ("none, min-p", Some(0)), ("top-k or top-p", Some(1)), ("both", Some(2))];
    header("", cases.iter().map(|case| case.0.to_owned()));
    let times = cases.map(|(_, filters)| format!("{:.1}", expected::sampling(size.sampled_vocab, filters) * 1e6));
    println!("| any rows | {} |\n", times.join(" | "));
}

fn passes(size: &Size) {
    println!("### Whole passes, {}, ms\n", size.name);
    let rows = size.rows.iter().map(|rows| format!("verify {rows}"));
    header("context", rows.chain(["draft".to_owned()]));
    for &context in size.contexts {
        let verification = Reads::of_verification(&size.geometry, context);
        let draft = Reads::of_draft(&size.geometry, size.exit_after, context).expected(1);
        let times = size.rows.iter().map(|&rows| verification.expected(rows)).chain([draft]);
        let times: Vec<String> = times.map(|seconds| format!("{:.3}", seconds * 1e3)).collect();
        println!("| {context} | {} |", times.join(" | "));
    }
    println!();
}

fn prompts(size: &Size) {
    println!("### Prompts, {}, ms\n", size.name);
    header("way, rows of a pass", size.prompts.iter().map(|tokens| format!("{tokens} tokens")));
    for (way, rows) in prefill::ways(size) {
        let times = size.prompts.iter().map(|&tokens| prefill::expected(&size.geometry, tokens, rows, way));
        let times: Vec<String> = times.map(|seconds| format!("{:.1}", seconds * 1e3)).collect();
        println!("| {way:?}, {rows} | {} |", times.join(" | "));
    }
    println!();
}
