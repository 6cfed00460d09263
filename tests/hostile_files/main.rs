//! Damaged and hostile model files: thousands of them, each opened and used. Every one gives a model
//! or an error that names the file; none a panic, and none makes the loader take memory that its files do not justify.

#[cfg(target_os = "linux")]
mod children;
mod dice;
mod gguf;
#[path = "../common/gguf_file.rs"]
mod gguf_file;
#[cfg(target_os = "linux")]
mod grammar;
mod memory;
mod parts;
mod victim;

use dice::{Dice, json_variants, safetensors_variants};
use eesd::load::LoadError;
use parts::part_variants;
use serde_json::Value;
use std::sync::Mutex;
use victim::Victim;

/// One test at a time, so that the peak is its own.
static ALONE: Mutex<()> = Mutex::new(());

const TOKENIZER_CONFIG: &str = r#"{"add_bos_token": false, "bos_token": {"content": "<s>"}, "eos_token": "</s>",
    "chat_template": [{"name": "default", "template": "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"}]}"#;

const LLAMA: &str = "tests/fixtures/hf/llama";
const SHARDED: &str = "tests/fixtures/hf/llama3_rope_sharded";
const BUNDLED: &str = "models/pycode-4m";
const QUANTISED: &str = "tests/fixtures/hf-quantised";

#[test]
fn configurations() {
    let _alone = ALONE.lock();
    let mut tried = 0;
    for (model, file, count, errors) in [
        (LLAMA, "config.json", 250, 30),
        (BUNDLED, "config.json", 50, 30),
        (LLAMA, "generation_config.json", 100, 20),
        (LLAMA, "tokenizer_config.json", 150, 20),
        (SHARDED, "model.safetensors.index.json", 150, 30),
    ] {
        let written = [("tokenizer_config.json", TOKENIZER_CONFIG)];
        let victim = Victim::new(model, if file == "tokenizer_config.json" { &written } else { &[] }, file);
        let variants = json_variants(&mut Dice(0x9E37_79B9_7F4A_7C15), &victim.original, count);
        tried += victim.attack(variants, errors);
    }
    assert!(tried >= 1400, "{tried}");
}

#[test]
fn weights_and_exit_blocks() {
    let _alone = ALONE.lock();
    let mut tried = 0;
    for (model, file, count) in [
        (LLAMA, "model.safetensors", 400),
        (SHARDED, "model-00002-of-00005.safetensors", 300),
        (BUNDLED, "exit-2.safetensors", 300),
    ] {
        let victim = Victim::new(model, &[], file);
        tried += victim.attack(safetensors_variants(Dice(0xD1B5_4A32_D192_ED03), &victim.original, count), 70);
    }
    assert_eq!(tried, 1000);
}

/// Every quantised fixture: its configuration twisted, its file damaged, and its tensors exchanged in a file that is whole.
#[test]
fn quantised_folders() {
    let _alone = ALONE.lock();
    let mut tried = 0;
    let mut fixtures: Vec<_> =
        std::fs::read_dir(QUANTISED).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    fixtures.sort();
    let share = mutations(4000) / fixtures.len() / 5;
    for (number, fixture) in fixtures.iter().enumerate() {
        let model = format!("{QUANTISED}/{fixture}");
        let dice = |salt: u64| Dice(0xA076_1D64_78BD_642F ^ (number as u64 + 1) << 8 ^ salt);
        let config = Victim::new(&model, &[], "config.json");
        tried += config.attack(announcements(&mut dice(1), &config.original, 2 * share), 20);
        let file = Victim::new(&model, &[], "model.safetensors");
        tried += file.attack(safetensors_variants(dice(2), &file.original, share), 70);
        // Whatever is wrong with them is wrong with a tensor.
        let names_it =
            |error: &LoadError| matches!(error, LoadError::Tensor { .. } | LoadError::UnexpectedTensor { .. });
        tried += file.attack_with(part_variants(dice(3), &file.original, 2 * share), 35, names_it);
    }
    assert_eq!(tried, 5 * share * fixtures.len());
}

/// A configuration with one thing changed in what it says about quantisation.
fn announcements(dice: &mut Dice, original: &[u8], count: usize) -> Vec<Vec<u8>> {
    let config: Value = serde_json::from_slice(original).unwrap();
    let announced = config["quantization_config"].to_string().into_bytes();
    let with = |announced: Vec<u8>| {
        // As text: what is twisted may not be a `Value`.
        let mut rest = config.clone();
        rest["quantization_config"] = "@here@".into();
        rest.to_string().replace("\"@here@\"", &String::from_utf8(announced).unwrap()).into_bytes()
    };
    (0..count).map(|_| with(dice.twist(&announced))).collect()
}

