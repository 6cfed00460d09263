//! The report for people.

use super::formats::Share;
use super::{Exit, Fit, Promised, Report, USABLE};
use crate::report::{bytes, count};

/// The whole report, one fact a line.
pub fn print(report: &Report) -> String {
    let mut lines = model(report);
    lines.push(String::new());
    lines.push(format!("longest context in {:.0} % of a memory of", USABLE * 100.0));
    lines.extend(report.memory.iter().map(|fit| memory(fit, report.max_positions as u64)));
    lines.push(String::new());
    if report.exit_blocks.is_empty() {
        lines.push("exit blocks  none beside the model: lookups alone draft".into());
    }
    lines.extend(report.exit_blocks.iter().flat_map(exit));
    lines.join("\n") + "\n"
}

fn model(report: &Report) -> Vec<String> {
    let Report { name, family, dtype, layers, hidden_size, intermediate_size, .. } = report;
    let Report { heads, kv_heads, head_dim, vocab_size, max_positions, rope_theta, rope_scaling, .. } = report;
    let yes = |there: bool| if there { "yes" } else { "no" };
    let windows = match report.windowed_layers {
        0 => String::new(),
        n => format!(", {n} layers with a sliding window"),
    };
    let head = if report.tied_head { "head tied to it".into() } else { format!("head {}", bytes(report.bytes.head)) };
    let file = report.file.as_ref().map_or_else(String::new, |file| format!(", GGUF {}", file.display()));
    vec![
        format!("model        {name} ({family}), {} parameters, {dtype}{file}", count(report.parameters)),
        format!("fingerprint  {}", report.fingerprint),
        format!(
            "geometry     {layers} layers, width {hidden_size}, MLP {intermediate_size}, {heads} query and {kv_heads} KV heads \
             of {head_dim}, vocabulary {vocab_size}{}",
            if report.qk_norm { ", QK norms" } else { "" }
        ),
        format!("positions    {max_positions} trained, RoPE {rope_scaling}, base {rope_theta}{windows}"),
        format!(
            "bytes        {} in all: embedding {}, layers {} ({} each), {head}",
            bytes(report.bytes.total),
            bytes(report.bytes.embedding),
            bytes(report.bytes.layers),
            bytes(report.bytes.layers / (*layers).max(1) as u64),
        ),
        format!(
            "{} embedding {}, layers {}{}",
            if report.quantized.is_some() { "quantised to" } else { "stored as   " },
            report.formats.embedding,
            shares(report),
            head_format(report)
        ),
        format!(
            "text         tokenizer {}, chat template {}, end tokens {:?}",
            yes(report.tokenizer),
            yes(report.chat_template),
            report.end_tokens
        ),
        format!(
            "cache        {} a token{}",
            bytes(report.cache_bytes_per_token),
            if report.exit_blocks.is_empty() { "" } else { ", exit layer included" }
        ),
    ]
}

/// The layers' formats, that of most bytes first.
fn shares(report: &Report) -> String {
    let mut shares: Vec<_> = report.formats.layers.iter().collect();
    shares.sort_by_key(|(_, share)| std::cmp::Reverse(share.bytes));
    let share =
        |(format, share): (&String, &Share)| format!("{format} ({} matrices, {})", share.matrices, bytes(share.bytes));
    shares.into_iter().map(share).collect::<Vec<_>>().join(", ")
}

fn head_format(report: &Report) -> String {
    report.formats.head.as_ref().map_or_else(String::new, |format| format!(", head {format}"))
}

fn memory(fit: &Fit, longest: u64) -> String {
    let room = match fit.tokens {
        None => "the weights do not fit".into(),
        Some(n) if n == longest => {
            format!("{n} tokens, all that the model was trained for; {} such sequences side by side", fit.sequences)
        }
        Some(n) => format!("{n} tokens"),
    };
    format!("  {:>3} GB     {room}", fit.memory_gb)
}

fn promise(exit: &Exit) -> String {
    let Promised { acceptance, held_out, k, speed_up } = exit.promise;
    let whence = if held_out { "as its file says of held-out text" } else { "which is assumed: its file does not say" };
    let default = if exit.default { "; drafts where no other block is asked for" } else { "" };
    format!("{speed_up:.2}x (k = {k}) at {acceptance:.2}, {whence}{default}")
}

fn exit(exit: &Exit) -> Vec<String> {
    let whose = if exit.own_head { "head of its own" } else { "the model's head" };
    let input = if exit.own_input { "input matrix, " } else { "" };
    let head = format!("{input}{whose}, drafts from {} tokens", exit.draft_vocab);
    let later = exit.recurrent_draft_step_cost;
    let later = later.map_or_else(String::new, |cost| format!(", a recurrent one, after a round's first, {cost:.3}"));
    let metadata: Vec<String> = exit.metadata.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let predicted: Vec<String> =
        exit.predicted.iter().map(|p| format!("{:.2}x at {} (k = {})", p.speed_up, p.alpha, p.best_k)).collect();
    vec![
        format!("exit block   N = {}, {}, {}, {head}", exit.exit_layer, exit.file.display(), bytes(exit.bytes)),
        format!("  metadata   {}", metadata.join(", ")),
        format!("  cost       a draft step costs {:.3} plain steps{later}, by bytes read", exit.draft_step_cost),
        format!("  predicted  {} by acceptance rate", predicted.join(", ")),
        format!("  promise    {}", promise(exit)),
    ]
}
