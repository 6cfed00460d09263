//! What `generation_config.json` asks for and this engine does not do.

use super::error::short;
use super::json::{Object, found};
use serde_json::Value;

/// Keys that are read (`generation`), and those that change no text: names, caches, padding, outputs, speed.
const SETTLED: [&str; 47] = [
    "bos_token_id",
    "eos_token_id",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "stop_strings",
    "suppress_tokens",
    "bad_words_ids",
    "max_new_tokens",
    "min_new_tokens",
    "transformers_version",
    "pad_token_id",
    "use_cache",
    "cache_implementation",
    "cache_config",
    "max_cache_len",
    "return_legacy_cache",
    "low_memory",
    "prefill_chunk_size",
    "compile_config",
    "disable_compile",
    "continuous_batching_config",
    "return_dict",
    "return_dict_in_generate",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "output_logits",
    // Other sums of the same probabilities, and a remedy for NaN, which is an error here.
    "renormalize_logits",
    "remove_invalid_values",
    // Speculation, which is lossless and this engine's own matter.
    "use_mtp",
    "is_assistant",
    "num_assistant_tokens",
    "num_assistant_tokens_schedule",
    "assistant_confidence_threshold",
    "assistant_early_exit",
    "assistant_lookbehind",
    "assistant_ensemble_weight",
    "target_lookbehind",
    "prompt_lookup_num_tokens",
    "max_matching_ngram_size",
    "speculation_type",
    // Of models with an encoder.
    "is_encoder_decoder",
    "decoder_start_token_id",
];

/// Keys of beam search: without it, they change nothing.
const OF_BEAMS: [&str; 4] = ["early_stopping", "length_penalty", "num_beam_groups", "diversity_penalty"];

/// Keys that change the text, each with the number at which it does not, where there is one.
const CHANGING: [(&str, Option<f64>); 25] = [
    ("num_beams", Some(1.0)),
    ("num_return_sequences", Some(1.0)),
    ("max_length", None),
    ("min_length", Some(0.0)),
    ("max_time", None),
    ("top_h", Some(1.0)),
    ("typical_p", Some(1.0)),
    ("epsilon_cutoff", Some(0.0)),
    ("eta_cutoff", Some(0.0)),
    ("penalty_alpha", Some(0.0)),
    ("dola_layers", None),
    ("no_repeat_ngram_size", Some(0.0)),
    ("encoder_no_repeat_ngram_size", Some(0.0)),
    ("encoder_repetition_penalty", Some(1.0)),
    ("begin_suppress_tokens", None),
    ("forced_bos_token_id", None),
    ("forced_eos_token_id", None),
    ("forced_decoder_ids", None),
    ("exponential_decay_length_penalty", None),
    ("sequence_bias", None),
    ("token_healing", None),
    ("guidance_scale", Some(1.0)),
    ("watermarking_config", None),
    ("constraints", None),
    ("force_words_ids", None),
];

/// One note that names every key which would change the text if it were honoured, and every unknown one.
/// `positions`: the longest text that the model takes.
pub(super) fn note(generation: &Object<'_>, positions: usize) -> Option<String> {
    let (mut changing, mut unknown) = (Vec::new(), Vec::new());
    for key in generation.keys().filter(|key| !key.starts_with('_') && !SETTLED.contains(key)) {
        let Some(value) = generation.value(key).filter(|value| !is_nothing(value)) else { continue };
        let named = format!("{key} {}", found(value));
        if OF_BEAMS.contains(&key) {
            if beams(generation) {
                changing.push(named);
            }
        } else if let Some((_, neutral)) = CHANGING.iter().find(|(name, _)| *name == key) {
            let number = value.as_f64();
            if (number.is_none() || number != *neutral) && !is_moot(generation, key, number, positions) {
                changing.push(named);
            }
        } else {
            unknown.push(named);
        }
    }
    let part = |title: &str, named: Vec<String>| (!named.is_empty()).then(|| format!("{title}: {}", named.join(", ")));
    let parts = [part("not honoured", changing), part("unknown", unknown).map(short)];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    (!parts.is_empty()).then(|| format!("{}: {}", generation.file(), parts.join("; ")))
}

/// Switched off, whatever the key.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Bool(on) => !on,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn beams(generation: &Object<'_>) -> bool {
    generation.value("num_beams").and_then(Value::as_f64).is_some_and(|beams| beams > 1.0)
}

/// Whether another key, or the model's own limit, makes a limit of length meaningless.
fn is_moot(generation: &Object<'_>, key: &str, number: Option<f64>, positions: usize) -> bool {
    /// What older versions of transformers wrote where nobody had said anything.
    const DEFAULT_MAX_LENGTH: f64 = 20.0;
    match key {
        "max_length" => {
            let unbounded = |most: f64| most == DEFAULT_MAX_LENGTH || most >= positions as f64;
            generation.value("max_new_tokens").is_some() || number.is_some_and(unbounded)
        }
        "min_length" => generation.value("min_new_tokens").is_some(),
        _ => false,
    }
}
