//! Memory, the queue, graphs and waits of the emulated device; and what is refused.

use crate::support::{Subject, emulated, engine, on, options, run, table};
use eesd::backend::cuda::driver::{Driver, HostMemory, Memory};
use eesd::backend::cuda::{CudaBackend, CudaOptions};
use eesd::backend::{BackendError, Chunk, Sequence};
use eesd::control::DraftPlan;
use eesd::engine::Request;
use eesd::model::{Dtype, Matrix};
use eesd::sample::{Sampler, SamplingParams};

#[test]
fn a_round_is_one_graph_and_one_wait_a_pass() {
    let device = emulated(0, 1 << 30);
    let stepping = CudaOptions { draft_loops: false, ..options(1) };
    let mut engine = engine(on(&device, &stepping).unwrap(), "fixed:2");
    let prompt = Subject::fixture("llama").text(0, 20);
    let first = run(&mut engine, &[Request::new(prompt.clone(), 16)], 1);
    let before = device.counts();
    let second = run(&mut engine, &[Request::new(prompt, 16)], 1);
    let after = device.counts();
    assert_eq!(first[0].tokens, second[0].tokens);
    let rounds = second[0].stats.rounds as u64;
    let drafts: u64 = second[0].stats.lengths.iter().zip(0..).map(|(&rounds, k)| rounds as u64 * k).sum();
    assert_eq!(after.recordings, before.recordings, "all shapes were known");
    assert_eq!(after.replays - before.replays, rounds + drafts);
    assert_eq!(
        after.waits - before.waits,
        rounds + drafts + 2,
        "one for each pass, and for what the prompt's has noted"
    );
}

#[test]
fn all_memory_is_given_back() {
    let device = emulated(0, 1 << 30);
    let backend = on(&device, &options(2)).unwrap();
    assert!(device.allocated().0 > 1 << 20 && device.allocated().1 > 0);
    drop(backend);
    assert_eq!(device.allocated(), (0, 0));
}

#[test]
fn memory_is_shared_out_before_it_is_taken() {
    // The cache gets what is left, but at least one sequence.
    let whole = emulated(0, 1 << 30);
    assert_eq!(on(&whole, &options(8)).unwrap().limits().pages, 64);
    let weights_and_workspace = {
        let backend = on(&whole, &options(8)).unwrap();
        let cache = 64 * (4 + 1) * 2 * 64 * 64 * 2;
        let taken = whole.allocated().0;
        drop(backend);
        taken - cache
    };
    let page = 5 * 2 * 64 * 64 * 2;
    let small = emulated(0, ((weights_and_workspace + 20 * page) as f64 / 0.9) as u64);
    let limits = on(&small, &options(8)).unwrap().limits();
    assert!((8..=20).contains(&limits.pages), "{limits:?}");
    let tiny = emulated(0, (weights_and_workspace / 2) as u64);
    let error = on(&tiny, &options(8)).err().unwrap();
    assert!(matches!(error, BackendError::DeviceMemory(_)), "{error}");
    assert!(error.to_string().starts_with("not enough GPU memory: weights "), "{error}");
    assert_eq!(tiny.allocated(), (0, 0));
    let little = CudaOptions { memory_fraction: 1e-3, ..options(1) };
    assert!(matches!(on(&whole, &little), Err(BackendError::DeviceMemory(_))));
    let none = CudaOptions { memory_fraction: 0.0, ..options(1) };
    assert!(on(&whole, &none).err().unwrap().to_string().contains("memory_fraction 0 (expected"));
}

#[test]
fn weights_that_kernels_do_not_compute_with_are_refused() {
    let subject = Subject::fixture("llama");
    let device = emulated(0, 1 << 30);
    let refusal = |change: &dyn Fn(&mut eesd::model::ModelWeights<'_>)| {
        let mut weights = subject.checkpoint.weights();
        change(&mut weights);
        let backend = CudaBackend::new(device.clone(), subject.geometry(), &weights, None, &options(1));
        backend.err().unwrap().to_string()
    };
    let head = subject.checkpoint.weights().head;
    let bytes: &'static [u8] = vec![0; head.rows * head.cols * Dtype::F32.size()].leak();
    let error = refusal(&|weights| weights.head = Matrix { format: Dtype::F32.into(), bytes, ..weights.head });
    assert!(error.contains("the weights are f32 (expected bf16 or f16"), "{error}");
    let error = refusal(&|weights| weights.layers[2].up.format = Dtype::F16.into());
    assert!(error.contains("layer 2 has weights in f16 (expected bf16"), "{error}");
    let mut geometry = subject.geometry().clone();
    let narrower = geometry.head_dim / 16;
    (geometry.head_dim, geometry.heads) = (16, geometry.heads * narrower);
    geometry.kv_heads *= narrower;
    let error = CudaBackend::new(device.clone(), &geometry, &subject.checkpoint.weights(), None, &options(1));
    assert!(error.err().unwrap().to_string().contains("head_dim 16 (expected one of [32, "));
    let mut exit = subject.exit(1);
    exit.after = 9;
    let error = CudaBackend::new(device, subject.geometry(), &subject.checkpoint.weights(), Some(&exit), &options(1));
    assert!(matches!(error, Err(BackendError::Exit(_))));
}

