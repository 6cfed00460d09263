//! Proposed tokens by rejection sampling are lossless: whatever is proposed, and whatever the exit block would have said
//! of it, what follows a text is as often this token or that as the target has it. χ² over many sequences.

use crate::chi_squared::{p_value, uniformity};
use crate::sampling::{REJECTION, params};
use crate::support::{Noise, device, from, to};
use eesd::backend::cuda::kernels::{Accept, Address, Params, RowChoice, Verdict, VerifiedSequence, sampling_kernel};

const VOCAB: usize = 6;
/// Drafts of each sequence. Of every other one the first is sampled; all others are proposed.
const DRAFTS: usize = 2;
/// Sequences behind one p-value.
const SEQUENCES: usize = 800;
/// p-values of each position.
const BLOCKS: usize = 8;

/// Rows of weights, some of them 0, and their totals.
fn distributions(noise: &mut Noise, rows: usize) -> (Vec<u64>, Vec<RowChoice>) {
    let weight = |noise: &mut Noise| ((noise.unit() + 0.7).max(0.0).powi(2) * (1u64 << 40) as f64) as u64;
    let weights: Vec<u64> = (0..rows * VOCAB).map(|_| weight(noise)).collect();
    let total = |row: &[u64]| RowChoice { token: 0, confidence: 1.0, total: row.iter().sum() };
    let totals = weights.chunks(VOCAB).map(total).collect();
    (weights, totals)
}

fn drawn(noise: &mut Noise, weights: &[u64]) -> u32 {
    let mut left = (0.5 + 0.5 * noise.unit()) * weights.iter().sum::<u64>() as f64;
    let reached = |&weight: &u64| {
        left -= weight as f64;
        left < 0.0
    };
    weights.iter().position(reached).unwrap() as u32
}

#[test]
fn what_follows_is_as_often_as_the_target_has_it() {
    let on = device(3);
    let mut noise = Noise::new(16);
    // The same target for all; each has what an exit block of its own says.
    let (target_weights, target) = distributions(&mut noise, DRAFTS + 1);
    let mut p_values = vec![Vec::new(); DRAFTS + 1];
    for block in 0..BLOCKS {
        let (draft_weights, mut draft) = distributions(&mut noise, SEQUENCES * DRAFTS);
        let mut ids: Vec<u32> = Vec::new();
        let mut sequences = Vec::new();
        let mut drafts = Vec::new();
        for s in 0..SEQUENCES {
            draft[s * DRAFTS].token = drawn(&mut noise, &draft_weights[s * DRAFTS * VOCAB..][..VOCAB]);
            // The most probable one, which is kept too often where it is not judged by the target alone; and each in
            // turn, also what the target never says, or the exit block.
            let proposals: [u32; DRAFTS] = std::array::from_fn(|j| match s / 2 % 3 {
                0 => ((s / 6 + j) % VOCAB) as u32,
                _ => (0..VOCAB).max_by_key(|&token| target_weights[j * VOCAB + token]).unwrap() as u32,
            });
            let (slot, sampled, proposed) = (s as u32, (s % 2) as u32, ids.len() as u32);
            ids.extend(&proposals[s % 2..]);
            drafts.push([if s % 2 == 1 { draft[s * DRAFTS].token } else { proposals[0] }, proposals[1]]);
            let drafts = DRAFTS as u32;
            sequences.push(VerifiedSequence { slot, first_row: 0, committed: 40, drafts, sampled, proposed });
        }
        let params: Vec<Params> =
            (0..SEQUENCES).map(|s| Params { seed: (block * SEQUENCES + s) as u64, ..params(REJECTION) }).collect();
        let mut verdicts = vec![Verdict { accepted: u32::MAX, next: u32::MAX }; SEQUENCES];
        let accept = Accept {
            sequences: from(&sequences),
            params: from(&params),
            target: from(&target),
            target_weights: from(&target_weights),
            draft: from(&draft),
            draft_weights: from(&draft_weights),
            ids: from(&ids),
            counts: Address(0),
            verdicts: to(&mut verdicts),
            vocab: VOCAB as i32,
            most_drafts: DRAFTS as i32,
        };
        // SAFETY: buffers of the sizes that cuda/accept.cu states.
        unsafe { sampling_kernel(&on, SEQUENCES, &accept) }.unwrap();

        // What was written at each position, of those that came so far.
        let mut counts = vec![vec![0; VOCAB]; DRAFTS + 1];
        for (verdict, drafts) in verdicts.iter().zip(drafts) {
            let written = drafts.into_iter().take(verdict.accepted as usize).chain([verdict.next]);
            written.zip(&mut counts).for_each(|(token, counts)| counts[token as usize] += 1);
        }
        for (position, counts) in counts.iter().enumerate() {
            let total = target[position].total as f64;
            let chances = target_weights[position * VOCAB..][..VOCAB].iter().map(|&weight| weight as f64 / total);
            p_values[position].push(p_value(counts, &chances.collect::<Vec<_>>()));
        }
    }
    for (position, p_values) in p_values.into_iter().enumerate() {
        let least = p_values.iter().copied().fold(1.0, f64::min);
        let uniform = uniformity(p_values);
        assert!(least > 1e-5 && uniform > 1e-3, "position {position}: least p-value {least}, uniform by {uniform}");
    }
}
