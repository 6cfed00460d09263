//! Pages saved to the host and restored, on any device.

use eesd::TokenId;
use eesd::backend::{Backend, Chunk, Draft, SavedPages, Sequence};
use eesd::control::DraftPlan;
use eesd::kv::PageId;
use eesd::sample::{Sampler, SamplingParams, VerifyMode};

/// Rounds of a text, half of them before its pages are saved.
const ROUNDS: usize = 6;

/// Drafts of a round, the bits of its logits, and the tokens so far.
type Round = (Vec<Draft>, Vec<u32>, Vec<TokenId>);

/// A text that is written in slot 1.
struct Text {
    pages: Vec<PageId>,
    tokens: Vec<TokenId>,
    prompt: usize,
    sampler: Sampler,
}

impl Text {
    fn new(backend: &mut dyn Backend, pages: [u32; 3], prompt: &[TokenId]) -> Self {
        let sampling = SamplingParams {
            temperature: 0.9,
            seed: Some(5),
            verify: Some(VerifyMode::Coupled),
            // The device counts tokens in the slot.
            frequency_penalty: 0.4,
            ..SamplingParams::default()
        };
        let sampler = Sampler::new(sampling, backend.geometry().vocab_size).unwrap();
        let pages = pages.map(PageId).to_vec();
        backend.prefill(&[Chunk { pages: &pages, start: 0, tokens: &prompt[..prompt.len() - 1] }]).unwrap();
        Self { pages, tokens: prompt.to_vec(), prompt: prompt.len(), sampler }
    }

    fn round(&mut self, backend: &mut dyn Backend, drafts: usize) -> Round {
        let (pages, prompt, sampler, committed) = (&self.pages, self.prompt, &self.sampler, self.tokens.len());
        let sequence =
            Sequence { slot: 1, pages, tokens: &self.tokens, committed, prompt, proposed: 0, recurrent: 0, sampler };
        let drafts = match drafts {
            0 => Vec::new(),
            drafts => backend.draft_planned(&sequence, &DraftPlan::of_length(drafts), &[]).unwrap(),
        };
        let drafted: Vec<_> = self.tokens.iter().copied().chain(drafts.iter().map(|draft| draft.token)).collect();
        let verdict = backend.verify(&[Sequence { tokens: &drafted, ..sequence }]).unwrap().remove(0);
        self.tokens = drafted[..committed + verdict.accepted].to_vec();
        self.tokens.push(verdict.next);
        let logits = backend.target_logits(1).unwrap();
        (drafts, logits.iter().map(|logit| logit.to_bits()).collect(), self.tokens.clone())
    }

    fn rounds(&mut self, backend: &mut dyn Backend, drafts: usize, count: usize) -> Vec<Round> {
        (0..count).map(|_| self.round(backend, drafts)).collect()
    }
}

/// A text goes on as if nothing had happened when its pages and its slot have served another one, and what was in the
/// pages is in others. The backend has two slots and six pages.
pub fn check_texts_go_on(backend: &mut dyn Backend, prompts: [&[TokenId]; 2], drafts: usize) {
    let expected = Text::new(backend, [0, 1, 2], prompts[0]).rounds(backend, drafts, ROUNDS);
    let mut text = Text::new(backend, [0, 1, 2], prompts[0]);
    let mut found = text.rounds(backend, drafts, ROUNDS / 2);
    let saved = backend.save_pages(&text.pages).unwrap();
    let mut other = Text::new(backend, [2, 0, 1], prompts[1]);
    other.round(backend, drafts);
    assert!(backend.save_pages(&text.pages).unwrap().bytes() != saved.bytes(), "the other text wrote nothing");
    let others = backend.save_pages(&other.pages).unwrap();
    text.pages = [5, 3, 4].map(PageId).to_vec();
    backend.restore_pages(&saved, &text.pages).unwrap();
    found.extend(text.rounds(backend, drafts, ROUNDS / 2));
    assert!(found == expected, "{drafts} drafts: not the same rounds");
    assert!(backend.save_pages(&other.pages).unwrap().bytes() == others.bytes(), "another text's pages were changed");
}

/// Whatever bits pages hold, they come back, in any order and number at a time.
pub fn check_bits_come_back(backend: &mut dyn Backend) {
    let count = backend.limits().pages;
    let page_bytes = backend.save_pages(&[PageId(0)]).unwrap().bytes().len();
    let bytes: Vec<u8> = (0..count * page_bytes).map(|i| (i ^ i >> 7 ^ i >> 13 ^ i >> 19) as u8).collect();
    // Some neighbours, some not.
    let step = |i: usize| PageId((if i < count / 2 { i } else { count / 2 + count - 1 - i }) as u32);
    let pages: Vec<PageId> = (0..count).map(step).collect();
    backend.restore_pages(&SavedPages::new(count, bytes.clone()), &pages).unwrap();
    assert!(backend.save_pages(&pages).unwrap().bytes() == bytes, "all at once");
    let each: Vec<SavedPages> = pages.iter().map(|&page| backend.save_pages(&[page]).unwrap()).collect();
    let moved: Vec<PageId> = pages.iter().rev().copied().collect();
    for (saved, &page) in each.iter().zip(&moved) {
        backend.restore_pages(saved, &[page]).unwrap();
    }
    assert!(backend.save_pages(&moved).unwrap().bytes() == bytes, "one at a time, to other places");
    assert!(backend.save_pages(&pages).unwrap().bytes() != bytes);
}

/// Pages that are not there, or not as many, and bytes that are no pages of this cache.
pub fn check_refusals(backend: &mut dyn Backend) {
    let (all, beyond) = (backend.limits().pages, PageId(backend.limits().pages as u32));
    let saved = backend.save_pages(&[PageId(1), PageId(0)]).unwrap();
    let (bytes, page_bytes) = (saved.bytes().to_vec(), saved.bytes().len() / 2);
    assert_eq!(saved.pages(), 2);
    let beyond_error = format!("device: page {all} of {all}");
    assert_eq!(backend.save_pages(&[PageId(0), beyond]).err().unwrap().to_string(), beyond_error);
    let mut refused =
        |saved: &SavedPages, pages: &[PageId]| backend.restore_pages(saved, pages).unwrap_err().to_string();
    assert_eq!(refused(&saved, &[beyond, PageId(0)]), beyond_error);
    let expected = |pages: usize, len: usize, wanted: usize| {
        format!("device: {pages} saved pages of {len} bytes in all (expected {wanted} of {page_bytes} each)")
    };
    for pages in [&[PageId(0)][..], &[PageId(0), PageId(1), PageId(2)], &[]] {
        assert_eq!(refused(&saved, pages), expected(2, bytes.len(), pages.len()));
    }
    for (pages, len) in [(2, bytes.len() - 1), (2, page_bytes), (1, bytes.len()), (3, bytes.len()), (2, 0)] {
        let damaged = SavedPages::new(pages, bytes[..len].to_vec());
        assert_eq!(refused(&damaged, &[PageId(0), PageId(1)]), expected(pages, len, 2));
    }
    let longer = SavedPages::new(2, [&bytes[..], &[0]].concat());
    assert_eq!(refused(&longer, &[PageId(0), PageId(1)]), expected(2, bytes.len() + 1, 2));
    // Nothing was touched by what was refused, and nothing is no mistake.
    assert!(backend.save_pages(&[PageId(1), PageId(0)]).unwrap().bytes() == bytes);
    assert!(backend.save_pages(&[]).unwrap().bytes().is_empty());
    backend.restore_pages(&SavedPages::default(), &[]).unwrap();
}
