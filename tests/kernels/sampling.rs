//! `adjust`, `sample`, `accept`: against plain float64 code over sorted lists, Philox words against the
//! library's own, and verdicts against the definition of each rule.

use crate::support::{Noise, assert_close, emulator, from, schedules, to};
use eesd::backend::cuda::emulator::Emulator;
use eesd::backend::cuda::kernels::{
    Accept, Adjust, HeadPartial, JudgedRow, Params, RowChoice, Sample, TokenBias, Verdict, VerifiedSequence,
    sampling_kernel,
};
use eesd::sample::{Philox, Purpose};

const VOCAB: usize = 1000;
const ONE: f64 = (1u64 << 45) as f64;
const GREEDY: u32 = 0;
const REJECTION: u32 = 1;
const COUPLED: u32 = 2;

fn params(rule: u32) -> Params {
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

/// As `fine_uniform` in src/sample/philox.rs: two words, high first, in steps of 2⁻⁵².
fn fine_uniform(seed: u64, position: usize, purpose: Purpose, index: u32) -> f64 {
    let [high, low, ..] = Philox::new(seed, position, purpose, index).block(0);
    let bits = (u64::from(high) << 32 | u64::from(low)) >> 12;
    (bits as f64 + 0.5) / (1u64 << 52) as f64
}

fn partials_of(logits: &[f32]) -> Vec<HeadPartial> {
    let tile = |(i, tile): (usize, &[f32])| {
        let value = |&l: &f32| if l.is_nan() { f32::NEG_INFINITY } else { l };
        let max = tile.iter().map(value).fold(f32::NEG_INFINITY, f32::max);
        let at = tile.iter().position(|l| value(l) == max).unwrap();
        let sum = if max == f32::NEG_INFINITY { 0.0 } else { tile.iter().map(|l| (value(l) - max).exp()).sum() };
        HeadPartial { max, token: (i * 32 + at) as u32, sum }
    };
    logits.chunks(VOCAB).flat_map(|row| row.chunks(32).enumerate().map(tile).collect::<Vec<_>>()).collect()
}

/// Rows of logits with ties, forbidden tokens and a NaN.
fn logits(rows: usize, seed: u64) -> Vec<f32> {
    let mut noise = Noise::new(seed);
    let mut logits = noise.floats(rows * VOCAB, 6.0);
    for row in logits.chunks_mut(VOCAB) {
        for _ in 0..40 {
            let (a, b) = (noise.word() as usize % VOCAB, noise.word() as usize % VOCAB);
            row[a] = row[b];
        }
        row[noise.word() as usize % VOCAB] = f32::NEG_INFINITY;
        row[noise.word() as usize % VOCAB] = f32::NAN;
        row[7] = 0.0;
        row[5] = -0.0;
    }
    logits
}

fn run(
    on: &Emulator,
    logits: &[f32],
    params: &[Params],
    rows: &[JudgedRow],
    draws: bool,
) -> (Vec<RowChoice>, Vec<u64>) {
    let partials = partials_of(logits);
    let mut weights = vec![u64::MAX; logits.len()];
    let mut choices = vec![RowChoice { token: u32::MAX, confidence: f32::NAN, total: 0 }; rows.len()];
    let arguments = Sample {
        logits: from(logits),
        partials: from(&partials),
        raw_partials: from(&partials),
        params: from(params),
        rows: from(rows),
        weights: to(&mut weights),
        choices: to(&mut choices),
        vocab: VOCAB as i32,
        draws: draws.into(),
    };
    // SAFETY: buffers of the sizes that cuda/sample.cu states.
    unsafe { sampling_kernel(on, rows.len(), &arguments) }.unwrap();
    (choices, weights)
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
    let rows: Vec<_> =
        (0..params.len() as u32).map(|i| JudgedRow { sequence: i, position: 100 + i, drafted: i, slot: 0 }).collect();
    let logits = logits(rows.len(), 1);
    for on in schedules() {
        let (choices, weights) = run(&on, &logits, &params, &rows, true);
        for (i, row) in logits.chunks(VOCAB).enumerate() {
            let expected = kept(row, &params[i]);
            let weights = &weights[i * VOCAB..][..VOCAB];
            let found: Vec<usize> = (0..VOCAB).filter(|&t| weights[t] > 0).collect();
            assert_eq!(found, expected.iter().map(|k| k.0).collect::<Vec<_>>(), "filters {i}");
            for &(token, weight) in &expected {
                assert_close(weights[token] as f64 / ONE, weight, 1e-13, || format!("filters {i}, token {token}"));
            }
            assert_eq!(choices[i].total, weights.iter().sum::<u64>());
            // The draw, by the running total of the definition.
            let uniform = fine_uniform(params[i].seed, 100 + i, Purpose::Draft, i as u32);
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
}

#[test]
fn greedy_takes_the_lowest_of_the_largest() {
    let mut logits = logits(3, 2);
    logits[VOCAB + 900] = 50.0;
    logits[VOCAB + 411] = 50.0;
    logits[2 * VOCAB..].fill(f32::NEG_INFINITY);
    logits[2 * VOCAB + 3] = f32::NAN;
    let rows = [0, 1, 2].map(|position| JudgedRow { sequence: 0, position, drafted: 0, slot: 0 });
    for rule in [GREEDY, REJECTION, COUPLED] {
        let (choices, weights) = run(&emulator(2), &logits, &[Params { top_k: 1, ..params(rule) }], &rows, false);
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
    let rows: Vec<_> = (0..24).map(|i| JudgedRow { sequence: i % 2, position: 50 + i, drafted: 0, slot: 0 }).collect();
    let logits = logits(rows.len(), 3);
    let (choices, _) = run(&emulator(3), &logits, &params, &rows, true);
    let mut most_probable = 0;
    for (i, row) in logits.chunks(VOCAB).enumerate() {
        let noise = Philox::new(params[0].seed, 50 + i, Purpose::Gumbel, 0);
        let gumbel = |t: usize| -(-unit(noise.block(t as u32 / 4)[t % 4]).ln()).ln();
        let noisy: Vec<_> = kept(row, &params[i % 2]).into_iter().map(|(t, w)| (t, w.ln() + gumbel(t))).collect();
        let best = noisy.iter().copied().reduce(|a, b| if b.1 > a.1 { b } else { a }).unwrap().0;
        assert_eq!(choices[i].token as usize, best, "row {i}");
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        most_probable += usize::from(row[best] == max);
    }
    assert!(most_probable < 20, "noise decides nothing");
    let targets = run(&emulator(4), &logits, &params, &rows, false).0;
    assert_eq!(
        targets.iter().map(|c| c.token).collect::<Vec<_>>(),
        choices.iter().map(|c| c.token).collect::<Vec<_>>()
    );
}

fn unit(word: u32) -> f64 {
    (f64::from(word) + 0.5) / 4_294_967_296.0
}

#[test]
fn penalties_and_bias() {
    let params = [
        Params { repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.25, ..params(REJECTION) },
        params(GREEDY),
    ];
    let rows = [(0, 2, 1), (0, 0, 1), (1, 0, 0)].map(|(sequence, drafted, slot)| JudgedRow {
        sequence,
        position: 9,
        drafted,
        slot,
    });
    let raw = logits(rows.len(), 4);
    let mut counts = vec![0u32; 2 * VOCAB];
    counts[VOCAB + 20] = 3;
    counts[VOCAB + 21] = 1 << 31;
    counts[VOCAB + 22] = 1 << 31 | 2;
    let mut recent = vec![0u32; 3 * 16];
    recent[..2].copy_from_slice(&[22, 999]);
    let bias = [TokenBias { token: 22, bias: 0.5 }, TokenBias { token: 30, bias: f32::NEG_INFINITY }];
    let begin = [0i32, 2, 2];
    let tiles = VOCAB.div_ceil(32);
    for on in schedules() {
        let mut adjusted = vec![f32::NAN; raw.len()];
        let mut partials = vec![HeadPartial { max: f32::NAN, token: 0, sum: f32::NAN }; rows.len() * tiles];
        let arguments = Adjust {
            logits: from(&raw),
            params: from(&params),
            rows: from(&rows),
            counts: from(&counts),
            recent: from(&recent),
            bias_begin: from(&begin),
            bias: from(&bias),
            adjusted: to(&mut adjusted),
            partials: to(&mut partials),
            vocab: VOCAB as i32,
            padding: 0,
        };
        // SAFETY: buffers of the sizes that cuda/adjust.cu states.
        unsafe { sampling_kernel(&on, rows.len(), &arguments) }.unwrap();
        for (row, about) in rows.iter().enumerate() {
            for token in 0..VOCAB {
                let logit = raw[row * VOCAB + token];
                let drafted = &recent[row * 16..][..about.drafted as usize];
                let count = counts[about.slot as usize * VOCAB + token];
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
        for (found, expected) in partials.iter().zip(partials_of(&adjusted)) {
            assert_eq!((found.max, found.token), (expected.max, expected.token));
            assert_close(found.sum.into(), expected.sum.into(), 1e-5 * f64::from(expected.sum), || "sum".into());
        }
    }
}

/// Everything that a round of `sequences` leaves for the verdict.
struct Round {
    sequences: Vec<VerifiedSequence>,
    params: Vec<Params>,
    target: (Vec<RowChoice>, Vec<u64>),
    draft: (Vec<RowChoice>, Vec<u64>),
    tokens: Vec<u32>,
}

const CONTEXT: usize = 64;
const MOST: usize = 4;

impl Round {
    /// Drafts 4, 2, 0 tokens from logits near the target's.
    fn new(rule: u32, seed: u64) -> Self {
        let drafts = [4u32, 2, 0];
        let params: Vec<_> = (0..3).map(|s| Params { seed: seed * 10 + s, top_p: 0.95, ..params(rule) }).collect();
        let mut sequences = Vec::new();
        let (mut rows, mut draft_rows) = (Vec::new(), Vec::new());
        let mut draft_logits = vec![0.0f32; 3 * MOST * VOCAB];
        let mut first_row = 0;
        let target_logits = logits(9, seed);
        let mut noise = Noise::new(seed + 99);
        for (s, &k) in (0..).zip(&drafts) {
            let committed = 10 + 7 * s;
            // Slots in another order than sequences.
            let slot = 2 - s;
            sequences.push(VerifiedSequence { slot, first_row, committed, drafts: k });
            rows.extend((0..=k).map(|j| JudgedRow { sequence: s, position: committed + j, drafted: j, slot }));
            for j in 0..k {
                let target = &target_logits[(first_row + j) as usize * VOCAB..][..VOCAB];
                let row = &mut draft_logits[(slot as usize * MOST + j as usize) * VOCAB..][..VOCAB];
                row.iter_mut().zip(target).for_each(|(d, &t)| *d = t + 0.3 * noise.unit() as f32);
            }
            first_row += k + 1;
        }
        for slot in 0..3 {
            let sequence = 2 - slot;
            let start = 10 + 7 * sequence;
            draft_rows.extend((0..MOST as u32).map(|j| JudgedRow { sequence, position: start + j, drafted: j, slot }));
        }
        let on = emulator(seed);
        let target = run(&on, &target_logits, &params, &rows, false);
        let draft = run(&on, &draft_logits, &params, &draft_rows, true);
        let mut tokens = vec![u32::MAX; 3 * CONTEXT];
        for s in &sequences {
            for j in 0..s.drafts as usize {
                tokens[s.slot as usize * CONTEXT + s.committed as usize + j] =
                    draft.0[s.slot as usize * MOST + j].token;
            }
        }
        Self { sequences, params, target, draft, tokens }
    }

    fn verdicts(&self, on: &Emulator) -> (Vec<Verdict>, Vec<u32>) {
        let mut tokens = self.tokens.clone();
        let mut lengths = vec![0u32; 3];
        let mut counts = vec![0u32; 3 * VOCAB];
        let mut verdicts = vec![Verdict { accepted: u32::MAX, next: u32::MAX }; 3];
        let arguments = Accept {
            sequences: from(&self.sequences),
            params: from(&self.params),
            target: from(&self.target.0),
            target_weights: from(&self.target.1),
            draft: from(&self.draft.0),
            draft_weights: from(&self.draft.1),
            tokens: to(&mut tokens),
            lengths: to(&mut lengths),
            counts: to(&mut counts),
            verdicts: to(&mut verdicts),
            vocab: VOCAB as i32,
            context: CONTEXT as i32,
            most_drafts: MOST as i32,
            padding: 0,
        };
        // SAFETY: buffers of the sizes that cuda/accept.cu states.
        unsafe { sampling_kernel(on, 3, &arguments) }.unwrap();
        for (about, verdict) in self.sequences.iter().zip(&verdicts) {
            let slot = about.slot as usize;
            let emitted = verdict.accepted as usize + 1;
            assert_eq!(lengths[slot], about.committed + emitted as u32);
            assert_eq!(tokens[slot * CONTEXT + (about.committed + verdict.accepted) as usize], verdict.next);
            assert_eq!(counts[slot * VOCAB..][..VOCAB].iter().sum::<u32>() as usize, emitted);
            for &token in &tokens[slot * CONTEXT + about.committed as usize..][..emitted] {
                assert!(counts[slot * VOCAB + token as usize] > 0);
            }
        }
        (verdicts, tokens)
    }

    /// Rejection sampling by its definition, in float64.
    fn expected(&self, s: usize) -> (u32, u32) {
        let about = self.sequences[s];
        let seed = self.params[s].seed;
        let distribution = |(choices, weights): &(Vec<RowChoice>, Vec<u64>), row: usize| -> Vec<f64> {
            weights[row * VOCAB..][..VOCAB].iter().map(|&w| w as f64 / choices[row].total as f64).collect()
        };
        let pick = |weights: &[f64], uniform: f64| {
            let goal = uniform * weights.iter().sum::<f64>();
            let mut reached = 0.0;
            let at = weights.iter().position(|&w| {
                reached += w;
                w > 0.0 && reached >= goal
            });
            at.unwrap() as u32
        };
        for j in 0..about.drafts as usize {
            let p = distribution(&self.target, about.first_row as usize + j);
            let q = distribution(&self.draft, about.slot as usize * MOST + j);
            let position = about.committed as usize + j;
            let token = self.tokens[about.slot as usize * CONTEXT + position] as usize;
            let u = Philox::new(seed, position, Purpose::Accept, 0).uniform();
            if p[token] > 0.0 && u * q[token] <= p[token] {
                continue;
            }
            let beyond: Vec<f64> = p.iter().zip(&q).map(|(p, q)| (p - q).max(0.0)).collect();
            return (j as u32, pick(&beyond, fine_uniform(seed, position, Purpose::Residual, 0)));
        }
        let last = (about.first_row + about.drafts) as usize;
        let uniform = fine_uniform(seed, (about.committed + about.drafts) as usize, Purpose::Bonus, 0);
        (about.drafts, pick(&distribution(&self.target, last), uniform))
    }
}

#[test]
fn rejection_follows_its_definition() {
    let mut seen = [0; 5];
    for seed in 0..12 {
        let round = Round::new(REJECTION, seed);
        for on in schedules() {
            let verdicts = round.verdicts(&on).0;
            for (s, verdict) in verdicts.iter().enumerate() {
                assert_eq!((verdict.accepted, verdict.next), round.expected(s), "seed {seed}, sequence {s}");
            }
        }
        seen[round.expected(0).0 as usize] += 1;
    }
    assert!(seen.iter().filter(|&&n| n > 0).count() >= 3, "accepted lengths do not vary: {seen:?}");
}

#[test]
fn greedy_and_coupled_accept_while_equal() {
    let mut lengths = [0; 5];
    for (rule, seed) in [GREEDY, COUPLED].into_iter().flat_map(|rule| (0..8).map(move |seed| (rule, seed))) {
        let round = Round::new(rule, seed);
        let verdicts = round.verdicts(&emulator(seed)).0;
        for (about, verdict) in round.sequences.iter().zip(&verdicts) {
            let target = |j: u32| round.target.0[(about.first_row + j) as usize].token;
            let draft = |j: u32| round.tokens[about.slot as usize * CONTEXT + (about.committed + j) as usize];
            let accepted = (0..about.drafts).take_while(|&j| draft(j) == target(j)).count() as u32;
            assert_eq!((verdict.accepted, verdict.next), (accepted, target(accepted)));
        }
        lengths[verdicts[0].accepted as usize] += 1;
    }
    assert!(lengths.iter().filter(|&&n| n > 0).count() >= 2, "accepted lengths do not vary: {lengths:?}");
}
