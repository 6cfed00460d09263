//! Where chat templates lie: in files of their own, or under a key of a JSON file; one, or several by name.

use crate::load::LoadError;
use crate::load::json::{Document, Object};
use crate::load::source::Source;
use serde::Deserialize;
use serde_json::Value;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const KEY: &str = "chat_template";

/// The names that a template is chosen by.
pub(super) const DEFAULT: &str = "default";
pub(super) const TOOL_USE: &str = "tool_use";

/// A template's text and where it stands.
pub(super) struct Text {
    pub path: PathBuf,
    pub jinja: String,
}

/// The templates that can be chosen.
#[derive(Default)]
pub(super) struct Texts {
    pub default: Option<Text>,
    /// For conversations with tools, where there is one.
    pub tool_use: Option<Text>,
}

impl Texts {
    /// The templates of a folder. Each comes from the first place that has it: `chat_template.jinja`, the folder
    /// `additional_chat_templates`, `chat_template.json`, `tokenizer_config.json`.
    pub(super) fn of_folder(source: &Source, tokenizer_config: Option<&Object<'_>>) -> Result<Self, LoadError> {
        let additional = |name: &str| jinja(source, &format!("additional_chat_templates/{name}.jinja"));
        let mut texts = Self {
            default: jinja(source, "chat_template.jinja")?
                .map_or_else(|| additional(DEFAULT), |text| Ok(Some(text)))?,
            tool_use: additional(TOOL_USE)?,
        };
        // A text under the key is the whole of what there is, so it is not looked at where there is a default already.
        if texts.default.is_none()
            && let Some(document) = document(source, "chat_template.json")?
        {
            texts.fill_from(Self::of_key(&document.root())?);
        }
        if texts.default.is_none()
            && let Some(config) = tokenizer_config
        {
            texts.fill_from(Self::of_key(config)?);
        }
        Ok(texts)
    }

    /// The templates of one file: JSON with the key `chat_template` where its name says so, else Jinja.
    pub(super) fn of_file(path: &Path) -> Result<Self, LoadError> {
        let missing = || LoadError::io(path, std::io::ErrorKind::NotFound.into());
        let file = path.file_name().and_then(OsStr::to_str).ok_or_else(missing)?;
        let source = Source::Folder(path.parent().unwrap_or(Path::new("")).to_path_buf());
        if path.extension() != Some(OsStr::new("json")) {
            return Ok(Self { default: Some(jinja(&source, file)?.ok_or_else(missing)?), tool_use: None });
        }
        let document = document(&source, file)?.ok_or_else(missing)?;
        let texts = Self::of_key(&document.root())?;
        if texts.is_empty() {
            return Err(document.root().wrong(KEY, "a chat template"));
        }
        Ok(texts)
    }

    /// `chat_template`: a text, or a list of named ones.
    fn of_key(object: &Object<'_>) -> Result<Self, LoadError> {
        #[derive(Deserialize)]
        struct Named {
            name: String,
            template: String,
        }
        let text = |jinja: String| Text { path: object.path().to_path_buf(), jinja };
        let Some(Value::Array(items)) = object.value(KEY) else {
            let default = object.text(KEY)?.map(|jinja| text(jinja.to_owned()));
            return Ok(Self { default, tool_use: None });
        };
        let wrong = || object.wrong(KEY, "a list of {name, template}, one of them named `default`");
        let named = |item: &Value| Named::deserialize(item).map_err(|_| wrong());
        let mut texts = Self::default();
        for Named { name, template } in items.iter().map(named).collect::<Result<Vec<_>, _>>()? {
            match name.as_str() {
                DEFAULT => texts.default = Some(text(template)),
                TOOL_USE => texts.tool_use = Some(text(template)),
                _ => {}
            }
        }
        if texts.is_empty() { Err(wrong()) } else { Ok(texts) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.default.is_none() && self.tool_use.is_none()
    }

    fn fill_from(&mut self, other: Self) {
        self.default = self.default.take().or(other.default);
        self.tool_use = self.tool_use.take().or(other.tool_use);
    }
}

fn jinja(source: &Source, file: &str) -> Result<Option<Text>, LoadError> {
    let Some(bytes) = source.read(file)? else { return Ok(None) };
    let path = source.path(file);
    let jinja = String::from_utf8(bytes.into_owned()).map_err(|error| LoadError::malformed(&path, error))?;
    Ok(Some(Text { path, jinja }))
}

fn document(source: &Source, file: &str) -> Result<Option<Document>, LoadError> {
    source.read(file)?.map(|bytes| Document::parse(source.path(file), &bytes)).transpose()
}
