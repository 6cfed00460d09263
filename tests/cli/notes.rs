//! What is no error in a model folder, and is said once all the same.

use super::*;
use eesd::load::{Checkpoint, ExitBlock};
use serde_json::json;

const GENERATION: &str = r#"{"bos_token_id": 0, "eos_token_id": [1, -1], "num_beams": 4, "chat_format": "x"}"#;
const NOTES: [&str; 2] = [
    "generation_config.json: `eos_token_id` has -1, expected tokens below vocab_size, 4096: ignored",
    "generation_config.json: not honoured: num_beams 4; unknown: chat_format \"x\"",
];

#[test]
fn notes_of_a_folder_are_printed_once_beside_the_answer() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[2], &[("generation_config.json", GENERATION)]);
    let noted = generate(&["-m", &folder]);
    let ordinary = generate(&[]);
    assert_eq!(noted.stdout, ordinary.stdout);
    let inspected = ok(&["inspect", "-m", &folder]);
    for note in NOTES {
        for stderr in [&noted.stderr, &inspected.stderr] {
            assert_eq!(stderr.lines().filter(|line| *line == note).count(), 1, "{stderr}");
        }
        assert!(!inspected.stdout.contains(note));
    }
    assert!(!ordinary.stderr.contains("generation_config.json"), "{}", ordinary.stderr);
    assert_eq!(generate(&["-m", &folder, "-q"]).stderr, "");
}

/// A block of another model of the same shape drafts, as well as it may.
#[test]
fn a_block_of_another_fine_tune_is_told_beside_the_same_answer() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[], &[]);
    let (folder_path, block) = (Path::new(&folder), dir.path().join("exit-2.safetensors"));
    let model = Checkpoint::open(folder_path).unwrap();
    let bundled = model.open_exit(&Path::new(BUNDLED).join("exit-2.safetensors")).unwrap();
    ExitBlock::save(&block, &bundled.weights(), bundled.metadata(), &model).unwrap();
    drop((bundled, model));
    let with = |more: &[&str]| generate(&[&["-m", &folder, "--exit", block.to_str().unwrap()], more].concat());
    assert!(!with(&[]).stderr.contains("base_norms_2"));

    let weights = folder_path.join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let norm = 8 + header + tensors["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[norm] ^= 1;
    fs::write(&weights, bytes).unwrap();
    let told = with(&[]);
    assert_eq!(told.stdout, generate(&["-m", &folder, "--no-exit"]).stdout);
    let notes = told.stderr.lines().filter(|line| line.starts_with("exit-2.safetensors: trained on another model"));
    assert_eq!(notes.count(), 1, "{}", told.stderr);
    assert_eq!(with(&["-q"]).stderr, "");
}

/// With the block after three layers drafts cost more than they are accepted more often than after one.
#[test]
fn of_several_exit_blocks_the_most_promising_drafts_and_is_named() {
    for (exits, best) in [(&[1, 3][..], 1), (&[3, 2, 1], 2)] {
        let dir = TempDir::new().unwrap();
        let folder = model_folder(&dir, exits, &[]);
        let told = generate(&["-m", &folder]);
        let named = format!(
            "exit-{best}.safetensors drafts, which of {} blocks promises most: 1.12x with 1 draft",
            exits.len()
        );
        assert!(told.stderr.contains(&named) && told.stderr.contains("held-out text"), "{}", told.stderr);
        assert_eq!(told.stdout, generate(&["-m", &folder, "--no-exit"]).stdout);
        let chosen = generate(&["-m", &folder, "--exit", "3"]);
        assert!(!chosen.stderr.contains("promises"), "{}", chosen.stderr);

        let inspected: Value = serde_json::from_str(&ok(&["inspect", "-m", &folder, "--json"]).stdout).unwrap();
        for block in inspected["exit_blocks"].as_array().unwrap() {
            assert_eq!(block["default"], block["exit_layer"] == best, "{block}");
            assert_eq!((&block["promise"]["held_out"], &block["promise"]["k"]), (&json!(true), &json!(1)), "{block}");
        }
    }
}

#[test]
fn a_prompt_with_a_token_past_the_vocabulary_is_refused_by_its_name() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[2], &[("added_tokens.json", r#"{"[PAD]": 4096}"#)]);
    assert_eq!(generate(&["-m", &folder]).stdout, generate(&[]).stdout);
    let refused = run(&["generate", "-m", &folder, "-p", "x = [PAD]"]);
    let message = "tokenizer.json: token \"[PAD]\" has id 4096, but the model's vocab_size is 4096";
    assert!(refused.code == 1 && refused.stdout.is_empty() && refused.stderr.contains(message), "{}", refused.stderr);
}

#[test]
fn a_pointer_of_git_lfs_is_called_that() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 7878800\n";
    for file in ["model.safetensors", "tokenizer.json", "exit-2.safetensors"] {
        let dir = TempDir::new().unwrap();
        let folder = model_folder(&dir, &[2], &[(file, pointer)]);
        let refused = run(&["generate", "-m", &folder, "-p", "x"]);
        let message = format!("{file}: a Git LFS pointer in place of the file: run `git lfs pull` in its folder");
        assert!(refused.code == 1 && refused.stderr.contains(&message), "{}", refused.stderr);
    }
}
