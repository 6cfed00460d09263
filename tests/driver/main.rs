//! What is asked of the CUDA driver and of cuBLASLt, in which order and with which flags: libraries that pretend to be
//! them (`cuda.c`, `cublaslt.c`) write it down. Each test is run again in a process of its own, which finds that library.
//! In builds without kernels nothing can be launched, and the tests say so.
#![cfg(all(target_os = "linux", target_pointer_width = "64"))]

mod loops;
mod products;

use eesd::backend::BackendError;
use eesd::backend::cuda::FATBINS;
use eesd::backend::cuda::driver::{Driver, HostMemory, Memory};
use eesd::backend::cuda::gpu::{self, Gpu};
use eesd::backend::cuda::kernels::{Launcher, Shape};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::{env, fs};

const CHILD: &str = "PRETENDED_DRIVER";
/// A setting: the file that the pretended cuBLASLt is called. Without, there is none.
const PRODUCTS: &str = "PRODUCTS_LIBRARY";
/// The file that drivers without loops cannot load.
const LOOP: &str = "continue_loop";
/// Settings of such drivers.
const WITHOUT_LOOPS: [(&str, &str); 6] = [
    ("DRIVER_VERSION", "12030"),
    ("DRIVER_VERSION", "12020"),
    ("DRIVER_VERSION", "11080"),
    ("DRIVER_LACKS", "cuGraphConditionalHandleCreate"),
    ("DRIVER_LACKS", "cuGraphAddNode_v2"),
    ("DRIVER_LACKS", "cuStreamBeginCaptureToGraph"),
];

/// Compiles one of the libraries.
fn compile(folder: &Path, source: &str, name: &str, flag: Option<String>) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/driver").join(source);
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".into());
    let compiled = Command::new(compiler)
        .args(flag)
        .args(["-shared", "-fPIC", "-Wall", "-Werror"])
        .arg(source)
        .arg("-o")
        .arg(folder.join(name))
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
}

