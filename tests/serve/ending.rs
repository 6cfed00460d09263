//! A server that is asked to end answers what it has taken.

use crate::client::Unfinished;
use crate::{Server, TEXT};
use serde_json::{Value, json};

#[test]
fn what_was_taken_is_answered_and_nothing_new_is_taken() {
    let server = Server::start(&["-b", "2", "--shutdown-timeout", "86400"]);
    let request = json!({"prompt": "def f(x):", "max_tokens": 20, "ignore_eos": true});
    let expected = server.ok(TEXT, &request)["choices"][0]["text"].take();
    let body = request.to_string();
    // They have been taken, and last until the test goes on.
    let taken: Vec<Unfinished> = (0..3).map(|_| Unfinished::open(&server.address, TEXT, body.len())).collect();
    server.ask_to_end();
    while server.get("/health").status == 200 {}
    let health = server.get("/health");
    assert_eq!((health.status, health.json()), (503, json!({"status": "ending"})));
    let (status, message, ..) = server.post(TEXT, &request).error();
    assert!(status == 503 && message.contains("ending"), "{message}");
    for unfinished in taken {
        let reply = unfinished.finish(body.as_bytes());
        assert_eq!((reply.status, &reply.json()["choices"][0]["text"]), (200, &expected));
    }
    let (status, told) = server.ended();
    assert!(status.success(), "{told}");
}

#[test]
fn streams_that_have_begun_come_to_their_end() {
    let server = Server::start(&["-b", "4", "--shutdown-timeout", "86400"]);
    let request = json!({"prompt": "def f(x):", "max_tokens": 100, "ignore_eos": true, "n": 4});
    let mut streams: Vec<_> = (0..8).map(|_| server.stream(TEXT, request.clone())).collect();
    let first: Vec<Value> =
        streams.iter_mut().map(|stream| serde_json::from_str(&stream.next().unwrap()).unwrap()).collect();
    server.ask_to_end();
    for (stream, first) in streams.into_iter().zip(first) {
        let chunks = [vec![first], stream.rest()].concat();
        let ended = chunks.iter().filter(|chunk| chunk["choices"][0]["finish_reason"] == "length").count();
        assert_eq!(ended, 4);
    }
    let (status, told) = server.ended();
    assert!(status.success(), "{told}");
}

#[test]
fn what_takes_too_long_is_cut_off_and_told() {
    let server = Server::start(&["-b", "1", "--max-waiting", "1023", "--shutdown-timeout", "0"]);
    let request = json!({"prompt": "class Long:\n", "max_tokens": 900, "ignore_eos": true, "n": 1024});
    let mut stream = server.stream(TEXT, request);
    assert!(stream.next().is_some());
    server.ask_to_end();
    let mut last = String::new();
    while let Some(data) = stream.next() {
        last = data;
    }
    let error: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(error["error"]["type"], "server_error", "{last}");
    let (status, told) = server.ended();
    assert_eq!(status.code(), Some(1), "{told}");
    assert!(told.contains("--shutdown-timeout: answers were cut off"), "{told}");
}

#[test]
fn an_idle_server_ends_at_once() {
    let server = Server::start(&[]);
    let idle = std::net::TcpStream::connect(&server.address).unwrap();
    server.ask_to_end();
    let (status, told) = server.ended();
    assert!(status.success() && told.contains("ending: "), "{told}");
    drop(idle);
}
