//! A model's geometry in the words of GGUF.

use super::super::config::Config;
use super::ExportError;
use super::file::{Value, Values};
use crate::model::{Geometry, RopeScaling};

/// llama.cpp's name for the model's architecture.
pub(super) fn architecture(geometry: &Geometry) -> &str {
    match geometry.family.as_str() {
        "mistral" => "llama",
        family => family,
    }
}

/// The values that describe the model, its name and `file_type` apart from its tokenizer.
///
/// # Errors
/// What of it GGUF, or llama.cpp, has no words for.
pub(super) fn values(config: &Config, name: &str, file_type: u32) -> Result<Values, ExportError> {
    let geometry = &config.geometry;
    let architecture = architecture(geometry);
    if architecture == "qwen3" && (config.biases.qkv || config.biases.output) {
        return Err(ExportError::unsayable("biases of a qwen3", "a qwen3 without them"));
    }
    let whole = |number: usize| Value::Whole(number as u32);
    let mut values: Values = vec![
        ("general.architecture".into(), Value::Text(architecture.into())),
        ("general.type".into(), Value::Text("model".into())),
        ("general.name".into(), Value::Text(name.into())),
        ("general.file_type".into(), Value::Whole(file_type)),
        ("general.quantization_version".into(), Value::Whole(2)),
    ];
    let mut add = |key: &str, value: Value| values.push((format!("{architecture}.{key}"), value));
    add("block_count", whole(geometry.layers));
    add("context_length", whole(geometry.max_positions));
    add("embedding_length", whole(geometry.hidden_size));
    add("feed_forward_length", whole(geometry.intermediate_size));
    add("vocab_size", whole(geometry.vocab_size));
    add("attention.head_count", whole(geometry.heads));
    add("attention.head_count_kv", whole(geometry.kv_heads));
    add("attention.key_length", whole(geometry.head_dim));
    add("attention.value_length", whole(geometry.head_dim));
    add("attention.layer_norm_rms_epsilon", Value::Number(geometry.rms_norm_eps));
    if let Some(window) = window(geometry)? {
        add("attention.sliding_window", whole(window));
    }
    add("rope.dimension_count", whole(geometry.head_dim));
    add("rope.freq_base", Value::Number(geometry.rope.theta as f32));
    match &geometry.rope.scaling {
        // Said by a tensor, or not at all.
        RopeScaling::Default | RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) => {}
        RopeScaling::Linear { factor } => {
            add("rope.scaling.type", Value::Text("linear".into()));
            add("rope.scaling.factor", Value::Number(*factor as f32));
        }
        RopeScaling::Dynamic { .. } => {
            return Err(ExportError::unsayable("dynamic RoPE scaling", "none, linear, llama3 or yarn"));
        }
        RopeScaling::Yarn { truncate: false, .. } => {
            return Err(ExportError::unsayable("yarn without rounding of its bounds", "`truncate` true"));
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, attention_factor, original_max_positions, .. } => {
            add("rope.scaling.type", Value::Text("yarn".into()));
            add("rope.scaling.factor", Value::Number(*factor as f32));
            add("rope.scaling.original_context_length", whole(*original_max_positions));
            add("rope.scaling.yarn_beta_fast", Value::Number(*beta_fast as f32));
            add("rope.scaling.yarn_beta_slow", Value::Number(*beta_slow as f32));
            // A factor of what yarn itself has.
            let of_yarn = 0.1 * factor.ln() + 1.0;
            if (attention_factor / of_yarn - 1.0).abs() > 1e-6 {
                add("rope.scaling.attn_factor", Value::Number((attention_factor / of_yarn) as f32));
            }
        }
    }
    Ok(values)
}

/// The window of all layers; `None`: they have none.
fn window(geometry: &Geometry) -> Result<Option<usize>, ExportError> {
    let first = geometry.windows.first().copied().flatten();
    match geometry.windows.iter().all(|window| *window == first) {
        true => Ok(first),
        false => {
            Err(ExportError::unsayable("sliding windows in some layers only", "one window in all layers, or none"))
        }
    }
}

/// The divisor of each pair's frequency, where the scaling is said by these: the tensor `rope_freqs.weight`.
pub(super) fn divisors(geometry: &Geometry) -> Option<Vec<f32>> {
    let pairs = geometry.head_dim / 2;
    match &geometry.rope.scaling {
        RopeScaling::Divisors(divisors) => Some(divisors.iter().map(|&divisor| divisor as f32).collect()),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            let divisor = |pair: usize| {
                let turn = geometry.rope.theta.powf(-(pair as f64) / pairs as f64);
                let rotations = *original_max_positions as f64 * turn / std::f64::consts::TAU;
                let kept = ((rotations - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                (1.0 / ((1.0 - kept) / factor + kept)) as f32
            };
            Some((0..pairs).map(divisor).collect())
        }
        _ => None,
    }
}
