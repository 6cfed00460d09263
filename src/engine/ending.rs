//! How requests leave: finished, failed or cancelled, alone or all at once.

use super::pages::SwappedOut;
use super::running::{Broken, Running};
use super::{Completion, Engine, Event};
use std::ops::ControlFlow;

impl Engine {
    /// Ends one request where it is, between steps, and returns what it has; `None` if there is none of that name.
    pub fn cancel(&mut self, id: usize) -> Option<Completion> {
        let is_named = |sequence: &Running| sequence.id == id;
        let completion = if let Some(i) = self.waiting.iter().position(|waiting| waiting.id == id) {
            self.waiting.remove(i)?.into_completion(self.clock.now())
        } else if let Some(i) = self.swapped_out.iter().position(|swapped| is_named(&swapped.sequence)) {
            let sequence = self.swapped_out.remove(i)?.sequence.ended();
            self.proposing.end(&sequence, false);
            sequence.into_completion()
        } else {
            let admitted = [&mut self.running, &mut self.prefilling];
            let sequence = admitted.into_iter().find_map(|of| Some(of.remove(of.iter().position(is_named)?)))?;
            self.retire(sequence.ended()).1
        };
        self.totals.cancelled += 1;
        Some(completion)
    }

    /// Ends requests that cannot go on, each alone; the flow breaks if it has already, or `on_event` does.
    pub(super) fn fail(
        &mut self,
        broken: Vec<Broken>,
        mut flow: ControlFlow<()>,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        for (sequence, error) in broken {
            let (id, _) = self.retire(sequence);
            self.totals.failed += 1;
            if on_event(id, Event::Failed(error)).is_break() {
                flow = ControlFlow::Break(());
            }
        }
        flow
    }

    /// Gives a sequence's slot and pages back.
    pub(super) fn retire(&mut self, mut sequence: Running) -> (usize, Completion) {
        self.proposing.end(&sequence, sequence.has_finished());
        self.pages.release(&mut sequence.table);
        self.free_slots.push(sequence.slot);
        (sequence.id, sequence.into_completion())
    }

    /// Ends everything admitted where it is, and forgets what is queued.
    pub(super) fn cancel_all(&mut self, on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>) {
        self.totals.cancelled += self.unfinished();
        self.waiting.clear();
        let admitted: Vec<Running> = self.running.drain(..).chain(self.prefilling.drain(..)).collect();
        let mut ended: Vec<_> = admitted.into_iter().map(|sequence| self.retire(sequence.ended())).collect();
        for SwappedOut { sequence, .. } in std::mem::take(&mut self.swapped_out) {
            self.proposing.end(&sequence, false);
            ended.push((sequence.id, sequence.ended().into_completion()));
        }
        for (id, completion) in ended {
            // The receiver has asked to stop already: there is nothing more its answer could change.
            let _ = on_event(id, Event::Done(completion));
        }
    }
}
