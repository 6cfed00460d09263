//! What each step of training sees.

use super::{DataError, Document, Segment};
use crate::sample::{Philox, Purpose};
use std::sync::{Mutex, PoisonError};

/// Training data cut into windows, shuffled and packed: a function from steps to batches.
///
/// - A document longer than the window is cut into windows that share one token, the last of one being the first of
///   the next: there its successor is known, so each scored position of a document is in exactly one window. Windows
///   without one are left out.
/// - Windows are packed in a shuffled order, greedily, once for all epochs. In each epoch the windows are dealt anew
///   among the places of their length (to a sixteenth of the window), and the batches shuffled. So every epoch has the
///   same number of steps, whatever its order, and a step needs no state but its number.
pub struct Batches<'a> {
    documents: &'a [Document],
    seed: u64,
    /// Every window, in classes of about equal length.
    classes: Vec<Vec<Window>>,
    /// For each batch, the class of each of its places.
    plan: Vec<Vec<Place>>,
    /// The epoch that was asked for last.
    dealt: Mutex<Option<Deal>>,
}

/// A piece of a document, with something to train at.
#[derive(Debug, Clone, Copy)]
struct Window {
    document: usize,
    start: usize,
    len: usize,
}

/// Where a window goes: the `rank`-th one of its class, in the order of the epoch.
#[derive(Debug, Clone, Copy)]
struct Place {
    class: usize,
    rank: usize,
}

/// One epoch's order.
struct Deal {
    epoch: u64,
    /// Which window of the class has each rank.
    windows: Vec<Vec<usize>>,
    /// Which batch of the plan comes when.
    batches: Vec<usize>,
}

/// Classes of length.
const CLASSES: usize = 16;
/// Streams of the generator that are not a class's.
const BATCH_ORDER: u32 = CLASSES as u32 + 1;
const PACKING_ORDER: u32 = CLASSES as u32 + 2;

impl<'a> Batches<'a> {
    /// Cuts `documents` into windows of at most `window` tokens, packed into batches of at most `batch_tokens`.
    ///
    /// # Errors
    /// If a window is shorter than a token and its successor, a batch is smaller than a window, or no document has a
    /// position to train at.
    pub fn new(documents: &'a [Document], window: usize, batch_tokens: usize, seed: u64) -> Result<Self, DataError> {
        if window < 2 {
            return Err(DataError::param("window", window, "2 tokens or more"));
        }
        if batch_tokens < window {
            let found = format!("{batch_tokens}, with windows of {window} tokens");
            return Err(DataError::param("batch_tokens", found, "at least a window"));
        }
        let granule = window.div_ceil(CLASSES);
        let mut classes = vec![Vec::new(); CLASSES + 1];
        let mut places = Vec::new();
        for (number, document) in documents.iter().enumerate() {
            for cut in windows(number, document, window) {
                let class = cut.len.div_ceil(granule);
                places.push(Place { class, rank: classes[class].len() });
                classes[class].push(cut);
            }
        }
        if places.is_empty() {
            return Err(DataError::Empty {
                found: format!("{} documents without a position to train at", documents.len()),
                expected: "at least one position whose next token is there",
            });
        }
        shuffle(&mut places, &mut Philox::new(seed, 0, Purpose::Shuffle, PACKING_ORDER));
        let size = |place: &Place| (place.class * granule).min(window);
        Ok(Self { documents, seed, classes, plan: pack(&places, size, batch_tokens), dealt: Mutex::new(None) })
    }

    /// Steps in which every segment is seen once. At least 1.
    pub fn steps_per_epoch(&self) -> u64 {
        self.plan.len() as u64
    }

    /// Segments of one epoch.
    pub fn segments(&self) -> usize {
        self.classes.iter().map(Vec::len).sum()
    }

    /// The batch of `step`, from 0 on across all epochs: at least one segment. Attention goes across no segment's edge.
    pub fn batch(&self, step: u64) -> Vec<Segment> {
        let steps = self.steps_per_epoch();
        let (epoch, within) = (step / steps, (step % steps) as usize);
        // A deal is replaced whole, so one that a panic interrupted is still an old one that is right.
        let mut dealt = self.dealt.lock().unwrap_or_else(PoisonError::into_inner);
        let deal = match &mut *dealt {
            Some(deal) if deal.epoch == epoch => deal,
            other => other.insert(self.deal(epoch)),
        };
        let places = &self.plan[deal.batches[within]];
        places
            .iter()
            .map(|place| self.segment(&self.classes[place.class][deal.windows[place.class][place.rank]]))
            .collect()
    }

    fn deal(&self, epoch: u64) -> Deal {
        let order = |len: usize, stream: u32| {
            let mut order: Vec<usize> = (0..len).collect();
            shuffle(&mut order, &mut Philox::new(self.seed, epoch as usize, Purpose::Shuffle, stream));
            order
        };
        let windows = self.classes.iter().zip(0..).map(|(class, stream)| order(class.len(), stream)).collect();
        Deal { epoch, windows, batches: order(self.plan.len(), BATCH_ORDER) }
    }

    fn segment(&self, &Window { document, start, len }: &Window) -> Segment {
        let document = &self.documents[document];
        let scored = document.scored();
        let end = start + len;
        let within = scored.start.max(start) - start..scored.end.min(end - 1) - start;
        let scored_before = start.saturating_sub(scored.start);
        Segment { tokens: document.tokens[start..end].to_vec(), scored: within, scored_before }
    }
}

/// The windows of a document in which there is something to train at.
fn windows(number: usize, document: &Document, window: usize) -> impl Iterator<Item = Window> {
    let tokens = document.tokens.len();
    let scored = document.scored();
    let cut = move |start: usize| Window { document: number, start, len: window.min(tokens - start) };
    // A window's last token is only a successor, and the next window's first.
    let starts = (0..tokens.saturating_sub(1)).step_by(window - 1);
    starts.map(cut).filter(move |cut| cut.start.max(scored.start) < (cut.start + cut.len - 1).min(scored.end))
}

/// Puts places into batches, in order: a new one where the next place does not fit.
fn pack(places: &[Place], size: impl Fn(&Place) -> usize, batch_tokens: usize) -> Vec<Vec<Place>> {
    let mut batches: Vec<Vec<Place>> = Vec::new();
    let mut room = 0;
    for place in places {
        match batches.last_mut() {
            Some(batch) if size(place) <= room => batch.push(*place),
            _ => {
                batches.push(vec![*place]);
                room = batch_tokens;
            }
        }
        room -= size(place);
    }
    batches
}

/// Fisher and Yates's shuffle.
fn shuffle<T>(items: &mut [T], random: &mut Philox) {
    for i in (1..items.len()).rev() {
        let below = (random.fine_uniform() * (i + 1) as f64) as usize;
        items.swap(i, below.min(i));
    }
}

#[cfg(test)]
mod tests;
