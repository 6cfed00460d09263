//! Chat templates: Jinja, as Hugging Face transformers renders it.
//!
//! A conversation ([`Message`]s) becomes a prompt here. Where the templates lie is told by `find`, what they can call by
//! `environment`, and how they come to mean what they mean in Jinja2, rather than minijinja, by `rewrite`, `python`,
//! `methods`, `json` and `clock`.

mod clock;
mod code;
mod environment;
mod find;
mod json;
mod measured;
mod message;
mod methods;
mod python;
mod rewrite;
mod stack;
mod values;

pub use message::Message;
pub(super) use message::kind;

use super::json::{Document, Object};
use super::source::Source;
use super::specials::Specials;
use super::{LoadError, limits};
use find::{DEFAULT, TOOL_USE, Text, Texts};
use minijinja::value::Serde;
use minijinja::{Environment, Error};
use rewrite::TooMany;
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The roles whose content a template may or may not take in parts.
const PROBED: [&str; 4] = ["user", "system", "assistant", "tool"];

/// What a chat template is rendered from.
#[derive(Debug, Clone, PartialEq)]
pub struct Chat {
    /// The conversation so far.
    pub messages: Vec<Message>,
    /// The tools that the model may call: a list of JSON schemas.
    pub tools: Option<Value>,
    /// Documents to answer from, for templates that take them: a list of objects.
    pub documents: Option<Value>,
    /// Whether the prompt ends in what begins the assistant's answer.
    pub add_generation_prompt: bool,
    /// Other values that the template reads, such as `enable_thinking`. They come before all else of the same name,
    /// but for `messages`, which they cannot replace.
    pub arguments: Map<String, Value>,
}

impl Chat {
    /// A conversation to be answered, with nothing beside.
    pub fn new(messages: impl Into<Vec<Message>>) -> Self {
        Self {
            messages: messages.into(),
            tools: None,
            documents: None,
            add_generation_prompt: true,
            arguments: Map::new(),
        }
    }
}

/// A Jinja chat template, or two of them: the default, and one for conversations with tools.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// The files of the two.
    default: Option<PathBuf>,
    tool_use: Option<PathBuf>,
    /// `bos_token` and the like, which templates write out.
    specials: Specials,
    /// Whether the default template writes the text of content in parts, by the roles of `PROBED`.
    takes_parts: OnceLock<Vec<&'static str>>,
}

/// The text of a model's chat template, of the one for conversations without tools where it has several.
///
/// # Errors
/// If a file that has it is damaged.
pub(super) fn default_text(source: &Source) -> Result<Option<String>, LoadError> {
    let config = Document::read(source, "tokenizer_config.json")?;
    let texts = Texts::of_folder(source, config.as_ref().map(Document::root).as_ref())?;
    Ok(texts.default.map(|text| text.jinja))
}

impl ChatTemplate {
    /// The template of a folder, if it has one.
    pub(super) fn of_source(
        source: &Source,
        config: Option<&Object<'_>>,
        specials: Specials,
    ) -> Result<Option<Self>, LoadError> {
        let texts = Texts::of_folder(source, config)?;
        if texts.is_empty() { Ok(None) } else { Self::new(texts, specials).map(Some) }
    }

    /// The template of a file: Jinja, or JSON with the key `chat_template` (such as a `tokenizer_config.json`) where its
    /// name ends in `.json`. `specials` are the values of `bos_token` and the like.
    ///
    /// # Errors
    /// If the file cannot be read, has no template, or the template does not parse.
    pub fn from_file(path: &Path, specials: Specials) -> Result<Self, LoadError> {
        Self::new(Texts::of_file(path)?, specials)
    }

