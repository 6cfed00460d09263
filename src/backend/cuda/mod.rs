//! Runs the passes on an NVIDIA GPU: hand-written kernels (`cuda/*.cu`), compiled when the program is
//! built, where nvcc was found.
//!
//! - [`pack`] brings weights into the order in which the kernels read them.
//! - [`kernels`] has each kernel's arguments and launch shape, for any [`Launcher`](kernels::Launcher).
//! - [`driver`] is what the passes ask of a device; [`gpu`] is the real one.
//! - `emulator` (feature `emulated-kernels`) launches the same kernels on the processor.
//!
//! Without nvcc [`FATBINS`] is empty and [`BUILT_WITH`] says so.

pub mod driver;
#[cfg(feature = "emulated-kernels")]
pub mod emulator;
mod fatbins;
pub mod gpu;
pub mod kernels;
pub mod pack;

pub use fatbins::{BUILT_WITH, FATBINS};
