//! HTTP for whoever watches or asks: one thread for all connections, apart from those that generate.
//!
//! Each connection is served by itself. How long it may take, how much it may say and how many
//! there may be is limited, so that nobody who is silent, slow or talkative keeps the others out.

use crate::failure::{Failure, Outcome};
use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutStream;

/// What a server puts up with.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Connections at a time; one more is closed at once.
    pub connections: usize,
    /// Bytes of a request's line and headers, 8192 at least.
    pub head_bytes: usize,
    /// From a connection's beginning, or the answer before, to the end of a request's headers: silence ends here.
    pub head_time: Duration,
    /// From a connection's beginning to the end of its answer; `None`: an answer may take any time.
    pub whole_time: Option<Duration>,
    /// For an answer of which nothing is taken.
    pub unread_time: Duration,
    /// A connection is for one request after the other, and whoever closes their side of it has gone away. Else it is for
    /// one, and who has said all they want may still listen.
    pub keep_alive: bool,
    /// For answers that are under way when the server stops.
    pub last_answers: Duration,
}

/// Threads for work that would hold up the others' connections.
const ASIDE: usize = 4;

/// A port that is ours.
pub struct Listening {
    listener: TcpListener,
    address: SocketAddr,
}

/// A server; stops where it is dropped.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    /// Takes the port that a `flag` asks for; connections wait until it is served.
    ///
    /// # Errors
    /// If there is no such address, or its port is in use.
    pub fn at(flag: &str, address: &str) -> Outcome<Self> {
        let listen = || {
            let listener = TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok(Self { listener, address })
        };
        let failed = |e: std::io::Error| Failure::failed(format!("{flag} {address}: cannot be listened on: {e}"));
        listen().map_err(failed)
    }

    /// Where it is, the port that the system has chosen for port 0 included.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers from now on, in a thread of its own.
    ///
    /// # Errors
    /// If the system has no thread for it, or no means to wait for connections.
    pub fn serve(self, routes: Router, limits: Limits) -> Outcome<Server> {
        let failed = |e: std::io::Error| Failure::failed(format!("http://{}: cannot be served: {e}", self.address));
        let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(ASIDE).build().map_err(failed)?;
        let listener = {
            let _within = runtime.enter();
            tokio::net::TcpListener::from_std(self.listener).map_err(failed)?
        };
        let (stop, stopped) = oneshot::channel();
        let serve = move || serve_until(&runtime, listener, &routes, limits, stopped);
        let thread = std::thread::Builder::new().name("http".into()).spawn(serve).map_err(failed)?;
        Ok(Server { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Either fails only where the thread has ended already.
        self.stop.take().map(|stop| stop.send(()));
        self.thread.take().map(JoinHandle::join);
    }
}

fn serve_until(
    runtime: &Runtime,
    mut listener: tokio::net::TcpListener,
    routes: &Router,
    limits: Limits,
    mut stopped: oneshot::Receiver<()>,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_time).max_buf_size(limits.head_bytes);
    http.keep_alive(limits.keep_alive).half_close(!limits.keep_alive);
    let places = Arc::new(Semaphore::new(limits.connections));
    let open = GracefulShutdown::new();
    runtime.block_on(async {
        loop {
            // axum's waits a while where the system has no more files to give, as this would go round in circles.
            let (stream, _) = tokio::select! {
                accepted = Listener::accept(&mut listener) => accepted,
                _ = &mut stopped => break,
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            // Pieces of an answer are not to wait for each other; where the system cannot promise that, they do.
            let _ = stream.set_nodelay(true);
            let mut stream = TimeoutStream::new(stream);
            stream.set_write_timeout(Some(limits.unread_time));
            let service = TowerToHyperService::new(routes.clone());
            let connection = open.watch(http.serve_connection(TokioIo::new(Box::pin(stream)), service));
            tokio::spawn(async move {
                // What goes wrong with a connection is the business of whoever made it.
                match limits.whole_time {
                    Some(time) => drop(timeout(time, connection).await),
                    None => drop(connection.await),
                }
                drop(place);
            });
        }
        drop(listener);
        let _ = timeout(limits.last_answers, open.shutdown()).await;
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::mpsc;

    /// Longer than any test.
    const NEVER: Duration = Duration::from_secs(86_400);
    const LIMITS: Limits = Limits {
        connections: 2,
        head_bytes: 8192,
        head_time: NEVER,
        whole_time: None,
        unread_time: NEVER,
        keep_alive: false,
        last_answers: NEVER,
    };
    const ASKED: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    fn serve(routes: Router, limits: Limits) -> (SocketAddr, Server) {
        let listening = Listening::at("--flag", "127.0.0.1:0").unwrap();
        (listening.address(), listening.serve(routes, limits).unwrap())
    }

    fn hello() -> Router {
        Router::new().route("/", get(async || "hello"))
    }

    /// What comes until the connection's end, which a reset is too.
    fn rest(connection: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let _ = connection.read_to_end(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    /// Empty where the connection was refused.
    fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut connection = TcpStream::connect(address).unwrap();
        // It may be closed already.
        let _ = connection.write_all(request);
        rest(&mut connection)
    }

    #[test]
    fn a_port_has_one_owner() {
        let (address, _server) = serve(hello(), LIMITS);
        let error = Listening::at("--flag", &address.to_string()).err().unwrap();
        assert!(error.message().starts_with(&format!("--flag {address}: cannot be listened on: ")));
        assert!(Listening::at("--flag", "no-such-host.invalid:1").is_err());
    }

    #[test]
    fn a_connection_too_many_is_closed_and_a_free_place_is_taken() {
        let (address, _server) = serve(hello(), LIMITS);
        let silent = [(); 2].map(|()| TcpStream::connect(address).unwrap());
        // Connections are accepted in their order, so both places are taken.
        assert_eq!(ask(address, ASKED), "");
        drop(silent);
        // The server hears of their end whenever it does.
        while !ask(address, ASKED).ends_with("\r\n\r\nhello") {}
    }

    /// Neither silence nor a word now and then keeps a place.
    #[test]
    fn a_head_has_its_time() {
        let (address, _server) = serve(hello(), Limits { head_time: Duration::from_millis(20), ..LIMITS });
        let mut silent = TcpStream::connect(address).unwrap();
        let mut begun = TcpStream::connect(address).unwrap();
        let _ = begun.write_all(&ASKED[..20]);
        assert_eq!((rest(&mut silent), rest(&mut begun)), (String::new(), String::new()));
        while !ask(address, ASKED).ends_with("\r\n\r\nhello") {}
    }

    /// Nor does somebody who asks for much and reads none of it.
    #[test]
    fn an_answer_has_its_time() {
        let brief = Duration::from_millis(20);
        let whole = Limits { connections: 1, whole_time: Some(brief), ..LIMITS };
        for limits in [whole, Limits { connections: 1, unread_time: brief, ..LIMITS }] {
            let endless = Router::new().route("/", get(async || vec![b'x'; 1 << 26]));
            let (address, _server) = serve(endless, limits);
            let mut unread = TcpStream::connect(address).unwrap();
            unread.write_all(ASKED).unwrap();
            while ask(address, ASKED).is_empty() {}
            assert!(rest(&mut unread).len() < 1 << 26);
        }
    }

    #[test]
    fn a_connection_may_be_for_many_requests() {
        let (address, _server) = serve(hello(), Limits { keep_alive: true, ..LIMITS });
        let answer = ask(address, &[ASKED, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"].concat());
        assert_eq!(answer.matches("\r\n\r\nhello").count(), 2, "{answer}");
        let (address, _server) = serve(hello(), LIMITS);
        assert_eq!(ask(address, &[ASKED, ASKED].concat()).matches("\r\n\r\nhello").count(), 1);
    }

    #[test]
    fn long_heads_are_refused() {
        let (address, _server) = serve(hello(), LIMITS);
        // As long as they may be together, so that nothing is left unread when the connection is closed.
        let long = "x".repeat(8192);
        for head in [format!("GET /{long}"), format!("GET / HTTP/1.1\r\nA: {long}"), long] {
            let answer = ask(address, &head.as_bytes()[..8192]);
            assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
        }
        assert!(ask(address, b"\xff\xfe\r\n\r\n").starts_with("HTTP/1.1 400 "));
        assert!(ask(address, b"GET /\r\n\r\n").starts_with("HTTP/1.1 400 "));
    }

    #[test]
    fn the_end_waits_for_answers_and_not_for_silence() {
        let (asked, was_asked) = mpsc::channel();
        let (go_on, may_go_on) = oneshot::channel::<()>();
        let may_go_on = Arc::new(tokio::sync::Mutex::new(may_go_on));
        let held = Router::new().route(
            "/",
            get(async move || {
                asked.send(()).unwrap();
                (&mut *may_go_on.lock().await).await.unwrap();
                "held"
            }),
        );
        let (address, server) = serve(held, LIMITS);
        let mut silent = TcpStream::connect(address).unwrap();
        let mut waiting = TcpStream::connect(address).unwrap();
        waiting.write_all(ASKED).unwrap();
        was_asked.recv().unwrap();
        let ending = std::thread::spawn(|| drop(server));
        // The silent one is closed first: the server is stopping, and the other's answer is still to come.
        assert_eq!(rest(&mut silent), "");
        go_on.send(()).unwrap();
        assert!(rest(&mut waiting).ends_with("\r\n\r\nheld"));
        ending.join().unwrap();
        assert!(TcpStream::connect(address).is_err());
    }
}