/// Runs `body` in a child that has the pretended libraries, set up by `settings`; returns what they
/// wrote down. `None` in the child, after the body.
fn with_driver(test: &str, settings: &[(&str, &str)], body: fn()) -> Option<Vec<String>> {
    if env::var_os(CHILD).is_some() {
        body();
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let setting = |name: &str| settings.iter().find(|setting| setting.0 == name).map(|setting| setting.1);
    let lacking = setting("DRIVER_LACKS").map(|name| format!("-D{name}=lacking"));
    compile(folder.path(), "cuda.c", "libcuda.so.1", lacking);
    if let Some(name) = setting(PRODUCTS) {
        compile(folder.path(), "cublaslt.c", name, setting("PRODUCTS_LACKS").map(|name| format!("-D{name}=lacking")));
    }
    let log = folder.path().join("log");
    fs::write(&log, "").unwrap();
    // What is loaded in this order; an older driver is not asked to load the kernel that ends loops.
    let has_loops = settings.iter().all(|setting| !WITHOUT_LOOPS.contains(setting));
    let files: Vec<&str> = FATBINS.iter().map(|(file, _)| *file).filter(|file| has_loops || *file != LOOP).collect();
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .envs([(CHILD, "1")])
        .envs([("LD_LIBRARY_PATH", folder.path()), ("DRIVER_LOG", &log)])
        .env("DRIVER_FILES", files.join(",").replace("wrappers", "wrapper"))
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let output = String::from_utf8_lossy(&child.stdout) + String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{output}");
    println!("{output}");
    Some(fs::read_to_string(log).unwrap().lines().map(String::from).collect())
}

/// `None` in builds without kernels.
fn open() -> Option<Gpu> {
    if FATBINS.is_empty() {
        println!("not tested: no kernels in this build");
        return None;
    }
    Some(Gpu::open(0).unwrap())
}

fn launch(gpu: &Gpu, kernel: &str) -> Result<(), BackendError> {
    let shape = Shape { grid: [3, 2, 1], threads: 256, shared_bytes: 0 };
    // SAFETY: nothing is run.
    unsafe { gpu.launch(kernel, shape, &[1; 24]) }
}

/// The launches: kernel, `overlaps` or `waits`, `queued` or `recorded`.
fn launches(log: &[String]) -> Vec<&str> {
    log.iter().filter_map(|line| line.strip_prefix("launch ")).collect()
}

#[test]
fn kernels_overlap_only_behind_kernels_that_do() {
    let body = || {
        let Some(gpu) = open() else { return };
        let gpu = Arc::new(gpu);
        let memory = Memory::zeroed(&gpu, 64, "a test").unwrap();
        let names = |names: &[&str]| names.iter().for_each(|name| launch(&gpu, name).unwrap());
        names(&["qkv_bf16_8", "attention_bf16_128", "wrapper_lanes", "residual_bf16_8", "gate_up_bf16_8"]);
        // SAFETY: as many bytes.
        unsafe { gpu.zero(memory.at(), 64) }.unwrap();
        names(&["embedding_bf16", "qkv_bf16_8"]);
        drop(gpu.record().unwrap());
        names(&["lm_head_bf16_8", "sample_rows"]);
        gpu.begin_capture().unwrap();
        names(&["qkv_bf16_8", "append_f16_64"]);
        let graph = gpu.end_capture().unwrap();
        names(&["qkv_bf16_8"]);
        // SAFETY: nothing is run.
        unsafe { gpu.replay(&graph) }.unwrap();
        names(&["qkv_bf16_8", "accept_drafts"]);
    };
    let Some(log) = with_driver("kernels_overlap_only_behind_kernels_that_do", &[], body) else { return };
    if FATBINS.is_empty() {
        return;
    }
    let expected = [
        "qkv_bf16_8 waits queued",
        "attention_bf16_128 overlaps queued",
        "wrapper_lanes waits queued",
        "residual_bf16_8 waits queued",
        "gate_up_bf16_8 overlaps queued",
        "embedding_bf16 waits queued",
        "qkv_bf16_8 overlaps queued",
        "lm_head_bf16_8 waits queued",
        "sample_rows overlaps queued",
        "qkv_bf16_8 waits recorded",
        "append_f16_64 overlaps recorded",
        "qkv_bf16_8 waits queued",
        "qkv_bf16_8 waits queued",
        "accept_drafts overlaps queued",
    ];
    assert_eq!(launches(&log), expected);
    assert_eq!(log[0], "retain context");
    assert_eq!(log[log.len() - 2..], ["destroy stream", "release context"]);
}

#[test]
fn a_profiler_is_told_between_what_is_queued() {
    let body = || {
        let Some(gpu) = open() else { return };
        let gpu = Arc::new(gpu);
        launch(&gpu, "sample_rows").unwrap();
        assert!(gpu.set_profiling(true).unwrap());
        launch(&gpu, "accept_drafts").unwrap();
        assert!(gpu.set_profiling(false).unwrap());
    };
    let Some(log) = with_driver("a_profiler_is_told_between_what_is_queued", &[], body) else { return };
    if FATBINS.is_empty() {
        return;
    }
    let told = |line: &&String| line.starts_with("launch ") || line.starts_with("profiler ");
    let expected = ["launch sample_rows", "profiler starts", "launch accept_drafts", "profiler stops"];
    let told: Vec<&String> = log.iter().filter(told).collect();
    assert!(told.len() == 4 && told.iter().zip(expected).all(|(line, start)| line.starts_with(start)), "{told:?}");
}

#[test]
fn kernels_do_not_overlap_where_they_cannot() {
    let body = || {
        let Some(gpu) = open() else { return };
        (0..3).for_each(|_| launch(&gpu, "qkv_bf16_8").unwrap());
        if env::var_os("DRIVER_CAPABILITY").is_none() {
            let gpu = gpu.with_overlap(false);
            (0..3).for_each(|_| launch(&gpu, "qkv_bf16_8").unwrap());
        }
    };
    let test = "kernels_do_not_overlap_where_they_cannot";
    let old_gpu = [("DRIVER_CAPABILITY", "89")];
    let old_driver = [("DRIVER_VERSION", "12020"), ("DRIVER_CAPABILITY", "90")];
    // Only code for an older GPU is there.
    let old_code = [("DRIVER_PTX", "80"), ("DRIVER_CAPABILITY", "90")];
    for settings in [&old_gpu[..], &old_driver, &old_code] {
        let Some(log) = with_driver(test, settings, body) else { return };
        assert!(launches(&log).iter().all(|launch| launch.contains("waits")), "{settings:?}: {log:?}");
    }
    let Some(log) = with_driver(test, &[], body) else { return };
    let overlapping: Vec<_> = launches(&log).iter().map(|launch| launch.contains("overlaps")).collect();
    if !FATBINS.is_empty() {
        assert_eq!(overlapping, [false, true, true, false, false, false], "turned off after three");
    }
}

#[test]
fn kernels_found_while_recording_and_much_shared_memory() {
    let body = || {
        let Some(gpu) = open() else { return };
        gpu.begin_capture().unwrap();
        for (name, shared_bytes) in [("qkv_f16_gemm", 48 << 10), ("qkv_f16_gemm", 96 << 10), ("qkv_f16_gemm", 64 << 10)]
        {
            let shape = Shape { grid: [1; 3], threads: 256, shared_bytes };
            // SAFETY: nothing is run.
            unsafe { gpu.launch(name, shape, &[0; 8]) }.unwrap();
        }
        let error = launch(&gpu, "no_such_kernel").unwrap_err().to_string();
        assert_eq!(error, "device: this build has no kernel \"no_such_kernel\"");
        assert!(launch(&gpu, "a\0b").is_err());
        drop(gpu.end_capture().unwrap());
        let error = gpu.end_capture().err().unwrap().to_string();
        assert!(error.starts_with("device: recording a graph: CUDA_ERROR_401: text"), "{error}");
        launch(&gpu, "qkv_f16_8").unwrap();
    };
    let Some(log) = with_driver("kernels_found_while_recording_and_much_shared_memory", &[], body) else { return };
    if FATBINS.is_empty() {
        return;
    }
    // 1000 bytes of each kernel's are static, so 48 KiB have to be asked for too; what was allowed stays.
    let allowed: Vec<_> = log.iter().filter(|line| line.starts_with("allow")).collect();
    assert_eq!(allowed, ["allow qkv_f16_gemm 49152 bytes", "allow qkv_f16_gemm 98304 bytes"]);
    assert_eq!(log.iter().filter(|line| *line == "destroy executable graph").count(), 1);
}

#[test]
fn memory_copies_graphs_and_times() {
    let body = || {
        let Some(gpu) = open() else { return };
        let gpu = Arc::new(gpu);
        assert_eq!(gpu.describe(), "Pretended, sm_90, driver 13.0");
        let device = Memory::zeroed(&gpu, 1000, "a test").unwrap();
        let mut host = HostMemory::zeroed(&gpu, 1000).unwrap();
        let back = HostMemory::zeroed(&gpu, 1000).unwrap();
        assert!(host.contents().iter().all(|&byte| byte == 0));
        gpu.begin_capture().unwrap();
        // SAFETY: as many bytes, changed between replays only.
        unsafe {
            gpu.copy_to_device(device.at(), host.at(), 1000).unwrap();
            gpu.zero(device.byte(500), 500).unwrap();
            gpu.zero(device.byte(1000), 0).unwrap();
            gpu.copy_to_host(back.at(), device.at(), 1000).unwrap();
        }
        let graph = gpu.end_capture().unwrap();
        host.contents_mut().fill(5);
        // The queue may be used, and given back, by another thread.
        let other = gpu.clone();
        let replayed = std::thread::spawn(move || {
            // SAFETY: as above.
            unsafe { other.replay(&graph) }.unwrap();
            other.wait().unwrap();
        });
        replayed.join().unwrap();
        assert!(
            back.contents()[..500].iter().all(|&byte| byte == 5)
                && back.contents()[500..].iter().all(|&byte| byte == 0)
        );
        let mapped: &'static mut [u8] = vec![0; 100].leak();
        // SAFETY: never given back.
        unsafe { gpu.map_host(mapped.as_mut_ptr(), mapped.len()) }.unwrap();
        // SAFETY: there is nothing to be mapped.
        let error = unsafe { gpu.map_host(std::ptr::null_mut(), 1) }.unwrap_err().to_string();
        assert!(error.starts_with("device: mapping 1 bytes of the host's memory: CUDA_ERROR_1:"), "{error}");
        assert_eq!(gpu.time(&mut || launch(&gpu, "sample_rows")).unwrap(), 0.0025);
        let error = gpu.allocate(1 << 41, "the cache").unwrap_err();
        assert_eq!(error, BackendError::OutOfMemory { what: "the cache", bytes: 1 << 41 });
        let other = Gpu::open(1).unwrap();
        let event = gpu.record().unwrap();
        drop(gpu); // what belongs to it outlives it
        other.wait().unwrap();
        drop((device, host, back, other, event));
    };
    let Some(log) = with_driver("memory_copies_graphs_and_times", &[], body) else { return };
    if !FATBINS.is_empty() {
        for (made, gone) in
            [("retain context", "release context"), ("create event", "destroy event"), ("load", "unload")]
        {
            let count = |text: &str| log.iter().filter(|line| line.starts_with(text)).count();
            assert!(count(made) > 0 && count(made) == count(gone), "{made}: {log:?}");
        }
    }
}

#[test]
fn what_cannot_be_opened_is_told() {
    let body = || {
        let told = |told: Option<String>, parts: &[&str]| {
            let told = told.expect("an error");
            parts.iter().for_each(|part| assert!(told.contains(part), "{told}: {part}"));
        };
        let opened = || Gpu::open(0).err().map(|error| error.to_string());
        match env::var("CASE").unwrap().as_str() {
            "no device" => told(gpu::list().err(), &["does not start", "CUDA_ERROR_100", "CUDA_VISIBLE_DEVICES"]),
            "new error" => told(gpu::list().err(), &["CUDA error 777"]),
            "old driver" => told(gpu::list().err(), &["too old", "cuLaunchKernelEx", "11.8"]),
            "listed" => {
                let gpus = gpu::list().unwrap();
                assert_eq!((gpus.len(), gpus[1].name.as_str(), gpus[1].capability), (2, "Pretended", (9, 0)));
            }
            _ if FATBINS.is_empty() => println!("not tested: no kernels in this build"),
            "old gpu" => told(opened(), &["cuda:0: Pretended has compute capability 7.5; 8.0"]),
            "no code" => told(opened(), &["kernels accept for sm_90", "CUDA_ERROR_209", "KERNEL_ARCHS"]),
            "old for code" => told(opened(), &["made by CUDA", "the driver knows CUDA 11.8"]),
            _ => told(Gpu::open(3).err().map(|error| error.to_string()), &["cuda:3: this machine has 2 GPUs"]),
        }
    };
    let cases: [&[(&str, &str)]; 8] = [
        &[("CASE", "no device"), ("DRIVER_INIT", "100")],
        &[("CASE", "new error"), ("DRIVER_INIT", "777")],
        &[("CASE", "old driver"), ("DRIVER_LACKS", "cuLaunchKernelEx")],
        &[("CASE", "listed")],
        &[("CASE", "old gpu"), ("DRIVER_CAPABILITY", "75")],
        &[("CASE", "no code"), ("DRIVER_LOAD", "209")],
        &[("CASE", "old for code"), ("DRIVER_LOAD", "209"), ("DRIVER_VERSION", "11080")],
        &[("CASE", "no such GPU")],
    ];
    for settings in cases {
        let Some(log) = with_driver("what_cannot_be_opened_is_told", settings, body) else { return };
        let count = |text: &str| log.iter().filter(|line| line.starts_with(text)).count();
        assert_eq!(count("retain context"), count("release context"), "{settings:?}: {log:?}");
    }
}
