//! What may follow a text, whichever text it is: a walk that goes where it is asked about.

use super::{Constraint, TokenSet, Walk};
use crate::TokenId;
use std::sync::Arc;

/// Positions of which it is kept what may follow, since a round asks more than once about each of its own.
const KEPT: usize = 64;

/// Says of any text of one answer what may follow it.
///
/// It remembers where it was last, which saves time and changes nothing: the answer depends on the text alone.
pub struct Guide {
    constraint: Arc<dyn Constraint>,
    /// Tokens that end the answer.
    ends: Vec<TokenId>,
    /// Stands after `tokens`; `None`: it has to be walked anew.
    walk: Option<Box<dyn Walk>>,
    tokens: Vec<TokenId>,
    /// By number of tokens before: what may follow.
    known: Vec<(usize, View)>,
}

/// What may follow a text.
#[derive(Debug, Clone)]
enum View {
    /// One of these; ends are among them where the text may end.
    Some(Arc<TokenSet>),
    /// Nothing: the text is complete.
    Complete,
    /// The text breaks the rule already, or has ended before.
    Stray,
    /// Nobody can say, and why.
    Unknown(String),
}

/// How an answer stands after one more token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It goes on, or it ended by an end token where it might.
    Open,
    /// It is complete: nothing may follow.
    Complete,
    /// The token must not stand there, and why: other wishes left no token that may.
    Broken(String),
}

impl Guide {
    /// A guide along one answer, which `ends` end.
    pub fn new(constraint: Arc<dyn Constraint>, ends: Vec<TokenId>) -> Self {
        let walk = Some(constraint.start());
        Self { constraint, ends, walk, tokens: Vec::new(), known: Vec::new() }
    }

    /// The tokens that may follow `output`, ends where it may end among them. `None`: any, because nothing that follows can
    /// become part of the answer.
    pub fn allowed(&mut self, output: &[TokenId]) -> Option<Arc<TokenSet>> {
        match self.view(output) {
            View::Some(set) => Some(set),
            View::Complete | View::Stray | View::Unknown(_) => None,
        }
    }

    /// Whether nothing that follows `output` can become part of the answer: it is complete, or will be refused.
    pub fn is_over(&mut self, output: &[TokenId]) -> bool {
        !matches!(self.view(output), View::Some(_))
    }

    /// How the answer stands after `output`, which was open before its last token.
    pub fn judge(&mut self, output: &[TokenId]) -> Standing {
        let Some((&token, before)) = output.split_last() else { return Standing::Open };
        match self.view(before) {
            View::Some(set) if !set.has(token) => self.no_choice(),
            View::Some(_) if self.ends.contains(&token) => Standing::Open,
            View::Some(_) => match self.view(output) {
                View::Some(_) => Standing::Open,
                View::Complete => Standing::Complete,
                View::Stray => self.no_choice(),
                View::Unknown(why) => self.broken(&why),
            },
            View::Unknown(why) => self.broken(&why),
            View::Complete | View::Stray => self.broken("the answer was complete before"),
        }
    }

    /// How many of `tokens` may follow `output`. May say too many.
    pub fn accepts(&mut self, output: &[TokenId], tokens: &[TokenId]) -> usize {
        let content = tokens.iter().take_while(|token| !self.ends.contains(token)).count();
        match self.follow(output) {
            Ok(walk) => match walk.accepts(&tokens[..content]) {
                Ok(accepted) if accepted == content => tokens.len().min(content + 1),
                Ok(accepted) => accepted,
                Err(_) => {
                    self.walk = None;
                    tokens.len()
                }
            },
            Err(_) => 0,
        }
    }

    /// Tokens that follow `output` by the rule alone, as far as it is known.
    pub fn forced(&mut self, output: &[TokenId]) -> Vec<TokenId> {
        let mut forced = self.follow(output).map_or(Vec::new(), |walk| walk.forced());
        let content = forced.iter().take_while(|token| !self.ends.contains(token)).count();
        forced.truncate(content);
        forced
    }

    fn no_choice(&self) -> Standing {
        let why = "no token that it allows is left here by the other settings (suppress_tokens, bad_words, logit_bias or \
                   min_tokens)";
        self.broken(why)
    }

    fn broken(&self, why: &str) -> Standing {
        Standing::Broken(format!("{}: {why}", self.constraint))
    }

    fn view(&mut self, output: &[TokenId]) -> View {
        if let Err(view) = self.follow(output).map(drop) {
            return view;
        }
        if let Some((_, view)) = self.known.iter().find(|(at, _)| *at == output.len()) {
            return view.clone();
        }
        let view = self.look().unwrap_or_else(|why| {
            self.walk = None;
            View::Unknown(why)
        });
        if self.known.len() == KEPT {
            self.known.remove(0);
        }
        self.known.push((output.len(), view.clone()));
        view
    }

    /// What may follow where the walk stands.
    fn look(&mut self) -> Result<View, String> {
        let Some(walk) = &mut self.walk else { return Err("the walk is over".into()) };
        let (mut set, may_end) = (walk.allowed()?, walk.may_end()?);
        self.ends.iter().for_each(|&end| set.remove(end));
        Ok(match (set.is_empty(), may_end) {
            (true, true) => View::Complete,
            (true, false) => View::Unknown("no token can go on from here".into()),
            (false, may_end) => {
                self.ends.iter().filter(|_| may_end).for_each(|&end| set.insert(end));
                View::Some(Arc::new(set))
            }
        })
    }

    /// The walk, after `output`; else why it cannot be there.
    fn follow(&mut self, output: &[TokenId]) -> Result<&mut Box<dyn Walk>, View> {
        let common = self.tokens.iter().zip(output).take_while(|(a, b)| a == b).count();
        if common < self.tokens.len() {
            let back = self.tokens.len() - common;
            self.tokens.truncate(common);
            self.known.retain(|&(at, _)| at <= common);
            // A walk that cannot go back begins anew.
            self.walk = self.walk.take().and_then(|mut walk| walk.pop(back).is_ok().then_some(walk));
        }
        let mut walk = match self.walk.take() {
            Some(walk) => walk,
            None => self.walk_anew()?,
        };
        for &token in &output[common..] {
            let goes_on = if self.ends.contains(&token) { Ok(false) } else { walk.push(token) };
            match goes_on {
                Ok(true) => self.tokens.push(token),
                Ok(false) => {
                    self.walk = Some(walk);
                    return Err(View::Stray);
                }
                Err(why) => return Err(View::Unknown(why)),
            }
        }
        Ok(self.walk.insert(walk))
    }

    fn walk_anew(&self) -> Result<Box<dyn Walk>, View> {
        let mut walk = self.constraint.start();
        for &token in &self.tokens {
            match walk.push(token) {
                Ok(true) => {}
                Ok(false) => return Err(View::Unknown("it refuses a token that it has allowed before".into())),
                Err(why) => return Err(View::Unknown(why)),
            }
        }
        Ok(walk)
    }
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guide").field("constraint", &self.constraint).field("tokens", &self.tokens.len()).finish()
    }
}
