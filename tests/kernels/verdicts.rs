//! A whole round's sampling on the device, `adjust`, `sample`, `accept`, against the library's own
//! [`Sampler`] on the same logits: the same drafts, the same verdicts, also where the last drafts were proposed.

use crate::device::Device;
use crate::sampling::{VOCAB, logits, partials_of};
use crate::scratch::Scratch;
use crate::support::{Noise, assert_close, from, schedules, to};
use eesd::TokenId;
use eesd::backend::cuda::kernels::{
    Accept, Address, Adjust, HeadPartial, JudgedRow, Params, RowChoice, Sample, TokenBias, Verdict, VerifiedSequence,
    sample, sampling_kernel,
};
use eesd::sample::{Drafted, History, Sampler, SamplingParams, VerifyMode};

const MOST: usize = 4;
const PROMPT: usize = 6;
const DRAFTS: [usize; 3] = [4, 2, 0];
/// How many of those are sampled, where others are proposed.
const FEWER: [usize; 3] = [1, 0, 0];

/// Three sequences with different parameters, of 4, 2 and 0 drafts; their slots are in reverse order.
struct Round {
    /// How many drafts of each sequence are sampled.
    sampled: [usize; 3],
    /// Those that are proposed.
    proposals: [Vec<TokenId>; 3],
    samplers: Vec<Sampler>,
    params: Vec<Params>,
    bias: (Vec<i32>, Vec<TokenBias>),
    /// Committed tokens of each sequence.
    histories: Vec<Vec<TokenId>>,
    target: Vec<f32>,
    draft: Vec<f32>,
}

fn slot(sequence: usize) -> usize {
    2 - sequence
}

impl Round {
    fn new(verify: VerifyMode, temperature: f64, seed: u64, sampled: [usize; 3]) -> Self {
        let mut noise = Noise::new(seed);
        let plain = |s: u64| SamplingParams {
            temperature,
            verify: Some(verify),
            seed: Some(seed * 31 + s),
            ..Default::default()
        };
        let requests = [
            SamplingParams { top_k: 60, top_p: 0.9, repetition_penalty: 1.2, frequency_penalty: 0.3, ..plain(0) },
            SamplingParams { min_p: 0.02, presence_penalty: 0.4, logit_bias: vec![(9, 2.0), (3, -1.0)], ..plain(1) },
            plain(2),
        ];
        let mut bias = (vec![0], Vec::new());
        for request in &requests {
            bias.1.extend(request.logit_bias.iter().map(|&(token, bias)| TokenBias { token, bias }));
            bias.0.push(bias.1.len() as i32);
        }
        let samplers: Vec<_> = requests.into_iter().map(|request| Sampler::new(request, VOCAB).unwrap()).collect();
        let history = |s: usize| (0..10 + 7 * s).map(|_| noise.word() as TokenId % VOCAB as TokenId).collect();
        let histories: Vec<Vec<TokenId>> = (0..3).map(history).collect();
        let mut target = logits(DRAFTS.iter().map(|k| k + 1).sum(), seed);
        // Drafts come from nearby logits, so that some are kept; the largest lie closest together.
        let distance = if temperature > 0.0 { 0.5 } else { 0.01 };
        let mut draft = vec![0.0; 3 * MOST * VOCAB];
        for s in 0..3 {
            for j in 0..DRAFTS[s] {
                let target = &target[(first_row(s) + j) * VOCAB..][..VOCAB];
                let row = &mut draft[(slot(s) * MOST + j) * VOCAB..][..VOCAB];
                row.iter_mut().zip(target).for_each(|(d, &t)| *d = t + distance * noise.unit() as f32);
            }
        }
        // Most proposals are probable. The exit block would draft them too, but less often: what it says of them is where
        // it would be if they had been drafted.
        let mut proposals = [(); 3].map(|()| Vec::new());
        for s in 0..3 {
            for j in sampled[s]..DRAFTS[s] {
                let token = noise.word() as usize % VOCAB;
                proposals[s].push(token as TokenId);
                if noise.unit() > -0.5 {
                    target[(first_row(s) + j) * VOCAB + token] = 10.0;
                    draft[(slot(s) * MOST + j) * VOCAB + token] = 9.0;
                }
            }
        }
        let params = samplers.iter().map(Params::new).collect();
        Self { sampled, proposals, samplers, params, bias, histories, target, draft }
    }

