//! Text to tokens, and tokens to text one at a time.

use crate::folder::Folder;
use eesd::load::{Checkpoint, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::Arc;

/// A small tokenizer as Llama 2 has it: `▁` for spaces, a token for every byte, `<s>` in front.
pub fn sentencepiece() -> Value {
    let pieces = ["<unk>", "<s>", "</s>"].map(String::from).into_iter();
    let bytes = (0..256).map(|byte| format!("<0x{byte:02X}>"));
    let words = ["▁", "H", "i", "▁H", "▁Hi", "▁▁", "o", "é"].map(String::from);
    let vocab: serde_json::Map<String, Value> =
        pieces.chain(bytes).chain(words).enumerate().map(|(id, piece)| (piece, json!(id))).collect();
    let special = |(id, content): (usize, &str)| {
        json!({"id": id, "content": content, "special": true, "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false})
    };
    let specials: Vec<Value> = ["<unk>", "<s>", "</s>"].into_iter().enumerate().map(special).collect();
    json!({
        "version": "1.0",
        "added_tokens": specials,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        ]},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
            "merges": ["▁ H", "▁H i", "▁ ▁"]},
    })
}

fn open(tokenizer: &Value, config: Value) -> Arc<Tokenizer> {
    let folder = Folder::of("llama");
    folder.write("tokenizer.json", tokenizer.to_string()).write("tokenizer_config.json", config.to_string());
    folder.open().unwrap().tokenizer().unwrap().clone()
}

fn refusal(tokenizer: &Value, config: Value) -> String {
    let folder = Folder::of("llama");
    folder.write("tokenizer.json", tokenizer.to_string()).write("tokenizer_config.json", config.to_string()).refusal()
}

/// The tokenizer of the model that comes with this crate.
fn byte_level() -> Arc<Tokenizer> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m");
    Checkpoint::open(std::path::Path::new(folder)).unwrap().tokenizer().unwrap().clone()
}

/// The pieces of a stream, the unfinished rest last.
fn pieces(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream();
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
    pieces.push(stream.finish());
    pieces
}

#[test]
fn the_begin_token_comes_once() {
    let tokenizer = byte_level();
    let plain = tokenizer.encode("def f(x):", false).unwrap();
    let begun = tokenizer.encode("def f(x):", true).unwrap();
    assert_eq!((begun[0], &begun[1..]), (0, plain.as_slice()));
    assert!(!plain.contains(&0));
    assert_eq!(tokenizer.encode("<|bos|>def f(x):", true).unwrap(), begun, "not a second one");
    assert_eq!(tokenizer.encode("<|bos|>def f(x):", false).unwrap(), begun, "special tokens are recognised");
    assert_eq!(tokenizer.encode("", true).unwrap(), [0]);
    assert_eq!(tokenizer.decode(&begun), "def f(x):");
    assert!(tokenizer.is_special(0) && !tokenizer.is_special(plain[0]));
    assert_eq!(tokenizer.id(&tokenizer.token(plain[0]).unwrap()), Some(plain[0]));
}

#[test]
fn who_decides_on_the_begin_token() {
    let hi = [1, 263];
    let template = sentencepiece();
    assert_eq!(open(&template, json!({})).encode("Hi", true).unwrap(), hi, "the post-processor");
    assert_eq!(open(&template, json!({"add_bos_token": false})).encode("Hi", true).unwrap(), [263]);
    let mut none = template.clone();
    none["post_processor"] = Value::Null;
    assert_eq!(open(&none, json!({})).encode("Hi", true).unwrap(), [263]);
    assert_eq!(open(&none, json!({"add_bos_token": true, "bos_token": "<s>"})).encode("Hi", true).unwrap(), hi);
    assert_eq!(open(&none, json!({"add_bos_token": true})).encode("Hi", true).unwrap(), hi, "bos_token_id is 1");
}

