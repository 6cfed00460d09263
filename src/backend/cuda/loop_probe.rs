//! Whether loops in graphs may be used on a device: tried once, in a process of its own.
//!
//! A driver that dislikes a loop may do worse than to say so: where it gives up the recording of a body, ending the
//! recording around it has crashed inside the driver. No error code can be had from that, so a device makes no loops
//! before it is told what came of a try ([`Driver::allow_loops`]). Whoever has a program that can be started does this:
//!
//! 1. It starts the program as a probe, before it opens the device itself (a GPU may belong to one process at a time), and
//!    waits for what it says: [`ask`].
//! 2. The probe opens the device, records and runs loops there, plain ones first, and says how far it came: [`answer`].
//! 3. What was said goes to the device, and the [`note`](Probed::note) to people.
//!
//! A probe that crashes, hangs or fails costs draft loops and nothing else: drafts are then made step by step.
//! `eesd-run` is its own probe (`eesd-run loop-probe 0`), and serves others' as well.

use super::driver::{Driver, HostMemory, Memory};
use super::kernels::{Address, DraftLoop, NextDraft, next_draft};
use crate::backend::BackendError;
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Which loops a device may make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loops {
    /// None.
    #[default]
    None,
    /// Those in whose bodies each kernel begins when the one before it has ended.
    InOrder,
    /// All: kernels of a body may overlap where the device can do that.
    Overlapping,
}

/// What came of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    /// What worked.
    pub loops: Loops,
    /// Why that is not all, as in `it ended with signal: 11 (SIGSEGV)`.
    pub trouble: Option<String>,
}

impl Probed {
    /// What people should know; `None`: all is well.
    pub fn note(&self) -> Option<String> {
        let what = match self.loops {
            Loops::None => "drafts are made step by step",
            _ => "kernels of draft loops do not overlap",
        };
        let trouble = self.trouble.as_ref()?;
        Some(format!("{what}: more was tried on the GPU in a process of its own, but {trouble}"))
    }
}

/// How long a probe may take: it opens a GPU and loads all kernels.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// The subcommand of `eesd-run` that is a probe; a GPU's number comes after it.
pub const COMMAND: &str = "loop-probe";

/// Most bytes of what a probe says.
const MOST_SAID: u64 = 1 << 16;
/// What it says, a line each.
const SAID: [(&str, Loops); 2] = [("loops in order", Loops::InOrder), ("loops that overlap", Loops::Overlapping)];
const TROUBLE: &str = "trouble: ";

/// Turns of a loop that is tried, and launches in each.
const TURNS: u32 = 3;
const LAUNCHES: u32 = 2;

/// A probe's side: tries loops on the device and says, line by line, what worked.
///
/// # Errors
/// If nothing can be written.
pub fn answer<D: Driver>(device: Result<Arc<D>, BackendError>, to: &mut dyn Write) -> io::Result<()> {
    let tried = device.and_then(|device| {
        for (line, loops) in SAID {
            device.allow_loops(loops);
            try_a_loop(&device)?;
            // At once: what comes next may be the end.
            let told = writeln!(to, "{line}").and_then(|()| to.flush());
            told.map_err(|error| BackendError::Device(format!("telling it: {error}")))?;
        }
        Ok(())
    });
    tried.or_else(|error| writeln!(to, "{TROUBLE}{}", error.to_string().replace('\n', " ")))
}

/// Asks an `eesd-run` about the GPU `cuda:number`, before this process opens it.
pub fn ask_program(program: impl AsRef<OsStr>, number: usize) -> Probed {
    let mut probe = Command::new(program);
    probe.args([COMMAND, &number.to_string()]);
    ask(probe, TIME_LIMIT)
}

