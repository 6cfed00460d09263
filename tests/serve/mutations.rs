//! Requests that are damaged in many ways: each has an answer with the right status, nobody gets in without a key, and the
//! server goes on as if nothing had been.
//!
//! `EESD_MUTATIONS=100000` makes so many of each kind.

use crate::{CHAT, Server, TEXT, answers, client};
use serde_json::json;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};

/// Requests of each kind where nobody asks for another number.
const REQUESTS: usize = 300;

fn requests() -> usize {
    std::env::var("EESD_MUTATIONS").map_or(REQUESTS, |count| count.parse().unwrap())
}

/// Numbers that look like chance and are the same each time (SplitMix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }

    /// Damages bytes in one to four places.
    fn damage(&mut self, bytes: &mut Vec<u8>) {
        const PIECES: [&[u8]; 12] = [
            b"\"",
            b"{",
            b"}",
            b"[",
            b"null",
            b"-1",
            b"1e999",
            b"\xff\xfe",
            b"\\ud83d",
            b"\r\n",
            b"\0",
            b",\"stream\":true",
        ];
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            match self.below(4) {
                0 => bytes[at] = self.below(256) as u8,
                1 => drop(bytes.drain(at..(at + 1 + self.below(12)).min(bytes.len()))),
                2 => {
                    let piece = PIECES[self.below(PIECES.len())];
                    bytes.splice(at..at, piece.iter().copied());
                }
                _ => {
                    let copied = bytes[at..(at + 1 + self.below(40)).min(bytes.len())].to_vec();
                    bytes.splice(at..at, copied);
                }
            }
            if bytes.is_empty() {
                bytes.push(b'x');
            }
        }
    }
}

#[test]
fn damaged_bodies_have_answers() {
    let (_dir, file) = answers::template();
    let server = Server::start(&["--chat-template", &file, "--max-waiting", "64", "-n", "4"]);
    let whole = json!({"prompt": "def f(x):", "max_tokens": 6});
    let expected = server.ok(TEXT, &whole)["choices"].take();
    let text = json!({
        "model": "pycode-4m", "prompt": ["def f(x):", "é"], "max_tokens": 4, "temperature": 0.5, "top_p": 0.9, "n": 2,
        "seed": 3, "stop": ["\n"], "logit_bias": {"5": -1}, "logprobs": 1, "user": "u",
    });
    let chat = json!({
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "max_completion_tokens": 4,
        "logprobs": true, "top_logprobs": 1, "chat_template_kwargs": {"loud": true}, "draft": "lookup",
    });
    let asked =
        [(TEXT, text.to_string()), (CHAT, chat.to_string()), ("/tokenize", json!({"content": "x"}).to_string())];
    let (mut dice, mut refused) = (Dice(1), 0);
    for _ in 0..requests() {
        let (path, body) = &asked[dice.below(asked.len())];
        let mut body = body.clone().into_bytes();
        dice.damage(&mut body);
        let shown = String::from_utf8_lossy(&body);
        let reply = server.post_raw(path, &body);
        match reply.status {
            200 => {}
            400 | 404 => {
                refused += 1;
                assert!(!reply.error().1.is_empty(), "{path} {shown}");
            }
            status => panic!("{status} to {path} {shown}: {}", reply.body),
        }
    }
    assert!(refused > requests() / 2, "{refused} were wrong enough");
    assert_eq!(server.ok(TEXT, &whole)["choices"], expected);
}

/// Heads and bodies together, from somebody who has the key: whatever it is, it is the client's fault, and nothing panics.
#[test]
fn damaged_requests_are_never_the_servers_fault() {
    const KEY: &str = "Authorization: Bearer the-right-key";
    let server = Server::start(&["--api-key", "the-right-key", "-n", "2"]);
    let body = json!({"prompt": "def f(x):", "max_tokens": 2, "stop": ["é"]}).to_string();
    let headers = [client::JSON, KEY, "Expect: 100-continue", "Transfer-Encoding: identity", "Cookie: a=b"];
    let mut dice = Dice(3);
    for _ in 0..requests() {
        let method = ["POST", "GET", "PUT", "OPTIONS", "HEAD"][dice.below(5).min(dice.below(5))];
        let path = [TEXT, CHAT, "/v1/models", "/tokenize", "/metrics", "/", "/health"][dice.below(7)];
        let sent = if dice.below(8) == 0 { sized(&mut dice) } else { body.clone().into_bytes() };
        let mut bytes = client::request(method, path, &headers[..2 + dice.below(4)], &sent);
        if dice.below(4) > 0 {
            dice.damage(&mut bytes);
        }
        let mut connection = TcpStream::connect(&server.address).unwrap();
        // It may be refused, and closed, before it has been read.
        let _ = connection.write_all(&bytes);
        let _ = connection.shutdown(Shutdown::Write);
        let mut reply = Vec::new();
        let _ = connection.read_to_end(&mut reply);
        let status = String::from_utf8_lossy(&reply[..reply.len().min(12)]).into_owned();
        let fits = status.is_empty() || status.starts_with("HTTP/1.") && b"1234".contains(&status.as_bytes()[9]);
        assert!(fits, "{status}: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(2000)]));
    }
    server.ask_to_end();
    let (ended, told) = server.ended();
    assert!(ended.success() && !told.contains("panicked"), "{told}");
}

/// A body that is large or deep.
fn sized(dice: &mut Dice) -> Vec<u8> {
    let size = [1, 1000, 100_000, 1 << 20][dice.below(4)];
    match dice.below(3) {
        0 => vec![b'['; size],
        1 => json!({"prompt": "é".repeat(size / 2), "max_tokens": 1}).to_string().into_bytes(),
        _ => format!("{{{}\"prompt\": \"x\"}}", "\"a\": 1, ".repeat(size / 8)).into_bytes(),
    }
}

#[test]
fn nobody_gets_in_by_damaging_a_request() {
    let server = Server::start(&["--api-key", "the-right-key"]);
    let body = json!({"prompt": "def f(x):", "max_tokens": 2}).to_string();
    let headers = [client::JSON, "Authorization: Bearer the-wrong-key"];
    let asked = client::request("POST", TEXT, &headers, body.as_bytes());
    let mut dice = Dice(2);
    for _ in 0..requests() {
        let mut bytes = asked.clone();
        dice.damage(&mut bytes);
        let mut connection = TcpStream::connect(&server.address).unwrap();
        // It may be refused, and closed, before it has been read.
        let _ = connection.write_all(&bytes);
        let _ = connection.shutdown(Shutdown::Write);
        let mut reply = Vec::new();
        let _ = connection.read_to_end(&mut reply);
        let status = String::from_utf8_lossy(&reply[..reply.len().min(12)]).into_owned();
        assert!(
            status.is_empty() || status.starts_with("HTTP/1.") && status[9..].starts_with('4'),
            "{status}: {bytes:?}"
        );
    }
    let right = [client::JSON, "Authorization: Bearer the-right-key"];
    assert_eq!(client::ask(&server.address, "POST", TEXT, &right, body.as_bytes()).status, 200);
}
