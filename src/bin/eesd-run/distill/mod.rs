//! `eesd-run distill`: trains exit blocks by self-distillation (EESD, Findings of ACL 2024).
//!
//! ```text
//! prompts -> the model's answers -> documents -> training -> exit-N.safetensors
//! ```
//!
//! [`data`] brings the documents together; [`training`] trains one block, from its [`start`], on a [`student`] of the
//! machine's kind; [`sweep`] several, which it measures and compares; [`reach`] says what they reach, [`plot`] draws what
//! happened.

mod data;
mod plot;
mod reach;
mod start;
mod student;
mod sweep;
mod training;

use crate::args::{DistillArgs, Store};
use crate::failure::{Failure, Outcome};
use crate::files;
use crate::interrupt;
use crate::report::Reporter;
use crate::settings::Model;
use eesd::distill::snapshot_path;
use eesd::model::Encoder;
use std::path::{Path, PathBuf};
use training::Run;

/// Reads, trains, reports.
pub fn run(args: DistillArgs) -> Outcome {
    let reporter = Reporter::new(args.quiet);
    let read = args.data.prompts.iter().map(|path| ("--prompts", path.as_path()));
    let read: Vec<_> = read.chain(args.data.corpus.iter().map(|path| ("--corpus", path.as_path()))).collect();
    files::all_different(&read, &args.plot.iter().map(|path| ("--plot", path.as_path())).collect::<Vec<_>>())?;
    let model = Model::open(&args.model, reporter)?.with_template(&args.data.template)?;
    let output = output(&args, &model)?;
    let layers = layers(&args, &model)?;
    refuse_in_vain(&args, &model, &output, &layers, reporter)?;
    interrupt::listen();
    let Some(dataset) = data::gather(&args, &model, &output, reporter)? else { return Ok(()) };
    let run = Run { args: &args, model: &model, dataset: &dataset, output: &output, reporter };
    let mut blocks = Vec::new();
    for n in layers {
        match run.train(n)? {
            Some(block) => blocks.push(block),
            None => return Ok(()),
        }
    }
    let speeds = if args.block.sweep_exit.is_some() { sweep::compare(&run, &blocks)? } else { Vec::new() };
    if let Some(path) = &args.plot {
        let svg = plot::draw(model.checkpoint.name(), &blocks, &speeds)?;
        std::fs::write(path, svg).map_err(|e| Failure::file(path, "written", &e))?;
        reporter.note(&format!("plot written to {}", path.display()));
    }
    Ok(())
}

/// Where files go: the folder asked for, or the model's.
fn output(args: &DistillArgs, model: &Model) -> Outcome<PathBuf> {
    let folder = args.output.clone().or_else(|| model.folder.clone());
    let folder = folder.ok_or_else(|| {
        Failure::usage("--output DIR is needed with the model in the binary: it has no folder to write to")
    })?;
    std::fs::create_dir_all(&folder).map_err(|e| Failure::file(&folder, "made", &e))?;
    Ok(folder)
}

/// What would make hours of work end in an error, while it costs nothing yet: a start that does not fit, a block of somebody
/// else's in the way, or no folder for the picture.
fn refuse_in_vain(args: &DistillArgs, model: &Model, output: &Path, layers: &[usize], reporter: Reporter) -> Outcome {
    let geometry = model.checkpoint.geometry();
    let widths = [geometry.hidden_size, geometry.q_size(), geometry.intermediate_size];
    if let Some(width) = widths.into_iter().find(|&width| !Encoder::Q8_0.fits(width))
        && args.block.store == Some(Store::Q8)
    {
        let found = format!("--store q8: the model has rows of {width} numbers");
        return Err(Failure::usage(format!("{found} (expected multiples of {})", Encoder::Q8_0.blocks().len())));
    }
    layers.iter().try_for_each(|&n| start::with_start(&args.block, model, n, reporter, |_| Ok(())))?;
    if let Some(path) = &args.plot
        && !path.parent().is_some_and(|folder| folder.as_os_str().is_empty() || folder.is_dir())
    {
        let text =
            format!("--plot: {} is in no folder that exists (expected a file that can be written)", path.display());
        return Err(Failure::usage(text));
    }
    if args.overwrite || args.training.steps == Some(0) {
        return Ok(());
    }
    let in_the_way = |&&n: &&usize| block_path(output, n).exists() && !snapshot_path(output, n).exists();
    layers.iter().find(in_the_way).map_or(Ok(()), |&n| Err(there_already(&block_path(output, n))))
}

/// Where the block after `n` layers goes.
fn block_path(output: &Path, n: usize) -> PathBuf {
    output.join(format!("exit-{n}.safetensors"))
}

fn there_already(path: &Path) -> Failure {
    let ways = "--overwrite replaces it, --output DIR writes elsewhere";
    Failure::failed(format!("{}: there already; {ways}", path.display()))
}

/// The exit layers to train blocks for.
fn layers(args: &DistillArgs, model: &Model) -> Outcome<Vec<usize>> {
    let most = model.checkpoint.geometry().layers - 1;
    let (first, last) = args.block.sweep_exit.or(args.block.exit_layer.map(|n| (n, n))).unwrap_or((1, 1));
    if last > most {
        let flag = if args.block.sweep_exit.is_some() { "--sweep-exit" } else { "--exit-layer" };
        return Err(Failure::usage(format!(
            "{flag}: {last} (expected at most {most}: the model has {} layers)",
            most + 1
        )));
    }
    Ok((first..=last).collect())
}
