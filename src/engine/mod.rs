//! The speculative loop.

mod request;

pub use request::{Completion, Emission, Finish, Request, Stats};

use crate::TokenId;
use crate::backend::{Backend, BackendError};
use crate::control::Controller;
use crate::load::Tokenizer;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Runs requests on a backend: admits, prefills, and plays rounds until each is finished.
pub struct Engine {}

/// What happens to a request.
#[derive(Debug)]
pub enum Event {
    /// A token became certain.
    Token(Emission),
    /// The request is finished.
    Done(Completion),
    /// The request could not be run or went wrong; the others go on.
    Failed(EngineError),
}

/// Why a request, or the whole engine, failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A pass could not be run.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A parameter is out of range.
    #[error(transparent)]
    Param(#[from] crate::sample::ParamError),
    /// The prompt has no token.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// The prompt leaves no room to generate.
    #[error("the prompt has {prompt} tokens, but the context holds {context}: shorten it or raise --ctx-size")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// The engine's context.
        context: usize,
    },
    /// A prompt token that the vocabulary does not have.
    #[error("prompt token {token} is not in the vocabulary of {vocab}")]
    UnknownToken {
        /// The token.
        token: TokenId,
        /// Tokens in the vocabulary.
        vocab: usize,
    },
    /// One request needs more pages than the whole cache has.
    #[error("the request needs {needed} cache pages, but the cache has {total}")]
    CacheTooSmall {
        /// Pages it would need.
        needed: usize,
        /// Pages there are.
        total: usize,
    },
    /// Stop strings were given, but there is no tokenizer to spell tokens with.
    #[error("stop strings need a tokenizer, and the model has none")]
    StopNeedsTokenizer,
}

impl Engine {
    /// An engine over `backend`. `end_tokens` end an answer.
    pub fn new(
        _backend: Box<dyn Backend>,
        _controller: Box<dyn Controller>,
        _tokenizer: Option<Arc<Tokenizer>>,
        _end_tokens: Vec<TokenId>,
    ) -> Self {
        unimplemented!()
    }
    /// The backend.
    pub fn backend(&self) -> &dyn Backend {
        unimplemented!()
    }
    /// The controller in charge.
    pub fn controller(&self) -> &dyn Controller {
        unimplemented!()
    }
    /// Puts another controller in charge.
    pub fn set_controller(&mut self, _controller: Box<dyn Controller>) {
        unimplemented!()
    }
    /// Runs one request; `on_token` sees each token as it becomes certain and may cancel.
    ///
    /// # Errors
    /// If the request is malformed or a pass fails.
    pub fn generate(
        &mut self,
        _request: &Request,
        _on_token: &mut dyn FnMut(&Emission) -> ControlFlow<()>,
    ) -> Result<Completion, EngineError> {
        unimplemented!()
    }
    /// Runs many requests, up to `batch` of them at a time, in order of arrival. `on_event` gets the
    /// request's index in the iterator; breaking cancels everything still running.
    ///
    /// # Errors
    /// If a pass fails; a malformed request fails alone, by [`Event::Failed`].
    pub fn run(
        &mut self,
        _requests: &mut dyn Iterator<Item = Request>,
        _batch: usize,
        _on_event: &mut dyn FnMut(usize, Event) -> ControlFlow<()>,
    ) -> Result<(), EngineError> {
        unimplemented!()
    }
}
