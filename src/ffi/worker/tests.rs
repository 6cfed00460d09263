//! Each request has one last event, whatever becomes of the engine.

#[path = "../../../tests/common/hash_backend.rs"]
mod hash_backend;

use super::super::places::Places;
use super::*;
use crate::TokenId;
use crate::backend::{Backend, BackendError, Chunk, Draft, Evaluation, Limits, SavedPages, Sequence};
use crate::control::ControllerSpec;
use crate::kv::PageId;
use crate::model::Geometry;
use crate::sample::Verdict;
use hash_backend::HashBackend;
use std::ops::Range;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::Duration;

const VOCAB: usize = 17;
/// Prompts that begin with it are given numbers that are not finite.
const BREAKS: TokenId = 12;
/// Prompts that begin with it make a pass fail.
const FAILS: TokenId = 15;
/// Prompts that begin with it make a pass panic.
const PANICS: TokenId = 16;
/// Prompts that begin with it make each verification wait until the test lets it go on.
const WAITS: TokenId = 14;
/// Prompts that begin with it take until then to be taken in.
const LONG: TokenId = 13;

/// A backend with bad days.
struct Fragile {
    good: HashBackend,
    /// First pages of sequences whose numbers are not finite.
    broken: Vec<PageId>,
    /// Told of each pass that waits.
    waits: Sender<()>,
    /// Passes that may go on; all of them once the test has let go of the other end.
    allowed: Receiver<()>,
}

