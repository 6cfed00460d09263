//! Numbers that are not finite, on the device: with drafts step by step and in loops.

use crate::non_finite_requests::{self as requests, Make};
use crate::support::on_device;
use eesd::backend::KvFormat;
use eesd::backend::cuda::CudaOptions;

fn on(draft_loops: bool, test: fn(Make<'_>)) {
    over(KvFormat::Full, draft_loops, test);
}

fn over(kv: KvFormat, draft_loops: bool, test: fn(Make<'_>)) {
    let options = CudaOptions { slots: 3, context: 256, max_draft: 4, draft_loops, kv, ..CudaOptions::default() };
    test(&|geometry, weights, exit| on_device(geometry, weights, Some(exit), &options));
}

#[test]
fn a_prompt_that_is_not_finite_fails_alone() {
    on(false, requests::a_prompt_that_is_not_finite_fails_alone);
}

#[test]
fn a_refused_draft_that_is_not_finite_changes_nothing() {
    on(false, requests::a_refused_draft_that_is_not_finite_changes_nothing);
}

#[test]
fn a_broken_proposal_is_known_until_another_takes_its_place() {
    on(false, requests::a_broken_proposal_is_known_until_another_takes_its_place);
}

#[test]
fn an_answer_goes_as_far_as_its_numbers_are_finite() {
    on(true, requests::an_answer_goes_as_far_as_its_numbers_are_finite);
}

#[test]
fn a_broken_proposal_is_known_in_8_bits_too() {
    over(KvFormat::Eight, false, requests::a_broken_proposal_is_known_until_another_takes_its_place);
}
