//! Threads that stay awake during a pass.
//!
//! A pass is some forty small operations, so a hand-over between threads must cost well under a
//! microsecond. Every worker runs the whole pass, meets the others at [barriers](Worker::barrier)
//! and spins there; between passes it spins a little longer and then sleeps.

use super::super::BackendError;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker without work stays awake.
const AWAKE: Duration = Duration::from_millis(4);

/// Polls between two looks at the clock by a worker without work, some tens of microseconds.
const POLLS: u32 = 4096;

/// Polls before a waiting thread lets others have its core, where each worker has a core of its own:
/// some milliseconds. To yield sooner would give a time slice away to any busy program beside this
/// one, at every barrier.
const PATIENT: u32 = 1 << 19;

/// The same where workers share cores: whom this thread waits for is likely to need its core.
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
    panicked: AtomicBool,
    stop: AtomicBool,
    asleep: Vec<AtomicBool>,
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
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            asleep: (0..workers.max(1)).map(|_| AtomicBool::new(false)).collect(),
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
        for (thread, asleep) in self.threads.iter().zip(&shared.asleep[1..]) {
            if asleep.load(Ordering::SeqCst) {
                thread.thread().unpark();
            }
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| job(&shared.worker(0))));
        if outcome.is_err() {
            shared.panicked.store(true, Ordering::SeqCst);
        }
        shared.poll_until(|| shared.running.0.load(Ordering::Acquire) == 0);
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
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A worker that panicked has been reported by `run`.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn worker(&self, index: usize) -> Worker<'_> {
        Worker { index, count: self.workers, shared: self, drawn: Cell::new(0) }
    }

    /// Polls before a waiting thread lets others have its core.
    fn patience(&self) -> u32 {
        if WORKERS.load(Ordering::Relaxed) > self.cores { CROWDED } else { PATIENT }
    }

    /// Spins until `ready`; gives the core away now and then.
    fn poll_until(&self, ready: impl Fn() -> bool) {
        let mut polls = 0u32;
        while !ready() {
            std::hint::spin_loop();
            polls = polls.wrapping_add(1);
            if polls.is_multiple_of(self.patience()) {
                std::thread::yield_now();
            }
        }
    }

    /// A spawned worker's life.
    fn serve(&self, index: usize) {
        let mut done = 0;
        while self.next_job(index, done) {
            done += 1;
            // SAFETY: `run` has published the job under this epoch and waits until `running` is zero.
            let job = unsafe { (*self.job.get()).map(|job| &*job) };
            let outcome = catch_unwind(AssertUnwindSafe(|| job.map(|job| job(&self.worker(index)))));
            if outcome.is_err() {
                self.panicked.store(true, Ordering::SeqCst);
            }
            self.running.0.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Waits for job number `done + 1`; false when the pool is dropped.
    fn next_job(&self, index: usize, done: usize) -> bool {
        let ready = || self.epoch.0.load(Ordering::SeqCst) != done;
        let mut idle_since = None;
        let mut polls = 0u32;
        loop {
            if ready() {
                return true;
            }
            if self.stop.load(Ordering::SeqCst) {
                return false;
            }
            std::hint::spin_loop();
            polls = polls.wrapping_add(1);
            if polls.is_multiple_of(self.patience()) {
                std::thread::yield_now();
            }
            if !polls.is_multiple_of(POLLS) {
                continue;
            }
            if idle_since.get_or_insert_with(Instant::now).elapsed() > AWAKE {
                self.asleep[index].store(true, Ordering::SeqCst);
                if !ready() && !self.stop.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.asleep[index].store(false, Ordering::SeqCst);
            }
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
            shared.generation.0.store(generation.wrapping_add(1), Ordering::Release);
        } else {
            shared.poll_until(|| {
                assert!(!shared.panicked.load(Ordering::Relaxed), "another worker of the pool panicked");
                shared.generation.0.load(Ordering::Acquire) != generation
            });
        }
    }

    /// This worker's contiguous share of `0..units`.
    pub fn share(&self, units: usize) -> std::ops::Range<usize> {
        units * self.index / self.count..units * (self.index + 1) / self.count
    }

    /// Calls `work` with ranges that make up `0..units` over all workers: first most of this worker's own share, always the
    /// same, so that it stays in its caches; then small pieces of what is left, for whoever is done first: cores are seldom
    /// equally fast. A barrier must lie between two rounds, as with [`claim`](Self::claim).
    pub fn divide(&self, units: usize, mut work: impl FnMut(std::ops::Range<usize>)) {
        /// Pieces of what is left, for each worker.
        const PIECES: usize = 4;
        if self.count == 1 {
            return work(0..units);
        }
        let fixed = units * 3 / 4;
        work(self.share(fixed));
        let piece = (units - fixed).div_ceil(PIECES * self.count).max(1);
        while let Some(index) = self.claim((units - fixed).div_ceil(piece)) {
            let first = fixed + index * piece;
            work(first..units.min(first + piece));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_divided_without_gaps_and_overlaps() {
        for workers in 1..4 {
            let mut pool = Pool::new(workers).unwrap();
            for units in (0..40).chain([1000]) {
                let taken: Vec<AtomicUsize> = (0..units).map(|_| AtomicUsize::new(0)).collect();
                pool.run(&|worker| {
                    for _ in 0..3 {
                        worker.divide(units, |range| {
                            for unit in &taken[range] {
                                unit.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                        worker.barrier();
                    }
                });
                assert!(taken.iter().all(|unit| unit.load(Ordering::Relaxed) == 3), "{units} units, {workers} workers");
            }
        }
    }

    #[test]
    fn every_unit_is_claimed_once_in_every_round() {
        let mut pool = Pool::new(3).unwrap();
        for _ in 0..50 {
            let taken: [[AtomicUsize; 8]; 4] = Default::default();
            pool.run(&|worker| {
                for (round, taken) in taken.iter().enumerate() {
                    while let Some(unit) = worker.claim(5 + round) {
                        taken[unit].fetch_add(1, Ordering::Relaxed);
                    }
                    worker.barrier();
                }
            });
            let taken = taken.map(|round| round.map(AtomicUsize::into_inner));
            let once = |round: usize| std::array::from_fn(|unit| usize::from(unit < 5 + round));
            assert_eq!(taken, std::array::from_fn(once));
        }
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let mut pool = Pool::new(2).unwrap();
        for asleep in [false, true, false, true] {
            while asleep && !pool.shared.asleep[1].load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let runs = AtomicUsize::new(0);
            pool.run(&|_| {
                runs.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(runs.into_inner(), 2);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_hangs_nobody() {
        for culprit in 0..2 {
            let mut pool = Pool::new(2).unwrap();
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|worker| {
                    assert_ne!(worker.index, culprit);
                    worker.barrier();
                });
            }));
            assert!(outcome.is_err());
        }
    }

    #[test]
    fn a_pool_that_lost_a_worker_is_refused_before_anything_runs() {
        for culprit in 0..2 {
            let mut pool = Pool::new(2).unwrap();
            assert!(pool.check().is_ok());
            let lose = |pool: &mut Pool| {
                catch_unwind(AssertUnwindSafe(|| pool.run(&|worker| assert_ne!(worker.index, culprit))))
            };
            assert!(lose(&mut pool).is_err());
            let error = pool.check().unwrap_err();
            assert!(error.to_string().contains("panicked"), "{error}");
            let runs = AtomicUsize::new(0);
            let again = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|_| {
                    runs.fetch_add(1, Ordering::Relaxed);
                });
            }));
            assert!(again.is_err());
            assert_eq!(runs.into_inner(), 0);
        }
    }
}
