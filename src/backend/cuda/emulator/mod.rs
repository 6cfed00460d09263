//! Runs the GPU's kernels on the processor, one fiber per CUDA thread, under any order of threads
//! (`cuda/emu`). For tests: it is some ten thousand times slower than a GPU.

mod device;
mod matmul;
mod state;

pub use device::EmulatedDevice;
pub use state::{Counts, Event, Graph, LoopFault};

use super::kernels::{Launcher, Shape};
use crate::backend::BackendError;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;

/// As `emu_launch_config` in `cuda/emu/host.h`.
#[repr(C)]
struct Config {
    grid: [u32; 3],
    block: u32,
    shared_bytes: u32,
    coresident: u32,
    race_check: u32,
    padding: u32,
    seed: u64,
}

/// How much of a kernel's work was synchronisation.
#[repr(C)]
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    /// Switches between threads.
    pub switches: u64,
    /// Arrivals at block barriers.
    pub barriers: u64,
    /// Arrivals at warp operations.
    pub collectives: u64,
    /// Races seen by the race check.
    pub races: u64,
}

type LaunchFunction =
    unsafe extern "C" fn(*const c_char, *const Config, *const c_void, usize, *mut c_char, usize, *mut Stats) -> c_int;

unsafe extern "C" {
    fn emu_launch(
        kernel: *const c_char,
        config: *const Config,
        arguments: *const c_void,
        argument_bytes: usize,
        error: *mut c_char,
        error_bytes: usize,
        stats: *mut Stats,
    ) -> c_int;
    fn emu_kernel_name(index: u32) -> *const c_char;
}

/// A [`Launcher`] whose device memory is the process's own.
#[derive(Debug, Clone, Copy)]
pub struct Emulator {
    launch: LaunchFunction,
    /// Order in which threads and blocks run: 0 ascending, 1 descending, else random.
    pub seed: u64,
    /// All blocks are alive at once and take turns; else one runs after another.
    pub coresident: bool,
    race_check: bool,
}

impl Emulator {
    /// The kernels linked into this program.
    pub fn new(seed: u64) -> Self {
        Self { launch: emu_launch, seed, coresident: false, race_check: false }
    }

    /// Kernels compiled apart, with their own emulator: a shared library.
    ///
    /// # Errors
    /// What the dynamic linker says.
    ///
    /// # Safety
    /// The library must be one made of `cuda/emu` and kernels, compiled for the race check if asked for.
    pub unsafe fn load(library: &Path, race_check: bool, seed: u64) -> Result<Self, String> {
        let path = CString::new(library.as_os_str().as_encoded_bytes()).map_err(|e| e.to_string())?;
        // SAFETY: a terminated string; initialisers of the library register kernels and nothing else.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        // SAFETY: a handle or null, which `dlsym` refuses after `dlopen` has told why.
        let symbol = if handle.is_null() { handle } else { unsafe { libc::dlsym(handle, c"emu_launch".as_ptr()) } };
        if symbol.is_null() {
            // SAFETY: not null after a failure, and a terminated string.
            return Err(unsafe { CStr::from_ptr(libc::dlerror()) }.to_string_lossy().into_owned());
        }
        // SAFETY: `cuda/emu/host.h` declares it with this type; the library is never closed.
        let launch = unsafe { std::mem::transmute::<*mut c_void, LaunchFunction>(symbol) };
        Ok(Self { launch, seed, coresident: false, race_check })
    }

    /// Names of the kernels linked into this program, sorted.
    pub fn kernels() -> Vec<String> {
        // SAFETY: returns null or a string that lives as long as the program.
        let name = |index| Some(unsafe { emu_kernel_name(index) }).filter(|name| !name.is_null());
        // SAFETY: as above.
        let names = (0..).map_while(name).map(|name| unsafe { CStr::from_ptr(name) });
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    /// Launches a kernel and tells how it went.
    ///
    /// # Safety
    /// As [`Launcher::launch`].
    ///
    /// # Errors
    /// What the emulator complains about: a deadlock, a race, lanes that part ways.
    pub unsafe fn launch_with_stats(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<Stats, String> {
        let name = CString::new(kernel).map_err(|e| e.to_string())?;
        let config = Config {
            grid: shape.grid,
            block: shape.threads,
            shared_bytes: shape.shared_bytes,
            coresident: self.coresident.into(),
            race_check: self.race_check.into(),
            padding: 0,
            seed: self.seed,
        };
        // The kernel reads its parameter as a structure: aligned.
        let mut aligned = vec![0u64; arguments.len().div_ceil(8)];
        bytemuck::cast_slice_mut(&mut aligned)[..arguments.len()].copy_from_slice(arguments);
        let mut error = vec![0u8; 8192];
        let mut stats = Stats::default();
        // SAFETY: all pointers are to live values of the lengths given; addresses are the caller's promise.
        let failed = unsafe {
            (self.launch)(
                name.as_ptr(),
                &config,
                aligned.as_ptr().cast(),
                arguments.len(),
                error.as_mut_ptr().cast(),
                error.len(),
                &mut stats,
            )
        };
        let message = CStr::from_bytes_until_nul(&error).unwrap_or_default();
        if failed == 0 { Ok(stats) } else { Err(message.to_string_lossy().into_owned()) }
    }
}

impl Launcher for Emulator {
    unsafe fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        let run = unsafe { self.launch_with_stats(kernel, shape, arguments) };
        run.map(|_| ()).map_err(|message| BackendError::Device(format!("{kernel}: {message}")))
    }
}
