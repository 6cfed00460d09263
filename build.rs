//! Compiles `cuda/*.cu`: with nvcc, where there is one, to a fatbin each; with the feature
//! `emulated-kernels`, by the host C++ compiler, to be run on the processor by tests.
//!
//! Nothing of it is needed to build: with no nvcc the program has no GPU kernels, and says so.
//! (Crates that build Rust for GPUs do not compile `.cu` files, so nvcc is driven from here.)
//!
//! | variable | meaning |
//! |---|---|
//! | `KERNELS` | `require`: no nvcc is an error; `skip`: nvcc is never run |
//! | `KERNEL_ARCHS` | default `80,86,89,90a,100,120`; the last one is kept as PTX too, for later GPUs |
//! | `NVCC` | path of nvcc; else `$CUDA_HOME/bin`, `.cuda` of the checkout, `PATH`, `/usr/local/cuda` |
//! | `KERNEL_SANITIZER` | emulated kernels only: `address` (and undefined behaviour) or `race` |

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
    for variable in ["KERNELS", "KERNEL_ARCHS", "KERNEL_SANITIZER", "NVCC", "CUDA_HOME"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cuda");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let sources = files_in("cuda", "cu");
    let headers: Vec<u8> = files_in("cuda/common", "cuh").iter().flat_map(|file| read(file)).collect();

    let mode = env::var("KERNELS").unwrap_or_default();
    let nvcc = if mode == "skip" { None } else { find_nvcc() };
    let archs = env::var("KERNEL_ARCHS").unwrap_or_else(|_| ARCHS.into());
    let built_with = match &nvcc {
        Some(nvcc) => Some(compile_fatbins(nvcc, &archs, &sources, &headers, &out)),
        None if mode == "require" => {
            panic!("KERNELS=require, and there is no nvcc: set CUDA_HOME or run .ci/cuda-toolchain")
        }
        None => None,
    };
    write_table(&out, built_with.as_deref(), &archs, &sources);
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
    homes
        .map(|home| home.join("bin/nvcc"))
        .find_map(existing)
        .or_else(|| env::split_paths(&env::var_os("PATH")?).map(|folder| folder.join("nvcc")).find_map(existing))
        .or_else(|| existing("/usr/local/cuda/bin/nvcc".into()))
}

/// What `.ci/cuda-toolchain` installs: `.cuda/lib/python3.*/site-packages/nvidia/cu13`.
fn local_toolchain() -> Option<PathBuf> {
    let pythons = fs::read_dir(".cuda/lib").ok()?.flatten();
    pythons.map(|python| python.path().join("site-packages/nvidia/cu13")).find(|home| home.is_dir())
}

/// One fatbin per source, several at a time; a source whose text, headers, flags and compiler are
/// those of the last time is left alone. Returns the compiler's version.
fn compile_fatbins(nvcc: &Path, archs: &str, sources: &[PathBuf], headers: &[u8], out: &Path) -> String {
    let version = Command::new(nvcc).arg("--version").output();
    let version = version.unwrap_or_else(|e| panic!("{}: {e}", nvcc.display())).stdout;
    let version = String::from_utf8_lossy(&version);
    let version = version.lines().find(|line| line.contains("release")).unwrap_or("unknown release").to_string();
    let mut flags: Vec<String> = FLAGS.map(String::from).into();
    for arch in archs.split(',') {
        flags.push(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    if let Some(last) = archs.split(',').next_back() {
        flags.push(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    }
    let next = AtomicUsize::new(0);
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1).min(sources.len());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                while let Some(source) = sources.get(next.fetch_add(1, Ordering::Relaxed)) {
                    compile_fatbin(nvcc, &flags, source, &(headers, version.as_str()), out);
                }
            });
        }
    });
    version
}

fn compile_fatbin(nvcc: &Path, flags: &[String], source: &Path, environment: &impl Hash, out: &Path) {
    let mut hash = DefaultHasher::new();
    (read(source), flags, nvcc).hash(&mut hash);
    environment.hash(&mut hash);
    let key = format!("{:016x}", hash.finish());
    let fatbin = fatbin_of(source, out);
    let stamp = fatbin.with_extension("key");
    if fatbin.is_file() && fs::read_to_string(&stamp).is_ok_and(|last| last == key) {
        return;
    }
    let run = Command::new(nvcc).args(flags).arg(source).arg("-o").arg(&fatbin).output();
    let run = run.unwrap_or_else(|e| panic!("{}: {e}", nvcc.display()));
    assert!(run.status.success(), "nvcc {}:\n{}", source.display(), String::from_utf8_lossy(&run.stderr));
    fs::write(&stamp, key).unwrap_or_else(|e| panic!("{}: {e}", stamp.display()));
}

