//! The same bits, however the work is cut: instruction sets, threads, chunks of a prompt, batches,
//! draft lengths. All on the bundled model with its exit block after layer 2, as it is and quantised.

use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions, KvFormat, Simd};
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::{PAGE_TOKENS, PageId};
use eesd::load::Checkpoint;
use eesd::model::{Quantised, Scheme};
use eesd::sample::{Sampler, SamplingParams};
use std::num::NonZeroUsize;
use std::path::Path;

const SLOTS: usize = 4;
const CONTEXT: usize = 512;
const MAX_DRAFT: usize = 15;

/// How weights, and keys and values, are kept.
#[derive(Debug, Clone, Copy)]
struct Kept {
    weights: Option<Scheme>,
    kv: KvFormat,
}

const KEPT: [Kept; 3] = [
    Kept { weights: None, kv: KvFormat::Full },
    Kept { weights: Some(Scheme::Q4), kv: KvFormat::Full },
    Kept { weights: Some(Scheme::Q8), kv: KvFormat::Eight },
];

fn backend(kept: Kept, threads: usize, simd: Option<Simd>) -> Box<dyn Backend> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pycode-4m");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let exit = checkpoint.open_exit(&folder.join("exit-2.safetensors")).unwrap();
    let options = CpuOptions {
        threads: Some(threads),
        simd,
        slots: SLOTS,
        context: CONTEXT,
        max_draft: MAX_DRAFT,
        kv: kept.kv,
        ..CpuOptions::default()
    };
    let weights = checkpoint.weights();
    let quantised = kept.weights.map(|scheme| Quantised::of(&weights, scheme, NonZeroUsize::MIN).unwrap());
    let weights = quantised.as_ref().map_or(weights.clone(), |quantised| quantised.weights(&weights));
    CpuBackend::new(checkpoint.geometry(), &weights, Some(&exit.weights()), &options).unwrap()
}

/// The pages of a slot.
fn pages(slot: usize) -> Vec<PageId> {
    let each = CONTEXT / PAGE_TOKENS;
    (0..each).rev().map(|page| PageId((slot * each + page) as u32)).collect()
}

/// A text of sorts: token ids that repeat now and then.
fn text(seed: u32, len: usize) -> Vec<TokenId> {
    (0..len as u32).map(|i| (i * i * 31 + seed * 977 + i / 7) % 4096).collect()
}

fn greedy() -> Sampler {
    Sampler::new(SamplingParams::default(), 4096).unwrap()
}

fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|logit| logit.to_bits()).collect()
}

fn sequence<'a>(
    slot: usize,
    pages: &'a [PageId],
    tokens: &'a [TokenId],
    drafted: usize,
    sampler: &'a Sampler,
) -> Sequence<'a> {
    proposing(slot, pages, tokens, drafted, 0, sampler)
}

fn proposing<'a>(
    slot: usize,
    pages: &'a [PageId],
    tokens: &'a [TokenId],
    drafted: usize,
    proposed: usize,
    sampler: &'a Sampler,
) -> Sequence<'a> {
    Sequence { slot, pages, tokens, committed: tokens.len() - drafted, prompt: 1, proposed, recurrent: 0, sampler }
}

/// Puts all but the last token in the cache, in chunks, and gives the logits after the last one.
fn next_logits(backend: &mut dyn Backend, slot: usize, tokens: &[TokenId], chunk: usize) -> Vec<f32> {
    let (pages, sampler) = (pages(slot), greedy());
    for (index, part) in tokens[..tokens.len() - 1].chunks(chunk).enumerate() {
        backend.prefill(&[Chunk { pages: &pages, start: index * chunk, tokens: part }]).unwrap();
    }
    backend.verify(&[sequence(slot, &pages, tokens, 0, &sampler)]).unwrap();
    backend.target_logits(slot).unwrap()
}

#[test]
fn instruction_sets_and_threads_change_no_bit() {
    KEPT.into_iter().for_each(instruction_sets_and_threads_change_no_bit_kept);
}

