//! Rounds with proposed tokens, for which nothing has run before they are verified: logits, cache and verdicts are those of
//! plain decoding, beside drafts that were sampled and without any; and few graphs serve them.

use crate::sampling::{Drafting, PROMPT, Text, drafting_as_the_model, play_with};
use crate::support::{Subject, bits, emulated, on, options, table};
use eesd::TokenId;
use eesd::backend::cuda::CudaOptions;
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::BlockTable;
use eesd::sample::{Sampler, SamplingParams, VerifyMode};
use std::cell::Cell;

const SLOTS: usize = 4;

fn greedy(subject: &Subject) -> Sampler {
    Sampler::new(SamplingParams::default(), subject.geometry().vocab_size).unwrap()
}

/// Block tables of 320 positions.
fn tables() -> Vec<BlockTable> {
    (0..SLOTS).map(|slot| table(slot * 5, 320)).collect()
}

fn options_of_these() -> CudaOptions {
    CudaOptions { prefill_rows: 128, pages: Some(SLOTS * 5), ..options(SLOTS) }
}

fn prefill(backend: &mut dyn Backend, texts: &[Vec<TokenId>], tables: &[BlockTable]) {
    for (tokens, table) in texts.iter().zip(tables) {
        backend.prefill(&[Chunk { pages: table.pages(), start: 0, tokens: &tokens[..tokens.len() - 1] }]).unwrap();
    }
}

/// Sequences whose last `drafted` tokens are drafts, and of those the last ones proposed.
fn batch<'a>(
    texts: &'a [Vec<TokenId>],
    tables: &'a [BlockTable],
    sampler: &'a Sampler,
    drafts: &[[usize; 2]],
) -> Vec<Sequence<'a>> {
    let sequence = |slot: usize| {
        let (tokens, [sampled, proposed]) = (&texts[slot], drafts[slot]);
        let committed = tokens.len() - sampled - proposed;
        Sequence { slot, pages: tables[slot].pages(), tokens, committed, prompt: 1, proposed, recurrent: 0, sampler }
    };
    (0..texts.len()).map(sequence).collect()
}

/// Rounds of these drafts, sampled and proposed, one after the other in the same slots: each row is what steps without
/// drafts give, and what is kept follows from it.
fn check_rounds(subject: &Subject, exit: Option<usize>, prompts: [usize; SLOTS], rounds: &[[[usize; 2]; SLOTS]]) {
    let (sampler, tables, vocab) = (greedy(subject), tables(), subject.geometry().vocab_size);
    let mut backend = subject.cuda(exit, &options_of_these());
    let mut plain = subject.cuda(None, &options_of_these());
    for (number, drafts) in rounds.iter().enumerate() {
        let prompt = |slot: usize| subject.text((10 * number + slot) as u64, prompts[slot]);
        let prompts: Vec<Vec<TokenId>> = (0..SLOTS).map(prompt).collect();
        let mut texts = prompts.clone();
        prefill(&mut *backend, &texts, &tables);
        for step in 0.. {
            let active = |slot: &usize| step < drafts[*slot][0];
            let all = batch(&texts, &tables, &sampler, &[[step, 0]; SLOTS]);
            let drafting: Vec<Sequence<'_>> = (0..SLOTS).filter(active).map(|slot| all[slot]).collect();
            if drafting.is_empty() {
                break;
            }
            let found = backend.draft(&drafting).unwrap();
            (0..SLOTS).filter(active).zip(found).for_each(|(slot, draft)| texts[slot].push(draft.token));
        }
        for (slot, text) in texts.iter_mut().enumerate() {
            text.extend(subject.text((100 * number + slot) as u64, drafts[slot][1]));
        }
        let verdicts = backend.verify(&batch(&texts, &tables, &sampler, drafts)).unwrap();

        prefill(&mut *plain, &prompts, &tables);
        for slot in 0..SLOTS {
            let found = backend.target_logits(slot).unwrap();
            let (text, committed) = (&texts[slot], prompts[slot].len());
            let mut kept = None;
            for (row, found) in found.chunks(vocab).enumerate() {
                let tokens = &text[..committed + row];
                let pages = tables[slot].pages();
                let step = Sequence {
                    slot,
                    pages,
                    tokens,
                    committed: tokens.len(),
                    prompt: 1,
                    proposed: 0,
                    recurrent: 0,
                    sampler: &sampler,
                };
                let next = plain.verify(&[step]).unwrap()[0].next;
                let expected = plain.target_logits(slot).unwrap();
                let case = format!("{}, slot {slot}, row {row} of {:?}", subject.name(), drafts[slot]);
                assert!(bits(found) == bits(&expected), "{case}");
                if kept.is_none() && text.get(committed + row) != Some(&next) {
                    kept = Some((row, next));
                }
            }
            assert_eq!(found.len(), (text.len() - committed + 1) * vocab);
            assert_eq!(Some((verdicts[slot].accepted, verdicts[slot].next)), kept);
        }
    }
}

