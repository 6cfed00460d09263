//! Streams say what whole answers say, piece by piece.

use crate::answers::{requests, template};
use crate::{CHAT, Server, TEXT};
use serde_json::{Value, json};

/// What the chunks of an answer come to: its text, and why it has ended.
fn joined(chunks: &[Value], index: usize) -> (String, Value) {
    let of_answer =
        chunks.iter().filter_map(|chunk| chunk["choices"].as_array()?.first()).filter(|c| c["index"] == index);
    let (mut text, mut finish) = (String::new(), Value::Null);
    for choice in of_answer {
        assert!(finish.is_null(), "something comes after the end: {choice}");
        text += choice["text"].as_str().or(choice["delta"]["content"].as_str()).unwrap_or_default();
        finish = choice["finish_reason"].clone();
    }
    (text, finish)
}

#[test]
fn streams_are_whole_answers_in_pieces() {
    let server = Server::start(&["-b", "2"]);
    for request in requests() {
        let whole = server.ok(TEXT, &request);
        let stream = server.stream(TEXT, request.clone());
        assert!(stream.head.contains("\r\ncache-control: no-cache\r\n"), "{}", stream.head);
        let chunks = stream.rest();
        let choice = &whole["choices"][0];
        let expected = (choice["text"].as_str().unwrap().to_owned(), choice["finish_reason"].clone());
        assert_eq!(joined(&chunks, 0), expected, "{request}");
        for chunk in &chunks {
            assert_eq!((&chunk["object"], &chunk["id"]), (&json!("text_completion"), &chunks[0]["id"]), "{chunk}");
            assert!(chunk.get("usage").is_none(), "nobody asked for it: {chunk}");
        }
    }
}

#[test]
fn several_answers_share_a_stream() {
    let server = Server::start(&["-b", "3"]);
    let request = json!({"prompt": ["def f(x):", "class A:"], "max_tokens": 20, "n": 2, "temperature": 1, "seed": 4, "echo": true});
    let whole = server.ok(TEXT, &request);
    let chunks = server.stream(TEXT, request).rest();
    for (i, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        assert_eq!(joined(&chunks, i).0, choice["text"].as_str().unwrap());
    }
}

#[test]
fn conversations_are_streamed_as_deltas() {
    let (_dir, file) = template();
    let server = Server::start(&["--chat-template", &file]);
    let request = json!({
        "messages": [{"role": "user", "content": "def f(x):"}], "max_tokens": 12, "logprobs": true, "top_logprobs": 1,
        "stop": ["zzz"],
    });
    let whole = server.ok(CHAT, &request);
    let mut streamed = request.clone();
    streamed["stream_options"] = json!({"include_usage": true});
    let mut chunks = server.stream(CHAT, streamed).rest();

    let last = chunks.pop().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["total_tokens"]), (&json!([]), &whole["usage"]["total_tokens"]));
    assert!(chunks.iter().all(|chunk| chunk["usage"].is_null() && chunk["object"] == "chat.completion.chunk"));
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(chunks[chunks.len() - 1]["choices"][0]["delta"], json!({}));
    let choice = &whole["choices"][0];
    assert_eq!(joined(&chunks, 0).0, choice["message"]["content"].as_str().unwrap());
    let told = |chunk: &Value| chunk["choices"][0]["logprobs"]["content"].as_array().cloned().unwrap_or_default();
    let logprobs: Vec<Value> = chunks.iter().flat_map(told).collect();
    assert_eq!(Value::Array(logprobs), choice["logprobs"]["content"]);
}

#[test]
fn logprobs_of_a_streamed_text_know_their_place() {
    let server = Server::start(&[]);
    let request = json!({"prompt": "def f(x):", "max_tokens": 30, "logprobs": 1, "ignore_eos": true});
    let whole = server.ok(TEXT, &request)["choices"][0]["logprobs"].take();
    let chunks = server.stream(TEXT, request).rest();
    for key in ["tokens", "token_logprobs", "text_offset"] {
        let told = |chunk: &Value| chunk["choices"][0]["logprobs"][key].as_array().cloned().unwrap_or_default();
        assert_eq!(Value::Array(chunks.iter().flat_map(told).collect()), whole[key], "{key}");
    }
}

#[test]
fn a_stream_tells_who_drafted_what() {
    let server = Server::start(&["--controller", "fixed:4"]); // it drafts, however fast the machine is
    let request = json!({"prompt": "def fibonacci(n):\n", "max_tokens": 60, "ignore_eos": true});
    let whole = server.ok(TEXT, &request)["choices"][0]["text"].take();
    let drafted = |draft: &str| {
        let mut request = request.clone();
        request["stream_options"] = json!({"include_drafts": true});
        request["draft"] = draft.into();
        let chunks = server.stream(TEXT, request).rest();
        let told = |chunk: &Value| chunk["choices"][0]["pieces"].as_array().cloned().unwrap_or_default();
        let pieces: Vec<Value> = chunks.iter().flat_map(told).collect();
        let text: String = pieces.iter().map(|piece| piece["text"].as_str().unwrap()).collect();
        assert_eq!((&whole, &json!(joined(&chunks, 0).0)), (&json!(text), &json!(text)));
        pieces.iter().filter_map(|piece| piece["drafted"].as_str().map(str::to_owned)).collect::<Vec<_>>()
    };
    assert_eq!(drafted("off"), [""; 0]);
    let by_exit = drafted("exit");
    assert!(!by_exit.is_empty() && by_exit.iter().all(|source| source == "exit"), "{by_exit:?}");
    assert!(server.stream(TEXT, request).rest().iter().all(|chunk| chunk["choices"][0].get("pieces").is_none()));
}

/// A template that knows tools of no known kind: what the model says of them is text.
#[test]
fn tools_of_an_unknown_template_are_told_to_it_and_answers_are_text() {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("tools.jinja");
    std::fs::write(&file, "{{ tools | tojson if tools else '' }}\n{{ messages[-1].content }}").unwrap();
    let server = Server::start(&["--chat-template", file.to_str().unwrap(), "-n", "4"]);
    let ask = |more: Value| {
        let mut request = json!({"messages": [{"role": "user", "content": "def f(x):"}]});
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        server.ok(CHAT, &request)
    };
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let plain = ask(json!({}));
    let given = ask(json!({"tools": tools, "tool_choice": "auto"}));
    assert!(given["usage"]["prompt_tokens"].as_u64() > plain["usage"]["prompt_tokens"].as_u64());
    assert!(given["choices"][0]["message"].get("tool_calls").is_none());
    // Where none may be called, the model hears of none.
    assert_eq!(ask(json!({"tools": tools, "tool_choice": "none"}))["choices"], plain["choices"]);
}

/// What cannot be answered is refused before a stream begins.
#[test]
fn a_refused_stream_is_an_error_and_no_stream() {
    let server = Server::start(&[]);
    for (key, value) in [("top_p", json!(7)), ("max_tokens", json!(0)), ("prompt", json!([1_000_000]))] {
        let mut request = json!({"prompt": "x", "stream": true});
        request[key] = value;
        let (status, _, param, _) = server.post(TEXT, &request).error();
        assert_eq!((status, param), (400, json!(key)));
    }
}
