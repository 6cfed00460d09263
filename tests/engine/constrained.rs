//! JSON of a schema and texts of a grammar: each answer fits, and speculation changes none.

use crate::common::oracle::standing;
use crate::common::requests::{run, tokens};
use crate::common::simulated_times::controller;
use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::constrain::{Constraint, Grammars};
use eesd::control::Off;
use eesd::draft::{Source, Sources};
use eesd::engine::{Completion, Engine, EngineError, Finish, Request};
use eesd::load::{Checkpoint, bundled_prompts};
use eesd::sample::{SamplingParams, VerifyMode};
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::sync::Arc;

const SIDE_BY_SIDE: usize = 5;

struct Bundled {
    checkpoint: Checkpoint,
    grammars: Grammars,
}

impl Bundled {
    fn new() -> Self {
        let checkpoint = Checkpoint::bundled().unwrap();
        let grammars = Grammars::new(checkpoint.tokenizer().cloned(), checkpoint.geometry().vocab_size);
        Self { checkpoint, grammars }
    }

    fn engine(&self) -> Engine {
        let options = CpuOptions { slots: SIDE_BY_SIDE, context: 256, max_draft: 8, ..CpuOptions::default() };
        let exits = self.checkpoint.exit_blocks().unwrap();
        let weights = self.checkpoint.weights();
        let exit = exits[0].weights();
        let backend = CpuBackend::new(self.checkpoint.geometry(), &weights, Some(&exit), &options).unwrap();
        let ends = self.checkpoint.generation().end_tokens.clone();
        Engine::new(backend, Box::new(Off), self.checkpoint.tokenizer().cloned(), ends)
    }

    fn prompt(&self, number: usize) -> Vec<TokenId> {
        let prompts = bundled_prompts();
        let text = format!("{}\n# {number}: ", prompts[number % prompts.len()]);
        let tokens = self.checkpoint.tokenizer().unwrap().encode(&text, true).unwrap();
        tokens[tokens.len().saturating_sub(40)..].to_vec()
    }

    fn requests(&self, count: usize, constraint: &Arc<dyn Constraint>, sampling: &SamplingParams) -> Vec<Request> {
        let request = |number: usize| Request {
            sampling: SamplingParams { seed: sampling.seed.map(|seed| seed + number as u64), ..sampling.clone() },
            constraint: Some(constraint.clone()),
            ..Request::new(self.prompt(number), 150)
        };
        (0..count).map(request).collect()
    }
}

fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "kind": {"enum": ["function", "class", "module"]},
            "lines": {"type": "integer", "minimum": 1, "maximum": 500},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 6}, "maxItems": 2},
            "tested": {"type": "boolean"},
        },
        "required": ["name", "kind", "lines", "tags", "tested"],
        "additionalProperties": false,
    })
}

/// Whether a text is JSON of the schema, checked by hand.
fn fits(text: &str) -> bool {
    let Ok(Value::Object(found)) = serde_json::from_str(text) else { return false };
    let short = |value: &Value, least: usize, most: usize| {
        value.as_str().is_some_and(|text| (least..=most).contains(&text.chars().count()))
    };
    let tags = found["tags"].as_array().is_some_and(|tags| tags.len() <= 2 && tags.iter().all(|tag| short(tag, 0, 6)));
    found.keys().eq(["name", "kind", "lines", "tags", "tested"])
        && short(&found["name"], 1, 12)
        && ["function", "class", "module"].iter().any(|kind| found["kind"] == *kind)
        && found["lines"].as_i64().is_some_and(|lines| (1..=500).contains(&lines))
        && tags
        && found["tested"].is_boolean()
}

fn check(completions: &[Completion]) {
    for completion in completions {
        assert!(fits(&completion.text), "{:?}", completion.text);
        assert_eq!(completion.finish, Finish::Complete);
    }
}

fn kept(completions: &[Completion], source: Source) -> usize {
    completions.iter().map(|completion| completion.stats.by_source[source as usize].accepted).sum()
}

#[test]
fn five_hundred_answers_fit_their_schema_and_are_those_of_plain_decoding() {
    let bundled = Bundled::new();
    let grammar: Arc<dyn Constraint> = bundled.grammars.json_schema(&schema()).unwrap();
    let coupled = SamplingParams { temperature: 0.9, seed: Some(3), ..SamplingParams::default() };
    let mut requests = bundled.requests(250, &grammar, &SamplingParams::default());
    requests.extend(bundled.requests(250, &grammar, &coupled));
    let mut engine = bundled.engine();
    let plain = run(&mut engine, &requests, SIDE_BY_SIDE);
    check(&plain);
    assert_eq!(plain.iter().map(|completion| completion.stats.drafted()).sum::<usize>(), 0);

    // By the exit block alone; then with every source, on a clock by which whatever is proposed is worth its time.
    engine.set_controller(controller("fixed:4"));
    let drafted = run(&mut engine, &requests[200..300], SIDE_BY_SIDE);
    assert_eq!(tokens(&drafted), tokens(&plain[200..300]));
    assert!(kept(&drafted, Source::Exit) > 200, "{} drafts kept", kept(&drafted, Source::Exit));
    let mut engine = engine.with_clock(standing()).with_proposers(Sources::ALL.proposers());
    let proposed = run(&mut engine, &requests, SIDE_BY_SIDE);
    assert_eq!(tokens(&proposed), tokens(&plain));
    for (source, least) in [(Source::Grammar, 100), (Source::Lookup, 20), (Source::Shared, 100)] {
        assert!(kept(&proposed, source) > least, "{source}: {} drafts kept", kept(&proposed, source));
    }
}

