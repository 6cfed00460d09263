//! What the device decides about a round, against the library's own sampler on the logits that it decided by;
//! over many rounds, so that counts of tokens kept on the device are those of the text.

use crate::support::{CONTEXT, Subject, engine, on_device, options, run, table};
use eesd::TokenId;
use eesd::backend::cuda::CudaOptions;
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::engine::{Completion, Finish, Request};
use eesd::kv::BlockTable;
use eesd::model::ExitWeights;
use eesd::sample::{Drafted, History, Sampler, SamplingParams, VerifyMode};

pub const PROMPT: usize = 7;

pub struct Text {
    pub slot: usize,
    pub tokens: Vec<TokenId>,
    pub table: BlockTable,
    pub sampler: Sampler,
}

impl Text {
    pub fn new(subject: &Subject, slot: usize, sampling: SamplingParams) -> Self {
        let sampler = Sampler::new(sampling, subject.geometry().vocab_size).unwrap();
        let table = table(slot * 3, 3 * 64);
        Self { slot, tokens: subject.text(slot as u64, PROMPT), table, sampler }
    }

    /// The text with a round's drafts at its end, the last of them proposed.
    pub fn round(&self, drafted: usize, proposed: usize) -> Sequence<'_> {
        Sequence {
            slot: self.slot,
            pages: self.table.pages(),
            tokens: &self.tokens,
            committed: self.tokens.len() - drafted,
            prompt: PROMPT,
            proposed,
            recurrent: 0,
            sampler: &self.sampler,
        }
    }
}

/// With an exit block that is the model's own last layer: what it drafts is what the model says, so where draft and
/// verification forbid the same every draft is kept.
pub fn drafting_as_the_model(subject: &Subject, options: &CudaOptions) -> Box<dyn Backend> {
    let (weights, last) = (subject.checkpoint.weights(), subject.geometry().layers - 1);
    on_device(subject.geometry(), &weights, Some(&ExitWeights::from_model(&weights, last, last)), options)
}

/// Drafts of a text in a round of [`play`].
fn length(round: usize, text: &Text) -> usize {
    (round + text.slot) % 5
}

/// What is drafted for a text in a round of [`play_with`]: how many tokens are sampled, and, once they are its last ones,
/// what is proposed after them.
pub struct Drafting<'a> {
    pub length: &'a dyn Fn(usize, &Text) -> usize,
    pub propose: &'a dyn Fn(usize, &Text) -> Vec<TokenId>,
}

fn play(backend: &mut dyn Backend, texts: &mut [Text], rounds: usize) -> usize {
    play_with(backend, texts, rounds, &Drafting { length: &length, propose: &|_, _| Vec::new() })
}

/// Plays rounds of ragged lengths for all texts side by side; returns how many drafts were kept.
pub fn play_with(backend: &mut dyn Backend, texts: &mut [Text], rounds: usize, drafting: &Drafting<'_>) -> usize {
    for text in &*texts {
        let chunk = Chunk { pages: text.table.pages(), start: 0, tokens: &text.tokens[..PROMPT - 1] };
        backend.prefill(&[chunk]).unwrap();
    }
    let mut kept = 0;
    for round in 0..rounds {
        let lengths: Vec<usize> = texts.iter().map(|text| (drafting.length)(round, text)).collect();
        let mut drafted: Vec<Vec<Drafted>> = texts.iter().map(|_| Vec::new()).collect();
        for step in 0..4 {
            let active: Vec<usize> = (0..texts.len()).filter(|&i| step < lengths[i]).collect();
            let batch: Vec<_> = active.iter().map(|&i| texts[i].round(step, 0)).collect();
            let drafts = backend.draft(&batch).unwrap();
            for (&i, draft) in active.iter().zip(drafts) {
                texts[i].tokens.push(draft.token);
                drafted[i].push(Drafted { token: draft.token, confidence: draft.confidence, q: Vec::new() });
            }
        }
        for (text, drafted) in texts.iter_mut().zip(&mut drafted) {
            let proposed = (drafting.propose)(round, text);
            text.tokens.extend(&proposed);
            drafted.extend(proposed.into_iter().map(Drafted::certain));
        }
        let all = texts.iter().zip(drafted.iter().zip(&lengths));
        let batch: Vec<_> =
            all.map(|(text, (drafted, &sampled))| text.round(drafted.len(), drafted.len() - sampled)).collect();
        let verdicts = backend.verify(&batch).unwrap();
        for ((text, drafted), verdict) in texts.iter_mut().zip(&drafted).zip(&verdicts) {
            let logits = backend.target_logits(text.slot).unwrap();
            let history = History { tokens: &text.tokens, prompt: PROMPT };
            assert_eq!(*verdict, text.sampler.accept(history, &logits, drafted), "round {round}, slot {}", text.slot);
            text.tokens.truncate(text.tokens.len() - drafted.len() + verdict.accepted);
            text.tokens.push(verdict.next);
            kept += verdict.accepted;
        }
    }
    kept
}

