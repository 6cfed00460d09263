//! What the teacher said of texts, kept on disk: its pass is most of the cost of an update, and later epochs, other
//! blocks and other losses need it no more.
//!
//! A folder has `last.states`, the hidden states after the last layer at positions to train at, and `layer-N.states`, those
//! after `N` layers at the positions before and at them. Each row is in 16 bits with a scale of its own; states that were
//! never on disk are rounded to the same numbers, so that a run's bits do not depend on what was kept.

mod digest;
mod file;

pub use digest::digest;
use file::StateFile;

use super::data::Segment;
use super::error::DistillError;
use crate::load::fnv1a;
use crate::model::Geometry;
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::fs;
use std::path::{Path, PathBuf};

/// What is kept of the teacher after its last layer, at the positions of a segment to train at.
#[derive(Debug, Clone, PartialEq)]
pub struct LastStates {
    /// `[positions, hidden]`.
    pub hidden: Vec<f32>,
    /// The logarithm of the sum of exponentials of all logits, `[positions]`.
    pub log_totals: Vec<f32>,
    /// The likeliest token, `[positions]`.
    pub likeliest: Vec<u32>,
}

/// Where states are kept, and how many.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeepStates {
    /// The folder.
    pub folder: PathBuf,
    /// Most bytes of all files there together.
    pub most: u64,
    /// The model's [`digest`].
    pub model: String,
}

/// A folder of states.
pub struct StateStore {
    width: usize,
    last: StateFile,
    layer: StateFile,
    most: u64,
    held: u64,
    left_out: usize,
}

impl StateStore {
    /// Opens the states of a model after `after` layers, and says what was wrong with what was there.
    ///
    /// # Errors
    /// If the folder or a file cannot be made, read or written, or is in use by another run.
    pub fn open(keep: &KeepStates, geometry: &Geometry, after: usize) -> Result<(Self, Vec<String>), DistillError> {
        let io = |source| DistillError::Io { path: keep.folder.clone(), source };
        if keep.folder.exists() && !keep.folder.is_dir() {
            return Err(io(std::io::Error::other("not a folder (expected one to keep hidden states in)")));
        }
        fs::create_dir_all(&keep.folder).map_err(io)?;
        let width = geometry.hidden_size;
        let mut notes = Vec::new();
        let mut open = |name: String, what: String, row_bytes: usize| {
            let path = keep.folder.join(name);
            let title = format!("of model {}: {what}, {width} numbers each", keep.model);
            let (file, note) = StateFile::open(&path, &title, row_bytes)?;
            notes.extend(note.map(|note| format!("{}: {note}", path.display())));
            Ok::<_, DistillError>(file)
        };
        let last = open("last.states".into(), "last hidden states".into(), LAST + row_bytes(width))?;
        let layer = open(format!("layer-{after}.states"), format!("after {after} layers"), row_bytes(width))?;
        let held = held(&keep.folder).map_err(io)?;
        Ok((Self { width, last, layer, most: keep.most, held, left_out: 0 }, notes))
    }

