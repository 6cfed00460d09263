//! Tokenizers with steps that multiply, regexes that try everything, and tables that say more than they hold.

use super::dice;
use crate::TOKENIZER;
use crate::dice::Dice;
use serde_json::{Value, json};

const TEXTS: [&str; 9] = ["", "a", " ", "▁", "é", "aa", "\u{fdfa}", "<|eos|>", "\0"];

const REGEXES: [&str; 20] = [
    "",
    "a",
    ".",
    " +",
    r"\s+(?!\S)|\s+",
    "(a+)+$",
    "(?:(?=a)a+)+b(?!x)",
    "(.*)*(?<=x)y",
    r"(\w+)+\1(?!a)",
    "(?=(.+)+b)",
    "(?:a{1000}){1000}",
    "(?:(?=a){1000}){1000}",
    r"(?i)\p{L}{5000}",
    "((((((((((a))))))))))",
    "(",
    "[",
    "a{99999999999}",
    r"\99",
    "(?<!a+)b",
    r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)",
];

/// A tokenizer.json.
pub fn tokenizer(number: usize) -> Vec<u8> {
    let mut dice = dice(3, number);
    match dice.roll(8) {
        0 => return dice.damage(TOKENIZER.as_bytes()),
        1 | 2 => return dice.twist(TOKENIZER.as_bytes()),
        _ => {}
    }
    let mut json: Value = serde_json::from_str(TOKENIZER).unwrap();
    for _ in 0..1 + dice.roll(3) {
        match dice.roll(6) {
            0 | 1 => json["normalizer"] = normalizer(&mut dice, 3),
            2 => json["pre_tokenizer"] = pre_tokenizer(&mut dice, 3),
            3 => json["decoder"] = decoder(&mut dice),
            4 => json["model"] = model(&mut dice),
            _ => others(&mut dice, &mut json),
        }
    }
    dice.write(&json)
}

/// A text of any length up to ten thousand bytes.
fn text(dice: &mut Dice) -> String {
    dice.one(&TEXTS).repeat([1, 1, 1, 2, 16, 100, 5000][dice.roll(7)])
}

fn pattern(dice: &mut Dice) -> Value {
    match dice.roll(2) {
        0 => json!({ "String": text(dice) }),
        _ => json!({ "Regex": dice.one(&REGEXES) }),
    }
}

fn sequence(dice: &mut Dice, key: &str, mut step: impl FnMut(&mut Dice) -> Value) -> Value {
    // Different ones, or one again and again.
    let steps: Vec<Value> = match dice.roll(2) {
        0 => (0..dice.roll(6)).map(|_| step(dice)).collect(),
        _ => {
            // Sequences of sequences of long texts would be too much for whoever writes them.
            let (step, times) = (step(dice), [2, 10, 100][dice.roll(3)]);
            let most = (1 << 20) / step.to_string().len();
            vec![step; times.min(most.max(1))]
        }
    };
    json!({ "type": "Sequence", key: steps })
}

fn normalizer(dice: &mut Dice, depth: usize) -> Value {
    match dice.roll(9) {
        0..=2 if depth > 0 => sequence(dice, "normalizers", |dice| normalizer(dice, depth - 1)),
        3 | 4 => json!({"type": "Replace", "pattern": pattern(dice), "content": text(dice)}),
        5 => json!({"type": "Prepend", "prepend": text(dice)}),
        6 => json!({"type": "Precompiled", "precompiled_charsmap": table(dice)}),
        7 => json!({"type": "Strip", "strip_left": dice.roll(2) == 0, "strip_right": dice.roll(2) == 0}),
        _ => {
            json!({ "type": dice.one(&["NFC", "NFD", "NFKC", "NFKD", "Nmt", "Lowercase", "StripAccents", "ByteLevel"]) })
        }
    }
}

/// A table of replacements: sound in its form, or not.
fn table(dice: &mut Dice) -> String {
    let length = [0_u32, 4, 1024, u32::MAX, 1 << 31][dice.roll(5)];
    let trie: Vec<u8> = match length {
        4 | 1024 => vec![0; length as usize],
        _ => Vec::new(),
    };
    let bytes = [&length.to_le_bytes()[..], &trie, text(dice).as_bytes(), b"\0"].concat();
    match dice.roll(4) {
        0 => text(dice),
        _ => base64::encode(bytes),
    }
}

