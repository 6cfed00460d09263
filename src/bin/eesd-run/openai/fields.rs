//! What only OpenAI's bodies have: their names of this program's settings, and fields that are honoured with one value alone.
//! What would change an answer and is not honoured is refused by name.

use super::tools::ToolChoice;
use eesd::load::{Keys, REQUEST_KEYS};
use serde_json::{Value, json};

/// What a body asks beside its prompt and settings.
pub struct Endpoint {
    /// The name that the request has for the model.
    pub model: Option<String>,
    /// Whether tools may be called.
    pub tool_choice: ToolChoice,
}

/// Keys of a body that tell of a request and change nothing of its answer.
const LABELS: [&str; 6] = ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"];

/// Keys of both endpoints that are no settings of this program.
const OF_BOTH: [&str; 3] = ["model", "stream", "stream_options"];
const OF_CHAT: [&str; 9] = [
    "messages",
    "max_completion_tokens",
    "top_logprobs",
    "tools",
    "tool_choice",
    "parallel_tool_calls",
    "documents",
    "chat_template_kwargs",
    "modalities",
];
const OF_TEXT: [&str; 4] = ["prompt", "echo", "suffix", "best_of"];

/// The keys that a body may have, for messages.
pub fn expected(chat: bool) -> String {
    let own = if chat { &OF_CHAT[..] } else { &OF_TEXT };
    [own, &OF_BOTH, &REQUEST_KEYS, &LABELS].concat().join(", ")
}

impl Endpoint {
    /// Reads of a body what only OpenAI's have; what is left is in this program's own names.
    ///
    /// # Errors
    /// Which key is wrong, with its value, and what was expected.
    pub fn take(body: &mut Keys, chat: bool) -> Result<Self, String> {
        let model = body.take::<String>("model")?;
        LABELS.iter().for_each(|key| body.forget(key));
        let tool_choice = ToolChoice::take(body)?;
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
        Ok(Self { model, tool_choice })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected_is_honoured_or_refused_by_another_message() {
        for chat in [false, true] {
            let expected = expected(chat);
            assert!(expected.split(", ").all(|key| key != "id"), "the server names its answers");
            for key in LABELS {
                let body = format!("{{{key:?}: 1}}");
                let mut body = Keys::parse(body.as_bytes());
                assert!(Endpoint::take(&mut body, chat).is_ok());
                assert_eq!(body.rest().count(), 0, "{key}");
            }
        }
    }
}
