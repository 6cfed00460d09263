//! A caller that breaks the backend's contract gets an error, not a panic or someone else's pages.

use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::kv::PageId;
use eesd::load::Checkpoint;
use eesd::model::{ExitWeights, Geometry, ModelWeights};
use eesd::sample::{Sampler, SamplingParams};
use std::path::Path;

fn backend() -> Box<dyn Backend> {
    let checkpoint = Checkpoint::open(Path::new("tests/fixtures/hf/llama")).unwrap();
    let weights = checkpoint.weights();
    let exit = ExitWeights::from_model(&weights, 2, 3);
    let options =
        CpuOptions { threads: Some(1), slots: 2, context: 100, max_draft: 3, pages: Some(4), ..CpuOptions::default() };
    CpuBackend::new(checkpoint.geometry(), &weights, Some(&exit), &options).unwrap()
}

#[test]
fn sequences_that_do_not_fit_are_refused() {
    let mut backend = backend();
    let sampler = Sampler::new(SamplingParams::default(), 512).unwrap();
    let (pages, tokens) = ([PageId(0), PageId(1)], [1; 120]);
    let good = Sequence {
        slot: 0,
        pages: &pages,
        tokens: &tokens[..5],
        committed: 5,
        prompt: 5,
        proposed: 0,
        recurrent: 0,
        sampler: &sampler,
    };
    let bad = [
        (Sequence { slot: 2, ..good }, "slot 2 of 2"),
        (Sequence { committed: 0, ..good }, "5 tokens, 0 of them committed"),
        (Sequence { committed: 6, ..good }, "5 tokens, 6 of them committed"),
        (Sequence { committed: 1, ..good }, "at most 3 drafts"),
        (Sequence { committed: 3, proposed: 3, ..good }, "3 of 2 drafts proposed (expected at most all)"),
        (Sequence { tokens: &tokens[..101], committed: 101, ..good }, "a context of 100"),
        (Sequence { tokens: &[1, 2, 512, 1, 1], ..good }, "token 512 (expected less than 512)"),
        (Sequence { pages: &[PageId(4)], ..good }, "page 4 of 4"),
        (Sequence { pages: &pages[..1], tokens: &tokens[..65], committed: 65, ..good }, "1 pages, for 64 positions"),
    ];
    for (sequence, message) in bad {
        let draft = backend.draft(&[sequence]).unwrap_err().to_string();
        assert!(draft.contains(message), "{draft:?} says nothing of {message:?}");
        let verify = backend.verify(&[sequence]).unwrap_err().to_string();
        assert!(verify.contains(message), "{verify:?} says nothing of {message:?}");
    }
    for both in [backend.draft(&[good, good]).map(|_| ()), backend.verify(&[good, good]).map(|_| ())] {
        assert!(both.unwrap_err().to_string().contains("slot 0 twice in one pass"));
    }
    let drafted = Sequence { committed: 4, ..good };
    let error = backend.verify(&[drafted]).unwrap_err().to_string();
    assert!(error.contains("1 drafts (expected those that were drafted there)"), "{error}");
    // Another token than the one that was drafted: its rows would be those of the draft.
    let draft = backend.draft(&[good]).unwrap()[0];
    let other = [1, 1, 1, 1, 1, (draft.token + 1) % 512];
    let error = backend.verify(&[Sequence { tokens: &other, ..good }]).unwrap_err().to_string();
    assert!(error.contains("expected those that were drafted there"), "{error}");
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
        Chunk { pages: &pages, start: usize::MAX - 1, tokens: &tokens[..2] },
    ] {
        assert!(backend.prefill(&[chunk]).unwrap_err().to_string().contains("positions in"));
        assert!(backend.evaluate(&chunk, 1).unwrap_err().to_string().contains("positions in"));
    }
    for (chunk, message) in [
        (Chunk { pages: &pages, start: 0, tokens: &[1, 512] }, "token 512 (expected less than 512)"),
        (Chunk { pages: &pages, start: 0, tokens: &[u32::MAX] }, "token 4294967295"),
        (Chunk { pages: &[PageId(9)], start: 0, tokens: &tokens[..2] }, "page 9 of 4"),
    ] {
        let error = backend.prefill(&[chunk]).unwrap_err().to_string();
        assert!(error.contains(message), "{error:?} says nothing of {message:?}");
        assert_eq!(backend.evaluate(&chunk, 1).unwrap_err().to_string(), error);
    }
    assert!(backend.evaluate(&Chunk { pages: &pages, start: 0, tokens: &tokens[..100] }, 5).is_err());
    assert!(backend.evaluate(&Chunk { pages: &pages, start: 0, tokens: &tokens[..100] }, 4).is_ok());
}

/// Each a kind of misfit: between tensors and geometry, between a tensor's shape and its bytes, inside the geometry.
#[test]
fn weights_that_do_not_fit_the_geometry_are_refused() {
    let checkpoint = Checkpoint::open(Path::new("tests/fixtures/hf/llama")).unwrap();
    let (geometry, weights) = (checkpoint.geometry(), checkpoint.weights());
    let refuse = |geometry: &Geometry, weights: &ModelWeights<'_>, message: &str| {
        let made = CpuBackend::new(geometry, weights, None, &CpuOptions { context: 64, ..CpuOptions::default() });
        let error = made.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with("model: ") && error.contains(message), "{error:?} says nothing of {message:?}");
    };
    let with = |change: fn(&mut Geometry)| {
        let mut geometry = geometry.clone();
        change(&mut geometry);
        geometry
    };
    refuse(&with(|g| g.hidden_size = 64), &weights, "embed_tokens is [512, 128] (expected [512, 64])");
    refuse(&with(|g| g.vocab_size = 511), &weights, "embed_tokens is [512, 128] (expected [511, 128])");
    refuse(&with(|g| g.intermediate_size -= 16), &weights, "layer 0: gate_proj is [352, 128] (expected [336, 128])");
    refuse(&with(|g| (g.layers, g.windows) = (3, vec![None; 3])), &weights, "weights of 4 layers (expected 3)");
    refuse(&with(|g| g.heads *= 2), &weights, "q_proj");
    refuse(&with(|g| g.windows.truncate(3)), &weights, "windows of 3 layers (expected 4)");
    refuse(&with(|g| g.windows[2] = Some(0)), &weights, "a window of 0 positions");
    refuse(&with(|g| g.kv_heads = 0), &weights, "kv_heads is 0");
    refuse(&with(|g| g.kv_heads = 3), &weights, "heads on 3 kv_heads");
    refuse(&with(|g| g.head_dim = 31), &weights, "head_dim is 31");
    refuse(&with(|g| g.heads = 1 << 60), &weights, "head_dim");

    let mut shorter = weights.clone();
    shorter.layers[2].o.bytes = &shorter.layers[2].o.bytes[2..];
    refuse(geometry, &shorter, "layer 2: o_proj has");
    let mut taller = weights.clone();
    taller.head.rows += 16;
    refuse(geometry, &taller, "lm_head is [528, 128]");
    let mut narrower = weights.clone();
    narrower.layers[1].down.cols -= 1;
    refuse(geometry, &narrower, "layer 1: down_proj");
    let mut norm = weights.clone();
    norm.norm.bytes = &norm.norm.bytes[..6];
    refuse(geometry, &norm, "norm has 6 bytes");
    let mut longer = weights.clone();
    longer.layers[0].post_norm.len += 1;
    refuse(geometry, &longer, "post_attention_layernorm is [129] (expected [128])");
    assert!(CpuBackend::new(geometry, &weights, None, &CpuOptions { context: 64, ..CpuOptions::default() }).is_ok());
}
