//! Work is divided and claimed once, barriers hold, sleepers wake, panics hang nobody.

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

/// Returns once so many threads of the pool sleep.
fn wait_for_sleepers(shared: &Shared, count: usize) {
    while shared.asleep.0.load(Ordering::SeqCst) < count {
        std::thread::yield_now();
    }
}

#[test]
fn workers_that_fell_asleep_between_two_jobs_wake_up() {
    let mut pool = Pool::new(3).unwrap();
    for asleep in [false, true, false, true] {
        if asleep {
            wait_for_sleepers(&pool.shared, 2);
        }
        let runs = AtomicUsize::new(0);
        pool.run(&|_| {
            runs.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(runs.into_inner(), 3);
    }
}

#[test]
fn workers_that_fell_asleep_at_a_barrier_wake_up_when_the_last_one_comes() {
    let mut pool = Pool::new(3).unwrap();
    for last in 0..3 {
        let arrived = AtomicUsize::new(0);
        pool.run(&|worker| {
            for _ in 0..2 {
                if worker.index == last {
                    wait_for_sleepers(worker.shared, 2);
                }
                arrived.fetch_add(1, Ordering::Relaxed);
                worker.barrier();
                assert!(arrived.load(Ordering::Relaxed).is_multiple_of(3));
                worker.barrier();
            }
        });
    }
}

#[test]
fn a_caller_that_fell_asleep_wakes_up_when_the_last_worker_is_done() {
    let mut pool = Pool::new(2).unwrap();
    for _ in 0..3 {
        pool.run(&|worker| {
            if worker.index == 1 {
                wait_for_sleepers(worker.shared, 1);
            }
        });
    }
}

#[test]
fn a_panic_wakes_whoever_sleeps_at_a_barrier() {
    for culprit in 0..2 {
        let mut pool = Pool::new(2).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(&|worker| {
                if worker.index == culprit {
                    wait_for_sleepers(worker.shared, 1);
                    panic!("on purpose");
                }
                worker.barrier();
            });
        }));
        assert!(outcome.is_err());
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
        let lose =
            |pool: &mut Pool| catch_unwind(AssertUnwindSafe(|| pool.run(&|worker| assert_ne!(worker.index, culprit))));
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
