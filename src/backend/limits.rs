//! What a backend has room for, and the refusal of passes that go beyond it: nothing behind the seam looks twice.

use super::{BackendError, Chunk, Sequence};
use crate::TokenId;
use crate::kv::{PAGE_TOKENS, PageId};

/// What a backend has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Pages of the cache.
    pub pages: usize,
    /// Sequences in one pass.
    pub slots: usize,
    /// Most drafts of one sequence in one round.
    pub max_draft: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
}

impl Limits {
    /// Refuses rounds that do not fit what was reserved, two of them in one slot, and tokens that a vocabulary of
    /// `vocab` does not have.
    pub(super) fn check_rounds(&self, batch: &[Sequence<'_>], vocab: usize) -> Result<(), BackendError> {
        for (index, sequence) in batch.iter().enumerate() {
            self.check_round(sequence)?;
            check_tokens(sequence.tokens, vocab)?;
            if batch[..index].iter().any(|other| other.slot == sequence.slot) {
                return Err(BackendError::Device(format!("slot {} twice in one pass", sequence.slot)));
            }
        }
        Ok(())
    }

    /// Refuses sequences that have no room for `more` drafts in their rounds.
    pub(super) fn check_drafts(&self, batch: &[Sequence<'_>], more: usize) -> Result<(), BackendError> {
        for sequence in batch {
            if sequence.proposed > 0 {
                let found = format!("a draft after {} proposed tokens", sequence.proposed);
                return Err(BackendError::Device(format!(
                    "{found} (expected none before it: they have no hidden state)"
                )));
            }
            if sequence.drafted().saturating_add(more) > self.max_draft {
                return Err(BackendError::Device(format!("more than {} drafts in a round", self.max_draft)));
            }
            self.check_room(sequence.pages, sequence.tokens.len().saturating_add(more).saturating_sub(1))?;
        }
        Ok(())
    }

    /// Refuses chunks that do not fit, and tokens that a vocabulary of `vocab` does not have.
    pub(super) fn check_chunks(&self, batch: &[Chunk<'_>], vocab: usize) -> Result<(), BackendError> {
        for chunk in batch {
            self.check_room(chunk.pages, chunk.start.saturating_add(chunk.tokens.len()))?;
            check_tokens(chunk.tokens, vocab)?;
        }
        Ok(())
    }

    /// Refuses pages that the cache does not have.
    pub(super) fn check_pages(&self, pages: &[PageId]) -> Result<(), BackendError> {
        match pages.iter().find(|page| page.0 as usize >= self.pages) {
            Some(page) => Err(BackendError::Device(format!("page {} of {}", page.0, self.pages))),
            None => Ok(()),
        }
    }

    fn check_round(&self, sequence: &Sequence<'_>) -> Result<(), BackendError> {
        let (len, committed, most) = (sequence.tokens.len(), sequence.committed, self.max_draft);
        if sequence.slot >= self.slots {
            return Err(BackendError::Device(format!("slot {} of {}", sequence.slot, self.slots)));
        }
        if committed == 0 || committed > len || len - committed > most {
            let found = format!("{len} tokens, {committed} of them committed");
            return Err(BackendError::Device(format!("{found} (expected at least 1, and at most {most} drafts)")));
        }
        if sequence.proposed > len - committed {
            let found = format!("{} of {} drafts proposed", sequence.proposed, len - committed);
            return Err(BackendError::Device(format!("{found} (expected at most all)")));
        }
        let sampled = sequence.sampled();
        if sequence.recurrent > sampled {
            let found = format!("{} of {sampled} sampled drafts recurrent", sequence.recurrent);
            return Err(BackendError::Device(format!("{found} (expected at most all)")));
        }
        self.check_room(sequence.pages, len)
    }

    /// Refuses positions that the context or the block table has no room for.
    fn check_room(&self, pages: &[PageId], positions: usize) -> Result<(), BackendError> {
        let (context, room) = (self.context, pages.len() * PAGE_TOKENS);
        if positions > context.min(room) {
            let limits = format!("a context of {context} and {} pages, for {room} positions", pages.len());
            return Err(BackendError::Device(format!("{positions} positions in {limits}")));
        }
        self.check_pages(pages)
    }
}

fn check_tokens(tokens: &[TokenId], vocab: usize) -> Result<(), BackendError> {
    match tokens.iter().find(|&&token| token as usize >= vocab) {
        Some(token) => Err(BackendError::Device(format!("token {token} (expected less than {vocab})"))),
        None => Ok(()),
    }
}
