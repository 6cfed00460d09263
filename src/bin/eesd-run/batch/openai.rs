//! Lines of OpenAI's batches: `custom_id`, `method`, `url` and the `body` of a request, answered in the same form.

use super::job::{Job, Row};
use crate::openai::{self, Endpoint};
use eesd::engine::Completion;
use eesd::load::{Keys, Tokenizer};
use eesd::model::Scheme;
use serde_json::{Value, json};

/// How the line of a request begins; its index follows.
const ID: &str = "batch_req_";
/// The code of a request that an interrupt kept from its end.
const CANCELLED: &str = "batch_cancelled";

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
    if body.raw("id").is_some() {
        return Err("\"body\": \"id\" has no place here: \"custom_id\" beside the body tells lines apart".into());
    }
    Endpoint::take(body, chat).map_err(|error| format!("\"body\": {error}"))
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
    let choice =
        |(index, completion): (usize, &&Completion)| openai::choice(index, completion, endpoint.chat, "", tokenizer);
    let choices: Vec<Value> = completions.iter().enumerate().map(choice).collect();
    let prompt = completions.first().map_or(0, |completion| completion.stats.prompt_tokens);
    let generated: usize = completions.iter().map(|completion| completion.tokens.len()).sum();
    let (object, prefix) = endpoint.object();
    let mut body = json!({
        "id": format!("{prefix}-{}", job.index),
        "object": object,
        "created": openai::now(),
        "model": endpoint.model.as_deref().unwrap_or(model),
        "choices": choices,
        "usage": openai::usage(prompt, generated),
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
