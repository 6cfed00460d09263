//! Lines of OpenAI's batches: `custom_id`, `method`, `url` and the `body` of a request, answered in the same form.
//!
//! The body's keys are those of the endpoint, and what this program's own lines may hold beside them. What would change an
//! answer and is not honoured is refused by name.

use super::job::{Job, Row};
use eesd::engine::{Completion, Finish};
use eesd::load::{Keys, Tokenizer};
use eesd::model::Scheme;
use serde_json::{Map, Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// How the line of a request begins; its index follows.
const ID: &str = "batch_req_";
/// The code of a request that an interrupt kept from its end.
const CANCELLED: &str = "batch_cancelled";

/// What a line asks.
#[derive(Debug, Clone, Default)]
pub struct Endpoint {
    /// A conversation, not a text.
    chat: bool,
    /// The name that the line has for the model.
    model: Option<String>,
}

/// Keys of a body that tell of a request and change nothing of its answer.
const LABELS: [&str; 7] =
    ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "stream_options"];

/// Whether a line is of this form.
pub fn is_one(keys: &Keys) -> bool {
    ["custom_id", "body"].iter().any(|key| keys.raw(key).is_some())
}

/// Takes a line apart: what is asked where, and the keys of the body, in this program's own names.
///
/// # Errors
/// Which key is wrong, with its value, and what was expected.
pub fn open(mut keys: Keys) -> Result<(Endpoint, Keys), String> {
    keys.whole()?;
    let found = |value: Option<String>| value.map_or("missing".to_owned(), |value| format!("{value:?}"));
    let mut text = |key: &str| keys.take::<String>(key);
    if text("custom_id")?.is_none() {
        return Err("\"custom_id\" is missing (expected a text)".into());
    }
    match text("method")? {
        Some(method) if method == "POST" => {}
        method => return Err(format!("\"method\" is {} (expected \"POST\")", found(method))),
    }
    let chat = match text("url")?.as_deref() {
        Some("/v1/chat/completions") => true,
        Some("/v1/completions") => false,
        url => {
            let found = found(url.map(str::to_owned));
            return Err(format!("\"url\" is {found} (expected \"/v1/chat/completions\" or \"/v1/completions\")"));
        }
    };
    let body = keys.take_object("body")?.ok_or("\"body\" is missing (expected an object)")?;
    keys.finish("custom_id, method, url and body")?;
    endpoint(body, chat).map_err(|error| format!("\"body\": {error}"))
}

/// Reads of a body what only OpenAI's have.
fn endpoint(mut body: Keys, chat: bool) -> Result<(Endpoint, Keys), String> {
    if body.raw("id").is_some() {
        return Err("\"id\" has no place here: \"custom_id\" beside the body tells lines apart".into());
    }
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
    only("response_format", &[json!({"type": "text"})])?;
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
    Ok((Endpoint { chat, model }, body))
}

/// The line of a request all of whose samples are finished, of a model that was quantised so.
pub fn answer<'j>(
    job: &'j Job,
    endpoint: &Endpoint,
    completions: &[&Completion],
    model: &str,
    tokenizer: Option<&Tokenizer>,
    quantised: Option<Scheme>,
) -> Row<'j> {
    let choice = |(index, completion): (usize, &&Completion)| {
        let finish = match completion.finish {
            Finish::EndToken(_) | Finish::StopString(_) => "stop",
            Finish::Length | Finish::Context | Finish::Cancelled => "length",
        };
        let logprobs = logprobs(completion, endpoint.chat, tokenizer);
        let text = completion.text.as_str();
        match endpoint.chat {
            true => json!({
                "index": index,
                "message": {"role": "assistant", "content": text},
                "logprobs": logprobs,
                "finish_reason": finish,
            }),
            false => json!({"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}),
        }
    };
    let choices: Vec<Value> = completions.iter().enumerate().map(choice).collect();
    let prompt = completions.first().map_or(0, |completion| completion.stats.prompt_tokens);
    let generated: usize = completions.iter().map(|completion| completion.tokens.len()).sum();
    let (prefix, object) = if endpoint.chat { ("chatcmpl", "chat.completion") } else { ("cmpl", "text_completion") };
    let mut body = json!({
        "id": format!("{prefix}-{}", job.index),
        "object": object,
        "created": SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        "model": endpoint.model.as_deref().unwrap_or(model),
        "choices": choices,
        "usage": {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated},
    });
    if let Some(scheme) = quantised {
        body["quantized"] = scheme.to_string().into();
    }
    row(job, response(job, 200, body), Value::Null)
}

/// The line of a request that has no answer.
pub fn error<'j>(job: &'j Job, error: &str) -> Row<'j> {
    let body = json!({"error": {"message": error, "type": "invalid_request_error", "param": null, "code": null}});
    row(job, response(job, 400, body), Value::Null)
}

