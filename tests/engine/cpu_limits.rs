//! A caller that breaks the backend's contract gets an error, not a panic or someone else's pages.

use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::PageId;
use eesd::load::Checkpoint;
use eesd::model::ExitWeights;
use eesd::sample::{Sampler, SamplingParams};
use std::path::Path;

fn backend() -> Box<dyn Backend> {
    let checkpoint = Checkpoint::open(Path::new("tests/fixtures/hf/llama")).unwrap();
    let weights = checkpoint.weights();
    let exit = ExitWeights::from_model(&weights, 2, 3);
    let options = CpuOptions { threads: Some(1), simd: None, slots: 2, context: 100, max_draft: 3, pages: Some(4) };
    CpuBackend::new(checkpoint.geometry(), &weights, Some(&exit), &options).unwrap()
}

#[test]
fn sequences_that_do_not_fit_are_refused() {
    let mut backend = backend();
    let sampler = Sampler::new(SamplingParams::default(), 512).unwrap();
    let (pages, tokens) = ([PageId(0), PageId(1)], [1; 120]);
    let good = Sequence { slot: 0, pages: &pages, tokens: &tokens[..5], committed: 5, prompt: 5, sampler: &sampler };
    let bad = [
        (Sequence { slot: 2, ..good }, "slot 2 of 2"),
        (Sequence { committed: 0, ..good }, "5 tokens, 0 of them committed"),
        (Sequence { committed: 6, ..good }, "5 tokens, 6 of them committed"),
        (Sequence { committed: 1, ..good }, "at most 3 drafts"),
        (Sequence { tokens: &tokens[..101], committed: 101, ..good }, "a context of 100"),
        (Sequence { pages: &pages[..1], tokens: &tokens[..65], committed: 65, ..good }, "1 pages, for 64 positions"),
    ];
    for (sequence, message) in bad {
        let draft = backend.draft(&[sequence]).unwrap_err().to_string();
        assert!(draft.contains(message), "{draft:?} says nothing of {message:?}");
        let verify = backend.verify(&[sequence]).unwrap_err().to_string();
        assert!(verify.contains(message), "{verify:?} says nothing of {message:?}");
    }
    let drafted = Sequence { committed: 4, ..good };
    let error = backend.verify(&[drafted]).unwrap_err().to_string();
    assert!(error.contains("fewer drafts than tokens"), "{error}");
    assert!(backend.verify(&[good]).is_ok());
}

#[test]
fn chunks_that_do_not_fit_are_refused() {
    let mut backend = backend();
    let (pages, tokens) = ([PageId(0), PageId(1)], [1; 120]);
    for chunk in [
        Chunk { pages: &pages, start: 0, tokens: &tokens[..101] },
        Chunk { pages: &pages, start: 99, tokens: &tokens[..2] },
        Chunk { pages: &pages[..1], start: 60, tokens: &tokens[..5] },
    ] {
        assert!(backend.prefill(&[chunk]).unwrap_err().to_string().contains("positions in"));
        assert!(backend.evaluate(&chunk, 1).unwrap_err().to_string().contains("positions in"));
    }
    assert!(backend.evaluate(&Chunk { pages: &pages, start: 0, tokens: &tokens[..100] }, 5).is_err());
    assert!(backend.evaluate(&Chunk { pages: &pages, start: 0, tokens: &tokens[..100] }, 4).is_ok());
}
