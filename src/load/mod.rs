//! Opens a Hugging Face model folder: everything is checked before it is used, and errors name the
//! file, the key, what was found and what was expected.

use crate::TokenId;
use crate::model::{ExitWeights, Geometry, ModelWeights};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An opened model: configuration, mapped tensors, tokenizer, chat template, generation defaults.
pub struct Checkpoint {}

impl Checkpoint {
    /// Opens a folder and checks every tensor's presence, shape and number format.
    ///
    /// # Errors
    /// If a file is missing, damaged, or describes something this engine does not run.
    pub fn open(_dir: &Path) -> Result<Self, LoadError> {
        unimplemented!()
    }
    /// The model embedded in the binary (feature `bundled-model`).
    ///
    /// # Errors
    /// If the binary was built without it.
    pub fn bundled() -> Result<Self, LoadError> {
        unimplemented!()
    }
    /// The folder's name, or the bundled model's.
    pub fn name(&self) -> &str {
        unimplemented!()
    }
    /// The model's shape.
    pub fn geometry(&self) -> &Geometry {
        unimplemented!()
    }
    /// Views of the tensors.
    pub fn weights(&self) -> ModelWeights<'_> {
        unimplemented!()
    }
    /// Number of parameters; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        unimplemented!()
    }
    /// Bytes of the weights as stored; a tied head counts once.
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }
    /// The tokenizer, where the folder has one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        unimplemented!()
    }
    /// The chat template, where the folder has one.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        unimplemented!()
    }
    /// What `generation_config.json` (or the model's configuration) says.
    pub fn generation(&self) -> &GenerationDefaults {
        unimplemented!()
    }
    /// Hash of the configuration and of the tensors' names, shapes and formats, in hexadecimal.
    pub fn fingerprint(&self) -> &str {
        unimplemented!()
    }
    /// The exit blocks beside the model, by exit layer; files that do not fit are errors.
    ///
    /// # Errors
    /// If a block is damaged or belongs to another model.
    pub fn exit_blocks(&self) -> Result<Vec<ExitBlock>, LoadError> {
        unimplemented!()
    }
    /// Opens an exit block for this model.
    ///
    /// # Errors
    /// If the block is damaged or belongs to another model.
    pub fn open_exit(&self, _path: &Path) -> Result<ExitBlock, LoadError> {
        unimplemented!()
    }
}

/// An opened `exit-<N>.safetensors`.
pub struct ExitBlock {}

impl ExitBlock {
    /// The exit layer `N`.
    pub fn after(&self) -> usize {
        unimplemented!()
    }
    /// Where it came from.
    pub fn path(&self) -> &Path {
        unimplemented!()
    }
    /// The metadata of its file: training figures and the like.
    pub fn metadata(&self) -> &std::collections::BTreeMap<String, String> {
        unimplemented!()
    }
    /// Bytes of its tensors.
    pub fn bytes(&self) -> u64 {
        unimplemented!()
    }
    /// Views of the tensors.
    pub fn weights(&self) -> ExitWeights<'_> {
        unimplemented!()
    }
}

/// Defaults for generation; `None`: the folder does not say.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerationDefaults {
    /// Put before every text.
    pub begin_token: Option<TokenId>,
    /// Tokens that end an answer.
    pub end_tokens: Vec<TokenId>,
    /// `do_sample`.
    pub sample: Option<bool>,
    /// `temperature`.
    pub temperature: Option<f64>,
    /// `top_k`.
    pub top_k: Option<usize>,
    /// `top_p`.
    pub top_p: Option<f64>,
    /// `min_p`.
    pub min_p: Option<f64>,
    /// `repetition_penalty`.
    pub repetition_penalty: Option<f64>,
}

/// Text to tokens and back.
pub struct Tokenizer {}

impl Tokenizer {
    /// Tokens of `text`. `begin`: with what the model wants at a text's start (not after a chat
    /// template, which writes it itself); special tokens written out in the text are recognised.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, _text: &str, _begin: bool) -> Result<Vec<TokenId>, LoadError> {
        unimplemented!()
    }
    /// Text of `tokens`, special tokens left out.
    pub fn decode(&self, _tokens: &[TokenId]) -> String {
        unimplemented!()
    }
    /// The token's own spelling in the vocabulary, `None` where it has none.
    pub fn token(&self, _id: TokenId) -> Option<String> {
        unimplemented!()
    }
    /// Decodes token by token.
    pub fn stream(self: &Arc<Self>) -> TextStream {
        unimplemented!()
    }
}

/// Turns tokens into text as they come: whole characters only, the same text in the end as
/// [`Tokenizer::decode`] of all of them.
pub struct TextStream {}

impl TextStream {
    /// The text that became certain with `token`.
    pub fn push(&mut self, _token: TokenId) -> String {
        unimplemented!()
    }
    /// What is left at the end: unfinished characters as U+FFFD.
    pub fn finish(&mut self) -> String {
        unimplemented!()
    }
}

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// A Jinja chat template.
pub struct ChatTemplate {}

impl ChatTemplate {
    /// The prompt for the model's answer to `messages`.
    ///
    /// # Errors
    /// What the template raised.
    pub fn render(&self, _messages: &[Message]) -> Result<String, LoadError> {
        unimplemented!()
    }
}

/// Why a model could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Placeholder.
    #[error("{0}")]
    Todo(PathBuf),
}