#[test]
fn tokenizers() {
    let _alone = ALONE.lock();
    let victim = Victim::new(BUNDLED, &[], "tokenizer.json");
    let mut dice = Dice(0x2545_F491_4F6C_DD1D);
    // The vocabulary and the merges are most of the file: twist the rest by itself too.
    let mut json: Value = serde_json::from_slice(&victim.original).unwrap();
    json["model"]["merges"] = Value::Array(vec![]);
    json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < 300);
    json["decoder"] = serde_json::json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    json["normalizer"] = serde_json::json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"Regex": " +"}, "content": "▁"}, {"type": "NFKC"}
    ]});
    json["post_processor"] = serde_json::json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}}});
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|bos|>"});
    let small = json.to_string().into_bytes();
    json["model"] = serde_json::json!({"type": "Unigram", "unk_id": 2, "byte_fallback": true,
        "vocab": [["<|bos|>", 0.0], ["<|eos|>", 0.0], ["<unk>", -9.0], ["▁", -1.0], ["d", -2.5], ["<0xE4>", -3.0]]});
    json["pre_tokenizer"] =
        serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    let unigram = json.to_string().into_bytes();

    let whole_file = json_variants(&mut dice, &victim.original, 150);
    let tried = victim.attack(whole_file, 30)
        + victim.attack(json_variants(&mut dice, &small, 350), 30)
        + victim.attack(json_variants(&mut dice, &unigram, 250), 30);
    assert!(tried >= 1500, "{tried}");
}

/// A generation configuration with every key that is read, and some that are not.
const GENERATION: &str = r#"{"bos_token_id": 1, "eos_token_id": [2, 7], "do_sample": true, "temperature": 0.6, "top_k": 20,
    "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1, "stop_strings": ["</a>", "END"], "suppress_tokens": [3, 4],
    "bad_words_ids": [[5], [6, 7]], "max_new_tokens": 64, "min_new_tokens": 2, "max_length": 100, "min_length": 3,
    "num_beams": 4, "no_repeat_ngram_size": 3, "sequence_bias": [[[3], -1.0]], "guidance_scale": 1.5, "chat_format": "x",
    "pad_token_id": -1, "transformers_version": "5.24.0", "_from_model_config": true}"#;

/// A tokenizer's configuration with tokens in every place.
const TOKENS: &str = r#"{"add_bos_token": true, "bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "<|eos|>",
    "pad_token": null, "unk_token": "<unk>", "added_tokens_decoder": {
        "12": {"content": "<|eos|>", "lstrip": true, "rstrip": false, "normalized": false, "single_word": false, "special": true},
        "13": {"content": "Hi", "lstrip": false, "rstrip": true, "normalized": true, "single_word": true, "special": false}},
    "additional_special_tokens": ["<a>", {"content": "<b>", "rstrip": true}],
    "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"}"#;

const NAMES: &str = r#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false, "normalized": true},
    "cls_token": "<cls>", "additional_special_tokens": ["<c>", "<|eos|>"], "extra_special_tokens": {"image": "<i>"}}"#;

const ADDED: &str = r#"{"<|eos|>": 12, "<d>": 14, "<e>": 600}"#;

const TOKENIZER: &str = r#"{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [
        {"id": 0, "content": "<unk>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
        {"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true},
        {"id": 2, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": true, "special": true}],
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
    "pre_tokenizer": null,
    "post_processor": {"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
    "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
        "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "d": 4, "e": 5, "f": 6, "▁d": 7, "de": 8, "def": 9,
            "<0xE4>": 10, "x": 11},
        "merges": ["▁ d", "d e", "de f"]}}"#;

/// How many variants the next tests try: `EESD_MUTATIONS`, or what takes a few seconds.
fn mutations(usual: usize) -> usize {
    let given = std::env::var("EESD_MUTATIONS").ok();
    given.map_or(usual, |given| given.parse().expect("EESD_MUTATIONS is a whole number"))
}

/// Configurations, templates and tokenizers that know what hurts, with 4 GB of memory.
#[cfg(target_os = "linux")]
#[test]
fn thousands_of_hostile_files_with_little_memory() {
    let _alone = ALONE.lock();
    children::attack(mutations(20_000));
}

/// The work of the processes that the test above starts; nothing by itself.
#[cfg(target_os = "linux")]
#[test]
fn in_a_process_of_its_own() {
    children::work();
}

#[test]
fn settings_and_tokens_mutated_many_times() {
    let _alone = ALONE.lock();
    let files = [
        ("tokenizer.json", TOKENIZER),
        ("tokenizer_config.json", TOKENS),
        ("special_tokens_map.json", NAMES),
        ("added_tokens.json", ADDED),
        ("generation_config.json", GENERATION),
    ];
    let count = mutations(2500) / files.len();
    for (number, (file, _)) in files.into_iter().enumerate() {
        let victim = Victim::new(LLAMA, &files, file);
        let mut dice = Dice(0x9FB2_1C65_1E98_DF25 + number as u64);
        let variants = (0..count).map(|n| match n % 4 {
            0 => dice.damage(&victim.original),
            1 => {
                let twisted = dice.twist(&victim.original);
                // Twice, where the first one left JSON.
                if serde_json::from_slice::<Value>(&twisted).is_ok() { dice.twist(&twisted) } else { twisted }
            }
            _ => dice.twist(&victim.original),
        });
        assert_eq!(victim.attack(variants, 10), count);
    }
}
