//! A constraint without a grammar: what may follow is told by a sum of the tokens before.

use eesd::TokenId;
use eesd::constrain::{Constraint, TokenSet, Walk};
use eesd::engine::Request;
use std::fmt;
use std::sync::Arc;

/// Of each sum but one some tokens may follow, of some only one; at the last sum the answer is complete.
#[derive(Debug, Clone)]
pub struct Turns {
    pub vocab: usize,
    /// Sums are taken modulo this; at least 5.
    pub sums: u32,
    /// Its walks cannot go back.
    pub one_way: bool,
}

impl Turns {
    /// The request under it.
    pub fn applied_to(self, request: Request) -> Request {
        Request { constraint: Some(Arc::new(self)), ..request }
    }
}

impl fmt::Display for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "turns of {}", self.sums)
    }
}

impl Constraint for Turns {
    fn start(&self) -> Box<dyn Walk> {
        Box::new(Turning { turns: self.clone(), before: Vec::new(), sum: 0 })
    }
}

struct Turning {
    turns: Turns,
    before: Vec<u32>,
    sum: u32,
}

impl Turning {
    fn is_complete(&self) -> bool {
        self.sum == self.turns.sums - 1
    }

    fn may_follow(&self, token: TokenId) -> bool {
        let of_several = !(token + self.sum).is_multiple_of(3);
        !self.is_complete()
            && (token as usize) < self.turns.vocab
            && if self.sum % 4 == 2 { token == 1 } else { of_several }
    }
}

impl Walk for Turning {
    fn push(&mut self, token: TokenId) -> Result<bool, String> {
        let may = self.may_follow(token);
        if may {
            self.before.push(self.sum);
            self.sum = (self.sum + 2 * token + 1) % self.turns.sums;
        }
        Ok(may)
    }

    fn pop(&mut self, tokens: usize) -> Result<(), String> {
        if self.turns.one_way {
            return Err("it goes one way".into());
        }
        for _ in 0..tokens {
            self.sum = self.before.pop().ok_or("it is at its beginning")?;
        }
        Ok(())
    }

    fn allowed(&mut self) -> Result<TokenSet, String> {
        let tokens: Vec<TokenId> = (0..self.turns.vocab as TokenId).filter(|&token| self.may_follow(token)).collect();
        Ok(TokenSet::of(&tokens))
    }

    fn may_end(&mut self) -> Result<bool, String> {
        Ok(self.is_complete() || self.sum % 4 == 1)
    }

    fn accepts(&mut self, tokens: &[TokenId]) -> Result<usize, String> {
        let mut walk = Self { turns: self.turns.clone(), before: Vec::new(), sum: self.sum };
        Ok(tokens.iter().take_while(|&&token| walk.push(token) == Ok(true)).count())
    }

    fn forced(&mut self) -> Vec<TokenId> {
        if self.sum % 4 == 2 && !self.is_complete() { vec![1] } else { Vec::new() }
    }
}
