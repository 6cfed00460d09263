//! The emulator as a whole device: with memory of a given size, a queue, and graphs. Like on a GPU, what is
//! recorded is not run before it is replayed, and then with the memory as it is by that time.
//!
//! What is queued is done as late as a GPU may do it: when somebody waits. So a result that is read before it was waited
//! for is not there, and what is written over too early arrives as the wrong numbers.

use super::state::{Block, Counts, Event, Graph, LoopFault, Recording, State, Task};
use super::{Emulator, matmul};
use crate::backend::BackendError;
use crate::backend::cuda::driver::{Driver, MemoryInfo};
use crate::backend::cuda::kernels::{Address, ContinueLoop, Launcher, Shape};
use crate::backend::cuda::loop_probe::Loops;
use crate::backend::cuda::matmul::Matmul;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const ALIGNMENT: usize = 256;
/// Asked for as a library does, and never looked at.
const MATMUL_WORKSPACE: usize = 4096;
/// A loop that takes so many turns has no end.
const MOST_TURNS: u64 = 10_000;

/// A device that runs kernels on the processor.
pub struct EmulatedDevice {
    emulator: Emulator,
    bytes: u64,
    has_loops: bool,
    /// What loops come to from which kind of them on.
    fault: Option<(LoopFault, Loops)>,
    state: Mutex<State>,
    /// Whoever has it does what is queued.
    doing: Mutex<()>,
}

impl EmulatedDevice {
    /// A device with `bytes` bytes of memory.
    pub fn new(emulator: Emulator, bytes: u64) -> Self {
        Self { emulator, bytes, has_loops: true, fault: None, state: Mutex::new(State::new()), doing: Mutex::default() }
    }

    /// One whose driver is too old for loops.
    #[must_use]
    pub fn without_loops(self) -> Self {
        Self { has_loops: false, ..self }
    }

    /// One whose driver says that it has loops, and then fails at them: at all, or at those that overlap.
    #[must_use]
    pub fn failing_at_loops(self, fault: LoopFault, from: Loops) -> Self {
        Self { fault: Some((fault, from)), ..self }
    }

    /// Whether loops that are allowed now come to this.
    fn fails(&self, fault: LoopFault, allowed: Loops) -> bool {
        self.fault.is_some_and(|(what, from)| what == fault && allowed >= from)
    }

    /// What was done so far.
    pub fn counts(&self) -> Counts {
        self.state().counts
    }

