//! One exit block's training: from flags to a file.

use super::reach::{self, Coverage};
use super::start::with_start;
use super::student::student;
use crate::args::{BlockArgs, DistillArgs, DraftVocab, TrainingArgs};
use crate::failure::{Failure, Outcome};
use crate::interrupt;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::report::{Reporter, count};
use crate::settings::Model;
use eesd::TokenId;
use eesd::backend::cuda::Prefill;
use eesd::backend::training::loss::{LossOptions, LossSum, Losses};
use eesd::backend::training::parameters::{Head, Layout, Rounding};
use eesd::distill::data::{Batches, Dataset, Frequencies};
use eesd::distill::{
    Cadence, Finish, Identity, KeepStates, Metrics, StepReport, Teacher, TrainPlan, Trainer, model_digest,
    snapshot_path,
};
use eesd::load::ExitBlock;
use eesd::model::Dtype;
use eesd::model::cost::DraftCosts;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Tokens that texts are cut to, where nobody says and the context has room.
const WINDOW: usize = 512;

/// What all blocks of a run share.
pub struct Run<'a> {
    pub args: &'a DistillArgs,
    pub model: &'a Model,
    pub dataset: &'a Dataset,
    pub output: &'a Path,
    pub reporter: Reporter,
}

/// A block that was trained.
pub struct Trained {
    /// Its exit layer.
    pub n: usize,
    /// Its file.
    pub path: PathBuf,
    /// What it reaches on held-out text.
    pub reached: Option<Losses>,
    /// `(update, means)` of this session's updates, and of its measurements on held-out text.
    pub curve: Vec<(u64, LossSum)>,
    pub held_out: Vec<(u64, LossSum)>,
}

