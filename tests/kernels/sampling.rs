//! `count_tokens`, `adjust`, `weigh` and `sample` against plain float64 code over sorted lists, with the library's Philox words.

use crate::device::Device;
use crate::scratch::Scratch;
use crate::support::{Noise, assert_close, device, from, schedules, to};
use eesd::backend::cuda::kernels::{
    Address, Adjust, CountTokens, HeadPartial, JudgedRow, Params, RowChoice, Sample, TokenBias, sample, sampling_kernel,
};
use eesd::sample::{Philox, Purpose};

pub const VOCAB: usize = 1000;
/// A vocabulary of several slices, the last of which is not full.
const LARGE_VOCAB: usize = 9001;
/// Tokens that rows of counts and of weights have in these tests beyond those of the head that is sampled from.
const BEYOND: usize = 24;
const STRIDE: usize = VOCAB + BEYOND;
const ONE: f64 = (1u64 << 45) as f64;
const MOST_DRAFTS: usize = 3;
const GREEDY: u32 = 0;
pub const REJECTION: u32 = 1;
const COUPLED: u32 = 2;

pub fn params(rule: u32) -> Params {
    Params {
        temperature: 0.8,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        seed: 0x1234_5678_9abc,
        top_k: 0,
        rule,
    }
}

/// A row of slot 0, whose outcome goes to row 0.
fn judged(sequence: u32, position: u32, drafted: u32) -> JudgedRow {
    JudgedRow { sequence, position, drafted, slot: 0, destination: 0 }
}

/// Of rows of `vocab` logits.
pub fn partials_of(logits: &[f32], vocab: usize) -> Vec<HeadPartial> {
    let tile = |(i, tile): (usize, &[f32])| {
        let value = |&l: &f32| if l.is_nan() { f32::NEG_INFINITY } else { l };
        let max = tile.iter().map(value).fold(f32::NEG_INFINITY, f32::max);
        let at = tile.iter().position(|l| value(l) == max).unwrap();
        let sum = if max == f32::NEG_INFINITY { 0.0 } else { tile.iter().map(|l| (value(l) - max).exp()).sum() };
        HeadPartial { max, column: (i * 32 + at) as u32, sum }
    };
    logits.chunks(vocab).flat_map(|row| row.chunks(32).enumerate().map(tile).collect::<Vec<_>>()).collect()
}

/// Rows of logits with ties, forbidden tokens and a NaN.
pub fn logits(rows: usize, seed: u64) -> Vec<f32> {
    logits_of(rows, VOCAB, seed)
}

fn logits_of(rows: usize, vocab: usize, seed: u64) -> Vec<f32> {
    let mut noise = Noise::new(seed);
    let mut logits = noise.floats(rows * vocab, 6.0);
    for row in logits.chunks_mut(vocab) {
        for _ in 0..vocab / 25 {
            let (a, b) = (noise.word() as usize % vocab, noise.word() as usize % vocab);
            row[a] = row[b];
        }
        row[noise.word() as usize % vocab] = f32::NEG_INFINITY;
        row[noise.word() as usize % vocab] = f32::NAN;
        row[7] = 0.0;
        row[5] = -0.0;
    }
    logits
}

/// Samples; outcomes go to the rows in reverse order, and come back in the order of `rows`.
fn run(on: &Device, logits: &[f32], params: &[Params], rows: &[JudgedRow], draws: bool) -> (Vec<RowChoice>, Vec<u64>) {
    let (params, rows) = (params.to_vec(), rows.to_vec());
    let (vocab, mut rows) = (logits.len() / rows.len(), rows.to_vec());
    let (partials, stride) = (partials_of(logits, vocab), vocab + BEYOND);
    let last = rows.len() as u32 - 1;
    rows.iter_mut().zip(0..).for_each(|(row, i)| row.destination = last - i);
    let mut weights = vec![u64::MAX; rows.len() * stride];
    let mut scratch = Scratch::new(rows.len(), vocab);
    let [filters, parts] = scratch.addresses();
    let weighs = params.iter().any(|params| params.rule != GREEDY);
    let mut choices = vec![RowChoice { token: u32::MAX, confidence: f32::NAN, total: 0 }; rows.len()];
    let arguments = Sample {
        logits: from(logits),
        partials: from(&partials),
        raw_partials: from(&partials),
        params: from(&params),
        rows: from(&rows),
        weights: to(&mut weights),
        choices: to(&mut choices),
        draft_ids: Address(0),
        filters,
        parts,
        vocab: vocab as i32,
        draws: draws.into(),
        stride: stride as i32,
        padding: 0,
    };
    // SAFETY: buffers of the sizes that cuda/sample.cu states.
    unsafe { sample(on, rows.len(), weighs, &arguments) }.unwrap();
    scratch.check();
    choices.reverse();
    let row = |weights: &[u64]| {
        assert!(weights[vocab..].iter().all(|&w| w == u64::MAX), "written past the vocabulary");
        weights[..vocab].to_vec()
    };
    (choices, weights.chunks(stride).rev().flat_map(row).collect())
}

