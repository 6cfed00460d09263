//! Answers are those of `generate`, in OpenAI's form.

use crate::{CHAT, MODEL, Server, TEXT, client, generated};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// Requests that both commands understand, with all that they honour.
pub fn requests() -> Vec<Value> {
    let prompt = "def fibonacci(n):\n";
    vec![
        json!({"prompt": prompt, "max_tokens": 40}),
        json!({"prompt": "class Tree:\n", "max_tokens": 60, "ignore_eos": true, "draft": "off"}),
        json!({"prompt": prompt, "max_tokens": 40, "temperature": 0.9, "seed": 7}),
        json!({"prompt": prompt, "max_tokens": 40, "temperature": 1.1, "top_k": 30, "top_p": 0.9, "min_p": 0.01, "seed": 1}),
        json!({"prompt": prompt, "max_tokens": 40, "repetition_penalty": 1.3, "presence_penalty": 0.2, "frequency_penalty": 0.1}),
        json!({"prompt": prompt, "max_tokens": 40, "logit_bias": {"10": -100, "20": 1.5}, "suppress_tokens": [30]}),
        json!({"prompt": prompt, "max_tokens": 60, "stop": ["\n\n", "return"]}),
        json!({"prompt": prompt, "max_tokens": 60, "stop": "return", "min_tokens": 5, "verify": "coupled"}),
        json!({"prompt": prompt, "max_tokens": 90, "json_schema": {"type": "object", "properties": {
            "name": {"type": "string", "maxLength": 9}, "size": {"enum": ["small", "large"]},
        }, "required": ["name", "size"], "additionalProperties": false}}),
        json!({"prompt": [5, 6, 7, 8], "max_tokens": 12, "ignore_eos": true, "draft_max": 2}),
    ]
}

#[test]
fn answers_are_those_of_generate() {
    let server = Server::start(&["-b", "4"]);
    let expected = generated(&requests(), &[]);
    // All at once, so that they share rounds.
    let asked = requests();
    let replies: Vec<Value> = std::thread::scope(|scope| {
        let server = &server;
        let ask = |request| scope.spawn(move || server.ok(TEXT, request));
        let asked: Vec<_> = asked.iter().map(ask).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    });
    for ((request, reply), expected) in asked.iter().zip(&replies).zip(&expected) {
        let choice = &reply["choices"][0];
        assert_eq!(choice["text"], expected["text"], "{request}");
        let reason = if expected["finish"] == "length" { "length" } else { "stop" };
        assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!(reason)), "{request}");
        assert_eq!((&reply["object"], &reply["model"]), (&json!("text_completion"), &json!(MODEL)));
        let (usage, stats) = (&reply["usage"], &expected["stats"]);
        assert_eq!(usage["completion_tokens"], stats["generated"], "{request}");
        assert_eq!(usage["prompt_tokens"], stats["prompt_tokens"], "{request}");
        let sum = usage["prompt_tokens"].as_u64().unwrap() + usage["completion_tokens"].as_u64().unwrap();
        assert_eq!(usage["total_tokens"], sum);
    }
    let mut ids: Vec<&str> = replies.iter().map(|reply| reply["id"].as_str().unwrap()).collect();
    assert!(ids.iter().all(|id| id.starts_with("cmpl-")));
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), replies.len(), "two answers have one id");
}

/// What a request does not say, the flags do.
#[test]
fn flags_are_the_defaults() {
    let flags = ["-n", "9", "--temp", "1", "-s", "3", "--stop", "zzz"];
    let server = Server::start(&[&flags[..], &["--alias", "code"]].concat());
    let expected = generated(&[json!({"prompt": "def f(x):"})], &flags);
    let reply = server.ok(TEXT, &json!({"prompt": "def f(x):", "model": "code"}));
    assert_eq!((&reply["choices"][0]["text"], &reply["model"]), (&expected[0]["text"], &json!("code")));
}