#[test]
fn every_row_is_what_plain_decoding_gives() {
    // One row for everybody; few of each; up to 17 rows of one, past a chunk of attention; and few after many.
    let rounds = [
        [[0, 0], [0, 3], [2, 2], [3, 0]],
        [[0, 16], [5, 11], [16, 0], [1, 1]],
        [[1, 4], [0, 1], [4, 0], [2, 12]],
        [[2, 1], [0, 2], [3, 3], [0, 0]],
    ];
    check_rounds(&Subject::fixture("qwen2"), Some(2), [30, 1, 62, 252], &rounds);
    check_rounds(&Subject::fixture("mistral"), Some(1), [9, 40, 63, 250], &rounds[1..3]);
}

#[test]
fn a_model_without_an_exit_block_takes_proposals() {
    let rounds =
        [[[0, 5], [0, 0], [0, 2], [0, 7]], [[0, 16], [0, 1], [0, 3], [0, 9]], [[0, 1], [0, 0], [0, 0], [0, 4]]];
    check_rounds(&Subject::fixture("llama"), None, [12, 33, 64, 250], &rounds);
}

/// What a text leaves in the cache does not tell how it came about, the exit layer included: by a prefill, by rounds whose
/// drafts were sampled and by rounds whose drafts were proposed; nor do pages that were saved in between.
#[test]
fn the_cache_is_the_same_however_a_text_came_about() {
    let subject = Subject::fixture("qwen3");
    let (sampler, all) = (greedy(&subject), subject.text(5, 90));
    let mut found = Vec::new();
    for begin in [90, 40] {
        let mut backend = subject.cuda(Some(2), &options_of_these());
        let mut pages = table(0, 192).pages().to_vec();
        backend.prefill(&[Chunk { pages: &pages, start: 0, tokens: &all[..begin - 1] }]).unwrap();
        let mut len = begin;
        while len < all.len() {
            let mut seen = all[..len].to_vec();
            let sequence = Sequence {
                slot: 1,
                pages: &pages,
                tokens: &seen,
                committed: len,
                prompt: 1,
                proposed: 0,
                recurrent: 0,
                sampler: &sampler,
            };
            // Now and then a draft that is verified in front of the proposals, or that gives way to them.
            let draft = if len % 3 > 0 { backend.draft(&[sequence]).unwrap().first().copied() } else { None };
            let sampled = draft.filter(|draft| len % 3 == 1 || draft.token == all[len]);
            seen.extend(sampled.map(|draft| draft.token));
            let from = len + usize::from(sampled.is_some());
            let right = &all[from..all.len().min(from + len % 5)];
            seen.extend(right);
            let proposed = right.len();
            let round = Sequence {
                slot: 1,
                pages: &pages,
                tokens: &seen,
                committed: len,
                prompt: 1,
                proposed,
                recurrent: 0,
                sampler: &sampler,
            };
            backend.verify(&[round]).unwrap();
            // Then comes a token that nobody drafted. What was proposed behind a wrong draft was right in vain.
            let right = sampled.is_none_or(|draft| draft.token == all[len]);
            len = if right { seen.len() + 1 } else { len + 1 }.min(all.len());
            if len.is_multiple_of(4) {
                let saved = backend.save_pages(&pages).unwrap();
                pages = table(if pages[0].0 == 0 { 7 } else { 0 }, 192).pages().to_vec();
                backend.restore_pages(&saved, &pages).unwrap();
            }
        }
        let next = Sequence {
            slot: 1,
            pages: &pages,
            tokens: &all,
            committed: all.len(),
            prompt: 1,
            proposed: 0,
            recurrent: 0,
            sampler: &sampler,
        };
        let draft = backend.draft(&[next]).unwrap()[0];
        backend.verify(&[next]).unwrap();
        let logits = bits(&backend.target_logits(1).unwrap());
        // The first page is full; behind the text others have what was refused.
        let page = backend.save_pages(&pages[..1]).unwrap().bytes().to_vec();
        found.push((draft.token, draft.confidence.to_bits(), logits, page));
    }
    assert!(found[0] == found[1]);
}