impl Run<'_> {
    /// Trains the block after `n` layers and writes it; `None` if interrupted.
    pub fn train(&self, n: usize) -> Outcome<Option<Trained>> {
        let TrainingArgs { batch_tokens, measure_every, save_every, patience, .. } = self.args.training;
        let mut machine = Machine::new(&self.args.machine, Prefill::Exact, self.model, 1, 1, self.reporter)?;
        let window = self.args.training.window.unwrap_or(WINDOW.min(machine.context()).min(batch_tokens));
        let batches = |documents| Batches::new(documents, window, batch_tokens, self.args.data.seed);
        let train = batches(&self.dataset.train)?;
        let held_out = if self.dataset.held_out.is_empty() { None } else { Some(batches(&self.dataset.held_out)?) };
        let mut plan = self.plan(window, &train);

        let frequencies = Frequencies::of(&self.dataset.train, self.model.checkpoint.geometry().vocab_size);
        let (layout, values, ridge) = self.start(n, &frequencies)?;
        plan.ridge = ridge;
        let coverage = self.coverage(&layout, &frequencies);
        let identity = Identity::new(&self.model.fingerprint(), &layout, &values, &self.dataset.train, plan.clone());
        // The student comes first: the teacher's cache makes do with what is left of a GPU's memory.
        let student = student(&mut machine, self.model, (layout, values), &plan, self.reporter)?;
        let mut teacher = Teacher::new(machine.backend(self.model, None, self.reporter)?, n, window)?;
        if student.takes_states() {
            self.keep_states(&mut teacher)?;
        }
        let trained = count(student.layout().trained() as u64);
        // A run of no updates only measures: no snapshot is its own.
        let snapshot = (plan.steps > 0).then(|| snapshot_path(self.output, n));
        let mut trainer = Trainer::new(teacher, student, &train, held_out.as_ref(), identity, snapshot.clone())?;
        let path = super::block_path(self.output, n);
        let done = match (trainer.resume(), snapshot) {
            (Err(error), Some(snapshot)) if self.args.overwrite && error.is_of_snapshot() => {
                remove(&snapshot)?;
                self.reporter.note(&format!("{}: removed, by --overwrite ({error})", snapshot.display()));
                0
            }
            (done, _) => done?,
        };
        if plan.steps > 0 && done == 0 && path.exists() && !self.args.overwrite {
            return Err(super::there_already(&path));
        }
        let (reader, learner) = trainer.describe();
        self.reporter.note(&format!(
            "exit after layer {n}: {trained} parameters to train, {} updates of about {} positions{}{}; teacher: {reader}; \
             student: {learner}",
            plan.steps,
            self.positions_per_update(&train, &plan),
            if done > 0 { format!(", {done} of them done before") } else { String::new() },
            coverage.as_ref().map_or(String::new(), |coverage| format!("; {coverage}")),
        ));

        if self.fit_input(&mut trainer)? == Finish::Stopped {
            self.reporter.note("interrupted before the first update: the same command goes on");
            return Ok(None);
        }
        let mut block = Trained { n, path: path.clone(), reached: None, curve: Vec::new(), held_out: Vec::new() };
        let mut metrics = match plan.steps {
            0 => None,
            _ => Some(Metrics::open(&self.output.join(format!("exit-{n}.metrics.jsonl")), done)?),
        };
        let progress = self.reporter.progress(plan.steps as usize, "training");
        progress.set(done as usize, plan.steps as usize);
        progress.forget_pace();
        let mut clock = Clock { last: Instant::now(), speed: 0.0 };
        let mut failed = None;
        let patience = patience.map(|patience| patience as u64);
        let cadence = Cadence { measure: measure_every as u64, save: save_every as u64, patience };
        let finish = trainer.run(cadence, &mut |report| {
            let seconds = clock.step(report);
            block.curve.push((report.step, report.losses.all().mean()));
            block.held_out.extend(report.held_out.as_ref().map(|losses| (report.step, losses.all().mean())));
            show(&progress, &block, clock.speed);
            failed = metrics.as_mut().and_then(|metrics| metrics.add(report, seconds).err());
            if interrupt::pressed() || failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        progress.end();
        let finish = finish?;
        if let Some(error) = failed {
            return Err(error.into());
        }
        if finish == Finish::Stopped {
            let step = trainer.step();
            self.reporter.note(&format!("interrupted after update {step} of {}: the same command goes on", plan.steps));
            return Ok(None);
        }
        if trainer.step() < plan.steps {
            self.reporter.note(&format!(
                "ended after update {} of {}: held-out text got no better",
                trainer.step(),
                plan.steps
            ));
        }
        let best = trainer.best().filter(|&best| best < trainer.step());
        if let Some(best) = best {
            self.reporter
                .note(&format!("the block after update {best} was best on held-out text, and is the one written"));
        }
        if trainer.left_out() > 0 {
            self.reporter.note("not all hidden states were kept: --keep-states has no room for more");
        }
        let (exported, reached) = trainer.export(self.rounding())?;
        block.reached = reached;
        if plan.steps > 0 {
            let mut story = self.story(&plan, trainer.step(), &train, coverage, block.reached.as_ref());
            story.extend(best.map(|best| ("best_update".to_owned(), best.to_string())));
            ExitBlock::save(&path, &exported.weights(), &story, &self.model.checkpoint)?;
            self.reporter.note(&format!("{}: written", path.display()));
        }
        let reached = reach::reached(block.reached.as_ref());
        let costs = DraftCosts::of(&self.model.weights(self.reporter)?, &exported.weights());
        let worth = reach::worth(costs, block.reached.as_ref());
        self.reporter.note(&format!("exit after layer {n}, {reached}{worth}"));
        Ok(Some(block))
    }

    /// Lets the teacher keep what it says, unless that is not wanted.
    fn keep_states(&self, teacher: &mut Teacher) -> Outcome {
        let TrainingArgs { keep_states, states, .. } = &self.args.training;
        if *keep_states == 0 {
            return Ok(());
        }
        let (weights, fingerprint) = (self.model.weights(self.reporter)?, self.model.fingerprint());
        let model = self.reporter.wait("reading the model", || model_digest(&fingerprint, &weights));
        let folder = states.clone().unwrap_or_else(|| self.output.join("states"));
        let notes = teacher.keep(&KeepStates { folder, most: *keep_states, model })?;
        notes.iter().for_each(|note| self.reporter.note(note));
        Ok(())
    }

    /// Fits the input matrix, where there is one to fit.
    fn fit_input(&self, trainer: &mut Trainer<'_>) -> Outcome<Finish> {
        let progress = self.reporter.progress(1, "ridge regression");
        let fitted = trainer.fit_input(&mut |done, of| {
            progress.set(done as usize, of as usize);
            if interrupt::pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        progress.end();
        Ok(fitted?)
    }

    /// What the block is kept in: the model's own format, 16 bits where that is no plain numbers.
    fn rounding(&self) -> Rounding {
        match self.args.block.store {
            Some(store) => store.into(),
            None => self.model.checkpoint.weights().layers[0].q.format.dtype().unwrap_or(Dtype::BF16).into(),
        }
    }

    /// Decides the plan.
    fn plan(&self, window: usize, train: &Batches<'_>) -> TrainPlan {
        let args = &self.args.training;
        let mut plan = TrainPlan {
            steps: 0,
            window,
            batch_tokens: args.batch_tokens,
            accumulate: args.accumulate,
            rate: args.lr,
            last_rate: args.last_lr,
            warmup: 0,
            decay: args.weight_decay,
            clip: args.clip,
            recurrent: self.args.block.recurrent.unwrap_or(1),
            loss: LossOptions { soft: args.soft, temperature: args.soft_temp, hard: args.hard, variation: args.tv },
            half_life: args.half_life,
            seed: self.args.data.seed,
            ..TrainPlan::default()
        };
        let updates = |positions: f64| (positions / self.positions_per_update(train, &plan) as f64).ceil() as u64;
        let epochs = |epochs: f64| (epochs * train.steps_per_epoch() as f64 / args.accumulate as f64).ceil() as u64;
        plan.steps = match (args.steps, args.budget) {
            (Some(steps), _) => steps as u64,
            (None, Some(positions)) => updates(positions as f64),
            (None, None) => epochs(args.epochs.unwrap_or(1.0)),
        };
        plan.warmup = args.warmup.map_or((plan.steps / 20).min(100), |steps| steps as u64);
        plan
    }

    /// The mean, rounded.
    fn positions_per_update(&self, train: &Batches<'_>, plan: &TrainPlan) -> usize {
        let positions: usize = self.dataset.train.iter().map(|document| document.scored().len()).sum();
        (positions * plan.accumulate).div_ceil(train.steps_per_epoch() as usize).max(1)
    }

    /// What the block begins as, and whether its input matrix is to be fitted.
    fn start(&self, n: usize, frequencies: &Frequencies) -> Outcome<(Layout, Vec<f32>, bool)> {
        let BlockArgs { freeze_head, shared_head, .. } = &self.args.block;
        let head = match () {
            () if *shared_head => Head::Shared,
            () if *freeze_head => Head::Frozen,
            () => Head::Trained,
        };
        with_start(&self.args.block, self.model, n, self.reporter, |start| {
            let ids = self.draft_ids(frequencies);
            let (layout, values) = Layout::new(&start.exit, &self.model.weights(self.reporter)?, head, ids.as_deref())
                .map_err(|why| Failure::usage(format!("--draft-vocab: {why}")))?;
            Ok((layout, values, start.ridge))
        })
    }

    /// The tokens to draft, where the flags ask for fewer than the model's: the most frequent of all.
    fn draft_ids(&self, frequencies: &Frequencies) -> Option<Vec<TokenId>> {
        let size = match self.args.block.draft_vocab? {
            DraftVocab::Tokens(size) => size,
            DraftVocab::Coverage(part) => frequencies.fewest(part),
        };
        Some(frequencies.most_frequent(size))
    }

    /// How much of the training data a block can draft that does not draft all tokens.
    fn coverage(&self, layout: &Layout, frequencies: &Frequencies) -> Option<Coverage> {
        let (drafted, vocab) = (layout.draft_vocab(), self.model.checkpoint.geometry().vocab_size);
        let coverage = || Coverage { drafted: drafted.size, vocab, share: frequencies.share(drafted) };
        (drafted.size < vocab).then(coverage)
    }

    /// What a block's file says of its making.
    fn story(
        &self,
        plan: &TrainPlan,
        updates: u64,
        train: &Batches<'_>,
        coverage: Option<Coverage>,
        reached: Option<&Losses>,
    ) -> BTreeMap<String, String> {
        let mut story = BTreeMap::from([
            ("trained_by".to_owned(), format!("eesd {}", env!("CARGO_PKG_VERSION"))),
            ("updates".to_owned(), updates.to_string()),
            ("positions".to_owned(), (updates as usize * self.positions_per_update(train, plan)).to_string()),
        ]);
        story.extend(coverage.map(|coverage| ("draft_coverage".to_owned(), format!("{:.4}", coverage.share))));
        if plan.recurrent > 1 {
            story.insert("recurrent_steps".to_owned(), plan.recurrent.to_string());
        }
        if let Some(losses) = reached {
            let means = losses.first().mean();
            let figures =
                [("agreement", means.agreement), ("overlap", means.overlap), ("divergence", means.divergence)];
            story.extend(figures.map(|(name, value)| (format!("held_out_{name}"), format!("{value:.4}"))));
            if losses.steps.len() > 1 {
                let all =
                    [reach::by_draft(losses, |means| means.agreement), reach::by_draft(losses, |means| means.overlap)];
                let names = ["held_out_agreement_by_draft", "held_out_overlap_by_draft"];
                story.extend(names.map(str::to_owned).into_iter().zip(all));
            }
        }
        story
    }
}

/// Time of updates, and a moving mean of the speed.
struct Clock {
    last: Instant,
    /// Tokens per second.
    speed: f64,
}

impl Clock {
    fn step(&mut self, report: &StepReport) -> f64 {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        let speed = report.tokens as f64 / seconds;
        self.speed += if self.speed == 0.0 { speed } else { 0.05 * (speed - self.speed) };
        seconds
    }
}

fn show(progress: &Progress, block: &Trained, speed: f64) {
    let recent = block.curve.iter().rev().take(20);
    let mut sum = LossSum::default();
    recent.for_each(|(_, means)| sum.add(means));
    let means = sum.mean();
    progress.advance();
    progress.tell(format!("training, loss {:.3}, 1 - TV {:.3}, {speed:.0} tok/s", means.loss, means.overlap));
}

fn remove(path: &Path) -> Outcome {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::file(path, "removed", &error)),
        _ => Ok(()),
    }
}