#[test]
fn verdicts_are_the_librarys() {
    let subject = Subject::fixture("llama3_rope_sharded");
    let plain = SamplingParams::default();
    let coupled = SamplingParams {
        temperature: 0.7,
        seed: Some(5),
        verify: Some(VerifyMode::Coupled),
        ..SamplingParams::default()
    };
    // Six rounds of 0 to 4 drafts take up to 18 rows: some with padding.
    let of_slot = |slot: usize| match slot % 4 {
        0 => SamplingParams { repetition_penalty: 1.4, frequency_penalty: 0.3, logprobs: Some(3), ..plain.clone() },
        1 => SamplingParams { logprobs: Some(0), ..plain.clone() },
        2 => SamplingParams {
            presence_penalty: 0.8,
            top_k: 50,
            logit_bias: vec![(1, 3.0), (2, -9.0)],
            ..coupled.clone()
        },
        _ => SamplingParams { top_p: 0.9, min_p: 0.01, ..coupled.clone() },
    };
    let texts = || (0..6).map(|slot| Text::new(&subject, slot, of_slot(slot))).collect::<Vec<Text>>();
    // Drafts from listed tokens, then from the first ones.
    play(&mut *subject.cuda(Some(3), &options(6)), &mut texts(), 5);
    let mut texts = texts();
    let mut backend = subject.cuda(Some(2), &options(6));
    let kept = play(&mut *backend, &mut texts, 6);
    assert!(kept > 0, "no draft was kept");
    // A slot is given to another text, with the counts of the last one on the device.
    texts.truncate(1);
    texts[0].tokens = subject.text(9, PROMPT);
    play(&mut *backend, &mut texts, 5);
    // And a text without penalties in a batch with others loses its counts, which must be made anew.
    texts.push(Text::new(&subject, 1, of_slot(1)));
    play(&mut *backend, &mut texts[1..], 3);
    let positions = texts.iter().map(|text| text.tokens.len()).max();
    assert!(positions < Some(CONTEXT));
}

/// Rows of one round under biases of their own: runs of tokens that the text would have, and ends before its minimum.
#[test]
fn rows_are_judged_by_what_is_forbidden_there() {
    let subject = Subject::fixture("llama3_rope_sharded");
    let coupled = |temperature| SamplingParams { temperature, seed: Some(5), top_k: 40, ..SamplingParams::default() };
    let of_slot = |slot: usize| SamplingParams {
        frequency_penalty: if slot.is_multiple_of(3) { 0.3 } else { 0.0 },
        logprobs: (slot == 1).then_some(2),
        ..coupled([0.0, 0.8][slot % 2])
    };
    let mut backend = drafting_as_the_model(&subject, &options(6));
    let mut texts: Vec<Text> = (0..6).map(|slot| Text::new(&subject, slot, of_slot(slot))).collect();
    play(&mut *backend, &mut texts, 4);
    let free: Vec<Vec<TokenId>> = texts.iter().map(|text| text.tokens[PROMPT - 2..].to_vec()).collect();
    // The first token of each comes after two of the prompt.
    let runs = |said: &[TokenId]| -> Vec<Vec<TokenId>> { [2, 3].map(|n| said[3 - n..3].to_vec()).into() };
    let mut texts: Vec<Text> = (0..6)
        .map(|slot| {
            let bad_words = free[slot].windows(2).step_by(3).map(<[TokenId]>::to_vec).chain(runs(&free[slot]));
            let sampling = SamplingParams {
                bad_words: if slot < 4 { bad_words.collect() } else { vec![vec![free[slot][2]]] },
                suppress_tokens: if slot == 2 { vec![free[slot][4]] } else { vec![] },
                ..of_slot(slot)
            };
            let mut text = Text::new(&subject, slot, sampling);
            let ends = vec![free[slot][3], free[slot][5]];
            text.sampler = text.sampler.forbidding_among_first(if slot == 3 { 0 } else { 2 + slot }, ends);
            text
        })
        .collect();
    let drafted: usize = (0..6).flat_map(|round| texts.iter().map(move |text| length(round, text))).sum();
    assert_eq!(play(&mut *backend, &mut texts, 6), drafted);
    for (text, free) in texts.iter().zip(&free) {
        let said = &text.tokens[PROMPT..];
        assert_ne!(said[0], free[2], "slot {}: what it would begin with is forbidden", text.slot);
        let params = text.sampler.params();
        let ends_with_bad = |end| params.bad_words.iter().any(|run| text.tokens[..end].ends_with(run));
        assert!(!(PROMPT + 1..=text.tokens.len()).any(ends_with_bad), "slot {}", text.slot);
        assert!(!said.iter().any(|token| params.suppress_tokens.contains(token)));
        let early = if text.slot == 3 { 0 } else { 2 + text.slot };
        assert!(!said.iter().take(early).any(|token| [free[3], free[5]].contains(token)), "slot {}", text.slot);
    }
}

