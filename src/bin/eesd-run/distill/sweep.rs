//! Which exit layer gains most: what each block's drafts cost and gain on this machine.

use super::training::{Run, Trained};
use crate::bench::contender::Contender;
use crate::bench::costs::{Costs, Round};
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::machine::Machine;
use crate::output::Output;
use crate::settings::EVERY_PROMPT;
use eesd::TokenId;
use eesd::backend::cuda::Prefill;
use eesd::control::ControllerSpec;
use eesd::draft::Sources;
use eesd::engine::{Engine, Request};
use eesd::model::cost;

/// Held-out texts that are continued, the tokens of each that are a prompt, and those of its continuation.
const PROMPTS: usize = 16;
const PROMPT_TOKENS: usize = 32;
const ANSWER_TOKENS: usize = 96;
/// Times that each controller answers all prompts.
const REPETITIONS: usize = 3;
/// Most drafts of a round.
const MAX_DRAFT: usize = 16;

/// One block's speed.
pub struct Speed {
    /// Its exit layer.
    pub n: usize,
    /// Seconds of a draft step over those of a plain step.
    pub draft_cost: f64,
    /// The best fixed draft length by costs and acceptance, and its speed-up.
    pub best: (usize, f64),
    /// Plain decoding's seconds over those of the default controller, and of the best fixed length.
    pub adaptive: f64,
    pub fixed: f64,
    /// Drafts tested and kept, on greedy continuations.
    pub acceptance: f64,
}

/// Measures all blocks, prints a table and a recommendation.
pub fn compare(run: &Run<'_>, blocks: &[Trained]) -> Outcome<Vec<Speed>> {
    let requests = requests(run)?;
    let progress = run.reporter.progress(blocks.len() * (REPETITIONS + 1), "speeds");
    let mut speeds = Vec::new();
    for block in blocks {
        let exit = run.model.checkpoint.open_exit(&block.path)?;
        let machine = Machine::new(&run.args.machine, Prefill::Exact, run.model, 1, MAX_DRAFT, run.reporter)?;
        let backend = machine.backend(run.model, Some(&exit), run.reporter)?;
        let mut engine = run.model.engine(backend, &ControllerSpec::Off).with_options(EVERY_PROMPT);
        match measure(block.n, &mut engine, &requests, &|| progress.advance())? {
            Some(speed) => speeds.push(speed),
            None => break,
        }
    }
    progress.end();
    Output::stdout().text(&table(blocks, &speeds))?;
    Ok(speeds)
}

/// The beginnings of held-out texts, or of the training texts where nothing was held out.
fn requests(run: &Run<'_>) -> Outcome<Vec<Request>> {
    let held_out = &run.dataset.held_out;
    let documents = if held_out.is_empty() { &run.dataset.train } else { held_out };
    let prompt = |tokens: &[TokenId]| tokens[..tokens.len().min(PROMPT_TOKENS)].to_vec();
    let prompts = documents.iter().take(PROMPTS).map(|document| prompt(&document.tokens));
    let requests: Vec<Request> = prompts.map(|prompt| Request::new(prompt, ANSWER_TOKENS)).collect();
    if requests.is_empty() { Err(Failure::failed("no text to measure speeds on")) } else { Ok(requests) }
}

