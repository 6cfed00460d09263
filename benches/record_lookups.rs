//! Records what lookups find along the texts of a file of answers, for the simulator:
//! `cargo bench --bench record_lookups -- answers.jsonl benches/traces/NAME-lookups.jsonl [MODEL EXIT]`.
//!
//! The answers are greedy ones that `eesd-run distill --temp 0 --steps 0` has written: prompts and answers in tokens. At
//! every position of an answer the text so far is looked up in itself, so a trace knows what is proposed wherever a round
//! may begin, what that rests on, and how much of it is right; with a model (a folder or file) and an exit block also what
//! that drafts there. What is said, by prompts or answers, is not in it.

#[path = "simulator/found.rs"]
mod found;

use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::{Backend, Chunk, Draft, Sequence};
use eesd::draft::{Lookup, Proposal, Proposer, Text};
use eesd::kv::{BlockTable, PagePool};
use eesd::load::Checkpoint;
use eesd::sample::{Sampler, SamplingParams};
use found::{Found, Lookups, Run};
use serde::Deserialize;
use std::error::Error;
use std::fs;
use std::io::Write;

/// Most tokens proposed at once, as `--draft-max` is.
const MOST: usize = 16;

/// What is read of a line of answers.
#[derive(Deserialize)]
struct Answer {
    prompt: Vec<TokenId>,
    tokens: Vec<TokenId>,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let (answers, output, block) = match &arguments[..] {
        [answers, output] => (answers, output, None),
        [answers, output, model, exit] => (answers, output, Some((model, exit))),
        _ => return Err("expected a file of answers and one to write, and perhaps a model and an exit block".into()),
    };
    // The first line says who wrote the answers.
    let text = fs::read_to_string(answers)?;
    let answers: Vec<Answer> = text.lines().skip(1).map(serde_json::from_str).collect::<Result<_, _>>()?;
    let longest = answers.iter().map(|answer| answer.prompt.len() + answer.tokens.len()).max().unwrap_or(0);
    let mut backend = match block {
        None => None,
        Some((model, exit)) => {
            let model = Checkpoint::open(model.as_ref())?;
            let exit = model.open_exit(exit.as_ref())?;
            let options = CpuOptions { slots: 1, context: longest + 1, max_draft: 1, ..CpuOptions::default() };
            Some(CpuBackend::new(model.geometry(), &model.weights(), Some(&exit.weights()), &options)?)
        }
    };
    let mut file = std::io::BufWriter::new(fs::File::create(output)?);
    for answer in &answers {
        let drafts = backend.as_mut().map(|backend| drafts(&mut **backend, answer)).transpose()?;
        writeln!(file, "{}", serde_json::to_string(&record(answer, &drafts.unwrap_or_default()))?)?;
    }
    Ok(file.flush()?)
}

/// What an exit block drafts at each position of an answer.
fn drafts(backend: &mut dyn Backend, answer: &Answer) -> Result<Vec<Draft>, Box<dyn Error>> {
    let text = [&answer.prompt[..], &answer.tokens[..]].concat();
    let sampler = Sampler::new(SamplingParams::default(), backend.geometry().vocab_size)?;
    let mut table = BlockTable::default();
    let mut pool = PagePool::new(backend.limits().pages);
    table.reserve(text.len() + 1, &mut pool).map_err(|missing| format!("{missing} pages are missing"))?;
    let (pages, prompt) = (table.pages(), answer.prompt.len());
    backend.prefill(&[Chunk { pages, start: 0, tokens: &text[..prompt - 1] }])?;
    let mut drafts = Vec::with_capacity(answer.tokens.len());
    for committed in prompt..text.len() {
        let tokens = &text[..committed];
        let (sampler, slot, proposed, recurrent) = (&sampler, 0, 0, 0);
        let sequence = Sequence { slot, pages, tokens, committed, prompt, proposed, recurrent, sampler };
        drafts.extend(backend.draft(&[sequence])?);
        // Completes the position in all layers.
        backend.prefill(&[Chunk { pages, start: committed - 1, tokens: &text[committed - 1..committed] }])?;
    }
    Ok(drafts)
}

fn record(answer: &Answer, drafts: &[Draft]) -> Lookups {
    let text = [&answer.prompt[..], &answer.tokens[..]].concat();
    let start = answer.prompt.len();
    let mut lookup = Lookup::default();
    let mut find = |at: usize| {
        let proposal = lookup.propose(&Text { sequence: 0, tokens: &text[..at], committed: at, forced: &[] }, MOST);
        let matched = proposal.evidence.first()?.matched;
        let right = proposal.tokens.iter().zip(&text[at..]).take_while(|(a, b)| a == b).count();
        let drafted = drafts.get(at - start + right).map(|draft| draft.token);
        let fooled = drafted.is_some() && drafted == proposal.tokens.get(right).copied();
        Some(Found { right, matched, places: runs(&proposal), fooled })
    };
    let accepted =
        drafts.iter().zip(&answer.tokens).map(|(draft, &token)| if draft.token == token { '1' } else { '0' });
    Lookups {
        found: (start..text.len()).map(&mut find).collect(),
        confidence: drafts.iter().map(|draft| (draft.confidence * 100.0).round() / 100.0).collect(),
        accepted: accepted.collect(),
    }
}

fn runs(proposal: &Proposal) -> Vec<Run> {
    let places = proposal.evidence.iter().map(|evidence| ((evidence.share * 100.0).round() as u8, evidence.seen));
    let mut runs: Vec<Run> = Vec::new();
    for (share, seen) in places {
        match runs.last_mut() {
            Some(Run(tokens, a, b)) if (*a, *b) == (share, seen) => *tokens += 1,
            _ => runs.push(Run(1, share, seen)),
        }
    }
    runs
}
