//! The data of self-distillation, from files of prompts and text to batches, written by the bundled model.

use eesd::TokenId;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::control::ControllerSpec;
use eesd::distill::data::{
    Batches, Document, Origin, Progress, SelectOptions, Source, WriteOptions, Written, read_answers, read_corpus,
    select, write_answers,
};
use eesd::engine::{Engine, Request};
use eesd::load::{Checkpoint, Tokenizer, bundled_prompts};
use eesd::sample::SamplingParams;
use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use tempfile::TempDir;

const CONTEXT: usize = 256;
const MAX_TOKENS: usize = 24;

fn tokenizer(checkpoint: &Checkpoint) -> &Tokenizer {
    checkpoint.tokenizer().unwrap()
}

fn prompts(checkpoint: &Checkpoint) -> Vec<Vec<TokenId>> {
    bundled_prompts().iter().map(|text| tokenizer(checkpoint).encode(text, true).unwrap()).collect()
}

/// An engine of `slots` slots that drafts by `controller`; `off` has no exit block at all. One thread, since tests run side
/// by side.
fn engine(checkpoint: &Checkpoint, controller: &str, slots: usize, context: usize) -> Engine {
    let blocks = checkpoint.exit_blocks().unwrap();
    let exit = blocks.iter().find(|block| block.after() == 2 && controller != "off").map(|block| block.weights());
    let options = CpuOptions { threads: Some(1), slots, context, max_draft: 6, ..CpuOptions::default() };
    let backend = CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), exit.as_ref(), &options).unwrap();
    let controller = controller.parse::<ControllerSpec>().unwrap().build();
    let end_tokens = checkpoint.generation().end_tokens.clone();
    Engine::new(backend, controller, Some(checkpoint.tokenizer().unwrap().clone()), end_tokens)
}

fn sampled(samples: usize, batch: usize) -> WriteOptions {
    let sampling = SamplingParams { temperature: 0.9, top_p: 0.95, seed: Some(17), ..SamplingParams::default() };
    WriteOptions { sampling, max_tokens: MAX_TOKENS, samples, batch }
}

