//! tokenizer.json before `tokenizers` reads it: sizes that it would take at their word, and steps that make a text longer.

use super::{LoadError, limits};
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::path::Path;

/// The parts of the file whose sizes are looked at.
#[derive(Deserialize)]
struct Parts<'a> {
    #[serde(borrow)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow)]
    decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Option<&'a RawValue>,
}

/// What a model puts beside pieces of words.
#[derive(Deserialize)]
struct Model {
    r#type: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    max_input_chars_per_word: Option<u64>,
}

/// Refuses a tokenizer.json in which something is larger than any honest file has it; and how many times as long it makes
/// a text at most, but for Unicode's normal forms.
///
/// # Errors
/// [`LoadError::Limit`], or that it is no JSON of that kind.
pub(super) fn check(path: &Path, json: &[u8]) -> Result<usize, LoadError> {
    let damaged = |error: serde_json::Error| LoadError::tokenizer(path, error);
    let limit = |what: &str, found: usize, most: usize| match found > most {
        true => Err(LoadError::limit(path, what, found, most as u64)),
        false => Ok(()),
    };
    limit("values in the file", Sizes::of(json).values, limits::TOKENIZER_VALUES)?;
    let parts: Parts<'_> = serde_json::from_slice(json).map_err(damaged)?;
    let mut grown = 1_usize;
    for (name, part) in [
        ("normalizer", parts.normalizer),
        ("pre_tokenizer", parts.pre_tokenizer),
        ("post_processor", parts.post_processor),
        ("decoder", parts.decoder),
    ] {
        let Some(part) = part else { continue };
        limit(&format!("bytes of `{name}`"), part.get().len(), limits::TOKENIZER_PART_BYTES)?;
        let steps = serde_json::from_str(part.get()).map_err(damaged)?;
        match name {
            "normalizer" | "pre_tokenizer" => grown = grown.saturating_mul(growth(path, &steps)?),
            "post_processor" => limit("tokens that `post_processor` adds", added(&steps), limits::BEGIN_TOKENS)?,
            _ => {}
        }
    }
    limit("growth of a text by `normalizer` and `pre_tokenizer`", grown, limits::GROWTH)?;
    if let Some(model) = parts.model {
        let sizes = Sizes::of(model.get().as_bytes());
        limit("bytes of a token in `model`", sizes.longest, limits::TOKEN_BYTES)?;
        let model: Model = serde_json::from_str(model.get()).map_err(damaged)?;
        // Without a type it may be any.
        if !matches!(model.r#type.as_deref(), Some("BPE" | "WordPiece" | "WordLevel")) {
            limit("bytes of all tokens in a Unigram `model`", sizes.texts, limits::UNIGRAM_BYTES)?;
        }
        let bytes = |text: Option<String>| text.map_or(0, |text| text.len());
        let longest = model.max_input_chars_per_word.unwrap_or(0).try_into().unwrap_or(usize::MAX);
        limit("bytes of `continuing_subword_prefix`", bytes(model.continuing_subword_prefix), limits::AFFIX_BYTES)?;
        limit("bytes of `end_of_word_suffix`", bytes(model.end_of_word_suffix), limits::AFFIX_BYTES)?;
        limit("`max_input_chars_per_word`", longest, limits::WORD_CHARACTERS)?;
    }
    Ok(grown)
}

/// The sizes of a JSON text, told from its bytes alone: what reads it may need much more room for the same.
#[derive(Debug, PartialEq)]
struct Sizes {
    /// Values of any kind, counted by what separates them.
    values: usize,
    /// Bytes of the longest text, as it is written.
    longest: usize,
    /// Bytes of all texts.
    texts: usize,
}

impl Sizes {
    fn of(json: &[u8]) -> Self {
        let mut sizes = Self { values: 1, longest: 0, texts: 0 };
        let (mut start, mut escaped) = (None, false);
        for (at, byte) in json.iter().enumerate() {
            match (byte, start) {
                _ if escaped => escaped = false,
                (b'\\', Some(_)) => escaped = true,
                (b'"', Some(begun)) => {
                    sizes.longest = sizes.longest.max(at - begun - 1);
                    sizes.texts += at - begun - 1;
                    start = None;
                }
                (b'"', None) => start = Some(at),
                (b',' | b'[' | b'{', None) => sizes.values += 1,
                _ => {}
            }
        }
        sizes
    }
}

/// How many tokens a post-processor puts beside a text, at most.
fn added(step: &Value) -> usize {
    let items = |value: &Value| match value {
        Value::String(text) => text.split_whitespace().count(),
        value => value.as_array().map_or(0, Vec::len),
    };
    let steps = step["processors"].as_array().into_iter().flatten();
    let tokens = step["special_tokens"].as_object().into_iter().flat_map(|tokens| tokens.values());
    let longest = tokens.map(|token| items(&token["ids"])).max().unwrap_or(0).max(1);
    steps.map(added).fold(items(&step["single"]).saturating_mul(longest), usize::saturating_add)
}

