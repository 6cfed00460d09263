//! A run that goes on as long as a test wants: its requests come through a pipe, which the test holds open.

use crate::prometheus::{Metrics, parse};
use crate::{Run, command};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ChildStderr, ChildStdin, Stdio};
use std::thread::sleep;
use std::time::Duration;

/// `generate` with requests from a pipe, up to eight side by side, metrics over HTTP and answers in a file.
pub struct Live {
    pub child: Child,
    pub address: String,
    /// `None`: closed.
    pipe: Option<ChildStdin>,
    stderr: BufReader<ChildStderr>,
}

impl Live {
    pub fn start(output: &str, more: &[&str]) -> Self {
        let base = ["generate", "--input", "-", "--output", output, "-b", "8", "-t", "1", "--metrics", "0"];
        let mut command = command(&[&base[..], more].concat());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("metrics at http://").and_then(|line| line.strip_suffix("/metrics"));
        let address = address.unwrap_or_else(|| panic!("{line:?} names no address")).to_owned();
        let pipe = child.stdin.take();
        Self { child, address, pipe, stderr }
    }

    /// Submits requests, a line each.
    pub fn submit(&mut self, requests: &str) {
        self.try_submit(requests).unwrap();
    }

    /// Submits requests, unless the run has stopped reading.
    pub fn try_submit(&mut self, requests: &str) -> std::io::Result<()> {
        self.pipe.as_mut().unwrap().write_all(requests.as_bytes())
    }

    /// The pipe, for a thread that goes on submitting.
    pub fn take_pipe(&mut self) -> ChildStdin {
        self.pipe.take().unwrap()
    }

    /// Asks for a path with a method: status line and headers in small letters, body.
    pub fn ask(&self, method: &str, path: &str) -> (String, String) {
        let address = &self.address;
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let mut connection = TcpStream::connect(address).unwrap();
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase() + "\r\n", body.into())
    }

    /// The page of metrics, as soon as there is one: a model may take a while to open.
    pub fn page(&self) -> String {
        loop {
            let (head, body) = self.ask("GET", "/metrics");
            if head.starts_with("http/1.1 200 ok\r\n") {
                assert!(head.contains("\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
                assert!(head.contains(&format!("\r\ncontent-length: {}\r\n", body.len())), "{head}");
                return body;
            }
            assert!(head.starts_with("http/1.1 503 "), "{head}");
        }
    }

    /// Waits until all requests submitted so far, so many, have been read and the run waits for the next one; the pages
    /// until then.
    pub fn until_idle(&self, submitted: usize) -> Vec<Metrics> {
        let mut pages = Vec::new();
        loop {
            let page = parse(&self.page());
            let states = ["waiting", "prefilling", "decoding", "swapped_out"];
            let busy: f64 =
                states.map(|state| page.labelled("eesd_requests", &format!("state=\"{state}\""))).iter().sum();
            let outcomes = ["answered", "failed", "cut_short"];
            let ended: f64 = outcomes
                .map(|outcome| page.labelled("eesd_requests_ended_total", &format!("outcome=\"{outcome}\"")))
                .iter()
                .sum();
            pages.push(page);
            // With a place free it reads on.
            if busy < 8.0 && busy + ended == submitted as f64 {
                return pages;
            }
            pause();
        }
    }

    /// The next line on standard error.
    pub fn told(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).unwrap();
        line
    }

    /// There are no more requests: waits for the end of the run.
    pub fn end(mut self) -> Run {
        drop(self.pipe.take());
        let mut stderr = String::new();
        self.stderr.read_to_string(&mut stderr).unwrap();
        Run { code: self.child.wait().unwrap().code().unwrap(), stdout: String::new(), stderr }
    }
}

impl Drop for Live {
    /// No test leaves a run behind.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Between two looks at something that will have happened some time.
pub fn pause() {
    sleep(Duration::from_millis(1));
}

/// Waits for something that a run does, however long it takes; not beyond the run's end.
pub fn until(child: &mut Child, happened: impl Fn() -> bool) {
    while !happened() {
        assert!(child.try_wait().unwrap().is_none() || happened(), "the run has ended without it");
        pause();
    }
}
