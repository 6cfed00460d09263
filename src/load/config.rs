//! `config.json` to [`Geometry`], with the defaults of each family as Hugging Face transformers has
//! them. What this engine does not run is refused by name, never guessed at.

use super::json::Object;
use super::{LoadError, limits, rope};
use crate::model::Geometry;

const FAMILIES: &str = "llama, mistral, qwen2, qwen3";

/// The model's shape and which linear maps have a bias.
#[derive(Clone)]
pub(super) struct Config {
    pub(super) geometry: Geometry,
    pub(super) biases: Biases,
}

/// Which linear maps of a layer have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Biases {
    /// Query, key and value projections.
    pub(super) qkv: bool,
    /// Attention's output projection.
    pub(super) output: bool,
    /// Gate, up and down projections.
    pub(super) mlp: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
}

impl Family {
    fn parse(root: &Object<'_>) -> Result<Self, LoadError> {
        match root.text("model_type")?.ok_or_else(|| root.wrong("model_type", FAMILIES))? {
            "llama" => Ok(Self::Llama),
            "mistral" => Ok(Self::Mistral),
            "qwen2" => Ok(Self::Qwen2),
            "qwen3" => Ok(Self::Qwen3),
            other => Err(LoadError::unsupported(root.path(), format!("model_type `{other}`"), FAMILIES)),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    fn max_positions(self) -> usize {
        match self {
            Self::Llama => 2048,
            Self::Mistral => 131_072,
            Self::Qwen2 | Self::Qwen3 => 32_768,
        }
    }
}

/// Reads the configuration's root object.
pub(super) fn parse(root: &Object<'_>) -> Result<Config, LoadError> {
    let family = Family::parse(root)?;
    refuse_unsupported(root)?;

    let required = |key: &str, most: usize| {
        root.size(key, most)?.ok_or_else(|| root.wrong(key, &format!("a whole number in 1..={most}")))
    };
    let hidden_size = required("hidden_size", limits::FEATURES)?;
    let heads = required("num_attention_heads", limits::HEADS)?;
    let kv_heads = root.size("num_key_value_heads", limits::HEADS)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(root.wrong("num_key_value_heads", &format!("a divisor of num_attention_heads, {heads}")));
    }
    let head_dim = head_dim(root, family, hidden_size, heads)?;
    let layers = required("num_hidden_layers", limits::LAYERS)?;
    let max_positions = root.size("max_position_embeddings", limits::POSITIONS)?.unwrap_or(family.max_positions());

    let geometry = Geometry {
        family: family.name().into(),
        vocab_size: required("vocab_size", limits::VOCABULARY)?,
        hidden_size,
        intermediate_size: required("intermediate_size", limits::FEATURES)?,
        layers,
        heads,
        kv_heads,
        head_dim,
        rms_norm_eps: rms_norm_eps(root)?,
        rope: rope::parse(root, head_dim, max_positions)?,
        windows: windows(root, family, layers)?,
        max_positions,
        qk_norm: family == Family::Qwen3,
        tied_head: root.flag("tie_word_embeddings")?.unwrap_or(false),
    };
    Ok(Config { geometry, biases: biases(root, family)? })
}

fn head_dim(root: &Object<'_>, family: Family, hidden: usize, heads: usize) -> Result<usize, LoadError> {
    let head_dim = match root.size("head_dim", limits::HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if family == Family::Qwen3 && !root.has("head_dim") => 128,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let expected = format!("a multiple of num_attention_heads, {heads}, where head_dim is not given");
            return Err(root.wrong("hidden_size", &expected));
        }
    };
    if !head_dim.is_multiple_of(2) {
        let key = if root.value("head_dim").is_some() { "head_dim" } else { "hidden_size" };
        return Err(root.wrong(key, "an even number of features in each head (rotary embedding turns pairs)"));
    }
    if head_dim > limits::HEAD_DIM {
        let what = "hidden_size / num_attention_heads, where head_dim is not given";
        return Err(LoadError::limit(root.path(), what, head_dim, limits::HEAD_DIM as u64));
    }
    if heads * head_dim > limits::FEATURES {
        let what = "num_attention_heads · head_dim";
        return Err(LoadError::limit(root.path(), what, heads * head_dim, limits::FEATURES as u64));
    }
    Ok(head_dim)
}