#[test]
fn without_a_begin_token_adding_it_is_switched_off() {
    let mut tokenizer = sentencepiece();
    tokenizer["post_processor"] = Value::Null;
    let switched_off =
        "tokenizer_config.json: `add_bos_token` is true, but no file names a begin token: texts get none";
    let opened = |config: Value, begin: Option<u32>| {
        let folder = Folder::of("llama");
        folder.write("tokenizer.json", tokenizer.to_string()).write("tokenizer_config.json", config.to_string());
        folder.remove_key("config.json", "bos_token_id");
        folder.write("generation_config.json", json!({ "bos_token_id": begin }).to_string()).open().unwrap()
    };
    // Written down as null, it is none, whatever the generation configuration says.
    for (config, begin) in [
        (json!({"add_bos_token": true}), None),
        (json!({"add_bos_token": true, "bos_token": null}), None),
        (json!({"add_bos_token": true, "bos_token": null}), Some(1)),
        (json!({"add_bos_token": true, "bos_token": "<never heard of>"}), None),
    ] {
        let checkpoint = opened(config.clone(), begin);
        assert_eq!(checkpoint.tokenizer().unwrap().encode("Hi", true).unwrap(), [263], "{config}");
        assert!(checkpoint.notes().iter().any(|note| note == switched_off), "{config}: {:?}", checkpoint.notes());
    }
    let named = opened(json!({"add_bos_token": true}), Some(1));
    assert_eq!(named.tokenizer().unwrap().encode("Hi", true).unwrap(), [1, 263]);
    assert!(named.notes().is_empty(), "{:?}", named.notes());
}

