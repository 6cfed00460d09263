//! A client that sees what is sent: HTTP/1.0, whose answers end where the connection does.

use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;

pub const JSON: &str = "Content-Type: application/json";

/// An answer as a whole.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    /// In small letters.
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        assert!(self.head.contains("\r\ncontent-type: application/json\r\n"), "{self:?}");
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Status, and the error's message, field and code.
    pub fn error(&self) -> (u16, String, Value, Value) {
        let error = self.json()["error"].take();
        assert!(error["type"].is_string(), "{self:?}");
        let message = error["message"].as_str().unwrap_or_else(|| panic!("{self:?}")).to_owned();
        (self.status, message, error["param"].clone(), error["code"].clone())
    }

    fn read(mut reader: impl BufRead) -> Self {
        let (status, head) = head(&mut reader);
        let mut body = String::new();
        reader.read_to_string(&mut body).unwrap();
        Self { status, head, body }
    }
}

fn head(reader: &mut impl BufRead) -> (u16, String) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).unwrap() > 0, "an answer without an end of its headers: {head:?}");
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no status: {head}")), head.to_lowercase())
}

/// A request as it goes over the wire.
pub fn request(method: &str, path: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut request = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {}\r\n", body.len());
    headers.iter().for_each(|header| request += &format!("{header}\r\n"));
    [request.as_bytes(), b"\r\n", body].concat()
}

/// Asks over a connection of its own.
pub fn ask(address: &str, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Reply {
    ask_raw(address, &request(method, path, headers, body))
}

/// Asks in these very bytes.
pub fn ask_raw(address: &str, request: &[u8]) -> Reply {
    let mut connection = TcpStream::connect(address).unwrap();
    // A request may be refused before it has been read to its end.
    let _ = connection.write_all(request);
    Reply::read(BufReader::new(connection))
}

/// A connection on which the rest of a request is still to be said.
pub struct Unfinished(BufReader<TcpStream>);

impl Unfinished {
    /// Says all of a request but its body, and waits until the server wants it.
    pub fn open(address: &str, path: &str, length: usize) -> Self {
        let mut connection = TcpStream::connect(address).unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\n{JSON}\r\nContent-Length: {length}\r\nExpect: 100-continue\r\n\
             Connection: close\r\n\r\n"
        );
        connection.write_all(head.as_bytes()).unwrap();
        let mut reader = BufReader::new(connection);
        let (status, told) = self::head(&mut reader);
        assert_eq!(status, 100, "{told}");
        Self(reader)
    }

    pub fn finish(mut self, body: &[u8]) -> Reply {
        self.0.get_mut().write_all(body).unwrap();
        Reply::read(self.0)
    }
}

/// Server-sent events.
pub struct Stream {
    reader: BufReader<TcpStream>,
    /// In small letters.
    pub head: String,
}

impl Stream {
    pub fn open(address: &str, path: &str, body: &Value) -> Self {
        let mut connection = TcpStream::connect(address).unwrap();
        connection.write_all(&request("POST", path, &[JSON], body.to_string().as_bytes())).unwrap();
        let mut reader = BufReader::new(connection);
        let (status, head) = head(&mut reader);
        assert_eq!(status, 200, "{head}");
        assert!(head.contains("\r\ncontent-type: text/event-stream\r\n"), "{head}");
        Self { reader, head }
    }

    /// The data of the next event; `None` at the end of the connection.
    pub fn next(&mut self) -> Option<String> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.reader.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            match line.trim_end_matches('\n') {
                "" => {}
                comment if comment.starts_with(':') => {}
                data => return Some(data.strip_prefix("data: ").unwrap_or_else(|| panic!("{data:?}")).to_owned()),
            }
        }
    }

    /// All chunks that are left, after which the stream says that it has said everything.
    pub fn rest(mut self) -> Vec<Value> {
        let mut chunks = Vec::new();
        loop {
            let data = self.next().expect("a stream ends with [DONE]");
            if data == "[DONE]" {
                assert_eq!(self.next(), None, "nothing comes after [DONE]");
                return chunks;
            }
            chunks.push(serde_json::from_str(&data).unwrap());
        }
    }
}
