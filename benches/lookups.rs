//! What proposals cost: microseconds to take one more token in and to propose eight, in a text of 8192 tokens and among
//! 200,000 of others. Run: `cargo bench --bench lookups`.

use eesd::TokenId;
use eesd::draft::{Lookup, Proposer, Shared, Text};
use eesd::sample::{Philox, Purpose};
use std::hint::black_box;
use std::time::Instant;

const CONTEXT: usize = 8192;
const OTHERS: usize = 200_000;
const PROPOSED: usize = 8;
const ROUNDS: usize = 2000;

fn main() {
    let text = text(CONTEXT, 1);
    println!("| source | first proposal, µs | each further one, µs |\n|---|--:|--:|");
    print("lookup", &mut Lookup::default(), &text);
    let mut shared = Shared::new(Shared::TOKENS);
    let others = self::text(OTHERS, 2);
    for (number, other) in others.chunks(500).enumerate() {
        shared.end(&Text { sequence: number as u64, tokens: other, committed: other.len(), forced: &[] }, true);
    }
    print("shared", &mut shared, &text);
}

fn print(name: &str, proposer: &mut dyn Proposer, text: &[TokenId]) {
    let mut propose = |committed: usize| {
        let text = Text { sequence: 1 << 32, tokens: &text[..committed], committed, forced: &[] };
        let start = Instant::now();
        black_box(proposer.propose(black_box(&text), PROPOSED));
        start.elapsed().as_secs_f64() * 1e6
    };
    let first = propose(CONTEXT - ROUNDS);
    let mut further: Vec<f64> = (CONTEXT - ROUNDS + 1..=CONTEXT).map(&mut propose).collect();
    further.sort_by(f64::total_cmp);
    println!(
        "| {name} | {first:.0} | {:.1} (99 of 100 below {:.1}) |",
        further[ROUNDS / 2],
        further[ROUNDS * 99 / 100]
    );
}

/// A text whose tokens are as frequent as words are (Zipf), with phrases of it that come again.
fn text(tokens: usize, seed: u64) -> Vec<TokenId> {
    let mut random = Philox::new(seed, 0, Purpose::Draft, 0);
    let mut text: Vec<TokenId> = Vec::with_capacity(tokens);
    while text.len() < tokens {
        if text.len() > 100 && random.uniform() < 0.05 {
            let from = (random.uniform() * (text.len() - 20) as f64) as usize;
            text.extend_from_within(from..from + 20);
        } else {
            text.push((50_000f64.powf(random.uniform())) as TokenId);
        }
    }
    text.truncate(tokens);
    text
}
