//! Which tensors a configuration asks for, and the views of them.

use super::LoadError;
use super::config::{Biases, Config};
use super::tensors::Tensors;
use crate::TokenId;
use crate::model::{ExitWeights, Format, Geometry, LayerWeights, ModelWeights};
use std::collections::BTreeMap;

/// Name and shape of every tensor of a model or an exit block.
pub(super) type Plan = BTreeMap<String, Vec<usize>>;

const EMBED: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";
pub(super) const HEAD_MODULE: &str = "lm_head";
pub(super) const EXIT_INPUT: &str = "exit.input.weight";
pub(super) const EXIT_RECURRENT: &str = "exit.recurrent.weight";
pub(super) const EXIT_LAYER: &str = "exit.layer.";
pub(super) const EXIT_NORM: &str = "exit.norm.weight";
pub(super) const EXIT_HEAD: &str = "exit.lm_head.weight";
pub(super) const EXIT_IDS: &str = "exit.draft_ids";

/// Which tensors an exit block has that not every one has.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExitParts {
    pub input: bool,
    pub recurrent: bool,
    /// Rows of its own head; `None`: it shares the model's.
    pub head: Option<usize>,
}

/// The tensors of the model.
pub(super) fn model_plan(Config { geometry, biases }: &Config) -> Plan {
    let mut plan = Plan::new();
    plan.insert(EMBED.into(), vec![geometry.vocab_size, geometry.hidden_size]);
    plan.insert(NORM.into(), vec![geometry.hidden_size]);
    if !geometry.tied_head {
        plan.insert(HEAD.into(), vec![geometry.vocab_size, geometry.hidden_size]);
    }
    for layer in 0..geometry.layers {
        plan_layer(&mut plan, &model_layer(layer), geometry, *biases);
    }
    plan
}

/// The tensors of an exit block with these parts.
pub(super) fn exit_plan(Config { geometry, biases }: &Config, parts: ExitParts) -> Plan {
    let mut plan = Plan::new();
    let hidden = geometry.hidden_size;
    if parts.input {
        plan.insert(EXIT_INPUT.into(), vec![hidden, hidden]);
    }
    if parts.recurrent {
        plan.insert(EXIT_RECURRENT.into(), vec![hidden, 2 * hidden]);
    }
    plan_layer(&mut plan, EXIT_LAYER, geometry, *biases);
    plan.insert(EXIT_NORM.into(), vec![hidden]);
    if let Some(rows) = parts.head {
        plan.insert(EXIT_HEAD.into(), vec![rows, hidden]);
    }
    plan
}

fn model_layer(layer: usize) -> String {
    format!("model.layers.{layer}.")
}

fn plan_layer(plan: &mut Plan, prefix: &str, geometry: &Geometry, biases: Biases) {
    let (hidden, mlp) = (geometry.hidden_size, geometry.intermediate_size);
    let (q, kv) = (geometry.q_size(), geometry.kv_size());
    let mut add = |name: &str, shape: &[usize]| plan.insert(format!("{prefix}{name}"), shape.to_vec());

    for (map, outputs, inputs, bias) in [
        ("self_attn.q_proj", q, hidden, biases.qkv),
        ("self_attn.k_proj", kv, hidden, biases.qkv),
        ("self_attn.v_proj", kv, hidden, biases.qkv),
        ("self_attn.o_proj", hidden, q, biases.output),
        ("mlp.gate_proj", mlp, hidden, biases.mlp),
        ("mlp.up_proj", mlp, hidden, biases.mlp),
        ("mlp.down_proj", hidden, mlp, biases.mlp),
    ] {
        add(&format!("{map}.weight"), &[outputs, inputs]);
        if bias {
            add(&format!("{map}.bias"), &[outputs]);
        }
    }
    add("input_layernorm.weight", &[hidden]);
    add("post_attention_layernorm.weight", &[hidden]);
    if geometry.qk_norm {
        add("self_attn.q_norm.weight", &[geometry.head_dim]);
        add("self_attn.k_norm.weight", &[geometry.head_dim]);
    }
}

/// Parameters of all the tensors together.
pub(super) fn parameters(plan: &Plan) -> u64 {
    plan.values().map(|shape| shape.iter().map(|&size| size as u64).product::<u64>()).sum()
}

/// Checks that the tensors are those of the plan, no fewer and no more, and gives their number formats.
pub(super) fn check(tensors: &Tensors, plan: &Plan, config: &Config) -> Result<BTreeMap<String, Format>, LoadError> {
    if let Some(extra) = tensors.names().find(|&name| !plan.contains_key(name) && !is_spare(name, &config.geometry)) {
        return Err(LoadError::UnexpectedTensor {
            path: tensors.path_of(extra).to_path_buf(),
            tensor: tensors.spelling(extra),
            why: why_unexpected(extra, &config.geometry),
        });
    }
    plan.iter().map(|(name, shape)| Ok((name.clone(), tensors.check(name, shape)?))).collect()
}