/// Plain decoding, and this block's drafts, in turns; `None` if interrupted. All answers must be those of plain decoding.
fn measure(n: usize, engine: &mut Engine, requests: &[Request], tick: &dyn Fn()) -> Outcome<Option<Speed>> {
    let contender = |spec: &ControllerSpec| Contender::new(spec, Sources::OFF);
    let mut contenders = [ControllerSpec::Off, ControllerSpec::Fixed(4)].map(|spec| contender(&spec));
    let Some((expected, rounds)) = play(engine, requests, &mut contenders, None)? else { return Ok(None) };
    tick();
    let costs = Costs::measured(rounds);
    let stats = &contenders[1].stats;
    let acceptance = stats.accepted() as f64 / stats.drafted().max(1) as f64;
    let draft_cost = costs.draft() / costs.verify(1);
    let predicted =
        |k: usize| cost::tokens_per_round(acceptance, k) * costs.verify(1) / (costs.verify(k + 1) + costs.drafts(k));
    let best =
        (0..=4).map(|k| (k, predicted(k))).fold((0, 1.0), |best, next| if next.1 > best.1 { next } else { best });
    let fixed = ControllerSpec::Fixed(best.0.max(1));
    let mut contenders: Vec<Contender> =
        [ControllerSpec::Off, fixed, ControllerSpec::default()].iter().map(contender).collect();
    for _ in 0..REPETITIONS {
        contenders.iter_mut().for_each(Contender::begin_repetition);
        if play(engine, requests, &mut contenders, Some(&expected))?.is_none() {
            return Ok(None);
        }
        tick();
    }
    let seconds = |contender: &Contender| contender.repetitions.iter().map(|(_, seconds)| seconds).sum::<f64>();
    let [off, fixed, adaptive] = [0, 1, 2].map(|i| seconds(&contenders[i]));
    Ok(Some(Speed { n, draft_cost, best, fixed: off / fixed, adaptive: off / adaptive, acceptance }))
}

type Played = (Vec<Vec<TokenId>>, Vec<Round>);

/// Every contender answers each request; tokens must be the expected ones, or else those of the first contender.
fn play(
    engine: &mut Engine,
    requests: &[Request],
    contenders: &mut [Contender],
    expected: Option<&[Vec<TokenId>]>,
) -> Outcome<Option<Played>> {
    let (mut answers, mut rounds): Played = Default::default();
    for (number, request) in requests.iter().enumerate() {
        for contender in contenders.iter_mut() {
            let Some(turn) = contender.play(engine, std::slice::from_ref(request), number)? else { return Ok(None) };
            let right = expected.map_or_else(|| answers.get(number), |expected| expected.get(number));
            if let Some(right) = right {
                contender.check(std::slice::from_ref(right), &turn.tokens, number)?;
            }
            contender.count(&turn);
            rounds.extend(turn.rounds);
            if answers.len() == number {
                answers.extend(turn.tokens);
            }
        }
        if interrupt::pressed() {
            return Ok(None);
        }
    }
    Ok(Some((answers, rounds)))
}

fn table(blocks: &[Trained], speeds: &[Speed]) -> String {
    let mut lines = vec![
        "| exit after | top-1 | 1 - TV | kept when greedy | draft step / plain step | predicted | fixed | goodput-ts |"
            .to_owned(),
        "|--:|--:|--:|--:|--:|--:|--:|--:|".to_owned(),
    ];
    for (block, speed) in blocks.iter().zip(speeds) {
        let means = block.reached.as_ref().map(|losses| losses.first().mean()).unwrap_or_default();
        lines.push(format!(
            "| {} | {:.3} | {:.3} | {:.3} | {:.2} | {:.2}x at {} | {:.2}x | {:.2}x |",
            block.n,
            means.agreement,
            means.overlap,
            speed.acceptance,
            speed.draft_cost,
            speed.best.1,
            speed.best.0,
            speed.fixed,
            speed.adaptive,
        ));
    }
    let fastest = speeds.iter().max_by(|a, b| a.adaptive.total_cmp(&b.adaptive));
    lines.push(String::new());
    lines.push(match fastest {
        Some(speed) if speed.adaptive > 1.0 => {
            format!("Recommended: --exit {}, measured {:.2}x against plain decoding.", speed.n, speed.adaptive)
        }
        Some(_) => {
            "No exit layer gains on this machine: decode plainly, or try one where decoding waits for memory.".into()
        }
        None => "Nothing was measured.".into(),
    });
    lines.join("\n") + "\n"
}
