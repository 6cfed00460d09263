//! Constraints on the device: each row of a round is left the tokens of its own place, drafts and targets alike, beside rows
//! that may have any.

use crate::recurrent_blocks::recurrent;
use crate::sampling::{Drafting, PROMPT, Text, drafting_as_the_model, play_with};
use crate::support::{Subject, emulated, engine, on_device, options, run, tokens};
use crate::turns::Turns;
use eesd::TokenId;
use eesd::backend::cuda::CudaBackend;
use eesd::constrain::{Constraint, Grammars};
use eesd::engine::{Completion, Engine, Finish, Request};
use eesd::model::{Dtype, ExitWeights};
use eesd::sample::{SamplingParams, VerifyMode};
use serde_json::{Value, json};
use std::sync::Arc;

const END: TokenId = 3;

fn turns(subject: &Subject, sums: u32) -> Turns {
    Turns { vocab: subject.geometry().vocab_size, sums, one_way: false }
}

/// Whether a constraint lets this text stand, up to a token of `ends`.
fn follows(constraint: &dyn Constraint, output: &[TokenId], ends: &[TokenId]) -> bool {
    let mut walk = constraint.start();
    output.iter().all(|token| match ends.contains(token) {
        true => walk.may_end().unwrap(),
        false => walk.push(*token).unwrap(),
    })
}

/// Verdicts are the library's own on the device's logits, round by round; where draft and target are one model every draft is
/// kept, so that both had the same masks.
#[test]
fn rows_are_left_the_tokens_of_their_places() {
    let subject = Subject::fixture("llama3_rope_sharded");
    let mut backend = drafting_as_the_model(&subject, &options(6));
    let text = |slot: usize| {
        let sampling = SamplingParams {
            temperature: [0.0, 0.8][slot % 2],
            seed: Some(5),
            frequency_penalty: if slot < 2 { 0.3 } else { 0.0 },
            logit_bias: if slot == 4 { vec![(7, 2.0)] } else { vec![] },
            ..SamplingParams::default()
        };
        let mut text = Text::new(&subject, slot, sampling);
        // One of three may say what it likes.
        if slot % 3 != 2 {
            text.sampler = text.sampler.constrained(Arc::new(turns(&subject, 1009)), vec![]);
        }
        text
    };
    let mut texts: Vec<Text> = (0..6).map(text).collect();
    let length = |round: usize, text: &Text| (round + text.slot) % 5;
    // Proposals, some of which the constraint refuses.
    let propose = |round: usize, text: &Text| match (round + text.slot) % 5 {
        1 => vec![1, 1],
        2 => vec![(31 * round + text.slot) as TokenId],
        _ => vec![],
    };
    let sampled: usize = (0..8).flat_map(|round| texts.iter().map(move |text| length(round, text))).sum();
    let kept = play_with(&mut *backend, &mut texts, 8, &Drafting { length: &length, propose: &propose });
    assert!(kept >= sampled, "{kept} of {sampled} drafts kept");
    for text in &texts {
        let obeys = follows(&turns(&subject, 1009), &text.tokens[PROMPT..], &[]);
        assert_eq!(obeys, text.slot % 3 != 2, "slot {}: {:?}", text.slot, &text.tokens[PROMPT..]);
    }
}

/// Requests of which one has no constraint.
fn requests(subject: &Subject, sampling: &SamplingParams) -> Vec<Request> {
    let request = |i: u64| {
        let sampling = SamplingParams { seed: Some(i), ..sampling.clone() };
        let free = Request { sampling, ..Request::new(subject.text(i, 3 + 5 * i as usize), 16) };
        let bound = |sums| Request { stop_token_ids: vec![END], ..turns(subject, sums).applied_to(free.clone()) };
        if i == 1 { free } else { bound([23, 0, 101, 1009][i as usize]) }
    };
    (0..4).map(request).collect()
}

fn check(subject: &Subject, requests: &[Request], answers: &[Completion]) {
    for (request, answer) in requests.iter().zip(answers) {
        if let Some(constraint) = &request.constraint {
            assert!(follows(&**constraint, &answer.tokens, &[END]), "{constraint}: {:?}", answer.tokens);
        } else {
            assert!(!follows(&turns(subject, 23), &answer.tokens, &[END]), "any answer would fit");
        }
    }
}