#[test]
fn several_prompts_and_samples_are_choices_of_one_answer() {
    let server = Server::start(&["-b", "2"]);
    let one = |prompt: Value, seed: u64| {
        let request = json!({"prompt": prompt, "max_tokens": 10, "temperature": 1, "seed": seed});
        server.ok(TEXT, &request)["choices"][0]["text"].clone()
    };
    let settings = json!({"max_tokens": 10, "temperature": 1, "seed": 5, "n": 2});
    for prompts in [json!(["def f(x):", "class A:"]), json!([[5, 6, 7], [8, 9]])] {
        let mut request = settings.clone();
        request["prompt"] = prompts.clone();
        let reply = server.ok(TEXT, &request);
        let choices = reply["choices"].as_array().unwrap();
        assert_eq!(choices.len(), 4);
        for (i, choice) in choices.iter().enumerate() {
            assert_eq!(choice["index"], i);
            assert_eq!(choice["text"], one(prompts[i / 2].clone(), 5 + i as u64 % 2), "{choice}");
        }
        let alone = |prompt: &Value| {
            server.ok(TEXT, &json!({"prompt": prompt, "max_tokens": 1}))["usage"]["prompt_tokens"].as_u64().unwrap()
        };
        assert_eq!(reply["usage"]["prompt_tokens"], alone(&prompts[0]) + alone(&prompts[1]), "each prompt counts once");
    }
}

#[test]
fn echo_puts_the_prompt_before_the_answer() {
    let server = Server::start(&[]);
    let request = json!({"prompt": "def f(x):", "max_tokens": 6});
    let answer = server.ok(TEXT, &request)["choices"][0]["text"].as_str().unwrap().to_owned();
    let ids = server.ok("/tokenize", &json!({"content": "def f(x):", "add_special": true}))["tokens"].take();
    for prompt in [json!("def f(x):"), ids] {
        let reply = server.ok(TEXT, &json!({"prompt": prompt, "max_tokens": 6, "echo": true}));
        assert_eq!(reply["choices"][0]["text"], format!("def f(x):{answer}"));
    }
}

/// A file with a chat template, in a folder that goes with it.
pub fn template() -> (tempfile::TempDir, String) {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("template.jinja");
    let text = "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}{% if loud %}LOUD{% endif %}";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap().to_owned();
    (dir, file)
}

#[test]
fn conversations_go_through_the_template() {
    let (_dir, file) = template();
    let server = Server::start(&["--chat-template", &file]);
    let parts = json!([{"type": "text", "text": "def "}, {"type": "text", "text": "f(x):"}]);
    let messages = json!([{"role": "system", "content": "Write Python"}, {"role": "user", "content": parts}]);
    let asked = json!({"messages": messages, "max_tokens": 9, "chat_template_kwargs": {"loud": true}});
    let expected = generated(std::slice::from_ref(&asked), &["--chat-template", &file]);
    let mut spelled_anew = asked.clone();
    spelled_anew["max_completion_tokens"] = spelled_anew["max_tokens"].take();
    for request in [asked, spelled_anew] {
        let reply = server.ok(CHAT, &request);
        assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-"), "{reply}");
        let choice = &reply["choices"][0];
        assert_eq!((&reply["object"], &choice["finish_reason"]), (&json!("chat.completion"), &json!("length")));
        assert_eq!(choice["message"], json!({"role": "assistant", "content": expected[0]["text"]}));
        assert_eq!(reply["usage"]["prompt_tokens"], expected[0]["stats"]["prompt_tokens"]);
    }
}

#[test]
fn logprobs_are_told_in_the_form_of_their_endpoint() {
    let (_dir, file) = template();
    let server = Server::start(&["--chat-template", &file]);
    let messages = json!([{"role": "user", "content": "def f(x):"}]);
    let expected =
        &generated(&[json!({"messages": messages, "max_tokens": 5, "logprobs": 2})], &["--chat-template", &file])[0];
    let reply = server.ok(CHAT, &json!({"messages": messages, "max_tokens": 5, "logprobs": true, "top_logprobs": 2}));
    let content = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content.len(), 5);
    for (told, expected) in content.iter().zip(expected["logprobs"].as_array().unwrap()) {
        assert_eq!(told["logprob"], expected["logprob"]);
        assert_eq!(told["top_logprobs"][1]["logprob"], expected["top"][1]["logprob"]);
    }
    let reply = server.ok(TEXT, &json!({"prompt": "def f(x):", "max_tokens": 5, "logprobs": 2}));
    let logprobs = &reply["choices"][0]["logprobs"];
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[key].as_array().unwrap().len(), 5, "{key}");
    }
}

