//! `adjust` and `sample` on the logits of listed tokens: what they make of a row of all tokens where the others are
//! forbidden.

use crate::device::Device;
use crate::sampling::{VOCAB, logits, params, partials_of};
use crate::scratch::Scratch;
use crate::support::{Noise, assert_close, from, schedules, to};
use eesd::backend::cuda::kernels::{
    Address, Adjust, HeadPartial, JudgedRow, Params, RowChoice, Sample, TokenBias, sample, sampling_kernel,
};

const MOST_DRAFTS: usize = 3;

/// Adjusted logits and their partials, and those of the logits before.
type Adjusted = (Vec<f32>, Vec<HeadPartial>, Vec<HeadPartial>);

/// Rows of logits, and their tokens: all, or those of a list.
struct Rows {
    logits: Vec<f32>,
    vocab: usize,
    ids: Option<Vec<u32>>,
    judged: Vec<JudgedRow>,
}

impl Rows {
    fn ids(&self) -> Address {
        self.ids.as_ref().map_or(Address(0), |ids| from(ids))
    }

    /// With penalties and a bias, and without, under masks of so many words where there are any; the last partials are those
    /// of what masks leave.
    fn adjust(&self, on: &Device, params: &[Params], bias: &[TokenBias], masks: (&[u32], usize)) -> Adjusted {
        let mut noise = Noise::new(21);
        let counts: Vec<u32> = (0..VOCAB).map(|at| if at % 5 == 0 { noise.word() as u32 % 4 } else { 0 }).collect();
        let recent: Vec<u32> = (0..self.judged.len() * MOST_DRAFTS).map(|_| noise.word() as u32 % 300).collect();
        let (begin, bias): (Vec<i32>, _) =
            ((0..=params.len()).map(|sequence| (sequence * bias.len()) as i32).collect(), bias.repeat(params.len()));
        let tiles = self.judged.len() * self.vocab.div_ceil(32);
        let mut adjusted = vec![f32::NAN; self.logits.len()];
        let mut partials = vec![HeadPartial { max: f32::NAN, column: 0, sum: f32::NAN }; tiles];
        let mut raw_partials = partials_of(&self.logits, self.vocab);
        let arguments = Adjust {
            logits: from(&self.logits),
            params: from(params),
            rows: from(&self.judged),
            counts: from(&counts),
            recent: from(&recent),
            bias_begin: from(&begin),
            bias: from(&bias),
            draft_ids: self.ids(),
            masks: if masks.0.is_empty() { Address(0) } else { from(masks.0) },
            adjusted: to(&mut adjusted),
            partials: to(&mut partials),
            raw_partials: to(&mut raw_partials),
            vocab: self.vocab as i32,
            counts_stride: VOCAB as i32,
            most_drafts: MOST_DRAFTS as i32,
            mask_words: masks.1 as i32,
        };
        // SAFETY: buffers of the sizes that cuda/adjust.cu states.
        unsafe { sampling_kernel(on, self.judged.len(), &arguments) }.unwrap();
        (adjusted, partials, raw_partials)
    }

    /// Weights are by token, and 0 where nothing was written.
    fn sample(&self, on: &Device, params: &[Params], adjusted: &[f32]) -> (Vec<RowChoice>, Vec<u64>) {
        let (raw_partials, partials) = (partials_of(&self.logits, self.vocab), partials_of(adjusted, self.vocab));
        let mut weights = vec![0; self.judged.len() * VOCAB];
        let mut choices = vec![RowChoice { token: u32::MAX, confidence: f32::NAN, total: 0 }; self.judged.len()];
        let mut scratch = Scratch::new(self.judged.len(), self.vocab);
        let [filters, parts] = scratch.addresses();
        let arguments = Sample {
            logits: from(adjusted),
            partials: from(&partials),
            raw_partials: from(&raw_partials),
            params: from(params),
            rows: from(&self.judged),
            weights: to(&mut weights),
            choices: to(&mut choices),
            draft_ids: self.ids(),
            filters,
            parts,
            vocab: self.vocab as i32,
            draws: 1,
            stride: VOCAB as i32,
            padding: 0,
        };
        // SAFETY: buffers of the sizes that cuda/sample.cu states.
        unsafe { sample(on, self.judged.len(), true, &arguments) }.unwrap();
        (choices, weights)
    }
}

