//! Many short requests under change, which `goodput-ts` has to follow.

use crate::parse;
use crate::simulator::requests::{Case, Change, Pass};
use eesd::control::{Controller, DraftStep, Outcome, RoundTimes, Step};
use eesd::sample::{Philox, Purpose};

/// Back at 95 % of the best fixed length within 50 requests or 2,000 rounds of any change, and over the whole never below
/// 0.97 of plain decoding.
fn follow(slots: usize, passes: &[Pass]) {
    for change in Change::ALL {
        for &pass in passes {
            let played = Case { change, pass, slots, seed: 7 }.prepare();
            let verdict = played.judge(&mut *parse("goodput-ts").build());
            let best = played.best_lengths();
            let name = format!("{}, {}, {slots} at a time, best {best:?}", change.name(), pass.name());
            assert!(verdict.of_plain > 0.97 && verdict.of_best > 0.9, "{name}: {verdict:?}");
            let soon =
                |back: Option<(usize, usize)>| back.is_some_and(|(requests, rounds)| requests <= 50 || rounds <= 2000);
            assert!(verdict.recoveries.iter().all(|recovery| soon(recovery.back)), "{name}: {verdict:?}");
        }
    }
}

#[test]
fn goodput_ts_follows_changes_between_requests_one_at_a_time() {
    follow(1, &Pass::ALL);
}

#[test]
fn goodput_ts_follows_changes_between_requests_side_by_side() {
    follow(2, &[Pass::ROWS_FREE, Pass::ROWS_COST]);
    follow(4, &[Pass::ROWS_FREE, Pass::ROWS_COST, Pass::MEMORY_BOUND]);
}

/// What the simulation is for: rules that draft whatever it costs lose where drafts are bad.
#[test]
fn rules_that_always_draft_lose_where_drafts_are_bad() {
    let played = Case { change: Change::BadAtFirst, pass: Pass::CACHED, slots: 1, seed: 7 }.prepare();
    for spec in ["fixed:3", "threshold:0.6", "beta-ts", "calibration-ts"] {
        let verdict = played.judge(&mut *parse(spec).build());
        assert!(verdict.of_plain < 0.97, "{spec}: {verdict:?}");
    }
}

/// Requests of two tokens in lock-step: only every other round is asked about, and rounds that are not must not make the ones
/// that are miss what they are counted for.
#[test]
fn goodput_ts_measures_and_probes_where_only_every_other_round_may_draft() {
    for first_asked in [0, 1] {
        let mut controller = parse("goodput-ts").build();
        let mut play = |rounds: usize, accepted: usize| -> usize {
            (0..rounds)
                .map(|round| usize::from(lock_step_round(&mut *controller, round % 2 == first_asked, accepted)))
                .sum()
        };
        assert!(play(200, 1) > 50, "good drafts are made");
        play(3000, 0);
        let probes = play(3000, 0);
        assert!((1..300).contains(&probes), "{probes} probes of bad drafts");
        play(2000, 1);
        let good = play(1000, 1);
        assert!(good > 250, "{good} rounds draft after drafts are good again");
    }
}

/// A round of four new sequences that may make a draft each, or of the same ones that may not; returns whether they drafted.
fn lock_step_round(controller: &mut dyn Controller, asked: bool, accepted: usize) -> bool {
    const BATCH: usize = 4;
    let mut drafts = asked;
    if asked {
        (0..BATCH).for_each(|slot| controller.start(slot));
        let step = |slot| Step { slot, batch: BATCH, confidences: &[], limit: 1 };
        let steps: Vec<Step<'_>> = (0..BATCH).map(step).collect();
        let mut draws: Vec<Philox> = (0..BATCH).map(|i| Philox::new(1, i, Purpose::Controller, 0)).collect();
        drafts = controller.proceed_together(&steps, BATCH, &mut draws) == [true; BATCH];
    }
    let (rows, verify_seconds) = if drafts { (2 * BATCH, 1.01) } else { (BATCH, 1.0) };
    let (draft_steps, draft_seconds) =
        if drafts { (vec![DraftStep::through_layers(BATCH, 0.1)], vec![0.1]) } else { (Vec::new(), Vec::new()) };
    controller.observe_times(&RoundTimes {
        batch: BATCH,
        proposed: 0,
        recurrent: 0,
        draft_steps: &draft_steps,
        rows,
        verify_seconds,
    });
    for slot in 0..BATCH {
        let confidences = &[0.5][..usize::from(drafts)];
        let (batch, accepted) = (BATCH, if drafts { accepted } else { 0 });
        let draft_seconds = &draft_seconds[..];
        controller.observe(&Outcome { slot, batch, rows, confidences, accepted, draft_seconds, verify_seconds });
    }
    drafts
}