/// Writes to the end.
fn write(engine: &mut Engine, prompts: &[Vec<TokenId>], options: &WriteOptions, path: &Path) -> Written {
    let fingerprint = Checkpoint::bundled().unwrap().fingerprint().to_owned();
    let written =
        write_answers(engine, &fingerprint, prompts, options, path, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(written.complete);
    written
}

/// Whatever the batch, the drafts and the interruptions: the same bytes.
#[test]
fn the_file_is_the_same_whatever_happens_on_the_way() {
    let checkpoint = Checkpoint::bundled().unwrap();
    let prompts = prompts(&checkpoint);
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let plain = path("plain.jsonl");
    let written = write(&mut engine(&checkpoint, "off", 1, CONTEXT), &prompts, &sampled(2, 1), &plain);
    assert_eq!((written.found, written.added, written.too_long, written.cut), (0, 64, 0, 0));
    let expected = fs::read(&plain).unwrap();

    let mut drafting = engine(&checkpoint, "goodput-ts", 5, CONTEXT);
    let batched = path("batched.jsonl");
    assert_eq!(write(&mut drafting, &prompts, &sampled(2, 5), &batched).documents, written.documents);
    assert!(fs::read(&batched).unwrap() == expected, "drafts and batches change the file");

    // Interrupted again and again, by the receiver and by a kill in the middle of a line.
    let interrupted = path("interrupted.jsonl");
    let mut eager = engine(&checkpoint, "fixed:4", 3, CONTEXT);
    let (mut runs, mut found) = (0, 0);
    let done = loop {
        let mut calls = 0;
        let mut some = |_: &Progress| {
            calls += 1;
            if calls > 150 + 13 * runs { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let written =
            write_answers(&mut eager, checkpoint.fingerprint(), &prompts, &sampled(2, 3), &interrupted, &mut some)
                .unwrap();
        assert!(eager.is_idle());
        let bytes = fs::read(&interrupted).unwrap();
        assert!(expected.starts_with(&bytes), "run {runs} wrote something else");
        if runs > 0 && found > 0 {
            assert!(written.cut > 0, "the half line of run {runs} went unnoticed");
        }
        if written.complete {
            break written;
        }
        assert_eq!(bytes.iter().filter(|&&byte| byte == b'\n').count(), 1 + written.found + written.added);
        runs += 1;
        // The last line loses its end.
        fs::write(&interrupted, &bytes[..bytes.len() - 1 - runs % 30]).unwrap();
        found = written.found + written.added;
    };
    assert!(runs > 5, "only {runs} interruptions");
    assert!(fs::read(&interrupted).unwrap() == expected, "interruptions change the file");
    assert_eq!(done.documents, written.documents);

    // A finished file is read, not written again.
    let again = write(&mut drafting, &prompts, &sampled(2, 5), &batched);
    assert_eq!((again.found, again.added, again.cut), (64, 0, 0));
    assert_eq!(again.documents, written.documents);
    assert!(fs::read(&batched).unwrap() == expected);
}

#[test]
fn longer_runs_extend_a_file() {
    let checkpoint = Checkpoint::bundled().unwrap();
    let prompts = prompts(&checkpoint);
    let dir = TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name);
    let mut engine = engine(&checkpoint, "fixed:3", 4, CONTEXT);
    let whole = write(&mut engine, &prompts[..12], &sampled(3, 4), &path("whole.jsonl"));

    let grown = path("grown.jsonl");
    write(&mut engine, &prompts[..5], &sampled(2, 4), &grown);
    let before = fs::read(&grown).unwrap();
    let more_prompts = write(&mut engine, &prompts[..12], &sampled(2, 4), &grown);
    assert_eq!((more_prompts.found, more_prompts.added), (10, 14));
    assert!(fs::read(&grown).unwrap().starts_with(&before));
    let two = path("two.jsonl");
    write(&mut engine, &prompts[..12], &sampled(2, 4), &two);
    assert!(fs::read(&grown).unwrap() == fs::read(&two).unwrap(), "more prompts: the bytes of the longer run");
    let more_samples = write(&mut engine, &prompts[..12], &sampled(3, 4), &grown);
    assert_eq!((more_samples.found, more_samples.added), (24, 12));
    assert_eq!(more_samples.documents, whole.documents, "more samples: the same documents in the same order");
    assert_eq!(read_answers(&grown, checkpoint.fingerprint(), 4096).unwrap().documents, whole.documents);
    let lines =
        |name: &str| fs::read_to_string(path(name)).unwrap().lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(lines("grown.jsonl"), lines("whole.jsonl"));
    let distinct: BTreeSet<&[TokenId]> = whole.documents.iter().map(|document| &document.tokens[..]).collect();
    assert!(distinct.len() > 30, "samples of a prompt differ: {} of 36", distinct.len());
}

/// Each answer is what anybody gets who asks for it with its seed.
#[test]
fn answers_are_the_models_own() {
    let checkpoint = Checkpoint::bundled().unwrap();
    let prompts = prompts(&checkpoint);
    let dir = TempDir::new().unwrap();
    let greedy = WriteOptions { sampling: SamplingParams::default(), ..sampled(1, 4) };
    for (name, options) in [("sampled.jsonl", sampled(2, 4)), ("greedy.jsonl", greedy)] {
        let path = dir.path().join(name);
        let documents =
            write(&mut engine(&checkpoint, "fixed:5", 4, CONTEXT), &prompts[..6], &options, &path).documents;
        let text = fs::read_to_string(&path).unwrap();
        let mut plain = engine(&checkpoint, "off", 1, CONTEXT);
        assert_eq!(text.lines().count(), 1 + documents.len());
        for (line, document) in text.lines().skip(1).zip(&documents) {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            let sampling = SamplingParams { seed: record["seed"].as_u64(), ..options.sampling.clone() };
            let prompt = prompts[record["index"].as_u64().unwrap() as usize].clone();
            let request = Request { sampling, ..Request::new(prompt.clone(), MAX_TOKENS) };
            let completion = plain.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
            assert_eq!(record["tokens"], serde_json::json!(completion.tokens));
            assert_eq!(
                (&record["prompt"], &record["finish"]),
                (&serde_json::json!(prompt), &completion.finish.name().into())
            );
            assert_eq!(document, &Document { prompt: prompt.len(), tokens: [prompt, completion.tokens].concat() });
        }
    }
}

#[test]
fn progress_counts_answers_and_tokens() {
    let checkpoint = Checkpoint::bundled().unwrap();
    let prompts = &prompts(&checkpoint)[..6];
    let path = TempDir::new().unwrap().keep().join("answers.jsonl");
    let mut engine = engine(&checkpoint, "off", 2, CONTEXT);
    write(&mut engine, &prompts[..2], &sampled(1, 2), &path);
    let mut seen: Vec<Progress> = Vec::new();
    let written =
        write_answers(&mut engine, checkpoint.fingerprint(), prompts, &sampled(1, 2), &path, &mut |progress| {
            seen.push(*progress);
            ControlFlow::Continue(())
        })
        .unwrap();
    let last = seen.last().unwrap();
    let tokens: usize = written.documents[2..].iter().map(|document| document.tokens.len() - document.prompt).sum();
    assert_eq!((last.answers, last.of, last.tokens), (6, 6, tokens));
    assert!(last.tokens_per_second() > 0.0);
    assert_eq!((seen[0].answers, seen[0].tokens), (2, 0), "a prompt is taken in first");
    assert!(seen.iter().any(|progress| progress.tokens == 1));
    assert!(seen.windows(2).all(|pair| pair[0].answers <= pair[1].answers && pair[0].tokens <= pair[1].tokens));
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
}

#[test]
fn what_cannot_be_written_is_counted_or_refused() {
    let checkpoint = Checkpoint::bundled().unwrap();
    let all = prompts(&checkpoint);
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("answers.jsonl");
    let mut engine = engine(&checkpoint, "off", 2, 64);
    let long = vec![9; 64];
    let prompts = [all[0].clone(), long, all[1].clone()];
    let written = write(&mut engine, &prompts, &sampled(2, 2), &path);
    assert_eq!((written.added, written.too_long), (4, 1));
    let before = fs::read(&path).unwrap();

    let mut refused = |prompts: &[Vec<TokenId>], options: &WriteOptions, fingerprint: &str, expected: &str| {
        let error =
            write_answers(&mut engine, fingerprint, prompts, options, &path, &mut |_| ControlFlow::Continue(()))
                .unwrap_err()
                .to_string();
        assert!(error.contains(expected), "{error}\nhas no\n{expected}");
        assert_eq!(fs::read(&path).unwrap(), before);
    };
    let own = checkpoint.fingerprint();
    let with = |change: &dyn Fn(&mut WriteOptions)| {
        let mut options = sampled(2, 2);
        change(&mut options);
        options
    };
    refused(&prompts, &with(&|o| o.max_tokens = 0), own, "max_tokens: 0 (expected 1 or more)");
    refused(&prompts, &with(&|o| o.samples = 0), own, "samples: 0 (expected 1 or more)");
    refused(&prompts, &with(&|o| o.sampling.temperature = 0.0), own, "samples: 2 (expected 1 at temperature 0");
    refused(&prompts, &with(&|o| o.sampling.top_p = 2.0), own, "top_p: 2 (expected");
    refused(&prompts, &with(&|o| o.sampling.logprobs = Some(1)), own, "logprobs: 1 (expected none");
    let rejection = Some(eesd::sample::VerifyMode::Rejection);
    refused(&prompts, &with(&|o| o.sampling.verify = rejection), own, "verify: rejection (expected coupled");
    refused(&prompts, &with(&|o| o.sampling.seed = None), own, "seed = 17, this run has 0");
    refused(&prompts, &with(&|o| o.sampling.top_k = 5), own, "top_k = 0, this run has 5");
    let suppressing = with(&|o| o.sampling.suppress_tokens = vec![5]);
    refused(&prompts, &suppressing, own, "suppress_tokens = nothing, this run has [5]");
    let avoiding = with(&|o| o.sampling.bad_words = vec![vec![5, 6]]);
    refused(&prompts, &avoiding, own, "bad_words = nothing, this run has [[5,6]]");
    refused(&prompts, &with(&|o| o.max_tokens = 5), own, "max_tokens = 24, this run has 5");
    refused(&prompts, &with(&|_| ()), "other", &format!("base_fingerprint = \"{own}\", this run has \"other\""));
    refused(&prompts, &with(&|o| o.samples = 1), own, "answers.jsonl:3: sample 1 of prompt 0 (expected 1 samples");
    refused(&[all[2].clone()], &with(&|_| ()), own, "answers.jsonl:2: a prompt 0 that this run does not have");
    let unknown = [prompts.to_vec(), vec![vec![9999]]].concat();
    refused(&unknown, &with(&|_| ()), own, "prompt 3: prompt token 9999 is not in the vocabulary of 4096");
    let other_context =
        write_answers(&mut self::engine(&checkpoint, "off", 1, 65), own, &prompts, &sampled(2, 1), &path, &mut |_| {
            ControlFlow::Continue(())
        });
    assert!(other_context.unwrap_err().to_string().contains("context = 64, this run has 65"));
}

/// Files to documents to batches, as a training run goes.
#[test]
fn from_files_to_batches() {
    let checkpoint = Checkpoint::bundled().unwrap();
    let dir = TempDir::new().unwrap();
    let answers = dir.path().join("answers.jsonl");
    let written =
        write(&mut engine(&checkpoint, "fixed:4", 8, CONTEXT), &prompts(&checkpoint), &sampled(3, 8), &answers);
    let code = dir.path().join("code.py");
    fs::write(&code, "import os\r\n\n\ndef walk(top):\n    return list(os.walk(top))\n".repeat(40)).unwrap();
    let lines = dir.path().join("more.jsonl");
    fs::write(&lines, "{\"text\": \"x = 1\\ny = 2\\n\", \"url\": \"-\"}\n\n{\"text\": \"class A:\\n    pass\\n\"}\n")
        .unwrap();
    let corpus = read_corpus(&[code.clone(), lines], tokenizer(&checkpoint)).unwrap();
    assert_eq!(corpus.len(), 3);
    assert_eq!(corpus[0].tokens, tokenizer(&checkpoint).encode(&fs::read_to_string(&code).unwrap(), true).unwrap());
    assert_eq!(tokenizer(&checkpoint).decode(&corpus[1].tokens), "x = 1\ny = 2\n");
    assert!(corpus.iter().all(|document| document.prompt == 1));

    let source = |name: &str, origin, documents| Source { name: name.into(), origin, documents, weight: None };
    let sources = vec![source("answers", Origin::Answers, written.documents), source("corpus", Origin::Corpus, corpus)];
    let options = SelectOptions { shortest: 0, longest: usize::MAX, held_out: 0.2, seed: 3 };
    let (dataset, report) = select(sources, &options).unwrap();
    assert!(!dataset.held_out.is_empty(), "{report}");
    let batches = Batches::new(&dataset.train, 48, 200, 3).unwrap();
    let scored: usize = (0..batches.steps_per_epoch())
        .flat_map(|step| batches.batch(step))
        .map(|segment| {
            assert!(segment.tokens.len() <= 48);
            segment.scored.len()
        })
        .sum();
    assert_eq!(scored, report.sources.iter().map(|source| source.train.scored).sum::<usize>());
}
