//! What kernels are launched on: the emulator, or the GPU that `EESD_TEST_DEVICE` names.
//!
//! A test's buffers are plain vectors. So that a GPU reads and writes them in place, all allocations of the
//! process then come from one arena, which is mapped into the GPU's addresses. `EESD_TEST_DEVICE=emulated` takes the
//! arena without a GPU: where a test gives a kernel an address outside of it, it fails here as it would there.

use super::tested_gpu::tested_gpu;
use eesd::backend::BackendError;
use eesd::backend::cuda::driver::Driver;
use eesd::backend::cuda::emulator::Emulator;
use eesd::backend::cuda::gpu::Gpu;
use eesd::backend::cuda::kernels::{Launcher, Shape};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::OnceLock;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicUsize};

/// What a kernel is launched on.
#[derive(Clone, Copy)]
pub enum Device {
    Emulated(Emulator),
    /// And a seed, for what tests choose by it.
    Gpu(&'static Gpu, u64),
}

impl Device {
    /// The GPU that is tested, if there is one.
    pub fn gpu(seed: u64) -> Option<Self> {
        static GPU: OnceLock<Option<Gpu>> = OnceLock::new();
        let open = || {
            let gpu = Gpu::open(tested_gpu()?).unwrap();
            let arena = arena().expect("the variable that names the GPU asks for an arena too");
            // SAFETY: mapped for the whole life of the process.
            unsafe { gpu.map_host(arena as *mut u8, ARENA_BYTES) }.unwrap();
            Some(gpu)
        };
        GPU.get_or_init(open).as_ref().map(|gpu| Device::Gpu(gpu, seed))
    }

    /// What it was made with.
    pub fn seed(&self) -> u64 {
        match self {
            Device::Emulated(emulator) => emulator.seed,
            Device::Gpu(_, seed) => *seed,
        }
    }
}

impl Launcher for Device {
    unsafe fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Device::Emulated(emulator) => emulator.launch(kernel, shape, arguments),
                Device::Gpu(gpu, _) => gpu.launch(kernel, shape, arguments).and_then(|()| gpu.wait()),
            }
        }
    }
}

/// The address of a buffer, as kernels are given it.
pub fn address<T>(buffer: &[T]) -> u64 {
    let at = buffer.as_ptr() as usize;
    let inside = |arena: usize| (arena..arena + ARENA_BYTES).contains(&at);
    assert!(buffer.is_empty() || arena().is_none_or(inside), "a buffer that no GPU could reach: make it a vector");
    at as u64
}

const ARENA_BYTES: usize = 2 << 30;
/// Blocks are powers of two, from this one on: room for the list of free ones.
const LEAST_BLOCK: usize = 32;

/// Where the arena begins; `None`: allocations are as always.
fn arena() -> Option<usize> {
    static ARENA: OnceLock<Option<usize>> = OnceLock::new();
    // Called by the allocator: nothing here may allocate.
    *ARENA.get_or_init(|| {
        // SAFETY: a terminated string; nobody changes the environment.
        if unsafe { libc::getenv(c"EESD_TEST_DEVICE".as_ptr()) }.is_null() {
            return None;
        }
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, wherever the system likes.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), ARENA_BYTES, access, kind | libc::MAP_NORESERVE, -1, 0) };
        (at != libc::MAP_FAILED).then_some(at as usize)
    })
}

struct Arena;

#[global_allocator]
static ALLOCATOR: Arena = Arena;

/// First free block of each power of two, each of which tells the next, and the end of what was ever taken; touched
/// by whoever has the lock.
static FREE: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];
static END: AtomicUsize = AtomicUsize::new(0);
static LOCKED: AtomicBool = AtomicBool::new(false);

/// Takes or gives blocks, alone. (A mutex might allocate.)
fn locked<T>(work: impl FnOnce() -> T) -> T {
    while LOCKED.swap(true, Acquire) {
        std::hint::spin_loop();
    }
    let result = work();
    LOCKED.store(false, Release);
    result
}

fn block(layout: Layout) -> usize {
    layout.size().max(layout.align()).max(LEAST_BLOCK).next_power_of_two()
}

// SAFETY: blocks are as large and as aligned as asked for, and each has one owner.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(arena) = arena() else {
            // SAFETY: the caller's promise.
            return unsafe { System.alloc(layout) };
        };
        let bytes = block(layout);
        if layout.align() > 4096 {
            return std::ptr::null_mut();
        }
        locked(|| {
            let head = &FREE[bytes.ilog2() as usize];
            let taken = head.load(Relaxed) as *mut usize;
            if !taken.is_null() {
                // SAFETY: a free block, whose first word tells the next one.
                head.store(unsafe { taken.read() }, Relaxed);
                return taken.cast();
            }
            // The arena itself begins with a page.
            let start = END.load(Relaxed).next_multiple_of(bytes.min(4096));
            if start + bytes > ARENA_BYTES {
                return std::ptr::null_mut();
            }
            END.store(start + bytes, Relaxed);
            (arena + start) as *mut u8
        })
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        if arena().is_none() {
            // SAFETY: the caller's promise; it was the system's.
            return unsafe { System.dealloc(at, layout) };
        }
        locked(|| {
            let head = &FREE[block(layout).ilog2() as usize];
            // SAFETY: a block that nobody has any more, of a word at least.
            unsafe { at.cast::<usize>().write(head.load(Relaxed)) };
            head.store(at as usize, Relaxed);
        });
    }
}
