//! What is larger than any honest file has it, and what would grow.

use crate::folder::Folder;
use crate::tokenizer::sentencepiece;
use eesd::load::{Checkpoint, JsonLines, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

fn folder(tokenizer: &Value) -> Folder {
    let folder = Folder::of("llama");
    folder.write("tokenizer.json", tokenizer.to_string());
    folder
}

fn with(part: &str, value: Value) -> Value {
    let mut tokenizer = sentencepiece();
    tokenizer[part] = value;
    tokenizer
}

fn replace(pattern: &str, content: &str) -> Value {
    json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
}

fn open(tokenizer: &Value) -> Arc<Tokenizer> {
    folder(tokenizer).open().unwrap().tokenizer().unwrap().clone()
}

fn bundled() -> Arc<Tokenizer> {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pycode-4m"))
        .unwrap()
        .tokenizer()
        .unwrap()
        .clone()
}

#[test]
fn steps_that_together_make_a_text_too_long_are_refused() {
    let hundredfold = replace("a", &"a".repeat(100));
    let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "normalizers": steps});
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let text = "growth of a text by `normalizer` and `pre_tokenizer`";
    for (part, value, expected) in [
        ("normalizer", sequence(vec![hundredfold.clone(); 6]), format!("{text}: 1000000000000 (at most 1024)")),
        ("normalizer", sequence(vec![sequence(vec![replace("a", "aaaa"); 3]); 2]), format!("{text}: 4096 (")),
        ("normalizer", json!({"type": "Prepend", "prepend": "a".repeat(2000)}), format!("{text}: 2001 (")),
        (
            "normalizer",
            json!({"type": "Replace", "pattern": {"Regex": "a?"}, "content": "a".repeat(2000)}),
            format!("{text}: 2001 ("),
        ),
        ("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": vec![bytes; 9]}), format!("{text}: ")),
        (
            "decoder",
            json!({"type": "Sequence", "decoders": vec![hundredfold; 2]}),
            "growth of a token by `decoder`: 10000 (at most 1024)".into(),
        ),
    ] {
        let message = folder(&with(part, value)).refusal();
        assert!(message.contains("tokenizer.json: ") && message.contains(&expected), "{message}");
    }
    // As much as SentencePiece's own: a space of three bytes, and one before the text.
    assert_eq!(open(&sentencepiece()).encode("Hi", true).unwrap(), [1, 263]);
}

