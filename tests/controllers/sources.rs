//! The choice among sources of drafts, on made-up texts.

use super::simulator::recorded::{Case, MACHINES};
use super::simulator::sources::{Drafter, Sourced, best_single, passages, play, recorded, with_made_up_drafts};
use super::simulator::{Costs, Rows};
use super::{exact, parse};

const TOKENS: usize = 20_000;

fn both() -> Drafter {
    Drafter::Both(parse("goodput-ts"))
}

fn costs(draft: f64, row: f64) -> Costs {
    Costs { rows: Rows::Even(row), ..exact(draft) }
}

/// Mean speed of a drafter over that of the best single source at its best fixed length in hindsight.
fn over_best(drafter: &Drafter, passage: usize, chances: &[(f64, f64)], costs: Costs) -> f64 {
    let one = |seed| {
        let text = passages(TOKENS, passage, chances, seed);
        play(drafter, &text, costs, seed).speedup() / best_single(&text, costs)
    };
    (1..4).map(one).sum::<f64>() / 3.0
}

#[test]
fn on_stationary_texts_it_is_as_good_as_the_best_single_source() {
    for (exit, lookup) in [(0.1, 0.1), (0.1, 0.8), (0.8, 0.1), (0.5, 0.5), (0.6, 0.9), (0.9, 0.6)] {
        for (draft, row) in [(0.1, 0.02), (0.2, 0.1), (0.4, 0.05)] {
            let found = over_best(&both(), TOKENS, &[(exit, lookup)], costs(draft, row));
            assert!(found > 0.98, "exit {exit}, lookup {lookup}, r = {draft}, a row {row}: {found}");
        }
    }
}

#[test]
fn where_sources_are_good_at_different_times_it_is_ahead_of_each() {
    for (draft, row) in [(0.1, 0.02), (0.2, 0.1)] {
        let found = over_best(&both(), 300, &[(0.9, 0.1), (0.1, 0.9)], costs(draft, row));
        assert!(found > 1.1, "r = {draft}, a row {row}: {found}");
    }
}

#[test]
fn lookups_that_are_never_right_lose_nothing() {
    for row in [0.02, 0.2, 1.0] {
        let text = passages(TOKENS, TOKENS, &[(0.0, 0.02)], 7);
        let found = play(&Drafter::Lookups, &text, costs(0.1, row), 7).speedup();
        assert!(found > 0.99, "a row {row}: {found}");
    }
}

/// A single row that has kernels of its own, rows that are cheap up to some number, and times that vary.
#[test]
fn what_rows_cost_is_found_out() {
    for rows in [Rows::MemoryBound, Rows::SingleRowFast, Rows::Even(0.05)] {
        for (lookup, least) in [(0.9, 0.95), (0.6, 0.95), (0.2, 0.97)] {
            let costs = Costs { rows, jitter: 0.1, ..exact(0.2) };
            let found = over_best(&Drafter::Lookups, TOKENS, &[(0.0, lookup)], costs);
            assert!(found > least, "{rows:?}, lookup {lookup}: {found}");
        }
    }
}

fn recorded_texts() -> Vec<Vec<Sourced>> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/traces/smollm2-135m-lookups.jsonl");
    recorded(&path, false).unwrap()
}

/// What a chat model's answers to six public sets of prompts repeat, on machines as they were measured and are expected to
/// be: at any batch size the choice keeps up with the best length in hindsight, and with plain decoding.
#[test]
fn in_recorded_texts_it_keeps_up_with_the_best_length_at_every_batch_size() {
    let texts = recorded_texts();
    for costs in &MACHINES {
        for &batch in costs.batches {
            let case = Case::new(costs, batch, &texts);
            let (length, best) = case.best_length();
            let found = (1..4).map(|seed| case.chosen(&Drafter::Lookups, seed).0).sum::<f64>() / 3.0;
            assert!(found > 0.98 * best, "{}, batch {batch}: {found}, of {length} tokens {best}", costs.name);
        }
    }
}

/// Beside the same lookups a block that is seldom right costs little, and a better one gains.
#[test]
fn an_exit_block_that_is_worth_nothing_costs_little_beside_lookups() {
    let texts = recorded_texts();
    for costs in &MACHINES {
        for (right, least) in [(0.0, 0.98), (0.2, 0.98), (0.3, 0.98), (0.4, 0.98), (0.6, 1.03)] {
            let texts = with_made_up_drafts(&texts, right, 1);
            let case = Case::new(costs, 1, &texts);
            let speed = |drafter: &Drafter| (1..4).map(|seed| case.chosen(drafter, seed).0).sum::<f64>() / 3.0;
            let found = speed(&both()) / speed(&Drafter::Lookups);
            assert!(found > least, "{}, right in {right}: {found}", costs.name);
        }
    }
}
