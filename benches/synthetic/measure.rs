//! Plays all controllers against each other on one construction.

use crate::construction::{self, Construction};
use crate::contender::{Contender, Ladder};
use eesd::TokenId;
use eesd::control::ControllerSpec;
use eesd::engine::{Engine, Request};
use std::error::Error;

/// Most drafts of a round.
pub const MAX_DRAFT: usize = 8;
/// Draft lengths of the rounds that measure costs.
pub const LADDER: [usize; 7] = [0, 1, 2, 3, 4, 6, MAX_DRAFT];

/// What is measured, and beside what.
pub struct Measurement {
    /// The model in words.
    pub model: String,
    /// Controllers that compete with `off`.
    pub controllers: Vec<ControllerSpec>,
    /// Times that every controller answers all prompts.
    pub repetitions: usize,
    /// What the probe does, in words.
    pub yardstick: &'static str,
}

/// What was measured with one construction.
pub struct Measured {
    /// The model in words.
    pub model: String,
    /// What the rates are of, in words.
    pub yardstick: &'static str,
    /// The device, in the backend's words.
    pub device: String,
    /// N.
    pub exit_layer: usize,
    /// ε.
    pub scale: f32,
    /// Share of positions where the draft is the model's own token.
    pub acceptance: f64,
    /// Greedy or sampled.
    pub temperature: f64,
    /// Answers, and different tokens in them.
    pub texts: (usize, usize),
    /// Rates of the yardstick, bytes per second.
    pub reads: Vec<f64>,
    /// Bytes of the matrices that a plain step reads.
    pub step_bytes: usize,
    /// `off` first, the ladder last.
    pub contenders: Vec<Contender>,
}

/// Lets all controllers answer all prompts in turns. `probe` tells the rate of the memory, in bytes per
/// second, before each of them.
///
/// # Errors
/// If a model cannot be built, a pass fails, or an answer is not that of plain decoding.
pub fn measure(
    measurement: &Measurement,
    construction: &Construction,
    scale: f32,
    acceptance: f64,
    probe: &mut dyn FnMut() -> Result<f64, Box<dyn Error>>,
) -> Result<Measured, Box<dyn Error>> {
    let backend = construction.build(scale)?;
    let mut engine = Engine::new(backend, ControllerSpec::Off.build(), None, Vec::new());
    let requests: Vec<Request> = construction
        .prompts
        .iter()
        .map(|prompt| Request {
            sampling: construction.sampling.clone(),
            ..Request::new(prompt.clone(), construction.tokens)
        })
        .collect();

    let mut contenders = vec![Contender::new(ControllerSpec::Off.build())];
    contenders.extend(measurement.controllers.iter().map(|spec| Contender::new(spec.build())));
    contenders.push(Contender::new(Box::new(Ladder { lengths: &LADDER, round: 0 })));
    let mut answers: Vec<Vec<TokenId>> = Vec::new();
    for request in &requests {
        answers.push(contenders[0].play(&mut engine, request, None)?);
    }
    let mut turns = |contenders: &mut [Contender], prompts: usize| -> Result<(), Box<dyn Error>> {
        contenders.iter_mut().for_each(|contender| contender.repetitions.push((0, 0.0)));
        for (request, answer) in std::iter::zip(&requests, &answers).take(prompts) {
            for contender in contenders.iter_mut() {
                contender.play(&mut engine, request, Some(answer))?;
            }
        }
        Ok(())
    };
    turns(&mut contenders, 1)?;
    contenders.iter_mut().for_each(Contender::reset);
    let mut reads = Vec::new();
    for _ in 0..measurement.repetitions {
        reads.push(probe()?);
        turns(&mut contenders, requests.len())?;
    }
    let mut different: Vec<TokenId> = answers.concat();
    let all = different.len();
    different.sort_unstable();
    different.dedup();
    Ok(Measured {
        model: measurement.model.clone(),
        yardstick: measurement.yardstick,
        device: engine.backend().describe(),
        exit_layer: construction.exit_layer,
        scale,
        acceptance,
        temperature: construction.sampling.temperature,
        texts: (all, different.len()),
        reads,
        step_bytes: construction::step_bytes(engine.backend().geometry()),
        contenders,
    })
}
