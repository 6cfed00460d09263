//! Which tokens an exit block can draft.

use crate::TokenId;

/// The tokens behind a row of draft logits, ascending: those of a list, or the first ones of the vocabulary.
///
/// ```
/// use eesd::model::DraftVocab;
///
/// let listed = DraftVocab { size: 3, ids: Some(&[2, 5, 9]) };
/// assert_eq!((listed.token(1), listed.column(9), listed.column(4)), (5, Some(2), None));
/// let first = DraftVocab { size: 3, ids: None };
/// assert_eq!((first.token(1), first.column(2), first.column(9)), (1, Some(2), None));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftVocab<'a> {
    /// Logits of a row.
    pub size: usize,
    /// The token of each logit, `[size]`, ascending; `None`: logit `i` is that of token `i`.
    pub ids: Option<&'a [TokenId]>,
}

impl DraftVocab<'_> {
    /// The token of a logit; `column` is less than `size`.
    pub fn token(&self, column: usize) -> TokenId {
        self.ids.map_or(column as TokenId, |ids| ids[column])
    }

    /// Where a token's logit is; `None`: it cannot be drafted.
    pub fn column(&self, token: TokenId) -> Option<usize> {
        match self.ids {
            Some(ids) => ids.binary_search(&token).ok(),
            None => Some(token as usize).filter(|&column| column < self.size),
        }
    }

    /// Refuses a list that is not `[size]`, not ascending, or not of a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// What was found, and what was expected.
    pub fn check(&self, vocab: usize) -> Result<(), (String, String)> {
        let Some(ids) = self.ids else { return Ok(()) };
        if ids.len() != self.size {
            return Err((format!("{} tokens", ids.len()), format!("{}, one for each row of the head", self.size)));
        }
        if let Some(at) = ids.windows(2).position(|pair| pair[0] >= pair[1]) {
            let found = format!("token {} after token {}, at {}", ids[at + 1], ids[at], at + 1);
            return Err((found, "ascending tokens, each once".into()));
        }
        match ids.last() {
            Some(&last) if last as usize >= vocab => {
                Err((format!("token {last}, at {}", ids.len() - 1), format!("tokens below {vocab}")))
            }
            _ => Ok(()),
        }
    }
}
