use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn document(tokens: &[TokenId], prompt: usize) -> Document {
    Document { tokens: tokens.to_vec(), prompt }
}

fn source(name: &str, origin: Origin, documents: Vec<Document>) -> Source {
    Source { name: name.into(), origin, documents, weight: None }
}

/// Different texts of `len` tokens.
fn texts(range: std::ops::Range<u32>, len: usize) -> Vec<Document> {
    range.map(|i| document(&[&[i][..], &vec![7; len - 1]].concat(), 1)).collect()
}

const ALL: SelectOptions = SelectOptions { shortest: 0, longest: usize::MAX, held_out: 0.0, seed: 1 };

#[test]
fn every_dropped_document_is_counted() {
    let first = vec![
        document(&[1, 2, 3], 1),
        document(&[1, 2, 3], 2),
        document(&[1], 1),
        document(&[], 1),
        document(&[1, 2, 3, 4], 4),
        document(&[5, 6], 1),
        document(&[1, 2, 3, 4, 5, 6], 1),
    ];
    let second = vec![document(&[1, 2, 3], 1), document(&[9, 8, 7], 1)];
    let options = SelectOptions { shortest: 3, longest: 5, ..ALL };
    let sources = vec![source("answers.jsonl", Origin::Answers, first), source("b.txt", Origin::Corpus, second)];
    let (dataset, report) = select(sources, &options).unwrap();
    assert_eq!(dataset.train, [document(&[1, 2, 3], 1), document(&[9, 8, 7], 1)]);
    assert_eq!(dataset.held_out, []);
    let expected = "answers.jsonl: to train on 1 of 7 documents (2 positions), held out 0 (0 positions); dropped 3 without \
                    a position to train at, 1 too short, 1 too long, 1 seen before\n\
                    b.txt: to train on 1 of 2 documents (2 positions), held out 0 (0 positions); dropped 1 seen before";
    assert_eq!(report.to_string(), expected);
}

#[test]
fn the_fraction_is_held_out_on_average() {
    for (held_out, least, most) in [(0.0, 0, 0), (0.1, 910, 1090), (0.5, 4850, 5150)] {
        // Short texts that hardly differ are the hard ones for a hash.
        let options = SelectOptions { held_out, ..ALL };
        let (dataset, report) = select(vec![source("t", Origin::Corpus, texts(0..10_000, 2))], &options).unwrap();
        let held = dataset.held_out.len();
        assert!((least..=most).contains(&held), "{held_out}: {held} of 10,000");
        assert_eq!(report.sources[0].held_out, Amount { documents: held, scored: held });
        let (other, _) =
            select(vec![source("t", Origin::Corpus, texts(0..10_000, 2))], &SelectOptions { seed: 2, ..options })
                .unwrap();
        assert!(held == 0 || other.held_out != dataset.held_out, "another seed holds out others");
    }
}

#[test]
fn a_mix_has_the_asked_parts() {
    let weighted = |name: &str, texts, weight| Source { weight, ..source(name, Origin::Corpus, texts) };
    let sources = |more: u32| {
        vec![
            weighted("one", texts(0..300, 11), Some(1.0)),
            weighted("three", texts(1000..1600 + more, 6), Some(3.0)),
            weighted("all", texts(5000..5005, 4), None),
        ]
    };
    let (dataset, report) = select(sources(0), &ALL).unwrap();
    let amounts: Vec<_> = report.sources.iter().map(|source| (source.train.scored, source.over_weight)).collect();
    // 600 texts of 5 positions are the scarce part, three quarters; a quarter is 1000 positions.
    assert_eq!(amounts, [(1000, 200), (3000, 0), (15, 0)]);
    assert_eq!(dataset.train.len(), 100 + 600 + 5);
    // With more data, what was chosen stays chosen.
    let (grown, _) = select(sources(60), &ALL).unwrap();
    let chosen = |dataset: &Dataset| dataset.train.iter().filter(|d| d.tokens.len() == 11).cloned().collect::<Vec<_>>();
    assert_eq!(chosen(&grown).len(), 110);
    assert!(chosen(&dataset).iter().all(|document| grown.train.contains(document)));
}