/// The line of a request that nobody answers any more.
pub fn interrupted(job: &Job) -> Row<'_> {
    row(job, Value::Null, json!({"code": CANCELLED, "message": super::INTERRUPTED}))
}

fn response(job: &Job, status: u16, body: Value) -> Value {
    json!({"status_code": status, "request_id": format!("{ID}{}", job.index), "body": body})
}

fn row(job: &Job, response: Value, error: Value) -> Row<'_> {
    job.row(json!({"id": format!("{ID}{}", job.index), "response": response, "error": error}))
}

/// Log-probabilities in the endpoint's own form; null where none were asked for.
fn logprobs(completion: &Completion, chat: bool, tokenizer: Option<&Tokenizer>) -> Value {
    if completion.logprobs.is_empty() {
        return Value::Null;
    }
    let spelling = |token: u32| {
        let text = tokenizer.map(|tokenizer| tokenizer.decode(&[token])).filter(|text| !text.is_empty());
        text.or_else(|| tokenizer.and_then(|tokenizer| tokenizer.token(token))).unwrap_or_else(|| token.to_string())
    };
    let each = completion.tokens.iter().zip(&completion.logprobs);
    if chat {
        let entry = |token: u32, logprob: f32| json!({"token": spelling(token), "logprob": logprob, "bytes": null});
        let content = each.map(|(&token, at)| {
            let mut own = entry(token, at.logprob);
            own["top_logprobs"] = at.top.iter().map(|&(token, logprob)| entry(token, logprob)).collect();
            own
        });
        return json!({"content": content.collect::<Vec<_>>()});
    }
    let (mut tokens, mut own, mut top, mut offsets) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut offset = 0;
    for (&token, at) in each {
        let text = spelling(token);
        offsets.push(offset);
        offset += text.chars().count();
        tokens.push(text);
        own.push(at.logprob);
        top.push(at.top.iter().map(|&(token, logprob)| (spelling(token), logprob.into())).collect::<Map<_, Value>>());
    }
    json!({"tokens": tokens, "token_logprobs": own, "top_logprobs": top, "text_offset": offsets})
}

/// What an earlier line of this form tells.
pub struct Earlier {
    /// The request's number.
    pub index: usize,
    /// Tokens of its prompt, where the line is an answer.
    pub prompt_tokens: Option<usize>,
    /// An interrupt kept it from its end.
    pub cut_short: bool,
}

/// Reads a line of this form that an earlier run wrote.
///
/// # Errors
/// What it lacks.
pub fn earlier(keys: &mut Keys) -> Result<Earlier, String> {
    let id = keys.take::<String>("id")?.unwrap_or_default();
    let index = id.strip_prefix(ID).and_then(|digits| digits.parse().ok()).ok_or(format!("\"id\" {id:?}"))?;
    let response = keys.take::<Value>("response")?.unwrap_or_default();
    let error = keys.take::<Value>("error")?.unwrap_or_default();
    let answered = response["status_code"] == 200;
    let prompt_tokens = response.pointer("/body/usage/prompt_tokens").and_then(Value::as_u64);
    let prompt_tokens = prompt_tokens.and_then(|n| n.try_into().ok()).filter(|_| answered);
    if answered && prompt_tokens.is_none() {
        return Err("no \"prompt_tokens\"".into());
    }
    Ok(Earlier { index, prompt_tokens, cut_short: error["code"] == CANCELLED })
}