    /// What the library drafts, and how it judges that and what was proposed.
    fn expected(&self, s: usize) -> (Vec<Drafted>, u32, TokenId) {
        let sampler = &self.samplers[s];
        let mut tokens = self.histories[s].clone();
        let mut drafted = Vec::new();
        for j in 0..self.sampled[s] {
            let row = &self.draft[(slot(s) * MOST + j) * VOCAB..][..VOCAB];
            let draft = sampler.draft(History { tokens: &tokens, prompt: PROMPT }, j, row, None);
            tokens.push(draft.token);
            drafted.push(draft);
        }
        tokens.extend(&self.proposals[s]);
        drafted.extend(self.proposals[s].iter().map(|&token| Drafted::certain(token)));
        let rows = &self.target[first_row(s) * VOCAB..][..(DRAFTS[s] + 1) * VOCAB];
        let verdict = sampler.accept(History { tokens: &tokens, prompt: PROMPT }, rows, &drafted);
        (drafted, verdict.accepted as u32, verdict.next)
    }

    /// `adjust`, then `sample`, over rows of logits; outcomes go to the rows' destinations.
    fn sample(
        &self,
        on: &Device,
        logits: &[f32],
        rows: &[JudgedRow],
        drafts: &[Vec<TokenId>; 3],
        draws: bool,
        (choices, weights): (&mut [RowChoice], &mut [u64]),
    ) {
        let counts = self.counts();
        let mut recent = vec![0u32; rows.len() * MOST];
        for (row, about) in recent.chunks_mut(MOST).zip(rows) {
            let before = drafts[about.sequence as usize].iter().take(about.drafted as usize);
            row.iter_mut().zip(before).for_each(|(to, &token)| *to = token);
        }
        let raw_partials = partials_of(logits, VOCAB);
        let mut adjusted = vec![f32::NAN; logits.len()];
        let mut partials = vec![HeadPartial { max: f32::NAN, column: 0, sum: f32::NAN }; raw_partials.len()];
        let adjust = Adjust {
            logits: from(logits),
            params: from(&self.params),
            rows: from(rows),
            counts: from(&counts),
            recent: from(&recent),
            bias_begin: from(&self.bias.0),
            bias: from(&self.bias.1),
            draft_ids: Address(0),
            masks: Address(0),
            adjusted: to(&mut adjusted),
            partials: to(&mut partials),
            raw_partials: Address(0),
            vocab: VOCAB as i32,
            counts_stride: VOCAB as i32,
            most_drafts: MOST as i32,
            mask_words: 0,
        };
        // SAFETY: buffers of the sizes that cuda/adjust.cu states.
        unsafe { sampling_kernel(on, rows.len(), &adjust) }.unwrap();
        let mut scratch = Scratch::new(rows.len(), VOCAB);
        let [filters, parts] = scratch.addresses();
        let arguments = Sample {
            logits: from(&adjusted),
            partials: from(&partials),
            raw_partials: from(&raw_partials),
            params: from(&self.params),
            rows: from(rows),
            weights: to(weights),
            choices: to(choices),
            draft_ids: Address(0),
            filters,
            parts,
            vocab: VOCAB as i32,
            draws: draws.into(),
            stride: VOCAB as i32,
            padding: 0,
        };
        // SAFETY: buffers of the sizes that cuda/sample.cu states.
        unsafe { sample(on, rows.len(), true, &arguments) }.unwrap();
    }

    /// Occurrences of the committed tokens, by slot.
    fn counts(&self) -> Vec<u32> {
        let mut counts = vec![0u32; 3 * VOCAB];
        for (s, history) in self.histories.iter().enumerate() {
            for (at, &token) in history.iter().enumerate() {
                let count = &mut counts[slot(s) * VOCAB + token as usize];
                *count = if at < PROMPT { *count | 1 << 31 } else { *count + 1 };
            }
        }
        counts
    }

    fn row(&self, sequence: usize, drafted: usize, destination: usize) -> JudgedRow {
        let position = (self.histories[sequence].len() + drafted) as u32;
        let (sequence, slot, destination) = (sequence as u32, slot(sequence) as u32, destination as u32);
        JudgedRow { sequence, position, drafted: drafted as u32, slot, destination }
    }

