//! The metadata of a GGUF file to [`Geometry`]. What this engine does not run is refused by name, never guessed at.

use super::super::config::{Biases, Config};
use super::super::tensors::Tensors;
use super::super::{LoadError, limits};
use super::parts::Gguf;
use super::value::Metadata;
use super::{rope, unread};
use crate::model::Geometry;

const ARCHITECTURES: &str = "llama, qwen2, qwen3";
const MODEL: &str = "general.type";

/// The keys of an architecture that are read here and in `rope`.
const READ: [&str; 24] = [
    "vocab_size",
    "embedding_length",
    "feed_forward_length",
    "block_count",
    "context_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attention.causal",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
    "rope.scaling.yarn_log_multiplier",
    "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// Keys that change no logits: how the model was made.
const IDLE: [&str; 3] = ["rope.scaling.finetuned", "expert_used_count", "tensor_data_layout"];

/// Keys that would need other arithmetic, unless they are 0.
const OTHER_ARITHMETIC: [&str; 16] = [
    "expert_count",
    "attention.scale",
    "attention.output_scale",
    "attention.value_scale",
    "attention.clamp_kqv",
    "attention.max_alibi_bias",
    "attention.temperature_length",
    "attention.temperature_scale",
    "attention.sliding_window_pattern",
    "attention.shared_kv_layers",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "rope.dimension_sections",
];

/// The metadata of an architecture, by keys without its name.
pub(super) struct Keys<'a> {
    pub metadata: Metadata<'a>,
    architecture: &'a str,
}

impl Keys<'_> {
    /// A key as the file has it.
    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub fn has(&self, key: &str) -> bool {
        self.metadata.has(&self.name(key))
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.metadata.text(&self.name(key))
    }

    pub fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.metadata.number(&self.name(key))
    }

    /// A whole number from 1 to `most`.
    pub fn size(&self, key: &str, most: usize) -> Result<Option<usize>, LoadError> {
        self.metadata.whole(&self.name(key), 1..most + 1)
    }

    fn required(&self, key: &str, most: usize) -> Result<usize, LoadError> {
        self.size(key, most)?.ok_or_else(|| self.wrong(key, &format!("a whole number from 1 to {most}")))
    }

    pub fn wrong(&self, key: &str, expected: &str) -> LoadError {
        self.metadata.wrong(&self.name(key), expected)
    }
}