/// Tokens in order of preference, with their unnormalised probabilities, as filters leave them.
fn kept(row: &[f32], params: &Params) -> Vec<(usize, f64)> {
    let mut ranked: Vec<(usize, f32)> =
        row.iter().copied().enumerate().filter(|(_, l)| *l > f32::NEG_INFINITY).collect();
    ranked.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
    let max = f64::from(ranked[0].1);
    let mut kept: Vec<_> =
        ranked.iter().map(|&(t, l)| (t, ((f64::from(l) - max) / params.temperature).exp())).collect();
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    if params.top_p < 1.0 {
        let goal = params.top_p * kept.iter().map(|k| k.1).sum::<f64>();
        let mut mass = 0.0;
        let last = kept.iter().position(|k| {
            mass += k.1;
            mass >= goal
        });
        kept.truncate(last.map_or(kept.len(), |l| l + 1));
    }
    kept.retain(|k| k.1 >= params.min_p);
    kept.sort_by_key(|k| k.0);
    kept
}

fn filters() -> Vec<Params> {
    let of = |top_k, top_p, min_p| Params { top_k, top_p, min_p, ..params(REJECTION) };
    vec![
        of(0, 1.0, 0.0),
        of(1, 1.0, 0.0),
        of(50, 1.0, 0.0),
        of(0, 0.9, 0.0),
        of(0, 1e-9, 0.0),
        of(0, 1.0, 0.05),
        of(40, 0.7, 0.1),
        of(5000, 0.999, 0.0),
        Params { temperature: 2.5, ..of(300, 0.5, 0.0) },
    ]
}

#[test]
fn filters_keep_what_sorting_keeps() {
    let params = filters();
    let rows: Vec<_> = (0..params.len() as u32).map(|i| judged(i, 100 + i, i)).collect();
    for on in schedules() {
        check_filters(&on, &params, &rows, &logits(rows.len(), 1));
    }
}

/// Over several slices, and where so many tokens have the same logit that those of a bin are not compared with each other.
#[test]
fn filters_over_several_slices() {
    let params = filters();
    let rows: Vec<_> = (0..params.len() as u32).map(|i| judged(i, 100 + i, i)).collect();
    let mut logits = logits_of(rows.len(), LARGE_VOCAB, 8);
    check_filters(&device(5), &params, &rows, &logits);
    logits.iter_mut().for_each(|logit| *logit = (*logit / 2.0).round());
    check_filters(&device(6), &params, &rows, &logits);
    logits.fill(1.0);
    check_filters(&device(7), &params, &rows, &logits);
}

fn check_filters(on: &Device, params: &[Params], rows: &[JudgedRow], logits: &[f32]) {
    let vocab = logits.len() / rows.len();
    let (choices, weights) = run(on, logits, params, rows, true);
    for (i, row) in logits.chunks(vocab).enumerate() {
        let expected = kept(row, &params[i]);
        let weights = &weights[i * vocab..][..vocab];
        let found: Vec<usize> = (0..vocab).filter(|&t| weights[t] > 0).collect();
        assert_eq!(found, expected.iter().map(|k| k.0).collect::<Vec<_>>(), "filters {i}");
        for &(token, weight) in &expected {
            assert_close(weights[token] as f64 / ONE, weight, 1e-13, || format!("filters {i}, token {token}"));
        }
        assert_eq!(choices[i].total, weights.iter().sum::<u64>());
        // The draw, by the running total of the definition.
        let uniform = Philox::new(params[i].seed, 100 + i, Purpose::Draft, i as u32).fine_uniform();
        let total: f64 = expected.iter().map(|k| k.1).sum();
        let mut reached = 0.0;
        let drawn = expected.iter().find(|k| {
            reached += k.1;
            reached >= uniform * total
        });
        assert_eq!(choices[i].token as usize, drawn.unwrap().0, "filters {i}");
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let all: f64 = row.iter().filter(|l| !l.is_nan()).map(|&l| f64::from(l - max).exp()).sum();
        assert_close(choices[i].confidence.into(), 1.0 / all, 1e-6 / all, || format!("confidence {i}"));
    }
}

