//! Pages under random use: none is lost, held twice, or changed by rolling back. And what the processor's cache holds
//! in them, saved and restored.

use crate::common::exits::exit_after;
use crate::common::saved_pages;
use eesd::backend::Backend;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::kv::{BlockTable, PAGE_TOKENS, PageId, PagePool, PrefixCache};
use eesd::load::Checkpoint;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};
use std::path::Path;

#[derive(Debug, Clone)]
enum Op {
    Reserve(usize, usize),
    SetLen(usize, usize),
    Release(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let table = 0..5usize;
    prop_oneof![
        3 => (table.clone(), 0..700usize).prop_map(|(table, positions)| Op::Reserve(table, positions)),
        3 => (table.clone(), 0..700usize).prop_map(|(table, len)| Op::SetLen(table, len)),
        1 => table.prop_map(Op::Release),
    ]
}

proptest! {
    #[test]
    fn pages_are_never_lost_or_shared(total in 0..30usize, ops in prop::collection::vec(op(), 0..80)) {
        let mut pool = PagePool::new(total);
        let mut tables: Vec<BlockTable> = (0..5).map(|_| BlockTable::default()).collect();
        for op in ops {
            match op {
                Op::Reserve(i, positions) => {
                    let (before, free) = (tables[i].pages().to_vec(), pool.free());
                    let missing = positions.div_ceil(PAGE_TOKENS).saturating_sub(before.len());
                    match tables[i].reserve(positions, &mut pool) {
                        Ok(()) => {
                            prop_assert!(missing <= free && tables[i].capacity() >= positions);
                            prop_assert!(tables[i].pages().starts_with(&before));
                        }
                        Err(short) => {
                            prop_assert_eq!(short, missing - free);
                            prop_assert_eq!(tables[i].pages(), &before[..]);
                            prop_assert_eq!(pool.free(), free);
                        }
                    }
                }
                Op::SetLen(i, len) => {
                    let pages = tables[i].pages().to_vec();
                    let len = len.min(tables[i].capacity());
                    tables[i].set_len(len);
                    prop_assert_eq!(tables[i].len(), len);
                    prop_assert_eq!(tables[i].pages(), &pages[..]);
                }
                Op::Release(i) => {
                    tables[i].release(&mut pool);
                    prop_assert!(tables[i].is_empty() && tables[i].capacity() == 0);
                }
            }
            let held: Vec<PageId> = tables.iter().flat_map(|table| table.pages().iter().copied()).collect();
            prop_assert_eq!(held.len() + pool.free(), total);
            prop_assert!(held.iter().all(|page| (page.0 as usize) < total));
            prop_assert_eq!(held.iter().collect::<HashSet<_>>().len(), held.len());
        }
        tables.iter_mut().for_each(|table| table.release(&mut pool));
        prop_assert_eq!(pool.free(), total);
        prop_assert_eq!(pool.take(total + 1), None);
        prop_assert_eq!(pool.take(total).map(|pages| pages.len()), Some(total));
    }
}

#[test]
#[should_panic(expected = "65 positions in pages for 64")]
fn a_length_beyond_the_pages_is_a_bug() {
    let mut pool = PagePool::new(1);
    let mut table = BlockTable::default();
    table.reserve(1, &mut pool).unwrap();
    table.set_len(65);
}

/// A small model on two threads, with an exit block after its first layer or without, and six pages.
fn backend(drafts: bool) -> Box<dyn Backend> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/llama");
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let exit = drafts.then(|| exit_after(&checkpoint, &[], 1));
    let options =
        CpuOptions { threads: Some(2), slots: 2, context: 192, max_draft: 4, pages: Some(6), ..CpuOptions::default() };
    CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), exit.as_ref(), &options).unwrap()
}

#[test]
fn texts_go_on_in_other_pages() {
    let text = |seed: u32, len: u32| (0..len).map(|i| (seed * 131 + i * i * 31 + i * 17) % 512).collect::<Vec<_>>();
    let (prompt, other) = (text(1, 60), text(2, 140));
    for drafts in [3, 0] {
        saved_pages::check_texts_go_on(&mut *backend(true), [&prompt, &other], drafts);
    }
    saved_pages::check_texts_go_on(&mut *backend(false), [&prompt, &other], 0);
}

#[test]
fn bits_of_pages_come_back() {
    saved_pages::check_bits_come_back(&mut *backend(true));
}

#[test]
fn pages_that_cannot_be_saved_or_restored_are_refused() {
    saved_pages::check_refusals(&mut *backend(true));
}

/// What a text's pages hold: each page by the text up to its end.
fn pages_of(text: &[u32]) -> impl Iterator<Item = &[u32]> {
    (1..=text.len()).map(|pages| &text[..pages])
}

proptest! {
    /// Texts of pages that begin alike come and go: pages are found again by their texts and by nothing else, the idle
    /// ones are counted right, and where room is wanted the least recently used ends go, as many as are wanted.
    #[test]
    fn pages_kept_are_those_of_their_texts(
        ops in prop::collection::vec((0..4u32, prop::collection::vec(0..2u32, 1..6), 0..6usize), 1..60),
    ) {
        const PAGES: usize = 12;
        let (mut pool, mut cache) = (PagePool::new(PAGES), PrefixCache::default());
        // Pages by what they hold, and who runs: the pages that it holds.
        let mut holds: HashMap<PageId, Vec<u32>> = HashMap::new();
        let mut running: Vec<Vec<PageId>> = Vec::new();
        for (op, text, count) in ops {
            let tokens: Vec<u32> = text.iter().flat_map(|&page| [page; PAGE_TOKENS]).collect();
            match op {
                0 | 1 => {
                    let mut held = cache.find(&tokens);
                    for (page, text) in held.iter().zip(pages_of(&text)) {
                        prop_assert_eq!(&holds[page], text);
                        pool.share(*page);
                    }
                    let missing = text.len() - held.len();
                    cache.evict(missing.saturating_sub(pool.free()), &mut pool);
                    match pool.take(missing) {
                        Some(pages) => held.extend(pages),
                        None => {
                            pool.give_back(held);
                            continue;
                        }
                    }
                    for (index, text) in pages_of(&text).enumerate() {
                        let page = held[index];
                        holds.insert(page, text.to_vec());
                        let kept = cache.keep(&tokens[..(index + 1) * PAGE_TOKENS], page, &mut pool);
                        prop_assert_eq!(&holds[&kept], text);
                        if kept != page {
                            pool.share(kept);
                            pool.give_back([page]);
                            held[index] = kept;
                        }
                    }
                    running.push(held);
                }
                2 if !running.is_empty() => pool.give_back(running.swap_remove(count % running.len())),
                _ => {
                    let (free, idle) = (pool.free(), pool.idle());
                    cache.evict(count, &mut pool);
                    prop_assert!(pool.free() - free <= count && pool.idle() == idle - (pool.free() - free));
                    if running.is_empty() {
                        prop_assert_eq!(pool.free() - free, count.min(idle));
                    }
                }
            }
            let held: HashSet<PageId> = running.iter().flatten().copied().collect();
            prop_assert_eq!(pool.free() + pool.idle() + held.len(), PAGES);
            prop_assert!(cache.len() >= pool.idle());
        }
        running.into_iter().for_each(|held| pool.give_back(held));
        prop_assert_eq!(pool.idle(), cache.len());
        cache.clear(&mut pool);
        prop_assert_eq!((pool.free(), pool.idle()), (PAGES, 0));
    }
}
