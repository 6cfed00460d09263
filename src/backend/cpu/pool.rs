//! Threads that stay awake during a pass.
//!
//! A pass is some forty small operations, so a hand-over between threads must cost well under a
//! microsecond. Every worker runs the whole pass, meets the others at [barriers](Worker::barrier)
//! and spins there. Whoever has waited for much longer than a barrier takes sleeps: then another
//! program has the core that it waits for, and may have this one.

use super::super::BackendError;
use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread waits for others in a pass, or without work, before it sleeps: many times what a barrier takes, and
/// still little of the time slice that whoever it waits for may need.
const AWAKE: Duration = Duration::from_micros(100);

/// The same without work: as long as it takes to choose tokens and to begin the next pass.
const AWAKE_BETWEEN: Duration = Duration::from_millis(1);

/// Polls between two looks at the clock, some microseconds.
const POLLS: u32 = 256;

/// Polls after which a waiting thread lets others have its core, where workers share cores: whom it waits for is likely to
/// need it.
const CROWDED: u32 = 1 << 6;

/// Workers of all pools of this process.
static WORKERS: AtomicUsize = AtomicUsize::new(0);

/// A value alone on its cache line (and on the neighbour that is fetched along with it).
#[repr(align(128))]
#[derive(Default)]
struct Alone<T>(T);

type Job<'a> = dyn Fn(&Worker<'_>) + Sync + 'a;

/// A fixed set of workers; the caller of [`run`](Self::run) is the first of them.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    workers: usize,
    /// Cores that this process may run on.
    cores: usize,
    /// Counts jobs; a new number is the signal to start.
    epoch: Alone<AtomicUsize>,
    job: UnsafeCell<Option<*const Job<'static>>>,
    /// Spawned workers that have not finished the job.
    running: Alone<AtomicUsize>,
    arrived: Alone<AtomicUsize>,
    generation: Alone<AtomicUsize>,
    claimed: Alone<AtomicUsize>,
    /// What is left of each worker's share of [`Worker::divide`].
    left: Vec<Alone<Left>>,
    panicked: AtomicBool,
    stop: AtomicBool,
    /// Threads that sleep, or are about to.
    asleep: Alone<AtomicUsize>,
    bed: Mutex<()>,
    bell: Condvar,
}

// SAFETY: `job` is written by `Pool::run` only while no worker runs, and read by workers only after
// the epoch that published it; the job itself is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: the same.
unsafe impl Send for Shared {}

/// One thread's place in a job.
pub struct Worker<'a> {
    /// `0..count`.
    pub index: usize,
    /// Workers in the pool.
    pub count: usize,
    shared: &'a Shared,
    /// Tickets drawn in this job's earlier rounds of [`claim`](Self::claim).
    drawn: Cell<usize>,
}

