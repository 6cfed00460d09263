//! Requests whose numbers are not finite, on any backend: they fail alone, and a refused draft of theirs changes nothing.

use super::exits::rows_of;
use eesd::TokenId;
use eesd::backend::{Backend, Chunk, Sequence};
use eesd::control::ControllerSpec;
use eesd::engine::{Engine, Event, Request};
use eesd::kv::PageId;
use eesd::load::Checkpoint;
use eesd::model::{Dtype, ExitWeights, Geometry, ModelWeights};
use eesd::sample::{Sampler, SamplingParams};
use std::ops::ControlFlow;
use std::path::Path;

/// A token whose embedding is infinite.
const BROKEN: TokenId = 301;
const SLOTS: usize = 3;

/// Makes a backend of three slots, 256 positions each, and up to four drafts in a round.
pub type Make<'a> = &'a dyn Fn(&Geometry, &ModelWeights<'_>, &ExitWeights<'_>) -> Box<dyn Backend>;

/// What a request's receiver got: tokens, and the error if it failed.
type Told = (Vec<TokenId>, Option<String>);

/// A model with one broken embedding, and an exit block that drafts nothing but its token.
fn backend(make: Make<'_>) -> Box<dyn Backend> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/llama");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let mut weights = checkpoint.weights();
    let embed = weights.embed;
    let infinity = match embed.format.dtype().unwrap() {
        Dtype::F32 => f32::INFINITY.to_le_bytes().to_vec(),
        Dtype::F16 => half::f16::INFINITY.to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::INFINITY.to_le_bytes().to_vec(),
    };
    let mut bytes = embed.bytes.to_vec();
    let row_bytes = embed.row_bytes();
    bytes[BROKEN as usize * row_bytes..][..row_bytes].copy_from_slice(&infinity.repeat(embed.cols));
    weights.embed.bytes = &bytes;
    let head = Some(rows_of(weights.head, &[BROKEN]));
    let exit = ExitWeights { head, draft_ids: Some(&[BROKEN]), ..ExitWeights::from_model(&weights, 2, 3) };
    make(checkpoint.geometry(), &weights, &exit)
}

fn engine(make: Make<'_>, controller: &str) -> Engine {
    let controller = controller.parse::<ControllerSpec>().unwrap();
    Engine::new(backend(make), controller.build(), None, Vec::new())
}

/// A text without the broken token, the same for a seed.
fn text(seed: u32, len: u32) -> Vec<TokenId> {
    (0..len).map(|i| (seed * 79 + i * i * 31 + i * 17) % 300).collect()
}

/// Runs requests, up to three at a time.
fn run(engine: &mut Engine, requests: &[Request]) -> Vec<Told> {
    let mut told: Vec<Told> = vec![Told::default(); requests.len()];
    let mut ended = 0;
    let mut on_event = |id: usize, event| {
        match event {
            Event::Prefilled { .. } => {}
            Event::Token(emission) => told[id].0.push(emission.token),
            Event::Done(_) => ended += 1,
            Event::Failed(error) => {
                ended += 1;
                told[id].1 = Some(error.to_string());
            }
        }
        ControlFlow::Continue(())
    };
    engine.run(&mut requests.iter().cloned(), SLOTS, &mut on_event).unwrap();
    assert_eq!(ended, requests.len(), "each request ends once");
    told
}

