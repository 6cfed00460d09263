//! Recurrent exit blocks on the processor: the same drafts however the work is cut, and nothing of a round's recurrent
//! steps outlives it. On the bundled model, as it is and quantised.

use crate::common::recurrent::recurrent;
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions, KvFormat, Simd};
use eesd::backend::{Backend, BackendError, Chunk, Draft, Sequence};
use eesd::control::Way::{self, Continued, FirstLayers, Recurrent};
use eesd::control::{DraftPlan, Rule};
use eesd::kv::{PAGE_TOKENS, PageId};
use eesd::load::Checkpoint;
use eesd::model::{Dtype, Quantised, Scheme};
use eesd::sample::{Sampler, SamplingParams, Verdict};
use std::num::NonZeroUsize;
use std::path::Path;

const SLOTS: usize = 4;
const CONTEXT: usize = 256;
const MAX_DRAFT: usize = 8;
const VOCAB: usize = 4096;
/// All drafts of a round, most of them recurrent, and one through the first layers among these.
const WAYS: [Way; 7] = [FirstLayers, Recurrent, Recurrent, FirstLayers, Recurrent, Recurrent, Recurrent];

/// How the model's weights, the block's two matrices, and keys and values are kept.
#[derive(Debug, Clone, Copy)]
struct Kept {
    weights: Option<Scheme>,
    matrices: Option<Dtype>,
    kv: KvFormat,
}

const KEPT: [Kept; 3] = [
    Kept { weights: None, matrices: Some(Dtype::BF16), kv: KvFormat::Full },
    Kept { weights: Some(Scheme::Q4), matrices: None, kv: KvFormat::Full },
    Kept { weights: Some(Scheme::Q8), matrices: Some(Dtype::F16), kv: KvFormat::Eight },
];

fn checkpoint() -> Checkpoint {
    Checkpoint::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pycode-4m")).unwrap()
}

fn backend(kept: Kept, threads: usize, simd: Option<Simd>) -> Box<dyn Backend> {
    let checkpoint = checkpoint();
    let blocks = checkpoint.exit_blocks().unwrap();
    let exit = recurrent(blocks[1].weights(), kept.matrices);
    let (slots, context, max_draft, kv) = (SLOTS, CONTEXT, MAX_DRAFT, kept.kv);
    let options = CpuOptions { threads: Some(threads), simd, slots, context, max_draft, kv, ..CpuOptions::default() };
    let weights = checkpoint.weights();
    let quantised = kept.weights.map(|scheme| Quantised::of(&weights, scheme, NonZeroUsize::MIN).unwrap());
    let weights = quantised.as_ref().map_or(weights.clone(), |quantised| quantised.weights(&weights));
    CpuBackend::new(checkpoint.geometry(), &weights, Some(&exit), &options).unwrap()
}

/// A text in a slot, and its round.
#[derive(Clone)]
struct Text {
    slot: usize,
    pages: Vec<PageId>,
    tokens: Vec<TokenId>,
    committed: usize,
    recurrent: usize,
    sampler: Sampler,
}

impl Text {
    fn new(slot: usize, tokens: &[TokenId]) -> Self {
        let each = CONTEXT / PAGE_TOKENS;
        let pages = (0..each).rev().map(|page| PageId((slot * each + page) as u32)).collect();
        let sampler = Sampler::new(SamplingParams::default(), VOCAB).unwrap();
        Self { slot, pages, tokens: tokens.to_vec(), committed: tokens.len(), recurrent: 0, sampler }
    }

    /// The same, all but its last token taken in, in pieces.
    fn prefilled(self, backend: &mut dyn Backend, piece: usize) -> Self {
        for (index, tokens) in self.tokens[..self.committed - 1].chunks(piece).enumerate() {
            backend.prefill(&[Chunk { pages: &self.pages, start: index * piece, tokens }]).unwrap();
        }
        self
    }

    fn sequence(&self, proposed: usize) -> Sequence<'_> {
        let Self { slot, ref pages, ref tokens, committed, recurrent, ref sampler } = *self;
        Sequence { slot, pages, tokens, committed, prompt: 1, proposed, recurrent, sampler }
    }

    fn push(&mut self, draft: Draft, way: Way) -> (TokenId, u32) {
        self.recurrent = self.sequence(0).recurrent_after(way);
        self.tokens.push(draft.token);
        (draft.token, draft.confidence.to_bits())
    }

    fn draft(&mut self, backend: &mut dyn Backend, way: Way) -> (TokenId, u32) {
        let draft = backend.draft_by(way, &[self.sequence(0)]).unwrap()[0];
        self.push(draft, way)
    }

    /// What it drafts, to the bit.
    fn drafts(&mut self, backend: &mut dyn Backend, ways: &[Way]) -> Vec<(TokenId, u32)> {
        ways.iter().map(|&way| self.draft(backend, way)).collect()
    }

    fn verify(&mut self, backend: &mut dyn Backend, proposed: usize) -> Verdict {
        let verdict = backend.verify(&[self.sequence(proposed)]).unwrap().remove(0);
        self.tokens.truncate(self.committed + verdict.accepted);
        self.tokens.push(verdict.next);
        (self.committed, self.recurrent) = (self.tokens.len(), 0);
        verdict
    }
}

