//! How texts are split into words before byte-pair merges, by the name that a GGUF file has for it (`tokenizer.ggml.pre`).
//!
//! The rules are those of the models' own tokenizer.json, where the name stands for one family of models, else llama.cpp's.

use serde_json::{Value, json};

/// A rule by its names.
pub(super) struct Rule {
    names: &'static [&'static str],
    steps: &'static [Step],
    /// Unicode's composed form first.
    composed: bool,
    /// A word that is a token is that token, whatever the merges say.
    pub whole_words: bool,
    /// Texts begin with the begin token where the file does not say.
    pub begin: bool,
}

/// A step of splitting; the bytes of the words become characters after all of them.
enum Step {
    /// Matches of a regex are words, and so is what lies between them.
    Regex(&'static str),
    /// Each digit is a word.
    Digits,
    /// Runs of punctuation are words.
    Punctuation,
    /// The regex of GPT-2.
    Gpt2,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
const CHINESE: &str = "[一-龥ࠀ-一가-\u{d7ff}]+";

/// Letters that have a case, as the model's authors listed them.
const CASED: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

const PLAIN: Rule = Rule { names: &[], steps: &[], composed: false, whole_words: false, begin: false };

const RULES: [Rule; 14] = [
    Rule {
        names: &["default"],
        steps: &[
            Step::Regex(r"[\p{P}\$\+<=>\^~\|]+"),
            Step::Regex(GPT2),
            Step::Regex(r"\p{N}+"),
            Step::Regex("[0-9][0-9][0-9]"),
        ],
        ..PLAIN
    },
    Rule {
        names: &["gpt-2", "phi-2", "mpt", "olmo", "jais", "exaone4", "gigachat", "a.x-4.0", "mellum", "trillion"],
        steps: &[Step::Gpt2],
        ..PLAIN
    },
    Rule {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        steps: &[Step::Digits, Step::Gpt2],
        ..PLAIN
    },
    Rule {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"],
        steps: &[Step::Regex(LLAMA3)],
        whole_words: true,
        begin: true,
        ..PLAIN
    },
    Rule { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], steps: &[Step::Regex(LLAMA3)], ..PLAIN },
    Rule { names: &["glm4"], steps: &[Step::Regex(LLAMA3)], whole_words: true, ..PLAIN },
    Rule { names: &["qwen2"], steps: &[Step::Regex(QWEN2)], composed: true, ..PLAIN },
    Rule {
        names: &["deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "grok-2"],
        steps: &[Step::Regex(QWEN2)],
        ..PLAIN
    },
    Rule { names: &["tekken"], steps: &[Step::Regex(TEKKEN)], whole_words: true, begin: true, ..PLAIN },
    Rule { names: &["gpt-4o", "llama4", "kanana2", "minimax-m2"], steps: &[Step::Regex(GPT4O)], ..PLAIN },
    Rule {
        names: &["deepseek-v3", "hunyuan-dense"],
        steps: &[Step::Regex(r"\p{N}{1,3}"), Step::Regex("[一-龥\u{3040}-ゟ゠-ヿ]+"), Step::Regex(DEEPSEEK3)],
        ..PLAIN
    },
    Rule {
        names: &["deepseek-llm"],
        steps: &[
            Step::Regex(r"[\r\n]"),
            Step::Regex(CASED),
            Step::Regex(r"\s?[!-/:-~！-／：-～‘-‟　-。]+"),
            Step::Regex(r"\s+$"),
            Step::Regex(CHINESE),
            Step::Regex(r"\p{N}+"),
        ],
        ..PLAIN
    },
    Rule {
        names: &["deepseek-coder"],
        steps: &[
            Step::Regex(r"[\r\n]"),
            Step::Regex(r"\s?\p{L}+"),
            Step::Regex(r"\s?\p{P}+"),
            Step::Regex(CHINESE),
            Step::Digits,
        ],
        ..PLAIN
    },
    Rule { names: &["falcon"], steps: &[Step::Punctuation, Step::Gpt2, Step::Regex("[0-9][0-9][0-9]")], ..PLAIN },
];

/// The name of the rule by which a tokenizer.json splits texts into words, where there is one.
pub(in super::super) fn rule_of(tokenizer: &Value) -> Option<&'static str> {
    let steps = flat(&tokenizer["pre_tokenizer"]);
    let whole_words = tokenizer["model"]["ignore_merges"] == true;
    let fits = |rule: &&Rule| {
        rule.whole_words == whole_words
            && rule.normalizer() == tokenizer["normalizer"]
            && flat(&rule.pre_tokenizer()) == steps
    };
    RULES.iter().find(fits)?.names.first().copied()
}

/// The steps of a pre-tokenizer, each in the one way that is left to say it: `ByteLevel` may split too, and some keys may
/// be left out.
fn flat(pre_tokenizer: &Value) -> Vec<Value> {
    let flag = |key: &str, default: bool| pre_tokenizer[key].as_bool().unwrap_or(default);
    match pre_tokenizer["type"].as_str() {
        Some("Sequence") => {
            let steps = pre_tokenizer["pretokenizers"].as_array().map_or(&[][..], Vec::as_slice);
            steps.iter().flat_map(flat).collect()
        }
        Some("ByteLevel") => {
            let bytes = json!(["ByteLevel", flag("add_prefix_space", true)]);
            let split = flag("use_regex", true).then(|| json!(["Split", {"Regex": GPT2}, "Isolated", false]));
            split.into_iter().chain([bytes]).collect()
        }
        Some("Split") => {
            vec![json!(["Split", pre_tokenizer["pattern"], pre_tokenizer["behavior"], flag("invert", false)])]
        }
        Some("Digits") => vec![json!(["Digits", flag("individual_digits", false)])],
        _ => vec![pre_tokenizer.clone()],
    }
}

impl Rule {
    /// The rule of a name.
    pub fn of(name: &str) -> Option<&'static Self> {
        RULES.iter().find(|rule| rule.names.contains(&name))
    }

