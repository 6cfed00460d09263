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

    /// With penalties and a bias, and without.
    fn adjust(&self, on: &Device, params: &[Params], bias: &[TokenBias]) -> (Vec<f32>, Vec<HeadPartial>) {
        let mut noise = Noise::new(21);
        let counts: Vec<u32> = (0..VOCAB).map(|at| if at % 5 == 0 { noise.word() as u32 % 4 } else { 0 }).collect();
        let recent: Vec<u32> = (0..self.judged.len() * MOST_DRAFTS).map(|_| noise.word() as u32 % 300).collect();
        let (begin, bias): (Vec<i32>, _) =
            ((0..=params.len()).map(|sequence| (sequence * bias.len()) as i32).collect(), bias.repeat(params.len()));
        let tiles = self.judged.len() * self.vocab.div_ceil(32);
        let mut adjusted = vec![f32::NAN; self.logits.len()];
        let mut partials = vec![HeadPartial { max: f32::NAN, column: 0, sum: f32::NAN }; tiles];
        let arguments = Adjust {
            logits: from(&self.logits),
            params: from(params),
            rows: from(&self.judged),
            counts: from(&counts),
            recent: from(&recent),
            bias_begin: from(&begin),
            bias: from(&bias),
            draft_ids: self.ids(),
            adjusted: to(&mut adjusted),
            partials: to(&mut partials),
            vocab: self.vocab as i32,
            counts_stride: VOCAB as i32,
            most_drafts: MOST_DRAFTS as i32,
            padding: 0,
        };
        // SAFETY: buffers of the sizes that cuda/adjust.cu states.
        unsafe { sampling_kernel(on, self.judged.len(), &arguments) }.unwrap();
        (adjusted, partials)
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
        let (adjusted, partials) = listed.adjust(&on, &params, &bias);
        let (expected, _) = whole.adjust(&on, &params, &bias);
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
