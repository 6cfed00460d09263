//! Hostile inputs in processes of their own, with little memory and little time: one that is ended by a signal, by too much
//! memory or by a loop without end is known by its number.

use crate::grammar;
use crate::victim::{Victim, use_it, use_template};
use std::io::{Read, Seek, Write};
use std::process::Command;

/// What a process may take of memory, the 512 MiB for the stack of templates and all code included.
const MEMORY: u64 = 4 << 30;
/// Seconds of a processor for [`BATCH`] inputs, which take about one. Not a measurement: it ends what would never end.
const SECONDS: u64 = 300;
/// Bytes of a file that it writes, what it says on standard error among them.
const FILE: u64 = 512 << 20;
/// Inputs of one process.
const BATCH: usize = 500;
/// What to try, for a process: the kind, the first input and the one after the last.
const TASK: &str = "HOSTILE_TASK";

const KINDS: [&str; 3] = ["configurations", "templates", "tokenizers"];

/// Tries `count` inputs of all kinds.
pub fn attack(count: usize) {
    let each = count.div_ceil(KINDS.len());
    let tasks = KINDS.into_iter().flat_map(|kind| (0..each).step_by(BATCH).map(move |from| (kind, from)));
    let tasks = std::sync::Mutex::new(tasks);
    let workers = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = tasks.lock().unwrap().next();
                    let Some((kind, from)) = next else { break };
                    run(kind, from, (from + BATCH).min(each));
                }
            });
        }
    });
}

/// Tries inputs in a process and tells which one was its last, if it did not come to its end.
pub fn run(kind: &str, from: usize, to: usize) {
    let mut said = tempfile::tempfile().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_a_process_of_its_own", "--nocapture"])
        .env(TASK, format!("{kind} {from} {to}"))
        // Not into this process' memory: one that never stops talking is ended by the limit on files.
        .stderr(said.try_clone().unwrap())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rev().find_map(|line| line.split("input ").nth(1)?.parse::<usize>().ok());
    let Some(last) = last.filter(|_| !output.status.success() || !text.contains("all tried")) else { return };
    let kept = std::env::temp_dir().join("hostile_input");
    std::fs::write(&kept, input(kind, last)).unwrap();
    let mut beginning = Vec::new();
    said.rewind().unwrap();
    said.take(1000).read_to_end(&mut beginning).unwrap();
    let said = String::from_utf8_lossy(&beginning);
    panic!("{kind}, input {last}: {}; kept as {}\n{said}", output.status, kept.display());
}

/// The work of such a process; nothing in any other.
pub fn work() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<&str> = task.split(' ').collect();
    let [kind, from, to] = words[..] else { panic!("{TASK} is {task}") };
    limit(libc::RLIMIT_AS, MEMORY);
    limit(libc::RLIMIT_CPU, SECONDS);
    limit(libc::RLIMIT_FSIZE, FILE);
    let victim = match kind {
        "configurations" => Victim::new(crate::LLAMA, &[], "config.json"),
        "tokenizers" => Victim::new(crate::LLAMA, &[("tokenizer.json", crate::TOKENIZER)], "tokenizer.json"),
        _ => Victim::new(crate::LLAMA, &[("chat_template.jinja", "x")], "chat_template.jinja"),
    };
    for number in from.parse::<usize>().unwrap()..to.parse().unwrap() {
        println!("input {number}");
        std::io::stdout().flush().unwrap();
        victim.put(&input(kind, number));
        // What panics inside of `tokenizers` is an error too, by the time that it comes out here.
        let outcome = match kind {
            "templates" => use_template(&victim.path()),
            _ => victim.open().and_then(use_it),
        };
        if let Err(error) = outcome {
            let message = error.to_string();
            assert!(message.len() < 2000 && message.contains(&victim.folder()), "{message}");
        }
    }
    println!("all tried");
}

fn limit(resource: libc::__rlimit_resource_t, most: u64) {
    let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
    // SAFETY: the call reads the struct that it is given.
    assert_eq!(unsafe { libc::setrlimit(resource, &limit) }, 0);
}

/// The same input for the same number, in every process and run.
fn input(kind: &str, number: usize) -> Vec<u8> {
    match kind {
        "configurations" => grammar::configuration(number),
        "templates" => grammar::template(number),
        _ => grammar::tokenizer(number),
    }
}
