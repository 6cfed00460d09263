//! Compares the controllers on simulated streams: `cargo bench --bench controllers`.
//!
//! Prints one Markdown table per cost ratio: each controller's speed over that of the fixed length
//! that would have been best in hindsight, mean and standard deviation over seeds. `--plot FILE`
//! draws it as SVG.

#[path = "simulator/picture.rs"]
mod picture;
mod simulator;
#[path = "simulator/table.rs"]
mod table;

use clap::Parser;
use eesd::control::ControllerSpec;
use simulator::Costs;
use std::error::Error;
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
    #[arg(long, default_value_t = 0.0)]
    row: f64,
    /// Jitter of measured times; above 0, one time in a hundred is also ten times too long.
    #[arg(long, default_value_t = 0.0)]
    jitter: f64,
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
    /// What cargo bench passes.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let costs: Vec<Costs> =
        args.ratios.iter().map(|&draft| Costs { draft, row: args.row, jitter: args.jitter }).collect();
    let seeds: Vec<u64> = (args.first_seed..args.first_seed + args.seeds).collect();
    let mut sources = table::made_up();
    sources.extend(table::traces()?);
    sources.retain(|(name, _)| name.contains(&args.stream));
    let tables = table::play(&sources, &args.controllers, &costs, &seeds);
    for table in &tables {
        println!("{}", table.markdown(&args.controllers));
    }
    if let Some(path) = &args.plot {
        picture::draw(path, &tables, &args.controllers)?;
    }
    Ok(())
}
