//! Answers as server-sent events, chunk by chunk as tokens become certain.

use super::answer::{Head, Usage};
use super::engine::{Answers, Happening};
use super::error::ApiError;
use super::request::{Asked, Stream};
use crate::openai;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use eesd::engine::{Completion, Emission};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// What ends a stream that has said everything.
const DONE: &str = "[DONE]";

/// The events of a request. Whoever goes away drops them, and with them what is still to be answered.
struct Events {
    head: Head,
    asked: Asked,
    options: Stream,
    answers: Answers,
    /// What has been sent of each answer.
    sent: Vec<Sent>,
    usage: Usage,
    /// Events that have not been taken.
    ready: VecDeque<String>,
    ended: bool,
}

#[derive(Default, Clone, Copy)]
struct Sent {
    /// Bytes of its text.
    bytes: usize,
    /// Characters of its tokens, as log-probabilities spell them.
    characters: usize,
}

/// An answer that is sent as it comes, with a line that says nothing in each `silence`.
///
/// # Errors
/// If none of it can be answered.
pub async fn respond(
    head: Head,
    asked: Asked,
    options: Stream,
    mut answers: Answers,
    silence: Duration,
) -> Result<Response, ApiError> {
    // Before the first event it can still be an error.
    answers.next().await.transpose()?;
    let sent = vec![Sent::default(); asked.answers];
    let (usage, ready) = (Usage::default(), VecDeque::new());
    let mut events = Events { head, asked, options, answers, sent, usage, ready, ended: false };
    events.begin();
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(silence)).into_response())
}

impl Events {
    /// What stands before each answer: who speaks, or the prompt.
    fn begin(&mut self) {
        for answer in 0..self.asked.answers {
            match self.asked.chat {
                true => self.chunk(answer, json!({"role": "assistant", "content": ""}), Value::Null, None),
                false if !self.asked.before(answer).is_empty() => {
                    let text = self.asked.before(answer).into();
                    self.chunk(answer, text, Value::Null, None);
                }
                false => {}
            }
        }
    }

    fn take(&mut self, happening: Happening) {
        match happening {
            Happening::Tokens(answer, emissions) => self.tokens(answer, emissions),
            Happening::Done(answer, completion) => self.finish(answer, &completion),
            Happening::Taken | Happening::Failed(_) => {}
        }
    }

    fn tokens(&mut self, answer: usize, emissions: Vec<Emission>) {
        let text: String = emissions.iter().map(|emission| emission.text.as_str()).collect();
        let tokens: Vec<_> = emissions.iter().map(|emission| emission.token).collect();
        let logprobs: Vec<_> = emissions.into_iter().filter_map(|emission| emission.logprobs).collect();
        let (chat, sent, tokenizer) = (self.asked.chat, &mut self.sent[answer], Some(&*self.head.tokenizer));
        let (logprobs, characters) = openai::logprobs(&tokens, &logprobs, chat, sent.characters, tokenizer);
        sent.characters = characters;
        sent.bytes += text.len();
        if !text.is_empty() || !logprobs.is_null() {
            self.text(answer, text, logprobs, None);
        }
    }

    /// What was held back because it might have begun a stop string or an unfinished character, and why it has ended.
    fn finish(&mut self, answer: usize, completion: &Completion) {
        let rest = completion.text.get(self.sent[answer].bytes..).unwrap_or_default().to_owned();
        let reason = Some(openai::finish_reason(&completion.finish));
        match self.asked.chat {
            true => {
                if !rest.is_empty() {
                    self.text(answer, rest, Value::Null, None);
                }
                self.chunk(answer, json!({}), Value::Null, reason);
            }
            false => self.text(answer, rest, Value::Null, reason),
        }
        self.usage.add(answer, self.asked.samples, completion);
    }

    fn text(&mut self, answer: usize, text: String, logprobs: Value, finish: Option<&str>) {
        let delta = if self.asked.chat { json!({"content": text}) } else { text.into() };
        self.chunk(answer, delta, logprobs, finish);
    }

    fn chunk(&mut self, answer: usize, delta: Value, logprobs: Value, finish: Option<&str>) {
        let key = if self.asked.chat { "delta" } else { "text" };
        let choice = json!({"index": answer, key: delta, "logprobs": logprobs, "finish_reason": finish});
        let mut chunk = self.head.around(self.asked.chat, true, vec![choice]);
        if self.options.usage {
            chunk["usage"] = Value::Null;
        }
        self.ready.push_back(chunk.to_string());
    }

    /// All answers have ended.
    fn end(&mut self) {
        if self.options.usage {
            let mut chunk = self.head.around(self.asked.chat, true, Vec::new());
            chunk["usage"] = self.usage.told();
            self.ready.push_back(chunk.to_string());
        }
        self.ready.push_back(DONE.into());
        self.ended = true;
    }
}

impl futures_core::Stream for Events {
    type Item = Result<Event, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Event::default().data(data))));
            }
            if self.ended {
                return Poll::Ready(None);
            }
            match ready!(self.answers.poll(context)) {
                Some(Ok(happening)) => self.take(happening),
                Some(Err(error)) => {
                    self.ready.push_back(error.body().to_string());
                    self.ended = true;
                }
                None => self.end(),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::engine::answers_of_nobody;
    use eesd::load::Checkpoint;
    use std::future::poll_fn;

    fn head() -> Head {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m");
        let tokenizer = Checkpoint::open(folder.as_ref()).unwrap().tokenizer().cloned().unwrap();
        Head { id: "1".into(), model: "m".into(), created: 1, quantised: None, tokenizer }
    }

    fn asked() -> Asked {
        Asked { chat: false, requests: Vec::new(), answers: 1, samples: 1, echo: Vec::new(), stream: None }
    }

    #[test]
    fn silence_is_broken_and_whoever_goes_away_cancels() {
        let (answers, happens, cancelled) = answers_of_nobody(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert!(happens.send(Happening::Taken).is_ok());
            let options = Stream { usage: false };
            let response = respond(head(), asked(), options, answers, Duration::from_millis(1)).await.unwrap();
            let mut body = response.into_body().into_data_stream();
            for _ in 0..3 {
                let piece = poll_fn(|context| futures_core::Stream::poll_next(Pin::new(&mut body), context)).await;
                assert_eq!(piece.unwrap().unwrap().as_ref(), b":\n\n", "nothing has happened");
            }
            assert_eq!(cancelled(), None, "somebody is there");
            drop(body);
            assert_eq!(cancelled(), Some(7..8));
        });
    }

    /// The engine is gone: the stream ends with an error, and not as one that has said everything.
    #[test]
    fn a_stream_without_an_engine_ends_with_an_error() {
        let (answers, happens, _) = answers_of_nobody(1);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert!(happens.send(Happening::Taken).is_ok());
            drop(happens);
            let options = Stream { usage: true };
            let response = respond(head(), asked(), options, answers, Duration::from_secs(9)).await.unwrap();
            let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.starts_with("data: {\"error\":{") && text.ends_with("}}\n\n"), "{text}");
            assert!(!text.contains(DONE), "{text}");
        });
    }
}