    /// States after the last layer, if they are kept.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn last(&mut self, segment: &Segment) -> Result<Option<LastStates>, DistillError> {
        let found = self.last.get(key(segment), segment.scored.len())?;
        Ok(found.map(|bytes| unpack_last(&bytes, self.width)))
    }

    /// States after the exit layer, if they are kept: `[rows up to the last one to train at, hidden]`.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn layer(&mut self, segment: &Segment) -> Result<Option<Vec<f32>>, DistillError> {
        let found = self.layer.get(key(segment), segment.scored.end)?;
        Ok(found.map(|bytes| bytes.chunks_exact(row_bytes(self.width)).flat_map(unpack_row).collect()))
    }

    /// Keeps states after the last layer, if there is room.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn put_last(&mut self, segment: &Segment, states: &LastStates) -> Result<(), DistillError> {
        if !self.has_room(self.last.record_bytes(segment.scored.len())) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        let rows = states.hidden.chunks_exact(self.width).zip(&states.log_totals).zip(&states.likeliest);
        for ((row, log_total), likeliest) in rows {
            bytes.extend(log_total.to_le_bytes());
            bytes.extend(likeliest.to_le_bytes());
            pack_row(row, &mut bytes);
        }
        self.last.put(key(segment), &bytes)
    }

    /// Keeps states after the exit layer, if there is room.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn put_layer(&mut self, segment: &Segment, hidden: &[f32]) -> Result<(), DistillError> {
        if !self.has_room(self.layer.record_bytes(segment.scored.end)) {
            return Ok(());
        }
        let mut bytes = Vec::new();
        hidden.chunks_exact(self.width).for_each(|row| pack_row(row, &mut bytes));
        self.layer.put(key(segment), &bytes)
    }

    /// Whether a record fits in what may be used; if so, it is counted.
    fn has_room(&mut self, bytes: u64) -> bool {
        let fits = self.held + bytes <= self.most;
        if fits {
            self.held += bytes;
        } else {
            self.left_out += 1;
        }
        fits
    }

    /// How often states were not kept because there was no room.
    pub fn left_out(&self) -> usize {
        self.left_out
    }
}

/// Bytes of the files in a folder of states.
fn held(folder: &Path) -> std::io::Result<u64> {
    let mut held = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|extension| extension == "states") {
            held += entry.metadata()?.len();
        }
    }
    Ok(held)
}

/// What states depend on, the model aside: the text, and which of its positions count.
fn key(segment: &Segment) -> u128 {
    let scored = [segment.scored.start as u32, segment.scored.end as u32];
    let numbers = scored.iter().chain(&segment.tokens);
    fnv1a(&numbers.flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())
}

/// Bytes before a row of last states.
const LAST: usize = 8;

fn row_bytes(width: usize) -> usize {
    size_of::<f32>() + width * size_of::<f16>()
}

fn unpack_last(bytes: &[u8], width: usize) -> LastStates {
    let mut states = LastStates { hidden: Vec::new(), log_totals: Vec::new(), likeliest: Vec::new() };
    for row in bytes.chunks_exact(LAST + row_bytes(width)) {
        let number = |at: usize| [row[at], row[at + 1], row[at + 2], row[at + 3]];
        states.log_totals.push(f32::from_le_bytes(number(0)));
        states.likeliest.push(u32::from_le_bytes(number(4)));
        states.hidden.extend(unpack_row(&row[LAST..]));
    }
    states
}

/// A power of two that makes the largest number of a row about half of what 16 bits can hold.
fn scale(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    // The exponent of the largest number, and of 2^14; clamped so that neither the scale nor its inverse is subnormal.
    let exponent = 14 - ((largest.to_bits() >> 23) as i32 - 127);
    f32::from_bits(((127 + exponent.clamp(-120, 120)) as u32) << 23)
}

/// Rounds rows as they are kept.
pub fn round(hidden: &mut [f32], width: usize) {
    for row in hidden.chunks_exact_mut(width) {
        let scale = scale(row);
        row.iter_mut().for_each(|x| *x = f16::from_f32(*x * scale).to_f32() / scale);
    }
}

fn pack_row(row: &[f32], bytes: &mut Vec<u8>) {
    let scale = scale(row);
    bytes.extend(scale.to_le_bytes());
    bytes.extend(row.iter().flat_map(|&x| f16::from_f32(x * scale).to_le_bytes()));
}

