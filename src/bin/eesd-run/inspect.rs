//! `eesd-run inspect`: what a model is, what it takes, and what its exit blocks could gain.

mod formats;
mod text;

use crate::args::InspectArgs;
use crate::failure::Outcome;
use crate::output::Output;
use crate::report::Reporter;
use crate::settings::Model;
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, KvFormat};
use eesd::kv::PAGE_TOKENS;
use eesd::load::{BUNDLED_EXIT, ExitBlock, Promise, most_promising};
use eesd::model::cost::{self, DraftCosts};
use eesd::model::{Geometry, ModelWeights, RopeScaling};
use formats::Formats;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Acceptance rates that the predictions are made for.
const ALPHAS: [f64; 3] = [0.7, 0.8, 0.9];
/// Memory sizes of common machines and cards, in GB.
const MEMORIES: [u64; 6] = [8, 16, 24, 48, 80, 141];
/// Part of a memory that weights and cache may fill; the rest is for workspace and the system.
const USABLE: f64 = 0.9;
/// Most drafts that the predictions consider.
const MOST_DRAFTS: usize = 16;

/// Prints the report.
pub fn run(args: InspectArgs) -> Outcome {
    let reporter = Reporter::new(false);
    let model = Model::open(&args.model, reporter)?;
    if let Err(broken) = model.checkpoint.chat_template() {
        reporter.note(&format!("{broken} (--chat-template FILE takes another template)"));
    }
    let report = Report::of(&model, reporter)?;
    let mut output = Output::stdout();
    if args.json { output.json(&report) } else { output.text(&text::print(&report)) }
}

/// A model at a glance.
#[derive(Debug, Serialize)]
struct Report {
    name: String,
    folder: Option<PathBuf>,
    /// Where the model is one in GGUF.
    file: Option<PathBuf>,
    fingerprint: String,
    /// How `--quantize` changes the weights; all bytes are those that come of it.
    quantized: Option<String>,
    family: String,
    layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    vocab_size: usize,
    max_positions: usize,
    /// Layers that attend to a window only.
    windowed_layers: usize,
    rope_theta: f64,
    rope_scaling: String,
    qk_norm: bool,
    tied_head: bool,
    /// The format of most of the layers' bytes.
    dtype: String,
    formats: Formats,
    parameters: u64,
    bytes: Bytes,
    tokenizer: bool,
    chat_template: bool,
    end_tokens: Vec<TokenId>,
    cache_bytes_per_token: u64,
    memory: Vec<Fit>,
    exit_blocks: Vec<Exit>,
}

