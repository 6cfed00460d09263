//! `eesd-run loop-probe NUMBER`: the process that may crash in another's place
//! ([`loop_probe`]).

use crate::args::LoopProbeArgs;
use crate::failure::{Failure, Outcome};
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::cuda::loop_probe;
use std::io;
use std::sync::Arc;

/// Tries loops on the GPU and says how that went.
///
/// # Errors
/// If it cannot be said.
pub fn run(args: LoopProbeArgs) -> Outcome {
    let told = loop_probe::answer(Gpu::open(args.number).map(Arc::new), &mut io::stdout().lock());
    told.map_err(|error| Failure::failed(format!("standard output: {error}")))
}