fn pre_tokenizer(dice: &mut Dice, depth: usize) -> Value {
    let flag = dice.roll(2) == 0;
    match dice.roll(10) {
        0..=2 if depth > 0 => sequence(dice, "pretokenizers", |dice| pre_tokenizer(dice, depth - 1)),
        3 | 4 => json!({"type": "Split", "pattern": pattern(dice), "invert": flag,
            "behavior": dice.one(&["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"])}),
        5 => {
            json!({"type": "ByteLevel", "add_prefix_space": flag, "trim_offsets": true, "use_regex": dice.roll(2) == 0})
        }
        6 => json!({"type": "Metaspace", "replacement": dice.one(&["▁", " ", "a", "\0"]), "split": flag,
            "prepend_scheme": dice.one(&["first", "never", "always"])}),
        7 => json!({"type": "Digits", "individual_digits": flag}),
        8 => json!({"type": "Punctuation", "behavior": "Isolated"}),
        _ => json!({ "type": dice.one(&["BertPreTokenizer", "Whitespace", "WhitespaceSplit", "UnicodeScripts"]) }),
    }
}

fn decoder(dice: &mut Dice) -> Value {
    let step = |dice: &mut Dice| match dice.roll(6) {
        0 | 1 => json!({"type": "Replace", "pattern": pattern(dice), "content": text(dice)}),
        2 => json!({"type": "Strip", "content": dice.one(&TEXTS), "start": dice.number(), "stop": 0}),
        3 => json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}),
        _ => json!({ "type": dice.one(&["ByteFallback", "Fuse", "ByteLevel"]) }),
    };
    sequence(dice, "decoders", step)
}

fn model(dice: &mut Dice) -> Value {
    let mut vocabulary = json!({"<unk>": 0, "a": 1, "▁": 2, "<s>": 3});
    for id in 0..dice.roll(4) {
        vocabulary[text(dice)] = if dice.roll(4) == 0 { dice.number() } else { (4 + id).into() };
    }
    let affix = |dice: &mut Dice| if dice.roll(2) == 0 { Value::Null } else { text(dice).into() };
    match dice.roll(4) {
        0 => json!({"type": "WordPiece", "vocab": vocabulary, "unk_token": "<unk>",
            "continuing_subword_prefix": text(dice), "max_input_chars_per_word": dice.number()}),
        1 => json!({"type": "WordLevel", "vocab": vocabulary, "unk_token": "<unk>"}),
        2 => json!({"type": "Unigram", "unk_id": dice.number(), "byte_fallback": dice.roll(2) == 0,
            "vocab": [["<unk>", 0.0], [text(dice), dice.number()], ["▁", -1.0], [text(dice), -2.5]]}),
        _ => json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "continuing_subword_prefix": affix(dice), "end_of_word_suffix": affix(dice), "ignore_merges": false,
            "vocab": vocabulary, "merges": [[text(dice), text(dice)], ["a", "a"]]}),
    }
}

fn others(dice: &mut Dice, json: &mut Value) {
    match dice.roll(3) {
        0 => {
            let token = |id: usize, content: String, flag: bool| {
                json!({"id": id, "content": content, "special": flag,
                "single_word": flag, "lstrip": !flag, "rstrip": flag, "normalized": flag})
            };
            let count = [1, 3, 2000][dice.roll(3)];
            json["added_tokens"] = (0..count).map(|id| token(id, format!("{}{id}", text(dice)), id % 2 == 0)).collect();
        }
        1 => {
            let piece = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
            let mut pieces = vec![piece; [1, 10, 20_000][dice.roll(3)]];
            pieces.extend(vec![json!({"Sequence": {"id": "A", "type_id": 0}}); dice.roll(3)]);
            json["post_processor"]["single"] = pieces.into();
        }
        _ => {
            let ids = vec![dice.number(); [1, 5, 20_000][dice.roll(3)]];
            json["post_processor"]["special_tokens"]["<s>"]["ids"] = ids.into();
        }
    }
}