    fn new(texts: Texts, specials: Specials) -> Result<Self, LoadError> {
        let mut environment = environment::new();
        let mut add = |name: &'static str, text: Option<Text>| {
            let Some(Text { path, jinja }) = text else { return Ok(None) };
            if jinja.len() > limits::TEMPLATE_BYTES {
                let most = limits::TEMPLATE_BYTES as u64;
                return Err(LoadError::limit(&path, "bytes of a chat template", jinja.len(), most));
            }
            let rewritten = rewrite::rewrite(&jinja).map_err(|error| {
                let (what, found, most) = match error {
                    TooMany::Operators(found) => ("operators", found, limits::TEMPLATE_OPERATORS),
                    TooMany::Brackets(found) => ("brackets inside each other", found, limits::TEMPLATE_BRACKETS),
                };
                LoadError::limit(&path, format!("{what} in one tag of a chat template"), found, most as u64)
            })?;
            let compile = || environment.add_template_owned(name, rewritten);
            match stack::with_room(compile).map_err(|error| LoadError::io(&path, error))? {
                Ok(()) => Ok(Some(path)),
                Err(error) => Err(LoadError::template(&path, describe(&error))),
            }
        };
        let (default, tool_use) = (add(DEFAULT, texts.default)?, add(TOOL_USE, texts.tool_use)?);
        Ok(Self { environment, default, tool_use, specials, takes_parts: OnceLock::new() })
    }

    /// The prompt for the model's answer; to be encoded without a begin token.
    ///
    /// With tools, the template named `tool_use` is taken, where there is one.
    ///
    /// # Errors
    /// What the template raised, or what is wrong with the values it would get.
    pub fn render(&self, chat: &Chat) -> Result<String, LoadError> {
        let takes_parts = |role: &str| self.takes_parts().contains(&role);
        self.render_with(chat, &takes_parts)
    }

    fn render_with(&self, chat: &Chat, takes_parts: &dyn Fn(&str) -> bool) -> Result<String, LoadError> {
        let mut values: Map<String, Value> =
            self.specials.iter().map(|(name, token)| (name.clone(), token.clone().into())).collect();
        values.insert("tools".into(), chat.tools.clone().unwrap_or_default());
        values.insert("documents".into(), chat.documents.clone().unwrap_or_default());
        values.insert("add_generation_prompt".into(), chat.add_generation_prompt.into());
        values.extend(chat.arguments.clone());
        let messages = chat.messages.iter().map(|message| message.for_template(takes_parts).into()).collect();
        values.insert("messages".into(), Value::Array(messages));

        let (name, path) = self.choose(!values["tools"].is_null())?;
        let failed = |message: String| LoadError::template(path, message);
        if chat.arguments.contains_key("messages") {
            return Err(failed("`messages` cannot be given as an argument of the template".into()));
        }
        for list in ["tools", "documents"] {
            let objects = values[list].as_array().is_some_and(|items| items.iter().all(Value::is_object));
            if !objects && !values[list].is_null() {
                return Err(failed(format!("`{list}` is no list of objects")));
            }
        }
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(fuel(&values)));
        let render = || environment.get_template(name)?.render(minijinja::Value::from(Serde(&values)));
        let rendered = stack::with_room(render).map_err(|error| LoadError::io(path, error))?;
        let prompt = rendered.map_err(|error| failed(describe(&error)))?;
        if prompt.len() > limits::PROMPT_BYTES {
            let most = limits::PROMPT_BYTES as u64;
            return Err(LoadError::limit(path, "bytes that the chat template wrote", prompt.len(), most));
        }
        Ok(prompt)
    }

    /// Whether the template for conversations with tools has this text somewhere, as written by whoever made the model.
    pub fn for_tools_has(&self, text: &str) -> bool {
        let template = self.choose(true).ok().and_then(|(name, _)| self.environment.get_template(name).ok());
        template.is_some_and(|template| template.source().contains(text))
    }

    /// The template for conversations with or without tools.
    fn choose(&self, tools: bool) -> Result<(&'static str, &Path), LoadError> {
        match (&self.default, &self.tool_use) {
            (_, Some(path)) if tools => Ok((TOOL_USE, path)),
            (Some(path), _) => Ok((DEFAULT, path)),
            (None, path) => Err(LoadError::template(
                path.as_deref().unwrap_or(Path::new("")),
                "there is no template named `default`, and the one named `tool_use` needs tools",
            )),
        }
    }

    /// The roles whose content the default template takes in parts: it writes the part's text, and nothing of the
    /// braces around. For the others the parts are put together before.
    fn takes_parts(&self) -> &[&'static str] {
        self.takes_parts.get_or_init(|| PROBED.into_iter().filter(|role| self.writes_part(role)).collect())
    }

    fn writes_part(&self, role: &str) -> bool {
        const TEXT: &str = "a part's text";
        let parts = |role: &str| json!({"role": role, "content": [{"type": "text", "text": TEXT}]});
        let user = json!({"role": "user", "content": "x"});
        let call = json!({"type": "function", "id": "callabcde", "function": {"name": "f", "arguments": {}}});
        let calls = json!({"role": "assistant", "content": "", "tool_calls": [call]});
        let result =
            json!({"role": "tool", "name": "f", "tool_call_id": "callabcde", "content": parts("tool")["content"]});
        let conversation = match role {
            "system" => vec![parts("system"), user],
            "assistant" => vec![user.clone(), parts("assistant"), user],
            "tool" => vec![user, calls, result],
            _ => vec![parts("user")],
        };
        let messages: Result<Vec<Message>, _> = conversation.into_iter().map(serde_json::from_value).collect();
        let Ok(messages) = messages else { return false };
        self.render_with(&Chat::new(messages), &|_| true)
            .is_ok_and(|text| text.contains(TEXT) && !text.contains("'type'") && !text.contains("\"type\""))
    }
}

/// What rendering may spend: more for a longer conversation, which is the user's word and not the template's.
fn fuel(values: &Map<String, Value>) -> u64 {
    fn bytes(value: &Value) -> u64 {
        const OWN: u64 = 16;
        OWN + match value {
            Value::String(text) => text.len() as u64,
            Value::Array(items) => items.iter().map(bytes).sum(),
            Value::Object(map) => map.iter().map(|(key, value)| key.len() as u64 + bytes(value)).sum(),
            _ => 0,
        }
    }
    let bytes = values.values().map(bytes).sum::<u64>();
    let messages = values["messages"].as_array().map_or(0, Vec::len) as u64;
    let pairs = messages.saturating_mul(messages) / 2;
    let fuel = pairs.saturating_mul(limits::TEMPLATE_FUEL_PER_PAIR);
    let fuel = fuel.saturating_add(bytes.saturating_mul(limits::TEMPLATE_FUEL_PER_BYTE));
    fuel.saturating_add(limits::TEMPLATE_FUEL).min(limits::TEMPLATE_FUEL_AT_MOST)
}

/// The error's message with its line.
fn describe(error: &Error) -> String {
    let message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{message} (line {line})"),
        None => message,
    }
}
