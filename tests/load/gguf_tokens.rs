//! Tokenizers of GGUF files: words and merges, pieces and scores, special tokens.

use crate::gguf::{open, refusal};
use crate::gguf_file::{File, Value, letter};
use eesd::load::Tokenizer;
use std::sync::Arc;

fn tokenizer(file: &File) -> Arc<Tokenizer> {
    open(file).tokenizer().unwrap().clone()
}

#[test]
fn texts_are_split_by_the_rule_that_the_file_names() {
    let pieces = |rule: &str, text: &str| {
        let tokenizer = tokenizer(File::llama().set("tokenizer.ggml.pre", Value::text(rule)));
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        ids.iter().map(|&id| tokenizer.token(id).unwrap()).collect::<Vec<_>>().join("|")
    };
    // Merges join digits up to 1234, `##` and ` the`: where they do not, the rule has split.
    for (rule, expected) in [
        ("gpt-2", "1234|Ġthe|##"),
        ("smollm", "1|2|3|4|Ġthe|##"),
        ("starcoder", "1|2|3|4|Ġthe|##"),
        ("llama-bpe", "123|4|Ġthe|##"),
        ("qwen2", "1|2|3|4|Ġthe|##"),
        ("tekken", "1|2|3|4|Ġthe|##"),
        ("gpt-4o", "123|4|Ġthe|##"),
        ("deepseek-v3", "123|4|Ġthe|##"),
        ("deepseek-coder", "1|2|3|4|Ġthe|##"),
        ("deepseek-llm", "1234|Ġthe|##"),
        ("falcon", "123|4|Ġthe|##"),
        ("default", "123|4|Ġthe|##"),
    ] {
        assert_eq!(pieces(rule, "1234 the##"), expected, "{rule}");
    }
    // Composed first, by that rule alone: one letter of two bytes, or a letter and an accent of two.
    assert_eq!(pieces_of_decomposed("qwen2"), 2);
    assert_eq!(pieces_of_decomposed("llama-bpe"), 3);
}

fn pieces_of_decomposed(rule: &str) -> usize {
    let tokenizer = tokenizer(File::llama().set("tokenizer.ggml.pre", Value::text(rule)));
    tokenizer.encode("e\u{301}", false).unwrap().len()
}

#[test]
fn whole_words_that_are_tokens_need_no_merges() {
    let mut file = File::llama();
    let mut tokens: Vec<String> = ["<|bos|>", "<|eos|>"].map(String::from).into();
    tokens.extend((0..=255).map(|byte| letter(byte).to_string()));
    tokens.push("word".into());
    tokens.resize_with(267, String::new);
    file.set("tokenizer.ggml.tokens", Value::texts(&tokens)).set("tokenizer.ggml.merges", Value::texts(&[""; 0]));
    let word = |rule: &str, file: &mut File| {
        tokenizer(file.set("tokenizer.ggml.pre", Value::text(rule))).encode("word", false).unwrap()
    };
    assert_eq!(word("llama-bpe", &mut file), [258]);
    assert_eq!(word("gpt-2", &mut file).len(), 4);
}

#[test]
fn special_tokens_begin_and_end_texts() {
    let begun = |file: &File| open(file).tokenizer().unwrap().encode("d", true).unwrap();
    let mut file = File::llama();
    let d = begun(&file)[1];
    assert_eq!(begun(&file), [0, d]);
    assert_eq!(begun(file.set("tokenizer.ggml.add_bos_token", Value::truth(false))), [d]);
    assert_eq!(begun(file.remove("tokenizer.ggml.add_bos_token")), [d]);
    // This family's texts begin so.
    assert_eq!(begun(file.set("tokenizer.ggml.pre", Value::text("llama-bpe"))), [0, d]);
    let tokenizer = tokenizer(&file);
    assert_eq!(tokenizer.encode("<|eos|>d", false).unwrap(), [1, d]);
    assert!(tokenizer.is_special(1) && !tokenizer.is_special(d));

    file.set("tokenizer.ggml.eot_token_id", Value::u32(7)).set("tokenizer.ggml.eom_token_id", Value::u32(9));
    assert_eq!(open(&file).generation().end_tokens, [1, 7, 9]);
    // What some converters write where there is none.
    file.set("tokenizer.ggml.eom_token_id", Value::u32(u32::MAX));
    assert_eq!(open(&file).generation().end_tokens, [1, 7]);
    assert_eq!(open(File::llama().remove("tokenizer.ggml.model")).tokenizer().map(|_| ()), None);
}