fn samplings() -> [SamplingParams; 3] {
    let sampled = |verify| SamplingParams { temperature: 0.9, verify: Some(verify), ..SamplingParams::default() };
    [SamplingParams::default(), sampled(VerifyMode::Coupled), sampled(VerifyMode::Rejection)]
}

#[test]
fn answers_are_those_of_plain_decoding_alone_and_side_by_side() {
    let subject = Subject::fixture("llama");
    for sampling in samplings() {
        let requests = requests(&subject, &sampling);
        let answers = |controller, slots| {
            let found =
                run(&mut engine(drafting_as_the_model(&subject, &options(slots)), controller), &requests, slots);
            check(&subject, &requests, &found);
            found
        };
        // One draft is a loop that goes round once; more of them are drafted step by step.
        let (alone, together, one) = (answers("fixed:4", 1), answers("fixed:4", 4), answers("fixed:1", 1));
        assert_eq!(tokens(&together), tokens(&alone), "{sampling:?}");
        for done in alone.iter().chain(&together).chain(&one) {
            assert!(done.stats.drafted() > 2 && done.stats.accepted() == done.stats.drafted(), "{:?}", done.stats);
        }
        if sampling.verify != Some(VerifyMode::Rejection) {
            let plain = answers("off", 2);
            assert_eq!((tokens(&alone), tokens(&one)), (tokens(&plain), tokens(&plain)), "{sampling:?}");
        }
    }
}

/// Exit blocks that know some tokens only, and recurrent ones, have the masks of the model's tokens too. Only
/// three tokens are likely, and the constraint takes one of them away, or all: so drafts are often those that the model says.
#[test]
fn every_kind_of_block_is_masked() {
    let subject = Subject::fixture("qwen2");
    let weights = subject.checkpoint.weights();
    let (listed, whole) = (subject.exit(3), subject.exit(2));
    let few = [20, 21, 22];
    assert!(
        listed.draft_ids.is_some_and(|ids| few.iter().all(|&token| ids[token as usize] != token)),
        "columns are tokens"
    );
    for (name, exit) in [("listed", listed), ("recurrent", recurrent(whole, Some(Dtype::BF16)))] {
        for sampling in samplings() {
            let logit_bias = few.iter().map(|&token| (token, 90.0)).collect();
            let sampling = SamplingParams { logit_bias, ..sampling };
            let requests = requests(&subject, &sampling);
            let answers = |exit: Option<&ExitWeights<'_>>, controller, slots| {
                let backend = on_device(subject.geometry(), &weights, exit, &options(slots));
                let found = run(&mut engine(backend, controller), &requests, slots);
                check(&subject, &requests, &found);
                found
            };
            let (alone, together) = (answers(Some(&exit), "fixed:3", 1), answers(Some(&exit), "fixed:3", 4));
            assert_eq!(tokens(&together), tokens(&alone), "{name}, {sampling:?}");
            if sampling.verify != Some(VerifyMode::Rejection) {
                assert_eq!(tokens(&alone), tokens(&answers(None, "off", 2)), "{name}, {sampling:?}");
            }
            let later: usize = alone.iter().flat_map(|done| done.stats.accepted_at.iter().skip(1)).sum();
            assert!(later > 0, "{name}, {sampling:?}: no draft after the first one was kept");
        }
    }
}

/// Passes without masks are the ones they were before anybody had one, and loops are loops.
#[test]
fn who_has_no_constraint_pays_for_none() {
    let subject = Subject::fixture("llama");
    let (weights, exit) = (subject.checkpoint.weights(), subject.exit(2));
    let device = emulated(0, 1 << 30);
    let backend = CudaBackend::new(device.clone(), subject.geometry(), &weights, Some(&exit), &options(1)).unwrap();
    let mut engine = engine(backend, "fixed:3");
    let bound = requests(&subject, &SamplingParams::default());
    let free: Vec<Request> = bound.iter().cloned().map(|bound| Request { constraint: None, ..bound }).collect();
    let counted = |engine: &mut Engine, requests: &[Request]| {
        let before = device.counts();
        run(engine, requests, 1);
        let after = device.counts();
        (after.kernels - before.kernels, after.recordings - before.recordings, after.turns - before.turns)
    };
    counted(&mut engine, &free);
    let (kernels, recordings, turns) = counted(&mut engine, &free);
    assert!(kernels > 0 && recordings == 0 && turns > 0, "{kernels} kernels, {recordings} recordings, {turns} turns");
    let (_, recordings, _) = counted(&mut engine, &bound[2..]);
    assert!(recordings > 0, "passes with masks are graphs of their own");
    assert_eq!(counted(&mut engine, &free), (kernels, 0, turns));
}