#[test]
fn the_model_is_listed() {
    let server = Server::start(&[]);
    let listed = server.get("/v1/models").json();
    assert_eq!((&listed["object"], &listed["data"][0]["id"]), (&json!("list"), &json!(MODEL)));
    let one = server.get(&format!("/v1/models/{MODEL}")).json();
    assert_eq!(one, listed["data"][0]);
    assert_eq!(server.get("/v1/models/other/one").status, 404);
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
}

#[test]
fn text_becomes_tokens_and_text_again() {
    let server = Server::start(&[]);
    let content = "def größe(n):  # λ\n";
    let tokens = server.ok("/tokenize", &json!({"content": content}))["tokens"].take();
    assert_eq!(server.ok("/detokenize", &json!({"tokens": tokens}))["content"], content);
    let begun = server.ok("/tokenize", &json!({"content": content, "add_special": true}))["tokens"].take();
    assert_eq!(begun.as_array().unwrap()[1..], tokens.as_array().unwrap()[..]);
}

/// As libraries do it.
#[test]
fn one_connection_is_for_many_requests() {
    let server = Server::start(&[]);
    let expected = server.ok(TEXT, &json!({"prompt": "def f(x):", "max_tokens": 5}))["choices"][0]["text"].take();
    let mut connection = TcpStream::connect(&server.address).unwrap();
    let body = json!({"prompt": "def f(x):", "max_tokens": 5}).to_string();
    for _ in 0..3 {
        let head = format!(
            "POST {TEXT} HTTP/1.1\r\nHost: localhost\r\n{}\r\nContent-Length: {}\r\n\r\n",
            client::JSON,
            body.len()
        );
        connection.write_all(format!("{head}{body}").as_bytes()).unwrap();
        let mut reader = BufReader::new(&mut connection);
        let (mut line, mut length) = (String::new(), 0);
        while reader.read_line(&mut line).unwrap() > 2 {
            let name = "content-length: ";
            length = line.to_lowercase().strip_prefix(name).map_or(length, |rest| rest.trim().parse().unwrap());
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let reply: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(reply["choices"][0]["text"], expected);
    }
}

#[test]
fn response_format_is_followed() {
    let (_dir, file) = template();
    let server = Server::start(&["--chat-template", &file, "-b", "2"]);
    let schema = json!({
        "type": "object",
        "properties": {"answer": {"enum": ["yes", "no"]}, "certain": {"type": "boolean"}},
        "required": ["answer", "certain"],
        "additionalProperties": false,
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "verdict", "strict": true, "schema": schema}});
    let messages = json!([{"role": "user", "content": "Is it?"}]);
    for temperature in [0.0, 1.2] {
        let body = json!({"messages": messages, "response_format": format, "temperature": temperature, "seed": 4});
        let reply = server.ok(CHAT, &body);
        let choice = &reply["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap();
        let found: Value = serde_json::from_str(text).unwrap();
        assert!(["yes", "no"].contains(&found["answer"].as_str().unwrap()) && found["certain"].is_boolean(), "{text}");
        assert_eq!((found.as_object().unwrap().len(), &choice["finish_reason"]), (2, &json!("stop")));
    }
    let any = json!({"messages": messages, "response_format": {"type": "json_object"}, "max_tokens": 5});
    assert!(server.ok(CHAT, &any)["choices"][0]["message"]["content"].as_str().unwrap().starts_with('{'));
    let text = json!({"messages": messages, "response_format": {"type": "text"}, "max_tokens": 3});
    server.ok(CHAT, &text);
}
