//! What the body of a request asks.

use super::app::Loaded;
use super::error::ApiError;
use crate::batch::take_settings;
use crate::openai::Endpoint;
use eesd::TokenId;
use eesd::engine::Request;
use eesd::load::{Keys, Prompt};
use serde::Deserialize;

/// A request as the engine and the answer's form need it.
pub struct Asked {
    pub chat: bool,
    /// The answers to the first prompt, then those to the next one.
    pub requests: Vec<Request>,
    /// How many there are.
    pub answers: usize,
    /// Answers to each prompt.
    pub samples: usize,
    /// What stands before the answers to each prompt; empty where nothing does.
    pub echo: Vec<String>,
    pub stream: Option<Stream>,
}

/// How an answer is streamed.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    /// With a chunk of usage at the end.
    pub usage: bool,
}

/// The key `prompt` of `/v1/completions`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text, a list of tokens, or a list of such")]
enum Prompts {
    Text(String),
    Tokens(Vec<TokenId>),
    Texts(Vec<String>),
    TokenLists(Vec<Vec<TokenId>>),
}

impl Asked {
    /// Reads a body of one of the two endpoints.
    ///
    /// # Errors
    /// Which field is wrong, and how.
    pub fn read(body: &[u8], chat: bool, loaded: &Loaded) -> Result<Self, ApiError> {
        let keys = Keys::parse(body);
        let names: Vec<String> = keys.rest().map(str::to_owned).collect();
        let wrong = |message: String| ApiError::of_body(&names, &message);
        Self::of_keys(keys, chat, loaded, &wrong)
    }

    fn of_keys(
        mut keys: Keys,
        chat: bool,
        loaded: &Loaded,
        wrong: &dyn Fn(String) -> ApiError,
    ) -> Result<Self, ApiError> {
        keys.whole().map_err(wrong)?;
        let stream = stream(&mut keys).map_err(wrong)?;
        // A conversation is never given back; what says so is honoured where all other keys are read.
        let echo = if chat { None } else { keys.take::<bool>("echo").map_err(wrong)? };
        if keys.raw("id").is_some() {
            return Err(ApiError::invalid("id", "unknown key \"id\": the server names its answers"));
        }
        let (endpoint, mut keys) = Endpoint::take(keys, chat).map_err(wrong)?;
        if let Some(model) = endpoint.model.filter(|model| *model != loaded.name) {
            return Err(ApiError::no_model(&model, &loaded.name));
        }
        let key = if chat { "messages" } else { "prompt" };
        if keys.raw(key).is_none() {
            return Err(ApiError::invalid(key, format!("\"{key}\" is missing")));
        }
        let prompts = match chat {
            true => vec![Prompt::of_keys(&mut keys).map_err(wrong)?],
            false => keys.take::<Prompts>(key).map_err(wrong)?.map_or(Vec::new(), Prompts::each),
        };
        let encoder = loaded.model.encoder();
        let mut base = loaded.base.clone();
        let samples = take_settings(keys, &mut base, encoder.tokenizer, &loaded.model.grammars).map_err(wrong)?;
        if echo == Some(true) && base.sampling.logprobs.is_some() {
            return Err(ApiError::invalid(
                "logprobs",
                "\"logprobs\" of a prompt, which \"echo\" asks for, are not supported",
            ));
        }
        let (asked, most) = (prompts.len().saturating_mul(samples), loaded.engine.most());
        if asked > most {
            let of = if prompts.len() > most { key } else { "n" };
            let message = format!("{asked} answers at once are more than this server takes (expected {most} at most)");
            return Err(ApiError::invalid(of, message));
        }
        let mut all =
            Self { chat, requests: Vec::with_capacity(asked), answers: asked, samples, echo: Vec::new(), stream };
        for prompt in prompts {
            let refused = |error: &dyn std::fmt::Display| ApiError::invalid(key, error.to_string());
            let (tokens, text) = encoder.encode_with_text(&prompt).map_err(|error| refused(&error))?;
            all.echo.push(match echo {
                Some(true) => text.unwrap_or_else(|| loaded.tokenizer.decode(&tokens)),
                _ => String::new(),
            });
            let request = Request { prompt: tokens, ..base.clone() };
            all.requests.extend((0..samples as u64).map(|sample| {
                let mut request = request.clone();
                request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(sample));
                request
            }));
        }
        Ok(all)
    }

    /// What stands before an answer, by its number.
    pub fn before(&self, answer: usize) -> &str {
        self.echo.get(answer / self.samples).map_or("", String::as_str)
    }
}

impl Prompts {
    fn each(self) -> Vec<Prompt> {
        match self {
            Self::Text(text) => vec![Prompt::Text(text)],
            Self::Tokens(tokens) => vec![Prompt::Tokens(tokens)],
            Self::Texts(texts) => texts.into_iter().map(Prompt::Text).collect(),
            Self::TokenLists(lists) => lists.into_iter().map(Prompt::Tokens).collect(),
        }
    }
}

fn stream(keys: &mut Keys) -> Result<Option<Stream>, String> {
    let stream = keys.take::<bool>("stream")?.unwrap_or(false);
    let Some(mut options) = keys.take_object("stream_options")? else {
        return Ok(stream.then_some(Stream { usage: false }));
    };
    if !stream {
        return Err("\"stream_options\" needs \"stream\": true".into());
    }
    let of_options = |error: String| format!("\"stream_options\": {error}");
    let usage = options.take::<bool>("include_usage").map_err(of_options)?.unwrap_or(false);
    options.finish("include_usage").map_err(of_options)?;
    Ok(Some(Stream { usage }))
}
