//! Answers in OpenAI's form: what is the same in all chunks of one, and how the choices of a whole one come together.

use super::request::Shape;
use super::tools::Said;
use eesd::TokenId;
use eesd::engine::{Completion, Finish};
use eesd::load::Tokenizer;
use eesd::model::Scheme;
use eesd::sample::TokenLogprobs;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// What a request's answer says of itself.
pub struct Head {
    /// A name that no other answer has.
    pub id: String,
    pub model: String,
    pub created: u64,
    pub quantised: Option<Scheme>,
    pub tokenizer: Option<Arc<Tokenizer>>,
}

impl Head {
    /// An answer, or a chunk of one.
    pub fn around(&self, chat: bool, chunk: bool, choices: Vec<Value>) -> Value {
        let (object, prefix) = match (chat, chunk) {
            (true, false) => ("chat.completion", "chatcmpl"),
            (true, true) => ("chat.completion.chunk", "chatcmpl"),
            (false, _) => ("text_completion", "cmpl"),
        };
        let mut body = json!({
            "id": format!("{prefix}-{}", self.id),
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(scheme) = self.quantised {
            body["quantized"] = scheme.to_string().into();
        }
        body
    }
}

/// Tokens of a request's prompts and answers.
#[derive(Debug, Default, Clone, Copy)]
pub struct Usage {
    prompt: usize,
    reused: usize,
    generated: usize,
}

impl Usage {
    /// Takes in an answer. Answers to one prompt count it once.
    pub fn add(&mut self, answer: usize, shape: &Shape, completion: &Completion) {
        if answer.is_multiple_of(shape.samples) {
            self.prompt += completion.stats.prompt_tokens;
            self.reused += completion.stats.reused_tokens;
        }
        self.generated += completion.tokens.len();
    }

    /// As OpenAI's servers tell it.
    pub fn told(&self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": self.prompt + self.generated,
            "prompt_tokens_details": {"cached_tokens": self.reused},
        })
    }
}

/// The answer to a request all of whose completions are there, in their order.
pub fn whole<'c>(head: &Head, shape: &Shape, completions: impl IntoIterator<Item = &'c Completion>) -> Value {
    let mut usage = Usage::default();
    let choice = |(answer, completion): (usize, &Completion)| {
        usage.add(answer, shape, completion);
        choice(head, shape, answer, completion)
    };
    let choices = completions.into_iter().enumerate().map(choice).collect();
    let mut body = head.around(shape.chat, false, choices);
    body["usage"] = usage.told();
    body
}

/// One of a request's answers.
fn choice(head: &Head, shape: &Shape, answer: usize, completion: &Completion) -> Value {
    let tokenizer = head.tokenizer.as_deref();
    let (logprobs, _) = logprobs(&completion.tokens, &completion.logprobs, shape.chat, 0, tokenizer);
    if !shape.chat {
        let (text, finish) = (format!("{}{}", shape.before(answer), completion.text), &completion.finish);
        let finish = finish_reason(finish, false);
        return json!({"index": answer, "text": text, "logprobs": logprobs, "finish_reason": finish});
    }
    let mut message = json!({"role": "assistant", "content": completion.text});
    let mut called = false;
    if let Some(calls) = &shape.calls {
        let (mut text, mut told) = (String::new(), Vec::new());
        for said in calls.all(&completion.text) {
            match said {
                Said::Text(piece) => text += &piece,
                Said::Call(call) => told.push(call.told(&head.id, answer, told.len())),
            }
        }
        called = !told.is_empty();
        if called {
            message["content"] = if text.is_empty() { Value::Null } else { text.into() };
            message["tool_calls"] = told.into();
        }
    }
    json!({
        "index": answer,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": finish_reason(&completion.finish, called),
    })
}

/// Why an answer has ended, in which tools were `called` or not.
pub fn finish_reason(finish: &Finish, called: bool) -> &'static str {
    match finish {
        Finish::EndToken(_) | Finish::StopString(_) | Finish::Complete if called => "tool_calls",
        Finish::EndToken(_) | Finish::StopString(_) | Finish::Complete => "stop",
        Finish::Length | Finish::Context | Finish::Cancelled => "length",
    }
}

/// Now, in seconds of Unix time.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Log-probabilities of tokens in the endpoint's own form, null where none were asked for; and how many characters into the
/// answer the tokens end that begin at `offset`.
pub fn logprobs(
    tokens: &[TokenId],
    logprobs: &[TokenLogprobs],
    chat: bool,
    mut offset: usize,
    tokenizer: Option<&Tokenizer>,
) -> (Value, usize) {
    if logprobs.is_empty() {
        return (Value::Null, offset);
    }
    let spelling = |token: u32| {
        let text = tokenizer.map(|tokenizer| tokenizer.decode(&[token])).filter(|text| !text.is_empty());
        text.or_else(|| tokenizer.and_then(|tokenizer| tokenizer.token(token))).unwrap_or_else(|| token.to_string())
    };
    let each = tokens.iter().zip(logprobs);
    if chat {
        let entry = |token: u32, logprob: f32| json!({"token": spelling(token), "logprob": logprob, "bytes": null});
        let content = each.map(|(&token, at)| {
            let mut own = entry(token, at.logprob);
            own["top_logprobs"] = at.top.iter().map(|&(token, logprob)| entry(token, logprob)).collect();
            own
        });
        return (json!({"content": content.collect::<Vec<_>>()}), offset);
    }
    let (mut tokens, mut own, mut top, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (&token, at) in each {
        let text = spelling(token);
        offsets.push(offset);
        offset += text.chars().count();
        tokens.push(text);
        own.push(at.logprob);
        top.push(at.top.iter().map(|&(token, logprob)| (spelling(token), logprob.into())).collect::<Map<_, Value>>());
    }
    let form = json!({"tokens": tokens, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets});
    (form, offset)
}
