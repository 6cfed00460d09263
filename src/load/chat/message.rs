//! Messages of a conversation, as OpenAI's and Hugging Face's JSON has them.

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::{Map, Value};

/// One message of a conversation: a role, a content, and whatever other keys the chat template may read (`name`,
/// `tool_calls`, `tool_call_id`, `reasoning_content`, …), which are passed on as they are and in their order.
///
/// Read from JSON, it is an error that names the key if
/// - there is no `role`, or it is no text;
/// - there is no `content` and no `tool_calls` either, or the content is neither a text nor a list of text parts,
///   `{"type": "text", "text": …}`: there are no images here;
/// - `tool_calls` is no list of objects.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    /// What `role` says.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        let keys = [("role", role.into()), ("content", content.into())];
        Self(keys.into_iter().map(|(key, text)| (key.to_owned(), text.into())).collect())
    }

    /// `system`, `user`, `assistant`, `tool` or another role that the template knows.
    pub fn role(&self) -> &str {
        self.0.get("role").and_then(Value::as_str).unwrap_or_default()
    }

    /// The text of its content, parts joined by line ends; empty where it only calls tools.
    pub fn text(&self) -> String {
        match self.0.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => joined(parts),
            _ => String::new(),
        }
    }

    /// The value of any key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    fn read(keys: Map<String, Value>) -> Result<Self, String> {
        let wrong = |key: &str, expected: &str| {
            let found = keys.get(key).map_or("missing".to_owned(), kind);
            Err(format!("\"{key}\" is {found}, expected {expected}"))
        };
        if !matches!(keys.get("role"), Some(Value::String(_))) {
            return wrong("role", "a text such as \"user\"");
        }
        let calls = match keys.get("tool_calls") {
            None | Some(Value::Null) => false,
            Some(Value::Array(calls)) if calls.iter().all(Value::is_object) => !calls.is_empty(),
            Some(_) => return wrong("tool_calls", "a list of objects"),
        };
        match keys.get("content") {
            Some(Value::String(_)) => {}
            Some(Value::Array(parts)) => {
                for (index, part) in parts.iter().enumerate() {
                    check_part(part).map_err(|error| format!("\"content\"[{index}]: {error}"))?;
                }
            }
            None | Some(Value::Null) if calls => {}
            _ => {
                return wrong(
                    "content",
                    "a text or a list of text parts (only a message with \"tool_calls\" may lack it)",
                );
            }
        }
        Ok(Self(keys))
    }

    /// The message as the template gets it. As in transformers, a key whose value is null is as if it were not there,
    /// and a reasoning is known by `reasoning_content` and `thinking` whatever name it came under; as in vLLM, a tool's
    /// arguments that are written as a JSON text become the object they say, which templates expect.
    pub(super) fn for_template(&self, takes_parts: impl Fn(&str) -> bool) -> Map<String, Value> {
        const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];
        let mut keys = Map::new();
        let reasoning = REASONING.iter().find_map(|key| self.0.get(*key).filter(|value| !value.is_null()));
        if let Some(reasoning) = reasoning {
            keys.insert("thinking".into(), reasoning.clone());
        }
        keys.extend(
            self.0.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())),
        );
        if let Some(reasoning) = reasoning {
            keys.insert("reasoning_content".into(), reasoning.clone());
        }
        if let Some(Value::Array(calls)) = keys.get_mut("tool_calls") {
            calls.iter_mut().for_each(parse_arguments);
        }
        if let Some(content) = keys.get_mut("content")
            && let Value::Array(parts) = content
            && !takes_parts(self.role())
        {
            *content = joined(parts).into();
        }
        keys
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let Value::Object(keys) = value else {
            return Err(D::Error::custom(format!("a message is {}, expected an object", kind(&value))));
        };
        Self::read(keys).map_err(D::Error::custom)
    }
}

fn check_part(part: &Value) -> Result<(), String> {
    match part.get("type").and_then(Value::as_str) {
        _ if !part.is_object() => {
            Err(format!("{}, expected an object such as {{\"type\": \"text\", \"text\": …}}", kind(part)))
        }
        Some("text") if part.get("text").is_some_and(Value::is_string) => Ok(()),
        Some("text") => Err("a part without a \"text\" that is a text".into()),
        Some(other) => Err(format!("a part of type {other:?}: only \"text\" is supported")),
        None => Err("a part without a \"type\" that is a text".into()),
    }
}

fn joined(parts: &[Value]) -> String {
    let texts: Vec<&str> = parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect();
    texts.join("\n")
}

/// `function.arguments` of a tool call: a text that says an object becomes the object. An empty one says that there are
/// no arguments.
fn parse_arguments(call: &mut Value) {
    let Some(arguments) = call.pointer_mut("/function/arguments") else { return };
    let Value::String(text) = arguments else { return };
    if text.trim().is_empty() {
        *arguments = Value::Object(Map::new());
    } else if let Ok(Value::Object(object)) = serde_json::from_str(text) {
        *arguments = Value::Object(object);
    }
}

/// What a value is, for errors.
pub(in crate::load) fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::String(_) => "a text".into(),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}