/// Requests that each forbid something else of what they would say, which is `free`.
fn forbidding(requests: &[Request], free: &[Completion]) -> [Request; 4] {
    let with = |i: usize, change: &dyn Fn(&mut Request, &[TokenId])| {
        let mut request = requests[i].clone();
        change(&mut request, &free[i].tokens);
        request
    };
    let bad_words = |said: &[TokenId]| vec![said[0..2].to_vec(), said[2..5].to_vec(), said[6..8].to_vec()];
    [
        // Wants to end at once, and may after five tokens.
        with(0, &|request, said| {
            request.stop_token_ids = vec![said[2]];
            request.sampling.logit_bias = vec![(said[2], 1e4)];
            request.min_tokens = 5;
        }),
        with(1, &|request, said| request.sampling.suppress_tokens = vec![said[0], said[4]]),
        with(2, &|request, said| request.sampling.bad_words = bad_words(said)),
        with(3, &|request, said| {
            request.stop_token_ids = vec![said[1], said[5]];
            request.min_tokens = 7;
            request.sampling.suppress_tokens = vec![said[3]];
            request.sampling.bad_words = [bad_words(said), vec![vec![said[7]]]].concat();
        }),
    ]
}

/// Nothing in the answer that its request forbids.
fn assert_obeyed(request: &Request, answer: &Completion) {
    let SamplingParams { suppress_tokens, bad_words, .. } = &request.sampling;
    let text = [&request.prompt[..], &answer.tokens].concat();
    for end in request.prompt.len() + 1..=text.len() {
        assert!(!bad_words.iter().any(|run| text[..end].ends_with(run)), "{text:?}");
        assert!(!suppress_tokens.contains(&text[end - 1]), "{text:?}");
    }
    assert!(answer.tokens.len() >= request.min_tokens);
}

/// Alone, drafts are made in loops on the device where biases stay the same, and step by step where not.
#[test]
fn requests_that_forbid_tokens_get_what_plain_decoding_gives_alone_and_side_by_side() {
    let subject = Subject::fixture("llama");
    let sampled = |verify| SamplingParams { temperature: 0.9, verify: Some(verify), ..SamplingParams::default() };
    for sampling in [SamplingParams::default(), sampled(VerifyMode::Coupled), sampled(VerifyMode::Rejection)] {
        let request = |i: u64| {
            let sampling = SamplingParams { seed: Some(i), ..sampling.clone() };
            Request { sampling, ..Request::new(subject.text(i, 3 + 5 * i as usize), 12) }
        };
        let requests: Vec<Request> = (0..4).map(request).collect();
        let mut plain = engine(drafting_as_the_model(&subject, &options(1)), "off");
        let free = run(&mut plain, &requests, 1);
        let requests = forbidding(&requests, &free);
        let alone = run(&mut engine(drafting_as_the_model(&subject, &options(1)), "fixed:4"), &requests, 1);
        let together = run(&mut engine(drafting_as_the_model(&subject, &options(4)), "fixed:4"), &requests, 4);
        for ((request, alone), (together, free)) in requests.iter().zip(&alone).zip(together.iter().zip(&free)) {
            assert_obeyed(request, alone);
            for stats in [&alone.stats, &together.stats] {
                assert!(stats.drafted() > 4 && stats.accepted() == stats.drafted(), "{stats:?}");
            }
            assert_eq!((&together.tokens, &together.finish), (&alone.tokens, &alone.finish));
            assert_ne!(alone.tokens, free.tokens, "what is forbidden would not have come anyway");
        }
        let end = requests[0].stop_token_ids[0];
        assert_eq!((alone[0].tokens.len(), &alone[0].finish), (6, &Finish::EndToken(end)));
        if sampling.verify != Some(VerifyMode::Rejection) {
            let plain = run(&mut plain, &requests, 1);
            assert!(plain.iter().zip(&alone).all(|(plain, alone)| plain.tokens == alone.tokens));
        }
    }
}
