//! The full model reads what the student is to learn from, or what it said before is read from disk.

use super::data::Segment;
use super::error::DistillError;
use super::plan::TrainPlan;
use super::states::{KeepStates, LastStates, StateStore, round};
use crate::backend::training::{Position, States, Targets, TeacherBatch};
use crate::backend::{Backend, Chunk, Said};
use crate::kv::{BlockTable, PAGE_TOKENS, PagePool};

/// A model that reads texts of at most a window.
pub struct Teacher {
    backend: Box<dyn Backend>,
    table: BlockTable,
    after: usize,
    store: Option<StateStore>,
}

impl Teacher {
    /// Hidden states after `after` layers come from `backend`.
    ///
    /// # Errors
    /// If the backend has no room for a window of tokens.
    pub fn new(backend: Box<dyn Backend>, after: usize, window: usize) -> Result<Self, DistillError> {
        let limits = backend.limits();
        let room = limits.context.min(limits.pages * PAGE_TOKENS);
        let mut table = BlockTable::default();
        if window > room || table.reserve(window, &mut PagePool::new(limits.pages)).is_err() {
            let expected = format!("at most {room}, which the teacher has room for");
            return Err(DistillError::Option { option: "window", found: window.to_string(), expected });
        }
        Ok(Self { backend, table, after, store: None })
    }

    /// Keeps what it says, and reads what it said before; returns what was wrong with what is there.
    ///
    /// # Errors
    /// If the folder or a file cannot be made, read or written, or is in use by another run.
    pub fn keep(&mut self, keep: &KeepStates) -> Result<Vec<String>, DistillError> {
        let (store, notes) = StateStore::open(keep, self.backend.geometry(), self.after)?;
        self.store = Some(store);
        Ok(notes)
    }

    /// What the model says of each segment, which is read on its own, in logits. `plan` weighs positions.
    ///
    /// # Errors
    /// If the device fails.
    pub fn logits(&mut self, segments: &[Segment], plan: &TrainPlan) -> Result<TeacherBatch, DistillError> {
        let mut batch = TeacherBatch::default();
        let mut logits = Vec::new();
        for segment in segments {
            let chunk = Chunk { pages: self.table.pages(), start: 0, tokens: &segment.tokens };
            let mut read = self.backend.read(&chunk, &[self.after], segment.scored.clone())?;
            add(&mut batch, segment, segment.tokens.len(), read.hidden.pop().unwrap_or_default(), plan);
            logits.append(&mut read.logits);
        }
        batch.targets = Targets::Logits(logits);
        Ok(batch)
    }

    /// The same in hidden states, rounded as they are kept; of each segment, the rows up to the last one to train at.
    ///
    /// # Errors
    /// If the device fails, or a file of states.
    pub fn states(&mut self, segments: &[Segment], plan: &TrainPlan) -> Result<TeacherBatch, DistillError> {
        let mut batch = TeacherBatch::default();
        let mut targets = States { vocab: self.backend.geometry().vocab_size, ..States::default() };
        for segment in segments {
            let (hidden, mut last) = self.states_of(segment)?;
            add(&mut batch, segment, segment.scored.end, hidden, plan);
            targets.last.append(&mut last.hidden);
            targets.log_totals.append(&mut last.log_totals);
            targets.likeliest.append(&mut last.likeliest);
        }
        batch.targets = Targets::States(targets);
        Ok(batch)
    }

    /// Hidden states of a segment after the exit layer, up to the last position to train at, and those after the last one.
    fn states_of(&mut self, segment: &Segment) -> Result<(Vec<f32>, LastStates), DistillError> {
        let (layer, last) = match &mut self.store {
            Some(store) => (store.layer(segment)?, store.last(segment)?),
            None => (None, None),
        };
        let (hidden, last) = match (layer, last) {
            (Some(layer), Some(last)) => return Ok((layer, last)),
            (None, Some(last)) => {
                let [hidden] = self.read(segment, [self.after], false)?.0;
                (hidden, last)
            }
            (layer, None) => {
                let taps = [self.after, self.backend.geometry().layers];
                let ([hidden, last], said) = self.read(segment, taps, true)?;
                (layer.unwrap_or(hidden), last_states(segment, &last, &said))
            }
        };
        if let Some(store) = &mut self.store {
            if store.layer(segment)?.is_none() {
                store.put_layer(segment, &hidden)?;
            }
            if store.last(segment)?.is_none() {
                store.put_last(segment, &last)?;
            }
        }
        Ok((hidden, last))
    }

    /// Hidden states at each tap, rounded, up to the last position to train at, and what is said at those positions if wanted.
    fn read<const TAPS: usize>(
        &mut self,
        segment: &Segment,
        taps: [usize; TAPS],
        said: bool,
    ) -> Result<([Vec<f32>; TAPS], Vec<Said>), DistillError> {
        let width = self.backend.geometry().hidden_size;
        let tokens = &segment.tokens[..segment.scored.end];
        let chunk = Chunk { pages: self.table.pages(), start: 0, tokens };
        let wanted = if said { segment.scored.clone() } else { 0..0 };
        let (hidden, said) = self.backend.read_said(&chunk, &taps, wanted)?;
        let mut hidden = hidden.into_iter().map(|mut hidden| {
            round(&mut hidden, width);
            hidden
        });
        Ok((std::array::from_fn(|_| hidden.next().unwrap_or_default()), said))
    }

