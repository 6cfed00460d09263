//! Where there are keys, nobody is answered without one.

use crate::{CHAT, Server, TEXT, client};
use serde_json::json;

#[test]
fn nothing_but_health_is_told_without_a_key() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("keys");
    std::fs::write(&file, "from-a-file\n\nanother\n").unwrap();
    let server = Server::start(&["--api-key", "from-a-flag", "--api-key-file", file.to_str().unwrap()]);
    let body = json!({"prompt": "x", "max_tokens": 2}).to_string();
    let ask = |method: &str, path: &str, key: Option<&str>| {
        let key = key.map(|key| format!("Authorization: {key}"));
        let headers: Vec<&str> = [client::JSON].into_iter().chain(key.as_deref()).collect();
        client::ask(&server.address, method, path, &headers, body.as_bytes())
    };
    for (method, path) in [
        ("POST", TEXT),
        ("POST", CHAT),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/pycode-4m"),
        ("POST", "/tokenize"),
        ("POST", "/detokenize"),
        ("GET", "/metrics"),
        ("GET", "/nothing"),
        ("GET", TEXT),
    ] {
        for key in [None, Some("Bearer from-a-fla"), Some("Bearer "), Some("from-a-flag"), Some("Basic from-a-flag")] {
            let reply = ask(method, path, key);
            let (status, _, _, code) = reply.error();
            assert_eq!((status, code), (401, json!("invalid_api_key")), "{method} {path} {key:?}");
            assert!(reply.head.contains("\r\nwww-authenticate: bearer\r\n"), "{}", reply.head);
        }
    }
    assert_eq!(ask("GET", "/health", None).status, 200);
    for key in ["from-a-flag", "from-a-file", "another"] {
        assert_eq!(ask("POST", TEXT, Some(&format!("Bearer {key}"))).status, 200, "{key}");
    }
    assert_eq!(ask("GET", "/metrics", Some("bearer another")).status, 200);
}

/// A browser that a page has led here by a name of its own is not answered; who shows a key is, by whatever name.
#[test]
fn without_keys_only_names_of_this_machine_are_answered_to() {
    let body = json!({"prompt": "x", "max_tokens": 2}).to_string();
    let ask = |server: &Server, path: &str, host: &str| {
        let method = if path == TEXT { "POST" } else { "GET" };
        let key = "Authorization: Bearer key";
        let request = client::request(method, path, &[client::JSON, key], body.as_bytes());
        let request = String::from_utf8(request).unwrap().replacen("Host: localhost", &format!("Host: {host}"), 1);
        client::ask_raw(&server.address, request.as_bytes())
    };
    let (server, with_key) = (Server::start(&[]), Server::start(&["--api-key", "key"]));
    for path in [TEXT, "/v1/models", "/", "/health", "/metrics"] {
        let refused = ask(&server, path, "evil.example:8080");
        let (status, message, ..) = refused.error();
        assert!(status == 403 && message.contains("localhost"), "{path}: {message}");
        for host in [server.address.as_str(), "localhost:1"] {
            assert_eq!(ask(&server, path, host).status, 200, "{path} {host}");
        }
        assert_eq!(ask(&with_key, path, "evil.example:8080").status, 200, "{path}");
    }
}
