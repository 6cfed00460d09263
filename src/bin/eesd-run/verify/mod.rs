//! `eesd-run verify`: is speculation lossless on this model and these prompts?
//!
//! | check | what is compared |
//! |---|---|
//! | logits | target logits of a verification pass over a draft, with those of plain steps and of reading the text in one go, bit for bit |
//! | greedy | tokens and log-probabilities of each controller with those of `off`, exactly |
//! | coupled | tokens at a temperature under a seed, exactly |
//! | rejection | the first two tokens of many draws with the model's exact probabilities, by a χ² test |

mod chi_squared;
mod distribution;
mod logits;

use crate::args::VerifyArgs;
use crate::failure::{Failure, Outcome, with_causes};
use crate::interrupt;
use crate::machine::Machine;
use crate::output::Output;
use crate::prompts;
use crate::report::Reporter;
use crate::settings::{EVERY_PROMPT, Model};
use eesd::TokenId;
use eesd::backend::cuda::Prefill;
use eesd::control::ControllerSpec;
use eesd::engine::{Completion, Engine, Event, Request};
use eesd::load::Prompt;
use eesd::sample::{SamplingParams, VerifyMode};
use serde::Serialize;
use std::ops::ControlFlow;

/// Log-probabilities compared at each token.
const LOGPROBS: usize = 5;
/// A χ² test fails below this: a lossless engine does so once in ten thousand tests.
const LEAST_P: f64 = 1e-4;
/// Sequences side by side in the checks.
const BATCH: usize = 4;

/// One line of the verdict.
#[derive(Debug, Serialize)]
struct Check {
    check: &'static str,
    controller: String,
    compared: String,
    passed: bool,
    result: String,
}

/// Checks, prints the verdict, fails on a mismatch.
pub fn run(args: VerifyArgs) -> Outcome {
    let reporter = Reporter::new(args.quiet);
    let model = Model::open(&args.model, reporter)?.with_template(&args.template)?;
    if args.input.is_none() {
        model.note_idle_template(&args.template, "add --input FILE.jsonl", reporter);
    }
    let exit = model.exit_block(args.exit.as_ref(), reporter)?;
    let Some(exit) = exit else {
        return Err(Failure::failed(format!(
            "{}: no exit-N.safetensors, so nothing to verify: decoding is plain (give a block with --exit FILE)",
            model.place()
        )));
    };
    let controllers =
        args.controllers.as_ref().map_or_else(|| default_controllers(args.draft_max), |list| list.0.clone());
    let mut prompts = match &args.prompt {
        Some(prompt) => vec![model.encoder().encode(&Prompt::Text(prompt.clone()))?],
        None => prompts::of_file_or_bundled(args.input.as_deref(), &model, reporter)?,
    };
    prompts.truncate(args.prompts);
    if prompts.iter().any(Vec::is_empty) {
        return Err(Failure::failed("--prompt is empty (expected a text with a token in it)"));
    }
    // The checks hold passes against each other bit for bit, and reading a text is always exact.
    let machine = Machine::new(&args.machine, Prefill::Exact, &model, BATCH, args.draft_max, reporter)?;
    if let Some(number) = prompts.iter().position(|prompt| prompt.len() + distribution::TESTED > machine.context()) {
        return Err(Failure::failed(format!(
            "prompt {number} has {} tokens, but the context holds {}: the checks need room for {} more",
            prompts[number].len(),
            machine.context(),
            distribution::TESTED
        )));
    }
    let mut backend = machine.backend(&model, Some(&exit), reporter)?;
    interrupt::listen();

    let progress = reporter.progress(2 + 3 * controllers.len(), "verifying");
    let mut checks = vec![logits::check(&mut *backend, &prompts)?];
    progress.advance();
    let exact = distribution::Exact::of(&mut *backend, &prompts[0], args.temp)?;
    progress.advance();
    let mut engine = model.engine(backend, &ControllerSpec::Off).with_options(EVERY_PROMPT);

    let greedy = SamplingParams { logprobs: Some(LOGPROBS), ..SamplingParams::default() };
    let coupled = SamplingParams {
        temperature: args.temp,
        seed: Some(args.seed),
        verify: Some(VerifyMode::Coupled),
        ..greedy.clone()
    };
    for (check, sampling) in [("greedy", greedy), ("coupled", coupled)] {
        let requests = requests(&prompts, args.max_tokens, &sampling);
        let plain = answers(&mut engine, &ControllerSpec::Off, &requests, 1)?;
        for controller in &controllers {
            let found = answers(&mut engine, controller, &requests, BATCH)?;
            checks.push(compare(check, controller, &plain, &found));
            progress.advance();
        }
    }
    for controller in &controllers {
        checks.push(exact.check(&mut engine, controller, &args)?);
        progress.advance();
    }
    progress.end();

    let failed = checks.iter().filter(|check| !check.passed).count();
    let mut output = Output::stdout();
    if args.json {
        output.json(&serde_json::json!({"lossless": failed == 0, "checks": checks}))?;
    } else {
        output.text(&table(&checks, failed))?;
    }
    match failed {
        0 => Ok(()),
        n => Err(Failure::failed(format!("{n} of {} checks found a difference", checks.len()))),
    }
}

