//! What a backend has kept of a slot's round beside its drafts: which rows' `h_N`, and the exit block's state.

use super::{BackendError, Sequence};
use crate::control::Way;

/// By slot.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kept {
    /// Rows of the round, from its pending token on, whose `h_N` is kept.
    hidden: usize,
    /// After how many drafts the exit block's state was kept; 0: after none.
    state: usize,
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
        // Where the `h_N` of a row before is not kept, that of a later one is of no use.
        if way == Way::FirstLayers && self.has_hidden(sequence) {
            self.hidden = self.state;
        }
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