#[test]
fn options_that_make_no_sense_are_named() {
    let message = |sources: Vec<Source>, options: SelectOptions| select(sources, &options).unwrap_err().to_string();
    let some = || vec![source("a.txt", Origin::Corpus, texts(0..3, 4))];
    for held_out in [1.0, -0.1, f64::NAN] {
        let expected = format!("held_out: {held_out} (expected a number from 0 to below 1)");
        assert_eq!(message(some(), SelectOptions { held_out, ..ALL }), expected);
    }
    let found = message(some(), SelectOptions { shortest: 9, longest: 8, ..ALL });
    assert_eq!(found, "shortest: 9 above longest, 8 (expected no more than longest)");
    for weight in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let sources = some().into_iter().map(|source| Source { weight: Some(weight), ..source }).collect();
        let expected = format!("weight: {weight} of a.txt (expected a finite number above 0)");
        assert_eq!(message(sources, ALL), expected);
    }
    let empty = Source { weight: Some(1.0), ..source("b.txt", Origin::Corpus, vec![]) };
    let found = message([some(), vec![empty]].concat(), ALL);
    assert_eq!(
        found,
        "b.txt has a part in the mix, but nothing to train on: expected at least one document, or no weight"
    );
    let found = message(some(), SelectOptions { shortest: 100, ..ALL });
    assert!(
        found.starts_with("nothing is left to train on (a.txt: to train on 0 of 3 documents (0 positions)"),
        "{found}"
    );
    assert!(found.contains("3 too short") && found.ends_with("expected at least one document"), "{found}");
    assert!(message(vec![], ALL).starts_with("nothing is left to train on"));
}

proptest! {
    /// A side is a property of the document (of its prompt, for answers), whatever else there is; and every document
    /// is kept once or counted as dropped.
    #[test]
    fn sides_are_stable_and_nothing_is_lost(
        prompts in prop::collection::vec((prop::collection::vec(0u32..4, 1..5), prop::collection::vec(0u32..4, 0..4)), 1..60),
        corpus in prop::collection::vec(prop::collection::vec(0u32..4, 0..8), 0..30),
        cut in 0usize..60,
        held_out in 0.0f64..0.9,
        seed: u64,
    ) {
        let answers: Vec<Document> =
            prompts.iter().map(|(prompt, answer)| document(&[&prompt[..], answer].concat(), prompt.len())).collect();
        let corpus: Vec<Document> = corpus.iter().map(|tokens| document(tokens, 1)).collect();
        let options = SelectOptions { held_out, seed, shortest: 2, longest: 7 };
        let run = |answers: &[Document], corpus: &[Document]| {
            let sources = vec![
                source("answers", Origin::Answers, answers.to_vec()),
                source("corpus", Origin::Corpus, corpus.to_vec()),
            ];
            match select(sources, &options) {
                Ok(selected) => Some(selected),
                Err(error) => { assert!(matches!(error, DataError::Empty { .. })); None }
            }
        };
        let Some((whole, report)) = run(&answers, &corpus) else { return Ok(()) };
        let mut sum = (0, 0);
        for source in &report.sources {
            let kept = source.train.documents + source.held_out.documents;
            let dropped = source.unscored + source.too_short + source.too_long + source.duplicates + source.over_weight;
            prop_assert_eq!(kept + dropped, source.documents);
            sum = (sum.0 + source.train.documents, sum.1 + source.held_out.documents);
        }
        prop_assert_eq!(sum, (whole.train.len(), whole.held_out.len()));
        let everything: Vec<&Document> = whole.train.iter().chain(&whole.held_out).collect();
        let distinct: HashSet<&[TokenId]> = everything.iter().map(|document| &document.tokens[..]).collect();
        prop_assert_eq!(distinct.len(), everything.len(), "the same text twice");

        // Answers come first, so that one that is kept was not taken for a corpus's.
        let of_answers = |documents: &[Document], count: usize| documents[..count].to_vec();
        let held_answers = of_answers(&whole.held_out, report.sources[0].held_out.documents);
        let train_answers = of_answers(&whole.train, report.sources[0].train.documents);
        let prompt_of = |document: &Document| document.tokens[..document.prompt].to_vec();
        let mut side = BTreeMap::new();
        for (held, document) in held_answers.iter().map(|d| (true, d)).chain(train_answers.iter().map(|d| (false, d))) {
            let known = *side.entry(prompt_of(document)).or_insert(held);
            prop_assert_eq!(known, held, "one prompt on both sides");
        }

        // A part of the data: what is kept of it lies on the same side.
        let part = &answers[..cut.min(answers.len())];
        if let Some((fewer, _)) = run(part, &[]) {
            prop_assert!(fewer.train.iter().all(|document| whole.train.contains(document)));
            prop_assert!(fewer.held_out.iter().all(|document| whole.held_out.contains(document)));
        }
    }
}