#[test]
fn passes_that_cannot_be_are_refused() {
    let subject = Subject::fixture("llama");
    let mut backend = subject.cuda(Some(1), &options(1));
    let sampler = Sampler::new(SamplingParams::default(), subject.geometry().vocab_size).unwrap();
    let pages = table(0, 64);
    let (pages, tokens) = (pages.pages(), subject.text(1, 64));
    let sequence = Sequence {
        slot: 0,
        pages,
        tokens: &tokens[..5],
        committed: 5,
        prompt: 3,
        proposed: 0,
        recurrent: 0,
        sampler: &sampler,
    };
    let refused = |result: Result<(), BackendError>, why: &str| {
        let error = result.err().unwrap_or_else(|| panic!("not refused: {why}")).to_string();
        assert!(error.contains(why), "{error}");
    };
    let mut verify = |sequence: Sequence<'_>| backend.verify(&[sequence]).map(|_| ());
    refused(verify(Sequence { slot: 1, ..sequence }), "slot 1 of 1");
    refused(verify(Sequence { committed: 0, ..sequence }), "expected at least 1");
    refused(verify(Sequence { committed: 4, ..sequence }), "1 drafts (expected those that were drafted there)");
    refused(
        verify(Sequence { committed: 3, proposed: 3, ..sequence }),
        "3 of 2 drafts proposed (expected at most all)",
    );
    refused(
        verify(Sequence { committed: 3, proposed: 1, ..sequence }),
        "1 drafts (expected those that were drafted there)",
    );
    refused(verify(Sequence { pages: &[], ..sequence }), "0 pages, for 0 positions");
    refused(verify(Sequence { pages: table(8, 64).pages(), ..sequence }), "page 8 of 8");
    refused(verify(Sequence { tokens: &[1, 512, 3, 4, 5], ..sequence }), "token 512 (expected less than 512)");
    assert_eq!(verify(sequence), Ok(()));
    refused(backend.verify(&[sequence, sequence]).map(|_| ()), "slot 0 twice in one pass");
    assert!(backend.target_logits(0).is_ok());
    let proposed = Sequence { committed: 3, proposed: 2, ..sequence };
    refused(backend.draft(&[proposed]).map(|_| ()), "a draft after 2 proposed tokens");
    let plan = DraftPlan::of_length(2);
    refused(backend.draft_planned(&proposed, &plan, &[]).map(|_| ()), "a draft after 2 proposed tokens");
    assert_eq!(backend.verify(&[proposed]).map(|verdicts| verdicts.len()), Ok(1));
    backend.draft(&[sequence]).unwrap();
    refused(backend.target_logits(0).map(|_| ()), "not in the last pass, a verification");
    refused(backend.target_logits(1).map(|_| ()), "slot 1 of 1");
    let chunk = Chunk { pages, start: 1, tokens: &tokens };
    refused(backend.prefill(&[chunk]), "65 positions");
    refused(backend.evaluate(&Chunk { start: 0, ..chunk }, 5).map(|_| ()), "after 5 layers of 4");
    let mut plain = subject.cuda(None, &options(1));
    refused(plain.draft(&[sequence]).map(|_| ()), "nothing can be drafted");
}

#[test]
fn what_is_queued_is_done_when_it_is_waited_for() {
    let device = emulated(0, 1 << 20);
    let memory = Memory::zeroed(&device, 8, "a test").unwrap();
    let [mut from, to] = [0; 2].map(|_| HostMemory::zeroed(&device, 8).unwrap());
    // SAFETY: all sides have eight bytes, and are looked at or changed between copies on purpose.
    let (send, fetch) = unsafe {
        (
            || device.copy_to_device(memory.at(), from.at(), 8).unwrap(),
            |at: usize| device.copy_to_host(to.at().add(at), memory.byte(at), 4).unwrap(),
        )
    };
    send();
    fetch(0);
    let event = device.record().unwrap();
    fetch(4);
    from.contents_mut().fill(1);
    assert_eq!(to.contents(), [0; 8]);
    device.wait_for(&event).unwrap();
    assert_eq!(to.contents(), [1, 1, 1, 1, 0, 0, 0, 0], "what was written over too early arrives");
    device.wait().unwrap();
    assert_eq!(to.contents(), [1; 8]);
    // What follows a failure is not done.
    // SAFETY: refused.
    unsafe { device.zero(memory.byte(4), 8) }.unwrap();
    from.contents_mut().fill(2);
    // SAFETY: as above.
    unsafe { device.copy_to_device(memory.at(), from.at(), 8) }.unwrap();
    assert!(device.wait().unwrap_err().to_string().contains("8 bytes at "));
    fetch(0);
    device.wait().unwrap();
    assert_eq!(to.contents(), [1; 8]);
}
