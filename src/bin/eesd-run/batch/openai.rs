//! Lines of OpenAI's batches: `custom_id`, `method`, `url` and the `body` of a request, answered in the same form.

use super::job::{Job, Row};
use super::line::Asking;
use crate::openai::{self, ApiError, Asked, BodyReader, Head, Shape};
use eesd::engine::Completion;
use eesd::engine::settings::MOST_SAMPLES;
use eesd::load::{Keys, Tokenizer};
use eesd::model::Scheme;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::sync::Arc;

/// How the line of a request begins; its index follows.
const ID: &str = "batch_req_";
/// The code of a request that an interrupt kept from its end.
const CANCELLED: &str = "batch_cancelled";

/// Whether a line is of this form.
pub fn is_one(keys: &Keys) -> bool {
    ["custom_id", "body"].iter().any(|key| keys.raw(key).is_some())
}

/// Reads a line: its body is one of the server's.
///
/// # Errors
/// Which key is wrong, with its value, and what was expected.
pub fn read(mut keys: Keys, asking: &Asking<'_>) -> Result<Asked, ApiError> {
    let names: Vec<String> = keys.rest().map(str::to_owned).collect();
    let (body, chat) = open(&mut keys).map_err(|error| ApiError::of_body(&names, &error))?;
    let &Asking { base, encoder, grammars } = asking;
    let reader = BodyReader { encoder, grammars, base, model: None, most: MOST_SAMPLES, streams: false };
    reader.read(body, chat).map_err(|error| error.at("\"body\""))
}

/// Takes a line apart: the keys of its body, and whether they ask for a conversation.
fn open(keys: &mut Keys) -> Result<(Keys, bool), String> {
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
    std::mem::take(keys).finish("custom_id, method, url and body")?;
    if body.raw("id").is_some() {
        return Err("\"body\": \"id\" has no place here: \"custom_id\" beside the body tells lines apart".into());
    }
    Ok((body, chat))
}

/// How many prompts a body has, as far as that can be told without reading them.
pub fn prompts(body: &mut Keys) -> usize {
    match body.take::<Vec<Box<RawValue>>>("prompt") {
        Ok(Some(items)) if items.iter().any(|item| item.get().starts_with(['"', '['])) => items.len(),
        _ => 1,
    }
}

/// The line of a request all of whose samples are finished, of a model that was quantised so.
pub fn answer<'j>(
    job: &'j Job,
    shape: &Shape,
    completions: &[&Completion],
    model: &str,
    tokenizer: Option<&Arc<Tokenizer>>,
    quantised: Option<Scheme>,
) -> Row<'j> {
    let head = Head {
        id: job.index.to_string(),
        model: shape.model.as_deref().unwrap_or(model).to_owned(),
        created: openai::now(),
        quantised,
        tokenizer: tokenizer.cloned(),
    };
    row(job, response(job, 200, openai::whole(&head, shape, completions.iter().copied())), Value::Null)
}

/// The line of a request that has no answer.
pub fn error<'j>(job: &'j Job, error: &ApiError) -> Row<'j> {
    row(job, response(job, error.status.as_u16(), error.body()), Value::Null)
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