fn fatbin_of(source: &Path, out: &Path) -> PathBuf {
    out.join(source.file_name().expect("a file of the folder")).with_extension("fatbin")
}

/// `fatbins.rs`, included by `src/backend/cuda/fatbins.rs`.
fn write_table(out: &Path, built_with: Option<&str>, archs: &str, sources: &[PathBuf]) {
    let entry = |source: &PathBuf| {
        let name = source.file_stem().expect("a file of the folder").to_string_lossy();
        let image = fatbin_of(source, out);
        format!("    ({name:?}, {{ static I: &Aligned<[u8]> = &Aligned(*include_bytes!({image:?})); &I.0 }}),\n")
    };
    let table = match built_with {
        Some(version) => {
            let entries: String = sources.iter().map(entry).collect();
            format!(
                "/// Aligned as the driver wants an image.\n#[repr(C, align(64))]\nstruct Aligned<T: ?Sized>(T);\n\
                 const TABLE: &[(&str, &[u8])] = &[\n{entries}];\n\
                 const COMPILER: Option<(&str, &str)> = Some(({version:?}, {archs:?}));\n"
            )
        }
        None => "const TABLE: &[(&str, &[u8])] = &[];\nconst COMPILER: Option<(&str, &str)> = None;\n".to_string(),
    };
    let file = out.join("fatbins.rs");
    // Written only when changed, so that nothing is compiled again for it.
    if fs::read_to_string(&file).is_ok_and(|last| last == table) {
        return;
    }
    fs::write(&file, table).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
}

/// The same kernels for the processor, beside the emulator of `cuda/emu`.
#[cfg(feature = "emulated-kernels")]
mod emulated {
    use super::{PathBuf, env, files_in};

    pub fn compile(sources: &[PathBuf]) {
        let sanitizer = env::var("KERNEL_SANITIZER").unwrap_or_default();
        let base = || {
            let mut build = cc::Build::new();
            build.cpp(true).std("c++17").opt_level(2).debug(true).warnings(true);
            build
                .flag("-ffp-contract=off")
                .flag("-fno-strict-aliasing")
                .flag_if_supported("-Wno-psabi")
                .flag_if_supported("-Wno-unknown-pragmas");
            if sanitizer == "address" {
                build.opt_level(1).flag("-fsanitize=address,undefined").flag("-fno-sanitize-recover=undefined");
            }
            build
        };
        let mut kernels = base();
        kernels.flag("-xc++").files(sources);
        if sanitizer == "race" {
            kernels.flag("-fsanitize=thread");
        }
        // Kernels are found through static constructors: no object may be dropped.
        kernels.link_lib_modifier("+whole-archive").compile("emulated_kernels");
        let mut runtime = base();
        runtime.files(files_in("cuda/emu", "cpp"));
        if sanitizer == "race" {
            runtime.define("EMU_RACE_HOOKS", None);
        }
        let compiler = runtime.get_compiler();
        runtime.compile("kernel_emulator");
        if sanitizer == "address" {
            link_address_sanitizer(compiler.path());
        }
        println!("cargo:rustc-env=KERNEL_SANITIZER={sanitizer}");
    }

    /// rustc links with `-nodefaultlibs`: the sanitizers' libraries are named one by one, and whole, so
    /// that their malloc serves Rust's buffers too and these get red zones.
    fn link_address_sanitizer(compiler: &std::path::Path) {
        let archive = |name: &str| {
            let found = std::process::Command::new(compiler).arg(format!("-print-file-name={name}")).output();
            let found = found.unwrap_or_else(|e| panic!("{}: {e}", compiler.display()));
            String::from_utf8_lossy(&found.stdout).trim().to_string()
        };
        let (address, undefined) = (archive("libasan.a"), archive("libubsan.a"));
        let whole = ["-Wl,--whole-archive", &address, "-Wl,--no-whole-archive", &undefined];
        for argument in whole.into_iter().chain(["-Wl,--export-dynamic", "-lstdc++", "-lm"]) {
            println!("cargo:rustc-link-arg={argument}");
        }
    }
}
