//! How plain rounds fare soon after drafts, and on their own.
//!
//! The first plain rounds after drafts are slower than those that follow each other, most likely because drafts leave
//! other weights in the processor's caches than a plain round wants. On small models that can be a quarter of a round
//! for ten rounds. Rounds between drafts would never show what plain decoding takes that is left alone; only a stretch
//! of them does, and where drafting pays there is none unless it is played for that.

use super::recent::Recent;

/// Plain rounds after a draft that count as soon after it.
pub const SOON: usize = 8;
/// Plain rounds of a stretch: as many that follow those.
const STRETCH: usize = 2 * SOON;
/// What stretches that are played to be timed may cost, over all rounds.
const SHARE: f64 = 0.005;
/// Fewest rounds from one stretch to the next.
const EVERY: f64 = 64.0;
/// No plain round left alone takes less than this share of one soon after a draft.
const LEAST: f64 = 0.5;
/// Stretches that are supposed to have shown no difference before the first one.
const PRIOR: usize = 2;

/// Plain rounds' times by their distance from drafts.
#[derive(Debug, Clone)]
pub struct Aftermath {
    /// Plain rounds since the last one that drafted; `None` before the first draft.
    since_draft: Option<usize>,
    /// Seconds of this stretch's first rounds, and of those after them.
    soon: Recent<SOON>,
    later: Recent<SOON>,
    /// Of each stretch the later rounds' seconds over the first ones'.
    ratios: Recent<15>,
    /// Rounds since the last stretch ended.
    rounds: usize,
    /// Whether a stretch is being played to be timed.
    playing: bool,
}

impl Default for Aftermath {
    fn default() -> Self {
        let mut ratios = Recent::default();
        ratios.extend(&[1.0; PRIOR]);
        let (soon, later) = Default::default();
        Self { since_draft: None, soon, later, ratios, rounds: 0, playing: false }
    }
}

impl Aftermath {
    /// Learns from a finished round's number of drafts and the seconds of its verification.
    pub fn observe(&mut self, drafts: usize, seconds: f64) {
        self.rounds += 1;
        if drafts > 0 {
            self.since_draft = Some(0);
            self.soon.keep_latest(0);
            self.later.keep_latest(0);
            return;
        }
        let Some(since_draft) = &mut self.since_draft else { return };
        *since_draft += 1;
        if *since_draft > STRETCH {
            return;
        }
        if *since_draft <= SOON {
            self.soon.extend(&[seconds])
        } else {
            self.later.extend(&[seconds])
        };
        if *since_draft == STRETCH {
            let ratio = self.soon.mean().zip(self.later.mean()).map(|(soon, later)| (later / soon).clamp(LEAST, 1.0));
            self.ratios.extend(ratio.as_slice());
            (self.rounds, self.playing) = (0, false);
        }
    }

    /// Whether the last round was a plain one soon after drafts.
    pub fn is_soon(&self) -> bool {
        self.since_draft.is_some_and(|since| (1..=SOON).contains(&since))
    }

    /// A plain round's time left alone over one soon after drafts.
    pub fn ratio(&self) -> f64 {
        self.ratios.mean().unwrap_or(1.0)
    }

    /// Whether the next round should be plain for the sake of a stretch, where drafting is thought to gain this many
    /// tokens a plain round's time over plain decoding.
    pub fn wants_plain(&mut self, gain: f64) -> bool {
        // A stretch follows drafts. Where they are further back it has been played already, whether wanted or not.
        if self.since_draft.is_none_or(|since| since >= STRETCH) {
            self.playing = false;
            return false;
        }
        if !self.playing {
            // The more is known the rarer.
            let stretches = (self.ratios.len() - PRIOR + 1) as f64;
            let every = (stretches * STRETCH as f64 * gain.max(0.0) / SHARE).max(EVERY);
            // However different they are, it would not make drafting lose.
            let matters = gain < 1.0 / LEAST - 1.0;
            self.playing = matters && self.rounds as f64 >= every;
        }
        self.playing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays rounds of two drafts, and plain ones where they are wanted; returns how many plain ones there were.
    fn play(aftermath: &mut Aftermath, rounds: usize, gain: f64, plain: impl Fn(usize) -> f64) -> usize {
        let (mut plain_rounds, mut since) = (0, 0);
        for _ in 0..rounds {
            if aftermath.wants_plain(gain) {
                (plain_rounds, since) = (plain_rounds + 1, since + 1);
                aftermath.observe(0, plain(since));
            } else {
                since = 0;
                aftermath.observe(2, 3.0);
            }
        }
        plain_rounds
    }

    #[test]
    fn stretches_show_what_drafts_do_to_plain_rounds() {
        let mut aftermath = Aftermath::default();
        play(&mut aftermath, 4000, 0.05, |since| if since <= SOON { 1.25 } else { 1.0 });
        assert!((aftermath.ratio() - 0.8).abs() < 1e-9, "{}", aftermath.ratio());
        let mut even = Aftermath::default();
        play(&mut even, 4000, 0.05, |_| 1.0);
        assert_eq!(even.ratio(), 1.0);
    }

    /// As where one-token requests come between those that draft: plain rounds that nobody asked about.
    #[test]
    fn a_stretch_is_neither_begun_nor_kept_beyond_its_length() {
        for gain in [0.0, 0.1, 0.5] {
            for unasked in [SOON, STRETCH - 1, STRETCH, STRETCH + 1, 5000] {
                let mut aftermath = Aftermath::default();
                play(&mut aftermath, 100, gain, |_| 1.0);
                aftermath.observe(2, 3.0);
                (0..unasked).for_each(|_| aftermath.observe(0, 1.0));
                let mut asked = 0;
                while aftermath.wants_plain(gain) {
                    aftermath.observe(0, 1.0);
                    asked += 1;
                }
                assert!(unasked.min(STRETCH) + asked <= STRETCH, "{gain}: {asked} more after {unasked}");
            }
        }
    }

    #[test]
    fn a_single_odd_stretch_changes_little() {
        let mut aftermath = Aftermath::default();
        play(&mut aftermath, 100, 0.0, |since| if since <= SOON { 2.0 } else { 1.0 });
        assert!(aftermath.ratio() >= 0.75, "{}", aftermath.ratio());
        play(&mut aftermath, 200, 0.0, |_| 1.0);
        assert_eq!(aftermath.ratio(), 1.0);
    }

    #[test]
    fn stretches_cost_little_and_none_is_played_where_drafting_gains_much() {
        for gain in [0.0, 0.1, 0.5] {
            let plain = play(&mut Aftermath::default(), 20_000, gain, |_| 1.0);
            assert!(plain >= STRETCH && plain as f64 * gain <= 20_000.0 * SHARE, "{gain}: {plain}");
        }
        assert_eq!(play(&mut Aftermath::default(), 20_000, 1.5, |_| 1.0), 0);
    }
}