    /// The round on the device, draft step by draft step; checked against the library. Returns how many
    /// drafts of the first sequence were kept.
    fn check(&self, on: &Device) -> u32 {
        let mut drafts = [(); 3].map(|()| Vec::new());
        let outcomes = |rows: usize| {
            (vec![RowChoice { token: u32::MAX, confidence: f32::NAN, total: 0 }; rows], vec![u64::MAX; rows * VOCAB])
        };
        let mut draft = outcomes(3 * MOST);
        for j in 0..MOST {
            // Where a draft is proposed one was made as well, and has to be forgotten.
            let drafting: Vec<_> = (0..3).filter(|&s| j < DRAFTS[s]).collect();
            let at = |&s: &usize| slot(s) * MOST + j;
            let rows: Vec<_> = drafting.iter().map(|s| self.row(*s, j, at(s))).collect();
            let logits: Vec<_> = drafting.iter().flat_map(|s| &self.draft[at(s) * VOCAB..][..VOCAB]).copied().collect();
            self.sample(on, &logits, &rows, &drafts, true, (&mut draft.0, &mut draft.1));
            let of = |s: usize| j.checked_sub(self.sampled[s]).map(|proposed| self.proposals[s][proposed]);
            drafting.iter().for_each(|s| drafts[*s].push(of(*s).unwrap_or(draft.0[at(s)].token)));
        }
        let judged = (0..3).flat_map(|s| (0..=DRAFTS[s]).map(move |j| (s, j)));
        let rows: Vec<_> = judged.enumerate().map(|(row, (s, j))| self.row(s, j, row)).collect();
        let mut target = outcomes(rows.len());
        self.sample(on, &self.target, &rows, &drafts, false, (&mut target.0, &mut target.1));

        // A token before those proposed, as in a pass.
        let mut ids = Vec::new();
        let mut sequence = |s: usize| {
            ids.push(VOCAB as TokenId + 1);
            let (drafts, sampled, proposed) = (DRAFTS[s] as u32, self.sampled[s] as u32, ids.len() as u32);
            ids.extend(&self.proposals[s]);
            let (slot, first_row) = (slot(s) as u32, first_row(s) as u32);
            VerifiedSequence { slot, first_row, committed: self.histories[s].len() as u32, drafts, sampled, proposed }
        };
        let sequences: Vec<_> = (0..3).map(&mut sequence).collect();
        let before = self.counts();
        let mut counts = before.clone();
        let mut verdicts = vec![Verdict { accepted: u32::MAX, next: u32::MAX }; 3];
        let accept = Accept {
            sequences: from(&sequences),
            params: from(&self.params),
            target: from(&target.0),
            target_weights: from(&target.1),
            draft: from(&draft.0),
            draft_weights: from(&draft.1),
            ids: from(&ids),
            counts: to(&mut counts),
            verdicts: to(&mut verdicts),
            vocab: VOCAB as i32,
            most_drafts: MOST as i32,
        };
        // SAFETY: buffers of the sizes that cuda/accept.cu states.
        unsafe { sampling_kernel(on, 3, &accept) }.unwrap();

        for s in 0..3 {
            let (drafted, accepted, next) = self.expected(s);
            assert_eq!(drafts[s], drafted.iter().map(|d| d.token).collect::<Vec<_>>(), "drafts of {s}");
            for (j, drafted) in drafted.iter().enumerate().take(self.sampled[s]) {
                let confidence = draft.0[slot(s) * MOST + j].confidence;
                assert_close(confidence.into(), drafted.confidence.into(), 2e-5, || format!("confidence {s}, {j}"));
            }
            assert_eq!((verdicts[s].accepted, verdicts[s].next), (accepted, next), "verdict of {s}");
            let mut after = before[slot(s) * VOCAB..][..VOCAB].to_vec();
            for &token in drafts[s][..accepted as usize].iter().chain([&next]) {
                after[token as usize] += 1;
            }
            assert_eq!(counts[slot(s) * VOCAB..][..VOCAB], after);
        }
        verdicts[0].accepted
    }
}

/// First target row of a sequence.
fn first_row(sequence: usize) -> usize {
    DRAFTS[..sequence].iter().map(|k| k + 1).sum()
}

fn check_rounds(verify: VerifyMode, temperature: f64, sampled: [usize; 3]) {
    let mut seen = [0; MOST + 1];
    for seed in 0..6 {
        let round = Round::new(verify, temperature, seed, sampled);
        let kept: Vec<_> = schedules().iter().map(|on| round.check(on)).collect();
        seen[kept[0] as usize] += 1;
    }
    assert!(seen.iter().filter(|&&n| n > 0).count() >= 3, "accepted lengths hardly vary: {seen:?}");
}

#[test]
fn greedy_rounds() {
    check_rounds(VerifyMode::Rejection, 0.0, DRAFTS);
}

#[test]
fn rejection_rounds() {
    check_rounds(VerifyMode::Rejection, 0.8, DRAFTS);
}

#[test]
fn coupled_rounds() {
    check_rounds(VerifyMode::Coupled, 0.8, DRAFTS);
}

#[test]
fn greedy_rounds_with_proposals() {
    check_rounds(VerifyMode::Rejection, 0.0, FEWER);
}

#[test]
fn rejection_rounds_with_proposals() {
    check_rounds(VerifyMode::Rejection, 0.8, FEWER);
}

#[test]
fn coupled_rounds_with_proposals() {
    check_rounds(VerifyMode::Coupled, 0.8, FEWER);
}
