//! Where in a text, or in many, the last tokens stood before, and how it went on from there.
//!
//! Every run of so many tokens (a *gram*) has a chain of the places where it begins, latest first, as compressors of the
//! Lempel-Ziv family keep them. A chain needs no more than a number a token, an old token is dropped by forgetting it, and
//! what is proposed rests on the latest few places of the longest match. A suffix automaton finds all of them, but
//! cannot forget; on real text a few are as good.

use super::{Evidence, Proposal};
use crate::TokenId;
use std::collections::{HashMap, VecDeque};

/// Places of a gram that are looked at, latest first.
const MOST_PLACES: usize = 16;
/// Tokens before a continuation that are compared at most.
const LONGEST_MATCH: usize = 16;
/// Ends a text among others. No model has so large a vocabulary.
pub const TEXT_END: TokenId = TokenId::MAX;

/// Texts in which to look things up, the oldest tokens dropped where there are too many.
#[derive(Debug, Clone)]
pub struct TextIndex<const GRAMS: usize> {
    /// Lengths of the grams, longest first.
    lengths: [usize; GRAMS],
    most: usize,
    tokens: VecDeque<TokenId>,
    /// Tokens that were dropped: the position of the first one kept.
    dropped: usize,
    /// By gram: where it begins, lately.
    latest: [HashMap<u64, usize>; GRAMS],
    /// By position: how far back the same gram begins before; 0: nowhere.
    back: VecDeque<[u32; GRAMS]>,
}

/// A place in the texts from which on they may be continued alike.
#[derive(Debug, Clone, Copy)]
struct Place {
    position: usize,
    matched: usize,
}

impl<const GRAMS: usize> TextIndex<GRAMS> {
    /// An index of grams of these lengths, longest first, that keeps `most` tokens.
    pub fn new(lengths: [usize; GRAMS], most: usize) -> Self {
        // What is kept is told by differences in 32 bits.
        let most = most.min(u32::MAX as usize);
        let (tokens, back, latest) = (VecDeque::new(), VecDeque::new(), std::array::from_fn(|_| HashMap::new()));
        Self { lengths, most, tokens, dropped: 0, latest, back }
    }

    /// Tokens that were ever added.
    pub fn end(&self) -> usize {
        self.dropped + self.tokens.len()
    }

    /// The tokens kept.
    pub fn tokens(&self) -> impl Iterator<Item = TokenId> {
        self.tokens.iter().copied()
    }

    /// Grams whose places are known.
    #[cfg(test)]
    pub fn places_known(&self) -> usize {
        self.latest.iter().map(HashMap::len).sum()
    }

    /// Goes on with the text.
    pub fn extend(&mut self, tokens: &[TokenId]) {
        tokens.iter().for_each(|&token| self.push(token));
    }

    /// Ends the text: the next token begins another one.
    pub fn end_text(&mut self) {
        self.push(TEXT_END);
    }

    fn push(&mut self, token: TokenId) {
        if self.tokens.len() >= self.most {
            self.drop_first();
        }
        if self.most == 0 {
            return;
        }
        self.tokens.push_back(token);
        self.back.push_back([0; GRAMS]);
        for gram in 0..GRAMS {
            let Some(begin) = self.tokens.len().checked_sub(self.lengths[gram]) else { continue };
            let position = self.dropped + begin;
            if let Some(before) = self.latest[gram].insert(key(self.tokens.range(begin..)), position) {
                self.back[begin][gram] = (position - before) as u32;
            }
        }
    }

    fn drop_first(&mut self) {
        for gram in 0..GRAMS {
            if let Some(len) = Some(self.lengths[gram]).filter(|&len| len <= self.tokens.len()) {
                let key = key(self.tokens.range(..len));
                if self.latest[gram].get(&key) == Some(&self.dropped) {
                    self.latest[gram].remove(&key);
                }
            }
        }
        self.dropped += usize::from(self.tokens.pop_front().is_some());
        self.back.pop_front();
    }

    /// How `text` may go on for up to `most` tokens, by what followed its last tokens here. If the index is of the beginning
    /// of `text` itself, `beyond` is all that stands after it there, and what is proposed may go on with what was proposed.
    pub fn propose(&self, text: &[TokenId], beyond: Option<&[TokenId]>, most: usize) -> Proposal {
        let mut places = self.places(text);
        let Some(longest) = places.iter().map(|place| place.matched).max() else { return Proposal::default() };
        places.retain(|place| place.matched == longest);
        let mut proposal = Proposal::default();
        while proposal.tokens.len() < most {
            let found: Vec<(TokenId, Place)> =
                places.iter().filter_map(|&place| Some((self.at(place.position, beyond, &proposal)?, place))).collect();
            let Some((token, seen)) = most_frequent(&found) else { break };
            let matched = longest + proposal.tokens.len();
            proposal.evidence.push(Evidence { matched, share: seen as f32 / found.len() as f32, seen });
            proposal.tokens.push(token);
            let agreeing = found.into_iter().filter(|&(other, _)| other == token);
            places = agreeing.map(|(_, place)| Place { position: place.position + 1, ..place }).collect();
        }
        proposal
    }

    /// Where the longest gram at the end of `text` stood before, and where that went on, latest first.
    fn places(&self, text: &[TokenId]) -> Vec<Place> {
        let mut places = Vec::with_capacity(MOST_PLACES);
        for (gram, &len) in self.lengths.iter().enumerate() {
            let Some(suffix) = text.len().checked_sub(len).map(|from| &text[from..]) else { continue };
            let mut next = self.latest[gram].get(&key(suffix.iter())).copied();
            let mut left = MOST_PLACES;
            while let Some(begin) = next.filter(|_| left > 0) {
                let place = Place { position: begin + len, matched: self.matched(begin + len, text) };
                // The end of the text itself, where it is one of these; and grams that only share a key.
                if place.position < self.end() && place.matched >= len {
                    places.push(place);
                    left -= 1;
                }
                let back = self.back[begin - self.dropped][gram] as usize;
                next = begin.checked_sub(back).filter(|&before| back > 0 && before >= self.dropped);
            }
            if !places.is_empty() {
                break;
            }
        }
        places
    }

    /// Tokens before `position` that are the last ones of `text`.
    fn matched(&self, position: usize, text: &[TokenId]) -> usize {
        let before = (self.dropped..position).rev().map(|position| self.tokens[position - self.dropped]);
        before.zip(text.iter().rev()).take(LONGEST_MATCH).take_while(|(a, b)| a == *b).count()
    }

    /// The token at a position of the texts, or beyond them.
    fn at(&self, position: usize, beyond: Option<&[TokenId]>, proposal: &Proposal) -> Option<TokenId> {
        let token = match position.checked_sub(self.end()) {
            None => self.tokens[position - self.dropped],
            Some(after) => *beyond?.iter().chain(&proposal.tokens).nth(after)?,
        };
        (token != TEXT_END).then_some(token)
    }
}

/// The token found most often, the latest of several, and how often.
fn most_frequent(found: &[(TokenId, Place)]) -> Option<(TokenId, usize)> {
    let count = |token| found.iter().filter(|&&(other, _)| other == token).count();
    // The last of equal ones would win, and the first is the latest.
    found.iter().rev().map(|&(token, _)| (token, count(token))).max_by_key(|&(_, seen)| seen)
}

/// What stands for a gram.
fn key<'a>(gram: impl Iterator<Item = &'a TokenId>) -> u64 {
    gram.fold(0, |key, &token| {
        (key ^ u64::from(token)).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    })
}
