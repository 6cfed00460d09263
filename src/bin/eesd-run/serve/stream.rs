//! Answers as server-sent events, chunk by chunk as tokens become certain.

use super::engine::{Answers, Happening};
use crate::openai::tools::{Reading, Said};
use crate::openai::{self, ApiError, Head, Shape, Stream, Usage};
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
    shape: Shape,
    options: Stream,
    answers: Answers,
    /// What has been sent of each answer.
    sent: Vec<Sent>,
    usage: Usage,
    /// Events that have not been taken.
    ready: VecDeque<String>,
    ended: bool,
}

struct Sent {
    /// Bytes of its text that have been read.
    bytes: usize,
    /// Characters of its tokens, as log-probabilities spell them.
    characters: usize,
    /// Calls of tools.
    calls: usize,
    /// What tells them from words, where there may be some.
    reading: Option<Reading>,
}

/// What one chunk tells of an answer, beside its text.
#[derive(Default)]
struct Told {
    logprobs: Value,
    /// Each token's text and who drafted it, where that was asked for.
    pieces: Option<Value>,
    finish: Option<&'static str>,
}

/// The answers to a request, sent as they come, with a line that says nothing in each `silence`.
///
/// # Errors
/// If none of it can be answered.
pub async fn respond(
    head: Head,
    shape: Shape,
    options: Stream,
    mut answers: Answers,
    silence: Duration,
) -> Result<Response, ApiError> {
    // Before the first event it can still be an error.
    answers.next().await.transpose()?;
    let reading = || shape.calls.as_ref().map(|calls| calls.reading());
    let sent = || Sent { bytes: 0, characters: 0, calls: 0, reading: reading() };
    let sent = (0..answers.count()).map(|_| sent()).collect();
    let (usage, ready) = (Usage::default(), VecDeque::new());
    let mut events = Events { head, shape, options, answers, sent, usage, ready, ended: false };
    events.begin();
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(silence)).into_response())
}