impl Pool {
    /// Starts `workers - 1` threads; `workers` is at least 1.
    ///
    /// # Errors
    /// If the operating system gives no thread.
    pub fn new(workers: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            workers: workers.max(1),
            cores: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
            epoch: Alone::default(),
            job: UnsafeCell::new(None),
            running: Alone::default(),
            arrived: Alone::default(),
            generation: Alone::default(),
            claimed: Alone::default(),
            left: (0..workers.max(1)).map(|_| Alone::default()).collect(),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: Alone::default(),
            bed: Mutex::new(()),
            bell: Condvar::new(),
        });
        WORKERS.fetch_add(shared.workers, Ordering::Relaxed);
        let mut pool = Self { shared, threads: Vec::new() };
        for index in 1..workers {
            let shared = Arc::clone(&pool.shared);
            let thread =
                std::thread::Builder::new().name(format!("eesd-{index}")).spawn(move || shared.serve(index))?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Workers, the caller included.
    pub fn workers(&self) -> usize {
        self.shared.workers
    }

    /// Refuses a pool in which a worker has panicked: its barriers wait for nobody any more, and what its workers share
    /// was left half written.
    ///
    /// # Errors
    /// If one has.
    pub fn check(&self) -> Result<(), BackendError> {
        if self.shared.panicked.load(Ordering::SeqCst) {
            let lost = "a thread panicked in an earlier pass (expected a backend made anew)";
            return Err(BackendError::Device(lost.to_owned()));
        }
        Ok(())
    }

    /// Runs `job` once on every worker and returns when all have finished.
    ///
    /// # Panics
    /// If `job` does, on any worker, or did so in an earlier run.
    pub fn run(&mut self, job: &Job<'_>) {
        assert!(self.check().is_ok(), "a worker of the pool panicked in an earlier run");
        let shared = &*self.shared;
        shared.claimed.0.store(0, Ordering::Relaxed);
        shared.running.0.store(self.threads.len(), Ordering::Relaxed);
        // SAFETY: only the lifetime changes; this function waits until no worker uses the job any more.
        let published = unsafe { std::mem::transmute::<*const Job<'_>, *const Job<'static>>(job) };
        // SAFETY: no worker runs between jobs, so nobody else touches the cell.
        unsafe { *shared.job.get() = Some(published) };
        shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        shared.wake();
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&shared.worker(0))));
        if outcome.is_err() {
            shared.report_panic();
        }
        shared.wait_until(AWAKE, || shared.running.0.load(Ordering::SeqCst) == 0);
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!shared.panicked.load(Ordering::SeqCst), "a worker of the pool panicked");
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        WORKERS.fetch_sub(self.shared.workers, Ordering::Relaxed);
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.wake();
        for thread in self.threads.drain(..) {
            // A worker that panicked has been reported by `run`.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn worker(&self, index: usize) -> Worker<'_> {
        Worker { index, count: self.workers, shared: self, drawn: Cell::new(0) }
    }

    /// Waits until `ready`: spins, and after some time sleeps. What makes it ready is written sequentially consistently, and
    /// [`wake`](Self::wake) is called then.
    fn wait_until(&self, awake: Duration, ready: impl Fn() -> bool) {
        let crowded = WORKERS.load(Ordering::Relaxed) > self.cores;
        let mut since = None;
        for polls in 1u32.. {
            if ready() {
                return;
            }
            std::hint::spin_loop();
            if crowded && polls.is_multiple_of(CROWDED) {
                std::thread::yield_now();
            }
            if polls.is_multiple_of(POLLS) && since.get_or_insert_with(Instant::now).elapsed() > awake {
                break;
            }
        }
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        // Either this thread sees what was written, or whoever wrote it sees this thread counted; and then takes the lock
        // before it rings, so that this thread has looked once more, or listens.
        self.asleep.0.fetch_add(1, Ordering::SeqCst);
        while !ready() {
            bed = self.bell.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.0.fetch_sub(1, Ordering::SeqCst);
    }

    /// Wakes whoever sleeps, to look whether what it waits for is there.
    fn wake(&self) {
        if self.asleep.0.load(Ordering::SeqCst) > 0 {
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.bell.notify_all();
        }
    }

    /// Lets nobody wait any longer for a worker that has panicked.
    fn report_panic(&self) {
        self.panicked.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// A spawned worker's life.
    fn serve(&self, index: usize) {
        let mut done = 0;
        loop {
            let stopped = || self.stop.load(Ordering::SeqCst);
            self.wait_until(AWAKE_BETWEEN, || self.epoch.0.load(Ordering::SeqCst) != done || stopped());
            if stopped() {
                return;
            }
            done += 1;
            // SAFETY: `run` has published the job under this epoch and waits until `running` is zero.
            let job = unsafe { (*self.job.get()).map(|job| &*job) };
            let outcome = catch_unwind(AssertUnwindSafe(|| job.map(|job| job(&self.worker(index)))));
            if outcome.is_err() {
                self.report_panic();
            }
            self.running.0.fetch_sub(1, Ordering::SeqCst);
            self.wake();
        }
    }
}

impl Worker<'_> {
    /// Waits until every worker is here. What they wrote before is visible after.
    ///
    /// # Panics
    /// If another worker has panicked.
    pub fn barrier(&self) {
        if self.count == 1 {
            return;
        }
        let shared = self.shared;
        let generation = shared.generation.0.load(Ordering::Relaxed);
        if shared.arrived.0.fetch_add(1, Ordering::AcqRel) + 1 == self.count {
            shared.arrived.0.store(0, Ordering::Relaxed);
            shared.generation.0.store(generation.wrapping_add(1), Ordering::SeqCst);
            shared.wake();
        } else {
            let panicked = || shared.panicked.load(Ordering::SeqCst);
            shared.wait_until(AWAKE, || shared.generation.0.load(Ordering::SeqCst) != generation || panicked());
            assert!(!panicked(), "another worker of the pool panicked");
        }
    }

    /// This worker's contiguous share of `0..units`.
    pub fn share(&self, units: usize) -> Range<usize> {
        units * self.index / self.count..units * (self.index + 1) / self.count
    }

    /// Calls `work` with ranges that make up `0..units` over all workers: each goes through its own share, always the same, so
    /// that it stays in its caches, and from one end to the other; then helps with what others have left of theirs: cores
    /// are seldom equally fast. A barrier must lie between two rounds, as with [`claim`](Self::claim).
    pub fn divide(&self, units: usize, mut work: impl FnMut(Range<usize>)) {
        if self.count == 1 {
            return work(0..units);
        }
        let own = &self.shared.left[self.index].0;
        own.put(self.share(units));
        while let Some(range) = own.take_first() {
            work(range);
        }
        for other in 1..self.count {
            let left = &self.shared.left[(self.index + other) % self.count].0;
            while let Some(range) = left.take_last() {
                work(range);
            }
        }
    }

    /// The next of `0..units` that no worker has taken, for work of uneven cost. Every worker calls
    /// it until it returns `None`; a barrier must lie between two rounds of claims.
    pub fn claim(&self, units: usize) -> Option<usize> {
        let ticket = self.shared.claimed.0.fetch_add(1, Ordering::Relaxed) - self.drawn.get();
        if ticket < units {
            return Some(ticket);
        }
        // Each worker draws exactly one ticket too many.
        self.drawn.set(self.drawn.get() + units + self.count);
        None
    }
}