/// Token ids that repeat now and then.
fn noise(seed: u32, len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|i| (i * i * 31 + seed * 977 + i / 7) % VOCAB as u32).collect()
}

#[test]
fn instruction_sets_threads_and_pieces_of_a_prompt_change_no_draft() {
    for kept in KEPT {
        let text = noise(1, 90);
        let run = |threads, simd, piece| {
            let backend = &mut *backend(kept, threads, simd);
            Text::new(0, &text).prefilled(backend, piece).drafts(backend, &WAYS)
        };
        let expected = run(1, Some(Simd::Portable), 90);
        for simd in Simd::ALL.into_iter().filter(|simd| simd.is_available()) {
            for threads in 1..=3 {
                assert_eq!(run(threads, Some(simd), 90), expected, "{kept:?}, {simd}, {threads} threads");
            }
        }
        for piece in [1, 7, 64] {
            assert_eq!(run(2, None, piece), expected, "{kept:?}, pieces of {piece}");
        }
    }
}

#[test]
fn company_changes_no_draft() {
    for kept in KEPT {
        let mut texts: Vec<Text> = [3, 130, 64, 200]
            .iter()
            .enumerate()
            .map(|(slot, &len)| Text::new(slot, &noise(len, len as usize)))
            .collect();
        let alone = &mut *backend(kept, 2, None);
        let mut expected = Vec::new();
        for text in &texts {
            expected.push(text.clone().prefilled(alone, CONTEXT).drafts(alone, &WAYS));
        }
        let together = &mut *backend(kept, 2, None);
        let mut chunks = Vec::new();
        for Text { pages, tokens, committed, .. } in &texts {
            chunks.push(Chunk { pages, start: 0, tokens: &tokens[..committed - 1] });
        }
        together.prefill(&chunks).unwrap();
        let mut found = vec![Vec::new(); SLOTS];
        for (step, way) in WAYS.into_iter().enumerate() {
            // Those in the last slots stop first, and the batch is in another order than the slots.
            let drafting: Vec<usize> = (0..SLOTS).rev().filter(|slot| step + slot <= WAYS.len()).collect();
            let batch: Vec<Sequence<'_>> = drafting.iter().map(|&slot| texts[slot].sequence(0)).collect();
            let drafts = together.draft_by(way, &batch).unwrap();
            for (slot, draft) in drafting.into_iter().zip(drafts) {
                found[slot].push(texts[slot].push(draft, way));
            }
        }
        for (slot, found) in found.iter().enumerate() {
            assert!(found.len() > 3, "only {} drafts", found.len());
            assert_eq!(found[..], expected[slot][..found.len()], "{kept:?}, sequence {slot}");
        }
    }
}

/// Left with few tokens, even an untrained block is right now and then.
fn of_few_tokens() -> Sampler {
    let logit_bias = (20..23).map(|token| (token, 90.0)).collect();
    Sampler::new(SamplingParams { logit_bias, ..SamplingParams::default() }, VOCAB).unwrap()
}

/// Whatever a round's recurrent steps left in the exit layer's cache, rounds after it draft as if the text had been taken in
/// at once: the rows that were accepted have keys and values of their own, from what the model says of them.
#[test]
fn keys_and_values_of_recurrent_steps_do_not_outlive_their_round() {
    for kept in KEPT {
        let backend = &mut *backend(kept, 2, None);
        let mut text = Text { sampler: of_few_tokens(), ..Text::new(0, &noise(5, 40)) }.prefilled(backend, CONTEXT);
        let mut accepted = 0;
        for round in 0..30 {
            let ways = &WAYS[..1 + round % 3];
            let found = text.drafts(backend, ways);
            let same = Text { sampler: of_few_tokens(), ..Text::new(1, &text.tokens[..text.committed]) };
            let expected = same.prefilled(backend, CONTEXT).drafts(backend, ways);
            assert_eq!(found, expected, "{kept:?}, round {round}, {accepted} recurrent drafts accepted");
            accepted += text.verify(backend, 0).accepted.saturating_sub(1);
        }
        assert!(accepted >= 5, "{kept:?}: only {accepted} recurrent drafts were accepted");
    }
}

