//! Chat templates: Jinja, as Hugging Face transformers renders it.

use super::json::Object;
use super::source::Source;
use super::specials::special_token;
use super::{LoadError, clock};
use minijinja::value::{Kwargs, Serde};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const FILE: &str = "chat_template.jinja";
const CONFIG_KEY: &str = "chat_template";
const NAME: &str = "chat";

/// Instructions that a template may take: far more than any conversation needs.
const FUEL: u64 = 100_000_000;

/// One message of a conversation.
///
/// Read from JSON, any other key is an error: a dropped one would change what the model sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

impl Message {
    /// What `role` says.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A Jinja chat template.
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    /// `bos_token` and the like, which templates write out.
    specials: BTreeMap<&'static str, String>,
}

impl ChatTemplate {
    /// The template of a folder, if it has one: a file of its own, or in `tokenizer_config.json`.
    pub(super) fn of_source(source: &Source, config: Option<&Object<'_>>) -> Result<Option<Self>, LoadError> {
        let mut specials = BTreeMap::new();
        if let Some(config) = config {
            for key in ["bos_token", "eos_token", "unk_token", "pad_token"] {
                if let Some(token) = special_token(Some(config), None, key)? {
                    specials.insert(key, token);
                }
            }
        }
        if let Some(bytes) = source.read(FILE)? {
            let path = source.path(FILE);
            let template = String::from_utf8(bytes.into_owned()).map_err(|error| LoadError::malformed(&path, error))?;
            return Self::new(&path, template, specials).map(Some);
        }
        match config {
            Some(config) => {
                let template = in_config(config)?;
                template.map(|template| Self::new(config.path(), template, specials)).transpose()
            }
            None => Ok(None),
        }
    }

    fn new(path: &Path, template: String, specials: BTreeMap<&'static str, String>) -> Result<Self, LoadError> {
        let mut environment = Environment::new();
        let syntax = environment.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| LoadError::template(path, describe(&error)))?);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", |format: &str| clock::now(format));
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, without_generation_tags(&template))
            .map_err(|error| LoadError::template(path, describe(&error)))?;
        Ok(Self { path: path.to_path_buf(), environment, specials })
    }

    /// The prompt for the model's answer to `messages`; to be encoded without a begin token.
    ///
    /// # Errors
    /// What the template raised.
    pub fn render(&self, messages: &[Message]) -> Result<String, LoadError> {
        let context = context! {
            messages => Value::from(Serde(messages)),
            add_generation_prompt => true,
            tools => (),
            documents => (),
            ..Value::from(Serde(&self.specials))
        };
        let rendered = self.environment.get_template(NAME).and_then(|template| template.render(context));
        rendered.map_err(|error| LoadError::template(&self.path, describe(&error)))
    }
}

/// `chat_template` of `tokenizer_config.json`: a text, or a list of named ones with a `default`.
fn in_config(config: &Object<'_>) -> Result<Option<String>, LoadError> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
        template: String,
    }
    match config.value(CONFIG_KEY) {
        Some(serde_json::Value::Array(items)) => {
            let wrong = || config.wrong(CONFIG_KEY, "a list of {name, template}, one of them named `default`");
            let named = |item: &serde_json::Value| Named::deserialize(item).map_err(|_| wrong());
            let templates: Vec<Named> = items.iter().map(named).collect::<Result<_, _>>()?;
            let default = templates.into_iter().find(|named| named.name == "default").ok_or_else(wrong)?;
            Ok(Some(default.template))
        }
        _ => Ok(config.text(CONFIG_KEY)?.map(str::to_owned)),
    }
}

/// Templates for training mark the assistant's words by `{% generation %}`, a tag of transformers' own.
/// To render, it means nothing: it becomes a condition that holds, which keeps the white space around.
fn without_generation_tags(template: &str) -> String {
    let mut parts = template.split("{%");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (tag, after) = part.split_at(part.find("%}").unwrap_or(part.len()));
        let tag = match tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+') {
            "generation" => &tag.replace("generation", "if true"),
            "endgeneration" => &tag.replace("endgeneration", "endif"),
            _ => tag,
        };
        text.extend(["{%", tag, after]);
    }
    text
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}

/// Python's `json.dumps`, which templates mean by `tojson`: a space after commas and colons, and
/// nothing escaped for HTML.
fn to_json(value: &Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let mut json = Vec::new();
    let written = match indent {
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let pretty = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, pretty))
        }
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut json, Spaced)),
    };
    let invalid = |error: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, error.to_string());
    written.map_err(|error| invalid(&error))?;
    Ok(Value::from_safe_string(String::from_utf8(json).map_err(|error| invalid(&error))?))
}

/// JSON on one line with Python's spaces.
struct Spaced;

impl serde_json::ser::Formatter for Spaced {
    fn begin_array_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(&mut self, writer: &mut W, first: bool) -> std::io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

/// The error's message with its line.
fn describe(error: &Error) -> String {
    let message = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("{message} (line {line})"),
        None => message,
    }
}