fn rms_norm_eps(root: &Object<'_>) -> Result<f32, LoadError> {
    let eps = root.positive("rms_norm_eps")?.unwrap_or(1e-6);
    if eps < 1.0 { Ok(eps as f32) } else { Err(root.wrong("rms_norm_eps", "a number between 0 and 1")) }
}

fn biases(root: &Object<'_>, family: Family) -> Result<Biases, LoadError> {
    let attention = root.flag("attention_bias")?.unwrap_or(false);
    let mlp = root.flag("mlp_bias")?.unwrap_or(false);
    Ok(match family {
        Family::Llama => Biases { qkv: attention, output: attention, mlp },
        Family::Mistral => Biases { qkv: false, output: false, mlp: false },
        Family::Qwen2 => Biases { qkv: true, output: false, mlp: false },
        Family::Qwen3 => Biases { qkv: attention, output: attention, mlp: false },
    })
}

/// The sliding window of each layer. Mistral's holds for all layers, Qwen's only if switched on and
/// from layer `max_window_layers` on; `layer_types`, where given, has the last word.
fn windows(root: &Object<'_>, family: Family, layers: usize) -> Result<Vec<Option<usize>>, LoadError> {
    const DEFAULT_WINDOW: usize = 4096;
    const DEFAULT_FIRST_WINDOWED: usize = 28;

    let window = root.size("sliding_window", limits::POSITIONS)?;
    let window = if root.has("sliding_window") { window } else { Some(DEFAULT_WINDOW) };
    let (window, first) = match family {
        Family::Llama => (None, 0),
        Family::Mistral => (window, 0),
        Family::Qwen2 | Family::Qwen3 => {
            let on = root.flag("use_sliding_window")?.unwrap_or(false);
            (window.filter(|_| on), root.unsigned("max_window_layers")?.unwrap_or(DEFAULT_FIRST_WINDOWED))
        }
    };
    let Some(types) = root.array("layer_types")? else {
        return Ok((0..layers).map(|layer| window.filter(|_| layer >= first)).collect());
    };
    if types.len() != layers {
        return Err(root.wrong("layer_types", &format!("one entry for each of the {layers} layers")));
    }
    let of_type = |(layer, kind): (usize, &serde_json::Value)| match kind.as_str() {
        Some("full_attention") => Ok(None),
        Some("sliding_attention") if window.is_some() => Ok(window),
        Some("sliding_attention") => {
            Err(root.wrong("sliding_window", &format!("a window in use, since layer {layer} is sliding_attention")))
        }
        Some(other) => {
            let what = format!("`layer_types` entry `{other}`");
            Err(LoadError::unsupported(root.path(), what, "full_attention, sliding_attention"))
        }
        None => Err(root.wrong("layer_types", "an array of strings")),
    };
    types.iter().enumerate().map(of_type).collect()
}

/// Refuses what would need other arithmetic than a dense, causal, SiLU-gated decoder.
fn refuse_unsupported(root: &Object<'_>) -> Result<(), LoadError> {
    let refuse = |what: String, supported| Err(LoadError::unsupported(root.path(), what, supported));

    for key in ["num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size"] {
        if root.value(key).is_some_and(|value| value.as_u64() != Some(0)) {
            return refuse(format!("mixture of experts (`{key}`)"), "dense models");
        }
    }
    for key in ["is_encoder_decoder", "add_cross_attention", "use_bidirectional_attention"] {
        if root.flag(key)? == Some(true) {
            return refuse(format!("`{key}`"), "causal decoders");
        }
    }
    if root.flag("is_causal")? == Some(false) {
        return refuse("`is_causal`: false".into(), "causal decoders");
    }
    match root.text("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Ok(()),
        other => refuse(format!("hidden_act `{other}`"), "silu"),
    }
}