impl Events {
    /// What stands before each answer: who speaks, or the prompt.
    fn begin(&mut self) {
        for answer in 0..self.sent.len() {
            match self.shape.chat {
                true => self.chunk(answer, json!({"role": "assistant", "content": ""}), Told::default()),
                false if !self.shape.before(answer).is_empty() => {
                    let text = self.shape.before(answer).into();
                    self.chunk(answer, text, Told::default());
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
        let pieces = self.options.drafts.then(|| pieces(&emissions));
        let text: String = emissions.iter().map(|emission| emission.text.as_str()).collect();
        let tokens: Vec<_> = emissions.iter().map(|emission| emission.token).collect();
        let logprobs: Vec<_> = emissions.into_iter().filter_map(|emission| emission.logprobs).collect();
        let (chat, sent, tokenizer) = (self.shape.chat, &mut self.sent[answer], self.head.tokenizer.as_deref());
        let (logprobs, characters) = openai::logprobs(&tokens, &logprobs, chat, sent.characters, tokenizer);
        sent.characters = characters;
        sent.bytes += text.len();
        let said = match &mut sent.reading {
            Some(reading) => reading.push(&text),
            None => vec![Said::Text(text)],
        };
        self.say(answer, said, Told { logprobs, pieces, finish: None });
    }

    /// What was held back because it might have begun a stop string or an unfinished character, and why it has ended.
    fn finish(&mut self, answer: usize, completion: &Completion) {
        let sent = &mut self.sent[answer];
        let rest = completion.text.get(sent.bytes..).unwrap_or_default();
        let pieces = (self.options.drafts && !rest.is_empty()).then(|| json!([{"text": rest, "drafted": null}]));
        let (said, called) = match &mut sent.reading {
            Some(reading) => {
                let said = [reading.push(rest), reading.finish()].concat();
                (said, reading.called())
            }
            None => (vec![Said::Text(rest.to_owned())], false),
        };
        let finish = Some(openai::finish_reason(&completion.finish, called));
        match self.shape.chat {
            true => {
                self.say(answer, said, Told { pieces, ..Told::default() });
                self.chunk(answer, json!({}), Told { finish, ..Told::default() });
            }
            false => self.chunk(answer, rest.into(), Told { pieces, finish, ..Told::default() }),
        }
        self.usage.add(answer, &self.shape, completion);
    }

    /// Chunks of what an answer says: the first tells what is told beside it. Where there is nothing to tell, there is none.
    fn say(&mut self, answer: usize, said: Vec<Said>, told: Told) {
        let mut told = Some(told);
        for said in said {
            let delta = match said {
                Said::Text(text) if text.is_empty() => continue,
                Said::Text(text) => self.text_delta(text),
                Said::Call(call) => {
                    let number = self.sent[answer].calls;
                    self.sent[answer].calls += 1;
                    let mut call = call.told(&self.head.id, answer, number);
                    call["index"] = number.into();
                    json!({"tool_calls": [call]})
                }
            };
            self.chunk(answer, delta, told.take().unwrap_or_default());
        }
        if let Some(told) = told.filter(|told| !told.logprobs.is_null()) {
            self.chunk(answer, self.text_delta(String::new()), told);
        }
    }

    fn text_delta(&self, text: String) -> Value {
        if self.shape.chat { json!({"content": text}) } else { text.into() }
    }

    fn chunk(&mut self, answer: usize, delta: Value, told: Told) {
        let key = if self.shape.chat { "delta" } else { "text" };
        let Told { logprobs, pieces, finish } = told;
        let mut choice = json!({"index": answer, key: delta, "logprobs": logprobs, "finish_reason": finish});
        if let Some(pieces) = pieces {
            choice["pieces"] = pieces;
        }
        let mut chunk = self.head.around(self.shape.chat, true, vec![choice]);
        if self.options.usage {
            chunk["usage"] = Value::Null;
        }
        self.ready.push_back(chunk.to_string());
    }

    /// All answers have ended.
    fn end(&mut self) {
        if self.options.usage {
            let mut chunk = self.head.around(self.shape.chat, true, Vec::new());
            chunk["usage"] = self.usage.told();
            self.ready.push_back(chunk.to_string());
        }
        self.ready.push_back(DONE.into());
        self.ended = true;
    }
}

/// The text of each token that has some, and who drafted it.
fn pieces(emissions: &[Emission]) -> Value {
    let said = emissions.iter().filter(|emission| !emission.text.is_empty());
    said.map(|said| json!({"text": said.text, "drafted": said.drafted.map(|source| source.name())})).collect()
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
    use crate::openai::tools::Calls;
    use crate::serve::engine::answers_of_nobody;
    use eesd::draft::Source;
    use eesd::engine::{Finish, Stats};
    use eesd::load::{ChatTemplate, Checkpoint};
    use std::future::poll_fn;
    use tokio::runtime::{Builder, Runtime};

    fn head() -> Head {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m");
        let tokenizer = Checkpoint::open(folder.as_ref()).unwrap().tokenizer().cloned();
        Head { id: "1".into(), model: "m".into(), created: 1, quantised: None, tokenizer }
    }

    fn shape(chat: bool) -> Shape {
        Shape { chat, samples: 1, ..Shape::default() }
    }

    fn runtime() -> Runtime {
        Builder::new_current_thread().enable_all().build().unwrap()
    }

    fn emission(text: &str, drafted: Option<Source>) -> Emission {
        Emission { token: 5, text: text.into(), drafted, logprobs: None }
    }

    fn completion(text: &str) -> Completion {
        Completion {
            tokens: vec![5, 6],
            text: text.into(),
            logprobs: Vec::new(),
            finish: Finish::EndToken(6),
            seed: None,
            stats: Stats::default(),
        }
    }

    /// The choices of all chunks of an answer that comes in these pieces.
    fn choices(shape: Shape, options: Stream, pieces: &[Vec<Emission>], text: &str) -> Vec<Value> {
        let (answers, happens, _) = answers_of_nobody(1);
        runtime().block_on(async {
            assert!(happens.send(Happening::Taken).is_ok());
            for piece in pieces {
                assert!(happens.send(Happening::Tokens(0, piece.clone())).is_ok());
            }
            assert!(happens.send(Happening::Done(0, Box::new(completion(text)))).is_ok());
            let response = respond(head(), shape, options, answers, Duration::from_secs(9)).await.unwrap();
            let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
            let text = String::from_utf8(body.to_vec()).unwrap();
            let said = text.strip_suffix("data: [DONE]\n\n").unwrap();
            let events = said.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap());
            events.map(|event| serde_json::from_str::<Value>(event).unwrap()["choices"][0].take()).collect()
        })
    }

    #[test]
    fn silence_is_broken_and_whoever_goes_away_cancels() {
        let (answers, happens, cancelled) = answers_of_nobody(1);
        runtime().block_on(async {
            assert!(happens.send(Happening::Taken).is_ok());
            let (options, silence) = (Stream::default(), Duration::from_millis(1));
            let response = respond(head(), shape(false), options, answers, silence).await.unwrap();
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
        runtime().block_on(async {
            assert!(happens.send(Happening::Taken).is_ok());
            drop(happens);
            let options = Stream { usage: true, drafts: false };
            let response = respond(head(), shape(false), options, answers, Duration::from_secs(9)).await.unwrap();
            let body = axum::body::to_bytes(response.into_body(), 1 << 16).await.unwrap();
            let text = String::from_utf8(body.to_vec()).unwrap();
            assert!(text.starts_with("data: {\"error\":{") && text.ends_with("}}\n\n"), "{text}");
            assert!(!text.contains(DONE), "{text}");
        });
    }

    #[test]
    fn drafts_are_told_of_where_somebody_asks() {
        let pieces = [
            vec![emission("def ", Some(Source::Exit)), emission("", None), emission("f(", None)],
            vec![emission("x)", Some(Source::Lookup))],
        ];
        for chat in [true, false] {
            let told = |drafts| choices(shape(chat), Stream { usage: false, drafts }, &pieces, "def f(x):");
            let told_pieces: Vec<Value> = told(true).iter().map(|choice| choice["pieces"].clone()).collect();
            let expected = [
                json!([{"text": "def ", "drafted": "exit"}, {"text": "f(", "drafted": null}]),
                json!([{"text": "x)", "drafted": "lookup"}]),
                json!([{"text": ":", "drafted": null}]),
            ];
            assert_eq!(told_pieces.iter().filter(|pieces| !pieces.is_null()).collect::<Vec<_>>(), expected.each_ref());
            let mut without = told(true);
            without.iter_mut().for_each(|choice| drop(choice.as_object_mut().unwrap().remove("pieces")));
            assert_eq!(without, told(false), "nothing else changes");
        }
    }

    #[test]
    fn calls_are_deltas_of_their_own() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("template.jinja");
        std::fs::write(&file, "{{ tools }} <tool_call>").unwrap();
        let template = ChatTemplate::from_file(&file, Default::default()).unwrap();
        let shape = || Shape { calls: Calls::of(&template, vec!["f".into()]), ..shape(true) };
        let text =
            "Yes.<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}}</tool_call>\n<tool_call>{\"name\": \"g\"}";
        let pieces: Vec<Vec<Emission>> =
            text.split_inclusive(['{', '>']).map(|part| vec![emission(part, None)]).collect();
        let streamed = choices(shape(), Stream::default(), &pieces, text);
        let whole = openai::whole(&head(), &shape(), [&completion(text)])["choices"][0].take();
        let message = &whole["message"];
        assert_eq!((&message["content"], &whole["finish_reason"]), (&json!("Yes."), &json!("tool_calls")));
        let calls = message["tool_calls"].as_array().unwrap();
        assert_eq!(calls[0]["function"], json!({"name": "f", "arguments": "{\"a\": 1}"}));
        assert_eq!((calls.len(), &calls[1]["type"]), (2, &json!("function")));

        let deltas: Vec<&Value> = streamed.iter().map(|choice| &choice["delta"]).collect();
        let text: String = deltas.iter().filter_map(|delta| delta["content"].as_str()).collect();
        assert_eq!(text, "Yes.");
        let told: Vec<&Value> = deltas.iter().filter_map(|delta| delta["tool_calls"].get(0)).collect();
        for (number, (told, call)) in told.iter().zip(calls).enumerate() {
            let mut expected = call.clone();
            expected["index"] = number.into();
            assert_eq!(**told, expected);
        }
        assert_eq!((told.len(), &streamed.last().unwrap()["finish_reason"]), (2, &json!("tool_calls")));
        // Without a call it is an answer like any other.
        let none = openai::whole(&head(), &shape(), [&completion("<tool_call>no")])["choices"][0].take();
        let message = json!({"role": "assistant", "content": "<tool_call>no"});
        assert_eq!((&none["message"], &none["finish_reason"]), (&message, &json!("stop")));
    }
}