/// A range from which its owner takes pieces at the front, and whoever helps at the back.
#[derive(Default)]
struct Left(AtomicU64);

impl Left {
    /// Puts a range here, when nothing is left of the one before.
    fn put(&self, range: Range<usize>) {
        self.0.store(pack(range), Ordering::Release);
    }

    /// Half of what is left: large pieces first, then small ones, so that something is there for others till the end.
    fn take_first(&self) -> Option<Range<usize>> {
        self.take(
            |Range { start, end }| start + (end - start).div_ceil(2),
            |left, cut| (left.start..cut, cut..left.end),
        )
    }

    /// The last quarter of what is left: its owner goes on meanwhile.
    fn take_last(&self) -> Option<Range<usize>> {
        self.take(|Range { start, end }| end - (end - start).div_ceil(4), |left, cut| (cut..left.end, left.start..cut))
    }

    fn take(
        &self,
        cut: impl Fn(&Range<usize>) -> usize,
        split: impl Fn(&Range<usize>, usize) -> (Range<usize>, Range<usize>),
    ) -> Option<Range<usize>> {
        let mut before = self.0.load(Ordering::Acquire);
        loop {
            let left = unpack(before);
            if left.is_empty() {
                return None;
            }
            let (taken, rest) = split(&left, cut(&left));
            match self.0.compare_exchange_weak(before, pack(rest), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return Some(taken),
                Err(now) => before = now,
            }
        }
    }
}

/// A range of less than 2^32 in one word.
fn pack(Range { start, end }: Range<usize>) -> u64 {
    (start as u64) << 32 | end as u64
}

fn unpack(packed: u64) -> Range<usize> {
    (packed >> 32) as usize..(packed & 0xffff_ffff) as usize
}

#[cfg(test)]
mod tests;
