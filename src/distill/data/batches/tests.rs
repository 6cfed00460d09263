use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// A document whose tokens tell which one it is and where they stand in it.
fn document(number: usize, len: usize, prompt: usize) -> Document {
    let first = (number * 1000) as u32;
    Document { tokens: (first..first + len as u32).collect(), prompt }
}

fn batches(documents: &[Document], window: usize, batch_tokens: usize) -> Batches<'_> {
    Batches::new(documents, window, batch_tokens, 5).unwrap()
}

fn epoch(batches: &Batches<'_>, epoch: u64) -> Vec<Vec<Segment>> {
    let steps = batches.steps_per_epoch();
    (epoch * steps..(epoch + 1) * steps).map(|step| batches.batch(step)).collect()
}

/// The tokens whose successors are trained on, ascending.
fn trained(batches: &[Vec<Segment>]) -> Vec<u32> {
    let mut tokens: Vec<u32> =
        batches.iter().flatten().flat_map(|segment| segment.tokens[segment.scored.clone()].to_vec()).collect();
    tokens.sort_unstable();
    tokens
}

#[test]
fn windows_share_one_token_and_no_position() {
    let cut = |len, prompt| {
        let documents = [document(0, len, prompt)];
        let mut segments = epoch(&batches(&documents, 4, 4), 0).concat();
        segments.sort_by_key(|segment| segment.tokens[0]);
        segments
            .into_iter()
            .map(|segment| (segment.tokens[0], segment.tokens.len(), segment.scored))
            .collect::<Vec<_>>()
    };
    assert_eq!(cut(4, 1), [(0, 4, 0..3)]);
    assert_eq!(cut(5, 1), [(0, 4, 0..3), (3, 2, 0..1)]);
    assert_eq!(cut(7, 1), [(0, 4, 0..3), (3, 4, 0..3)]);
    assert_eq!(cut(8, 3), [(0, 4, 2..3), (3, 4, 0..3), (6, 2, 0..1)]);
    // Context alone is no segment; a window of it and the first scored position is.
    assert_eq!(cut(8, 4), [(3, 4, 0..3), (6, 2, 0..1)]);
    assert_eq!(cut(8, 6), [(3, 4, 2..3), (6, 2, 0..1)]);
    assert_eq!(cut(2, 0), [(0, 2, 0..1)]);
}

#[test]
fn epochs_differ_in_order_and_in_neighbours() {
    let documents: Vec<Document> = (0..200).map(|i| document(i, 20 + i % 30, 1)).collect();
    let batches = batches(&documents, 64, 256);
    let composition = |number| {
        let mut first: Vec<Vec<u32>> = epoch(&batches, number)
            .iter()
            .map(|batch| {
                let mut starts: Vec<u32> = batch.iter().map(|segment| segment.tokens[0]).collect();
                starts.sort_unstable();
                starts
            })
            .collect();
        first.sort();
        first
    };
    let order = |number| epoch(&batches, number).concat();
    assert_ne!(order(0), order(1));
    let (zero, one) = (composition(0), composition(1));
    let kept = zero.iter().filter(|batch| one.contains(batch)).count();
    assert!(kept * 10 < zero.len(), "{kept} of {} batches are the same in two epochs", zero.len());
    // Another seed is another order.
    assert_ne!(order(0), epoch(&Batches::new(&documents, 64, 256, 6).unwrap(), 0).concat());
}

/// Every window is as likely to come early in an epoch as late.
#[test]
fn shuffling_has_no_favourites() {
    let documents: Vec<Document> = (0..12).map(|i| document(i, 8, 1)).collect();
    let batches = batches(&documents, 8, 8);
    let mut place = BTreeMap::new();
    const EPOCHS: u64 = 3000;
    for number in 0..EPOCHS {
        for (at, batch) in epoch(&batches, number).iter().enumerate() {
            *place.entry((batch[0].tokens[0], at)).or_insert(0u32) += 1;
        }
    }
    let expected = EPOCHS as f64 / 12.0;
    assert_eq!(place.len(), 144);
    let statistic: f64 = place.values().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
    // χ² with 121 degrees of freedom: above 190 once in 15,000.
    assert!(statistic < 190.0, "χ² = {statistic}");
}

#[test]
fn what_cannot_be_packed_is_refused() {
    let documents = [document(0, 5, 1)];
    let message = |documents: &[Document], window, tokens| {
        Batches::new(documents, window, tokens, 0).err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(message(&documents, 1, 10), "window: 1 (expected 2 tokens or more)");
    assert_eq!(message(&documents, 0, 10), "window: 0 (expected 2 tokens or more)");
    let small = "batch_tokens: 3, with windows of 4 tokens (expected at least a window)";
    assert_eq!(message(&documents, 4, 3), small);
    let none = "documents without a position to train at: expected at least one position whose next token is there";
    assert_eq!(message(&[], 4, 4), format!("0 {none}"));
    let contexts = [document(0, 1, 1), document(1, 0, 1), document(2, 5, 5), document(3, 2, 9)];
    assert_eq!(message(&contexts, 4, 4), format!("4 {none}"));
}

proptest! {
    /// Every position to train at comes exactly once an epoch, with its context and its successor; batches keep their
    /// bound and are not wasteful; a step is the same whenever and in whatever order it is asked for.
    #[test]
    fn every_position_once_an_epoch(
        shapes in prop::collection::vec((0usize..90, 0usize..40), 1..40),
        window in 2usize..50,
        extra in 0usize..100,
        seed: u64,
        far in 0u64..1_000_000,
    ) {
        let documents: Vec<Document> =
            shapes.iter().enumerate().map(|(i, &(len, prompt))| document(i, len, prompt)).collect();
        let expected: Vec<u32> = documents.iter().flat_map(|d| d.tokens[d.scored()].to_vec()).collect();
        let batch_tokens = window + extra;
        let Ok(batches) = Batches::new(&documents, window, batch_tokens, seed) else {
            prop_assert!(expected.is_empty());
            return Ok(());
        };
        for number in [0, 1, far] {
            let epoch = epoch(&batches, number);
            prop_assert_eq!(&trained(&epoch), &expected);
            prop_assert_eq!(epoch.iter().map(Vec::len).sum::<usize>(), batches.segments());
            for batch in &epoch {
                prop_assert!(!batch.is_empty());
                prop_assert!(batch.iter().map(|segment| segment.tokens.len()).sum::<usize>() <= batch_tokens);
                for segment in batch {
                    prop_assert!(segment.tokens.len() <= window && !segment.scored.is_empty());
                    prop_assert!(segment.scored.end < segment.tokens.len());
                    prop_assert!(segment.tokens.windows(2).all(|pair| pair[1] == pair[0] + 1));
                    // Counted from where its document's positions begin, not from the window's edge.
                    let first = segment.tokens[segment.scored.start] as usize;
                    let document = &documents[first / 1000];
                    prop_assert_eq!(segment.scored_before, first % 1000 - document.scored().start);
                }
            }
            // Two batches that follow each other in the packing do not fit in one, so more than half is used, but for
            // what rounding up to classes costs: less than a sixteenth of a window and a token per segment.
            let tokens: usize = epoch.iter().flatten().map(|segment| segment.tokens.len() + window / 16 + 1).sum();
            prop_assert!(epoch.len() <= 2 * tokens / batch_tokens + 1);
        }
        let steps = batches.steps_per_epoch();
        for step in [3 * steps - 1, 0, 2 * steps, far] {
            let fresh = Batches::new(&documents, window, batch_tokens, seed).unwrap();
            prop_assert_eq!(fresh.batch(step), batches.batch(step));
        }
    }
}
