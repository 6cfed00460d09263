//! Loops are tried in a process of its own: what becomes of one that crashes, hangs, is refused or cannot be started, and of
//! one that does all it should. The devices are emulated, in this program run again.

use crate::support::emulated;
use eesd::backend::BackendError;
use eesd::backend::cuda::driver::Driver;
use eesd::backend::cuda::emulator::{EmulatedDevice, Emulator, LoopFault};
use eesd::backend::cuda::loop_probe::{self, Loops, Probed};
use std::env;
use std::io;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// In a child: which device it has.
const CHILD: &str = "PROBED_DEVICE";
/// Longer than any answer takes, and no test waits for it.
const LONG: Duration = Duration::from_secs(600);

/// This program as a probe of a device of that name, which [`a_probe`] knows.
fn probe(device: &str) -> Command {
    let mut probe = Command::new(env::current_exe().unwrap());
    probe.args(["--exact", "loop_probe::a_probe", "--nocapture", "--test-threads", "1"]).env(CHILD, device);
    probe
}

/// Not a test but what the others start.
#[test]
fn a_probe() {
    let Ok(name) = env::var(CHILD) else { return };
    let new = || EmulatedDevice::new(Emulator::new(0), 1 << 20);
    let failing = |fault, from| Ok(Arc::new(new().failing_at_loops(fault, from)));
    let device = match name.as_str() {
        "well" => Ok(Arc::new(new())),
        "old" => Ok(Arc::new(new().without_loops())),
        "missing" => Err(BackendError::Device("cuda:0: this machine has\nno GPU".into())),
        "refuses" => failing(LoopFault::Refuses, Loops::InOrder),
        "crashes" => failing(LoopFault::Crashes, Loops::InOrder),
        "hangs" => failing(LoopFault::Hangs, Loops::InOrder),
        "refuses overlap" => failing(LoopFault::Refuses, Loops::Overlapping),
        "crashes at overlap" => failing(LoopFault::Crashes, Loops::Overlapping),
        "crashes at the end" => Ok(Arc::new(new())),
        "silent" => std::process::exit(0),
        other => panic!("{other}"),
    };
    // Behind what the test harness has written.
    println!();
    loop_probe::answer(device, &mut io::stdout().lock()).unwrap();
    if name == "crashes at the end" {
        std::process::abort();
    }
}

#[test]
fn what_worked_may_be_used_and_the_rest_is_told() {
    use Loops::{InOrder, None, Overlapping};
    let cases = [
        ("well", Overlapping, ""),
        ("old", None, "no loops in graphs with this driver"),
        ("missing", None, "cuda:0: this machine has no GPU"),
        ("refuses", None, "a loop inside of another, outside of a recording, or on an old driver"),
        ("crashes", None, "it ended with signal: 6"),
        ("refuses overlap", InOrder, "a loop inside of another"),
        ("crashes at overlap", InOrder, "it ended with signal: 6"),
        ("crashes at the end", None, "it ended with signal: 6"),
        ("silent", None, "it did not say how it went"),
    ];
    for (device, loops, trouble) in cases {
        let found = loop_probe::ask(probe(device), LONG);
        assert_eq!(found.loops, loops, "{device}: {found:?}");
        let told = found.trouble.clone().unwrap_or_default();
        assert!(told.contains(trouble) && told.is_empty() == trouble.is_empty(), "{device}: {told}");
        let note = found.note().unwrap_or_default();
        let what = match loops {
            None => "drafts are made step by step",
            InOrder => "kernels of draft loops do not overlap",
            Overlapping => "",
        };
        assert!(note.starts_with(what) && note.ends_with(&told), "{device}: {note}");
    }
}

/// However little it is given: one that hangs has not answered after any time.
#[test]
fn a_probe_that_hangs_is_not_waited_for() {
    let found = loop_probe::ask(probe("hangs"), Duration::from_secs(1));
    let trouble = Some("it had not ended after 1 s".to_owned());
    assert_eq!(found, Probed { loops: Loops::None, trouble });
}

#[test]
fn what_is_no_probe_says_nothing_of_loops() {
    let ask = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(arguments);
        let found = loop_probe::ask(command, LONG);
        assert_eq!(found.loops, Loops::None, "{found:?}");
        found.trouble.unwrap()
    };
    assert!(ask("/nowhere/eesd-run", &[]).starts_with("/nowhere/eesd-run could not be started: "));
    assert_eq!(ask("sh", &["-c", "echo loops"]), "it did not say how it went");
    assert_eq!(ask("sh", &["-c", "echo loops; exit 3"]), "it ended with exit status: 3");
    // No more is read of one that goes on and on.
    assert_eq!(ask("sh", &["-c", "exec yes loops"]), "it ended with signal: 13 (SIGPIPE)");
    // What another program says of the GPU is a GPU's matter.
    assert!(loop_probe::ask_program("false", 0).trouble.is_some());
}

/// A backend over a device that was told what a probe found makes loops or none.
#[test]
fn a_device_makes_the_loops_that_it_is_allowed() {
    let device = emulated(0, 1 << 20);
    for (loops, makes) in [(Loops::None, false), (Loops::InOrder, true), (Loops::Overlapping, true)] {
        device.allow_loops(loops);
        assert_eq!(device.loops(), makes);
        device.begin_capture().unwrap();
        assert_eq!(device.begin_loop().is_ok(), makes, "{loops:?}");
        drop(device.end_capture());
    }
}
