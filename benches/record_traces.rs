//! Records what the bundled model's exit blocks draft along its own greedy texts, for the simulator:
//! `cargo bench --bench record_traces` writes `benches/traces/pycode-4m-exit{1,2,3}.jsonl`.
//!
//! At every position of a text one token is drafted from the model's own text so far and verified,
//! so a trace knows the confidence and the fate of a draft wherever a round may begin or go on.

#[path = "simulator/recording.rs"]
mod recording;

use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::{BlockTable, PagePool};
use eesd::load::{Checkpoint, bundled_prompts};
use eesd::sample::{Sampler, SamplingParams};
use recording::Recording;
use std::error::Error;
use std::io::Write;
use std::path::Path;

/// Tokens recorded after each prompt, if its answer does not end before.
const TOKENS: usize = 160;

fn main() -> Result<(), Box<dyn Error>> {
    let model = Checkpoint::bundled()?;
    let tokenizer = model.tokenizer().ok_or("the bundled model has no tokenizer")?;
    let prompts: Vec<Vec<TokenId>> =
        bundled_prompts().iter().map(|prompt| tokenizer.encode(prompt, true)).collect::<Result<_, _>>()?;
    let context = TOKENS + 1 + prompts.iter().map(Vec::len).max().unwrap_or(0);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/traces");
    for exit in model.exit_blocks()? {
        let options = CpuOptions { slots: 1, context, max_draft: 1, ..CpuOptions::default() };
        let mut backend = CpuBackend::new(model.geometry(), &model.weights(), Some(&exit.weights()), &options)?;
        let path = folder.join(format!("{}-exit{}.jsonl", model.name(), exit.after()));
        let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
        let (mut positions, mut accepted) = (0, 0);
        for (id, prompt) in prompts.iter().enumerate() {
            let recording = record(&mut *backend, id, prompt, &model.generation().end_tokens)?;
            positions += recording.accepted.len();
            accepted += recording.accepted.bytes().filter(|&byte| byte == b'1').count();
            writeln!(file, "{}", serde_json::to_string(&recording)?)?;
        }
        file.flush()?;
        println!("{}: {positions} positions, {accepted} drafts accepted", path.display());
    }
    Ok(())
}

/// The greedy text after `prompt`, one token a round, with what would be drafted at each position.
fn record(
    backend: &mut dyn Backend,
    id: usize,
    prompt: &[TokenId],
    end_tokens: &[TokenId],
) -> Result<Recording, Box<dyn Error>> {
    let sampler = Sampler::new(SamplingParams::default(), backend.geometry().vocab_size)?;
    let mut pool = PagePool::new(backend.limits().pages);
    let mut table = BlockTable::default();
    table.reserve(backend.limits().context, &mut pool).map_err(|missing| format!("{missing} pages are missing"))?;
    let mut tokens = prompt.to_vec();
    let prefill = &tokens[..tokens.len() - 1];
    backend.prefill(&[Chunk { pages: table.pages(), start: 0, tokens: prefill }])?;
    let mut recording = Recording { prompt: id, confidence: Vec::new(), accepted: String::new() };
    while recording.confidence.len() < TOKENS && !tokens[prompt.len()..].iter().any(|t| end_tokens.contains(t)) {
        let committed = tokens.len();
        let pages = table.pages();
        let sequence = |tokens| Sequence {
            slot: 0,
            pages,
            tokens,
            committed,
            prompt: prompt.len(),
            proposed: 0,
            recurrent: 0,
            sampler: &sampler,
        };
        let draft = backend.draft(&[sequence(&tokens)])?[0];
        let drafted = [&tokens[..], &[draft.token]].concat();
        let verdict = backend.verify(&[sequence(&drafted)])?.remove(0);
        // Only the drafted position is committed, so that the next one is drafted too.
        let accepted = verdict.accepted == 1;
        tokens.push(if accepted { draft.token } else { verdict.next });
        recording.confidence.push((draft.confidence * 1000.0).round() / 1000.0);
        recording.accepted.push(if accepted { '1' } else { '0' });
    }
    Ok(recording)
}