/// Starts a probe, a program that answers on its standard output, and waits for it: not longer than `limit`, after which
/// it is killed.
pub fn ask(mut probe: Command, limit: Duration) -> Probed {
    let until = Instant::now() + limit;
    let started = probe.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut child = match started {
        Ok(child) => child,
        Err(error) => {
            let program = probe.get_program().to_string_lossy().into_owned();
            return Probed { loops: Loops::None, trouble: Some(format!("{program} could not be started: {error}")) };
        }
    };
    let (mut loops, mut trouble) = (Loops::None, None);
    let lines = lines(&mut child);
    let in_time = loop {
        match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                loops = SAID.iter().find(|said| said.0 == line).map_or(loops, |said| said.1);
                trouble = trouble.or(line.strip_prefix(TROUBLE).map(|why| why.to_owned()));
            }
            Err(end) => break end == RecvTimeoutError::Disconnected,
        }
    };
    let ended = if in_time { ended(&mut child, until) } else { None };
    if ended.is_none() {
        let _ = child.kill();
        // One that the driver does not let go must not hold up whoever asked.
        thread::spawn(move || child.wait());
    }
    let failed = match ended {
        None => Some(format!("it had not ended after {} s", limit.as_secs())),
        Some(status) if !status.success() => Some(format!("it ended with {status}")),
        Some(_) => None,
    };
    if failed.is_some() && loops == Loops::Overlapping {
        // After all had worked: nobody knows what that was.
        loops = Loops::None;
    }
    let unsaid = || (loops != Loops::Overlapping).then(|| "it did not say how it went".to_owned());
    Probed { loops, trouble: trouble.or(failed).or_else(unsaid) }
}

/// What a child says, as it says it.
fn lines(child: &mut Child) -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel();
    if let Some(output) = child.stdout.take() {
        thread::spawn(move || {
            let lines = BufReader::new(output.take(MOST_SAID)).lines().map_while(Result::ok);
            for line in lines {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
    }
    told
}

/// How a child ended that has said all it will; `None`: it has not until then.
fn ended(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < until => thread::sleep(Duration::from_millis(2)),
            _ => return None,
        }
    }
}

/// A loop of launches that count drafts, up to their limit: recorded, run twice, and given back.
fn try_a_loop<D: Driver>(device: &Arc<D>) -> Result<(), BackendError> {
    if !device.loops() {
        return Err(BackendError::Device("no loops in graphs with this driver and these kernels".into()));
    }
    let bytes = 1024;
    let memory = Memory::zeroed(device, bytes, "trying a loop")?;
    let (mut host, back) = (HostMemory::zeroed(device, bytes)?, HostMemory::zeroed(device, bytes)?);
    let limit = TURNS * LAUNCHES;
    let state = DraftLoop { survival: 1.0, limit, ..bytemuck::Zeroable::zeroed() };
    host.contents_mut()[..size_of::<DraftLoop>()].copy_from_slice(bytemuck::bytes_of(&state));
    // One number each, but for the row and the choices.
    let [state, ids, start, keep, row, choices, unused] =
        [0, 128, 132, 136, 160, 256, 960].map(|offset| memory.byte(offset));
    let arguments = NextDraft {
        choices,
        state,
        edges: unused,
        rules: unused,
        ends: unused,
        ids,
        start,
        keep,
        row,
        recent: Address(0),
    };
    device.begin_capture()?;
    let recorded = (|| {
        // SAFETY: parts of the memory, with room for a choice a draft; changed between replays only. A turn in which the
        // limit is reached leaves 0 in the condition.
        unsafe {
            device.copy_to_device(memory.at(), host.at(), bytes)?;
            device.begin_loop()?;
            (0..LAUNCHES).try_for_each(|_| next_draft(&**device, &arguments))?;
            device.end_loop(memory.byte(DraftLoop::GO_ON))?;
            device.copy_to_host(back.at(), memory.at(), bytes)
        }
    })();
    let graph = device.end_capture();
    recorded?;
    let graph = graph?;
    for _ in 0..2 {
        // SAFETY: as above.
        let queued = unsafe { device.replay(&graph) };
        device.wait().and(queued)?;
        let state: DraftLoop = bytemuck::pod_read_unaligned(&back.contents()[..size_of::<DraftLoop>()]);
        if (state.drafted, state.go_on) != (limit, 0) {
            let found = format!("a loop of {limit} launches ran {}", state.drafted);
            return Err(BackendError::Device(found));
        }
    }
    Ok(())
}
