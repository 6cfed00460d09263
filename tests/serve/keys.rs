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