    /// How often states were not kept because there was no room.
    pub fn left_out(&self) -> usize {
        self.store.as_ref().map_or(0, StateStore::left_out)
    }

    /// The model.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }
}

/// What is kept of the last layer.
fn last_states(segment: &Segment, hidden: &[f32], said: &[Said]) -> LastStates {
    let width = hidden.len() / segment.scored.end.max(1);
    LastStates {
        hidden: hidden[segment.scored.start * width..].to_vec(),
        log_totals: said.iter().map(|said| said.log_total).collect(),
        likeliest: said.iter().map(|said| said.likeliest).collect(),
    }
}

/// Adds the first `rows` rows of a segment to a batch, and its positions.
fn add(batch: &mut TeacherBatch, segment: &Segment, rows: usize, hidden: Vec<f32>, plan: &TrainPlan) {
    let Segment { tokens, scored, scored_before } = segment;
    let first = batch.tokens.len();
    batch.lengths.push(rows);
    batch.tokens.extend_from_slice(&tokens[..rows]);
    batch.hidden.extend(hidden);
    let position = |(index, row): (usize, usize)| Position {
        row: first + row,
        token: tokens[row + 1],
        weight: plan.weight_of(scored_before + index),
    };
    batch.scored.extend(scored.clone().enumerate().map(position));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TokenId;
    use crate::backend::cpu::{CpuBackend, CpuOptions};
    use crate::distill::data::{Batches, Document};
    use crate::load::Checkpoint;

    const WINDOW: usize = 300;

    fn backend(checkpoint: &Checkpoint) -> Box<dyn Backend> {
        let options = CpuOptions { threads: Some(1), context: WINDOW, ..CpuOptions::default() };
        CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), None, &options).unwrap()
    }

    /// Whatever is asked for, in pieces of a long chunk: the same numbers as of the whole model.
    #[test]
    fn what_is_read_is_what_the_model_says() {
        let checkpoint = Checkpoint::open("models/pycode-4m".as_ref()).unwrap();
        let mut backend = backend(&checkpoint);
        let (vocab, layers) = (checkpoint.geometry().vocab_size, checkpoint.geometry().layers);
        let tokens: Vec<TokenId> = (0..WINDOW as u32).map(|i| i * 37 % vocab as u32).collect();
        let mut table = BlockTable::default();
        table.reserve(WINDOW, &mut PagePool::new(backend.limits().pages)).unwrap();
        let chunk = Chunk { pages: table.pages(), start: 0, tokens: &tokens };
        let expected: Vec<_> = (0..=layers).map(|tap| backend.evaluate(&chunk, tap).unwrap()).collect();
        for (taps, rows) in [
            (&[3, layers][..], 40..WINDOW),
            (&[2], 0..0),
            (&[2], 270..WINDOW),
            (&[0, 1, layers], 250..260),
            (&[], 3..4),
            (&[layers], 290..WINDOW),
        ] {
            let read = backend.read(&chunk, taps, rows.clone()).unwrap();
            for (hidden, &tap) in read.hidden.iter().zip(taps) {
                assert_eq!(hidden, &expected[tap].hidden, "{taps:?}");
            }
            assert_eq!(read.logits, expected[0].logits[rows.start * vocab..rows.end * vocab], "{taps:?} {rows:?}");
        }
        assert!(backend.read(&chunk, &[layers + 1], 0..0).is_err());
    }

    /// Both ways of telling a student say the same of the same positions.
    #[test]
    fn states_and_logits_are_of_the_same_positions() {
        let checkpoint = Checkpoint::open("models/pycode-4m".as_ref()).unwrap();
        let tokens: Vec<TokenId> = (0..200).map(|i| i * 31 % 4096).collect();
        let text = [Document { tokens: tokens.clone(), prompt: 70 }, Document { tokens, prompt: 3 }];
        let plan = TrainPlan { window: 64, batch_tokens: 200, half_life: Some(9.0), ..TrainPlan::default() };
        let batches = Batches::new(&text, plan.window, plan.batch_tokens, 0).unwrap();
        let mut teacher = Teacher::new(backend(&checkpoint), 2, plan.window).unwrap();
        for step in 0..batches.steps_per_epoch() {
            let segments = batches.batch(step);
            let (said, states) = (teacher.logits(&segments, &plan).unwrap(), teacher.states(&segments, &plan).unwrap());
            let (Targets::Logits(logits), Targets::States(last)) = (&said.targets, &states.targets) else {
                panic!("the wrong targets");
            };
            assert_eq!(said.scored.len(), states.scored.len());
            for (index, (of_logits, of_states)) in said.scored.iter().zip(&states.scored).enumerate() {
                assert_eq!((of_logits.token, of_logits.weight), (of_states.token, of_states.weight));
                let row = |batch: &TeacherBatch, row: usize| batch.hidden[row * 192..][..192].to_vec();
                let mut rounded = row(&said, of_logits.row);
                round(&mut rounded, 192);
                assert_eq!(rounded, row(&states, of_states.row));
                assert_eq!(said.tokens[of_logits.row], states.tokens[of_states.row]);
                let logits = &logits[index * 4096..][..4096];
                let total = logits.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
                assert!((total - f64::from(last.log_totals[index])).abs() < 1e-4);
                let likeliest = last.likeliest[index] as usize;
                assert!(logits.iter().all(|x| *x <= logits[likeliest]), "{likeliest}");
            }
        }
    }
}