/// Reads the metadata. Of the tensors it looks at which are there, and takes those that are no weights.
pub(in super::super) fn parse(
    gguf: &Gguf,
    tensors: &mut Tensors,
    notes: &mut Vec<String>,
) -> Result<Config, LoadError> {
    let metadata = gguf.metadata();
    if let Some(other) = metadata.text(MODEL)?.filter(|kind| *kind != "model") {
        return Err(LoadError::unsupported(metadata.path(), format!("`{MODEL}` `{other}`"), "model"));
    }
    let architecture = metadata.text("general.architecture")?;
    let architecture = architecture.ok_or_else(|| metadata.wrong("general.architecture", ARCHITECTURES))?;
    if !ARCHITECTURES.split(", ").any(|known| known == architecture) {
        return Err(LoadError::unsupported(metadata.path(), format!("architecture `{architecture}`"), ARCHITECTURES));
    }
    let keys = Keys { metadata, architecture };
    refuse_other_arithmetic(&keys)?;
    notes.extend(unread::notes(&keys, is_known)?);

    let hidden_size = keys.required("embedding_length", limits::FEATURES)?;
    let heads = keys.required("attention.head_count", limits::HEADS)?;
    let kv_heads = keys.size("attention.head_count_kv", limits::HEADS)?.unwrap_or(heads);
    if !heads.is_multiple_of(kv_heads) {
        return Err(keys.wrong("attention.head_count_kv", &format!("a divisor of attention.head_count, {heads}")));
    }
    let head_dim = head_dim(&keys, hidden_size, heads)?;
    let layers = keys.required("block_count", limits::LAYERS)?;
    let max_positions = keys.required("context_length", limits::POSITIONS)?;
    let window = keys.metadata.whole(&keys.name("attention.sliding_window"), 0..limits::POSITIONS + 1)?;

    let geometry = Geometry {
        family: architecture.into(),
        vocab_size: vocab_size(&keys, tensors)?,
        hidden_size,
        intermediate_size: keys.required("feed_forward_length", limits::FEATURES)?,
        layers,
        heads,
        kv_heads,
        head_dim,
        rms_norm_eps: rms_norm_eps(&keys)?,
        rope: rope::parse(&keys, tensors, head_dim, max_positions)?,
        windows: vec![window.filter(|&window| window > 0); layers],
        max_positions,
        qk_norm: architecture == "qwen3",
        tied_head: tensors.shape("lm_head.weight").is_none(),
    };
    let has_bias = |modules: &[&str]| {
        let bias = |module| tensors.shape(&format!("model.layers.0.{module}.bias")).is_some();
        modules.iter().any(bias)
    };
    let biases = Biases {
        qkv: architecture == "qwen2" || has_bias(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
        output: has_bias(&["self_attn.o_proj"]),
        mlp: has_bias(&["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]),
    };
    Ok(Config { geometry, biases })
}

fn refuse_other_arithmetic(keys: &Keys<'_>) -> Result<(), LoadError> {
    let path = keys.metadata.path();
    for key in OTHER_ARITHMETIC.into_iter().filter(|key| keys.has(key)) {
        let name = keys.name(key);
        match keys.metadata.length(&name) {
            None if keys.number(key)? == Some(0.0) => {}
            _ if key == "expert_count" => {
                return Err(LoadError::unsupported(path, format!("mixture of experts (`{name}`)"), "dense models"));
            }
            _ => return Err(LoadError::unsupported(path, format!("`{name}`"), "models without it")),
        }
    }
    let causal = keys.name("attention.causal");
    match keys.metadata.truth(&causal)? {
        Some(false) => Err(LoadError::unsupported(path, format!("`{causal}`: false"), "causal decoders")),
        _ => Ok(()),
    }
}

/// Whether a key of the architecture is read, or changes no logits.
fn is_known(key: &str) -> bool {
    READ.contains(&key) || IDLE.contains(&key) || OTHER_ARITHMETIC.contains(&key)
}

fn head_dim(keys: &Keys<'_>, hidden: usize, heads: usize) -> Result<usize, LoadError> {
    const KEY: &str = "attention.key_length";
    let head_dim = match keys.size(KEY, limits::HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden.is_multiple_of(heads) => hidden / heads,
        None => {
            let expected = format!("a multiple of attention.head_count, {heads}, where {KEY} is not given");
            return Err(keys.wrong("embedding_length", &expected));
        }
    };
    let key = if keys.has(KEY) { KEY } else { "embedding_length" };
    if !head_dim.is_multiple_of(2) {
        return Err(keys.wrong(key, "an even number of features in each head (rotary embedding turns pairs)"));
    }
    let limit = |what: String, found: usize, most: usize| match found > most {
        true => Err(LoadError::limit(keys.metadata.path(), what, found, most as u64)),
        false => Ok(()),
    };
    limit(format!("features of a head, by `{}`", keys.name(key)), head_dim, limits::HEAD_DIM)?;
    let of_heads = format!("`{}` · features of a head", keys.name("attention.head_count"));
    limit(of_heads, heads * head_dim, limits::FEATURES)?;
    match keys.size("attention.value_length", limits::HEAD_DIM)? {
        Some(values) if values != head_dim => {
            Err(keys.wrong("attention.value_length", &format!("{head_dim}, as long as keys")))
        }
        _ => Ok(head_dim),
    }
}

/// The embedding's rows, which the file's number, where it has one, must agree with.
fn vocab_size(keys: &Keys<'_>, tensors: &Tensors) -> Result<usize, LoadError> {
    let stated = keys.size("vocab_size", limits::VOCABULARY)?;
    let rows = tensors.shape("model.embed_tokens.weight").and_then(|shape| shape.first().copied());
    match (stated, rows.filter(|rows| (1..=limits::VOCABULARY).contains(rows))) {
        (Some(stated), Some(rows)) if stated != rows => {
            Err(keys.wrong("vocab_size", &format!("{rows}, the rows of `token_embd.weight`")))
        }
        (_, Some(rows)) => Ok(rows),
        // For the check of the tensors to say that it is not what it should be.
        (stated, None) => Ok(stated.unwrap_or(1)),
    }
}

fn rms_norm_eps(keys: &Keys<'_>) -> Result<f32, LoadError> {
    const KEY: &str = "attention.layer_norm_rms_epsilon";
    let epsilon = keys.number(KEY)?.filter(|epsilon| *epsilon > 0.0 && *epsilon < 1.0);
    epsilon.map(|epsilon| epsilon as f32).ok_or_else(|| keys.wrong(KEY, "a number between 0 and 1"))
}
