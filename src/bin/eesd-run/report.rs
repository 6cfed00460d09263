//! What people read beside the text: notes, progress and statistics, all on standard error.

use crate::progress::{self, Progress};
use crate::stderr::say;
use eesd::draft::Source;
use eesd::engine::{SourceStats, Stats};
use eesd::model::Scheme;
use serde_json::{Value, json};
use std::io::{self, IsTerminal};

/// Counts in the order of [`Source::ALL`].
pub type BySource = [SourceStats; Source::ALL.len()];

/// Talks to people, or not at all.
#[derive(Debug, Clone, Copy)]
pub struct Reporter {
    quiet: bool,
    /// How the weights were quantised that what is reported comes of.
    quantised: Option<Scheme>,
}

impl Reporter {
    /// `quiet`: no notes, no progress, no statistics.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, quantised: None }
    }

    /// Reports of answers say that the weights were quantised so.
    pub fn with_quantised(self, quantised: Option<Scheme>) -> Self {
        Self { quantised, ..self }
    }

    /// How the weights were quantised.
    pub fn quantised(&self) -> Option<Scheme> {
        self.quantised
    }

    /// Whether what is told goes to a file or a pipe, not to a terminal.
    pub fn logs(&self) -> bool {
        !self.quiet && !io::stderr().is_terminal()
    }

    /// One line that nobody has to read.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// The closing line of a generation.
    pub fn statistics(&self, stats: &Stats) {
        let weights = self.quantised.map(|scheme| format!(", weights in {scheme}")).unwrap_or_default();
        self.note(&format!("{}{weights}", statistics(stats)));
    }

    /// Tells of work of `steps` steps.
    pub fn progress(&self, steps: usize, doing: &str) -> Progress {
        Progress::begin(steps, doing, self.quiet)
    }

    /// Runs `work`, and tells of it where it takes long.
    pub fn wait<T>(&self, doing: &str, work: impl FnOnce() -> T) -> T {
        progress::wait(doing, self.quiet, work)
    }
}

/// Tokens, speed, rounds, mean accepted length, acceptance by position, time to first token, on one line.
pub fn statistics(stats: &Stats) -> String {
    format!(
        "{} tokens, {:.0} tok/s, {} rounds, first token after {:.1} ms{}",
        stats.generated,
        stats.tokens_per_second(),
        stats.rounds,
        stats.first_token.as_secs_f64() * 1e3,
        drafting(stats),
    )
}

/// What goes on about drafts at the end of such a line; nothing where there were none.
pub fn drafting(stats: &Stats) -> String {
    if stats.drafted() == 0 {
        return String::new();
    }
    let by_position = acceptance(&stats.acceptance_by_position());
    let mut line =
        format!(", mean accepted length {:.2}, acceptance by position {by_position}", stats.mean_accepted_length());
    // What an exit block did alone is what has been said.
    if stats.by_source.iter().zip(Source::ALL).any(|(counts, source)| source != Source::Exit && counts.rounds > 0) {
        line += &format!(", by source {}", sources(&stats.by_source, stats.rounds));
    }
    line
}

/// What each source did that drafted in so many rounds: `exit .31 in .62 of rounds, lookup .45 in .18 of rounds`.
pub fn sources(by_source: &BySource, rounds: usize) -> String {
    let share = |part: usize, of: usize| acceptance(&[part as f64 / of.max(1) as f64]);
    let told = |(source, counts): (Source, SourceStats)| {
        let SourceStats { rounds: drafting, drafted, accepted } = counts;
        format!("{source} {} in {} of rounds", share(accepted, drafted), share(drafting, rounds))
    };
    drafting_sources(by_source).map(told).collect::<Vec<_>>().join(", ")
}

/// The same for machines: counts by the source's name.
pub fn sources_json(by_source: &BySource) -> Value {
    let counts = |(source, counts): (Source, SourceStats)| {
        let SourceStats { rounds, drafted, accepted } = counts;
        (source.name().to_owned(), json!({"rounds": rounds, "drafted": drafted, "accepted": accepted}))
    };
    Value::Object(drafting_sources(by_source).map(counts).collect())
}

fn drafting_sources(by_source: &BySource) -> impl Iterator<Item = (Source, SourceStats)> {
    Source::ALL.into_iter().zip(*by_source).filter(|(_, counts)| counts.rounds > 0)
}

/// Acceptance rates as `.91 .85 .80`; a sure one is `1`.
pub fn acceptance(rates: &[f64]) -> String {
    let short = |rate: &f64| {
        let text = format!("{rate:.2}");
        if text == "1.00" { "1".to_string() } else { text.trim_start_matches('0').to_string() }
    };
    rates.iter().map(short).collect::<Vec<_>>().join(" ")
}

/// Bytes as people say them: `7.9 MB`.
pub fn bytes(n: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let mut value = n as f64;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 || value >= 99.95 {
        format!("{value:.0} {}", units[unit])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// Counts as people say them: `3.94 M`, `70.6 B`.
pub fn count(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.2} B", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e3 => format!("{:.1} k", n / 1e3),
        n => format!("{n}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(7_878_800), "7.9 MB");
        assert_eq!(bytes(140_000_000_000), "140 GB");
        assert_eq!(count(3_940_000), "3.94 M");
        assert_eq!(acceptance(&[1.0, 0.914, 0.05, 0.0]), "1 .91 .05 .00");
    }
}
