//! Single passes: close to the processor's, and the same bits whichever way a position is reached.

use crate::support::{Subject, bits, difference, on_device, options, size, table};
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::cuda::CudaOptions;
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::PageId;
use eesd::model::{Dtype, ExitWeights, LayerWeights, Matrix, ModelWeights};
use eesd::sample::{Sampler, SamplingParams};
use half::{bf16, f16};

/// Logits and hidden states of a text, against the processor's, which keeps activations in f32.
fn check_against_processor(subject: &Subject) {
    let exit = subject.geometry().layers / 2;
    let ids = subject.text(1, 40);
    let pages = table(0, 64);
    let chunk = Chunk { pages: pages.pages(), start: 0, tokens: &ids };
    for tap in [exit, subject.geometry().layers] {
        let found = subject.cuda(Some(exit), &options(1)).evaluate(&chunk, tap).unwrap();
        let expected = subject.cpu(Some(exit), 1).evaluate(&chunk, tap).unwrap();
        for (what, found, expected) in
            [("logits", &found.logits, &expected.logits), ("hidden", &found.hidden, &expected.hidden)]
        {
            let (error, size) = (difference(found, expected), size(expected.iter().copied()));
            // Activations are rounded to 8 bits a few times a layer: 0.5 to 0.7 % on the fixtures.
            assert!(error < 0.015 * size, "{}: {what} after {tap}: error {error} of {size}", subject.name());
        }
        let error = difference(&found.logits, &expected.logits);
        let vocab = subject.geometry().vocab_size;
        for (position, (cpu, gpu)) in expected.logits.chunks(vocab).zip(found.logits.chunks(vocab)).enumerate() {
            let best = |row: &[f32]| (0..vocab).reduce(|a, b| if row[b] > row[a] { b } else { a }).unwrap();
            // Where another token comes first, the CPU must have held the two for nearly equal.
            let gap = f64::from(cpu[best(cpu)] - cpu[best(gpu)]);
            assert!(gap < 6.0 * error, "{}: position {position}, a gap of {gap} with error {error}", subject.name());
        }
    }
}

#[test]
fn fixtures_are_close_to_the_processor() {
    Subject::fixtures().iter().for_each(check_against_processor);
}

#[test]
fn bundled_model_is_close_to_the_processor() {
    check_against_processor(&Subject::bundled());
}

/// What a teacher reads of a text: hidden states of several layers and some rows' logits are those of the whole model, and what
/// is kept of logits is what they say.
#[test]
fn what_is_read_is_what_the_model_says() {
    let subject = Subject::fixture("llama");
    let (layers, vocab) = (subject.geometry().layers, subject.geometry().vocab_size);
    let ids = subject.text(1, 24);
    let pages = table(0, 64);
    let chunk = Chunk { pages: pages.pages(), start: 0, tokens: &ids };
    let mut cuda = subject.cuda(Some(2), &options(1));
    let expected = [2, layers].map(|tap| cuda.evaluate(&chunk, tap).unwrap());
    let rows = 9..20;
    let logits = &expected[0].logits[rows.start * vocab..rows.end * vocab];
    for taps in [&[2, layers][..], &[2], &[]] {
        let read = cuda.read(&chunk, taps, rows.clone()).unwrap();
        let (hidden, said) = cuda.read_said(&chunk, taps, rows.clone()).unwrap();
        assert_eq!(bits(&read.logits), bits(logits), "{taps:?}");
        for found in [read.hidden, hidden] {
            assert_eq!(found.len(), taps.len());
            assert!(
                found.iter().zip(&expected).all(|(found, expected)| bits(found) == bits(&expected.hidden)),
                "{taps:?}"
            );
        }
        assert_eq!(said.len(), rows.len());
        for (said, logits) in said.iter().zip(logits.chunks_exact(vocab)) {
            let total = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
            assert!((f64::from(said.log_total) - total).abs() < 1e-5, "{said:?}, {total}");
            let likeliest = (0..vocab).reduce(|a, b| if logits[b] > logits[a] { b } else { a }).unwrap();
            assert_eq!(said.likeliest as usize, likeliest);
        }
    }
    let only = cuda.read(&chunk, &[2], 0..0).unwrap();
    assert!(only.logits.is_empty() && bits(&only.hidden[0]) == bits(&expected[0].hidden));
    assert!(cuda.read_said(&chunk, &[layers + 1], 0..0).is_err());
}

fn leaked(bytes: &[u8]) -> &'static [u8] {
    let half = |b: &[u8]| f16::from_f32(bf16::from_le_bytes([b[0], b[1]]).to_f32()).to_le_bytes();
    bytes.chunks_exact(2).flat_map(half).collect::<Vec<u8>>().leak()
}

