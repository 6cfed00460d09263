//! `eesd-run inspect`: what a model is, what it takes, and what its exit blocks could gain.

use crate::args::InspectArgs;
use crate::cost;
use crate::failure::Outcome;
use crate::output::Output;
use crate::report::{self, Reporter};
use crate::settings::Model;
use eesd::load::ExitBlock;
use eesd::model::Geometry;
use serde::Serialize;
use serde_json::{Value, json};

/// Acceptance rates that the predictions are made for.
const ALPHAS: [f64; 3] = [0.7, 0.8, 0.9];
/// Memory sizes of common machines and cards, in GB.
const MEMORIES: [u64; 6] = [8, 16, 24, 48, 80, 141];
/// Part of a memory that weights and cache may fill; the rest is for workspace and the system.
const USABLE: f64 = 0.9;
/// Most drafts that the predictions consider.
const MOST_DRAFTS: usize = 16;
/// Bytes of a cached number: the CPU backend keeps K and V in 32 bits.
const CACHED_BYTES: u64 = 4;

/// Prints the report.
pub fn run(args: InspectArgs) -> Outcome {
    let model = Model::open(&args.model, Reporter::new(false))?;
    let blocks = model.checkpoint.exit_blocks()?;
    let report = report(&model, &blocks);
    let mut output = Output::stdout();
    if args.json { output.json(&report) } else { output.text(&text(&model, &blocks, &report)) }
}

/// Bytes that one position takes in the cache: K and V of every layer, the exit layer being one more.
fn cache_bytes_per_token(geometry: &Geometry, exit: bool) -> u64 {
    let layers = geometry.layers + usize::from(exit);
    (2 * layers * geometry.kv_size()) as u64 * CACHED_BYTES
}

/// What fits into a memory beside the weights.
#[derive(Debug, PartialEq, Serialize)]
struct Fit {
    memory_gb: u64,
    /// Longest context of one sequence; `None` where the weights alone do not fit.
    tokens: Option<u64>,
    /// Sequences of that length side by side.
    sequences: u64,
}

/// What fits into each common memory: `bytes` of weights, then `per_token` bytes of cache for
/// sequences of at most `longest` tokens.
fn fits(bytes: u64, per_token: u64, longest: u64) -> Vec<Fit> {
    let fit = |memory_gb: u64| {
        let usable = (memory_gb as f64 * 1e9 * USABLE) as u64;
        let room = usable.checked_sub(bytes).map(|left| left / per_token);
        let tokens = room.map(|room| room.min(longest));
        Fit { memory_gb, tokens, sequences: room.unwrap_or(0) / tokens.unwrap_or(1).max(1) }
    };
    MEMORIES.into_iter().map(fit).collect()
}

/// Everything, for machines; the text is made from it too.
fn report(model: &Model, blocks: &[ExitBlock]) -> Value {
    let checkpoint = &model.checkpoint;
    let (geometry, weights) = (checkpoint.geometry(), checkpoint.weights());
    let layers: u64 = weights.layers.iter().map(cost::layer_bytes).sum();
    let per_token = cache_bytes_per_token(geometry, !blocks.is_empty());
    let largest_block = blocks.iter().map(ExitBlock::bytes).max().unwrap_or(0);
    let fits = fits(checkpoint.bytes() + largest_block, per_token, geometry.max_positions as u64);
    json!({
        "name": checkpoint.name(),
        "folder": model.folder,
        "fingerprint": checkpoint.fingerprint(),
        "family": geometry.family,
        "layers": geometry.layers,
        "hidden_size": geometry.hidden_size,
        "intermediate_size": geometry.intermediate_size,
        "heads": geometry.heads,
        "kv_heads": geometry.kv_heads,
        "head_dim": geometry.head_dim,
        "vocab_size": geometry.vocab_size,
        "max_positions": geometry.max_positions,
        "sliding_windows": geometry.windows.iter().filter(|window| window.is_some()).count(),
        "rope": format!("{:?}", geometry.rope),
        "qk_norm": geometry.qk_norm,
        "tied_head": geometry.tied_head,
        "dtype": weights.layers.first().map_or(weights.embed.dtype, |layer| layer.q.dtype).to_string(),
        "parameters": checkpoint.parameters(),
        "bytes": {
            "total": checkpoint.bytes(),
            "embedding": weights.embed.bytes.len(),
            "layers": layers,
            "layer": layers / geometry.layers.max(1) as u64,
            "head": if geometry.tied_head { 0 } else { weights.head.bytes.len() },
        },
        "tokenizer": checkpoint.tokenizer().is_some(),
        "chat_template": checkpoint.chat_template().is_some(),
        "end_tokens": checkpoint.generation().end_tokens,
        "cache_bytes_per_token": per_token,
        "longest_context": fits,
        "exit_blocks": blocks.iter().map(|block| exit_report(model, block)).collect::<Vec<_>>(),
    })
}

