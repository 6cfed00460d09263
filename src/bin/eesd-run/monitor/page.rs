//! The metrics over HTTP: the last look, never in the way of generation.

use crate::failure::Outcome;
use crate::http::{Limits, Listening, Server};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

const LIMITS: Limits = Limits {
    connections: 512,
    head_bytes: 16 << 10,
    head_time: Duration::from_secs(5),
    whole_time: Some(Duration::from_secs(10)),
    unread_time: Duration::from_secs(10),
    keep_alive: false,
    last_answers: Duration::from_secs(1),
};
/// How long to wait for the first look. Well below the time of a connection, so that an answer says that there is none.
const FIRST: Duration = Duration::from_secs(5);
const PLAIN: &str = "text/plain; charset=utf-8";

/// The last text of a page, if there has been one.
pub type Seen = watch::Receiver<Option<String>>;

/// A page that is being served.
pub struct Page {
    text: watch::Sender<Option<String>>,
    address: SocketAddr,
    _server: Server,
}

impl Page {
    /// Serves at an address; whoever asks waits for the first text.
    ///
    /// # Errors
    /// If the address cannot be had, or not served.
    pub fn at(address: &str) -> Outcome<Self> {
        let listening = Listening::at("--metrics", address)?;
        let (text, seen) = watch::channel(None);
        let address = listening.address();
        Ok(Self { text, address, _server: listening.serve(routes(seen), LIMITS)? })
    }

    /// Where it is, the port that the system has chosen for port 0 included.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves this from now on.
    pub fn put(&self, text: &str) {
        self.text.send_replace(Some(text.to_owned()));
    }
}

fn routes(seen: Seen) -> Router {
    let told = |status: StatusCode, text: &'static str| (status, [(header::CONTENT_TYPE, PLAIN)], text);
    Router::new()
        .route("/metrics", get(metrics))
        .fallback(async move || told(StatusCode::NOT_FOUND, "metrics are at GET /metrics\n"))
        .method_not_allowed_fallback(async move || told(StatusCode::METHOD_NOT_ALLOWED, "metrics are to be got: GET\n"))
        .with_state(seen)
}

/// Answers with the last text, or the first one as soon as it is there.
pub async fn metrics(State(mut seen): State<Seen>) -> Response {
    let text = match timeout(FIRST, seen.wait_for(Option::is_some)).await {
        Ok(Ok(text)) => text.clone().unwrap_or_default(),
        _ => {
            let answer = (StatusCode::SERVICE_UNAVAILABLE, [(header::CONTENT_TYPE, PLAIN)], "nothing has begun yet\n");
            return answer.into_response();
        }
    };
    let kind = format!("{}; charset=utf-8", prometheus::TEXT_FORMAT);
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    fn ask(page: &Page, request: &str) -> String {
        let mut connection = TcpStream::connect(page.address()).unwrap();
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn one_page_and_nothing_else() {
        let page = Page::at("127.0.0.1:0").unwrap();
        page.put("eesd_x 1\n");
        let answer = ask(&page, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\neesd_x 1\n"), "{answer}");
        let kind = "\r\ncontent-type: text/plain; version=0.0.4; charset=utf-8\r\n";
        assert!(answer.contains(kind) && answer.contains("\r\ncontent-length: 9\r\n"), "{answer}");
        page.put("eesd_x 2\n");
        assert!(ask(&page, "GET /metrics?a=b HTTP/1.0\r\n\r\n").ends_with("\r\n\r\neesd_x 2\n"));
        let head = ask(&page, "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        assert!(head.contains(kind) && head.ends_with("\r\n\r\n"), "{head}");
        for (wrong, status) in [
            ("GET /", 404),
            ("GET /metrics/x", 404),
            ("GET /metrics/", 404),
            ("POST /", 404),
            ("POST /metrics", 405),
            ("DELETE /metrics", 405),
            ("OPTIONS /metrics", 405),
        ] {
            let answer = ask(&page, &format!("{wrong} HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{wrong}: {answer}");
            assert!(answer.contains(&format!("\r\ncontent-type: {PLAIN}\r\n")), "{wrong}: {answer}");
            assert_eq!(answer.contains("\r\nallow: GET,HEAD\r\n"), status == 405, "{wrong}: {answer}");
        }
    }

    /// Somebody who asks while a model is being opened.
    #[test]
    fn who_asks_early_waits() {
        let page = Page::at("127.0.0.1:0").unwrap();
        let mut early = TcpStream::connect(page.address()).unwrap();
        early.write_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        // Connections are served side by side: this one is answered, so that one is accepted.
        assert!(ask(&page, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").starts_with("HTTP/1.1 404 "));
        page.put("eesd_x 1\n");
        let mut answer = String::new();
        early.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("\r\n\r\neesd_x 1\n"), "{answer}");
    }
}
