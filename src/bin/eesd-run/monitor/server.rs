//! The metrics over HTTP: one thread, one short answer per connection, never in the way of generation.

use crate::failure::{Failure, Outcome};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longest head of a request that is read.
const MOST_BYTES: usize = 8192;
/// Longest that one connection may take, so that a slow one does not keep the others waiting.
const MOST_TIME: Duration = Duration::from_secs(2);
/// Pause where no connection can be accepted, as when there are too many open files.
const PAUSE: Duration = Duration::from_millis(100);

/// A port that is ours.
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

/// What is served.
#[derive(Clone, Default)]
pub struct Page(Arc<Mutex<String>>);

impl Page {
    /// Serves this from now on.
    pub fn put(&self, text: &str) {
        text.clone_into(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Listening {
    /// Takes the port; connections wait until it is served.
    ///
    /// # Errors
    /// If there is no such address, or its port is in use.
    pub fn at(address: &str) -> Outcome<Self> {
        let listen = || {
            let listener = TcpListener::bind(address)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        listen().map_err(|e: io::Error| Failure::failed(format!("--metrics {address}: cannot be listened on: {e}")))
    }

    /// Where it is, the port that the system has chosen for port 0 included.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves a page until the program ends.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub fn serve(self) -> Outcome<Page> {
        let page = Page::default();
        let served = page.clone();
        let answer_all = move || {
            for connection in self.listener.incoming() {
                match connection {
                    // What goes wrong with one connection is the business of whoever made it.
                    Ok(mut connection) => drop(answer(&mut connection, &served)),
                    Err(_) => std::thread::sleep(PAUSE),
                }
            }
        };
        let spawned = std::thread::Builder::new().name("metrics".into()).spawn(answer_all);
        spawned.map_err(|e| Failure::failed(format!("--metrics: no thread to be had: {e}")))?;
        Ok(page)
    }
}

fn answer(connection: &mut TcpStream, page: &Page) -> io::Result<()> {
    let deadline = Instant::now() + MOST_TIME;
    connection.set_write_timeout(Some(MOST_TIME))?;
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MOST_BYTES {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        connection.set_read_timeout(Some(left))?;
        let mut bytes = [0; 1024];
        match connection.read(&mut bytes)? {
            0 => break,
            n => head.extend(&bytes[..n]),
        }
    }
    let (status, kind, body) = if asks_for_metrics(&head) {
        ("200 OK", "text/plain; version=0.0.4; charset=utf-8", page.get())
    } else {
        ("404 Not Found", "text/plain; charset=utf-8", "metrics are at GET /metrics\n".into())
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
    connection.write_all((head + &body).as_bytes())
}

/// Whether a request's head asks for the page.
fn asks_for_metrics(head: &[u8]) -> bool {
    let line = head.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    let path = target.and_then(|target| target.split(|&byte| byte == b'?').next());
    (method, path) == (Some(b"GET"), Some(b"/metrics"))
        && version.is_some_and(|version| version.starts_with(b"HTTP/1."))
        && words.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut connection = TcpStream::connect(address).unwrap();
        connection.write_all(request).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn one_page_and_nothing_else() {
        let listening = Listening::at("127.0.0.1:0").unwrap();
        let address = listening.address();
        let page = listening.serve().unwrap();
        page.put("eesd_x 1\n");
        let answer = ask(address, b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        let expected = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: 9\r\n\
                        Connection: close\r\n\r\neesd_x 1\n";
        assert_eq!(answer, expected);
        page.put("eesd_x 2\n");
        assert!(ask(address, b"GET /metrics?a=b HTTP/1.0\r\n\r\n").ends_with("\r\n\r\neesd_x 2\n"));
        for wrong in [
            &b"GET / HTTP/1.1\r\n\r\n"[..],
            b"GET /metrics/x HTTP/1.1\r\n\r\n",
            b"POST /metrics HTTP/1.1\r\n\r\n",
            b"GET /metrics\r\n\r\n",
            b"GET /metrics HTTP/1.1 x\r\n\r\n",
            b"\xff\xfe\r\n\r\n",
        ] {
            assert!(ask(address, wrong).starts_with("HTTP/1.1 404 Not Found\r\n"), "{wrong:?}");
        }
    }

    /// Somebody who connects and says nothing, or never stops talking, keeps nobody waiting for long.
    #[test]
    fn slow_connections_do_not_block_others() {
        let listening = Listening::at("127.0.0.1:0").unwrap();
        let address = listening.address();
        listening.serve().unwrap().put("eesd_x 1\n");
        let silent = TcpStream::connect(address).unwrap();
        let mut endless = TcpStream::connect(address).unwrap();
        endless.write_all(&vec![b'x'; 3 * MOST_BYTES]).unwrap();
        let start = Instant::now();
        assert!(ask(address, b"GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200"));
        assert!(start.elapsed() < 3 * MOST_TIME, "{:?}", start.elapsed());
        drop(silent);
    }

    #[test]
    fn a_port_has_one_owner() {
        let first = Listening::at("127.0.0.1:0").unwrap();
        let address = first.address().to_string();
        let error = Listening::at(&address).err().unwrap();
        assert!(error.message().starts_with(&format!("--metrics {address}: cannot be listened on: ")));
        assert!(Listening::at("no-such-host.invalid:1").is_err());
    }
}
