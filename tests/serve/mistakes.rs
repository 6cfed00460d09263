//! Mistakes are told in OpenAI's form, with the field to blame.

use crate::answers::template;
use crate::{CHAT, Server, TEXT, client, command};
use serde_json::{Value, json};

#[test]
fn wrong_fields_are_named() {
    let (_dir, file) = template();
    let server = Server::start(&["--chat-template", &file, "-b", "1", "--max-waiting", "3"]);
    let user = json!([{"role": "user", "content": "x"}]);
    let image = json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]}]);
    let text = |key: &str, value: Value| (TEXT, json!({"prompt": "x", key: value}));
    let chat = |key: &str, value: Value| (CHAT, json!({"messages": user, key: value}));
    for ((path, body), param, fragment) in [
        (text("tempratur", json!(1)), "tempratur", "unknown key \"tempratur\" (expected "),
        (chat("response_format", json!({"type": "xml"})), "response_format", "\"type\" is \"xml\""),
        (
            chat("response_format", json!({"type": "json_schema", "json_schema": {"schema": {"not": {}}}})),
            "response_format",
            "\"/not\": this keyword is not supported",
        ),
        (text("json_schema", json!({"type": "strin"})), "json_schema", "Invalid type: strin"),
        (text("grammar", json!("start: nobody")), "grammar", "unknown name"),
        (chat("tool_choice", json!("required")), "tool_choice", "is not supported"),
        (
            chat("tool_choice", json!({"type": "function", "function": {"name": "f"}})),
            "tool_choice",
            "is not supported",
        ),
        (chat("parallel_tool_calls", json!(false)), "parallel_tool_calls", "is not supported"),
        (chat("tools", json!(7)), "tools", "expected a list of objects"),
        (chat("tools", json!([{"type": "web_search"}])), "tools", "of type \"web_search\", which is not supported"),
        (
            chat("tools", json!([{"type": "function", "function": {"name": "f"}}])),
            "tools",
            "this model's chat template, which never mentions them",
        ),
        (chat("functions", json!([])), "functions", "unknown key"),
        (text("best_of", json!(2)), "best_of", "is not supported"),
        (text("suffix", json!("y")), "suffix", "is not supported"),
        (text("id", json!("a")), "id", "unknown key \"id\""),
        (chat("echo", json!(true)), "echo", "is not supported"),
        (text("temperature", json!("hot")), "temperature", "expected a number"),
        (text("temperature", json!(-1)), "temperature", "at least 0"),
        (text("max_tokens", json!(0)), "max_tokens", "ask for at least one token"),
        (text("min_tokens", json!(1000)), "min_tokens", "not above the maximum"),
        (text("n", json!(0)), "n", "expected 1 to"),
        (text("n", json!(5)), "n", "expected 4 at most"),
        (text("stop", json!([""])), "stop", "empty"),
        (text("stop", json!(7)), "stop", "expected a text or a list of texts"),
        (text("logit_bias", json!({"999999": 1})), "logit_bias", "vocabulary"),
        (text("logprobs", json!(101)), "logprobs", "at most 100"),
        (chat("logprobs", json!(101)), "logprobs", "expected a boolean"),
        (chat("top_logprobs", json!(2)), "top_logprobs", "needs \"logprobs\""),
        (text("stream", json!(1)), "stream", "expected a boolean"),
        (text("stream_options", json!({"include_usage": true})), "stream_options", "needs \"stream\""),
        (text("draft", json!("nobody")), "draft", "nobody"),
        (text("messages", user.clone()), "messages", "belongs to the other endpoint"),
        ((TEXT, json!({})), "prompt", "is missing"),
        ((TEXT, json!({"prompt": null})), "prompt", "is missing"),
        ((TEXT, json!({"prompt": []})), "prompt", "is empty"),
        ((TEXT, json!({"prompt": {}})), "prompt", "expected a text, a list of tokens, or a list of such"),
        ((TEXT, json!({"prompt": [1_000_000]})), "prompt", "not in the vocabulary"),
        ((TEXT, json!({"prompt": ["a", "b", "c", "d", "e"]})), "prompt", "expected 4 at most"),
        ((CHAT, json!({"model": "pycode-4m"})), "messages", "is missing"),
        ((CHAT, json!({"messages": []})), "messages", "is empty"),
        ((CHAT, json!({"messages": [{"content": "x"}]})), "messages", "\"role\""),
        ((CHAT, json!({"messages": image})), "messages", "only \"text\" is supported"),
        (
            (CHAT, json!({"messages": user, "stream": true, "stream_options": {"usage": 1}})),
            "stream_options",
            "\"usage\"",
        ),
        (("/tokenize", json!({"content": "x", "with_pieces": true})), "with_pieces", "unknown key"),
        (("/detokenize", json!({"tokens": [1_000_000]})), "tokens", "vocabulary"),
    ] {
        let (status, message, told, _) = server.post(path, &body).error();
        assert_eq!((status, told), (400, json!(param)), "{path} {body}: {message}");
        assert!(message.contains(fragment), "{path} {body}: {message}");
    }
    let (status, message, param, code) = server.post(TEXT, &json!({"prompt": vec![5; 2000]})).error();
    assert_eq!((status, param, code), (400, json!("prompt"), json!("context_length_exceeded")), "{message}");
    let long = json!([{"role": "user", "content": "x ".repeat(2000)}]);
    let (_, _, param, code) = server.post(CHAT, &json!({"messages": long})).error();
    assert_eq!(
        (param, code),
        (json!("messages"), json!("context_length_exceeded")),
        "fields have their endpoint's names"
    );
    let (status, _, param, code) = server.post(TEXT, &json!({"prompt": "x", "model": "gpt-9"})).error();
    assert_eq!((status, param, code), (404, json!("model"), json!("model_not_found")));
    assert_eq!(server.post(TEXT, &json!({"prompt": "x", "max_tokens": 2})).status, 200, "it goes on");
}

