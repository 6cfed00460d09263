//! What this machine can do at best: how fast its threads read memory, and how fast they multiply.
//!
//! Decoding can be no faster than the weights come from memory, prefill no faster than the multiply-add
//! units; both are measured on the same threads, memory and vectors that the passes use.

use super::super::BackendError;
use super::Simd;
use super::lanes::{Kernel, LANES, Lanes};
use super::math::sum;
use super::memory::Memory;
use super::pool::Pool;
use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

/// Vectors that a step of the sum reads, each into its own accumulator.
const STEP: usize = 16;

/// Multiply-add chains of the arithmetic probe: as many as the registers hold.
const CHAINS: usize = 12;

/// Bytes of memory that this machine has, and that are available; `None` where it does not say (`/proc/meminfo`).
pub fn memory() -> Option<(u64, u64)> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let bytes = |key: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    Some((bytes("MemTotal")?, bytes("MemAvailable")?))
}

/// Threads and memory for measurements.
pub struct Probe {
    simd: Simd,
    pool: Pool,
    numbers: Memory<f32>,
    len: usize,
}

impl Probe {
    /// `threads` threads and `bytes` bytes to read, which should be many times the last cache.
    ///
    /// # Errors
    /// If threads or memory cannot be had.
    pub fn new(threads: usize, bytes: usize) -> Result<Self, BackendError> {
        let mut pool = Pool::new(threads).map_err(|error| BackendError::Device(format!("threads: {error}")))?;
        let block = STEP * LANES * pool.workers();
        let len = (bytes / size_of::<f32>()).next_multiple_of(block);
        let numbers = Memory::zeroed(len, "probe")?;
        pool.run(&|worker| {
            let share = worker.share(len / block);
            // SAFETY: this worker's share.
            unsafe { numbers.slice_mut(share.start * block, share.len() * block) }.fill(1.0);
        });
        Ok(Self { simd: Simd::detect(), pool, numbers, len })
    }

    /// Reads all memory once, all threads together, adding `f32`s up; bytes per second.
    pub fn read(&mut self) -> f64 {
        let Self { simd, pool, numbers, len } = self;
        let units = *len / (STEP * LANES);
        let total = Mutex::new(0.0);
        let start = Instant::now();
        pool.run(&|worker| {
            let share = worker.share(units);
            // SAFETY: nothing is written.
            let part = unsafe { numbers.slice(share.start * STEP * LANES, share.len() * STEP * LANES) };
            let part = simd.run(Sum(part));
            *total.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) += f64::from(part);
        });
        let elapsed = start.elapsed().as_secs_f64();
        black_box(total);
        (*len * size_of::<f32>()) as f64 / elapsed
    }

    /// Independent multiply-adds in registers on all threads, `steps` times a dozen vectors; floating
    /// point operations per second, a multiply-add being two.
    pub fn multiply_add(&mut self, steps: usize) -> f64 {
        let Self { simd, pool, .. } = self;
        let start = Instant::now();
        pool.run(&|_| {
            black_box(simd.run(MultiplyAdd(black_box(steps))));
        });
        let operations = 2 * CHAINS * LANES * steps * pool.workers();
        operations as f64 / start.elapsed().as_secs_f64()
    }
}

struct Sum<'a>(&'a [f32]);

impl Kernel for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: Lanes>(self) -> f32 {
        let mut sums = [V::splat(0.0); STEP];
        for step in self.0.chunks_exact(STEP * LANES) {
            for (i, lane) in sums.iter_mut().enumerate() {
                // SAFETY: inside the step.
                *lane = lane.add(unsafe { V::load(step.as_ptr().add(i * LANES)) });
            }
        }
        sum(sums.into_iter().fold(V::splat(0.0), V::add))
    }
}

struct MultiplyAdd(usize);

impl Kernel for MultiplyAdd {
    type Output = f32;

    #[inline(always)]
    fn run<V: Lanes>(self) -> f32 {
        let (mut sums, factor) = ([V::splat(1.0); CHAINS], V::splat(0.999));
        for _ in 0..self.0 {
            for lane in &mut sums {
                *lane = lane.fma(factor, factor);
            }
        }
        sum(sums.into_iter().fold(V::splat(0.0), V::add))
    }
}
