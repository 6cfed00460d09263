//! Models written as GGUF files: their tokenizers, and an end before the end.

use crate::folder::Folder;
use crate::tokenizer::sentencepiece;
use eesd::load::Checkpoint;
use eesd::load::export::{ExportError, quantise};
use eesd::model::Encoder;
use serde_json::json;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;

fn written(folder: &Folder) -> Checkpoint {
    let path = folder.path("out.gguf");
    let mut told = Vec::new();
    let done = quantise(&folder.open().unwrap(), &path, Encoder::Q8_0, NonZeroUsize::MIN, &mut |done, all| {
        told.push((done, all));
        ControlFlow::Continue(())
    });
    assert_eq!(done.unwrap().bytes, std::fs::metadata(&path).unwrap().len());
    let all = told.last().unwrap().1;
    assert_eq!(told, (0..=all).map(|done| (done, all)).collect::<Vec<_>>());
    Checkpoint::open(&path).unwrap()
}

#[test]
fn pieces_are_joined_alike() {
    for prefix in [true, false] {
        let mut tokenizer = sentencepiece();
        if !prefix {
            tokenizer["normalizer"]["normalizers"].as_array_mut().unwrap().remove(0);
            tokenizer["decoder"]["decoders"].as_array_mut().unwrap().pop();
        }
        let folder = Folder::of("llama");
        folder.write("tokenizer.json", tokenizer.to_string());
        folder.write("tokenizer_config.json", json!({"add_bos_token": true, "bos_token": "<s>"}).to_string());
        let original = folder.open().unwrap();
        let written = written(&folder);
        assert_eq!(written.notes(), [""; 0]);
        let (ours, theirs) = (original.tokenizer().unwrap(), written.tokenizer().unwrap());
        for text in ["Hi", "Hi Hi", " oHi  Hi", "é日😀", "<s>Hi</s>", "", "\n  HHii"] {
            for begin in [true, false] {
                let tokens = ours.encode(text, begin).unwrap();
                assert_eq!(theirs.encode(text, begin).unwrap(), tokens, "{text:?}, prefix {prefix}");
                assert_eq!(theirs.decode(&tokens), ours.decode(&tokens), "{text:?}, prefix {prefix}");
            }
        }
        for id in 0..3 {
            assert_eq!((theirs.token(id), theirs.is_special(id)), (ours.token(id), true));
        }
    }
}

#[test]
fn whoever_stops_it_finds_nothing_written() {
    let folder = Folder::of("llama");
    let before = std::fs::read_dir(folder.path("")).unwrap().count();
    let path = folder.path("out.gguf");
    let stopped = quantise(&folder.open().unwrap(), &path, Encoder::Q4_0, NonZeroUsize::MIN, &mut |done, _| {
        if done == 5 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(ExportError::Interrupted)), "{stopped:?}");
    assert_eq!(std::fs::read_dir(folder.path("")).unwrap().count(), before);
}
