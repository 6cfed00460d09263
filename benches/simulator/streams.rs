//! Where streams come from: made-up acceptance, and recordings of a real model.

use super::recording::Recording;
use super::{MAX_DRAFT, Position, Stream};
use eesd::sample::{Philox, Purpose};
use rand::RngExt;

/// Fewest rounds of a made-up stream, whatever the controller.
pub const ROUNDS: usize = 6_000;

/// How the acceptance of made-up drafts behaves along a text.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Independent, with this chance; confidences say nothing.
    Iid(f64),
    /// The chance swings slowly between .5 and .95; confidences say nothing.
    Drift,
    /// The chance jumps among .3, .6, .9 and .97 every 150 tokens on average; confidences say nothing.
    Bursts,
    /// The same, but each lasts some fifty misses, so that the predictable passages are the long ones.
    LongBursts,
    /// Each draft has its own chance, around .75, and its confidence is that chance.
    Informative,
    /// The same, but the confidence is too sure of itself.
    Overconfident,
    /// Each draft has its own chance around a slowly swinging one; of both the confidence sees only a draft's own share.
    DriftInformative,
}

impl Kind {
    /// As the table names it.
    pub fn name(self) -> String {
        match self {
            Kind::Iid(chance) => format!("i.i.d. {chance}"),
            Kind::Drift => "drift .5–.95".into(),
            Kind::Bursts => "bursts".into(),
            Kind::LongBursts => "long bursts".into(),
            Kind::Informative => "informative".into(),
            Kind::Overconfident => "overconfident".into(),
            Kind::DriftInformative => "drift + informative".into(),
        }
    }

    /// A stream on which the most tokens a round can hold still make [`ROUNDS`] rounds.
    pub fn stream(self, seed: u64) -> Stream {
        let mut rng = Philox::new(seed, 0, Purpose::Draft, 0);
        let mut source = Source { kind: self, chance: 0.6, phase: rng.random_range(0.0..1.0) };
        let mut text: Vec<Position> = Vec::new();
        let mut rounds = 0;
        let mut run = 0;
        while rounds < ROUNDS {
            let position = source.position(text.len(), &mut rng);
            text.push(position);
            // The rounds of `fixed:16`, which makes the fewest.
            run += 1;
            if !position.accepted || run == MAX_DRAFT + 1 {
                rounds += 1;
                run = 0;
            }
        }
        Stream { texts: vec![text] }
    }
}

struct Source {
    kind: Kind,
    /// Present chance of a burst.
    chance: f64,
    /// Where the swing starts, in periods.
    phase: f64,
}

impl Source {
    fn position(&mut self, at: usize, rng: &mut Philox) -> Position {
        // Three thousand tokens from one low to the next.
        let swing = 0.5 - 0.5 * ((at as f64 / 3000.0 + self.phase) * std::f64::consts::TAU).cos();
        // A draft's own share: log-odds spread over some ±3 around its text's.
        let own = rng.random_range(-1.0..1.0) + rng.random_range(-1.0..1.0) + rng.random_range(-1.0..1.0);
        let (chance, confidence) = match self.kind {
            Kind::Iid(chance) => (chance, rng.random()),
            Kind::Drift => (0.5 + 0.45 * swing, rng.random()),
            Kind::Bursts | Kind::LongBursts => {
                let length = if self.kind == Kind::Bursts { 150.0 } else { 50.0 / (1.0 - self.chance) };
                if rng.random_bool(1.0 / length) {
                    self.chance = [0.3, 0.6, 0.9, 0.97][rng.random_range(0..4)];
                }
                (self.chance, rng.random())
            }
            Kind::Informative => (sigmoid(1.6 + 1.6 * own), sigmoid(1.6 + 1.6 * own)),
            Kind::Overconfident => (sigmoid(1.6 + 1.6 * own), sigmoid(3.5 + 3.0 * own)),
            Kind::DriftInformative => (sigmoid(3.5 * swing + 1.6 * own), sigmoid(1.6 + 1.6 * own)),
        };
        Position { confidence: confidence as f32, accepted: rng.random_bool(chance) }
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The recorded texts of a file.
pub fn recorded(path: &std::path::Path) -> std::io::Result<Vec<Vec<Position>>> {
    let text = std::fs::read_to_string(path)?;
    let positions = |line: &str| -> std::io::Result<Vec<Position>> {
        let recording: Recording = serde_json::from_str(line)?;
        let accepted = recording.accepted.bytes().map(|byte| byte == b'1');
        Ok(recording
            .confidence
            .iter()
            .zip(accepted)
            .map(|(&confidence, accepted)| Position { confidence, accepted })
            .collect())
    };
    text.lines().map(positions).collect()
}

/// Recorded texts in an order of the seed's, over and over, until [`ROUNDS`] rounds are sure.
pub fn shuffled(texts: &[Vec<Position>], seed: u64) -> Stream {
    let mut rng = Philox::new(seed, 0, Purpose::Draft, 0);
    let mut stream = Stream { texts: Vec::new() };
    let mut rounds = 0;
    while rounds < ROUNDS {
        let text = &texts[rng.random_range(0..texts.len())];
        rounds += text.len().div_ceil(MAX_DRAFT + 1);
        stream.texts.push(text.clone());
    }
    stream
}
