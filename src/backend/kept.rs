//! What a backend has kept of a slot's round beside its drafts: which rows' `h_N`, and the exit block's state; and of the
//! round before, where the text went on.

use super::{BackendError, Sequence};
use crate::control::Way;

/// By slot.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kept {
    /// Rows of the round, from its pending token on, whose `h_N` is kept.
    hidden: usize,
    /// After how many drafts the exit block's state was kept; 0: after none.
    state: usize,
    /// Of a verified round whose rows' `h_N` are all kept: the position of its last row that was right, and its number.
    verified: Option<(usize, usize)>,
}

impl Kept {
    /// Back to the first so many drafts: what came of later ones is forgotten.
    pub fn rewind(&mut self, drafts: usize) {
        self.hidden = self.hidden.min(drafts);
        self.state = if self.state > drafts { 0 } else { self.state };
    }

    /// So many further drafts of the sequence were just made this way.
    pub fn drafted(&mut self, sequence: &Sequence<'_>, way: Way, further: usize) {
        self.state = sequence.sampled() + further;
        self.verified = None;
        // Where the `h_N` of a row before is not kept, that of a later one is of no use.
        if way == Way::FirstLayers && self.has_hidden(sequence) {
            self.hidden = self.state;
        }
    }

    /// The round of the sequence was verified, with so many drafts accepted, and the `h_N` of all its rows kept.
    pub fn verified(&mut self, sequence: &Sequence<'_>, accepted: usize) {
        self.verified = Some((sequence.committed - 1 + accepted, accepted));
    }

    /// The row of the round before that comes before the sequence's pending token.
    ///
    /// # Errors
    /// If the sequence has drafted already, or its `h_N` is not kept.
    pub fn row_before(&self, sequence: &Sequence<'_>) -> Result<usize, BackendError> {
        let before =
            self.verified.filter(|&(position, _)| sequence.drafted() == 0 && position + 2 == sequence.committed);
        before.map(|(_, row)| row).ok_or_else(|| {
            let Sequence { slot, committed, .. } = *sequence;
            let found =
                format!("slot {slot}: a draft that continues {committed} tokens after {} drafts", sequence.drafted());
            BackendError::Device(format!("{found} (expected a round that was verified before them, and no draft)"))
        })
    }

    /// Whether all rows' `h_N` are kept that the sequence says to have one.
    pub fn has_hidden(&self, sequence: &Sequence<'_>) -> bool {
        sequence.hidden() <= self.hidden
    }

    /// Refuses a recurrent draft where the exit block's state at the sequence's last draft is not kept.
    pub fn check_state(&self, sequence: &Sequence<'_>) -> Result<(), BackendError> {
        let drafts = sequence.sampled();
        if drafts > 0 && self.state == drafts {
            return Ok(());
        }
        let found = format!("slot {}: a recurrent draft after {drafts} drafts", sequence.slot);
        Err(BackendError::Device(format!("{found} (expected at least one, the last of them just made)")))
    }
}
