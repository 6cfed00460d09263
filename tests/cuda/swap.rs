//! Pages to the host and back.

use crate::saved_pages::{check_bits_come_back, check_refusals, check_texts_go_on};
use crate::support::{Subject, emulated, on, options};
use eesd::backend::cuda::CudaOptions;
use eesd::kv::PageId;

#[test]
fn texts_go_on_in_other_pages() {
    let subject = Subject::fixture("llama");
    // It reaches its second page while it drafts, and its third one holds nothing yet.
    let (prompt, other) = (subject.text(1, 60), subject.text(2, 70));
    let mut backend = subject.cuda(Some(1), &options(2));
    for drafts in [3, 0] {
        check_texts_go_on(&mut *backend, [&prompt, &other], drafts);
    }
    let mut plain = subject.cuda(None, &options(2));
    check_texts_go_on(&mut *plain, [&prompt, &other], 0);
}

#[test]
fn bits_of_pages_come_back() {
    // More than goes through page-locked memory at a time, so that runs of pages are cut.
    let options = CudaOptions { pages: Some(45), ..options(2) };
    check_bits_come_back(&mut *Subject::fixture("llama").cuda(Some(1), &options));
}

#[test]
fn pages_that_cannot_be_saved_or_restored_are_refused() {
    check_refusals(&mut *Subject::fixture("qwen2").cuda(Some(1), &options(1)));
}

#[test]
fn neighbours_are_one_copy_in_each_array() {
    let device = emulated(0, 1 << 30);
    let mut backend = on(&device, &options(1)).unwrap();
    let arrays = 2 * (backend.geometry().layers as u64 + 1);
    for (pages, runs) in [(&[2, 3, 4, 5][..], 1), (&[5, 4, 3], 3), (&[1, 2, 7, 0], 3), (&[6], 1), (&[], 0)] {
        let pages: Vec<PageId> = pages.iter().copied().map(PageId).collect();
        let before = device.counts();
        let saved = backend.save_pages(&pages).unwrap();
        assert_eq!(device.counts().copies - before.copies, runs * arrays, "{pages:?}");
        backend.restore_pages(&saved, &pages).unwrap();
        let after = device.counts();
        assert_eq!(after.copies - before.copies, 2 * runs * arrays, "{pages:?}");
        // All of these go through page-locked memory in one piece.
        assert_eq!(after.waits - before.waits, 2 * runs.min(1), "{pages:?}");
    }
}
