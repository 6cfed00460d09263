//! Loops in graphs: the node, its body on a stream of its own, and drivers that have none.

use crate::{LOOP, WITHOUT_LOOPS, launch, launches, open, with_driver};
use eesd::backend::BackendError;
use eesd::backend::cuda::FATBINS;
use eesd::backend::cuda::driver::{Driver, HostMemory, Memory};
use eesd::backend::cuda::gpu::{self, Gpu};
use eesd::backend::cuda::loop_probe::{self, Loops};
use std::env;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// Records a copy, a loop of three kernels, and a copy.
fn record_loop(gpu: &Arc<Gpu>, memory: &Memory<Gpu>, host: &HostMemory<Gpu>) -> Result<gpu::Graph, BackendError> {
    gpu.begin_capture().unwrap();
    // SAFETY: as many bytes; nothing is run.
    unsafe { gpu.copy_to_device(memory.at(), host.at(), 64) }.unwrap();
    let body = gpu.begin_loop().and_then(|()| {
        ["embedding_bf16", "qkv_bf16_8", "next_draft"].iter().try_for_each(|name| launch(gpu, name))?;
        // SAFETY: a word of the memory.
        unsafe { gpu.end_loop(memory.byte(8)) }
    });
    // SAFETY: as many bytes; nothing is run.
    unsafe { gpu.copy_to_host(host.at(), memory.at(), 64) }.unwrap();
    let graph = gpu.end_capture();
    body.and(graph)
}

#[test]
fn a_loop_is_a_node_of_the_recording() {
    let body = || {
        let Some(gpu) = open() else { return };
        let gpu = Arc::new(gpu);
        let (memory, host) = (Memory::zeroed(&gpu, 64, "a test").unwrap(), HostMemory::zeroed(&gpu, 64).unwrap());
        assert!(!gpu.loops() && gpu.begin_loop().is_err(), "nobody has tried any");
        gpu.allow_loops(Loops::Overlapping);
        assert!(gpu.loops());
        // SAFETY: refused.
        let end = || unsafe { gpu.end_loop(memory.byte(8)) }.unwrap_err().to_string();
        assert_eq!(end(), "device: no loop was begun");
        assert_eq!(gpu.begin_loop().unwrap_err().to_string(), "device: a loop outside of a recording");
        if env::var_os("DRIVER_LOOPS_IN_ORDER").is_some() {
            let error = record_loop(&gpu, &memory, &host).err().unwrap().to_string();
            assert!(error.starts_with("device: making a recorded graph executable: CUDA_ERROR_801"), "{error}");
        }
        let graph = record_loop(&gpu, &memory, &host).unwrap();
        // SAFETY: nothing is run.
        unsafe { gpu.replay(&graph) }.unwrap();
        launch(&gpu, "qkv_bf16_8").unwrap();
    };
    let Some(log) = with_driver("loops::a_loop_is_a_node_of_the_recording", &[], body) else { return };
    if FATBINS.is_empty() {
        return;
    }
    let expected = [
        "condition, 1 at each launch",
        "loop behind 1",
        "launch embedding_bf16 waits looped",
        "launch qkv_bf16_8 overlaps looped",
        "launch next_draft overlaps looped",
        "launch continue_loop waits looped",
        "destroy body's stream",
        "go on behind the loop",
        "launch qkv_bf16_8 waits queued",
        // The condition is the graph's: it stays as long as what was made of it.
        "destroy executable graph",
        "destroy graph",
    ];
    let start = |log: &[String]| log.iter().rposition(|line| line.starts_with("condition")).unwrap();
    assert_eq!(log[start(&log)..][..expected.len()], expected);
    // A driver that refuses kernels that overlap there gets them in order from then on.
    let in_order = [("DRIVER_LOOPS_IN_ORDER", "1")];
    let Some(log) = with_driver("loops::a_loop_is_a_node_of_the_recording", &in_order, body) else { return };
    let expected = expected.map(|line| line.replace("overlaps looped", "waits looped"));
    assert_eq!(log[start(&log)..][..expected.len()], expected);
}