    /// Bytes allocated and not given back, on the device and page-locked.
    pub fn allocated(&self) -> (usize, usize) {
        let state = self.state();
        let of = |on_device| state.blocks.values().filter(|b| b.on_device == on_device).map(|b| b.bytes).sum();
        (of(true), of(false))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocate_block(&self, bytes: usize, on_device: bool) -> Option<u64> {
        let mut state = self.state();
        assert!(state.recording.is_none(), "memory is allocated while a graph is recorded");
        let taken: usize = state.blocks.values().filter(|block| block.on_device).map(|block| block.bytes).sum();
        if on_device && (taken + bytes) as u64 > self.bytes {
            return None;
        }
        let layout = Layout::from_size_align(bytes, ALIGNMENT).ok().filter(|layout| layout.size() > 0)?;
        // SAFETY: of positive size.
        let at = unsafe { alloc_zeroed(layout) } as u64;
        (at != 0).then(|| {
            state.blocks.insert(at, Block { bytes, on_device });
            at
        })
    }

    fn free_block(&self, at: u64) {
        let block = self.state().blocks.remove(&at).expect("memory that was allocated here and not given back yet");
        let layout = Layout::from_size_align(block.bytes, ALIGNMENT).expect("as when it was allocated");
        // SAFETY: allocated by `allocate_block` with this layout.
        unsafe { dealloc(at as *mut u8, layout) };
    }

    /// Queues a task, or records it.
    ///
    /// # Safety
    /// As the driver's functions.
    unsafe fn queue(&self, task: Task) -> Result<(), BackendError> {
        let state = &mut *self.state();
        if let Some(recording) = &mut state.recording {
            let refused = recording.body.is_some() && !matches!(task, Task::Launch { .. });
            recording.body.as_mut().unwrap_or(&mut recording.tasks).push(task);
            let why = || BackendError::Device("a loop's body may hold launches alone".into());
            return if refused { Err(why()) } else { Ok(()) };
        }
        state.queued.push_back(task);
        Ok(())
    }

    /// Does what was queued before `end`. After a failure nothing more of what was queued is.
    fn catch_up(&self, end: u64) -> Result<(), BackendError> {
        let _alone = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        let next = || {
            let mut state = self.state();
            let task = if state.begun < end { state.queued.pop_front() } else { None };
            state.begun += u64::from(task.is_some());
            task
        };
        while let Some(task) = next() {
            // SAFETY: promised by whoever queued it, until it is waited for.
            unsafe { self.run(&task) }.inspect_err(|_| {
                let mut state = self.state();
                state.begun += state.queued.len() as u64;
                state.queued.clear();
            })?;
        }
        Ok(())
    }

    unsafe fn run(&self, task: &Task) -> Result<(), BackendError> {
        match task {
            Task::Launch { kernel, shape, arguments } => {
                self.state().counts.kernels += 1;
                // SAFETY: the caller's promise.
                unsafe { self.emulator.launch(kernel, *shape, arguments) }
            }
            &Task::Copy { to, from, bytes } => {
                self.state().counts.copies += 1;
                self.check(to, bytes)?;
                self.check(from, bytes)?;
                // SAFETY: both lie in blocks allocated here; that one is the host's and one the device's was promised.
                unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
                Ok(())
            }
            &Task::Zero { at, bytes } => {
                self.check(at, bytes)?;
                // SAFETY: it lies in a block allocated here.
                unsafe { std::ptr::write_bytes(at as *mut u8, 0, bytes) };
                Ok(())
            }
            Task::Multiply(product) => {
                self.state().counts.products += 1;
                let matrices = [product.a, product.b, product.c].into_iter().zip(product.shapes());
                for (matrix, shape) in matrices {
                    self.check(matrix.at.0, matmul::span(shape, matrix))?;
                }
                self.check(product.workspace.0, MATMUL_WORKSPACE)?;
                // SAFETY: all lie in blocks allocated here; that they are apart is the caller's promise.
                unsafe { matmul::multiply(product) };
                Ok(())
            }
            // SAFETY: the caller's promise.
            Task::Replay(tasks) => tasks.iter().try_for_each(|task| unsafe { self.run(task) }),
            Task::While { body, value } => {
                let allowed = self.state().allowed_loops;
                while self.fails(LoopFault::Hangs, allowed) {
                    std::thread::park();
                }
                value.store(1, Ordering::Relaxed);
                for _ in 0..MOST_TURNS {
                    self.state().counts.turns += 1;
                    // SAFETY: the caller's promise.
                    body.iter().try_for_each(|task| unsafe { self.run(task) })?;
                    if value.load(Ordering::Relaxed) == 0 {
                        return Ok(());
                    }
                }
                Err(BackendError::Device(format!("a loop of more than {MOST_TURNS} turns")))
            }
        }
    }

    /// Refuses a range that is not inside one block.
    fn check(&self, at: u64, bytes: usize) -> Result<(), BackendError> {
        let state = self.state();
        let inside = state
            .blocks
            .range(..=at)
            .next_back()
            .is_some_and(|(&start, block)| bytes <= block.bytes && at - start <= (block.bytes - bytes) as u64);
        let why = || BackendError::Device(format!("{bytes} bytes at {at:#x} are in no block of memory"));
        if inside { Ok(()) } else { Err(why()) }
    }
}

impl Launcher for EmulatedDevice {
    unsafe fn launch(&self, kernel: &str, shape: Shape, arguments: &[u8]) -> Result<(), BackendError> {
        let task = Task::Launch { kernel: kernel.to_string(), shape, arguments: arguments.to_vec() };
        // SAFETY: the caller's promise.
        unsafe { self.queue(task) }
    }
}

// SAFETY: blocks are the process's allocator's; whoever waits does all that was queued before.
unsafe impl Driver for EmulatedDevice {
    type Graph = Graph;
    type Event = Event;

    fn describe(&self) -> String {
        "emulated on the processor".into()
    }

    fn memory(&self) -> Result<MemoryInfo, BackendError> {
        Ok(MemoryInfo { free: self.bytes - self.allocated().0 as u64, total: self.bytes })
    }

    fn allocate(&self, bytes: usize, what: &'static str) -> Result<Address, BackendError> {
        self.allocate_block(bytes, true).map(Address).ok_or(BackendError::OutOfMemory { what, bytes })
    }

