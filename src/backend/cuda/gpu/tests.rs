use super::super::driver::{HostMemory, Memory};
use super::super::loop_probe;
use super::*;

/// The kernels of `cuda/wrappers.cu` are launched here; `None` where there is no GPU, which is said.
fn gpu() -> Option<Arc<Gpu>> {
    match Gpu::open(0) {
        Ok(gpu) => Some(Arc::new(gpu)),
        Err(why) => {
            println!("not tested: {why}");
            None
        }
    }
}

#[test]
fn a_gpu_that_cannot_be_opened_is_an_error_that_says_why() {
    let why = match Gpu::open(999) {
        Ok(_) => panic!("a thousand GPUs"),
        Err(why) => why.to_string(),
    };
    assert!(why.contains("cuda:999"), "{why}");
    if FATBINS.is_empty() {
        assert!(why.contains("built without GPU kernels"), "{why}");
    } else if let Err(missing) = list() {
        assert_eq!(why, format!("device: cuda:999: {missing}"));
    } else {
        assert!(why.contains("this machine has"), "{why}");
    }
}

#[test]
fn a_gpu_is_used_from_any_thread() {
    fn any_thread<T: Send + Sync + 'static>() {}
    fn moves<T: Send + 'static>() {}
    any_thread::<Gpu>();
    moves::<Graph>();
    moves::<Event>();
}

#[test]
fn memory_copies_and_zeroing_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let bytes = 1 << 20;
    let device = Memory::zeroed(&gpu, bytes, "a test").unwrap();
    let mut host = HostMemory::zeroed(&gpu, bytes).unwrap();
    host.contents_mut().iter_mut().enumerate().for_each(|(i, byte)| *byte = i as u8 | 1);
    // SAFETY: both have as many bytes; waited for before they are looked at.
    unsafe {
        gpu.copy_to_device(device.at(), host.at(), bytes).unwrap();
        gpu.zero(device.byte(bytes / 2), bytes / 2).unwrap();
        gpu.copy_to_host(host.at(), device.at(), bytes).unwrap();
    }
    let event = gpu.record().unwrap();
    gpu.wait_for(&event).unwrap();
    assert!(host.contents()[..bytes / 2].iter().enumerate().all(|(i, &byte)| byte == i as u8 | 1));
    assert!(host.contents()[bytes / 2..].iter().all(|&byte| byte == 0));
    let error = gpu.allocate(1 << 45, "a test").unwrap_err();
    assert_eq!(error, BackendError::OutOfMemory { what: "a test", bytes: 1 << 45 });
}

#[test]
fn graphs_on_a_gpu_replay_and_survive_failures() {
    let Some(gpu) = gpu() else { return };
    let (bytes, copies) = (1024, 3);
    let device = Memory::zeroed(&gpu, bytes, "a test").unwrap();
    let mut host = HostMemory::zeroed(&gpu, bytes).unwrap();
    let back = HostMemory::zeroed(&gpu, bytes).unwrap();
    gpu.begin_capture().unwrap();
    let shape = Shape { grid: [1; 3], threads: 32, shared_bytes: 0 };
    // SAFETY: never launched: there is no such kernel.
    let error = unsafe { gpu.launch("no_such_kernel", shape, &[]) }.unwrap_err();
    assert!(error.to_string().contains("no_such_kernel"), "{error}");
    drop(gpu.end_capture());
    assert!(gpu.end_capture().is_err(), "nothing is recorded");

    gpu.begin_capture().unwrap();
    // SAFETY: all have as many bytes, and are changed between replays only.
    unsafe {
        gpu.copy_to_device(device.at(), host.at(), bytes).unwrap();
        gpu.copy_to_host(back.at(), device.at(), bytes).unwrap();
    }
    let graph = gpu.end_capture().unwrap();
    for i in 1..=copies {
        host.contents_mut().fill(i);
        // SAFETY: as above.
        unsafe { gpu.replay(&graph) }.unwrap();
        gpu.wait().unwrap();
        assert!(back.contents().iter().all(|&byte| byte == i), "replay {i}");
    }
    // SAFETY: as above.
    let seconds = gpu.time(&mut || unsafe { gpu.replay(&graph) }).unwrap();
    assert!(seconds > 0.0 && seconds.is_finite(), "{seconds}");
}

/// In order first, and with kernels that overlap. Alone in its process it is what a probe does.
#[test]
fn a_loop_runs_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let mut said = Vec::new();
    loop_probe::answer(Ok(gpu), &mut said).unwrap();
    assert_eq!(String::from_utf8(said).unwrap(), "loops in order\nloops that overlap\n");
}

/// `cuda/wrappers.cu`, `wrapper_copy`: 64 units of 16 bytes, every fourth one zeroed.
#[test]
fn a_kernel_runs_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let bytes = 64 * 16;
    let (input, output) =
        (Memory::zeroed(&gpu, bytes, "a test").unwrap(), Memory::zeroed(&gpu, bytes, "a test").unwrap());
    let mut host = HostMemory::zeroed(&gpu, bytes).unwrap();
    host.contents_mut().fill(7);
    let arguments = [input.at(), output.at()];
    let shape = Shape { grid: [1; 3], threads: 32, shared_bytes: 0 };
    // SAFETY: both have as many bytes as the kernel reads and writes; waited for before they are looked at.
    unsafe {
        gpu.copy_to_device(input.at(), host.at(), bytes).unwrap();
        gpu.launch("wrapper_copy", shape, bytemuck::bytes_of(&arguments)).unwrap();
        gpu.copy_to_host(host.at(), output.at(), bytes).unwrap();
    }
    gpu.wait().unwrap();
    let zeros = host.contents().chunks(16).filter(|unit| unit.iter().all(|&byte| byte == 0)).count();
    let sevens = host.contents().chunks(16).filter(|unit| unit.iter().all(|&byte| byte == 7)).count();
    assert_eq!((zeros, sevens), (16, 48));
    // SAFETY: refused before anything is launched.
    let error = unsafe { gpu.launch("wrapper_copy", shape, &[0; 5000]) }.unwrap_err();
    assert!(error.to_string().contains("5000 bytes of arguments"), "{error}");
}