#[test]
fn a_begin_token_may_stand_in_the_map_of_special_tokens_alone() {
    let mut tokenizer = sentencepiece();
    tokenizer["post_processor"] = Value::Null;
    let folder = Folder::of("llama");
    folder.write("tokenizer.json", tokenizer.to_string()).write("tokenizer_config.json", r#"{"add_bos_token": true}"#);
    folder.write("special_tokens_map.json", r#"{"bos_token": {"content": "</s>"}}"#);
    assert_eq!(folder.open().unwrap().tokenizer().unwrap().encode("Hi", true).unwrap(), [2, 263]);
}

/// Folders in which a token was added to the tokenizer and the model was not made larger are common.
#[test]
fn tokens_past_the_vocabulary_are_refused_only_where_a_text_has_them() {
    let padding = json!({"id": 512, "content": "[PAD]", "special": true, "normalized": false, "single_word": false,
        "lstrip": false, "rstrip": false});
    let mut added = sentencepiece();
    added["added_tokens"].as_array_mut().unwrap().push(padding);
    let mut base = sentencepiece();
    base["model"]["vocab"]["z"] = json!(512);
    base["model"]["vocab"]["zz"] = json!(70_000);
    for (tokenizer, text, token, others) in [(added, "[PAD]", "[PAD]", ""), (base, "z", "z", ", and so have 1 more")] {
        let folder = Folder::of("llama");
        let checkpoint = folder.write("tokenizer.json", tokenizer.to_string()).open().unwrap();
        let fault = format!("tokenizer.json: token {token:?} has id 512, but the model's vocab_size is 512");
        assert_eq!(checkpoint.notes(), [format!("{fault}{others}: texts with such a token are refused")]);
        let opened = checkpoint.tokenizer().unwrap();
        assert_eq!(opened.encode("Hi", true).unwrap(), [1, 263]);
        for begin in [false, true] {
            let error = opened.encode(&format!("Hi {text}"), begin).unwrap_err().to_string();
            assert!(error.ends_with(&fault), "{error}");
        }
    }
}

#[test]
fn a_begin_token_past_the_vocabulary_is_refused_where_it_is_used() {
    let mut tokenizer = sentencepiece();
    tokenizer["post_processor"]["special_tokens"]["<s>"]["ids"] = json!([512]);
    let opened = open(&tokenizer, json!({}));
    assert_eq!(opened.encode("Hi", false).unwrap(), [263]);
    assert!(opened.encode("Hi", true).unwrap_err().to_string().contains("has id 512, but the model's vocab_size"));
}

#[test]
fn tokenizers_that_do_not_fit_are_refused() {
    let mut decoder = sentencepiece();
    decoder["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    let message = refusal(&decoder, json!({}));
    assert!(
        message.contains("tokenizer.json: decoder `WordPiece`") && message.contains("supported: ByteLevel"),
        "{message}"
    );
    assert!(refusal(&json!({"model": 3}), json!({})).contains("tokenizer.json: "));
    assert!(refusal(&sentencepiece(), json!({"add_bos_token": "yes"})).contains("`add_bos_token` is \"yes\""));
}

/// `tokenizers` panics on these, and a panic speaks on standard error even where it is caught.
#[test]
fn a_prefix_of_merges_and_a_decoder_that_is_no_json_never_reach_tokenizers() {
    let mut prefixed = sentencepiece();
    prefixed["model"]["continuing_subword_prefix"] = json!("##");
    let message = refusal(&prefixed, json!({}));
    assert!(message.contains("continuing_subword_prefix \"##\""), "{message}");

    let folder = Folder::of("llama");
    let message = folder.write("tokenizer.json", r#"{"decoder": {"type": "\ud800"}}"#).refusal();
    assert!(message.contains("tokenizer.json") && message.contains("column"), "{message}");
}

#[test]
fn prompts_are_never_cut_or_padded() {
    let mut tokenizer = sentencepiece();
    tokenizer["truncation"] = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    tokenizer["padding"] = json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    assert_eq!(open(&tokenizer, json!({})).encode("Hi Hi Hi Hi", true).unwrap(), [1, 263, 263, 263, 263]);
}

#[test]
fn a_sentencepiece_text_comes_in_whole_characters() {
    let tokenizer = open(&sentencepiece(), json!({}));
    let text = "Hi  é 你 Hi😀";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(tokenizer.decode(&ids), text);
    assert_eq!(pieces(&tokenizer, &ids).concat(), text);
    let nothing = ids.iter().filter(|&&id| (3..259).contains(&id)).count();
    assert_eq!(nothing, 3 + 4, "bytes of 你 and 😀");

    assert_eq!(tokenizer.decode(&[263, 263]), "Hi Hi", "the first space belongs to no text");
    let mut continuing = tokenizer.stream_continuing();
    assert_eq!(continuing.push(263) + &continuing.push(263), " Hi Hi");
    assert_eq!(tokenizer.decode(&[3 + 0xE4, 3 + 0xBD, 265]), "\u{FFFD}o");
}

#[test]
fn metaspace_and_bare_words() {
    let mut metaspace = sentencepiece();
    metaspace["decoder"] = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    assert_eq!(open(&metaspace, json!({})).decode(&[1, 263, 264, 263]), "Hi   Hi");
    metaspace["decoder"]["prepend_scheme"] = json!("never");
    assert_eq!(open(&metaspace, json!({})).decode(&[1, 263, 263]), " Hi Hi");
    metaspace["decoder"] = Value::Null;
    assert_eq!(open(&metaspace, json!({})).decode(&[1, 260, 261]), "H i");
}

/// `tokenizers`' own decoding of the same file.
fn reference(bytes: &[u8], ids: &[u32]) -> String {
    tokenizers::Tokenizer::from_bytes(bytes).unwrap().decode(ids, true).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any tokens at all, broken characters included.
    #[test]
    fn byte_level_pieces_add_up(ids in prop::collection::vec(prop_oneof![0u32..300, 0u32..4200], 0..80)) {
        let tokenizer = byte_level();
        let pieces = pieces(&tokenizer, &ids);
        let whole = tokenizer.decode(&ids);
        prop_assert_eq!(pieces.concat(), whole.clone());
        let file = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m/tokenizer.json"));
        prop_assert_eq!(whole, reference(file, &ids));
    }

    /// Any text: what was encoded comes back, and as `tokenizers` decodes it.
    #[test]
    fn texts_come_back(text in "[ -~é你😀\n\t]{0,40}") {
        let tokenizer = byte_level();
        let ids = tokenizer.encode(&text, true).unwrap();
        prop_assert_eq!(pieces(&tokenizer, &ids).concat(), text.clone());

        let json = sentencepiece();
        let tokenizer = open(&json, json!({}));
        let ids = tokenizer.encode(&text, true).unwrap();
        prop_assert_eq!(pieces(&tokenizer, &ids).concat(), reference(json.to_string().as_bytes(), &ids));
    }
}