    unsafe fn free(&self, at: Address) {
        self.free_block(at.0);
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, BackendError> {
        let what = "page-locked memory";
        self.allocate_block(bytes, false).map(|at| at as *mut u8).ok_or(BackendError::OutOfMemory { what, bytes })
    }

    unsafe fn free_host(&self, at: *mut u8, _: usize) {
        self.free_block(at as u64);
    }

    unsafe fn copy_to_device(&self, to: Address, from: *const u8, bytes: usize) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        unsafe { self.queue(Task::Copy { to: to.0, from: from as u64, bytes }) }
    }

    unsafe fn copy_to_host(&self, to: *mut u8, from: Address, bytes: usize) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        unsafe { self.queue(Task::Copy { to: to as u64, from: from.0, bytes }) }
    }

    unsafe fn zero(&self, at: Address, bytes: usize) -> Result<(), BackendError> {
        // SAFETY: the caller's promise.
        unsafe { self.queue(Task::Zero { at: at.0, bytes }) }
    }

    fn matmul_workspace(&self) -> Result<usize, BackendError> {
        Ok(MATMUL_WORKSPACE)
    }

    unsafe fn matmul(&self, product: &Matmul) -> Result<(), BackendError> {
        product.check()?;
        // SAFETY: the caller's promise.
        unsafe { self.queue(Task::Multiply(*product)) }
    }

    fn record(&self) -> Result<Event, BackendError> {
        let state = self.state();
        Ok(Event(state.begun + state.queued.len() as u64))
    }

    fn wait_for(&self, event: &Event) -> Result<(), BackendError> {
        self.catch_up(event.0)
    }

    fn wait(&self) -> Result<(), BackendError> {
        let (all, recording) = {
            let mut state = self.state();
            state.counts.waits += 1;
            (state.begun + state.queued.len() as u64, state.recording.is_some())
        };
        // In any case: whoever gives memory back waits, and has nobody to tell an error to.
        let done = self.catch_up(all);
        let refused = || BackendError::Device("somebody waits while a graph is recorded".into());
        if recording { Err(refused()) } else { done }
    }

    fn begin_capture(&self) -> Result<(), BackendError> {
        self.state().recording = Some(Recording::default());
        Ok(())
    }

    fn allow_loops(&self, loops: Loops) {
        self.state().allowed_loops = loops;
    }

    fn loops(&self) -> bool {
        self.has_loops && self.state().allowed_loops != Loops::None
    }

    fn begin_loop(&self) -> Result<(), BackendError> {
        let why =
            || BackendError::Device("a loop inside of another, outside of a recording, or on an old driver".into());
        let (loops, state) = (self.loops(), &mut *self.state());
        let allowed = loops && !self.fails(LoopFault::Refuses, state.allowed_loops);
        match &mut state.recording {
            Some(recording) if recording.body.is_none() && allowed => {
                recording.body = Some(Vec::new());
                Ok(())
            }
            _ => Err(why()),
        }
    }

    unsafe fn end_loop(&self, condition: Address) -> Result<(), BackendError> {
        let mut state = self.state();
        let begun = state.recording.as_mut().and_then(|recording| recording.body.take().map(|body| (recording, body)));
        let Some((recording, mut body)) = begun else {
            return Err(BackendError::Device("no loop was begun".into()));
        };
        let value = Arc::new(AtomicU32::new(0));
        let arguments = ContinueLoop { handle: value.as_ptr() as u64, condition };
        let (kernel, arguments) = (ContinueLoop::KERNEL.to_string(), bytemuck::bytes_of(&arguments).to_vec());
        // The loop keeps the value as long as the launch that writes it.
        body.push(Task::Launch { kernel, shape: ContinueLoop::SHAPE, arguments });
        recording.tasks.push(Task::While { body, value });
        Ok(())
    }

    fn end_capture(&self) -> Result<Graph, BackendError> {
        let mut state = self.state();
        state.counts.recordings += 1;
        let nothing = || BackendError::Device("no graph is being recorded".into());
        match state.recording.take() {
            Some(Recording { tasks, body: None }) => {
                let loops = tasks.iter().any(|task| matches!(task, Task::While { .. }));
                if loops && self.fails(LoopFault::Crashes, state.allowed_loops) {
                    std::process::abort();
                }
                Ok(Graph(Arc::new(tasks)))
            }
            Some(_) => Err(BackendError::Device("a loop's body was not ended".into())),
            None => Err(nothing()),
        }
    }

    unsafe fn replay(&self, graph: &Graph) -> Result<(), BackendError> {
        self.state().counts.replays += 1;
        // SAFETY: the caller's promise.
        unsafe { self.queue(Task::Replay(graph.0.clone())) }
    }
}
