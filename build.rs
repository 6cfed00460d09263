//! Compiles `cuda/*.cu`: with nvcc, where there is one, to a fatbin each; with the feature
//! `emulated-kernels`, by the host C++ compiler, to be run on the processor by tests. Compiles
//! `cuda/ranges.c`, the ranges shown by a profiler, where NVIDIA's header for them is.
//!
//! Nothing of it is needed to build: with no nvcc the program has no GPU kernels, and says so.
//! (`cuda_builder` compiles Rust crates for GPUs, not `.cu` files, so nvcc is driven from here.)
//!
//! | variable | meaning |
//! |---|---|
//! | `KERNELS` | `require`: no nvcc is an error; `skip`: nvcc is never run |
//! | `KERNEL_ARCHS` | default `80,86,89,90a,100,120`; what the last one is made from is kept as PTX too, for later GPUs |
//! | `NVCC` | path of nvcc; else `$CUDA_HOME/bin`, `.cuda` of the checkout, `PATH`, `/usr/local/cuda` |
//!
//! NVTX's header is looked for in `$CUDA_HOME/include/nvtx3` and beside the nvcc found.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs};

const ARCHS: &str = "80,86,89,90a,100,120";
/// No contraction: the bits of an expression must not depend on the kernel it is inlined into.
const FLAGS: [&str; 9] = [
    "-O3",
    "-std=c++17",
    "-fmad=false",
    "-lineinfo",
    "-Wno-deprecated-gpu-targets",
    "-Werror=all-warnings",
    "-Xfatbin",
    "-compress-all",
    "-fatbin",
];