/// The same model in f16: small numbers of trained weights are rounded, on both devices alike.
fn in_f16<'a>(model: &ModelWeights<'a>) -> ModelWeights<'a> {
    let matrix = |m: Matrix<'a>| Matrix { format: Dtype::F16.into(), bytes: leaked(m.bytes), ..m };
    let layer = |l: &LayerWeights<'a>| LayerWeights {
        q: matrix(l.q),
        k: matrix(l.k),
        v: matrix(l.v),
        o: matrix(l.o),
        gate: matrix(l.gate),
        up: matrix(l.up),
        down: matrix(l.down),
        ..*l
    };
    let head = matrix(model.head);
    let layers = model.layers.iter().map(layer).collect();
    ModelWeights { embed: matrix(model.embed), layers, norm: model.norm, head }
}

#[test]
fn f16_is_closer_still() {
    let subject = Subject::fixture("qwen2");
    let weights = in_f16(&subject.checkpoint.weights());
    let exit = ExitWeights::from_model(&weights, 2, 3);
    let (ids, pages) = (subject.text(2, 30), table(0, 64));
    let chunk = Chunk { pages: pages.pages(), start: 0, tokens: &ids };
    let found = on_device(subject.geometry(), &weights, Some(&exit), &options(1)).evaluate(&chunk, 2).unwrap();
    let cpu = CpuOptions { slots: 1, context: 64, max_draft: 4, ..CpuOptions::default() };
    let mut cpu = CpuBackend::new(subject.geometry(), &weights, Some(&exit), &cpu).unwrap();
    let expected = cpu.evaluate(&chunk, 2).unwrap();
    let (error, size) = (difference(&found.logits, &expected.logits), size(expected.logits.iter().copied()));
    // Activations are rounded to 11 bits, not to 8.
    assert!(error < 0.002 * size, "error {error} of {size}");
}

/// A sequence in slot 0, committed and with a prompt `at` so many tokens.
fn sequence<'a>(pages: &'a [PageId], tokens: &'a [TokenId], at: (usize, usize), sampler: &'a Sampler) -> Sequence<'a> {
    let (slot, (committed, prompt), proposed, recurrent) = (0, at, 0, 0);
    Sequence { slot, pages, tokens, committed, prompt, proposed, recurrent, sampler }
}

/// The logits of positions `prompt - 1 ..`, from a verified round, from plain steps, and from reading it all.
fn three_ways(backend: &mut dyn Backend, prompt: &[TokenId], k: usize, first_page: usize) -> [Vec<f32>; 3] {
    let sampler = Sampler::new(SamplingParams::default(), backend.geometry().vocab_size).unwrap();
    let (n, slot) = (prompt.len(), 0);
    let pages = table(first_page, n + k + 1);
    let pages = pages.pages();
    if n > 1 {
        backend.prefill(&[Chunk { pages, start: 0, tokens: &prompt[..n - 1] }]).unwrap();
    }
    let mut tokens = prompt.to_vec();
    for _ in 0..k {
        let draft = backend.draft(&[sequence(pages, &tokens, (n, n), &sampler)]).unwrap();
        tokens.push(draft[0].token);
    }
    backend.verify(&[sequence(pages, &tokens, (n, n), &sampler)]).unwrap();
    let speculative = backend.target_logits(slot).unwrap();
    let mut plain = Vec::new();
    for end in n..=n + k {
        backend.verify(&[sequence(pages, &tokens[..end], (end, n), &sampler)]).unwrap();
        plain.extend(backend.target_logits(slot).unwrap());
    }
    let vocab = backend.geometry().vocab_size;
    let mut read = backend.evaluate(&Chunk { pages, start: 0, tokens: &tokens }, 0).unwrap().logits;
    read.drain(..(n - 1) * vocab);
    [speculative, plain, read]
}

pub fn check_three_ways(subject: &Subject, exit: usize, options: &CudaOptions, cases: &[(usize, usize)]) {
    let mut backend = subject.cuda(Some(exit), options);
    for (seed, &(prompt, k)) in cases.iter().enumerate() {
        let prompt = subject.text(seed as u64, prompt);
        let [speculative, plain, read] = three_ways(&mut *backend, &prompt, k, seed % 3);
        assert!(bits(&speculative) == bits(&plain), "{}: verified and plain, case {seed}", subject.name());
        assert!(bits(&speculative) == bits(&read), "{}: verified and read, case {seed}", subject.name());
    }
}

#[test]
fn every_way_to_a_position_gives_the_same_bits() {
    for (number, subject) in Subject::fixtures().iter().enumerate() {
        // 16 drafts are 17 rows: the other form of projections, and padding.
        let cases = [(1, 2), (30, 3), (50, 16)];
        check_three_ways(subject, 1 + number % 3, &options(1), if number % 2 == 0 { &cases[..2] } else { &cases[1..] });
    }
    check_three_ways(&Subject::bundled(), 2, &options(1), &[(9, 4)]);
}

#[test]
fn and_past_chunks_of_attention() {
    let subject = Subject::fixture("mistral");
    let options = CudaOptions { prefill_rows: 128, ..options(1) };
    check_three_ways(&subject, 1, &options, &[(254, 4), (300, 2)]);
}
