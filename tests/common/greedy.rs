//! Greedy decoding beside a reference's.

use eesd::TokenId;
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::PageId;
use eesd::sample::{Sampler, SamplingParams};

/// Decodes plainly from a prompt and compares each token with the reference's; stops at a near-tie, of logits no further
/// apart than twice the tolerance, that went the other way.
///
/// # Errors
/// The first token that differs otherwise.
pub fn follow(
    backend: &mut dyn Backend,
    pages: &[PageId],
    prompt: &[TokenId],
    wanted: &[TokenId],
    tolerance: f32,
) -> Result<(), String> {
    let mut tokens = prompt.to_vec();
    backend.prefill(&[Chunk { pages, start: 0, tokens: &prompt[..prompt.len() - 1] }]).unwrap();
    let sampler = Sampler::new(SamplingParams::default(), backend.geometry().vocab_size).unwrap();
    for (index, &wanted) in wanted.iter().enumerate() {
        let committed = tokens.len();
        let sequence = Sequence {
            slot: 0,
            pages,
            tokens: &tokens,
            committed,
            prompt: prompt.len(),
            proposed: 0,
            recurrent: 0,
            sampler: &sampler,
        };
        let next = backend.verify(&[sequence]).unwrap()[0].next;
        if next != wanted {
            let logits = backend.target_logits(0).unwrap();
            let margin = logits[next as usize] - logits[wanted as usize];
            if margin > 2.0 * tolerance {
                return Err(format!("greedy token {index} is {next} (expected {wanted}), ahead by {margin}"));
            }
            println!("  greedy token {index} is a tie (margin {margin:.1e}): stopped there");
            return Ok(());
        }
        tokens.push(next);
    }
    Ok(())
}