fn instruction_sets_and_threads_change_no_bit_kept(kept: Kept) {
    let tokens = text(1, 40);
    let pages = pages(0);
    let run = |threads, simd| {
        let found = backend(kept, threads, Some(simd))
            .evaluate(&Chunk { pages: &pages, start: 0, tokens: &tokens }, 3)
            .unwrap();
        (bits(&found.logits), bits(&found.hidden))
    };
    let expected = run(1, Simd::Portable);
    for simd in Simd::ALL.into_iter().filter(|simd| simd.is_available()) {
        for threads in 1..=3 {
            assert!(run(threads, simd) == expected, "{simd}, {threads} threads");
        }
    }
}

#[test]
fn chunks_of_a_prompt_change_no_bit() {
    KEPT.into_iter().for_each(chunks_of_a_prompt_change_no_bit_kept);
}

fn chunks_of_a_prompt_change_no_bit_kept(kept: Kept) {
    let tokens = text(2, 400);
    let mut backend = backend(kept, 2, None);
    let expected = next_logits(&mut *backend, 0, &tokens, tokens.len());
    for chunk in [1, 7, 64, 96, 300] {
        let found = next_logits(&mut *backend, 1, &tokens, chunk);
        assert_eq!(bits(&found), bits(&expected), "chunks of {chunk}");
    }
    let pages = pages(2);
    let evaluated = backend.evaluate(&Chunk { pages: &pages, start: 0, tokens: &tokens }, 0).unwrap();
    assert_eq!(bits(&evaluated.logits[399 * 4096..]), bits(&expected), "evaluation");
}

#[test]
fn company_in_a_batch_changes_no_bit() {
    KEPT.into_iter().for_each(company_in_a_batch_changes_no_bit_kept);
}

fn company_in_a_batch_changes_no_bit_kept(kept: Kept) {
    let texts: Vec<Vec<TokenId>> = [3, 130, 64, 257].iter().map(|&len| text(len as u32, len)).collect();
    let mut alone = backend(kept, 2, None);
    let expected: Vec<Vec<f32>> =
        texts.iter().enumerate().map(|(slot, text)| next_logits(&mut *alone, slot, text, CONTEXT)).collect();
    let (tables, sampler): (Vec<_>, _) = ((0..SLOTS).map(pages).collect(), greedy());
    let mut together = backend(kept, 2, None);
    let chunks: Vec<Chunk<'_>> = texts
        .iter()
        .zip(&tables)
        .map(|(text, pages)| Chunk { pages, start: 0, tokens: &text[..text.len() - 1] })
        .collect();
    together.prefill(&chunks).unwrap();
    let batch: Vec<Sequence<'_>> =
        (0..SLOTS).map(|slot| sequence(slot, &tables[slot], &texts[slot], 0, &sampler)).collect();
    together.verify(&batch).unwrap();
    for (slot, expected) in expected.iter().enumerate() {
        assert_eq!(bits(&together.target_logits(slot).unwrap()), bits(expected), "sequence {slot}");
    }
}

/// Rounds of 0 to 15 drafts, four sequences at a time with different lengths, some of the drafts sampled and some proposed:
/// every row of logits is what plain decoding of the same tokens gives, and greedy verdicts follow from it.
#[test]
fn drafting_changes_no_bit_of_the_target() {
    KEPT.into_iter().for_each(drafting_changes_no_bit_of_the_target_kept);
}

