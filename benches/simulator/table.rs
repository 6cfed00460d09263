//! Replays every controller on every stream and lays the results out.

use crate::simulator::streams::{self, Kind};
use crate::simulator::{Costs, Rows, Stream, best_fixed, replay, replay_short};
use eesd::control::ControllerSpec;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One stream under one cost, over all seeds.
#[derive(Debug, Clone)]
pub struct Row {
    /// The stream's name.
    pub stream: String,
    /// The best fixed length of each seed.
    pub best_lengths: Vec<usize>,
    /// Its speed-up over plain decoding, of each seed.
    pub best_speedups: Vec<f64>,
    /// Speed over the best fixed length's, less 1: by controller, then by seed.
    pub gains: Vec<Vec<f64>>,
}

/// One cost's rows, in the order of the streams.
#[derive(Debug, Clone)]
pub struct Table {
    /// What time cost.
    pub costs: Costs,
    /// A row per stream.
    pub rows: Vec<Row>,
}

/// Where a stream comes from, seed by seed.
pub type Source = (String, Box<dyn Fn(u64) -> Stream + Sync>);

/// The made-up streams of the published table.
pub fn made_up() -> Vec<Source> {
    let iid = [0.1, 0.3, 0.5, 0.6, 0.8, 0.9, 0.95].map(Kind::Iid);
    let changing =
        [Kind::Drift, Kind::Bursts, Kind::LongBursts, Kind::Informative, Kind::Overconfident, Kind::DriftInformative];
    let source = |kind: Kind| -> Source { (kind.name(), Box::new(move |seed| kind.stream(seed))) };
    iid.into_iter().chain(changing).map(source).collect()
}

/// The recorded texts of the bundled model, by exit layer.
pub fn traces() -> std::io::Result<Vec<Source>> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/traces");
    let mut sources: Vec<Source> = Vec::new();
    for exit in 1..=3 {
        let texts = streams::recorded(&folder.join(format!("pycode-4m-exit{exit}.jsonl")))?;
        sources.push((format!("pycode-4m exit-{exit}"), Box::new(move |seed| streams::shuffled(&texts, seed))));
    }
    Ok(sources)
}

/// Plays every controller on every stream, under each cost and seed, on all cores; in runs of `run` rounds
/// of which each starts from nothing, if any are asked for.
pub fn play(
    sources: &[Source],
    controllers: &[ControllerSpec],
    costs: &[Costs],
    run: Option<NonZeroUsize>,
    seeds: &[u64],
) -> Vec<Table> {
    let jobs: Vec<(usize, u64)> =
        (0..sources.len()).flat_map(|source| seeds.iter().map(move |&seed| (source, seed))).collect();
    let results = in_parallel(jobs.len(), |job| {
        let (source, seed) = jobs[job];
        let stream = sources[source].1(seed);
        costs.iter().map(|&c| Cell::play(&stream, controllers, c, run, seed)).collect::<Vec<Cell>>()
    });
    let row = |source: usize, cost: usize| {
        let cells = || results[source * seeds.len()..][..seeds.len()].iter().map(|cells| &cells[cost]);
        Row {
            stream: sources[source].0.clone(),
            best_lengths: cells().map(|cell| cell.best_length).collect(),
            best_speedups: cells().map(|cell| cell.best_speedup).collect(),
            gains: (0..controllers.len()).map(|c| cells().map(|cell| cell.gains[c]).collect()).collect(),
        }
    };
    (0..costs.len())
        .map(|cost| Table { costs: costs[cost], rows: (0..sources.len()).map(|source| row(source, cost)).collect() })
        .collect()
}

/// What `job` makes of each index below `count`, in order, on all cores.
pub fn in_parallel<T: Send>(count: usize, job: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let results: Mutex<Vec<(usize, T)>> = Mutex::new(Vec::new());
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        break;
                    }
                    let result = job(index);
                    results.lock().expect("a replay panicked").push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("a replay panicked");
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// One stream, cost and seed.
struct Cell {
    best_length: usize,
    best_speedup: f64,
    gains: Vec<f64>,
}

impl Cell {
    fn play(
        stream: &Stream,
        controllers: &[ControllerSpec],
        costs: Costs,
        run: Option<NonZeroUsize>,
        seed: u64,
    ) -> Self {
        let (best_length, best) = best_fixed(stream, costs);
        let best_speedup = best.speedup();
        let replay = |spec| match run {
            Some(rounds) => replay_short(spec, rounds.get(), stream, costs, seed),
            None => replay(spec, stream, costs, seed),
        };
        let gain = |spec| replay(spec).speedup() / best_speedup - 1.0;
        Self { best_length, best_speedup, gains: controllers.iter().map(gain).collect() }
    }
}

/// Mean and standard deviation.
pub fn spread(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, variance.sqrt())
}

impl Table {
    /// The table in Markdown.
    pub fn markdown(&self, controllers: &[ControllerSpec]) -> String {
        let mut text = format!("| r = {}", self.costs.draft);
        match self.costs.rows {
            Rows::Even(0.0) => {}
            Rows::Even(row) => text += &format!(", +{} % a row", 100.0 * row),
            Rows::MemoryBound => text += ", memory-bound rows",
            Rows::SingleRowFast => text += ", one row fast",
        }
        if self.costs.aftermath > 0.0 {
            text += &format!(", +{} % after drafts", 100.0 * self.costs.aftermath);
        }
        text += " | best fixed";
        controllers.iter().for_each(|spec| text += &format!(" | {spec}"));
        text += " |\n|---|---";
        text += &"|---:".repeat(controllers.len());
        text += "|\n";
        for row in &self.rows {
            let (low, high) =
                (row.best_lengths.iter().min().unwrap_or(&0), row.best_lengths.iter().max().unwrap_or(&0));
            let lengths = if low == high { format!("{low}") } else { format!("{low}–{high}") };
            text += &format!("| {} | k = {lengths}: {:.2}×", row.stream, spread(&row.best_speedups).0);
            for gains in &row.gains {
                let (mean, deviation) = spread(gains);
                text += &format!(" | {:+.1} ± {:.1} %", 100.0 * mean, 100.0 * deviation);
            }
            text += " |\n";
        }
        text
    }
}
