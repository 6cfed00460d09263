//! What the device decides about a round, against the library's own sampler on the logits that it decided by;
//! over many rounds, so that counts of tokens kept on the device are those of the text.

use crate::support::{CONTEXT, Subject, options, table};
use eesd::TokenId;
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::BlockTable;
use eesd::sample::{Drafted, History, Sampler, SamplingParams, VerifyMode};

const PROMPT: usize = 7;

struct Text {
    slot: usize,
    tokens: Vec<TokenId>,
    table: BlockTable,
    sampler: Sampler,
}

impl Text {
    fn new(subject: &Subject, slot: usize, sampling: SamplingParams) -> Self {
        let sampler = Sampler::new(sampling, subject.geometry().vocab_size).unwrap();
        let table = table(slot * 3, 3 * 64);
        Self { slot, tokens: subject.text(slot as u64, PROMPT), table, sampler }
    }

    fn round(&self, drafted: usize) -> Sequence<'_> {
        Sequence {
            slot: self.slot,
            pages: self.table.pages(),
            tokens: &self.tokens,
            committed: self.tokens.len() - drafted,
            prompt: PROMPT,
            sampler: &self.sampler,
        }
    }
}

/// Plays rounds of ragged lengths for all texts side by side; returns how many drafts were kept.
fn play(backend: &mut dyn Backend, texts: &mut [Text], rounds: usize) -> usize {
    for text in &*texts {
        let chunk = Chunk { pages: text.table.pages(), start: 0, tokens: &text.tokens[..PROMPT - 1] };
        backend.prefill(&[chunk]).unwrap();
    }
    let mut kept = 0;
    for round in 0..rounds {
        let lengths: Vec<usize> = texts.iter().map(|text| (round + text.slot) % 5).collect();
        let mut drafted: Vec<Vec<Drafted>> = texts.iter().map(|_| Vec::new()).collect();
        for step in 0..4 {
            let active: Vec<usize> = (0..texts.len()).filter(|&i| step < lengths[i]).collect();
            let batch: Vec<_> = active.iter().map(|&i| texts[i].round(step)).collect();
            let drafts = backend.draft(&batch).unwrap();
            for (&i, draft) in active.iter().zip(drafts) {
                texts[i].tokens.push(draft.token);
                drafted[i].push(Drafted { token: draft.token, confidence: draft.confidence, q: Vec::new() });
            }
        }
        let batch: Vec<_> = texts.iter().zip(&lengths).map(|(text, &k)| text.round(k)).collect();
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