#[test]
fn what_is_no_json_is_refused() {
    let server = Server::start(&[]);
    for body in
        [&b""[..], b"{", b"[]", b"7", b"{\"prompt\": \"\xff\"}", b"{\"prompt\": \"a\", \"prompt\": \"b\"}", b"{}}"]
    {
        let (status, message, ..) = server.post_raw(TEXT, body).error();
        assert!(status == 400 && !message.is_empty(), "{}", String::from_utf8_lossy(body));
    }
    let body = json!({"prompt": "x", "max_tokens": 2}).to_string();
    let ask = |headers: &[&str]| client::ask(&server.address, "POST", TEXT, headers, body.as_bytes()).status;
    // What a form on another site's page can send does not come in.
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "\u{e9}"] {
        assert_eq!(ask(&[&format!("Content-Type: {kind}")]), 415, "{kind}");
    }
    assert_eq!((ask(&[]), ask(&[client::JSON, "Content-Encoding: gzip"])), (415, 415));
    assert_eq!(ask(&["content-type: Application/JSON; charset=utf-8"]), 200);
}

#[test]
fn a_body_has_a_limit() {
    let server = Server::start(&[]);
    let head = client::request("POST", TEXT, &[client::JSON], b"");
    let head = String::from_utf8(head).unwrap().replace("Content-Length: 0", "Content-Length: 16777217");
    let reply = client::ask_raw(&server.address, head.as_bytes());
    let (status, message, ..) = reply.error();
    assert!(status == 413 && message.contains("16777216 bytes"), "{message}");
}

#[test]
fn what_is_nowhere_is_said_to_be() {
    let server = Server::start(&[]);
    for (method, path, status) in [
        ("GET", "/v1/nothing", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/index.html", 404),
        ("POST", "/", 405),
        ("GET", TEXT, 405),
        ("POST", "/v1/models", 405),
        ("POST", "/health", 405),
        ("DELETE", "/metrics", 405),
    ] {
        let reply = client::ask(&server.address, method, path, &[client::JSON], b"{}");
        let (told, message, ..) = reply.error();
        assert!(told == status && message.contains(path), "{method} {path}: {reply:?}");
    }
}

/// Without a template, texts are continued and conversations refused.
#[test]
fn a_conversation_needs_a_template() {
    let server = Server::start(&[]);
    let (status, message, param, _) =
        server.post(CHAT, &json!({"messages": [{"role": "user", "content": "x"}]})).error();
    assert_eq!((status, param), (400, json!("messages")));
    assert!(message.contains("has no chat template"), "{message}");
}

#[test]
fn wrong_flags_are_told_before_anything_is_loaded() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (flags, code, fragment) in [
        (["--port", &port], 1, "cannot be listened on"),
        (["--alias", ""], 2, "--alias"),
        (["--host", "nowhere"], 2, "--host"),
        (["--api-key", ""], 2, "--api-key: an empty one"),
        (["--api-key-file", "missing"], 1, "missing: could not be read"),
        (["--max-waiting", "-1"], 2, "--max-waiting"),
        (["--shutdown-timeout", "soon"], 2, "--shutdown-timeout"),
        (["--model", "missing"], 1, "missing"),
    ] {
        let free = if flags[0] == "--port" { &[][..] } else { &["--port", "0"] };
        let output = command(&[&["serve"], free, &flags[..]].concat()).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{flags:?}: {told}");
        assert!(told.contains(fragment), "{flags:?}: {told}");
    }
}
