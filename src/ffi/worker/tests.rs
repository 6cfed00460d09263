//! Each request has one last event, whatever becomes of the engine.

#[path = "../../../tests/common/hash_backend.rs"]
mod hash_backend;

use super::*;
use crate::TokenId;
use crate::backend::{Backend, BackendError, Chunk, Draft, Evaluation, Limits, SavedPages, Sequence};
use crate::control::ControllerSpec;
use crate::kv::PageId;
use crate::model::Geometry;
use crate::sample::Verdict;
use hash_backend::HashBackend;
use std::sync::mpsc::channel;
use std::time::Duration;

const VOCAB: usize = 17;
/// Prompts that begin with it make a pass fail.
const FAILS: TokenId = 15;
/// Prompts that begin with it make a pass panic.
const PANICS: TokenId = 16;

/// A backend with bad days.
struct Fragile(HashBackend);

impl Backend for Fragile {
    fn geometry(&self) -> &Geometry {
        self.0.geometry()
    }
    fn exit_layer(&self) -> Option<usize> {
        self.0.exit_layer()
    }
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn prefill(&mut self, batch: &[Chunk<'_>]) -> Result<(), BackendError> {
        self.0.prefill(batch)
    }
    fn save_pages(&mut self, pages: &[PageId]) -> Result<SavedPages, BackendError> {
        self.0.save_pages(pages)
    }
    fn restore_pages(&mut self, saved: &SavedPages, pages: &[PageId]) -> Result<(), BackendError> {
        self.0.restore_pages(saved, pages)
    }
    fn draft(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        self.0.draft(batch)
    }
    fn verify(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Verdict>, BackendError> {
        let begins = |token| batch.iter().any(|sequence| sequence.tokens[0] == token);
        assert!(!begins(PANICS), "a bad day");
        if begins(FAILS) {
            return Err(BackendError::Device("a bad day".into()));
        }
        self.0.verify(batch)
    }
    fn target_logits(&self, slot: usize) -> Result<Vec<f32>, BackendError> {
        self.0.target_logits(slot)
    }
    fn evaluate(&mut self, chunk: &Chunk<'_>, tap: usize) -> Result<Evaluation, BackendError> {
        self.0.evaluate(chunk, tap)
    }
}

/// An engine's thread; it ends with the sender.
fn start() -> (Sender<Command>, std::thread::JoinHandle<()>) {
    let (commands, inbox) = channel();
    let thread = std::thread::spawn(move || {
        let limits = Limits { pages: 32, slots: 4, max_draft: 4, context: 1024 };
        let backend = Box::new(Fragile(HashBackend::new(VOCAB, limits, 200)));
        serve(Engine::new(backend, ControllerSpec::Fixed(3).build(), None, Vec::new()), inbox);
    });
    (commands, thread)
}

fn submit(commands: &Sender<Command>, mailbox: &Arc<Mailbox>, id: u64, first: TokenId, stream: bool) {
    let request = Request::new(vec![first, 2, 3], 20);
    // Where nobody takes it, it comes back in the error, and its route ends with that.
    let _ = commands.send(Command::Submit(Box::new(request), Route::new(id, mailbox.clone(), stream)));
}

/// Tokens and last event of the requests so far, in the order in which they ended.
fn ends(mailbox: &Mailbox, requests: usize) -> Vec<(u64, usize, Result<usize, Status>)> {
    let (mut tokens, mut ends) = (BTreeMap::<u64, usize>::new(), Vec::new());
    while ends.len() < requests {
        let (id, happening) = mailbox.take(Some(Duration::from_secs(60))).expect("an event");
        let end = match happening {
            Happening::Token(_) => {
                *tokens.entry(id).or_default() += 1;
                continue;
            }
            Happening::Done(completion) => Ok(completion.tokens.len()),
            Happening::Failed(failure) => Err(failure.status),
        };
        assert!(!mailbox.expects(id));
        ends.push((id, tokens.remove(&id).unwrap_or(0), end));
    }
    let more = mailbox.take(Some(Duration::ZERO)).err().map(|failure| failure.status);
    assert_eq!(more, Some(Status::Timeout), "an event after the last one");
    ends.sort_by_key(|end| end.0);
    ends
}

#[test]
fn tokens_come_where_they_are_wanted_and_the_end_comes_always() {
    let (commands, thread) = start();
    let mailbox = Arc::new(Mailbox::default());
    (1..=6).for_each(|id| submit(&commands, &mailbox, id, id as TokenId, id % 2 == 0));
    let expected: Vec<_> = (1..=6).map(|id| (id, if id % 2 == 0 { 20 } else { 0 }, Ok(20))).collect();
    assert_eq!(ends(&mailbox, 6), expected);

    let (reply, answer) = channel();
    commands.send(Command::Snapshot(reply)).unwrap();
    assert_eq!(answer.recv().unwrap().totals.finished, 6);
    commands.send(Command::Cancel(1)).unwrap(); // long finished
    drop(commands);
    thread.join().unwrap();
}

/// Tokens that wait for others to go with come before the last event of a request that is cancelled meanwhile.
#[test]
fn a_cancelled_request_has_all_its_tokens() {
    let (commands, thread) = start();
    let mailbox = Arc::new(Mailbox::default());
    let mut cut_short = 0;
    for id in 1..=20 {
        let request = Request::new(vec![1, 2, 3], 1000);
        commands.send(Command::Submit(Box::new(request), Route::new(id, mailbox.clone(), true))).unwrap();
        let (reply, answer) = channel();
        let begun = || {
            commands.send(Command::Snapshot(reply.clone())).unwrap();
            let snapshot = answer.recv().unwrap();
            snapshot.totals.finished + snapshot.totals.cancelled == id as usize || snapshot.decoding > 0
        };
        while !begun() {}
        commands.send(Command::Cancel(id)).unwrap();
        let ended = ends(&mailbox, 1);
        assert_eq!(ended[0].2, Ok(ended[0].1), "tokens as events and in the answer");
        cut_short += usize::from((1..1000).contains(&ended[0].1));
    }
    assert!(cut_short > 0, "none was cancelled while it ran");
    drop(commands);
    thread.join().unwrap();
}

#[test]
fn a_failed_pass_ends_what_runs_and_nothing_else() {
    let (commands, thread) = start();
    let mailbox = Arc::new(Mailbox::default());
    submit(&commands, &mailbox, 1, FAILS, true);
    assert_eq!(ends(&mailbox, 1), [(1, 0, Err(Status::DeviceFailed))]);
    submit(&commands, &mailbox, 2, 1, false);
    assert_eq!(ends(&mailbox, 1), [(2, 0, Ok(20))]);
    commands.send(Command::Stop).unwrap();
    thread.join().unwrap();
}

#[test]
fn a_panic_ends_every_request_and_those_that_come_later() {
    let (commands, thread) = start();
    let mailbox = Arc::new(Mailbox::default());
    submit(&commands, &mailbox, 1, PANICS, true);
    assert!(thread.join().is_err());
    assert_eq!(ends(&mailbox, 1), [(1, 0, Err(Status::Internal))]);
    submit(&commands, &mailbox, 2, 1, true);
    assert_eq!(ends(&mailbox, 1), [(2, 0, Err(Status::Closed))]);
}

#[test]
fn stopping_ends_what_runs() {
    let (commands, thread) = start();
    let mailbox = Arc::new(Mailbox::default());
    // Either is fine for the first one, which may be done before it is told to stop.
    submit(&commands, &mailbox, 1, 1, false);
    commands.send(Command::Stop).unwrap();
    submit(&commands, &mailbox, 2, 1, false);
    thread.join().unwrap();
    drop(commands);
    let ends = ends(&mailbox, 2);
    assert!(matches!(ends[0].2, Ok(20) | Err(Status::Closed)), "{ends:?}");
    assert_eq!(ends[1].2, Err(Status::Closed));
}