fn unpack_row(bytes: &[u8]) -> Vec<f32> {
    let (scale, rest) = bytes.split_at(size_of::<f32>());
    let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
    let halves: Vec<f16> = rest.chunks_exact(2).map(|half| f16::from_le_bytes([half[0], half[1]])).collect();
    let mut row = vec![0.0; halves.len()];
    halves.convert_to_f32_slice(&mut row);
    row.iter_mut().for_each(|x| *x /= scale);
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(first: u32, len: usize) -> Segment {
        Segment { tokens: (first..first + len as u32).collect(), scored: 1..len - 1, scored_before: 0 }
    }

    fn geometry() -> Geometry {
        let checkpoint = crate::load::Checkpoint::open("models/pycode-4m".as_ref()).unwrap();
        Geometry { hidden_size: 3, ..checkpoint.geometry().clone() }
    }

    fn keep(folder: &Path, most: u64) -> KeepStates {
        KeepStates { folder: folder.into(), most, model: "m".into() }
    }

    /// Small numbers beside large ones, and numbers that 16 bits could not hold.
    #[test]
    fn rows_keep_their_precision() {
        for largest in [1e-30f32, 0.01, 1.0, 60_000.0, 3e6, 1e30] {
            let mut row: Vec<f32> = (0..9).map(|i| largest * [1.0, -0.3, 1e-4][i % 3] / (i + 1) as f32).collect();
            let exact = row.clone();
            round(&mut row, 9);
            for (x, exact) in row.iter().zip(&exact) {
                assert!((x - exact).abs() <= exact.abs() * 5e-4 + largest * 1e-9, "{x:e} (expected {exact:e})");
            }
            let mut bytes = Vec::new();
            pack_row(&exact, &mut bytes);
            assert_eq!(unpack_row(&bytes), row, "what is read is what was rounded");
            let mut again = row.clone();
            round(&mut again, 9);
            assert_eq!(again, row);
        }
        assert_eq!(scale(&[0.0; 3]) * 0.0, 0.0);
    }

    #[test]
    fn states_come_back_and_other_texts_have_none() {
        let folder = tempfile::tempdir().unwrap();
        let (segment, other) = (segment(5, 6), segment(6, 6));
        let mut hidden: Vec<f32> = (0..12).map(|x| x as f32 / 7.0).collect();
        round(&mut hidden, 3);
        let last = LastStates { hidden: hidden.clone(), log_totals: vec![1.5; 4], likeliest: vec![9, 8, 7, 6] };
        let layer: Vec<f32> = hidden.iter().chain(&hidden[..3]).copied().collect();
        let (mut store, notes) = StateStore::open(&keep(folder.path(), 1 << 20), &geometry(), 2).unwrap();
        assert_eq!(notes, [""; 0]);
        store.put_last(&segment, &last).unwrap();
        store.put_layer(&segment, &layer).unwrap();
        drop(store);
        let (mut store, _) = StateStore::open(&keep(folder.path(), 1 << 20), &geometry(), 2).unwrap();
        assert_eq!((store.last(&segment).unwrap(), store.layer(&segment).unwrap()), (Some(last.clone()), Some(layer)));
        assert_eq!((store.last(&other).unwrap(), store.layer(&other).unwrap()), (None, None));
        let scored = Segment { scored: 2..5, ..segment.clone() };
        assert_eq!(store.last(&scored).unwrap(), None, "other positions of the same text");
        drop(store);
        // Another layer shares the last states; another model nothing.
        let (mut store, _) = StateStore::open(&keep(folder.path(), 1 << 20), &geometry(), 3).unwrap();
        assert_eq!((store.last(&segment).unwrap(), store.layer(&segment).unwrap()), (Some(last), None));
        drop(store);
        let model = KeepStates { model: "n".into(), ..keep(folder.path(), 1 << 20) };
        let (mut store, notes) = StateStore::open(&model, &geometry(), 2).unwrap();
        assert!(notes.len() == 2 && notes[0].contains("last.states: made anew"), "{notes:?}");
        assert_eq!(store.last(&segment).unwrap(), None);
    }

    #[test]
    fn no_more_is_kept_than_there_is_room_for() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = StateStore::open(&keep(folder.path(), 400), &geometry(), 2).unwrap();
        let segments: Vec<Segment> = (0..20).map(|first| segment(first, 6)).collect();
        let hidden = vec![1.0; 15];
        segments.iter().for_each(|segment| store.put_layer(segment, &hidden).unwrap());
        let kept = segments.iter().filter(|segment| store.layer(segment).unwrap().is_some()).count();
        assert_eq!((kept, store.left_out()), (1, 19), "256 bytes of headers, and records of 82");
        assert!(held(folder.path()).unwrap() <= 400);
    }
}
