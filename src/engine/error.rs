//! Why a request, or the whole engine, failed.

use crate::TokenId;
use crate::backend::BackendError;
use crate::sample::ParamError;

/// Why a request, or the whole engine, failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// A pass could not be run.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A sampling parameter is out of range.
    #[error(transparent)]
    Param(#[from] ParamError),
    /// The prompt has no token.
    #[error("the prompt is empty: give at least one token")]
    EmptyPrompt,
    /// The request asks for nothing.
    #[error("max_tokens is 0: ask for at least one token")]
    NothingToGenerate,
    /// More tokens are demanded than allowed.
    #[error("min_tokens is {min_tokens}, max_tokens {max_tokens} (expected a minimum that is not above the maximum)")]
    LeastBeyondMost {
        /// Fewest tokens to generate.
        min_tokens: usize,
        /// Most tokens to generate.
        max_tokens: usize,
    },
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
    /// No token was left that the answer's constraint allows, or nobody could say which it does.
    #[error("{0}")]
    Constraint(String),
    /// A stop string that every text contains.
    #[error("a stop string is empty: give at least one character")]
    EmptyStop,
}