/// A round that goes on from the one before drafts what that would have drafted next, had it known the pending token: by the
/// same state and keys, whichever rows came with hidden states.
#[test]
fn a_round_goes_on_where_the_one_before_was_right() {
    for kept in KEPT {
        let backend = &mut *backend(kept, 2, None);
        let mut compared = [0; 2];
        for round in 0..60 {
            let text = Text { sampler: of_few_tokens(), ..Text::new(0, &noise(round, 40)) };
            let mut drafting = text.clone().prefilled(backend, CONTEXT);
            drafting.draft(backend, FirstLayers);
            let expected = drafting.drafts(backend, &[Recurrent; 2]);
            let first = drafting.tokens[text.committed];
            // A plain round, and one whose drafts are proposed.
            for (proposed, compared) in [0, 3].into_iter().zip(&mut compared) {
                let mut continuing = Text { slot: 1, ..text.clone() }.prefilled(backend, CONTEXT);
                continuing.tokens.extend(&noise(9, proposed));
                let verdict = continuing.verify(backend, proposed);
                if verdict.accepted == 0 && verdict.next == first {
                    assert_eq!(continuing.drafts(backend, &[Continued, Recurrent]), expected, "{kept:?}, {round}");
                    *compared += 1;
                }
            }
        }
        assert!(compared.iter().all(|&compared| compared >= 5), "{kept:?}: {compared:?}");
    }
}

/// The state is that of the last row that was right, whether it was drafted one way or the other, proposed, or pending.
#[test]
fn any_round_leaves_what_the_next_one_continues() {
    for kept in KEPT {
        let backend = &mut *backend(kept, 2, None);
        let mut text = Text { sampler: of_few_tokens(), ..Text::new(0, &noise(5, 40)) }.prefilled(backend, CONTEXT);
        text.verify(backend, 0);
        let mut accepted = [0; 3];
        for round in 0..40 {
            let ways = &[Continued, Recurrent, FirstLayers][..round % 4];
            let proposed = if round % 5 == 4 { 2 } else { 0 };
            text.drafts(backend, ways);
            text.tokens.extend((0..proposed as u32).map(|token| 20 + (token + round as u32) % 3));
            let verdict = text.verify(backend, proposed);
            accepted[verdict.accepted.min(2)] += 1;
            let drafts = text.clone().drafts(backend, &[Continued, Recurrent]);
            // Verified again by a plain round at the token before, from a prompt that was taken in at once.
            let (last, before) = text.tokens.split_last().unwrap();
            let plain = Text { sampler: of_few_tokens(), ..Text::new(1, before) };
            let mut plain = plain.prefilled(backend, CONTEXT);
            plain.verify(backend, 0);
            assert_eq!(plain.tokens.last(), Some(last), "{kept:?}, round {round}");
            assert_eq!(plain.drafts(backend, &[Continued, Recurrent]), drafts, "{kept:?}, round {round}");
            // What was drafted for comparison is no round of the text: it plays a plain one before it goes on.
            text.verify(backend, 0);
        }
        assert!(accepted.iter().all(|&rounds| rounds >= 3), "{kept:?}: {accepted:?}");
    }
}

/// So does a draft through the first layers, which all rows without `h_N` go through.
#[test]
fn a_draft_through_the_first_layers_sees_what_the_model_says_of_the_recurrent_ones() {
    for kept in KEPT {
        let backend = &mut *backend(kept, 2, None);
        for recurrent in 0..4 {
            let mut text = Text::new(0, &noise(7, 70)).prefilled(backend, CONTEXT);
            text.draft(backend, FirstLayers);
            text.drafts(backend, &[Recurrent; 3][..recurrent]);
            let mut same = Text::new(1, &text.tokens).prefilled(backend, CONTEXT);
            let ways = [FirstLayers, Recurrent, Recurrent, FirstLayers];
            assert_eq!(text.drafts(backend, &ways), same.drafts(backend, &ways), "{kept:?}, after {recurrent}");
        }
    }
}

/// Every row of logits is what plain decoding gives, whichever way its draft was made, or if it was proposed.
#[test]
fn recurrent_drafts_change_no_bit_of_the_target() {
    for kept in KEPT {
        let (backend, plain) = (&mut *backend(kept, 2, None), &mut *self::backend(kept, 2, None));
        for (drafts, proposed) in [(1, 0), (2, 0), (3, 2), (4, 1), (7, 1), (2, 5)] {
            let mut text = Text::new(3, &noise(drafts as u32, 80)).prefilled(backend, CONTEXT);
            text.drafts(backend, &WAYS[..drafts]);
            text.tokens.extend(noise(9, proposed));
            let (tokens, committed) = (text.tokens.clone(), text.committed);
            text.verify(backend, proposed);
            let found = backend.target_logits(text.slot).unwrap();
            let expected = plain.evaluate(&Chunk { pages: &text.pages, start: 0, tokens: &tokens }, 0).unwrap().logits;
            let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
            assert!(bits(&found) == bits(&expected[(committed - 1) * VOCAB..]), "{kept:?}, {drafts} + {proposed}");
        }
    }
}

