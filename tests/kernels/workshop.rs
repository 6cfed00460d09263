//! Kernels compiled apart from this program, instrumented or changed, and tests run on them in a process of
//! their own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

const SANITIZERS: [&str; 3] = ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"];

/// What kernels are run under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Several orders of threads: wrong values, deadlocks, lanes that part ways.
    Orders,
    /// The race check of shared memory.
    Races,
    /// Address and undefined-behaviour sanitizers, in global and shared memory.
    Addresses,
}

/// Where shared libraries of kernels are made: the emulator, compiled once for each check.
pub struct Workshop {
    folder: tempfile::TempDir,
    emulators: Vec<(Check, PathBuf)>,
}

impl Workshop {
    pub fn new(checks: &[Check]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let emulator = |&check: &Check| {
            let objects = folder.path().join(format!("{check:?}"));
            std::fs::create_dir(&objects).unwrap();
            let sources = files(Path::new("cuda/emu"), "cpp").into_iter().map(|path| path.canonicalize().unwrap());
            // Kernels alone are instrumented: the emulator would only be slower.
            let told = if check == Check::Addresses { "-DEMU_ASAN" } else { "-DEMU_RACE_HOOKS" };
            finish(compiler().current_dir(&objects).args(["-O2", told, "-c"]).args(sources));
            (check, objects)
        };
        let emulators = checks.iter().map(emulator).collect();
        Self { folder, emulators }
    }

    /// A copy of `cuda/` to work on.
    pub fn copy(&self, label: &str) -> PathBuf {
        let cuda = self.folder.path().join(label);
        copy_folder(Path::new("cuda"), &cuda);
        cuda
    }

    /// Compiles one file of kernels into an object beside it.
    pub fn compile(&self, check: Check, kernels: &Path) {
        let mut command = compiler();
        match check {
            Check::Orders => {}
            // The instrument's own library is not linked: its calls go to the emulator.
            Check::Races => drop(command.arg("-fsanitize=thread")),
            Check::Addresses => drop(command.args(SANITIZERS)),
        }
        finish(command.args(["-O1", "-c"]).arg(kernels).arg("-o").arg(kernels.with_extension("o")));
    }

    /// Links all objects of a copy and the emulator into a shared library.
    pub fn link(&self, check: Check, cuda: &Path) -> PathBuf {
        let library = cuda.join("kernels.so");
        let emulator = &self.emulators.iter().find(|emulator| emulator.0 == check).unwrap().1;
        let mut command = Command::new(compiler_name());
        if check == Check::Addresses {
            command.args(SANITIZERS);
        }
        command.args(files(cuda, "o")).args(files(emulator, "o"));
        finish(command.args(["-shared", "-Wl,-Bsymbolic", "-o"]).arg(&library));
        library
    }
}

/// Does jobs with two threads, each taking the first that is left; returns what came of them, in no order.
pub fn share<J: Sync, T: Send>(jobs: &[J], work: impl Fn(&J) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let take = || {
        let mine = || jobs.get(next.fetch_add(1, Ordering::Relaxed));
        std::iter::from_fn(mine).map(&work).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(take)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    })
}

/// Runs tests of this program on a library of kernels.
pub fn run_tests(library: &Path, check: Check, arguments: &[&str]) -> Output {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(arguments).env("EMULATOR_LIBRARY", library).env("RUST_BACKTRACE", "0").env_remove("EESD_TEST_DEVICE");
    match check {
        Check::Orders => {}
        Check::Races => drop(child.env("EMULATOR_RACE", "1")),
        Check::Addresses => drop(child.env("LD_PRELOAD", sanitizer()).env("ASAN_OPTIONS", "detect_leaks=0")),
    }
    child.output().unwrap()
}

/// All that a process wrote.
pub fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Replaces the one occurrence of `from` in a file.
pub fn replace(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{from:?} in {}", file.display());
    std::fs::write(file, text.replace(from, to)).unwrap();
}

/// Files of a folder by extension, sorted.
pub fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

fn compiler_name() -> std::ffi::OsString {
    std::env::var_os("CXX").unwrap_or("c++".into())
}

/// Of what is in a shared library; its thread-local variables are few enough to be reached as a program's own.
fn compiler() -> Command {
    let mut command = Command::new(compiler_name());
    command.args(["-std=c++17", "-fPIC", "-ftls-model=initial-exec", "-w", "-ffp-contract=off"]);
    command.args(["-fno-strict-aliasing", "-xc++"]);
    command
}

fn finish(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn sanitizer() -> PathBuf {
    let output = Command::new(compiler_name()).arg("-print-file-name=libasan.so").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().into()
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
