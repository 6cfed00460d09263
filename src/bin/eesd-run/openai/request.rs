//! What the body of a request asks.

use super::error::ApiError;
use super::fields::{self, Endpoint};
use super::tools::{Calls, ToolChoice};
use crate::batch::take_settings;
use eesd::TokenId;
use eesd::constrain::Grammars;
use eesd::engine::Request;
use eesd::load::{Chat, Keys, Prompt, PromptEncoder};
use serde::Deserialize;

/// A request as the engine and the answer's form need it.
pub struct Asked {
    /// The answers to the first prompt, then those to the next one; each with a seed of its own.
    pub requests: Vec<Request>,
    /// The text of the first prompt, where that is no list of tokens.
    pub text: Option<String>,
    pub shape: Shape,
    pub stream: Option<Stream>,
}

/// What of a request its answers are shaped by.
#[derive(Debug, Clone, Default)]
pub struct Shape {
    /// A conversation, not a text.
    pub chat: bool,
    /// The name that the request has for the model.
    pub model: Option<String>,
    /// Answers to each prompt.
    pub samples: usize,
    /// What stands before the answers to each prompt; empty where nothing does.
    pub echo: Vec<String>,
    /// How calls of tools are written, where an answer may have some.
    pub calls: Option<Calls>,
}

impl Shape {
    /// What stands before an answer, by its number.
    pub fn before(&self, answer: usize) -> &str {
        answer.checked_div(self.samples).and_then(|prompt| self.echo.get(prompt)).map_or("", String::as_str)
    }
}

/// How an answer is streamed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stream {
    /// With a chunk of usage at the end.
    pub usage: bool,
    /// With a note of who drafted what.
    pub drafts: bool,
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

/// What a body is read with.
pub struct BodyReader<'a> {
    pub encoder: &'a PromptEncoder<'a>,
    pub grammars: &'a Grammars,
    /// What a request asks that says nothing but its prompt.
    pub base: &'a Request,
    /// The only name that a request may have for the model; else any.
    pub model: Option<&'a str>,
    /// Most answers to one request.
    pub most: usize,
    /// Whether answers can be had as they come.
    pub streams: bool,
}

impl BodyReader<'_> {
    /// Reads a body of one of the two endpoints.
    ///
    /// # Errors
    /// Which field is wrong, and how.
    pub fn read(&self, keys: Keys, chat: bool) -> Result<Asked, ApiError> {
        let names: Vec<String> = keys.rest().map(str::to_owned).collect();
        let wrong = |message: String| ApiError::of_body(&names, &message);
        self.asked(keys, chat, &wrong)
    }

    fn asked(&self, mut keys: Keys, chat: bool, wrong: &dyn Fn(String) -> ApiError) -> Result<Asked, ApiError> {
        keys.whole().map_err(wrong)?;
        let stream = if self.streams { stream(&mut keys).map_err(wrong)? } else { None };
        // A conversation is never given back; what says so is honoured where all other keys are read.
        let echo = if chat { None } else { keys.take::<bool>("echo").map_err(wrong)? };
        let Endpoint { model, tool_choice } = Endpoint::take(&mut keys, chat).map_err(wrong)?;
        if let (Some(asked), Some(here)) = (&model, self.model)
            && asked != here
        {
            return Err(ApiError::no_model(asked, here));
        }
        let key = if chat { "messages" } else { "prompt" };
        if keys.raw(key).is_none() {
            return Err(ApiError::invalid(key, format!("\"{key}\" is missing")));
        }
        let mut prompts = match chat {
            true => vec![Prompt::of_keys(&mut keys).map_err(wrong)?],
            false => keys.take::<Prompts>(key).map_err(wrong)?.map_or(Vec::new(), Prompts::each),
        };
        let calls = match prompts.first_mut() {
            Some(Prompt::Chat(chat)) => self.calls(chat, tool_choice).map_err(wrong)?,
            _ => None,
        };
        if calls.is_some() && stream.is_some_and(|stream| stream.drafts) {
            return Err(ApiError::invalid(
                "stream_options",
                "\"include_drafts\" is not supported together with \"tools\"",
            ));
        }
        let mut base = self.base.clone();
        if let (Some(calls), Some(tokenizer)) = (&calls, self.encoder.tokenizer) {
            base.spelled_tokens = calls.spelled_tokens(tokenizer);
        }
        let samples = take_settings(keys, &mut base, self.encoder.tokenizer, self.grammars, &|| fields::expected(chat))
            .map_err(wrong)?;
        if echo == Some(true) && base.sampling.logprobs.is_some() {
            return Err(ApiError::invalid(
                "logprobs",
                "\"logprobs\" of a prompt, which \"echo\" asks for, are not supported",
            ));
        }
        let (answers, most) = (prompts.len().saturating_mul(samples), self.most);
        if answers > most {
            let of = if prompts.len() > most { key } else { "n" };
            let message = format!("{answers} answers at once are more than can be taken (expected {most} at most)");
            return Err(ApiError::invalid(of, message));
        }
        let shape = Shape { chat, model, samples, echo: Vec::new(), calls };
        let mut all = Asked { requests: Vec::with_capacity(answers), text: None, shape, stream };
        for prompt in prompts {
            let refused = |error: &dyn std::fmt::Display| ApiError::invalid(key, error.to_string());
            let (tokens, text) = self.encoder.encode_with_text(&prompt).map_err(|error| refused(&error))?;
            all.shape.echo.push(match (echo, &text, self.encoder.tokenizer) {
                (Some(true), Some(text), _) => text.clone(),
                (Some(true), None, Some(tokenizer)) => tokenizer.decode(&tokens),
                (Some(true), None, None) => {
                    return Err(ApiError::invalid(
                        "echo",
                        "\"echo\" of tokens needs a tokenizer, which the model lacks",
                    ));
                }
                _ => String::new(),
            });
            if all.requests.is_empty() {
                all.text = text;
            }
            all.requests.extend(seeded(Request { prompt: tokens, ..base.clone() }, samples));
        }
        Ok(all)
    }

    /// How a conversation's answers call its tools, where their template's way is known. Where none may be called, the
    /// template hears of none.
    fn calls(&self, chat: &mut Chat, choice: ToolChoice) -> Result<Option<Calls>, String> {
        let Some(tools) = &chat.tools else { return Ok(None) };
        let names = super::tools::names(tools)?;
        if choice == ToolChoice::Nothing || names.is_empty() {
            chat.tools = None;
            return Ok(None);
        }
        match &self.encoder.template {
            // Without a template the conversation is refused anyway.
            Err(_) => Ok(None),
            Ok(template) if template.for_tools_has("tools") => Ok(Calls::of(template, names)),
            Ok(_) => Err("\"tools\" are nothing to this model's chat template, which never mentions them".into()),
        }
    }
}

/// The request once for each of its answers, with a seed of its own.
pub fn seeded(request: Request, samples: usize) -> impl Iterator<Item = Request> {
    (0..samples as u64).map(move |sample| {
        let mut request = request.clone();
        request.sampling.seed = request.sampling.seed.map(|seed| seed.wrapping_add(sample));
        request
    })
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
        return Ok(stream.then(Stream::default));
    };
    if !stream {
        return Err("\"stream_options\" needs \"stream\": true".into());
    }
    let of_options = |error: String| format!("\"stream_options\": {error}");
    let mut option = |key: &str| Ok::<_, String>(options.take::<bool>(key).map_err(of_options)?.unwrap_or(false));
    let stream = Stream { usage: option("include_usage")?, drafts: option("include_drafts")? };
    options.finish("include_usage and include_drafts").map_err(of_options)?;
    Ok(Some(stream))
}