/// One controller of each kind, and one that always drafts as far as it may.
fn default_controllers(draft_max: usize) -> Vec<ControllerSpec> {
    let kinds = ["fixed:1", "threshold:0.6", "beta-ts", "calibration-ts", "goodput-ts"];
    let mut controllers: Vec<ControllerSpec> = kinds.iter().filter_map(|kind| kind.parse().ok()).collect();
    if draft_max > 1 {
        controllers.insert(1, ControllerSpec::Fixed(draft_max));
    }
    controllers
}

fn requests(prompts: &[Vec<TokenId>], max_tokens: usize, sampling: &SamplingParams) -> Vec<Request> {
    let request =
        |prompt: &Vec<TokenId>| Request { sampling: sampling.clone(), ..Request::new(prompt.clone(), max_tokens) };
    prompts.iter().map(request).collect()
}

/// Each request's answer, under a fresh controller.
fn answers(
    engine: &mut Engine,
    controller: &ControllerSpec,
    requests: &[Request],
    batch: usize,
) -> Outcome<Vec<Completion>> {
    engine.set_controller(controller.build());
    let mut answers: Vec<Option<Completion>> = vec![None; requests.len()];
    let mut failed = None;
    engine.run(&mut requests.iter().cloned(), batch, &mut |index, event| {
        match event {
            Event::Prefilled { .. } | Event::Token(_) => {}
            Event::Done(completion) => answers[index] = Some(completion),
            Event::Failed(error) => failed = Some((index, error)),
        }
        if interrupt::pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    if let Some((request, error)) = failed {
        return Err(Failure::failed(format!("request {request}: {}", with_causes(&error))));
    }
    if interrupt::pressed() {
        return Err(Failure::failed("interrupted: nothing is proved"));
    }
    Ok(answers.into_iter().flatten().collect())
}

/// Tokens must be equal, log-probabilities equal to the last bit.
fn compare(check: &'static str, controller: &ControllerSpec, plain: &[Completion], found: &[Completion]) -> Check {
    let tokens: usize = plain.iter().map(|answer| answer.tokens.len()).sum();
    let difference = plain.iter().zip(found).enumerate().find_map(|(prompt, (plain, found))| {
        let at = plain.tokens.iter().zip(&found.tokens).take_while(|(a, b)| a == b).count();
        if at < plain.tokens.len().max(found.tokens.len()) {
            let (plain, found) = (plain.tokens.get(at), found.tokens.get(at));
            return Some(format!("prompt {prompt}, token {at}: {found:?}, plain decoding gives {plain:?}"));
        }
        let bits = |answer: &Completion| -> Vec<u32> {
            let values =
                answer.logprobs.iter().flat_map(|at| std::iter::once(at.logprob).chain(at.top.iter().map(|top| top.1)));
            values.map(f32::to_bits).collect()
        };
        (bits(plain) != bits(found)).then(|| format!("prompt {prompt}: tokens equal, log-probabilities not"))
    });
    let accepted: f64 = found.iter().map(|answer| answer.stats.accepted() as f64).sum();
    let rounds: f64 = found.iter().map(|answer| answer.stats.rounds as f64).sum();
    Check {
        check,
        controller: controller.to_string(),
        compared: format!("{} prompts, {tokens} tokens", plain.len()),
        passed: difference.is_none(),
        result: difference
            .unwrap_or_else(|| format!("equal; mean accepted length {:.2}", 1.0 + accepted / rounds.max(1.0))),
    }
}

fn table(checks: &[Check], failed: usize) -> String {
    let mut text = String::from(
        "| check     | controller       | compared                     | verdict | result\n|---|---|---|---|---\n",
    );
    for check in checks {
        let verdict = if check.passed { "ok" } else { "FAILED" };
        text += &format!(
            "| {:<9} | {:<16} | {:<28} | {verdict:<7} | {}\n",
            check.check, check.controller, check.compared, check.result
        );
    }
    text + if failed == 0 { "\nlossless: every check passed\n" } else { "\nNOT lossless\n" }
}

#[cfg(test)]
mod tests {
    use super::*;
    use eesd::engine::{Finish, Stats};
    use eesd::sample::TokenLogprobs;

    fn answer(tokens: &[TokenId], logprob: f32) -> Completion {
        Completion {
            tokens: tokens.to_vec(),
            text: String::new(),
            logprobs: tokens.iter().map(|&token| TokenLogprobs { logprob, top: vec![(token, logprob)] }).collect(),
            finish: Finish::Length,
            seed: None,
            stats: Stats::default(),
        }
    }

    #[test]
    fn any_difference_is_found() {
        let check = |found| compare("greedy", &ControllerSpec::Off, &[answer(&[1, 2, 3], -0.5)], &[found]);
        assert!(check(answer(&[1, 2, 3], -0.5)).passed);
        let last_bit = f32::from_bits((-0.5f32).to_bits() + 1);
        for wrong in
            [answer(&[1, 2, 4], -0.5), answer(&[1, 2], -0.5), answer(&[1, 2, 3, 4], -0.5), answer(&[1, 2, 3], last_bit)]
        {
            assert!(!check(wrong).passed);
        }
    }
}