fn main() {
    for variable in ["KERNELS", "KERNEL_ARCHS", "NVCC", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cuda");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = files_in("cuda", "cu");
    let headers: Vec<u8> = files_in("cuda/common", "cuh").iter().flat_map(|file| read(file)).collect();

    let mode = env::var("KERNELS").unwrap_or_default();
    let found = find_nvcc();
    if let Some(nvcc) = found.as_ref().filter(|nvcc| nvcc.is_file()) {
        println!("cargo:rerun-if-changed={}", nvcc.display()); // a file that is missing would do so every time
    }
    let nvcc = if mode == "skip" { None } else { found.clone() };
    let archs = env::var("KERNEL_ARCHS").unwrap_or_else(|_| ARCHS.into());
    let built = nvcc.map(|nvcc| compile_fatbins(&nvcc, &archs, &sources, &headers, &out));
    let built = match built {
        Some(Ok(built)) => Some(built),
        Some(Err(why)) if mode == "require" => panic!("{why}"),
        // An nvcc too old for these GPUs, or without its host compiler, must not keep anyone from building.
        Some(Err(why)) => {
            why.lines().for_each(|line| println!("cargo:warning={line}"));
            println!("cargo:warning=built without GPU kernels; KERNEL_ARCHS chooses architectures");
            None
        }
        None if mode == "require" => {
            panic!("KERNELS=require, and there is no nvcc: set CUDA_HOME or run .ci/cuda-toolchain")
        }
        None => None,
    };
    write_table(&out, built, &archs, &sources);
    compile_ranges(found);
    #[cfg(feature = "emulated-kernels")]
    emulated::compile(&sources);
}

fn files_in(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{folder}: {e}"));
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap_or_else(|e| panic!("{folder}: {e}")).path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    files.sort();
    files
}

fn read(file: &Path) -> Vec<u8> {
    fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}

fn find_nvcc() -> Option<PathBuf> {
    let existing = |path: PathBuf| path.is_file().then_some(path);
    if let Some(nvcc) = env::var_os("NVCC") {
        return Some(nvcc.into());
    }
    let homes = env::var_os("CUDA_HOME").map(PathBuf::from).into_iter().chain(local_toolchain());
    if let Some(nvcc) = homes.map(|home| home.join("bin/nvcc")).find_map(existing) {
        return Some(nvcc);
    }
    // Only where it is looked at: shells and editors differ in it, and each change would build again.
    println!("cargo:rerun-if-env-changed=PATH");
    let path = env::var_os("PATH").unwrap_or_default();
    let mut found = env::split_paths(&path).map(|folder| folder.join("nvcc"));
    found.find_map(existing).or_else(|| existing("/usr/local/cuda/bin/nvcc".into()))
}

/// What `.ci/cuda-toolchain` installs: `.cuda/lib/python3.*/site-packages/nvidia/cu13`.
fn local_toolchain() -> Option<PathBuf> {
    let pythons = fs::read_dir(".cuda/lib").ok()?.flatten();
    pythons.map(|python| python.path().join("site-packages/nvidia/cu13")).find(|home| home.is_dir())
}

/// One fatbin per source, several at a time. Returns the compiler's release and the files, or what it
/// complained about.
///
/// Fatbins are named by a hash of all that they are made from, in a folder that every profile and set of
/// features shares: what was compiled once is not compiled again.
fn compile_fatbins(
    nvcc: &Path,
    archs: &str,
    sources: &[PathBuf],
    headers: &[u8],
    out: &Path,
) -> Result<(String, Vec<PathBuf>), String> {
    let version = run(Command::new(nvcc).arg("--version"))?;
    let version = version.lines().find(|line| line.contains("release")).unwrap_or("unknown release").to_string();
    let mut flags: Vec<String> = FLAGS.map(String::from).into();
    let archs: Vec<&str> = archs.split(',').collect();
    for arch in &archs {
        flags.push(format!("-gencode=arch=compute_{},code=sm_{arch}", ptx_for(arch, &archs)));
    }
    if let Some(last) = archs.last() {
        let ptx = ptx_for(last, &archs);
        flags.push(format!("-gencode=arch=compute_{ptx},code=compute_{ptx}"));
    }
    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let folder = out.ancestors().nth(4).unwrap_or(out).join("kernels");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let fatbin = |source: &PathBuf| {
        let mut hash = DefaultHasher::new();
        (read(source), headers, &flags, &version).hash(&mut hash);
        let name = source.file_stem().expect("a file of the folder").to_string_lossy();
        folder.join(format!("{name}-{:016x}.fatbin", hash.finish()))
    };
    let fatbins: Vec<PathBuf> = sources.iter().map(fatbin).collect();
    let work: Vec<_> = sources.iter().zip(&fatbins).filter(|(_, fatbin)| !fatbin.is_file()).collect();
    let next = AtomicUsize::new(0);
    let compile_some = || {
        while let Some((source, fatbin)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            // Renamed when whole, so that a build that was stopped leaves nothing half made.
            let unfinished = fatbin.with_extension(std::process::id().to_string());
            run(Command::new(nvcc).args(&flags).arg(source).arg("-o").arg(&unfinished))?;
            fs::rename(&unfinished, fatbin).map_err(|e| format!("{}: {e}", fatbin.display()))?;
        }
        Ok(())
    };
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1).min(work.len());
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(compile_some)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no panic in a worker"))
    })
    .map(|()| (version, fatbins))
}

/// The architecture whose PTX `arch`'s code is made from. PTX takes longer to make than code, and is the same for all
/// architectures between which no source tells apart: `cuda/common/memory.cuh` asks for 90 and later, nothing else does
/// (`.ci/kernels` looks). PTX for `90a` is for that one alone.
fn ptx_for<'a>(arch: &'a str, archs: &[&'a str]) -> &'a str {
    let number = |arch: &str| arch.parse::<u32>().ok();
    let Some(own) = number(arch) else { return arch };
    let shared = archs.iter().filter_map(|other| Some((number(other)?, *other)));
    let oldest = shared.filter(|(other, _)| (*other >= 90) == (own >= 90)).min();
    oldest.map_or(arch, |(_, other)| other)
}

/// What a command writes, or what it complains about.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        return Ok(text(&output.stdout));
    }
    Err(format!("{command:?}:\n{}{}", text(&output.stdout), text(&output.stderr)))
}

