//! `eesd-run doctor`: what this machine has, how fast its memory is, and what to do about it.

use crate::args::DoctorArgs;
use crate::failure::Outcome;
use crate::output::Output;
use crate::report;
use eesd::backend::cpu::probe::Probe;
use eesd::backend::cpu::{Simd, system};
use eesd::backend::cuda::gpu::{self, GpuInfo, Kernels, LEAST_CAPABILITY};
use eesd::backend::cuda::{BUILT_WITH, FATBINS};
use eesd::load::Checkpoint;
use serde::Serialize;
use std::fs;

/// Buffer of the bandwidth measurement: larger than any cache.
const BUFFER_BYTES: u64 = 512 << 20;
/// Steps of the arithmetic measurement: some hundredths of a second.
const MULTIPLY_STEPS: usize = 5_000_000;

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    found: String,
    /// What to do; `None`: all is well.
    advice: Option<String>,
}

impl Finding {
    fn new(what: &'static str, found: impl Into<String>) -> Self {
        Self { what, found: found.into(), advice: None }
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// Looks and reports.
pub fn run(args: DoctorArgs) -> Outcome {
    let mut findings = vec![system(), processor(), simd(), memory(), speed()];
    findings.extend(cuda());
    findings.extend([kernels(), build(), bundled()]);
    let mut output = Output::stdout();
    if args.json {
        return output.json(&findings);
    }
    let mut text = String::new();
    for finding in &findings {
        text += &format!("{:<18} {}\n", finding.what, finding.found);
        if let Some(advice) = &finding.advice {
            text += &format!("{:<18} -> {advice}\n", "");
        }
    }
    output.text(&text)
}

fn system() -> Finding {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or(std::env::consts::OS);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let found = [name.trim_matches('"'), kernel.trim(), std::env::consts::ARCH];
    Finding::new("system", found.iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>().join(", "))
}

fn processor() -> Finding {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown model");
    let found = format!("{}, {} threads for this process", model.trim_start_matches([' ', '\t', ':']), threads());
    Finding::new("processor", found)
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn simd() -> Finding {
    let simd = Simd::detect();
    let finding = Finding::new("vector instructions", simd.to_string());
    match simd {
        Simd::Avx512Vnni => finding,
        Simd::Avx512 => finding.advise("AVX512-VNNI would be used for quantised weights where the processor has it"),
        Simd::AvxVnni | Simd::Avx2 => {
            finding.advise("AVX-512 would be used where the processor has it; results are the same")
        }
        Simd::Portable => finding.advise("no AVX2 found: plain Rust kernels run, correct but several times slower"),
    }
}

fn memory() -> Finding {
    match (system::total(), system::free()) {
        (Some(total), Some(free)) => {
            let finding =
                Finding::new("memory", format!("{}, {} available", report::bytes(total), report::bytes(free)));
            if free < 4_000_000_000 {
                return finding.advise("small models only: `eesd-run inspect -m DIR` says what a model takes");
            }
            finding
        }
        _ => Finding::new("memory", "unknown on this system"),
    }
}

/// The best of three readings and multiplications, on the threads that a model would run on.
fn speed() -> Finding {
    let bytes = system::free().map_or(BUFFER_BYTES, |free| BUFFER_BYTES.min(free / 4));
    let mut probe = match Probe::new(threads(), bytes as usize) {
        Ok(probe) => probe,
        Err(error) => return Finding::new("speed", "not measured").advise(error.to_string()),
    };
    let read = (0..3).map(|_| probe.read()).fold(0.0, f64::max);
    let multiply = (0..3).map(|_| probe.multiply_add(MULTIPLY_STEPS)).fold(0.0, f64::max);
    let found =
        format!("{:.1} GB/s read from memory, {:.0} GFLOP/s, {} threads", read / 1e9, multiply / 1e9, threads());
    Finding::new("speed", found).advise(format!(
        "plain decoding of a model with 1 GB of weights can reach {:.0} tok/s here; drafts go past that",
        read / 1e9
    ))
}

/// The driver, then each GPU.
fn cuda() -> Vec<Finding> {
    // The kernel module's own version, as people know it: 580.65.06.
    let module = fs::read_to_string("/sys/module/nvidia/version").unwrap_or_default();
    let module = module.trim();
    let gpus = match gpu::list() {
        Ok(gpus) => gpus,
        Err(why) if module.is_empty() => return vec![Finding::new("CUDA driver", why).advise("the processor is used")],
        Err(why) => {
            let advice = "the kernel module is loaded, so the driver's libraries are missing or do not match it";
            return vec![Finding::new("CUDA driver", format!("{module}, but {why}")).advise(advice)];
        }
    };
    let driver = gpus.first().map_or("no GPU".into(), |gpu| format!("CUDA {}.{}", gpu.driver.0, gpu.driver.1));
    let found = if module.is_empty() { driver } else { format!("{driver}, {module}") };
    let mut findings =
        vec![Finding::new("CUDA driver", found).advise("--device cuda uses a GPU; without it the processor is used")];
    findings.extend(gpus.iter().map(gpu));
    findings
}

fn gpu(gpu: &GpuInfo) -> Finding {
    let (major, minor) = gpu.capability;
    let arch = format!("{major}{minor}");
    let found = format!("cuda:{}, {}, sm_{arch}, {}", gpu.ordinal, gpu.name, report::bytes(gpu.memory));
    if gpu.capability < LEAST_CAPABILITY {
        let (least, least_minor) = LEAST_CAPABILITY;
        return Finding::new("GPU", found).advise(format!("too old: {least}.{least_minor} or later is needed"));
    }
    let by_driver =
        format!("the driver compiles the kernels when it is first used; KERNEL_ARCHS={arch} does at build time");
    match (gpu.kernels(), BUILT_WITH) {
        (Kernels::Compiled, _) => Finding::new("GPU", found + ", covered by this build's kernels"),
        (Kernels::CompiledByDriver, _) => Finding::new("GPU", found + ", covered by PTX").advise(by_driver),
        (Kernels::None, None) => Finding::new("GPU", found),
        (Kernels::None, Some(_)) => Finding::new("GPU", found + ", not covered by this build's kernels")
            .advise(format!("build with KERNEL_ARCHS={arch}")),
    }
}

fn kernels() -> Finding {
    let Some((compiler, archs)) = BUILT_WITH else {
        let finding = Finding::new("CUDA kernels", "none: this program was built without nvcc");
        // Without a GPU there is nothing to be done about it.
        return match gpu::list() {
            Ok(_) => finding.advise("build where nvcc is found (NVCC, CUDA_HOME, PATH, or .ci/cuda-toolchain)"),
            Err(_) => finding,
        };
    };
    let finding = Finding::new("CUDA kernels", format!("{} files for {archs}, by {compiler}", FATBINS.len()));
    let driver = gpu::list().ok().and_then(|gpus| Some(gpus.first()?.driver));
    match (gpu::compiler_release(), driver) {
        (Some((made_by, _)), Some((driver, _))) if made_by > driver => finding.advise(format!(
            "made by CUDA {made_by} for a driver of CUDA {driver}: update the driver, or build with an older nvcc"
        )),
        _ => finding,
    }
}

fn build() -> Finding {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    let features = if cfg!(feature = "bundled-model") { "bundled-model" } else { "no features" };
    let found = format!("eesd {} ({profile}, {features}, backends: cpu)", env!("CARGO_PKG_VERSION"));
    let finding = Finding::new("build", found);
    if cfg!(debug_assertions) {
        finding.advise("a debug build is many times slower: build with --release")
    } else {
        finding
    }
}

fn bundled() -> Finding {
    match Checkpoint::bundled() {
        Ok(model) => {
            let blocks = model.exit_blocks().map_or(0, |blocks| blocks.len());
            let size = report::bytes(model.bytes());
            Finding::new("bundled model", format!("{}, {size}, {blocks} exit blocks", model.name()))
        }
        Err(error) => Finding::new("bundled model", error.to_string()).advise("give a model folder with -m DIR"),
    }
}
