//! What a sequence has said: its text, cut at stop strings, and why it ended.

use super::request::{Emission, Finish, Request};
use super::stop::StopMatcher;
use crate::TokenId;
use crate::draft::Source;
use crate::load::TextStream;
use crate::sample::TokenLogprobs;

/// The growing answer of one sequence.
pub(super) struct Output {
    /// Spells tokens; `None` without a tokenizer.
    stream: Option<TextStream>,
    stops: StopMatcher,
    end_tokens: Vec<TokenId>,
    /// Tokens still to come with which no stop string ends the answer.
    unstoppable: usize,
    /// Tokens that may still be emitted before the request's or the context's limit.
    room: usize,
    /// What ends the answer when there is no room left.
    at_limit: Finish,
    pub text: String,
    pub logprobs: Vec<TokenLogprobs>,
    pub finish: Option<Finish>,
}

impl Output {
    /// An empty answer to `request`, which `end_tokens` end.
    pub fn new(
        stream: Option<TextStream>,
        request: &Request,
        end_tokens: Vec<TokenId>,
        room: usize,
        at_limit: Finish,
    ) -> Self {
        Self {
            stream,
            stops: StopMatcher::new(request.stop.clone()),
            end_tokens,
            unstoppable: request.min_tokens,
            room,
            at_limit,
            text: String::new(),
            logprobs: Vec::new(),
            finish: None,
        }
    }

    /// Tokens that may still be emitted.
    pub fn room(&self) -> usize {
        self.room
    }

    /// Tokens that nothing may follow.
    pub fn end_tokens(&self) -> &[TokenId] {
        &self.end_tokens
    }

    /// Nothing may follow this token.
    pub fn is_end(&self, token: TokenId) -> bool {
        self.end_tokens.contains(&token)
    }

    /// Takes the next token of the answer, and decides whether the answer ends with it; with `complete` it does in any case.
    pub fn push(
        &mut self,
        token: TokenId,
        complete: bool,
        drafted: Option<Source>,
        logprobs: Option<TokenLogprobs>,
    ) -> Emission {
        self.room -= 1;
        let mut text = String::new();
        if self.is_end(token) {
            self.finish = Some(Finish::EndToken(token));
        } else if let Some(stream) = &mut self.stream {
            let piece = stream.push(token);
            text = self.release(&piece);
        }
        if self.finish.is_none() && complete {
            self.finish = Some(Finish::Complete);
        }
        if self.finish.is_none() && self.room == 0 {
            self.finish = Some(self.at_limit.clone());
        }
        if self.finish.is_some() {
            text += &self.flush();
        }
        self.unstoppable = self.unstoppable.saturating_sub(1);
        self.text += &text;
        self.logprobs.extend(logprobs.clone());
        Emission { token, text, drafted, logprobs }
    }

    /// Ends the answer where it is; returns text that was held back.
    pub fn cancel(&mut self) -> String {
        self.finish = Some(Finish::Cancelled);
        let text = self.flush();
        self.text += &text;
        text
    }

    /// Text of `piece` that is certain; notes a stop string.
    fn release(&mut self, piece: &str) -> String {
        if self.unstoppable > 0 {
            return self.stops.pass(piece);
        }
        let release = self.stops.push(piece);
        if let Some(stop) = release.stop {
            self.finish = Some(Finish::StopString(stop));
        }
        release.text
    }

    /// Text held back that the end makes certain: none after a stop string.
    fn flush(&mut self) -> String {
        if matches!(self.finish, Some(Finish::StopString(_))) {
            return String::new();
        }
        let rest = self.stream.as_mut().map(TextStream::finish).unwrap_or_default();
        let mut text = self.release(&rest);
        if !matches!(self.finish, Some(Finish::StopString(_))) {
            text += &self.stops.finish();
        }
        text
    }
}
