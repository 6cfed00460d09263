//! What people read beside the text: notes, progress and statistics, all on standard error.

use eesd::engine::Stats;
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// Talks to people, or not at all.
#[derive(Debug, Clone, Copy)]
pub struct Reporter {
    quiet: bool,
}

impl Reporter {
    /// `quiet`: no notes, no progress, no statistics.
    pub fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// One line that nobody has to read.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }

    /// The closing line of a generation.
    pub fn statistics(&self, stats: &Stats) {
        self.note(&statistics(stats));
    }

    /// A bar over `steps` steps; it shows on a terminal only.
    pub fn bar(&self, steps: usize, doing: &str) -> ProgressBar {
        if self.quiet {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{msg:>10} [{bar:30}] {pos}/{len} {eta} left");
        let bar = ProgressBar::new(steps as u64).with_message(doing.to_owned());
        bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "))
    }

    /// Runs `work` with a spinner beside it, which shows on a terminal only and leaves nothing behind.
    pub fn wait<T>(&self, doing: &str, work: impl FnOnce() -> T) -> T {
        let spinner = if self.quiet { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        spinner.set_message(doing.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(120));
        let done = work();
        spinner.finish_and_clear();
        done
    }
}

/// Tokens, speed, rounds, mean accepted length, acceptance by position, time to first token, on one line.
pub fn statistics(stats: &Stats) -> String {
    let mut line = format!(
        "{} tokens, {:.0} tok/s, {} rounds, first token after {:.1} ms",
        stats.generated,
        stats.tokens_per_second(),
        stats.rounds,
        stats.first_token.as_secs_f64() * 1e3,
    );
    if stats.drafted() > 0 {
        let by_position = acceptance(&stats.acceptance_by_position());
        line += &format!(
            ", mean accepted length {:.2}, acceptance by position {by_position}",
            stats.mean_accepted_length()
        );
    }
    line
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
