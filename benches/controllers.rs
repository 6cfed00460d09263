//! Compares the controllers on simulated streams: `cargo bench --bench controllers`.
//!
//! Prints one Markdown table per cost ratio: each controller's speed over that of the fixed length
//! that would have been best in hindsight, mean and standard deviation over seeds. `--plot FILE`
//! draws it as SVG. `--batches` instead prints that of `goodput-ts` in rounds of several sequences, and `--requests` those of
//! many short requests while acceptance and costs change, and `--sources` those of an exit block beside lookups.

#[path = "simulator/batch_table.rs"]
mod batch_table;
#[path = "simulator/cascade.rs"]
mod cascade;
#[path = "simulator/picture.rs"]
mod picture;
#[path = "simulator/recorded_table.rs"]
mod recorded_table;
#[path = "simulator/request_table.rs"]
mod request_table;
mod simulator;
#[path = "simulator/source_table.rs"]
mod source_table;
#[path = "simulator/table.rs"]
mod table;

use clap::Parser;
use eesd::control::ControllerSpec;
use simulator::{Costs, Rows};
use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// Compares controllers on simulated streams.
#[derive(Parser)]
struct Args {
    /// Seeds per stream.
    #[arg(long, default_value_t = 5)]
    seeds: u64,
    /// The first seed; constants were tuned on seeds below 1000.
    #[arg(long, default_value_t = 1000)]
    first_seed: u64,
    /// Cost ratios: one draft step over one plain round.
    #[arg(long, value_delimiter = ',', default_value = "0.05,0.11,0.2,0.4")]
    ratios: Vec<f64>,
    /// Cost of each verified row beyond the first, in plain rounds.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    row: f64,
    /// Rows cost what they do on a CPU that reading the weights keeps busy: the first next to nothing.
    #[arg(long, conflicts_with = "row")]
    memory_bound: bool,
    /// Rows cost what they do with a model that fits in the caches: one is fast, a second costs as much again.
    #[arg(long, conflicts_with_all = ["row", "memory_bound"])]
    single_row_fast: bool,
    /// What a plain round soon after drafts takes more at first, in plain rounds.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    aftermath: f64,
    /// Jitter of measured times; above 0, one time in a hundred is also ten times too long.
    #[arg(long, default_value_t = 0.0, value_parser = not_negative)]
    jitter: f64,
    /// Rounds after which the machine falls to half its speed, and after as many more is back; 0: never.
    #[arg(long, default_value_t = 0)]
    slow_every: usize,
    /// Rounds of a run; each starts from nothing. One run a stream if left out.
    #[arg(long)]
    run: Option<NonZeroUsize>,
    /// Only streams whose name contains this.
    #[arg(long, default_value = "")]
    stream: String,
    /// Controllers to compare.
    #[arg(
        long,
        value_delimiter = ';',
        default_value = "off;threshold:0.6;beta-ts;beta-ts:decay=0.9;calibration-ts;goodput-ts"
    )]
    controllers: Vec<ControllerSpec>,
    /// Draw the tables, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Rounds of several sequences instead, by batch size, on three kinds of machines.
    #[arg(long)]
    batches: bool,
    /// Many short requests instead, while acceptance and costs change; of `--stream` only changes whose name contains it.
    #[arg(long, conflicts_with = "batches")]
    requests: bool,
    /// An exit block beside lookups instead.
    #[arg(long, conflicts_with_all = ["batches", "requests"])]
    sources: bool,
    /// Lookups in these recorded texts instead, by batch size, on several machines.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["batches", "requests", "sources"])]
    lookups: Option<PathBuf>,
    /// The cascade instead, and the choice among sources without it, in these recorded texts, which have an exit block's drafts.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["batches", "requests", "sources", "lookups"])]
    cascade: Option<PathBuf>,
    /// Exit blocks beside the lookups in these recorded texts instead, recorded ones and made-up ones.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["batches", "requests", "sources", "lookups", "cascade"])]
    beside: Option<PathBuf>,
    /// With `--batches`: plain rounds that a batch's texts are long enough for.
    #[arg(long, default_value_t = 3000)]
    rounds: usize,
    /// With `--batches`: no rounds are played to be timed before the first one.
    #[arg(long)]
    unprofiled: bool,
    /// What cargo bench passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn not_negative(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "expected a number, 0 or more".to_owned())
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let rows = match (args.memory_bound, args.single_row_fast) {
        (true, _) => Rows::MemoryBound,
        (_, true) => Rows::SingleRowFast,
        _ => Rows::Even(args.row),
    };
    let (jitter, slow_every, aftermath) = (args.jitter, args.slow_every, args.aftermath);
    let cost = |&draft: &f64| Costs { jitter, slow_every, aftermath, ..Costs::exact(draft, rows) };
    let costs: Vec<Costs> = args.ratios.iter().map(cost).collect();
    let seeds: Vec<u64> = (args.first_seed..args.first_seed + args.seeds).collect();
    if args.batches {
        println!("{}", batch_table::markdown(args.rounds, !args.unprofiled, &seeds, &args.stream));
        println!("{}", batch_table::decision_times(args.rounds, args.first_seed));
        return Ok(());
    }
    if args.sources {
        costs.iter().for_each(|&costs| println!("{}", source_table::markdown(costs, &seeds)));
        return Ok(());
    }
    if let Some(path) = &args.lookups {
        let texts = simulator::sources::recorded(path, false)?;
        println!("{}", recorded_table::markdown(&texts, &seeds));
        return Ok(());
    }
    if let Some(path) = &args.cascade {
        let texts = simulator::sources::recorded(path, true)?;
        println!("{}", recorded_table::cascade(&texts, &seeds));
        return Ok(());
    }
    if let Some(path) = &args.beside {
        let texts = simulator::sources::recorded(path, false)?;
        println!("{}", recorded_table::beside(&texts, &seeds));
        return Ok(());
    }
    if args.requests {
        println!("{}", request_table::markdown(&args.controllers, &seeds, &args.stream));
        return Ok(());
    }
    let mut sources = table::made_up();
    sources.extend(table::traces()?);
    sources.retain(|(name, _)| name.contains(&args.stream));
    let tables = table::play(&sources, &args.controllers, &costs, args.run, &seeds);
    for table in &tables {
        println!("{}", table.markdown(&args.controllers));
    }
    if let Some(path) = &args.plot {
        picture::draw(path, &tables, &args.controllers)?;
    }
    Ok(())
}