#[test]
fn listed_tokens_are_a_row_with_the_others_forbidden() {
    // Every filter under each rule.
    let filters = |rule| {
        let off = Params { seed: 77, ..params(rule) };
        [
            off,
            Params { top_k: 40, repetition_penalty: 1.3, ..off },
            Params { top_p: 0.8, presence_penalty: 0.5, ..off },
            Params { min_p: 0.01, frequency_penalty: 0.25, ..off },
        ]
    };
    let params: Vec<Params> = (0..3).flat_map(filters).collect();
    let judge = |i: u32| JudgedRow { sequence: i, position: 40 + i, drafted: i % 4, slot: 0, destination: 11 - i };
    let judged: Vec<JudgedRow> = (0..12).map(judge).collect();
    // More than a block of threads has, and runs of neighbours that share words of noise.
    let ids: Vec<u32> = (0..VOCAB as u32).filter(|id| id % 7 != 3 && id % 5 != 1).collect();
    let all = logits(judged.len(), 20);
    let chosen = |row: &[f32]| ids.iter().map(|&id| row[id as usize]).collect::<Vec<f32>>();
    let forbidden = |row: &[f32]| {
        let allowed =
            |(id, &logit): (u32, &f32)| if ids.binary_search(&id).is_ok() { logit } else { f32::NEG_INFINITY };
        (0..).zip(row).map(allowed).collect::<Vec<f32>>()
    };
    let mut few: Vec<f32> = all.chunks(VOCAB).flat_map(chosen).collect();
    let mut wide: Vec<f32> = all.chunks(VOCAB).flat_map(forbidden).collect();
    // One row has no possible token: then the first of the list is certain.
    few[5 * ids.len()..6 * ids.len()].fill(f32::NEG_INFINITY);
    wide[5 * VOCAB..6 * VOCAB].fill(f32::NEG_INFINITY);
    let listed = Rows { logits: few, vocab: ids.len(), ids: Some(ids.clone()), judged: judged.clone() };
    let whole = Rows { logits: wide, vocab: VOCAB, ids: None, judged };
    let bias = [TokenBias { token: 2, bias: 1.5 }, TokenBias { token: 999, bias: 4.0 }];
    for on in schedules() {
        let (adjusted, partials, _) = listed.adjust(&on, &params, &bias, (&[], 0));
        let (expected, ..) = whole.adjust(&on, &params, &bias, (&[], 0));
        for (found, expected) in adjusted.chunks(ids.len()).zip(expected.chunks(VOCAB).map(chosen)) {
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
            assert!(found.iter().zip(&expected).all(same));
        }
        for (found, expected) in partials.iter().zip(partials_of(&adjusted, ids.len())) {
            assert_eq!((found.max, found.column), (expected.max, expected.column));
        }
        let (found, weights) = listed.sample(&on, &params, &adjusted);
        let (expected, all_weights) = whole.sample(&on, &params, &expected);
        for (row, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let (of, params) = (row * VOCAB..(row + 1) * VOCAB, &params[11 - row]);
            if row == 11 - 5 {
                assert_eq!((found.token, found.confidence, found.total), (ids[0], 1.0, (params.rule > 0).into()));
                let certain: Vec<usize> = (0..VOCAB).filter(|&token| weights[of.start + token] != 0).collect();
                assert_eq!(certain, if params.rule > 0 { vec![ids[0] as usize] } else { vec![] });
                continue;
            }
            assert_eq!((found.token, found.total), (expected.token, expected.total), "{params:?}");
            assert_eq!(weights[of.clone()], all_weights[of], "{params:?}");
            assert_close(found.confidence.into(), expected.confidence.into(), 1e-6, || format!("{params:?}"));
        }
        let distinct: std::collections::BTreeSet<u32> = found.iter().map(|choice| choice.token).collect();
        assert!(distinct.len() > 4, "{distinct:?}");
    }
}