fn drafting_changes_no_bit_of_the_target_kept(kept: Kept) {
    let sampler = greedy();
    let tables: Vec<Vec<PageId>> = (0..SLOTS).map(pages).collect();
    let mut backend = backend(kept, 2, None);
    let mut plain = self::backend(kept, 2, None);
    let lengths = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]];
    // Of each length: sampled ones, then proposed ones.
    let proposed = [[0; 4], [0, 1, 1, 0], [1, 5, 0, 7], [12, 3, 14, 1]];
    for (lengths, proposed) in lengths.into_iter().zip(proposed).chain([(lengths[1], [0; 4]), (lengths[3], [0; 4])]) {
        let mut texts: Vec<Vec<TokenId>> = (0..SLOTS).map(|slot| text(slot as u32, 60 + 31 * slot)).collect();
        for (text, pages) in texts.iter().zip(&tables) {
            backend.prefill(&[Chunk { pages, start: 0, tokens: &text[..text.len() - 1] }]).unwrap();
        }
        let sampled = |slot: usize| lengths[slot] - proposed[slot];
        for round in 0..MAX_DRAFT {
            let drafting: Vec<usize> = (0..SLOTS).filter(|&slot| round < sampled(slot)).collect();
            let batch: Vec<Sequence<'_>> =
                drafting.iter().map(|&slot| sequence(slot, &tables[slot], &texts[slot], round, &sampler)).collect();
            let drafts = backend.draft(&batch).unwrap();
            drafting.iter().zip(drafts).for_each(|(&slot, draft)| texts[slot].push(draft.token));
        }
        for slot in 0..SLOTS {
            let proposal = text(9 + slot as u32, proposed[slot]);
            texts[slot].extend(proposal);
        }
        let batch: Vec<Sequence<'_>> = (0..SLOTS)
            .map(|slot| proposing(slot, &tables[slot], &texts[slot], lengths[slot], proposed[slot], &sampler))
            .collect();
        let verdicts = backend.verify(&batch).unwrap();
        for slot in 0..SLOTS {
            let logits = backend.target_logits(slot).unwrap();
            assert_eq!(logits.len(), (lengths[slot] + 1) * 4096);
            let committed = texts[slot].len() - lengths[slot];
            for (row, logits) in logits.chunks(4096).enumerate() {
                let expected = next_logits(&mut *plain, slot, &texts[slot][..committed + row], CONTEXT);
                assert_eq!(bits(logits), bits(&expected), "row {row} of {} drafts", lengths[slot]);
            }
            let best = |row: usize| {
                let row = &logits[row * 4096..][..4096];
                (0..4096).reduce(|a, b| if row[b] > row[a] { b } else { a }).unwrap() as TokenId
            };
            let drafts = &texts[slot][committed..];
            let accepted = (0..lengths[slot]).take_while(|&row| drafts[row] == best(row)).count();
            assert_eq!((verdicts[slot].accepted, verdicts[slot].next), (accepted, best(accepted)));
        }
    }
}

/// A drafter's cache is in step whether it drafted, was filled by a prefill, or by a round without drafts.
#[test]
fn the_exit_layer_sees_the_same_past_however_it_came_about() {
    KEPT.into_iter().for_each(the_exit_layer_sees_the_same_past_however_it_came_about_kept);
}

fn the_exit_layer_sees_the_same_past_however_it_came_about_kept(kept: Kept) {
    let (tokens, pages, sampler) = (text(5, 90), pages(0), greedy());
    let mut drafts = Vec::new();
    for prefilled in [89, 64, 40] {
        let mut backend = backend(kept, 2, None);
        backend.prefill(&[Chunk { pages: &pages, start: 0, tokens: &tokens[..prefilled] }]).unwrap();
        for len in prefilled + 1..tokens.len() {
            // Rounds without drafts, rounds of one draft that is then rolled back, and of tokens proposed that are right.
            let mut seen = tokens[..len].to_vec();
            if len % 3 == 0 {
                let draft = backend.draft(&[sequence(0, &pages, &seen, 0, &sampler)]).unwrap();
                seen.push(draft[0].token);
            }
            let proposed = if len % 4 < 2 { &tokens[len..tokens.len().min(len + 3)] } else { &[] };
            seen.extend(proposed);
            backend.verify(&[proposing(0, &pages, &seen, seen.len() - len, proposed.len(), &sampler)]).unwrap();
        }
        let draft = backend.draft(&[sequence(0, &pages, &tokens, 0, &sampler)]).unwrap()[0];
        drafts.push((draft.token, draft.confidence.to_bits()));
    }
    assert!(drafts.iter().all(|draft| *draft == drafts[0]), "{drafts:?}");
}