    /// `normalizer` of tokenizer.json.
    pub fn normalizer(&self) -> Value {
        if self.composed { json!({"type": "NFC"}) } else { Value::Null }
    }

    /// `pre_tokenizer` of tokenizer.json.
    pub fn pre_tokenizer(&self) -> Value {
        let regex = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let step = |step: &Step| match step {
            Step::Regex(pattern) => regex(pattern),
            Step::Gpt2 => regex(GPT2),
            Step::Digits => json!({"type": "Digits", "individual_digits": true}),
            Step::Punctuation => json!({"type": "Punctuation", "behavior": "Contiguous"}),
        };
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let steps: Vec<Value> = self.steps.iter().map(step).chain([bytes]).collect();
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tokenizers_rule_is_known_by_its_steps() {
        let of = |pre_tokenizer: Value, normalizer: Value, whole_words: bool| {
            let model = json!({"ignore_merges": whole_words});
            rule_of(&json!({"pre_tokenizer": pre_tokenizer, "normalizer": normalizer, "model": model}))
        };
        for rule in &RULES {
            // Under the name of another one, where the two split alike: where texts begin has a key of its own.
            let name = of(rule.pre_tokenizer(), rule.normalizer(), rule.whole_words).unwrap();
            let same = Rule::of(name).unwrap();
            assert_eq!(same.pre_tokenizer(), rule.pre_tokenizer(), "{name}");
            assert_eq!((same.composed, same.whole_words), (rule.composed, rule.whole_words), "{name}");
        }
        let bytes = |prefix: bool| json!({"type": "ByteLevel", "add_prefix_space": prefix});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let sequence = |steps: &[Value]| json!({"type": "Sequence", "pretokenizers": steps});
        assert_eq!(of(bytes(false), Value::Null, false), Some("gpt-2"));
        assert_eq!(of(sequence(&[digits.clone(), bytes(false)]), Value::Null, false), Some("smollm"));
        for (steps, normalizer, whole_words) in [
            (bytes(true), Value::Null, false),
            (bytes(false), json!({"type": "NFKC"}), false),
            (bytes(false), Value::Null, true),
            (sequence(&[bytes(false), digits]), Value::Null, false),
            (json!({"type": "Whitespace"}), Value::Null, false),
            (Value::Null, Value::Null, false),
        ] {
            assert_eq!(of(steps.clone(), normalizer, whole_words), None, "{steps}");
        }
    }
}