/// Proposes what plain decoding says next, often with a wrong token among it.
fn lookup(free: &[Vec<TokenId>], vocab: usize, round: usize, text: &Text) -> Vec<TokenId> {
    let right = free[text.slot].iter().skip(text.tokens.len()).take((2 * round + text.slot) % 5);
    let mut proposal: Vec<TokenId> = right.copied().collect();
    if (round + text.slot).is_multiple_of(2)
        && let Some(token) = proposal.get_mut(round % 3)
    {
        *token = (*token + 1) % vocab as TokenId;
    }
    proposal
}

/// Penalties, biases that change within a round, log-probabilities; greedy and coupled; beside each other.
#[test]
fn verdicts_are_the_librarys_and_texts_those_without_drafts() {
    let subject = Subject::fixture("llama3_rope_sharded");
    let vocab = subject.geometry().vocab_size;
    let coupled = SamplingParams {
        temperature: 0.7,
        seed: Some(5),
        verify: Some(VerifyMode::Coupled),
        ..SamplingParams::default()
    };
    let of_slot = |slot: usize| match slot % 4 {
        0 => SamplingParams {
            repetition_penalty: 1.4,
            frequency_penalty: 0.3,
            logprobs: Some(3),
            ..SamplingParams::default()
        },
        1 => SamplingParams { logprobs: Some(0), ..SamplingParams::default() },
        2 => SamplingParams {
            presence_penalty: 0.8,
            top_k: 50,
            logit_bias: vec![(1, 3.0), (2, -9.0)],
            ..coupled.clone()
        },
        _ => SamplingParams { top_p: 0.9, min_p: 0.01, logprobs: Some(1), ..coupled.clone() },
    };
    let mut backend = drafting_as_the_model(&subject, &options(6));
    let none = Drafting { length: &|_, _| 0, propose: &|_, _| Vec::new() };
    let mut texts: Vec<Text> = (0..6).map(|slot| Text::new(&subject, slot, of_slot(slot))).collect();
    play_with(&mut *backend, &mut texts, 4, &none);
    let said: Vec<Vec<TokenId>> = texts.iter().map(|text| text.tokens[PROMPT..].to_vec()).collect();
    let text = |slot: usize| {
        // What it would say is forbidden in places: from a round's first row on, and from one amid proposals.
        let bad_words = vec![said[slot][1..3].to_vec(), vec![said[slot][3]]];
        let sampling = SamplingParams { bad_words: if slot > 2 { bad_words } else { vec![] }, ..of_slot(slot) };
        let mut text = Text::new(&subject, slot, sampling);
        text.sampler = text.sampler.forbidding_among_first(2 * slot, vec![said[slot][0], said[slot][2]]);
        text
    };
    let mut plain: Vec<Text> = (0..6).map(text).collect();
    play_with(&mut *backend, &mut plain, 40, &none);
    let free: Vec<Vec<TokenId>> = plain.into_iter().map(|text| text.tokens).collect();

    let (sampled, proposed) = (Cell::new(0), Cell::new(0));
    let length = |round: usize, text: &Text| {
        let length = if round.is_multiple_of(2) { 0 } else { (round + text.slot) % 4 };
        sampled.set(sampled.get() + length);
        length
    };
    let propose = |round: usize, text: &Text| {
        let proposal = lookup(&free, vocab, round, text);
        proposed.set(proposed.get() + proposal.len());
        proposal
    };
    let mut texts: Vec<Text> = (0..6).map(text).collect();
    let kept = play_with(&mut *backend, &mut texts, 7, &Drafting { length: &length, propose: &propose });
    // Everything sampled is right here.
    let kept = kept - sampled.get();
    assert!(kept > 10 && kept + 10 < proposed.get(), "{kept} of {} proposals kept", proposed.get());
    for (text, free) in texts.iter().zip(&free) {
        assert_eq!(text.tokens, free[..text.tokens.len()], "slot {}", text.slot);
    }
}