#[test]
fn a_plan_says_how_later_drafts_are_made() {
    let backend = &mut *backend(KEPT[0], 2, None);
    for later in [FirstLayers, Recurrent] {
        let ways = [FirstLayers, later, later, later];
        let expected = Text::new(0, &noise(3, 40)).prefilled(backend, CONTEXT).drafts(backend, &ways);
        let text = Text::new(1, &noise(3, 40)).prefilled(backend, CONTEXT);
        let plan = DraftPlan { later, rules: vec![Rule::GO; 3], ..DraftPlan::of_length(4) };
        let drafts = backend.draft_planned(&text.sequence(0), &plan, &[]).unwrap();
        assert_eq!(drafts.iter().map(|d| (d.token, d.confidence.to_bits())).collect::<Vec<_>>(), expected);
    }
}

/// A step from a state that is not there would draft from another text's.
#[test]
fn recurrent_steps_from_nothing_are_refused() {
    let backend = &mut *backend(KEPT[0], 1, None);
    let refused = |result: Result<(), BackendError>, message: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(message), "{error:?} says nothing of {message:?}");
    };
    let mut text = Text::new(0, &noise(3, 20)).prefilled(backend, CONTEXT);
    let mut step = |text: &Text| backend.draft_recurrently(&[text.sequence(0)]).map(|_| ());
    refused(
        step(&text),
        "slot 0: a recurrent draft after 0 drafts (expected at least one, the last of them just made)",
    );
    let before = text.clone();
    text.draft(backend, FirstLayers);
    let after_one = text.clone();
    text.draft(backend, Recurrent);
    // One draft less than were made, a round that is over, one that was never drafted.
    let mut step = |text: &Text| backend.draft_recurrently(&[text.sequence(0)]).map(|_| ());
    refused(step(&after_one), "slot 0: a recurrent draft after 1 drafts");
    refused(step(&before), "slot 0: a recurrent draft after 0 drafts");
    let mut other = before.clone();
    other.tokens.push((text.tokens[20] + 1) % VOCAB as u32);
    refused(step(&other), "1 drafts (expected those that were drafted there)");

    // Nothing was verified, another round was, drafts were made, it was drafted from already.
    let mut step = |text: &Text| backend.draft_continued(&[text.sequence(0)]).map(|_| ());
    let message =
        "slot 0: a draft that continues 20 tokens after 0 drafts (expected a round that was verified before them";
    refused(step(&before), message);
    let mut verified = before.clone();
    verified.verify(backend, 0);
    let mut step = |text: &Text| backend.draft_continued(&[text.sequence(0)]).map(|_| ());
    refused(step(&before), message);
    let mut drafted = verified.clone();
    assert!(step(&verified).is_ok());
    refused(step(&verified), "continues 21 tokens after 0 drafts");
    drafted.draft(backend, FirstLayers);
    refused(backend.draft_continued(&[drafted.sequence(0)]).map(|_| ()), "continues 21 tokens after 1 drafts");

    let mut text = before.prefilled(backend, CONTEXT);
    text.drafts(backend, &WAYS[..2]);
    let claimed = |recurrent| Text { recurrent, ..text.clone() };
    for (recurrent, message) in [
        (0, "slot 0: 2 drafts (expected those that were drafted there)"),
        (3, "3 of 2 sampled drafts recurrent (expected at most all)"),
    ] {
        refused(backend.verify(&[claimed(recurrent).sequence(0)]).map(|_| ()), message);
    }
    assert!(backend.is_recurrent() && backend.verify(&[claimed(1).sequence(0)]).is_ok());
    // A further draft makes no row that went without the first layers one that went through them.
    let mut text = Text { recurrent: 0, ..text.clone() }.prefilled(backend, CONTEXT);
    text.draft(backend, FirstLayers);
    refused(backend.verify(&[text.sequence(0)]).map(|_| ()), "3 drafts (expected those that were drafted there)");

    let checkpoint = checkpoint();
    let exit = checkpoint.exit_blocks().unwrap().remove(1);
    let options = CpuOptions { threads: Some(1), context: 64, ..CpuOptions::default() };
    let weights = checkpoint.weights();
    let backend = &mut *CpuBackend::new(checkpoint.geometry(), &weights, Some(&exit.weights()), &options).unwrap();
    let mut text = Text { pages: vec![PageId(0)], ..Text::new(0, &noise(3, 20)) }.prefilled(backend, CONTEXT);
    text.draft(backend, FirstLayers);
    refused(backend.draft_recurrently(&[text.sequence(0)]).map(|_| ()), "exit block: it is not recurrent");
    assert!(!backend.is_recurrent());
}
