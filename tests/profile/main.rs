//! The engine's ranges reach a profiler (`recorder.c` stands in for one). Only in builds that have ranges.
#![cfg(nvtx)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Compiles the recorder and returns its path.
fn recorder(folder: &Path) -> PathBuf {
    let library = folder.join("librecorder.so");
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/profile/recorder.c");
    let compiled = Command::new(compiler)
        .args(["-shared", "-fPIC", "-Wall", "-Werror", "-I", env!("NVTX_INCLUDE"), source, "-o"])
        .arg(&library)
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    library
}

/// `(depth, name)` of each range in the order in which they began; all of them end.
fn ranges(recorded: &str) -> Vec<(usize, &str)> {
    let mut depth = 0usize;
    let mut ranges = Vec::new();
    for line in recorded.lines() {
        match line.strip_prefix("push ") {
            Some(name) => {
                ranges.push((depth, name));
                depth += 1;
            }
            None => depth = depth.checked_sub(1).expect("no more ends than beginnings"),
        }
    }
    assert_eq!(depth, 0, "every range ends");
    ranges
}

#[test]
fn a_generation_shows_its_parts() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ranges");
    let generation = Command::new(env!("CARGO_BIN_EXE_eesd-run"))
        .args(["generate", "-p", "def fibonacci(n):", "-n", "12", "--controller", "fixed:2", "-q"])
        .env("NVTX_INJECTION64_PATH", recorder(folder.path()))
        .env("RANGES_FILE", &file)
        .output()
        .unwrap();
    assert!(generation.status.success(), "{}", String::from_utf8_lossy(&generation.stderr));

    let recorded = fs::read_to_string(&file).unwrap();
    let ranges = ranges(&recorded);
    assert_eq!(ranges[0], (0, "prefill"));
    assert_eq!(ranges[1], (0, "round"));
    let round: Vec<_> = ranges[2..].iter().take_while(|(depth, _)| *depth > 0).copied().collect();
    assert_eq!(round, [(1, "draft step"), (1, "draft step"), (1, "verify"), (1, "accept")]);
    let count = |name| ranges.iter().filter(|(_, range)| *range == name).count();
    assert_eq!((count("verify"), count("accept")), (count("round"), count("round")));
}

/// Numbered ranges, in this process's child: what a profiler loads, it loads once.
#[test]
fn a_numbered_range_shows_its_number() {
    const CHILD: &str = "RANGES_OF_THE_CHILD";
    if env::var_os(CHILD).is_some() {
        let _pass = eesd::profile::range("pass");
        (0..3).for_each(|layer| drop(eesd::profile::numbered("layer", layer)));
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ranges");
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_numbered_range_shows_its_number"])
        .env(CHILD, "1")
        .env("NVTX_INJECTION64_PATH", recorder(folder.path()))
        .env("RANGES_FILE", &file)
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    let recorded = fs::read_to_string(&file).unwrap();
    assert_eq!(ranges(&recorded), [(0, "pass"), (1, "layer 0"), (1, "layer 1"), (1, "layer 2")]);
}
