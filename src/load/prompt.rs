//! Prompts as users write them, and what a tokenizer and a chat template make of them.

use super::chat::{Chat, ChatTemplate, Message, kind};
use super::lines::Keys;
use super::{LoadError, Tokenizer};
use crate::TokenId;
use serde::Deserialize;
use serde_json::{Map, Value};

/// What the model is to continue.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// A text as it is; to be encoded with a begin token.
    Text(String),
    /// Tokens as they are.
    Tokens(Vec<TokenId>),
    /// A conversation to be answered, at least one message; the chat template makes a text of it.
    Chat(Box<Chat>),
}

/// The value of the key `prompt`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text, or a list of tokens")]
enum Written {
    Text(String),
    Tokens(Vec<TokenId>),
}

impl Prompt {
    /// The keys of a line that [`of_keys`](Self::of_keys) reads.
    pub const KEYS: &str =
        "\"prompt\" or \"messages\", and for the chat template tools, documents, chat_template_kwargs";

    /// The names of the keys that it reads.
    pub const NAMES: [&str; 5] = ["prompt", "messages", "tools", "documents", "chat_template_kwargs"];

    /// Takes a line's prompt: `prompt`, a text or a list of tokens, or `messages` with what the chat template gets beside
    /// them: `tools`, `documents`, and any other values by name in `chat_template_kwargs`.
    ///
    /// # Errors
    /// Which key is wrong and how, or that there is no prompt, or more than one.
    pub fn of_keys(keys: &mut Keys) -> Result<Self, String> {
        let prompt = keys.take::<Written>("prompt")?;
        let messages = keys.take::<Vec<Value>>("messages")?.map(messages).transpose()?;
        let tools = objects(keys, "tools")?;
        let documents = objects(keys, "documents")?;
        let arguments = keys.take::<Map<String, Value>>("chat_template_kwargs")?;
        if messages.is_none() {
            let given = [
                ("tools", tools.is_some()),
                ("documents", documents.is_some()),
                ("chat_template_kwargs", arguments.is_some()),
            ];
            if let Some((key, _)) = given.iter().find(|(_, given)| *given) {
                return Err(format!("\"{key}\" is for a chat template, which needs \"messages\""));
            }
        }
        match (prompt, messages) {
            (Some(Written::Text(text)), None) => Ok(Self::Text(text)),
            (Some(Written::Tokens(tokens)), None) => Ok(Self::Tokens(tokens)),
            (None, Some(messages)) if messages.is_empty() => Err("\"messages\" is empty".into()),
            (None, Some(messages)) => Ok(Self::Chat(Box::new(Chat {
                tools,
                documents,
                arguments: arguments.unwrap_or_default(),
                ..Chat::new(messages)
            }))),
            (None, None) => Err("neither \"prompt\" nor \"messages\"".into()),
            (Some(_), Some(_)) => Err("both \"prompt\" and \"messages\": one of them is enough".into()),
        }
    }
}

/// A list of objects for the chat template.
fn objects(keys: &mut Keys, key: &str) -> Result<Option<Value>, String> {
    let wrong = |found: String| Err(format!("\"{key}\" {found} (expected a list of objects)"));
    match keys.take::<Value>(key)? {
        Some(Value::Array(items)) => match items.iter().find(|item| !item.is_object()) {
            Some(item) => wrong(format!("has {} in it", kind(item))),
            None => Ok(Some(Value::Array(items))),
        },
        Some(other) => wrong(format!("is {}", kind(&other))),
        None => Ok(None),
    }
}

/// The messages of a conversation; an error says which one is wrong.
fn messages(values: Vec<Value>) -> Result<Vec<Message>, String> {
    let message = |(number, value): (usize, Value)| {
        serde_json::from_value(value).map_err(|error| format!("\"messages\"[{number}]: {error}"))
    };
    values.into_iter().enumerate().map(message).collect()
}

/// Makes tokens of prompts.
pub struct PromptEncoder<'a> {
    /// The model's tokenizer, where it has one.
    pub tokenizer: Option<&'a Tokenizer>,
    /// The chat template, or why there is none.
    pub template: Result<&'a ChatTemplate, String>,
    /// Values for the template, under those that a prompt brings itself.
    pub arguments: Map<String, Value>,
}

/// Why a prompt has no tokens.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A text, and no tokenizer.
    #[error(
        "the model has no tokenizer.json, which turning text into tokens needs (expected \"prompt\" as a list of tokens)"
    )]
    NoTokenizer,
    /// A conversation, and no chat template.
    #[error("{0}")]
    NoTemplate(String),
    /// The template or the tokenizer refused it.
    #[error(transparent)]
    Refused(#[from] LoadError),
}

impl PromptEncoder<'_> {
    /// The text that the model continues: of a conversation what the template makes of it; `None` for tokens.
    ///
    /// # Errors
    /// If there is no template, or it refuses the conversation.
    pub fn text(&self, prompt: &Prompt) -> Result<Option<String>, PromptError> {
        match prompt {
            Prompt::Text(text) => Ok(Some(text.clone())),
            Prompt::Tokens(_) => Ok(None),
            Prompt::Chat(chat) => {
                let template = self.template.as_ref().map_err(|why| PromptError::NoTemplate(why.clone()))?;
                let mut arguments = self.arguments.clone();
                arguments.extend(chat.arguments.clone());
                Ok(Some(template.render(&Chat { arguments, ..Chat::clone(chat) })?))
            }
        }
    }

    /// The tokens that the model continues, as far as there are any.
    ///
    /// # Errors
    /// As [`text`](Self::text), or if there is no tokenizer, or it refuses the text.
    pub fn encode(&self, prompt: &Prompt) -> Result<Vec<TokenId>, PromptError> {
        self.encode_with_text(prompt).map(|(tokens, _)| tokens)
    }

    /// The tokens that the model continues, and the text that they were made of.
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn encode_with_text(&self, prompt: &Prompt) -> Result<(Vec<TokenId>, Option<String>), PromptError> {
        if let Prompt::Tokens(tokens) = prompt {
            return Ok((tokens.clone(), None));
        }
        let text = self.text(prompt)?.unwrap_or_default();
        let tokenizer = self.tokenizer.ok_or(PromptError::NoTokenizer)?;
        // A template writes the begin token itself.
        let tokens = tokenizer.encode(&text, !matches!(prompt, Prompt::Chat(_)))?;
        Ok((tokens, Some(text)))
    }
}