#[test]
fn greedy_takes_the_lowest_of_the_largest() {
    let mut logits = logits(3, 2);
    logits[VOCAB + 900] = 50.0;
    logits[VOCAB + 411] = 50.0;
    logits[2 * VOCAB..].fill(f32::NEG_INFINITY);
    logits[2 * VOCAB + 3] = f32::NAN;
    let rows = [0, 1, 2].map(|position| judged(0, position, 0));
    for rule in [GREEDY, REJECTION, COUPLED] {
        let (choices, weights) = run(&device(2), &logits, &[Params { top_k: 1, ..params(rule) }], &rows, false);
        assert_eq!(choices[1].token, 411);
        assert_eq!((choices[2].token, choices[2].confidence), (0, 1.0));
        if rule != GREEDY {
            assert_eq!((choices[2].total, weights[2 * VOCAB]), (1, 1));
        }
    }
}

#[test]
fn coupled_is_the_argmax_of_score_plus_noise() {
    let params = [Params { rule: COUPLED, ..filters()[0] }, Params { rule: COUPLED, ..filters()[6] }];
    let rows: Vec<_> = (0..24).map(|i| judged(i % 2, 50 + i, 0)).collect();
    for (logits, vocab) in [(logits(rows.len(), 3), VOCAB), (logits_of(rows.len(), LARGE_VOCAB, 9), LARGE_VOCAB)] {
        let (choices, _) = run(&device(3), &logits, &params, &rows, true);
        let mut most_probable = 0;
        for (i, row) in logits.chunks(vocab).enumerate() {
            let noise = Philox::new(params[0].seed, 50 + i, Purpose::Gumbel, 0);
            let gumbel = |t: usize| -(-unit(noise.block(t as u32 / 4)[t % 4]).ln()).ln();
            let noisy: Vec<_> = kept(row, &params[i % 2]).into_iter().map(|(t, w)| (t, w.ln() + gumbel(t))).collect();
            let best = noisy.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a }).unwrap().0;
            assert_eq!(choices[i].token as usize, best, "row {i}");
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            most_probable += usize::from(row[best] == max);
        }
        assert!(most_probable < 20, "noise decides nothing");
        let targets = run(&device(4), &logits, &params, &rows, false).0;
        assert_eq!(
            targets.iter().map(|c| c.token).collect::<Vec<_>>(),
            choices.iter().map(|c| c.token).collect::<Vec<_>>()
        );
    }
}

fn unit(word: u32) -> f64 {
    (f64::from(word) + 0.5) / 4_294_967_296.0
}

fn adjust(
    on: &Device,
    raw: &[f32],
    params: &[Params],
    rows: &[JudgedRow],
    counts: &[u32],
    recent: &[u32],
    (bias_begin, bias): (&[i32], &[TokenBias]),
) -> (Vec<f32>, Vec<HeadPartial>) {
    let (params, rows, recent) = (params.to_vec(), rows.to_vec(), recent.to_vec());
    let (bias_begin, bias) = (bias_begin.to_vec(), bias.to_vec());
    let mut adjusted = vec![f32::NAN; raw.len()];
    let tiles = rows.len() * VOCAB.div_ceil(32);
    let mut partials = vec![HeadPartial { max: f32::NAN, column: 0, sum: f32::NAN }; tiles];
    let arguments = Adjust {
        logits: from(raw),
        params: from(&params),
        rows: from(&rows),
        counts: from(counts),
        recent: from(&recent),
        bias_begin: from(&bias_begin),
        bias: from(&bias),
        draft_ids: Address(0),
        masks: Address(0),
        adjusted: to(&mut adjusted),
        partials: to(&mut partials),
        raw_partials: Address(0),
        vocab: VOCAB as i32,
        counts_stride: STRIDE as i32,
        most_drafts: MOST_DRAFTS as i32,
        mask_words: 0,
    };
    // SAFETY: buffers of the sizes that cuda/adjust.cu states.
    unsafe { sampling_kernel(on, rows.len(), &arguments) }.unwrap();
    (adjusted, partials)
}

