//! A model's tokenizer in the words of GGUF: `gpt2`, byte-pair merges of words, or `llama`, SentencePiece's pieces.

use super::super::gguf;
use super::super::source::Source;
use super::super::{GenerationDefaults, Tokenizer, limits};
use super::ExportError;
use super::file::{Value, Values};
use crate::TokenId;
use serde_json::Value as Json;
use std::collections::HashMap;

const FILE: &str = "tokenizer.json";

/// Types of tokens, by their numbers.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The values that describe the tokenizer of a model with `size` tokens. What cannot be said and does no harm is noted.
///
/// # Errors
/// If GGUF has no words for it.
pub(super) fn values(
    source: &Source,
    tokenizer: Option<&Tokenizer>,
    generation: &GenerationDefaults,
    size: usize,
    notes: &mut Vec<String>,
) -> Result<Values, ExportError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let Some(tokenizer) = tokenizer else {
        return Ok(vec![(key("model"), Value::Text("none".into()))]);
    };
    let bytes = source.read_up_to(FILE, limits::TOKENIZER_BYTES)?.unwrap_or_default();
    // It has been read before: the tokenizer came of it.
    let file: Json = serde_json::from_slice(&bytes)?;
    let model = &file["model"];
    let said = |name: &str| model[name].as_str().is_some_and(|text| !text.is_empty());
    if model["type"] != "BPE" || said("continuing_subword_prefix") || said("end_of_word_suffix") {
        let kind = model["type"].as_str().unwrap_or("none");
        return Err(refused(format!("a model of type {kind}"), "BPE, without marks at the parts of words"));
    }
    let merges = merges(model)?;
    let pieces = model["byte_fallback"] == true;
    let unknown = model["unk_token"].as_str().filter(|_| pieces);
    let (tokens, kinds): (Vec<String>, Vec<i32>) =
        (0..size as TokenId).map(|id| token(tokenizer, id, pieces, unknown)).unzip();
    let mut values: Values = Vec::new();
    if pieces {
        values.push((key("model"), Value::Text("llama".into())));
        values.push((key("pre"), Value::Text("default".into())));
        values.push((key("add_space_prefix"), Value::Truth(space_prefix(&file)?)));
        values.push((key("scores"), Value::Numbers(scores(&tokens, &kinds, &merges))));
        let id = unknown.and_then(|unknown| tokenizer.id(unknown));
        values.extend(id.map(|id| (key("unknown_token_id"), Value::Whole(id))));
    } else {
        let expected =
            "one that splits texts as gpt-2, llama-bpe, qwen2, smollm or another one that GGUF has a name for";
        let rule = gguf::rule_of(&file).ok_or_else(|| refused("its normalizer and its pre_tokenizer", expected))?;
        values.push((key("model"), Value::Text("gpt2".into())));
        values.push((key("pre"), Value::Text(rule.into())));
        let text = |(left, right): &(&str, &str)| match left.contains(' ') || right.contains(' ') {
            true => Err(refused(format!("the merge of {left:?} and {right:?}"), "merges of texts without spaces")),
            false => Ok(format!("{left} {right}")),
        };
        values.push((key("merges"), Value::Texts(merges.iter().map(text).collect::<Result<_, _>>()?)));
    }
    values.push((key("tokens"), Value::Texts(tokens)));
    values.push((key("token_type"), Value::Wholes(kinds)));

    let begin = tokenizer.encode("", true)?;
    values.push((key("add_bos_token"), Value::Truth(!begin.is_empty())));
    let begin_token = begin.first().copied().or(generation.begin_token);
    values.extend(begin_token.map(|id| (key("bos_token_id"), Value::Whole(id))));
    let ends = ["eos_token_id", "eot_token_id", "eom_token_id"];
    for (name, &id) in ends.iter().zip(&generation.end_tokens) {
        values.push((key(name), Value::Whole(id)));
    }
    if generation.end_tokens.len() > ends.len() || begin.len() > 1 {
        let left: Vec<TokenId> =
            generation.end_tokens.iter().skip(ends.len()).chain(begin.iter().skip(1)).copied().collect();
        notes.push(format!("tokens {left:?}, which begin or end texts, have no key in GGUF"));
    }
    Ok(values)
}

fn refused(found: impl Into<String>, expected: &'static str) -> ExportError {
    ExportError::unsayable(format!("{FILE}: {}", found.into()), expected)
}

/// A token's text and type. An id that has none gets a text all the same, as the lists have no gaps.
fn token(tokenizer: &Tokenizer, id: TokenId, pieces: bool, unknown: Option<&str>) -> (String, i32) {
    let Some(token) = tokenizer.token(id) else { return (format!("[PAD{id}]"), UNUSED) };
    let is_byte = || {
        let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        digits.is_some_and(|digits| digits.len() == 2 && u8::from_str_radix(digits, 16).is_ok())
    };
    let kind = match () {
        () if unknown == Some(&token) => UNKNOWN,
        () if tokenizer.is_special(id) => CONTROL,
        () if tokenizer.is_added(id) => USER_DEFINED,
        () if pieces && is_byte() => BYTE,
        () => NORMAL,
    };
    (token, kind)
}

fn merges(model: &Json) -> Result<Vec<(&str, &str)>, ExportError> {
    let list = model["merges"].as_array().map_or(&[][..], Vec::as_slice);
    let parts = |merge| split(merge).ok_or_else(|| refused("a merge that is no pair", "pairs of texts"));
    list.iter().map(parts).collect()
}

/// `["a", "b"]`, or `"a b"`.
fn split(merge: &Json) -> Option<(&str, &str)> {
    match merge {
        Json::String(text) => text.split_once(' '),
        Json::Array(pair) => match &pair[..] {
            [Json::String(left), Json::String(right)] => Some((left, right)),
            _ => None,
        },
        _ => None,
    }
}

/// Whether texts of pieces begin with a space: the two ways of SentencePiece that llama.cpp knows.
fn space_prefix(file: &Json) -> Result<bool, ExportError> {
    let steps = match &file["normalizer"] {
        Json::Object(step) if step.get("type") == Some(&"Sequence".into()) => {
            step.get("normalizers").and_then(Json::as_array).map_or(&[][..], Vec::as_slice)
        }
        step => std::slice::from_ref(step),
    };
    let prepends = |step: &Json| step["type"] == "Prepend" && step["prepend"] == "▁";
    let replaces =
        |step: &Json| step["type"] == "Replace" && step["pattern"]["String"] == " " && step["content"] == "▁";
    match steps {
        [first, second] if prepends(first) && replaces(second) && file["pre_tokenizer"].is_null() => Ok(true),
        [only] if replaces(only) && file["pre_tokenizer"].is_null() => Ok(false),
        _ => Err(refused(
            "its normalizer and its pre_tokenizer",
            "SentencePiece's: a space before texts or none, ▁ for spaces",
        )),
    }
}

/// Scores that have pieces joined in the order of the merges.
fn scores(tokens: &[String], kinds: &[i32], merges: &[(&str, &str)]) -> Vec<f32> {
    let mut first: HashMap<String, usize> = HashMap::new();
    for (rank, (left, right)) in merges.iter().enumerate() {
        first.entry(format!("{left}{right}")).or_insert(rank);
    }
    let score = |(token, &kind): (&String, &i32)| match first.get(token) {
        Some(&rank) => -(rank as f32) - 1.0,
        // What no merge makes is never joined: below everything else.
        None if kind == NORMAL => -(merges.len() as f32) - 1.0,
        None => 0.0,
    };
    tokens.iter().zip(kinds).map(score).collect()
}
