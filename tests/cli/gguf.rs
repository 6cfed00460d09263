//! A model in one file, where a folder is usual.

use crate::{lines, ok, run};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// A folder with one small model in it.
fn model(name: &str) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("small.gguf");
    fs::copy(format!("{}/tests/fixtures/gguf/{name}.gguf", env!("CARGO_MANIFEST_DIR")), &path).unwrap();
    (folder, path)
}

#[test]
fn inspect_tells_the_file_and_how_its_parts_are_stored() {
    let (folder, path) = model("llama-mixed");
    let path = path.to_str().unwrap();
    let text = ok(&["inspect", "-m", path]).stdout;
    for part in ["small (llama)", path, "embedding q4_k", "q5_1 (1 matrices", "q8_0 (2 matrices", "head q6_k"] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let report: Value = serde_json::from_str(&ok(&["inspect", "-m", path, "--json"]).stdout).unwrap();
    assert_eq!((&report["file"], &report["folder"]), (&json!(path), &json!(folder.path())));
    assert_eq!(report["formats"]["layers"]["iq4_nl"]["matrices"], json!(1));
    let layers = report["formats"]["layers"].as_object().unwrap();
    let matrices: u64 = layers.values().map(|share| share["matrices"].as_u64().unwrap()).sum();
    assert_eq!(matrices, 14);
}

#[test]
fn a_file_answers_by_its_name_and_by_its_folder() {
    let (folder, path) = model("qwen3-mixed");
    let answer = |model: &str| ok(&["generate", "-m", model, "-p", "import os", "-n", "8", "--ignore-eos"]).stdout;
    let text = answer(path.to_str().unwrap());
    assert!(!text.is_empty());
    assert_eq!(answer(folder.path().to_str().unwrap()), text);
    let ids = ok(&["tokenize", "-m", path.to_str().unwrap(), "-p", "import os", "--ids"]).stdout;
    assert!(serde_json::from_str::<Vec<u32>>(&ids).unwrap().len() > 1, "{ids}");
}

#[test]
fn an_exit_block_lies_beside_the_file_and_neither_is_written_over() {
    let (folder, path) = model("llama-mixed");
    let model = path.to_str().unwrap();
    let missing = run(&["generate", "-m", model, "-p", "x", "--exit", "1"]);
    let expected = format!("--exit: {} does not exist", folder.path().join("exit-1.safetensors").display());
    assert!(missing.code == 1 && missing.stderr.contains(&expected), "{}", missing.stderr);

    let requests = folder.path().join("in.jsonl");
    fs::write(&requests, "{\"prompt\": \"x\", \"max_tokens\": 2}\n").unwrap();
    let output = folder.path().join("out.jsonl");
    fs::write(&output, "").unwrap();
    let to = |output: &str| run(&["generate", "-m", model, "--input", requests.to_str().unwrap(), "--output", output]);
    let refused = to(model);
    assert!(refused.code == 2 && refused.stderr.contains("would overwrite the file of --model"), "{}", refused.stderr);
    // Other files of the folder are nobody's.
    let ran = to(output.to_str().unwrap());
    assert_eq!((ran.code, lines(&fs::read_to_string(&output).unwrap()).len()), (0, 1), "{}", ran.stderr);
}