/// Requests that fail alone, beside others that begin alike.
pub fn a_prompt_that_is_not_finite_fails_alone(make: Make<'_>) {
    let innocent = [Request::new(text(1, 70), 9), Request::new(text(2, 12), 14)];
    let alone: Vec<Told> =
        innocent.iter().map(|one| run(&mut engine(make, "off"), std::slice::from_ref(one)).remove(0)).collect();
    assert!(alone.iter().all(|(tokens, error)| !tokens.contains(&BROKEN) && error.is_none()));
    let mut broken = text(1, 150);
    broken[66] = BROKEN;
    for controller in ["off", "fixed:3"] {
        let mut engine = engine(make, controller);
        let all = [innocent[0].clone(), Request::new(broken.clone(), 5), innocent[1].clone()];
        for round in 0..2 {
            let told = run(&mut engine, &all);
            assert_eq!([&told[0], &told[2]], [&alone[0], &alone[1]], "{controller}, round {round}");
            assert!(told[1].0.is_empty());
            let error = told[1].1.as_deref().unwrap_or_default();
            assert!(error.contains("position 66") && error.contains("finite"), "{error:?}");
            let snapshot = engine.snapshot();
            // The page that all texts begin with; the two that the broken position has a part in are no use to anyone.
            assert_eq!((snapshot.kept_pages, snapshot.free_pages), (1, snapshot.pages), "{controller}");
            assert_eq!(snapshot.totals.failed, round + 1);
        }
    }
}

/// Drafts with numbers that are not finite, all of them refused.
pub fn a_refused_draft_that_is_not_finite_changes_nothing(make: Make<'_>) {
    let requests = [Request::new(text(1, 70), 9), Request::new(text(2, 12), 14), Request::new(text(3, 3), 20)];
    let plain = run(&mut engine(make, "off"), &requests);
    for controller in ["fixed:1", "fixed:4"] {
        let mut engine = engine(make, controller);
        assert_eq!(run(&mut engine, &requests), plain, "{controller}");
        let totals = engine.snapshot().totals;
        assert!(totals.drafted > 0 && totals.accepted == 0, "{controller}: {totals:?}");
    }
}

/// Tokens that are proposed, one of them broken: what it spoils is known, nothing before it, and no longer than until others
/// are proposed in its place.
pub fn a_broken_proposal_is_known_until_another_takes_its_place(make: Make<'_>) {
    let mut backend = backend(make);
    let (pages, text, proposal) = ([PageId(0)], text(2, 12), text(3, 4));
    let sampler = Sampler::new(SamplingParams::default(), backend.geometry().vocab_size).unwrap();
    backend.prefill(&[Chunk { pages: &pages, start: 0, tokens: &text[..11] }]).unwrap();
    let mut propose = |broken: Option<usize>| {
        let mut tokens = [&text[..], &proposal].concat();
        broken.into_iter().for_each(|at| tokens[12 + at] = BROKEN);
        let round = Sequence {
            slot: 0,
            pages: &pages,
            tokens: &tokens,
            committed: 12,
            prompt: 12,
            proposed: 4,
            recurrent: 0,
            sampler: &sampler,
        };
        backend.verify(&[round]).unwrap();
        let logits: Vec<u32> = backend.target_logits(0).unwrap().into_iter().map(f32::to_bits).collect();
        (backend.first_non_finite(&pages, 0..16), logits)
    };
    let (none, expected) = propose(None);
    assert_eq!(none, None);
    for at in [1, 0, 3, 2] {
        let (first, logits) = propose(Some(at));
        assert_eq!(first, Some(12 + at));
        let before = (at + 1) * expected.len() / 5;
        assert!(logits[..before] == expected[..before] && logits[before..] != expected[before..]);
    }
    assert!(propose(None) == (None, expected));
}

/// The model is made to write the broken token: with drafts and without, what comes before its numbers is the same.
pub fn an_answer_goes_as_far_as_its_numbers_are_finite(make: Make<'_>) {
    let sampling = SamplingParams { logit_bias: vec![(BROKEN, 1e6)], ..SamplingParams::default() };
    let asking = |most| Request { sampling: sampling.clone(), ..Request::new(text(2, 12), most) };
    for controller in ["off", "fixed:1", "fixed:4"] {
        let told = run(&mut engine(make, controller), &[asking(1), asking(6), Request::new(text(3, 3), 20)]);
        assert_eq!(told[0], (vec![BROKEN], None), "{controller}: whole before its numbers are used");
        assert_eq!(told[1].0, [BROKEN], "{controller}");
        assert!(told[1].1.as_deref().is_some_and(|error| error.contains("position 12")), "{controller}: {told:?}");
        assert_eq!((told[2].0.len(), &told[2].1), (20, &None));
    }
}
