//! What an emulated device has: memory, a recording, a queue, and counts of what it did.

use crate::backend::cuda::kernels::Shape;
use crate::backend::cuda::loop_probe::Loops;
use crate::backend::cuda::matmul::Matmul;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

pub(super) struct State {
    /// Blocks of memory by address, device's and page-locked ones.
    pub blocks: BTreeMap<u64, Block>,
    pub recording: Option<Recording>,
    pub queued: VecDeque<Task>,
    /// Tasks that were queued once and are not any more.
    pub begun: u64,
    pub counts: Counts,
    pub allowed_loops: Loops,
}

impl State {
    /// Nothing here can crash, so loops are allowed from the start.
    pub fn new() -> Self {
        let (blocks, recording, queued, counts) = Default::default();
        Self { blocks, recording, queued, begun: 0, counts, allowed_loops: Loops::Overlapping }
    }
}

/// How a driver fails at loops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoopFault {
    /// It says no.
    Refuses,
    /// It ends the process where a recording is ended.
    Crashes,
    /// A graph with a loop never ends.
    Hangs,
}

#[derive(Default)]
pub(super) struct Recording {
    pub tasks: Vec<Task>,
    /// The loop whose body is being recorded.
    pub body: Option<Vec<Task>>,
}

#[derive(Clone, Copy)]
pub(super) struct Block {
    pub bytes: usize,
    pub on_device: bool,
}

/// What was done so far.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Kernels run.
    pub kernels: u64,
    /// Products of matrices.
    pub products: u64,
    /// Copies to the device or from it.
    pub copies: u64,
    /// Graphs recorded.
    pub recordings: u64,
    /// Graphs replayed.
    pub replays: u64,
    /// Turns of loops in them.
    pub turns: u64,
    /// Times that somebody waited for the device.
    pub waits: u64,
}

/// One thing that a graph does.
pub(super) enum Task {
    Launch {
        kernel: String,
        shape: Shape,
        arguments: Vec<u8>,
    },
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Zero {
        at: u64,
        bytes: usize,
    },
    Multiply(Matmul),
    Replay(Arc<Vec<Task>>),
    /// As a GPU's conditional node: not 0 at first, and its body sets the value.
    While {
        body: Vec<Task>,
        value: Arc<AtomicU32>,
    },
}

/// A recorded pass.
pub struct Graph(pub(super) Arc<Vec<Task>>);

/// A place in the queue: how many tasks come before it.
pub struct Event(pub(super) u64);
