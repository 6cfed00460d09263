//! What a session is doing, and has done.

use super::argument::{Place, Versioned};
use super::session::{self, Session};
use super::source::{EESD_SOURCES, SourceStats};
use super::status::{Status, entry};
use super::worker::Command;
use crate::engine;

/// Counts since a session was made.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Totals {
    /// Requests answered to their end.
    pub finished: usize,
    /// Requests that were malformed, or dropped because a pass failed.
    pub failed: usize,
    /// Requests cancelled.
    pub cancelled: usize,
    /// Tokens of all prompts admitted.
    pub prompt_tokens: usize,
    /// Those of them that were found in pages kept.
    pub reused_tokens: usize,
    /// Tokens taken in by prefill passes.
    pub prefilled_tokens: usize,
    /// Tokens emitted.
    pub generated: usize,
    /// Rounds, each of all requests then running.
    pub rounds: usize,
    /// Requests in all rounds.
    pub sequences: usize,
    /// Rows of all verification passes.
    pub rows: usize,
    /// Draft steps, each of all requests then drafting.
    pub draft_steps: usize,
    /// Drafts tested.
    pub drafted: usize,
    /// Drafts accepted.
    pub accepted: usize,
    /// Requests set aside because the cache was full, each time.
    pub preemptions: usize,
    /// Pages copied out of the cache for it.
    pub swapped_pages: usize,
    /// Mean accepted length, 1 + accepted / sequences; 0 before the first round.
    pub mean_accepted_length: f64,
    /// What each source drafted: by_source[EESD_SOURCE_EXIT - 1], ...
    pub by_source: [SourceStats; EESD_SOURCES],
}

/// A session between two steps of its engine.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Snapshot {
    /// sizeof(eesd_snapshot); to be set before the call.
    pub struct_size: usize,
    /// Requests not admitted yet.
    pub waiting: usize,
    /// Requests whose prompts are being taken in.
    pub prefilling: usize,
    /// Requests in the rounds.
    pub decoding: usize,
    /// Requests set aside because the cache was full.
    pub swapped_out: usize,
    /// Pages of the KV cache, of 64 tokens each.
    pub pages: usize,
    /// Pages that no request holds, those kept for their texts among them.
    pub free_pages: usize,
    /// Pages kept for their texts, those that requests hold among them.
    pub kept_pages: usize,
    /// Counts so far.
    pub totals: Totals,
}

// SAFETY: repr(C), struct_size first, numbers.
unsafe impl Versioned for Snapshot {
    const NAME: &'static str = "eesd_snapshot";
}

/// Writes what the session is doing after the step that it is at, for which this waits; requests that the same thread
/// submitted before are counted.
///
/// # Safety
///
/// `snapshot` is NULL, or as its struct_size, which is set, says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_session_get_snapshot(session: *const Session, snapshot: *mut Snapshot) -> Status {
    entry(|| {
        let session = session::find(session)?;
        // SAFETY: the caller vouches for it.
        let place = unsafe { Place::structure(snapshot) }?;
        let taken = session.ask(Command::Snapshot)?;
        place.write(Snapshot {
            struct_size: size_of::<Snapshot>(),
            waiting: taken.waiting,
            prefilling: taken.prefilling,
            decoding: taken.decoding,
            swapped_out: taken.swapped_out,
            pages: taken.pages,
            free_pages: taken.free_pages,
            kept_pages: taken.kept_pages,
            totals: Totals::of(&taken.totals),
        });
        Ok(())
    })
}

impl Totals {
    fn of(totals: &engine::Totals) -> Self {
        Self {
            finished: totals.finished,
            failed: totals.failed,
            cancelled: totals.cancelled,
            prompt_tokens: totals.prompt_tokens,
            reused_tokens: totals.reused_tokens,
            prefilled_tokens: totals.prefilled_tokens,
            generated: totals.generated,
            rounds: totals.rounds,
            sequences: totals.sequences,
            rows: totals.rows,
            draft_steps: totals.draft_steps,
            drafted: totals.drafted,
            accepted: totals.accepted,
            preemptions: totals.preemptions,
            swapped_pages: totals.swapped_pages,
            mean_accepted_length: totals.mean_accepted_length(),
            by_source: SourceStats::of(&totals.by_source),
        }
    }
}
