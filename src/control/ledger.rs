//! What drafting may lose.

/// The share of plain decoding that drafting may lose for good.
const ALLOWANCE: f64 = 0.005;
/// Most plain rounds in the ledger: what drafting may lose at a stretch after it has gained.
const CAP: f64 = 30.0;
/// Most debt in it, so that one mismeasured round cannot end drafting for long.
const FLOOR: f64 = -2.0;
/// A probe's cost over the plain decoding between two probes.
const PROBE_SHARE: f64 = 0.005;
/// Fewest and most plain rounds between two probes.
const PROBE_EVERY: (f64, f64) = (16.0, 10_000.0);

/// Plain rounds that drafting has gained and not lost again, an allowance included.
#[derive(Debug, Clone, Copy)]
pub struct Ledger {
    balance: f64,
    /// Most plain rounds in it.
    cap: f64,
}

impl Default for Ledger {
    fn default() -> Self {
        Self::with_cap(CAP)
    }
}

impl Ledger {
    /// One that may lose so many plain rounds at a stretch.
    pub fn with_cap(cap: f64) -> Self {
        Self { balance: cap, cap }
    }

    /// Enters what a round gained over plain decoding.
    pub fn enter(&mut self, gain: f64) {
        self.balance = (self.balance + gain + ALLOWANCE).clamp(FLOOR, self.cap);
    }

    /// Plain rounds left.
    pub fn balance(&self) -> f64 {
        self.balance
    }

    /// Whether drafting has lost all that it may.
    pub fn in_debt(&self) -> bool {
        self.balance < 0.0
    }
}

/// Rounds without a draft after which a probe is due that takes as long as so many plain rounds.
pub fn probe_every(cost: f64) -> f64 {
    (cost / PROBE_SHARE).clamp(PROBE_EVERY.0, PROBE_EVERY.1)
}

/// The size that a batch counts as, of which each has a ledger: the nearest power of two, by its exponent.
pub fn size(batch: usize) -> u32 {
    (batch.clamp(1, 1 << 20) as f64).log2().round() as u32
}
