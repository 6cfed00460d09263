//! OpenAI's forms of requests and answers: what lines of batches and the server have in common.
//!
//! A body's keys are those of the endpoint, and what this program's own lines may hold beside them. What would change an
//! answer and is not honoured is refused by name.

use eesd::TokenId;
use eesd::engine::{Completion, Finish};
use eesd::load::{Keys, Tokenizer};
use eesd::sample::TokenLogprobs;
use serde_json::{Map, Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// What a request asks.
#[derive(Debug, Clone, Default)]
pub struct Endpoint {
    /// A conversation, not a text.
    pub chat: bool,
    /// The name that the request has for the model.
    pub model: Option<String>,
}

/// Keys of a body that tell of a request and change nothing of its answer.
const LABELS: [&str; 7] =
    ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options"];

impl Endpoint {
    /// Reads of a body what only OpenAI's have; what is left is in this program's own names.
    ///
    /// # Errors
    /// Which key is wrong, with its value, and what was expected.
    pub fn take(mut body: Keys, chat: bool) -> Result<(Self, Keys), String> {
        let model = body.take::<String>("model")?;
        LABELS.iter().for_each(|key| body.forget(key));
        let mut only = |key: &str, allowed: &[Value]| match body.take::<Value>(key)? {
            Some(value) if !allowed.contains(&value) => {
                let allowed = allowed.iter().map(Value::to_string).collect::<Vec<_>>().join(" or ");
                Err(format!("\"{key}\": {value} is not supported (expected {allowed}, or nothing)"))
            }
            _ => Ok(()),
        };
        only("stream", &[false.into()])?;
        only("echo", &[false.into()])?;
        only("suffix", &["".into()])?;
        only("best_of", &[1.into()])?;
        only("modalities", &[json!(["text"])])?;
        only("tool_choice", &["auto".into()])?;
        only("parallel_tool_calls", &[true.into()])?;
        if let Some(most) = body.take::<usize>("max_completion_tokens")? {
            body.put("max_tokens", &most)
                .map_err(|_| "both \"max_tokens\" and \"max_completion_tokens\": one of them is enough")?;
        }
        if chat {
            let most = body.take::<usize>("top_logprobs")?;
            match (body.take::<bool>("logprobs")?, most) {
                (Some(true), most) => body.put("logprobs", &most.unwrap_or(0))?,
                (_, Some(_)) => return Err("\"top_logprobs\" needs \"logprobs\": true".into()),
                _ => {}
            }
        }
        let other = if chat { "prompt" } else { "messages" };
        if body.raw(other).is_some() {
            return Err(format!("\"{other}\" belongs to the other endpoint"));
        }
        Ok((Self { chat, model }, body))
    }

    /// What an answer is, and how its id begins.
    pub fn object(&self) -> (&'static str, &'static str) {
        if self.chat { ("chat.completion", "chatcmpl") } else { ("text_completion", "cmpl") }
    }
}

/// Why an answer has ended.
pub fn finish_reason(finish: &Finish) -> &'static str {
    match finish {
        Finish::EndToken(_) | Finish::StopString(_) | Finish::Complete => "stop",
        Finish::Length | Finish::Context | Finish::Cancelled => "length",
    }
}

/// One of a request's answers, whose text follows `before`.
pub fn choice(index: usize, completion: &Completion, chat: bool, before: &str, tokenizer: Option<&Tokenizer>) -> Value {
    let finish = finish_reason(&completion.finish);
    let (logprobs, _) = logprobs(&completion.tokens, &completion.logprobs, chat, 0, tokenizer);
    let text = format!("{before}{}", completion.text);
    match chat {
        true => json!({
            "index": index,
            "message": {"role": "assistant", "content": text},
            "logprobs": logprobs,
            "finish_reason": finish,
        }),
        false => json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}),
    }
}

/// Tokens of a prompt, and of all answers to it.
pub fn usage(prompt: usize, generated: usize) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated})
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
