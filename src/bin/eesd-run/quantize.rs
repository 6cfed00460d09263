//! `eesd-run quantize`: a model as one GGUF file of quantised matrices.

use crate::args::{ModelArgs, QuantizeArgs};
use crate::failure::{Failure, Outcome};
use crate::files::{self, Named};
use crate::interrupt;
use crate::report::{Reporter, bytes};
use crate::settings::Model;
use eesd::load::export;
use std::num::NonZeroUsize;
use std::ops::ControlFlow;
use std::path::Path;

/// Opens, quantises, writes.
pub fn run(args: QuantizeArgs) -> Outcome {
    let reporter = Reporter::new(args.quiet);
    let model = Model::open(&ModelArgs { model: args.model, quantize: None }, reporter)?;
    spare_model(&args.output, &model)?;
    if args.output.exists() && !args.overwrite {
        let ways = "--overwrite replaces it, --output FILE writes elsewhere";
        return Err(Failure::failed(format!("{}: there already; {ways}", args.output.display())));
    }
    let threads = args.threads.and_then(NonZeroUsize::new).or_else(|| std::thread::available_parallelism().ok());
    interrupt::listen();
    let progress = reporter.progress(0, "quantising");
    let threads = threads.unwrap_or(NonZeroUsize::MIN);
    let written = export::quantise(&model.checkpoint, &args.output, args.kind.into(), threads, &mut |done, all| {
        progress.set(done, all);
        if interrupt::pressed() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    progress.end();
    let written = written?;
    written.notes.iter().for_each(|note| reporter.note(note));
    let before = bytes(model.checkpoint.bytes());
    reporter.note(&format!("{}: written, {} of {before}", args.output.display(), bytes(written.bytes)));
    Ok(())
}

/// Refuses to write over a file of the model, which is read while the other is written.
fn spare_model(output: &Path, model: &Model) -> Outcome {
    let file = model.path.clone().filter(|path| path.is_file());
    let files = file
        .map_or_else(|| files::of_model(model.folder.as_deref(), model.checkpoint.file().is_some()), |file| vec![file]);
    let read: Vec<Named<'_>> = files.iter().map(|path| ("--model", path.as_path())).collect();
    files::all_different(&read, &[("--output", output)])
}