#[test]
fn sampled_answers_fit_by_rejection_too() {
    let bundled = Bundled::new();
    let grammar: Arc<dyn Constraint> = bundled.grammars.json_schema(&schema()).unwrap();
    let verify = Some(VerifyMode::Rejection);
    let sampling = SamplingParams { temperature: 1.2, seed: Some(9), verify, ..SamplingParams::default() };
    let requests = bundled.requests(60, &grammar, &sampling);
    let mut engine = bundled.engine().with_clock(standing()).with_proposers(Sources::ALL.proposers());
    engine.set_controller(controller("fixed:3"));
    check(&run(&mut engine, &requests, SIDE_BY_SIDE));
}

#[test]
fn a_grammar_may_end_where_it_need_not() {
    let bundled = Bundled::new();
    let grammar: Arc<dyn Constraint> = bundled.grammars.lark("start: /[a-c ]{3,}/ (\"!\" | \"?\")?").unwrap();
    let sampling = SamplingParams { temperature: 1.5, seed: Some(1), ..SamplingParams::default() };
    let mut requests = bundled.requests(20, &grammar, &sampling);
    requests.iter_mut().for_each(|request| request.max_tokens = 30);
    let plain = run(&mut bundled.engine(), &requests, 1);
    for completion in &plain {
        let text = completion.text.trim_end_matches(['!', '?']);
        let whole = text.len() >= 3 && completion.text.len() <= text.len() + 1;
        assert!(text.chars().all(|c| "abc ".contains(c)), "{:?}", completion.text);
        assert!(whole || completion.finish == Finish::Length, "{:?}: {:?}", completion.text, completion.finish);
    }
    let ended = |finish: fn(&Finish) -> bool| plain.iter().filter(|completion| finish(&completion.finish)).count();
    assert!(ended(|finish| *finish == Finish::Complete) > 0, "nothing may follow the mark");
    let mut engine = bundled.engine();
    engine.set_controller(controller("fixed:6"));
    assert_eq!(tokens(&run(&mut engine, &requests, SIDE_BY_SIDE)), tokens(&plain));
}

#[test]
fn a_request_that_leaves_its_grammar_no_token_fails_alone() {
    let bundled = Bundled::new();
    let grammar: Arc<dyn Constraint> = bundled.grammars.json_schema(&json!({"type": "boolean"})).unwrap();
    let free = &bundled.requests(1, &grammar, &SamplingParams::default())[0];
    let mut engine = bundled.engine();
    let mut answer = |request: &Request| engine.generate(request, &mut |_| ControlFlow::Continue(()));
    assert!(["true", "false"].contains(&answer(free).unwrap().text.as_str()));
    let every = (0..bundled.checkpoint.geometry().vocab_size as TokenId).collect();
    let sampling = SamplingParams { suppress_tokens: every, ..SamplingParams::default() };
    let told = answer(&Request { sampling, ..free.clone() }).unwrap_err();
    assert!(matches!(&told, EngineError::Constraint(why) if why.contains("suppress_tokens")), "{told}");
    assert!(answer(free).is_ok(), "the engine goes on");
}

#[test]
fn what_cannot_be_followed_is_refused_by_its_place() {
    let grammars = Bundled::new().grammars;
    for (schema, told) in [
        (json!({"properties": {"a": {"type": "array", "uniqueItems": true}}}), "\"/properties/a/uniqueItems\""),
        (json!({"type": "string", "format": "colour"}), "\"/format\": Unknown format: colour"),
        (json!({"anyOf": [{"type": "strin"}]}), "\"/anyOf/0/type\": Invalid type: strin"),
        (json!({"$ref": "#/$defs/x"}), "$defs"),
        (json!({"type": "integer", "minimum": 5, "maximum": 3}), "minimum (5)"),
        (json!({"type": "string", "pattern": "("}), "unclosed group"),
        (json!({"x-guidance": 3}), "\"x-guidance\" is 3"),
        (json!(false), "false"),
        (json!([1]), "object or boolean"),
        (json!({"enum": ["x".repeat(300_000)]}), "at most 262144"),
    ] {
        let error = grammars.json_schema(&schema).map(drop).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("expected"), "{told}: {error}");
    }
    for (grammar, told) in [
        ("start: nobody", "1(8): unknown name: \"nobody\""),
        ("start: \"a\"\nb: (", "2(5)"),
        ("start: \"\"", "no text but the empty one"),
        ("stat: \"x\"", "start"),
        ("start: b\nb[max_tokens=3]: /.*/", "line 2: the attribute \"max_tokens\""),
        ("start: b\nb[lazy, temperature=0.5]: /.*/", "line 2: the attribute \"temperature\""),
    ] {
        let error = grammars.lark(grammar).map(drop).unwrap_err().to_string();
        assert!(error.contains(told) && error.contains("expected"), "{told}: {error}");
    }
    let without = Grammars::new(None, 100).lark("start: \"a\"").map(drop).unwrap_err();
    assert!(without.to_string().contains("tokenizer.json"), "{without}");
}