/// `fatbins.rs`, included by `src/backend/cuda/fatbins.rs`.
fn write_table(out: &Path, built: Option<(String, Vec<PathBuf>)>, archs: &str, sources: &[PathBuf]) {
    let entry = |(source, image): (&PathBuf, &PathBuf)| {
        let name = source.file_stem().expect("a file of the folder").to_string_lossy();
        format!("    ({name:?}, {{ static I: &Aligned<[u8]> = &Aligned(*include_bytes!({image:?})); &I.0 }}),\n")
    };
    let table = match &built {
        Some((version, fatbins)) => {
            let entries: String = sources.iter().zip(fatbins).map(entry).collect();
            let archs_of: Vec<&str> = archs.split(',').collect();
            let ptx = archs_of.last().map_or("", |last| ptx_for(last, &archs_of));
            format!(
                "/// Aligned as the driver wants an image.\n#[repr(C, align(64))]\nstruct Aligned<T: ?Sized>(T);\n\
                 const TABLE: &[(&str, &[u8])] = &[\n{entries}];\n\
                 const COMPILER: Option<(&str, &str)> = Some(({version:?}, {archs:?}));\nconst KEPT_PTX: &str = {ptx:?};\n"
            )
        }
        None => "const TABLE: &[(&str, &[u8])] = &[];\nconst COMPILER: Option<(&str, &str)> = None;\n\
                 const KEPT_PTX: &str = \"\";\n"
            .to_string(),
    };
    let file = out.join("fatbins.rs");
    // Written only when changed, so that nothing is compiled again for it.
    if fs::read_to_string(&file).is_ok_and(|last| last == table) {
        return;
    }
    fs::write(&file, table).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

/// `src/profile.rs` has ranges where this sets the cfg `nvtx`, and does nothing elsewhere: a missing header
/// or C compiler must not keep anyone from building.
fn compile_ranges(nvcc: Option<PathBuf>) {
    println!("cargo:rustc-check-cfg=cfg(nvtx)");
    // <home>/bin/nvcc; a link is as good as what it points to.
    let home = |nvcc: PathBuf| Some(nvcc.parent()?.parent()?.to_path_buf());
    let nvcc = nvcc.into_iter().flat_map(|nvcc| [Some(nvcc.clone()), nvcc.canonicalize().ok()]).flatten();
    let homes = env::var_os("CUDA_HOME").map(PathBuf::from).into_iter().chain(nvcc.filter_map(home));
    let mut folders = homes.map(|home| home.join("include"));
    let Some(folder) = folders.find(|folder| folder.join("nvtx3/nvToolsExt.h").is_file()) else { return };
    let compiled =
        cc::Build::new().file("cuda/ranges.c").include(&folder).warnings(true).try_compile("profiler_ranges");
    match compiled {
        Ok(()) => {
            println!("cargo:rustc-cfg=nvtx");
            println!("cargo:rustc-env=NVTX_INCLUDE={}", folder.display());
            if env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
                println!("cargo:rustc-link-lib=dl"); // loads what records the ranges, if anything does
            }
        }
        Err(why) => println!("cargo:warning=built without ranges for profilers: {why}"),
    }
}

/// The same kernels for the processor, beside the emulator of `cuda/emu`.
#[cfg(feature = "emulated-kernels")]
mod emulated {
    use super::{PathBuf, files_in};

    pub fn compile(sources: &[PathBuf]) {
        let base = || {
            let mut build = cc::Build::new();
            build.cpp(true).std("c++17").opt_level(2).warnings(true);
            build.flag("-ffp-contract=off").flag("-fno-strict-aliasing");
            build.flag_if_supported("-Wno-psabi").flag_if_supported("-Wno-unknown-pragmas");
            build
        };
        // Kernels are found through static constructors: no object may be dropped.
        base().flag("-xc++").files(sources).link_lib_modifier("+whole-archive").compile("emulated_kernels");
        base().files(files_in("cuda/emu", "cpp")).compile("kernel_emulator");
    }
}