/// What passes are told grows with their masks, and moves: whatever was recorded before reads from the new place.
#[test]
fn there_is_room_for_many_masks() {
    let subject = Subject::bundled();
    let (weights, exit) = (subject.checkpoint.weights(), subject.exit(2));
    let device = emulated(0, 1 << 30);
    let mut backend = CudaBackend::new(device.clone(), subject.geometry(), &weights, Some(&exit), &options(8)).unwrap();
    let constraint = turns(&subject, 10_007);
    let text = |slot: usize| {
        let mut text = Text::new(&subject, slot, SamplingParams::default());
        text.sampler = text.sampler.constrained(Arc::new(constraint.clone()), vec![]);
        text
    };
    let mut texts: Vec<Text> = (0..8).map(text).collect();
    // Tokens that may follow, so that each row has a mask.
    let proposals = |_: usize, text: &Text| {
        let mut walk = constraint.start();
        assert!(text.tokens[PROMPT..].iter().all(|token| walk.push(*token).unwrap()));
        // Where there is no choice, it is token 1.
        let next = |place: TokenId| (place..4096).chain([1]).find(|token| walk.push(*token).unwrap());
        (0..16).map(|row| 97 * row + 10 * text.slot as TokenId).map(next).map(Option::unwrap).collect()
    };
    let mut play = |propose: &dyn Fn(usize, &Text) -> Vec<TokenId>| {
        play_with(&mut *backend, &mut texts, 1, &Drafting { length: &|_, _| 0, propose });
        device.allocated()
    };
    let before = play(&|_, _| vec![]);
    let grown = play(&proposals);
    assert!(grown.1 > before.1, "{grown:?} as {before:?}");
    assert_eq!(play(&|_, _| vec![]), grown);
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "kind": {"enum": ["function", "class", "module"]},
            "lines": {"type": "integer", "minimum": 1, "maximum": 500},
            "tested": {"type": "boolean"},
        },
        "required": ["kind", "lines", "tested"],
        "additionalProperties": false,
    })
}

fn fits(text: &str) -> bool {
    let Ok(Value::Object(found)) = serde_json::from_str(text) else { return false };
    found.keys().eq(["kind", "lines", "tested"])
        && ["function", "class", "module"].iter().any(|kind| found["kind"] == *kind)
        && found["lines"].as_i64().is_some_and(|lines| (1..=500).contains(&lines))
        && found["tested"].is_boolean()
}

/// By the issue's own measure: JSON of a schema as the processor writes it, beside an answer that is none.
#[test]
fn json_of_a_schema_is_the_processors() {
    let subject = Subject::bundled();
    let grammars = Grammars::new(subject.checkpoint.tokenizer().cloned(), subject.geometry().vocab_size);
    let schema: Arc<dyn Constraint> = grammars.json_schema(&schema()).unwrap();
    let coupled = SamplingParams { temperature: 0.9, seed: Some(3), ..SamplingParams::default() };
    let request = |(i, prompt): (usize, Vec<TokenId>)| Request {
        sampling: if i == 2 { coupled.clone() } else { SamplingParams::default() },
        constraint: (i != 1).then(|| schema.clone()),
        ..Request::new(prompt, if i == 1 { 16 } else { 60 })
    };
    let requests: Vec<Request> = subject.prompts(3).into_iter().enumerate().map(request).collect();
    let answers = |backend, controller: &str, slots| {
        let controller = controller.parse::<eesd::control::ControllerSpec>().unwrap().build();
        run(&mut Engine::new(backend, controller, subject.checkpoint.tokenizer().cloned(), vec![]), &requests, slots)
    };
    let expected = answers(subject.cpu(Some(2), 1), "off", 1);
    let found = answers(subject.cuda(Some(2), &options(3)), "fixed:3", 3);
    assert_eq!(tokens(&found), tokens(&expected));
    for done in [&found[0], &found[2]] {
        assert!(fits(&done.text) && done.finish == Finish::Complete, "{:?}: {:?}", done.finish, done.text);
        assert!(done.stats.accepted() > 5, "hardly a draft was kept: {:?}", done.stats);
    }
    assert!(!fits(&found[1].text) && found[0].tokens != found[2].tokens);
}