#[test]
fn sizes_that_tokenizers_would_take_at_their_word_are_refused() {
    let table = |bytes: &[u8]| json!({"type": "Precompiled", "precompiled_charsmap": base64::encode(bytes)});
    let mut long = sentencepiece();
    long["model"]["vocab"]["x".repeat(5000)] = json!(300);
    let letters: Vec<Value> = (0..3000).map(|n| json!([format!("{n}{}", "x".repeat(3000)), 0.0])).collect();
    let unigram = with("model", json!({"type": "Unigram", "unk_id": 0, "vocab": letters}));
    let mut suffixed = sentencepiece();
    suffixed["model"]["end_of_word_suffix"] = "x".repeat(100).into();
    let added = |content: String| {
        json!([{"id": 600, "content": content, "special": true, "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false}])
    };
    let begin = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
    for (tokenizer, expected) in [
        (with("normalizer", table(&u32::MAX.to_le_bytes())), "`precompiled_charsmap` is damaged"),
        (with("normalizer", table(b"ab")), "`precompiled_charsmap` is damaged"),
        (with("normalizer", table(&[&[0; 4][..], &[b'a'; 2000]].concat())), "`pre_tokenizer`: 2001 (at most 1024)"),
        (with("decoder", json!({"type": "Fuse", "x": "x".repeat(5 << 20)})), "bytes of `decoder`: 5242"),
        (long, "bytes of a token in `model`: 5000 (at most 4096)"),
        (unigram, "bytes of all tokens in a Unigram `model`: 90"),
        (suffixed, "bytes of `end_of_word_suffix`: 100 (at most 64)"),
        (
            with(
                "post_processor",
                json!({"type": "TemplateProcessing", "single": vec![begin; 5000], "pair": [], "special_tokens": {}}),
            ),
            "tokens that `post_processor` adds: 5000 (at most 4096)",
        ),
        (with("added_tokens", added("x".repeat(600))), "…\": 600 (at most 512)"),
        (with("post_processor", json!(vec![0; 8_000_001])), "values in the file: 8000"),
    ] {
        let message = folder(&tokenizer).refusal();
        assert!(message.contains("tokenizer.json: ") && message.contains(expected), "{message}");
    }
}

#[test]
fn files_larger_than_any_honest_one_are_not_read() {
    for (file, most) in [("config.json", 16 << 20), ("tokenizer.json", 64 << 20), ("tokenizer_config.json", 16 << 20)] {
        let folder = folder(&sentencepiece());
        folder.write(file, "");
        // No disk holds it: the file is all hole.
        std::fs::File::options().write(true).open(folder.path(file)).unwrap().set_len(1 << 40).unwrap();
        let message = folder.refusal();
        assert!(message.ends_with(&format!("{file}: bytes: 1099511627776 (at most {most})")), "{message}");
    }
}

#[test]
fn a_model_is_not_spread_over_more_files_than_there_are_for() {
    let folder = Folder::of("llama3_rope_sharded");
    let map: serde_json::Map<String, Value> = (0..5000).map(|n| (format!("t{n}"), json!(format!("f{n}")))).collect();
    folder.write("model.safetensors.index.json", json!({ "weight_map": map }).to_string());
    let message = folder.refusal();
    assert!(message.ends_with("model.safetensors.index.json: files in `weight_map`: 5000 (at most 4096)"), "{message}");
}

#[test]
fn a_line_without_an_end_is_not_read_to_it() {
    let mut lines = JsonLines::new(BufReader::new(b"{}\n".chain(std::io::repeat(b'a'))));
    assert_eq!(lines.next_line().unwrap(), Some((1, &b"{}"[..])));
    let error = lines.next_line().unwrap_err().to_string();
    assert_eq!(error, "line 2 has more than 67108864 bytes");
}

/// `tokenizers` takes a regex's error for the end of the text.
#[test]
fn a_regex_that_gives_up_is_an_error() {
    let split =
        |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
    let normalizer = json!({"type": "Replace", "pattern": {"Regex": "(?:(?=a)a+)+b(?!x)"}, "content": "c"});
    let catastrophic = "a".repeat(40);
    for (tokenizer, text) in [
        (bundled(), " ".repeat(1_200_000)),
        (bundled(), format!("x\n{}", "\t".repeat(1_200_000))),
        (open(&with("pre_tokenizer", split("(?:(?=a)a+)+b(?!x)"))), catastrophic.clone()),
        (
            open(&with(
                "pre_tokenizer",
                json!({"type": "Sequence", "pretokenizers": [split("x"), split("(?:(?=a)a+)+b(?!x)")]}),
            )),
            format!("x{catastrophic}"),
        ),
        (open(&with("normalizer", normalizer.clone())), catastrophic),
    ] {
        let error = tokenizer.encode(&text, false).unwrap_err().to_string();
        assert!(error.contains("tokenizer.json: a regex gives up on a text of "), "{error}");
    }
    assert!(bundled().encode(&" ".repeat(300_000), false).is_ok());
    assert!(open(&with("normalizer", normalizer)).encode("aab", false).is_ok());
}

#[test]
fn a_text_that_a_normalizer_makes_too_long_is_refused_before_it_is() {
    let tokenizer = open(&with("normalizer", replace("a", &"b".repeat(1000))));
    let error = tokenizer.encode(&"a".repeat(40_000), false).unwrap_err().to_string();
    assert!(error.ends_with("bytes of a normalized text: 40000000 (at most 33554432)"), "{error}");
    // As long, but nothing of it grows.
    assert!(tokenizer.encode(&"c".repeat(40_000), false).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Step by step there are the same tokens as at once.
    #[test]
    fn texts_have_the_tokens_that_tokenizers_gives_them(text in "([ -~é你😀\n\t]|<s>|</s>|<\\|eos\\|>|  ){0,60}") {
        let file = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m/tokenizer.json")).to_vec();
        let regex = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\w+|[^\w\s]+|\s+(?!\S)"}, "behavior": "Isolated", "invert": false},
            {"type": "Digits", "individual_digits": true}]});
        let pieces = sentencepiece();
        let split = with("pre_tokenizer", regex);
        for (tokenizer, json) in [
            (bundled(), file),
            (open(&pieces), pieces.to_string().into_bytes()),
            (open(&split), split.to_string().into_bytes()),
        ] {
            let theirs = tokenizers::Tokenizer::from_bytes(json).unwrap();
            let theirs = theirs.encode_fast(text.as_str(), false).unwrap().get_ids().to_vec();
            prop_assert_eq!(tokenizer.encode(&text, false).unwrap(), theirs);
        }
    }
}