/// Where the weights' bytes are.
#[derive(Debug, Serialize)]
struct Bytes {
    total: u64,
    embedding: u64,
    layers: u64,
    /// 0 where the head is the embedding.
    head: u64,
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

/// An exit block beside the model.
#[derive(Debug, Serialize)]
struct Exit {
    exit_layer: usize,
    file: PathBuf,
    bytes: u64,
    own_head: bool,
    /// It reads hidden states through a matrix.
    own_input: bool,
    /// Tokens that it can draft.
    draft_vocab: usize,
    metadata: BTreeMap<String, String>,
    /// A draft step's bytes over a plain step's.
    draft_step_cost: f64,
    /// The same of a round's drafts after the first, where the block is recurrent.
    recurrent_draft_step_cost: Option<f64>,
    predicted: Vec<Prediction>,
    promise: Promised,
    /// It drafts where no other is asked for.
    default: bool,
}

/// What its own acceptance makes of that.
#[derive(Debug, Serialize)]
struct Promised {
    acceptance: f64,
    /// Its file says so, of held-out text; else it is assumed.
    held_out: bool,
    k: usize,
    speed_up: f64,
}

/// The best that a fixed draft length can do at an acceptance rate.
#[derive(Debug, Serialize)]
struct Prediction {
    alpha: f64,
    best_k: usize,
    speed_up: f64,
}

impl Report {
    fn of(model: &Model, reporter: Reporter) -> Outcome<Self> {
        let checkpoint = &model.checkpoint;
        let blocks = checkpoint.exit_blocks()?;
        blocks.iter().flat_map(ExitBlock::notes).for_each(|note| reporter.note(note));
        let (geometry, weights) = (checkpoint.geometry(), model.weights(reporter)?);
        let per_token = cache_bytes_per_token(geometry, !blocks.is_empty());
        let formats = Formats::of(&weights, geometry);
        let default = match model.folder {
            Some(_) => most_promising(&blocks, &weights),
            None => blocks.iter().position(|block| block.after() == BUNDLED_EXIT),
        };
        let largest_block = blocks.iter().map(ExitBlock::bytes).max().unwrap_or(0);
        Ok(Self {
            name: checkpoint.name().to_owned(),
            folder: model.folder.clone(),
            file: checkpoint.file().map(Path::to_owned),
            fingerprint: checkpoint.fingerprint().to_owned(),
            quantized: model.scheme.map(|scheme| scheme.to_string()),
            family: geometry.family.clone(),
            layers: geometry.layers,
            hidden_size: geometry.hidden_size,
            intermediate_size: geometry.intermediate_size,
            heads: geometry.heads,
            kv_heads: geometry.kv_heads,
            head_dim: geometry.head_dim,
            vocab_size: geometry.vocab_size,
            max_positions: geometry.max_positions,
            windowed_layers: geometry.windows.iter().flatten().count(),
            rope_theta: geometry.rope.theta,
            rope_scaling: rope_scaling(&geometry.rope.scaling),
            qk_norm: geometry.qk_norm,
            tied_head: geometry.tied_head,
            dtype: formats.main().to_owned(),
            formats,
            parameters: checkpoint.parameters(),
            bytes: Bytes {
                total: model.bytes(),
                embedding: weights.embed.bytes.len() as u64,
                layers: weights.layers.iter().map(cost::layer_bytes).sum(),
                head: if geometry.tied_head { 0 } else { weights.head.bytes.len() as u64 },
            },
            tokenizer: checkpoint.tokenizer().is_some(),
            chat_template: matches!(checkpoint.chat_template(), Ok(Some(_))),
            end_tokens: checkpoint.generation().end_tokens.clone(),
            cache_bytes_per_token: per_token,
            memory: fits(model.bytes() + largest_block, per_token, geometry.max_positions as u64),
            exit_blocks: blocks
                .iter()
                .enumerate()
                .map(|(i, block)| Exit::of(&weights, block, default == Some(i)))
                .collect(),
        })
    }
}

impl Exit {
    fn of(weights: &ModelWeights<'_>, block: &ExitBlock, default: bool) -> Self {
        let of = block.weights();
        let costs = DraftCosts::of(weights, &of);
        let predict = |alpha: f64| {
            let (best_k, speed_up) = cost::best(costs, alpha, MOST_DRAFTS);
            Prediction { alpha, best_k, speed_up }
        };
        let Promise { acceptance, held_out, drafts, speed_up } = block.promise(weights);
        Self {
            exit_layer: block.after(),
            file: block.path().to_owned(),
            bytes: block.bytes(),
            own_head: of.head.is_some(),
            own_input: of.input.is_some(),
            draft_vocab: block.draft_vocab(),
            metadata: block.metadata().clone(),
            draft_step_cost: costs.first,
            recurrent_draft_step_cost: of.recurrent.map(|_| costs.later),
            predicted: ALPHAS.into_iter().map(predict).collect(),
            promise: Promised { acceptance, held_out, k: drafts, speed_up },
            default,
        }
    }
}

/// Bytes that one position takes in the CPU backend's cache: K and V of every layer, the exit layer being one more.
pub fn cache_bytes_per_token(geometry: &Geometry, exit: bool) -> u64 {
    let of_layer = CpuBackend::page_bytes(geometry, KvFormat::Full) / PAGE_TOKENS / (geometry.layers + 1);
    ((geometry.layers + usize::from(exit)) * of_layer) as u64
}

/// The rotary scaling under Hugging Face's name for it, with its parameters.
fn rope_scaling(scaling: &RopeScaling) -> String {
    match scaling {
        RopeScaling::Default => "default".into(),
        RopeScaling::Linear { factor } => format!("linear (factor {factor})"),
        RopeScaling::Dynamic { factor, original_max_positions } => {
            format!("dynamic (factor {factor} past {original_max_positions} positions)")
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => format!(
            "llama3 (factor {factor} past {original_max_positions} positions, frequency factors {low_freq_factor} to \
             {high_freq_factor})"
        ),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, attention_factor, original_max_positions, .. } => format!(
            "yarn (factor {factor} past {original_max_positions} positions, beta {beta_slow} to {beta_fast}, attention \
             factor {attention_factor:.4})"
        ),
        RopeScaling::Divisors(divisors) => {
            let (least, most) = divisors.iter().fold((f64::MAX, 0.0), |(low, high), &d| (d.min(low), d.max(high)));
            format!("by pairs (divisors from {least} to {most})")
        }
    }
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
