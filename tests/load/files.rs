//! Files as editors and version control leave them.

use crate::folder::Folder;
use crate::tokenizer::sentencepiece;
use eesd::load::{Chat, Message};
use serde_json::json;
use std::path::Path;

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 1743144\n";

/// Every file that a folder of this fixture is opened with.
fn complete(name: &str) -> Folder {
    let folder = Folder::of(name);
    folder.write("tokenizer.json", sentencepiece().to_string());
    folder.write("tokenizer_config.json", r#"{"bos_token": "<s>"}"#).write("special_tokens_map.json", "{}");
    folder.write("added_tokens.json", "{}").write("chat_template.jinja", "{{ messages[0].content }}");
    folder
}

fn files(folder: &Folder) -> Vec<String> {
    let names = std::fs::read_dir(folder.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    names.map(|name| name.into_string().unwrap()).collect()
}

#[test]
fn a_pointer_of_git_lfs_in_place_of_any_file_is_called_that() {
    let older = POINTER.replace("git-lfs", "hawser");
    for fixture in ["llama", "llama3_rope_sharded"] {
        for file in files(&complete(fixture)) {
            for pointer in [POINTER, &older] {
                let folder = complete(fixture);
                let message = refusal_or_broken_template(folder.write(&file, pointer), &file);
                let expected =
                    format!("{file}: a Git LFS pointer in place of the file: run `git lfs pull` in its folder");
                assert!(message.ends_with(&expected), "{message}");
            }
        }
    }
}

#[test]
fn a_pointer_of_git_lfs_in_place_of_an_exit_block_is_called_that() {
    let folder = Folder::of("llama");
    let checkpoint = folder.write("exit-1.safetensors", POINTER).open().unwrap();
    let beside = checkpoint.exit_blocks().err().expect("it is no block").to_string();
    let named = checkpoint.open_exit(&folder.path("exit-1.safetensors")).err().expect("it is no block").to_string();
    for message in [beside, named] {
        assert!(message.contains("exit-1.safetensors: a Git LFS pointer in place of the file"), "{message}");
    }
}

/// Why the folder is refused; a broken chat template is none of that, and an error where it is asked for.
fn refusal_or_broken_template(folder: &Folder, file: &str) -> String {
    match file {
        "chat_template.jinja" => folder.open().unwrap().chat_template().err().expect("it is broken").to_string(),
        _ => folder.refusal(),
    }
}

fn is_text(file: &str) -> bool {
    !file.ends_with(".safetensors")
}

#[test]
fn byte_order_marks_are_taken_off_every_text_file() {
    for fixture in ["llama", "llama3_rope_sharded"] {
        let folder = complete(fixture);
        let texts: Vec<String> = files(&folder).into_iter().filter(|file| is_text(file)).collect();
        for file in &texts {
            let content = std::fs::read(folder.path(file)).unwrap();
            folder.write(file, ["\u{feff}".as_bytes(), &content].concat());
        }
        assert!(texts.len() >= 7);
        let opened = folder.open().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(opened.fingerprint(), Folder::of(fixture).open().unwrap().fingerprint());
        let rendered =
            opened.chat_template().unwrap().unwrap().render(&Chat::new([Message::new("user", "Hi")])).unwrap();
        assert_eq!(opened.tokenizer().unwrap().encode(&rendered, false).unwrap(), [263]);
    }
}

#[test]
fn utf_16_is_refused_by_that_name() {
    for file in files(&complete("llama")).iter().filter(|file| is_text(file)) {
        let folder = complete("llama");
        let text = std::fs::read_to_string(folder.path(file)).unwrap();
        for mark in ["\u{feff}", ""] {
            for bytes in [u16::to_le_bytes, u16::to_be_bytes] {
                let encoded: Vec<u8> = format!("{mark}{text}").encode_utf16().flat_map(bytes).collect();
                let message = refusal_or_broken_template(folder.write(file, encoded), file);
                assert!(message.contains(&format!("{file}: UTF-16 (expected UTF-8: ")), "{message}");
            }
        }
    }
}

#[test]
fn an_ordinary_folder_has_no_notes() {
    for fixture in ["llama", "llama3_rope_sharded", "mistral", "qwen2", "qwen3"] {
        assert!(complete(fixture).open().unwrap().notes().is_empty());
    }
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pycode-4m");
    assert!(eesd::load::Checkpoint::open(&bundled).unwrap().notes().is_empty());
}

#[test]
fn notes_of_several_files_come_together() {
    let folder = complete("llama");
    folder.set("generation_config.json", json!({"top_k": -1, "num_beams": 4}));
    folder.set("tokenizer_config.json", json!({"add_bos_token": true, "bos_token": null}));
    let opened = folder.open().unwrap();
    let files: Vec<&str> = opened.notes().iter().filter_map(|note| note.split(": ").next()).collect();
    assert_eq!(files, ["generation_config.json", "generation_config.json", "tokenizer_config.json"]);
}