fn exit_report(model: &Model, block: &ExitBlock) -> Value {
    let r = cost::draft_ratio(&model.checkpoint.weights(), &block.weights());
    let predictions = ALPHAS.map(|alpha| {
        let (k, speed_up) = cost::best(r, alpha, MOST_DRAFTS);
        json!({"alpha": alpha, "best_k": k, "speed_up": speed_up})
    });
    json!({
        "exit_layer": block.after(),
        "file": block.path(),
        "bytes": block.bytes(),
        "own_head": block.weights().head.is_some(),
        "metadata": block.metadata(),
        "draft_step_cost": r,
        "predicted": predictions,
    })
}

fn text(model: &Model, blocks: &[ExitBlock], report: &Value) -> String {
    let checkpoint = &model.checkpoint;
    let geometry = checkpoint.geometry();
    let part = |name: &str| report::bytes(report["bytes"][name].as_u64().unwrap_or(0));
    let mut lines = vec![
        format!(
            "model        {} ({}), {} parameters, {}",
            checkpoint.name(),
            geometry.family,
            report::count(checkpoint.parameters()),
            report["dtype"].as_str().unwrap_or_default()
        ),
        format!("fingerprint  {}", checkpoint.fingerprint()),
        format!(
            "geometry     {} layers, width {}, MLP {}, {} query and {} KV heads of {}, vocabulary {}{}",
            geometry.layers,
            geometry.hidden_size,
            geometry.intermediate_size,
            geometry.heads,
            geometry.kv_heads,
            geometry.head_dim,
            geometry.vocab_size,
            if geometry.qk_norm { ", QK norms" } else { "" }
        ),
        format!(
            "positions    {} trained, RoPE base {}, {:?}",
            geometry.max_positions, geometry.rope.theta, geometry.rope.scaling
        ),
        format!(
            "bytes        {} in all: embedding {}, layers {} ({} each), {}",
            part("total"),
            part("embedding"),
            part("layers"),
            part("layer"),
            if geometry.tied_head { "head tied to it".to_owned() } else { format!("head {}", part("head")) }
        ),
        format!(
            "text         tokenizer {}, chat template {}, end tokens {:?}",
            yes(checkpoint.tokenizer().is_some()),
            yes(checkpoint.chat_template().is_some()),
            checkpoint.generation().end_tokens
        ),
        format!(
            "cache        {} a token{}",
            report::bytes(report["cache_bytes_per_token"].as_u64().unwrap_or(0)),
            if blocks.is_empty() { "" } else { ", exit layer included" }
        ),
        String::new(),
    ];
    lines.push(format!("longest context in {:.0} % of a memory of", USABLE * 100.0));
    for fit in report["longest_context"].as_array().into_iter().flatten() {
        let room = match (fit["tokens"].as_u64(), &fit["sequences"]) {
            (None, _) => "the weights do not fit".to_owned(),
            (Some(n), sequences) if n >= geometry.max_positions as u64 => {
                format!("{n} tokens, all that the model was trained for; {sequences} such sequences side by side")
            }
            (Some(n), _) => format!("{n} tokens"),
        };
        lines.push(format!("  {:>3} GB     {room}", fit["memory_gb"].as_u64().unwrap_or(0)));
    }
    lines.push(String::new());
    if blocks.is_empty() {
        lines.push("exit blocks  none beside the model: decoding is plain".into());
    }
    for block in report["exit_blocks"].as_array().into_iter().flatten() {
        lines.push(format!(
            "exit block   N = {}, {}, {}, {}",
            block["exit_layer"],
            block["file"].as_str().unwrap_or_default(),
            report::bytes(block["bytes"].as_u64().unwrap_or(0)),
            if block["own_head"] == true { "head of its own" } else { "the model's head" }
        ));
        let metadata = block["metadata"].as_object().into_iter().flatten();
        let told: Vec<String> =
            metadata.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
        lines.push(format!("  metadata   {}", told.join(", ")));
        lines.push(format!(
            "  cost       a draft step costs {:.3} plain steps, by bytes read",
            block["draft_step_cost"].as_f64().unwrap_or(0.0)
        ));
        let predicted = block["predicted"].as_array().into_iter().flatten().map(|prediction| {
            format!(
                "{:.2}x at {} (k = {})",
                prediction["speed_up"].as_f64().unwrap_or(0.0),
                prediction["alpha"],
                prediction["best_k"]
            )
        });
        lines.push(format!("  predicted  {} by acceptance rate", predicted.collect::<Vec<_>>().join(", ")));
    }
    lines.push(String::new());
    lines.join("\n")
}

fn yes(there: bool) -> &'static str {
    if there { "yes" } else { "no" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_divided_between_weights_and_cache() {
        let fits = fits(14_000_000_000, 500_000, 4096);
        assert_eq!(fits[0], Fit { memory_gb: 8, tokens: None, sequences: 0 });
        assert_eq!(fits[1], Fit { memory_gb: 16, tokens: Some(800), sequences: 1 });
        assert_eq!(fits[2], Fit { memory_gb: 24, tokens: Some(4096), sequences: 3 });
    }
}
