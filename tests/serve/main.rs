//! `serve` from outside, over real connections: what it answers, to whom, and how it ends.

mod answers;
mod client;
mod ending;
mod keys;
mod limits;
mod metrics;
mod mistakes;
mod mutations;
mod page;
#[path = "../cli/prometheus.rs"]
mod prometheus;
mod streams;

use client::{Reply, Stream};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

const TEXT: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";
const MODEL: &str = "pycode-4m";

/// A server that runs until the test lets go of it.
struct Server {
    child: Child,
    address: String,
    stderr: BufReader<ChildStderr>,
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_eesd-run"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Server {
    /// Starts one at a free port, and waits until it answers.
    fn start(more: &[&str]) -> Self {
        let mut server = Self::begin(more);
        server.told("serving ");
        server
    }

    /// Starts one at a free port, and waits until it listens.
    fn begin(more: &[&str]) -> Self {
        let mut child = command(&[&["serve", "--port", "0", "-t", "1"], more].concat()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut server = Self { child, address: String::new(), stderr };
        server.address = server.told("loading the model for http://").trim().to_owned();
        server
    }

    /// Waits for the line that begins so; the rest of it.
    fn told(&mut self, begin: &str) -> String {
        let mut told = String::new();
        loop {
            let begun = told.len();
            assert!(self.stderr.read_line(&mut told).unwrap() > 0, "it ended: {told}");
            if let Some(rest) = told[begun..].strip_prefix(begin) {
                return rest.to_owned();
            }
        }
    }

    fn get(&self, path: &str) -> Reply {
        client::ask(&self.address, "GET", path, &[], b"")
    }

    fn post(&self, path: &str, body: &Value) -> Reply {
        self.post_raw(path, body.to_string().as_bytes())
    }

    fn post_raw(&self, path: &str, body: &[u8]) -> Reply {
        client::ask(&self.address, "POST", path, &[client::JSON], body)
    }

    /// The answer to a request that must have one.
    fn ok(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.body);
        reply.json()
    }

    /// A stream that has begun.
    fn stream(&self, path: &str, mut body: Value) -> Stream {
        body["stream"] = true.into();
        Stream::open(&self.address, path, &body)
    }

    /// The page of metrics once a condition holds.
    fn metrics_when(&self, holds: impl Fn(&prometheus::Metrics) -> bool) -> prometheus::Metrics {
        loop {
            let page = self.get("/metrics");
            assert_eq!(page.status, 200, "{}", page.body);
            let page = prometheus::parse(&page.body);
            if holds(&page) {
                return page;
            }
        }
    }

    /// Asks it to end, as process managers do.
    fn ask_to_end(&self) {
        // SAFETY: a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) }, 0);
    }

    /// Waits for the end; how it ended, and what it told.
    fn ended(mut self) -> (ExitStatus, String) {
        let mut told = String::new();
        self.stderr.read_to_string(&mut told).unwrap();
        (self.child.wait().unwrap(), told)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either fails where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What `generate` answers to these lines, in their order.
fn generated(requests: &[Value], more: &[&str]) -> Vec<Value> {
    let mut child = command(&[&["generate", "--input", "-", "-q", "-t", "1"], more].concat())
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let lines: String = requests.iter().map(|request| format!("{request}\n")).collect();
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut answers: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    answers.sort_by_key(|answer| (answer["index"].as_u64(), answer["sample"].as_u64()));
    answers
}