#[test]
fn penalties_and_bias() {
    let params = [
        Params { repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.25, ..params(REJECTION) },
        params(GREEDY),
    ];
    let rows = [(0, 2, 1), (0, 0, 1), (1, 0, 0)]
        .map(|(sequence, drafted, slot)| JudgedRow { slot, ..judged(sequence, 9, drafted) });
    let raw = logits(rows.len(), 4);
    let mut counts = vec![0u32; 2 * STRIDE];
    counts[STRIDE + 20] = 3;
    counts[STRIDE + 21] = 1 << 31;
    counts[STRIDE + 22] = 1 << 31 | 2;
    let mut recent = vec![22u32; 3 * MOST_DRAFTS];
    recent[..2].copy_from_slice(&[22, 999]);
    let bias = [TokenBias { token: 22, bias: 0.5 }, TokenBias { token: 30, bias: f32::NEG_INFINITY }];
    for on in schedules() {
        let (adjusted, partials) = adjust(&on, &raw, &params, &rows, &counts, &recent, (&[0, 2, 2], &bias));
        for (row, about) in rows.iter().enumerate() {
            for token in 0..VOCAB {
                let logit = raw[row * VOCAB + token];
                let drafted = &recent[row * MOST_DRAFTS..][..about.drafted as usize];
                let count = counts[about.slot as usize * STRIDE + token];
                let output = (count & !(1 << 31)) as usize + drafted.iter().filter(|&&t| t as usize == token).count();
                let mut expected = logit;
                if output > 0 || count > 0 {
                    let by = params[about.sequence as usize].repetition_penalty;
                    let wide = f64::from(logit);
                    let repeated = if wide > 0.0 { wide / by } else { wide * by };
                    let presence = if output > 0 { params[about.sequence as usize].presence_penalty } else { 0.0 };
                    let each = params[about.sequence as usize].frequency_penalty;
                    expected = (repeated - presence - output as f64 * each) as f32;
                }
                let applies = |b: &&TokenBias| about.sequence == 0 && b.token as usize == token;
                if let Some(b) = bias.iter().find(applies) {
                    expected += b.bias;
                }
                let found = adjusted[row * VOCAB + token];
                assert!(
                    found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(),
                    "({row}, {token})"
                );
            }
        }
        for (found, expected) in partials.iter().zip(partials_of(&adjusted, VOCAB)) {
            assert_eq!((found.max, found.column), (expected.max, expected.column));
            assert_close(found.sum.into(), expected.sum.into(), 1e-5 * f64::from(expected.sum), || "sum".into());
        }
    }
}

/// Who asks for no penalties keeps no counts: whatever is in that row, logits stay what they are.
#[test]
fn without_penalties_counts_change_nothing() {
    let rows = [judged(0, 9, 3), judged(0, 10, 0)];
    let mut raw = logits(rows.len(), 5);
    let special = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, 0.0, -0.0, 1e-45, -1e-45, f32::MAX, f32::MIN];
    let mut noise = Noise::new(6);
    let mut counts: Vec<u32> = (0..STRIDE).map(|_| noise.word() as u32).collect();
    for (at, &logit) in (0..VOCAB).step_by(7).zip(special.iter().cycle()) {
        raw[at] = logit;
        counts[at] = [u32::MAX, 1 << 31, i32::MAX as u32, 1, 0][at / 70 % 5];
    }
    let recent = [7, 7, 14, 0, 0, 0];
    for on in schedules() {
        let (adjusted, partials) = adjust(&on, &raw, &[params(COUPLED)], &rows, &counts, &recent, (&[0, 0], &[]));
        for (at, (found, expected)) in adjusted.iter().zip(&raw).enumerate() {
            assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "logit {at}");
        }
        for (found, expected) in partials.iter().zip(partials_of(&raw, VOCAB)) {
            assert_eq!((found.max, found.column), (expected.max, expected.column));
        }
    }
}

#[test]
fn tokens_are_counted() {
    let mut noise = Noise::new(7);
    let tokens: Vec<u32> = (0..1500).map(|_| noise.word() as u32 % 400).collect();
    let before: Vec<u32> = (0..VOCAB as u32).map(|token| (token % 3) | ((token % 5 / 4) << 31)).collect();
    for (start, prompt) in [(vec![0u32; VOCAB], 700), (before.clone(), 0), (before, 1500)] {
        for on in schedules() {
            let mut counts = start.clone();
            let arguments = CountTokens {
                tokens: from(&tokens),
                counts: to(&mut counts),
                count: tokens.len() as i32,
                prompt: prompt as i32,
            };
            // SAFETY: buffers of the sizes that cuda/count_tokens.cu states.
            unsafe { sampling_kernel(&on, 1, &arguments) }.unwrap();
            let mut expected = start.clone();
            tokens[..prompt].iter().for_each(|&token| expected[token as usize] |= 1 << 31);
            tokens[prompt..].iter().for_each(|&token| expected[token as usize] += 1);
            assert_eq!(counts, expected);
        }
    }
}