/// Masks of a bit for each token: what is not in a row's own is forbidden before all else, in rows of all tokens and of listed
/// ones; the partials of what is left are those by which a draft is confident.
#[test]
fn masks_leave_the_tokens_of_their_row() {
    let words = VOCAB.div_ceil(32);
    assert_ne!(VOCAB % 32, 0, "the last word is no full one");
    let off = params(1);
    let params = vec![off, Params { repetition_penalty: 1.3, presence_penalty: 0.5, ..off }, off, off];
    let judge = |i: u32| JudgedRow { sequence: i % 4, position: 40 + i, drafted: i % 4, slot: 0, destination: 7 - i };
    let judged: Vec<JudgedRow> = (0..8).map(judge).collect();
    // Some tokens; those but for whole words of 32; the last ones alone, at the end of the last word; all, and bits of no token.
    let mut noise = Noise::new(31);
    let of_last = |token: u32| token + 3 >= VOCAB as u32;
    let mut masks: Vec<u32> = (0..4 * words).map(|_| noise.word() as u32).collect();
    (words..2 * words).step_by(2).for_each(|word| masks[word] = 0);
    masks[2 * words..3 * words].fill(0);
    (0..VOCAB as u32).filter(|&t| of_last(t)).for_each(|t| masks[2 * words + t as usize / 32] |= 1 << (t % 32));
    masks[3 * words..].fill(u32::MAX);
    let allowed = |row: usize, token: u32| {
        let word = masks[judged[row].sequence as usize * words + token as usize / 32];
        word >> (token % 32) & 1 == 1
    };
    let ids: Vec<u32> = (0..VOCAB as u32).filter(|id| id % 7 != 3 && id % 5 != 1).collect();
    let all = logits(judged.len(), 30);
    let few: Vec<f32> = all.chunks(VOCAB).flat_map(|row| ids.iter().map(|&id| row[id as usize])).collect();
    let whole = Rows { logits: all, vocab: VOCAB, ids: None, judged: judged.clone() };
    let listed = Rows { logits: few, vocab: ids.len(), ids: Some(ids), judged: judged.clone() };
    let bias = [TokenBias { token: 2, bias: 1.5 }, TokenBias { token: 999, bias: 4.0 }];
    for on in schedules() {
        for rows in [&whole, &listed] {
            let token = |column: usize| rows.ids.as_ref().map_or(column as u32, |ids| ids[column]);
            let left = |(row, logits): (usize, &[f32])| {
                let left = |(column, &logit)| if allowed(row, token(column)) { logit } else { f32::NEG_INFINITY };
                logits.iter().enumerate().map(left).collect::<Vec<f32>>()
            };
            let masked: Vec<f32> = rows.logits.chunks(rows.vocab).enumerate().flat_map(left).collect();
            let plain = Rows { logits: masked.clone(), ids: rows.ids.clone(), judged: judged.clone(), ..*rows };
            let (expected, ..) = plain.adjust(&on, &params, &bias, (&[], 0));
            let (adjusted, partials, raw_partials) = rows.adjust(&on, &params, &bias, (&masks, words));
            for (at, (found, expected)) in adjusted.iter().zip(&expected).enumerate() {
                let place = (at / rows.vocab, token(at % rows.vocab));
                assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{place:?}");
            }
            for (found, logits) in [(&partials, &adjusted), (&raw_partials, &masked)] {
                for (found, expected) in found.iter().zip(partials_of(logits, rows.vocab)) {
                    assert_eq!((found.max, found.column), (expected.max, expected.column));
                    assert_close(found.sum.into(), expected.sum.into(), 1e-5 * f64::from(expected.sum), || {
                        "sum".into()
                    });
                }
            }
            // A row may differ from its neighbour's only where masks do.
            let finite = |row: &[f32]| row.iter().filter(|logit| **logit > f32::NEG_INFINITY).count();
            let left: Vec<usize> = masked.chunks(rows.vocab).map(finite).collect();
            assert!(left[2] <= 3 && left[2] > 0 && left[0] > 2 * left[2] && left[3] > left[0], "{left:?}");
        }
    }
}