/// Decides on a head that is stored though the configuration ties it to the embedding: a copy of the embedding is
/// spare; another one is the model's head, so the model is not tied.
pub(super) fn settle_head(tensors: &Tensors, geometry: &mut Geometry, notes: &mut Vec<String>) {
    let shape = [geometry.vocab_size, geometry.hidden_size];
    if !geometry.tied_head || tensors.shape(HEAD).is_none() || tensors.check(EMBED, &shape).is_err() {
        return;
    }
    let file = tensors.path_of(HEAD).file_name().unwrap_or_default().to_string_lossy();
    let tied = "`tie_word_embeddings` of config.json is true";
    if tensors.check(HEAD, &shape).is_err() {
        notes.push(format!(
            "{file}: `{HEAD}` cannot be the model's head, by its shape or number format: ignored, since {tied}"
        ));
        return;
    }
    let (head, embed) = (tensors.matrix(HEAD), tensors.matrix(EMBED));
    if (head.format, head.bytes) != (embed.format, embed.bytes) {
        notes.push(format!("{file}: `{HEAD}` differs from `{EMBED}`: used as the model's head, though {tied}"));
        geometry.tied_head = false;
    }
}

/// Tensors that older files carry though the configuration alone decides them.
pub(super) fn is_derived(name: &str) -> bool {
    [".inv_freq", ".original_inv_freq", ".cos_cached", ".sin_cached"]
        .iter()
        .any(|end| name.strip_suffix(end).is_some_and(|module| module.ends_with(".rotary_emb")))
}

/// Tensors without which the model is the same.
fn is_spare(name: &str, geometry: &Geometry) -> bool {
    is_derived(name) || (name == HEAD && geometry.tied_head)
}

/// Parts of quantised matrices, by the last components of their names.
const OF_QUANTISED: [&str; 11] = [
    "qweight",
    "qzeros",
    "scales",
    "g_idx",
    "weight_packed",
    "weight_scale",
    "weight_zero_point",
    "weight_g_idx",
    "weight_shape",
    "weight_scale_inv",
    "SCB",
];

fn why_unexpected(name: &str, geometry: &Geometry) -> String {
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<u64>().ok());
    let last = name.rsplit('.').next().unwrap_or(name);
    match layer {
        Some(layer) if layer >= geometry.layers as u64 => {
            format!("the configuration has {} layers, counted from 0", geometry.layers)
        }
        _ if OF_QUANTISED.contains(&last) => {
            "quantised weights that `quantization_config` of config.json does not announce".into()
        }
        _ => format!("a {} of this configuration has no such tensor", geometry.family),
    }
}

/// Views of a model's tensors, which [`check`] has passed.
pub(super) fn model<'a>(tensors: &'a Tensors, Config { geometry, biases }: &Config) -> ModelWeights<'a> {
    let embed = tensors.matrix(EMBED);
    ModelWeights {
        embed,
        layers: (0..geometry.layers).map(|n| layer(tensors, &model_layer(n), geometry, *biases)).collect(),
        norm: tensors.vector(NORM),
        head: if geometry.tied_head { embed } else { tensors.matrix(HEAD) },
    }
}

/// Views of an exit block's tensors, which [`check`] has passed.
pub(super) fn exit<'a>(
    tensors: &'a Tensors,
    Config { geometry, biases }: &Config,
    after: usize,
    parts: ExitParts,
    draft_ids: Option<&'a [TokenId]>,
) -> ExitWeights<'a> {
    ExitWeights {
        after,
        input: parts.input.then(|| tensors.matrix(EXIT_INPUT)),
        recurrent: parts.recurrent.then(|| tensors.matrix(EXIT_RECURRENT)),
        layer: layer(tensors, EXIT_LAYER, geometry, *biases),
        norm: tensors.vector(EXIT_NORM),
        head: parts.head.map(|_| tensors.matrix(EXIT_HEAD)),
        draft_ids,
    }
}

fn layer<'a>(tensors: &'a Tensors, prefix: &str, geometry: &Geometry, biases: Biases) -> LayerWeights<'a> {
    let matrix = |name: &str| tensors.matrix(&format!("{prefix}{name}"));
    let vector = |name: &str| tensors.vector(&format!("{prefix}{name}"));
    LayerWeights {
        input_norm: vector("input_layernorm.weight"),
        q: matrix("self_attn.q_proj.weight"),
        k: matrix("self_attn.k_proj.weight"),
        v: matrix("self_attn.v_proj.weight"),
        o: matrix("self_attn.o_proj.weight"),
        q_bias: biases.qkv.then(|| vector("self_attn.q_proj.bias")),
        k_bias: biases.qkv.then(|| vector("self_attn.k_proj.bias")),
        v_bias: biases.qkv.then(|| vector("self_attn.v_proj.bias")),
        o_bias: biases.output.then(|| vector("self_attn.o_proj.bias")),
        q_norm: geometry.qk_norm.then(|| vector("self_attn.q_norm.weight")),
        k_norm: geometry.qk_norm.then(|| vector("self_attn.k_norm.weight")),
        post_norm: vector("post_attention_layernorm.weight"),
        gate: matrix("mlp.gate_proj.weight"),
        up: matrix("mlp.up_proj.weight"),
        down: matrix("mlp.down_proj.weight"),
        gate_bias: biases.mlp.then(|| vector("mlp.gate_proj.bias")),
        up_bias: biases.mlp.then(|| vector("mlp.up_proj.bias")),
        down_bias: biases.mlp.then(|| vector("mlp.down_proj.bias")),
    }
}
