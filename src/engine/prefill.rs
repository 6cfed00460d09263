//! Prompts go into the cache, a piece in every step.

use super::running::{Running, take_broken};
use super::{Engine, Event};
use crate::backend::{BackendError, Chunk};
use crate::kv::PAGE_TOKENS;
use crate::profile;
use std::ops::{ControlFlow, Range};

impl Engine {
    /// Takes prompts in, those that came first first, as many tokens as the budget leaves; what is complete joins the
    /// rounds. Sequences that cannot go on fail.
    pub(super) fn prefill(
        &mut self,
        on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, BackendError> {
        let mut flow = ControlFlow::Continue(());
        let mut broken = Vec::new();
        let chosen = self.choose_chunks();
        if !chosen.is_empty() {
            let mut range = profile::range("prefill");
            range.note("tokens", || chosen.iter().map(|(_, positions)| positions.len()).sum::<usize>().into());
            let start = self.clock.now();
            let chunk = |(i, positions): &(usize, Range<usize>)| {
                let sequence = &self.prefilling[*i];
                let tokens = &sequence.tokens[positions.clone()];
                Chunk { pages: sequence.table.pages(), start: positions.start, tokens }
            };
            self.backend.prefill(&chosen.iter().map(chunk).collect::<Vec<_>>())?;
            let took = self.clock.since(start);
            for (i, positions) in chosen {
                self.totals.prefilled_tokens += positions.len();
                let sequence = &mut self.prefilling[i];
                sequence.table.set_len(positions.end);
                sequence.stats.prefill += took;
                let told = Event::Prefilled { done: positions.end, of: sequence.to_prefill() };
                if flow.is_continue() {
                    flow = on_event(sequence.id, told);
                }
                sequence.non_finite = self.backend.first_non_finite(sequence.table.pages(), positions);
                if sequence.non_finite.is_none() {
                    self.keep_pages(i);
                }
            }
            broken = take_broken(&mut self.prefilling);
        }
        for mut sequence in self.prefilling.extract_if(.., |sequence| sequence.is_prefilled()) {
            sequence.prefilled();
            let place = self.running.partition_point(|other| other.arrival < sequence.arrival);
            self.running.insert(place, sequence);
        }
        Ok(self.fail(broken, flow, on_event))
    }

    /// The next piece of each prompt that has a share of this step's budget: its index in `prefilling`, and positions.
    fn choose_chunks(&mut self) -> Vec<(usize, Range<usize>)> {
        let (exact, reuse) = (self.backend.prefill_is_exact(), self.reuses_prefixes());
        let mut budget = self.options.token_budget.saturating_sub(self.running.len()).max(PAGE_TOKENS);
        let mut chosen: Vec<(usize, Range<usize>)> = Vec::new();
        for i in 0..self.prefilling.len() {
            if budget == 0 {
                break;
            }
            let sequence = &mut self.prefilling[i];
            if reuse {
                let prompt = sequence.to_prefill();
                let reused = self.pages.adopt(&mut sequence.table, &sequence.tokens[..prompt]);
                sequence.count_reused(reused);
                self.totals.reused_tokens += reused;
            }
            let sequence = &self.prefilling[i];
            let rest = sequence.table.len()..sequence.to_prefill();
            let waits = reuse && chosen.iter().any(|(other, _)| sequence.shares_next_page(&self.prefilling[*other]));
            if rest.is_empty() || waits {
                continue;
            }
            let most = if exact { budget } else { rest.len() };
            if rest.len() > budget && !exact && !chosen.is_empty() {
                break;
            }
            let positions = rest.start..rest.end.min(rest.start + most);
            budget = budget.saturating_sub(positions.len());
            chosen.push((i, positions));
        }
        chosen
    }

    /// Keeps what is complete of a prompt for others.
    fn keep_pages(&mut self, i: usize) {
        if self.reuses_prefixes() {
            let sequence = &mut self.prefilling[i];
            sequence.kept = self.pages.keep(&mut sequence.table, &sequence.tokens, sequence.kept);
        }
    }
}

impl Running {
    /// The next page of this prompt is one that the other prompt, being taken in, will have as well: it can be had from
    /// there in a moment.
    fn shares_next_page(&self, other: &Running) -> bool {
        let end = (self.table.len() / PAGE_TOKENS + 1) * PAGE_TOKENS;
        end <= self.to_prefill().min(other.to_prefill()) && self.tokens[..end] == other.tokens[..end]
    }
}
