//! What stands around a user's words in a conversation: where a model that goes on from there writes what a user might ask
//! (Magpie, Xu et al. 2024, arXiv 2406.08464).

use super::chat::{Chat, Message};
use super::{Prompt, PromptEncoder, PromptError, Tokenizer};
use crate::TokenId;

/// Stands for the user's words while the template is rendered.
const WORDS: &str = "the user's words";

/// Where a user's words begin and end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserTurn {
    /// The tokens before them.
    pub opening: Vec<TokenId>,
    /// The text that ends them.
    mark: String,
}

impl PromptEncoder<'_> {
    /// The first turn of a conversation, which is the user's.
    ///
    /// # Errors
    /// If there is no template or no tokenizer, the template refuses such a conversation, or does not put the words into
    /// it as they are, after something.
    pub fn user_turn(&self) -> Result<UserTurn, PromptError> {
        let text = self.text(&Prompt::Chat(Box::new(Chat::new([Message::new("user", WORDS)]))))?.unwrap_or_default();
        let tokenizer = self.tokenizer.ok_or(PromptError::NoTokenizer)?;
        let around = text.split_once(WORDS).filter(|(opening, _)| !opening.is_empty());
        let why =
            || format!("the chat template makes {text:?} of a user's message (expected something, then its words)");
        let (opening, closing) = around.ok_or_else(|| PromptError::NoTemplate(why()))?;
        let mark = closing.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or(closing);
        Ok(UserTurn { opening: tokenizer.encode(opening, false)?, mark: mark.to_owned() })
    }
}

impl UserTurn {
    /// The words among what a model has written after the opening; `None` where they have no end, or say nothing.
    pub fn words(&self, tokenizer: &Tokenizer, tokens: &[TokenId]) -> Option<String> {
        let ended = tokens.last().is_some_and(|&token| tokenizer.is_special(token));
        let text = tokenizer.decode(tokens);
        let words = match text.split_once(self.mark.as_str()) {
            Some((words, _)) => words,
            None if ended => &text,
            None => return None,
        };
        let words = words.trim();
        words.contains(char::is_alphabetic).then(|| words.to_owned())
    }
}
