//! Nobody waits without end, works for who has gone away, or is held up by who says nothing.

use crate::client::{JSON, Stream, Unfinished, request};
use crate::prometheus::Metrics;
use crate::{Server, TEXT};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;

/// Answers that take all places of a server with `-b 1 --max-waiting 1023`, and take far longer than any test.
const ALL: usize = 1024;

fn all_places() -> Value {
    json!({"prompt": "class Long:\n", "max_tokens": 900, "ignore_eos": true, "n": ALL})
}

fn server() -> Server {
    Server::start(&["-b", "1", "--max-waiting", "1023"])
}

fn open(page: &Metrics) -> f64 {
    let states = ["waiting", "prefilling", "decoding", "swapped_out"];
    states.iter().map(|state| page.labelled("eesd_requests", &format!("state=\"{state}\""))).sum()
}

fn outcome(page: &Metrics, outcome: &str) -> f64 {
    page.labelled("eesd_requests_ended_total", &format!("outcome=\"{outcome}\""))
}

/// All have ended, and hardly any of them at its own end.
fn assert_cancelled(server: &Server) {
    let page = server.metrics_when(|page| open(page) == 0.0);
    let (answered, cut_short) = (outcome(&page, "answered"), outcome(&page, "cut_short"));
    assert_eq!(answered + cut_short, ALL as f64);
    assert!(cut_short > ALL as f64 / 2.0, "{answered} were answered for nobody");
    assert_eq!(page.one("eesd_cache_pages_held"), 0.0);
    assert_eq!(server.post(TEXT, &json!({"prompt": "x", "max_tokens": 2})).status, 200);
}

#[test]
fn a_full_queue_is_told_and_a_client_that_goes_away_frees_its_places() {
    let server = server();
    let mut stream = server.stream(TEXT, all_places());
    assert!(stream.next().is_some());
    for streamed in [false, true] {
        let reply = server.post(TEXT, &json!({"prompt": "x", "max_tokens": 2, "stream": streamed}));
        let (status, message, _, code) = reply.error();
        assert_eq!((status, code), (429, json!("rate_limit_exceeded")), "{message}");
        assert!(reply.head.contains("\r\nretry-after: 1\r\n"), "{}", reply.head);
    }
    assert_eq!(server.get("/health").status, 200, "full is not broken");
    drop(stream);
    assert_cancelled(&server);
}

/// Nobody who waits for a whole answer has been sent anything that could fail; nor is it only those who close after one.
#[test]
fn a_client_that_goes_away_is_noticed_in_each_kind_of_connection() {
    for (version, stream) in [("1.0", false), ("1.1", false), ("1.1", true)] {
        let server = server();
        let mut asked = all_places();
        asked["stream"] = stream.into();
        let asked = request("POST", TEXT, &[JSON], asked.to_string().as_bytes());
        let asked = String::from_utf8(asked).unwrap().replace("HTTP/1.0", &format!("HTTP/{version}"));
        let mut connection = TcpStream::connect(&server.address).unwrap();
        connection.write_all(asked.as_bytes()).unwrap();
        server.metrics_when(|page| open(page) > 0.0);
        drop(connection);
        assert_cancelled(&server);
    }
}

/// A client that takes nothing of its stream does not hold up the others, nor the engine.
#[test]
fn who_does_not_read_holds_up_nobody() {
    let server = Server::start(&["-b", "2"]);
    // Far more than what lies between two sockets.
    let request = json!({
        "prompt": "class Long:\n", "max_tokens": 200, "ignore_eos": true, "n": 10, "logprobs": 100, "stream": true,
    });
    let unread = Stream::open(&server.address, TEXT, &request);
    assert_eq!(server.post(TEXT, &json!({"prompt": "x", "max_tokens": 2})).status, 200);
    server.metrics_when(|page| open(page) == 0.0 && outcome(page, "answered") == 11.0);
    let whole = unread.rest().iter().filter(|chunk| chunk["choices"][0]["finish_reason"] == "length").count();
    assert_eq!(whole, 10, "it is all there for who reads it late");
}

#[test]
fn silent_connections_hold_up_nobody() {
    let server = Server::start(&[]);
    let silent: Vec<TcpStream> = (0..200).map(|_| TcpStream::connect(&server.address).unwrap()).collect();
    let begun: Vec<TcpStream> = (0..50)
        .map(|_| {
            let mut connection = TcpStream::connect(&server.address).unwrap();
            connection.write_all(b"POST /v1/completions HTTP/1.1\r\nHost:").unwrap();
            connection
        })
        .collect();
    let body = json!({"prompt": "def f(x):", "max_tokens": 5}).to_string();
    let bodiless: Vec<Unfinished> = (0..50).map(|_| Unfinished::open(&server.address, TEXT, body.len())).collect();
    for _ in 0..3 {
        assert_eq!(server.get("/health").status, 200);
        assert_eq!(server.get("/metrics").status, 200);
        assert_eq!(server.post_raw(TEXT, body.as_bytes()).status, 200);
    }
    drop((silent, begun));
    for unfinished in bodiless {
        assert_eq!(unfinished.finish(body.as_bytes()).status, 200);
    }
}
