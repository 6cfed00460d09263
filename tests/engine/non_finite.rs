//! Numbers that are not finite, on the processor.

use super::common::non_finite::{self, Make};
use eesd::backend::cpu::{CpuBackend, CpuOptions};

fn on(threads: usize, test: fn(Make<'_>)) {
    let options = CpuOptions { threads: Some(threads), slots: 3, context: 256, max_draft: 4, ..CpuOptions::default() };
    test(&|geometry, weights, exit| CpuBackend::new(geometry, weights, Some(exit), &options).unwrap());
}

#[test]
fn a_prompt_that_is_not_finite_fails_alone() {
    on(2, non_finite::a_prompt_that_is_not_finite_fails_alone);
}

#[test]
fn a_refused_draft_that_is_not_finite_changes_nothing() {
    on(2, non_finite::a_refused_draft_that_is_not_finite_changes_nothing);
}

#[test]
fn an_answer_goes_as_far_as_its_numbers_are_finite() {
    on(1, non_finite::an_answer_goes_as_far_as_its_numbers_are_finite);
}