#[test]
fn a_turn_ends_by_the_control_tokens_that_are_known_to_end_one() {
    let mut file = File::llama();
    let mut tokens: Vec<String> = (0..267).map(|id| format!("t{id}")).collect();
    for (id, token) in [(0, "<|bos|>"), (1, "<|eos|>"), (5, "<|eot_id|>"), (6, "<|im_end|>")] {
        tokens[id] = token.into();
    }
    let mut kinds = vec![1; 267];
    kinds[..6].fill(3);
    file.set("tokenizer.ggml.tokens", Value::texts(&tokens)).set("tokenizer.ggml.token_type", Value::i32s(&kinds));
    file.set("tokenizer.ggml.merges", Value::texts(&[""; 0]));
    // The other is no control token here: part of a text.
    assert_eq!(open(&file).generation().end_tokens, [1, 5]);
}

/// SentencePiece's way: the neighbours that make the best piece are joined first.
#[test]
fn pieces_are_joined_by_their_scores() {
    let mut tokens: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).into();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let pieces = ["▁", "a", "b", "c", "ab", "bc", "▁a", "<tool>"];
    tokens.extend(pieces.map(String::from));
    let id = |token: &str| tokens.iter().position(|other| other == token).unwrap() as u32;
    let kind = |(id, token): (usize, &String)| match id {
        0 => 2,
        1 | 2 => 3,
        _ if token == "<tool>" => 4,
        3..259 => 6,
        _ => 1,
    };
    let mut file = File::llama();
    let kinds: Vec<i32> = tokens.iter().enumerate().map(kind).collect();
    let mut scores = vec![0.0f32; tokens.len()];
    for (piece, score) in [("▁", -9.0), ("a", -9.0), ("b", -9.0), ("c", -9.0), ("ab", -2.0), ("bc", -1.0), ("▁a", -3.0)]
    {
        scores[id(piece) as usize] = score;
    }
    file.set("tokenizer.ggml.model", Value::text("llama")).set("tokenizer.ggml.tokens", Value::texts(&tokens));
    file.set("tokenizer.ggml.token_type", Value::i32s(&kinds)).set("tokenizer.ggml.scores", Value::f32s(&scores));
    file.remove("tokenizer.ggml.merges").remove("tokenizer.ggml.pre").remove("tokenizer.ggml.add_bos_token");
    file.remove("tokenizer.ggml.bos_token_id").remove("tokenizer.ggml.eos_token_id");
    let ids = |file: &File, text: &str| open(file).tokenizer().unwrap().encode(text, false).unwrap();
    assert_eq!(ids(&file, "abc"), [id("▁a"), id("bc")], "`bc` first, then `▁a`");
    assert_eq!(ids(&file, "é"), [id("▁"), id("<0xC3>"), id("<0xA9>")], "bytes of what is no piece");
    assert_eq!(
        ids(&file, "ab<tool>ab"),
        [id("▁"), id("ab"), id("<tool>"), id("▁"), id("ab")],
        "a space after each token"
    );
    let checkpoint = open(&file);
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), [1, id("▁a")], "such texts begin, unless the file says other");
    assert_eq!(tokenizer.decode(&tokenizer.encode("abc é a", false).unwrap()), "abc é a");
    assert_eq!((checkpoint.generation().begin_token, &*checkpoint.generation().end_tokens), (Some(1), &[2][..]));

    file.set("tokenizer.ggml.add_space_prefix", Value::truth(false));
    assert_eq!(ids(&file, "abc"), [id("a"), id("bc")]);
    file.set("tokenizer.ggml.scores", Value::f32s(&scores[1..]));
    assert_eq!(refusal(&file), "`tokenizer.ggml.scores` is a list of 266, expected a list of 267, one for each token");
    file.set("tokenizer.ggml.scores", Value::f32s(&[f32::NAN; 267]));
    assert_eq!(refusal(&file), "`tokenizer.ggml.scores[0]` is NaN, expected finite numbers");
}