/// By rejection sampling a proposal is judged by the target alone: here three tokens are nearly all of it.
#[test]
fn proposals_are_kept_by_chance_as_the_library_keeps_them() {
    let subject = Subject::fixture("llama3_rope_sharded");
    let of_slot = |slot: usize| SamplingParams {
        temperature: 0.9,
        seed: Some(slot as u64),
        verify: Some(VerifyMode::Rejection),
        logit_bias: vec![(7, 40.0), (9, 40.0), (11, 40.0)],
        frequency_penalty: if slot.is_multiple_of(2) { 0.2 } else { 0.0 },
        logprobs: (slot == 1).then_some(2),
        ..SamplingParams::default()
    };
    let propose = |round: usize, text: &Text| -> Vec<TokenId> {
        // Some that were never there.
        let token = |i: usize| [7, 9, 11, 9, 7, 12][(round + 2 * text.slot + i * i) % 6];
        (0..(round + text.slot) % 6).map(token).collect()
    };
    let mut backend = subject.cuda(Some(2), &options(6));
    let mut texts: Vec<Text> = (0..6).map(|slot| Text::new(&subject, slot, of_slot(slot))).collect();
    let kept = play_with(&mut *backend, &mut texts, 9, &Drafting { length: &|_, _| 0, propose: &propose });
    assert!(kept > 10, "{kept} kept");
}

/// Rounds with proposals are launched as other rounds are, in as many kernels; and numbers of tokens that come without
/// hidden states share graphs.
#[test]
fn rounds_with_proposals_are_few_graphs() {
    let subject = Subject::fixture("llama");
    let device = emulated(0, 1 << 30);
    let mut backend = on(&device, &options(1)).unwrap();
    let (sampler, pages, tokens) = (greedy(&subject), table(0, 128), subject.text(3, 30));
    let committed = 12;
    let text = &tokens[..committed];
    backend.prefill(&[Chunk { pages: pages.pages(), start: 0, tokens: &text[..committed - 1] }]).unwrap();
    let mut verify = |sampled: usize, proposed: usize| {
        let mut seen = text.to_vec();
        for _ in 0..sampled {
            let sequence = Sequence {
                slot: 0,
                pages: pages.pages(),
                tokens: &seen,
                committed,
                prompt: 1,
                proposed: 0,
                recurrent: 0,
                sampler: &sampler,
            };
            let draft = backend.draft(&[sequence]).unwrap()[0];
            seen.push(draft.token);
        }
        seen.extend(&tokens[committed..committed + proposed]);
        let before = device.counts();
        let round = Sequence {
            slot: 0,
            pages: pages.pages(),
            tokens: &seen,
            committed,
            prompt: 1,
            proposed,
            recurrent: 0,
            sampler: &sampler,
        };
        backend.verify(&[round]).unwrap();
        let after = device.counts();
        assert_eq!((after.replays - before.replays, after.waits - before.waits), (1, 1));
        (after.kernels - before.kernels, after.recordings - before.recordings)
    };
    let (kernels, _) = verify(0, 0);
    // As many rows in all: those without hidden states are 1, 2, 3 or 4, and 5 to 8 of them, or 9.
    let rounds: Vec<(u64, u64)> = (0..=8).map(|proposed| verify(8 - proposed, proposed)).collect();
    assert!(rounds.iter().all(|round| round.0 == kernels), "{rounds:?}, {kernels} without drafts");
    let recordings: Vec<u64> = rounds.iter().map(|round| round.1).collect();
    assert_eq!(recordings, [1, 1, 1, 0, 1, 0, 0, 0, 1]);
}