impl Backend for Fragile {
    fn geometry(&self) -> &Geometry {
        self.good.geometry()
    }
    fn exit_layer(&self) -> Option<usize> {
        self.good.exit_layer()
    }
    fn limits(&self) -> Limits {
        self.good.limits()
    }
    fn describe(&self) -> String {
        self.good.describe()
    }
    fn prefill(&mut self, batch: &[Chunk<'_>]) -> Result<(), BackendError> {
        if batch.iter().any(|chunk| chunk.tokens[0] == LONG) {
            let _ = self.waits.send(());
            let _ = self.allowed.recv();
        }
        self.broken.retain(|page| batch.iter().all(|chunk| chunk.pages[0] != *page));
        self.broken.extend(batch.iter().filter(|chunk| chunk.tokens[0] == BREAKS).map(|chunk| chunk.pages[0]));
        self.good.prefill(batch)
    }
    fn first_non_finite(&self, pages: &[PageId], positions: Range<usize>) -> Option<usize> {
        self.broken.contains(&pages[0]).then_some(positions.start)
    }
    fn save_pages(&mut self, pages: &[PageId]) -> Result<SavedPages, BackendError> {
        self.good.save_pages(pages)
    }
    fn restore_pages(&mut self, saved: &SavedPages, pages: &[PageId]) -> Result<(), BackendError> {
        self.good.restore_pages(saved, pages)
    }
    fn draft(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Draft>, BackendError> {
        self.good.draft(batch)
    }
    fn verify(&mut self, batch: &[Sequence<'_>]) -> Result<Vec<Verdict>, BackendError> {
        let begins = |token| batch.iter().any(|sequence| sequence.tokens[0] == token);
        assert!(!begins(PANICS), "a bad day");
        if begins(WAITS) {
            // A test that has let go of its ends neither hears of it nor holds it up.
            let _ = self.waits.send(());
            let _ = self.allowed.recv();
        }
        if begins(FAILS) {
            return Err(BackendError::Device("a bad day".into()));
        }
        self.good.verify(batch)
    }
    fn target_logits(&self, slot: usize) -> Result<Vec<f32>, BackendError> {
        self.good.target_logits(slot)
    }
    fn evaluate(&mut self, chunk: &Chunk<'_>, tap: usize) -> Result<Evaluation, BackendError> {
        self.good.evaluate(chunk, tap)
    }
}

/// An engine's thread; it ends with the sender of commands.
fn start() -> (Sender<Command>, JoinHandle<()>) {
    let (commands, _, thread) = start_waiting();
    (commands, thread)
}

/// Of passes that wait: tells that one does, and lets it go on.
struct Gate {
    waiting: Receiver<()>,
    allow: Sender<()>,
}

/// The same, with the gate of its verifications.
fn start_waiting() -> (Sender<Command>, Gate, JoinHandle<()>) {
    let (commands, inbox) = channel();
    let (waits, waiting) = channel();
    let (allow, allowed) = channel();
    let thread = std::thread::spawn(move || {
        let limits = Limits { pages: 32, slots: 4, max_draft: 4, context: 1024 };
        let backend =
            Box::new(Fragile { good: HashBackend::new(VOCAB, limits, 200), broken: Vec::new(), waits, allowed });
        serve(Engine::new(backend, ControllerSpec::Fixed(3).build(), None, Vec::new()), inbox);
    });
    (commands, Gate { waiting, allow }, thread)
}

/// One of any number of places.
fn place() -> TakenPlace {
    Places::new(1).take(1).unwrap().remove(0)
}

fn submit(commands: &Sender<Command>, mailbox: &Arc<Mailbox>, id: u64, first: TokenId, stream: bool) {
    let request = Request::new(vec![first, 2, 3], 20);
    // Where nobody takes it, it comes back in the error, and its route ends with that.
    let _ = commands.send(Command::Submit(vec![(request, Route::new(id, mailbox.clone(), stream, place()))]));
}

/// Tokens and last event of the requests so far, in the order in which they ended.
fn ends(mailbox: &Mailbox, requests: usize) -> Vec<(u64, usize, Result<usize, Status>)> {
    let (mut tokens, mut ends) = (BTreeMap::<u64, usize>::new(), Vec::new());
    while ends.len() < requests {
        let (id, happening) = mailbox.take(None).expect("an event");
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
    let (commands, gate, thread) = start_waiting();
    let mailbox = Arc::new(Mailbox::default());
    for id in 1..=20 {
        let request = Request::new(vec![WAITS, 2, 3], 1000);
        commands.send(Command::Submit(vec![(request, Route::new(id, mailbox.clone(), true, place()))])).unwrap();
        for _ in 0..id {
            gate.waiting.recv().unwrap();
            gate.allow.send(()).unwrap();
        }
        // Told within a round, to be heard after it.
        gate.waiting.recv().unwrap();
        commands.send(Command::Cancel(id)).unwrap();
        gate.allow.send(()).unwrap();
        let ended = ends(&mailbox, 1);
        assert_eq!(ended[0].2, Ok(ended[0].1), "tokens as events and in the answer");
        let rounds = id as usize + 1;
        assert!((rounds..=4 * rounds).contains(&ended[0].1), "{ended:?} after {rounds} rounds");
    }
    drop((commands, gate));
    thread.join().unwrap();
}

/// Tokens that wait for others to go with do not wait for a prompt that is taken in meanwhile.
#[test]
fn tokens_do_not_wait_for_a_prompt() {
    let (commands, gate, thread) = start_waiting();
    let mailbox = Arc::new(Mailbox::default());
    for turn in 0..20 {
        let request = Request::new(vec![WAITS, 2, 3], 1000);
        let (id, long) = (2 * turn, 2 * turn + 1);
        commands.send(Command::Submit(vec![(request, Route::new(id, mailbox.clone(), true, place()))])).unwrap();
        let rounds = 1 + turn % 3;
        for _ in 0..rounds {
            gate.waiting.recv().unwrap();
            gate.allow.send(()).unwrap();
        }
        gate.waiting.recv().unwrap();
        submit(&commands, &mailbox, long, LONG, false);
        gate.allow.send(()).unwrap();
        gate.waiting.recv().unwrap(); // the prompt
        let mut come = 0;
        while let Ok((from, happening)) = mailbox.take(Some(Duration::ZERO)) {
            assert!(from == id && matches!(happening, Happening::Token(_)));
            come += 1;
        }
        assert!(come > rounds, "{come} tokens of {} rounds", rounds + 1);
        commands.send(Command::Cancel(id)).unwrap();
        commands.send(Command::Cancel(long)).unwrap();
        gate.allow.send(()).unwrap();
        // The round after the prompt, unless the cancellations were heard before it.
        while mailbox.expects(id) || mailbox.expects(long) {
            if gate.waiting.try_recv().is_ok() {
                gate.allow.send(()).unwrap();
            }
        }
        while mailbox.take(Some(Duration::ZERO)).is_ok() {}
    }
    drop((commands, gate));
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
fn numbers_that_are_not_finite_fail_their_request_by_a_status_of_their_own() {
    let (commands, thread) = start();
    let mailbox = Arc::new(Mailbox::default());
    submit(&commands, &mailbox, 1, BREAKS, true);
    submit(&commands, &mailbox, 2, 1, false);
    assert_eq!(ends(&mailbox, 2), [(1, 0, Err(Status::NotFinite)), (2, 0, Ok(20))]);
    commands.send(Command::Stop).unwrap();
    thread.join().unwrap();
}

/// A place is free when the last event of its request is told, so that who has seen it may hand in another.
#[test]
fn a_place_comes_back_before_the_last_event() {
    let (commands, thread) = start();
    let (places, mailbox) = (Places::new(1), Arc::new(Mailbox::default()));
    for (id, first) in (1..).zip([1, BREAKS, 2, FAILS, 3, PANICS]) {
        let place = places.take(1).unwrap_or_else(|failure| panic!("{id}: {}", failure.message)).remove(0);
        assert!(places.take(1).is_err());
        let route = Route::new(id, mailbox.clone(), id % 2 == 0, place);
        let _ = commands.send(Command::Submit(vec![(Request::new(vec![first, 2, 3], 20), route)]));
        assert_eq!(ends(&mailbox, 1).len(), 1);
    }
    assert!(places.take(1).is_ok());
    assert!(thread.join().is_err());
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
    let (commands, gate, thread) = start_waiting();
    let mailbox = Arc::new(Mailbox::default());
    submit(&commands, &mailbox, 1, WAITS, false);
    gate.waiting.recv().unwrap();
    commands.send(Command::Stop).unwrap();
    submit(&commands, &mailbox, 2, 1, false);
    drop(gate);
    thread.join().unwrap();
    drop(commands);
    assert_eq!(ends(&mailbox, 2), [1, 2].map(|id| (id, 0, Err(Status::Closed))));
}

/// Where the engine's thread has ended, nobody hears of requests whose numbers nobody was told.
#[test]
fn requests_are_taken_all_or_none() {
    let (commands, inbox) = channel();
    let (mailbox, places) = (Arc::new(Mailbox::default()), Places::new(3));
    let requests = |ids: std::ops::RangeInclusive<u64>| {
        let places = places.take(3).unwrap_or_else(|failure| panic!("{}", failure.message));
        let routed = ids.zip(places).map(|(id, place)| Route::new(id, mailbox.clone(), true, place));
        routed.map(|route| (Request::new(vec![1], 5), route)).collect::<Vec<_>>()
    };
    assert!(submit_all(&commands, requests(1..=3)).is_ok());
    let Ok(Command::Submit(taken)) = inbox.try_recv() else { panic!("a message with the requests") };
    assert_eq!(taken.len(), 3);
    // What the engine has and drops is told of.
    drop(taken);
    assert_eq!(ends(&mailbox, 3), [1, 2, 3].map(|id| (id, 0, Err(Status::Closed))));

    drop(inbox);
    let refused = submit_all(&commands, requests(4..=6)).err().map(|failure| failure.status);
    assert_eq!(refused, Some(Status::Closed));
    assert_eq!(mailbox.take(Some(Duration::ZERO)).err().map(|failure| failure.status), Some(Status::Timeout));
    assert!(!(4..=6).any(|id| mailbox.expects(id)) && places.take(3).is_ok());
}
