//! Records what lookups find along the texts of a file of answers, for the simulator:
//! `cargo bench --bench record_lookups -- answers.jsonl benches/traces/NAME-lookups.jsonl`.
//!
//! The answers are greedy ones that `eesd-run distill --temp 0 --steps 0` has written: prompts and answers in tokens. At
//! every position of an answer the text so far is looked up in itself, so a trace knows what is proposed wherever a round
//! may begin, what that rests on, and how much of it is right. What is said, by prompts or answers, is not in it.

#[path = "simulator/found.rs"]
mod found;

use eesd::TokenId;
use eesd::draft::{Lookup, Proposer, Text};
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
    let [answers, output] = &arguments[..] else { return Err("expected a file of answers and one to write".into()) };
    let mut file = fs::File::create(output)?;
    // The first line says who wrote the answers.
    for line in fs::read_to_string(answers)?.lines().skip(1) {
        let answer: Answer = serde_json::from_str(line)?;
        writeln!(file, "{}", serde_json::to_string(&record(&answer))?)?;
    }
    Ok(())
}

fn record(answer: &Answer) -> Lookups {
    let text = [&answer.prompt[..], &answer.tokens[..]].concat();
    let mut lookup = Lookup::default();
    let find = |at: usize| {
        let proposal = lookup.propose(&Text { sequence: 0, tokens: &text[..at], committed: at }, MOST);
        let first = proposal.evidence.first()?;
        let agreed = proposal.tokens.iter().zip(&text[at..]).take_while(|(a, b)| a == b).count();
        let places = proposal.evidence.iter().map(|evidence| ((evidence.share * 100.0).round() as u8, evidence.seen));
        let mut runs: Vec<Run> = Vec::new();
        for (share, seen) in places {
            match runs.last_mut() {
                Some(Run(tokens, a, b)) if (*a, *b) == (share, seen) => *tokens += 1,
                _ => runs.push(Run(1, share, seen)),
            }
        }
        Some(Found(agreed, first.matched, runs))
    };
    Lookups { found: (answer.prompt.len()..text.len()).map(find).collect() }
}
