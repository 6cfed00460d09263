//! What others see of the measured repetitions: a trace, and profilers.

use crate::failure::{Failure, Outcome};
use crate::report::Reporter;
use eesd::engine::Engine;
use eesd::profile;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The repetitions are being recorded, where that was asked for.
pub struct Recording {
    trace: Option<(PathBuf, File)>,
    profiler: bool,
}

impl Recording {
    /// Begins.
    ///
    /// # Errors
    /// If the trace's file cannot be made, which is better known before the measurement.
    pub fn begin(trace: Option<&Path>, profiler: bool, engine: &mut Engine, reporter: Reporter) -> Outcome<Self> {
        let open = |path: &Path| {
            let file = File::create(path).map_err(|e| Failure::file(path, "written", &e))?;
            Ok::<_, Failure>((path.to_owned(), file))
        };
        let trace = trace.map(open).transpose()?;
        if trace.is_some() {
            profile::start_trace();
        }
        if profiler {
            if !engine.set_profiling(true)? {
                reporter.note("--profile changes nothing on the processor: `perf record` or --trace shows its passes");
            }
            if !profile::AVAILABLE {
                reporter.note("this build has no NVTX ranges: NVIDIA's header was not found beside nvcc");
            }
        }
        Ok(Self { trace, profiler })
    }

    /// Ends, and writes the trace.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn end(self, engine: &mut Engine, reporter: Reporter) -> Outcome {
        if self.profiler {
            engine.set_profiling(false)?;
        }
        let Some((path, mut file)) = self.trace else { return Ok(()) };
        let trace = profile::end_trace();
        file.write_all(trace.to_chrome_json().as_bytes()).map_err(|e| Failure::file(&path, "written", &e))?;
        let dropped = match trace.dropped() {
            0 => String::new(),
            dropped => format!("; {dropped} more were too many to keep: use fewer --prompts or --repetitions"),
        };
        reporter.note(&format!("trace of {} ranges written to {}{dropped}", trace.len(), path.display()));
        Ok(())
    }
}
