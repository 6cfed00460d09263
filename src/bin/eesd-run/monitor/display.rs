//! How a batch is going, while it goes: with `--stats` a block that is refreshed on a terminal, a line every few seconds
//! elsewhere; without it, a line now and then where there is no terminal.

use super::Sample;
use crate::report;
use crate::stderr::say;
use eesd::engine::Snapshot;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// Time between two refreshes on a terminal.
const REFRESH: Duration = Duration::from_millis(500);
/// Time between two lines elsewhere.
const LINE: Duration = Duration::from_secs(5);
/// The same where nobody asked for statistics.
const SELDOM: Duration = Duration::from_secs(30);

/// Shows how a batch is going.
pub struct Display {
    block: ProgressBar,
    every: Duration,
    requests: Option<usize>,
    next: Instant,
    /// What was shown last: the speeds are those since then.
    last: Option<(Duration, Snapshot)>,
}

impl Display {
    /// Of a batch of so many requests, if that is known: all that there is to know.
    pub fn new(requests: Option<usize>) -> Self {
        let block = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        block.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        let every = if block.is_hidden() { LINE } else { REFRESH };
        Self { block, every, requests, next: Instant::now() + REFRESH, last: None }
    }

    /// Signs of life, for who watches a file.
    pub fn seldom(requests: Option<usize>) -> Self {
        let block = ProgressBar::hidden();
        Self { block, every: SELDOM, requests, next: Instant::now() + SELDOM, last: None }
    }

    /// Whether it is time to show something.
    pub fn is_due(&self, now: Instant) -> bool {
        now >= self.next
    }

    /// Shows a sample.
    pub fn show(&mut self, sample: &Sample<'_>, now: Instant) {
        let parts = self.parts(sample);
        self.last = Some((sample.elapsed, sample.snapshot));
        self.next = now + self.every;
        if self.block.is_hidden() {
            say(&format!("{:.0} s: {}", sample.elapsed.as_secs_f64(), parts.join("; ")));
        } else {
            self.block.set_message(parts.join("\n"));
        }
    }

    /// Takes the block away while something else writes.
    pub fn suspend<T>(&self, work: impl FnOnce() -> T) -> T {
        self.block.suspend(work)
    }

    /// Takes the block away.
    pub fn clear(self) {
        self.block.finish_and_clear();
    }

    /// Requests; speed; drafts; cache. Each fits a narrow terminal.
    fn parts(&self, sample: &Sample<'_>) -> [String; 4] {
        let Sample { snapshot, written, controller, .. } = sample;
        let since = self.last.map(|(elapsed, snapshot)| (elapsed, snapshot.totals));
        let (begun, before) = since.unwrap_or_default();
        let totals = &snapshot.totals;
        let seconds = (sample.elapsed - begun).as_secs_f64().max(f64::MIN_POSITIVE);
        let [generated, rounds, sequences, rows, accepted] = [
            totals.generated - before.generated,
            totals.rounds - before.rounds,
            totals.sequences - before.sequences,
            totals.rows - before.rows,
            totals.accepted - before.accepted,
        ]
        .map(|count| count as f64);
        let mut by_source = totals.by_source;
        for (counts, before) in by_source.iter_mut().zip(before.by_source) {
            counts.rounds -= before.rounds;
            counts.drafted -= before.drafted;
            counts.accepted -= before.accepted;
        }
        let sources = report::sources(&by_source, totals.sequences - before.sequences);
        let who = match controller.is_off() && !sources.is_empty() {
            true => "lookups draft".into(),
            false => format!("{} drafts", controller.spec()),
        };
        let running = snapshot.prefilling + snapshot.decoding;
        let done = written.taken_over + written.answered + written.failed + written.cut_short;
        let of = self.requests.map_or(String::new(), |requests| format!(" of {requests}"));
        let failed = if written.failed > 0 { format!(" ({} failed)", written.failed) } else { String::new() };
        [
            format!(
                "{} waiting, {running} running, {} swapped out, {done}{of} done{failed}",
                snapshot.waiting, snapshot.swapped_out
            ),
            format!(
                "{:.0} tok/s, mean accepted length {:.2}, {:.1} rows a pass",
                generated / seconds,
                1.0 + accepted / sequences.max(1.0),
                rows / rounds.max(1.0),
            ),
            format!(
                "{who} {:.2} a round{}{sources}",
                (rows - sequences) / sequences.max(1.0),
                if sources.is_empty() { "" } else { ": " },
            ),
            format!(
                "{} of {} pages held, {} kept, {} preemptions",
                snapshot.pages - snapshot.free_pages,
                snapshot.pages,
                snapshot.kept_pages,
                totals.preemptions
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Written;
    use eesd::control::Fixed;
    use eesd::engine::{SourceStats, Totals};

    #[test]
    fn speeds_are_those_since_the_last_look() {
        let totals = |times: usize| Totals {
            generated: 30 * times,
            rounds: 5 * times,
            sequences: 10 * times,
            rows: 40 * times,
            accepted: 20 * times,
            by_source: [
                SourceStats { rounds: 6 * times, drafted: 20 * times, accepted: 15 * times },
                SourceStats { rounds: times, drafted: 10 * times, accepted: 5 * times },
                SourceStats::default(),
                SourceStats::default(),
            ],
            preemptions: times,
            ..Totals::default()
        };
        let sample = |seconds, times| Sample {
            elapsed: Duration::from_secs(seconds),
            snapshot: Snapshot {
                waiting: 1,
                prefilling: 2,
                decoding: 3,
                swapped_out: 4,
                pages: 9,
                free_pages: 3,
                kept_pages: 5,
                totals: totals(times),
            },
            written: Written { taken_over: 1, answered: 2, failed: 3, cut_short: 0 },
            controller: &Fixed { length: 3 },
        };
        let mut display = Display::new(Some(6000));
        let rest = [
            "fixed:3 drafts 3.00 a round: exit .75 in .60 of rounds, lookup .50 in .10 of rounds",
            "6 of 9 pages held, 5 kept, 1 preemptions",
        ];
        let requests = "1 waiting, 5 running, 4 swapped out, 6 of 6000 done (3 failed)";
        let expected = [requests, "15 tok/s, mean accepted length 3.00, 8.0 rows a pass", rest[0], rest[1]];
        assert_eq!(display.parts(&sample(2, 1)), expected);
        display.last = Some((Duration::from_secs(2), sample(2, 1).snapshot));
        assert!(display.parts(&sample(5, 7))[1].starts_with("60 tok/s, "));
        display.requests = None;
        assert!(display.parts(&sample(2, 1))[0].ends_with(", 6 done (3 failed)"));
    }
}