/// How many times as long a normalizer or a pre-tokenizer makes a text at most, as far as its file decides that: what
/// Unicode's normal forms do, they do once and not more than elevenfold.
fn growth(path: &Path, step: &Value) -> Result<usize, LoadError> {
    let text = |key: &str| step[key].as_str().unwrap_or_default();
    Ok(match text("type") {
        "Sequence" => {
            let mut product = 1_usize;
            for step in ["normalizers", "pretokenizers"].iter().filter_map(|key| step[*key].as_array()).flatten() {
                product = product.saturating_mul(growth(path, step)?);
            }
            product
        }
        "Replace" => replacement(step["pattern"]["String"].as_str(), text("content")),
        "Prepend" => 1 + text("prepend").len(),
        "Precompiled" => 1 + longest_replacement(path, text("precompiled_charsmap"))?,
        // A byte becomes a character of two; and a word of one letter gets a space before it.
        "ByteLevel" if step["add_prefix_space"] == true => 4,
        "ByteLevel" => 2,
        // A space becomes one character, of up to four bytes, and each text gets one before it.
        "Metaspace" => 8,
        _ => 1,
    })
}

/// The growth of a text in which every occurrence of a pattern is replaced; no text: a regex, which may match nothing
/// between any two characters, as an empty pattern does.
pub(super) fn replacement(pattern: Option<&str>, content: &str) -> usize {
    match pattern.map_or(0, str::len) {
        0 => 1 + content.len(),
        bytes => content.len().div_ceil(bytes).max(1),
    }
}

/// Bytes of the longest text in a table of SentencePiece's: a length of four bytes, so many bytes of a trie, and texts
/// that end with a zero.
fn longest_replacement(path: &Path, table: &str) -> Result<usize, LoadError> {
    let damaged = || LoadError::tokenizer(path, "`precompiled_charsmap` is damaged");
    let bytes = base64::decode(table).map_err(|_| damaged())?;
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(damaged)?;
    let texts = rest.get(u32::from_le_bytes(*length) as usize..).ok_or_else(damaged)?;
    Ok(texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn steps_multiply() {
        let replace = |pattern: &str, content: &str| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
        let regex = json!({"type": "Replace", "pattern": {"Regex": "x"}, "content": "▁"});
        let trie = base64::encode([&4_u32.to_le_bytes()[..], &[0; 4], b"ab\0abcde\0"].concat());
        let twice = replace("a", "aa");
        let nested = json!({"type": "Sequence", "normalizers": [replace("a", "aaa")]});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false});
        for (step, factor) in [
            (replace(" ", "▁"), 3),
            (replace("abc", "x"), 1),
            (replace("", "ab"), 3),
            (regex, 4),
            (json!({"type": "Prepend", "prepend": "▁"}), 4),
            (json!({"type": "Precompiled", "precompiled_charsmap": trie}), 6),
            (json!({"type": "NFKC"}), 1),
            (json!({"type": "Sequence", "normalizers": [twice, nested]}), 6),
            (json!({"type": "Sequence", "pretokenizers": vec![bytes; 20]}), 1 << 20),
            (json!({"type": "Sequence", "normalizers": vec![replace("a", "aaaa"); 40]}), usize::MAX),
        ] {
            assert_eq!(growth(Path::new("x"), &step).unwrap(), factor, "{step}");
        }
        let huge = base64::encode(u32::MAX.to_le_bytes());
        assert!(growth(Path::new("x"), &json!({"type": "Precompiled", "precompiled_charsmap": huge})).is_err());
    }

    #[test]
    fn values_are_counted_outside_of_texts() {
        let json = br#"{"a": [1, 2, "x,[{\",,"], "b\\": {}}"#;
        assert_eq!(Sizes::of(json), Sizes { values: 1 + 3 + 3, longest: 8, texts: 1 + 8 + 3 });
    }

    #[test]
    fn tokens_of_a_template_multiply() {
        let piece = json!({"SpecialToken": {"id": "<s>", "type_id": 0}});
        let template = |pieces: Value| {
            json!({"type": "TemplateProcessing", "single": pieces,
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1, 2, 3], "tokens": ["<s>", "<s>", "<s>"]}}})
        };
        let ten = template(vec![piece; 10].into());
        assert_eq!(added(&ten), 30);
        assert_eq!(added(&template("[CLS] $A [SEP]".into())), 9);
        assert_eq!(added(&json!({"type": "Sequence", "processors": [ten.clone(), {"type": "ByteLevel"}, ten]})), 60);
    }
}
