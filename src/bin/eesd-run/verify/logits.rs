//! Target logits, bit for bit: verifying a draft, plain steps, and reading the text in one go.

use super::Check;
use crate::failure::Outcome;
use eesd::TokenId;
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::{BlockTable, PAGE_TOKENS, PagePool};
use eesd::sample::{Sampler, SamplingParams};

/// Drafts of the verified rounds.
const DRAFTS: [usize; 4] = [1, 3, 7, 15];

/// Compares one round of each draft length after each prompt.
pub fn check(backend: &mut dyn Backend, prompts: &[Vec<TokenId>]) -> Outcome<Check> {
    let (mut rows, mut difference) = (0, None);
    for (number, prompt) in prompts.iter().enumerate() {
        let k = DRAFTS[number % DRAFTS.len()].min(backend.limits().max_draft);
        if prompt.len() + k + 1 > backend.limits().context {
            continue;
        }
        let same = compare(backend, prompt, k)?;
        rows += same.len();
        if let Some(row) = same.iter().position(|same| !same) {
            difference.get_or_insert(format!("prompt {number}, row {row} of {}: bits differ", k + 1));
        }
    }
    Ok(Check {
        check: "logits",
        controller: "-".into(),
        compared: format!("{} prompts, {rows} rows of {}", prompts.len(), backend.geometry().vocab_size),
        passed: difference.is_none() && rows > 0,
        result: difference
            .unwrap_or_else(|| if rows > 0 { "equal to the last bit" } else { "no prompt fits the context" }.into()),
    })
}

/// For each of the `k + 1` rows of a round: are the three ways' logits the same bits?
fn compare(backend: &mut dyn Backend, prompt: &[TokenId], k: usize) -> Outcome<Vec<bool>> {
    let sampler = Sampler::new(SamplingParams::default(), backend.geometry().vocab_size)?;
    let mut table = BlockTable::default();
    let positions = prompt.len() + k + 1;
    let mut pool = PagePool::new(positions.div_ceil(PAGE_TOKENS));
    if table.reserve(positions, &mut pool).is_err() {
        unreachable!("the pool was made for these positions");
    }
    let pages = table.pages();
    let n = prompt.len();
    if n > 1 {
        backend.prefill(&[Chunk { pages, start: 0, tokens: &prompt[..n - 1] }])?;
    }
    // The sequence as it stands when the first `committed` of `tokens` are committed.
    fn at<'a>(tokens: &'a [TokenId], committed: usize, base: Sequence<'a>) -> Sequence<'a> {
        Sequence { tokens, committed, ..base }
    }
    let base = Sequence {
        slot: 0,
        pages,
        tokens: prompt,
        committed: n,
        prompt: n,
        proposed: 0,
        recurrent: 0,
        sampler: &sampler,
    };

    let (mut tokens, mut round) = (prompt.to_vec(), base);
    for drafted in 0..k {
        let way = backend.way_of_next(drafted, false);
        let sequence = at(&tokens, n, round);
        let draft = backend.draft_by(way, &[sequence])?[0];
        round.recurrent = sequence.recurrent_after(way);
        tokens.push(draft.token);
    }
    backend.verify(&[at(&tokens, n, round)])?;
    let speculative = backend.target_logits(0)?;
    let mut plain = Vec::new();
    for committed in n..=n + k {
        backend.verify(&[at(&tokens[..committed], committed, base)])?;
        plain.extend(backend.target_logits(0)?);
    }
    let vocab = backend.geometry().vocab_size;
    let read = backend.evaluate(&Chunk { pages, start: 0, tokens: &tokens }, 0)?;
    let read = &read.logits[(n - 1) * vocab..];
    let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let rows = speculative.chunks(vocab).zip(plain.chunks(vocab)).zip(read.chunks(vocab));
    Ok(rows.map(|((a, b), c)| bits(a) == bits(b) && bits(a) == bits(c)).collect())
}
