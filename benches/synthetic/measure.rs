//! Plays all controllers against each other on one construction.

use crate::construction::{Constructed, Construction};
use crate::contender::{Contender, Ladder};
use eesd::TokenId;
use eesd::control::{ControllerSpec, Way};
use eesd::engine::{Engine, Request};
use eesd::model::cost::DraftCosts;
use std::error::Error;

/// Most drafts of a round.
pub const MAX_DRAFT: usize = 8;
/// Draft lengths of the rounds that measure costs.
pub const LADDER: [usize; 7] = [0, 1, 2, 3, 4, 6, MAX_DRAFT];

/// What is measured, and beside what.
pub struct Measurement {
    /// The model in words.
    pub model: String,
    /// Bytes of the matrices that a plain step reads.
    pub step_bytes: u64,
    /// How drafts after a round's first are made, one way after the other, and what drafts cost then by the bytes they read.
    pub ways: Vec<(Way, DraftCosts)>,
    /// Makes the backend draft one way or the other from here on.
    pub select: Box<dyn Fn(Way)>,
    /// Controllers that compete with `off`.
    pub controllers: Vec<ControllerSpec>,
    /// Times that every controller answers all prompts.
    pub repetitions: usize,
    /// What the probe does, in words.
    pub yardstick: &'static str,
}

/// What was measured with one construction.
pub struct Measured {
    /// The device, in the backend's words.
    pub device: String,
    /// N.
    pub exit_layer: usize,
    /// ε.
    pub scale: f32,
    /// Of a round's first, second, … draft: how often it is the model's own token where all before it are.
    pub acceptance: Vec<f64>,
    /// Greedy or sampled.
    pub temperature: f64,
    /// Answers, and different tokens in them.
    pub texts: (usize, usize),
    /// Rates of the yardstick, bytes per second.
    pub reads: Vec<f64>,
    /// Plain decoding.
    pub off: Contender,
    /// For each of the [ways](Measurement::ways).
    pub sides: Vec<Side>,
}

/// Those who draft one way.
pub struct Side {
    /// How drafts after a round's first are made.
    pub way: Way,
    /// What drafts cost by the bytes that they read.
    pub by_bytes: DraftCosts,
    /// The controllers.
    pub contenders: Vec<Contender>,
    /// Whose rounds tell what passes cost.
    pub ladder: Contender,
}

impl Side {
    fn new(measurement: &Measurement, (way, by_bytes): (Way, DraftCosts)) -> Self {
        let contenders = measurement.controllers.iter().map(|spec| Contender::new(spec.build())).collect();
        let ladder = Contender::new(Box::new(Ladder { lengths: &LADDER, round: 0 }));
        Self { way, by_bytes, contenders, ladder }
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Contender> {
        self.contenders.iter_mut().chain([&mut self.ladder])
    }
}

/// Lets all controllers answer all prompts in turns. `probe` tells the rate of the memory, in bytes per
/// second, before each of them.
///
/// # Errors
/// If a pass fails, or an answer is not that of plain decoding.
pub fn measure(
    measurement: &Measurement,
    construction: &Construction,
    constructed: Constructed,
    probe: &mut dyn FnMut() -> Result<f64, Box<dyn Error>>,
) -> Result<Measured, Box<dyn Error>> {
    let Constructed { scale, acceptance, backend } = constructed;
    let mut engine = Engine::new(backend, ControllerSpec::Off.build(), None, Vec::new());
    let requests: Vec<Request> = construction
        .prompts
        .iter()
        .map(|prompt| Request {
            sampling: construction.sampling.clone(),
            ..Request::new(prompt.clone(), construction.tokens)
        })
        .collect();

    let mut off = Contender::new(ControllerSpec::Off.build());
    let mut sides: Vec<Side> = measurement.ways.iter().map(|&way| Side::new(measurement, way)).collect();
    let mut answers: Vec<Vec<TokenId>> = Vec::new();
    for request in &requests {
        answers.push(off.play(&mut engine, request, None)?);
    }
    let mut turns = |off: &mut Contender, sides: &mut [Side], prompts: usize| -> Result<(), Box<dyn Error>> {
        off.repetitions.push((0, 0.0));
        sides.iter_mut().flat_map(Side::all).for_each(|contender| contender.repetitions.push((0, 0.0)));
        for (request, answer) in std::iter::zip(&requests, &answers).take(prompts) {
            off.play(&mut engine, request, Some(answer))?;
            for side in &mut *sides {
                (measurement.select)(side.way);
                for contender in side.all() {
                    contender.play(&mut engine, request, Some(answer))?;
                }
            }
        }
        Ok(())
    };
    turns(&mut off, &mut sides, 1)?;
    off.reset();
    sides.iter_mut().flat_map(Side::all).for_each(Contender::reset);
    let mut reads = Vec::new();
    for _ in 0..measurement.repetitions {
        reads.push(probe()?);
        turns(&mut off, &mut sides, requests.len())?;
    }
    let mut different: Vec<TokenId> = answers.concat();
    let all = different.len();
    different.sort_unstable();
    different.dedup();
    Ok(Measured {
        device: engine.backend().describe(),
        exit_layer: construction.exit_layer,
        scale,
        acceptance,
        temperature: construction.sampling.temperature,
        texts: (all, different.len()),
        reads,
        off,
        sides,
    })
}