#[test]
fn a_loop_that_fails_leaves_no_recording_behind() {
    let body = || {
        let Some(gpu) = open() else { return };
        let gpu = Arc::new(gpu);
        let (memory, host) = (Memory::zeroed(&gpu, 64, "a test").unwrap(), HostMemory::zeroed(&gpu, 64).unwrap());
        gpu.allow_loops(Loops::Overlapping);
        if env::var_os("DRIVER_LOOP").is_some() {
            let error = record_loop(&gpu, &memory, &host).err().unwrap().to_string();
            assert!(error.starts_with("device: the condition of a loop: CUDA_ERROR_801"), "{error}");
        } else {
            gpu.begin_capture().unwrap();
            gpu.begin_loop().unwrap();
            assert!(gpu.begin_loop().unwrap_err().to_string().contains("a loop inside of another"));
            assert!(launch(&gpu, "no_such_kernel").is_err());
            let error = gpu.end_capture().err().unwrap().to_string();
            assert_eq!(error, "device: recording a graph: a loop's body was not ended");
        }
        gpu.begin_capture().unwrap();
        launch(&gpu, "qkv_bf16_8").unwrap();
        drop(gpu.end_capture().unwrap());
    };
    for settings in [&[][..], &[("DRIVER_LOOP", "801")]] {
        let Some(log) = with_driver("loops::a_loop_that_fails_leaves_no_recording_behind", settings, body) else {
            return;
        };
        let count = |line: &str| log.iter().filter(|logged| *logged == line).count();
        if !FATBINS.is_empty() {
            assert_eq!(launches(&log), ["qkv_bf16_8 waits recorded"]);
            let began = count("loop behind 0");
            assert_eq!((count("destroy body's stream"), count("destroy graph")), (began, 2), "{log:?}");
        }
    }
}

#[test]
fn drivers_without_loops_do_all_else() {
    let body = || {
        let Some(gpu) = open() else { return };
        let gpu = Arc::new(gpu);
        let (memory, host) = (Memory::zeroed(&gpu, 64, "a test").unwrap(), HostMemory::zeroed(&gpu, 64).unwrap());
        gpu.allow_loops(Loops::Overlapping);
        assert!(!gpu.loops());
        let error = record_loop(&gpu, &memory, &host).err().unwrap().to_string();
        assert!(error.contains("on a driver that has none"), "{error}");
        gpu.begin_capture().unwrap();
        launch(&gpu, "next_draft").unwrap();
        drop(gpu.end_capture().unwrap());
    };
    let refused = [("DRIVER_REFUSES", LOOP)];
    for settings in WITHOUT_LOOPS.iter().map(std::slice::from_ref).chain([&refused[..]]) {
        let Some(log) = with_driver("loops::drivers_without_loops_do_all_else", settings, body) else { return };
        if !FATBINS.is_empty() {
            assert_eq!(launches(&log), ["next_draft waits recorded"], "{settings:?}");
            let count = |text: &str| log.iter().filter(|line| line.starts_with(text)).count();
            assert_eq!((count("load"), count("unload")), (FATBINS.len() - 1, FATBINS.len() - 1), "{settings:?}");
        }
    }
}

/// `eesd-run` as a probe, which a driver takes down with it: whoever asked goes on without loops.
#[test]
fn a_driver_that_fails_at_loops_fails_the_probe_alone() {
    let body = || {
        if open().is_none() {
            return;
        }
        let mut probe = Command::new(env!("CARGO_BIN_EXE_eesd-run"));
        probe.args([loop_probe::COMMAND, "0"]);
        let expected = env::var("EXPECTED").unwrap();
        // One that hangs does so however long it is given.
        let limit = Duration::from_secs(if expected.contains("not ended") { 1 } else { 600 });
        let found = loop_probe::ask(probe, limit);
        assert_eq!((found.loops, found.trouble.as_deref()), (Loops::None, Some(&*expected)));
    };
    let cases = [
        ("DRIVER_CRASHES", "1", "it ended with signal: 6 (SIGABRT)"),
        ("DRIVER_HANGS", "1", "it had not ended after 1 s"),
        ("DRIVER_LOOP", "801", "device: the condition of a loop: CUDA_ERROR_801: text"),
        // This driver runs no kernels.
        ("DRIVER_CRASHES", "0", "device: a loop of 6 launches ran 0"),
        ("DRIVER_LACKS", "cuGraphAddNode_v2", "device: no loops in graphs with this driver and these kernels"),
    ];
    for (setting, value, expected) in cases {
        let settings = [(setting, value), ("EXPECTED", expected)];
        let test = "loops::a_driver_that_fails_at_loops_fails_the_probe_alone";
        if with_driver(test, &settings, body).is_none() {
            return;
        }
    }
}
