//! Answers in OpenAI's form, as a whole: what is the same in all of its chunks, and how all choices come together.

use super::engine::{Answers, Happening};
use super::error::ApiError;
use super::request::Asked;
use crate::openai::{self, Endpoint};
use eesd::engine::Completion;
use eesd::load::Tokenizer;
use eesd::model::Scheme;
use serde_json::{Value, json};
use std::sync::Arc;

/// What a request's answer says of itself.
pub struct Head {
    pub id: String,
    pub model: String,
    pub created: u64,
    pub quantised: Option<Scheme>,
    pub tokenizer: Arc<Tokenizer>,
}

impl Head {
    /// An answer, or a chunk of one.
    pub fn around(&self, chat: bool, chunk: bool, choices: Vec<Value>) -> Value {
        let (object, prefix) = Endpoint { chat, model: None }.object();
        let object = if chat && chunk { "chat.completion.chunk" } else { object };
        let mut body = json!({
            "id": format!("{prefix}-{}", self.id),
            "object": object,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        });
        if let Some(scheme) = self.quantised {
            body["quantized"] = scheme.to_string().into();
        }
        body
    }
}

/// Tokens of a request's prompts and answers.
#[derive(Debug, Default, Clone, Copy)]
pub struct Usage {
    prompt: usize,
    reused: usize,
    generated: usize,
}

impl Usage {
    /// Takes in an answer. Answers to one prompt count it once.
    pub fn add(&mut self, answer: usize, samples: usize, completion: &Completion) {
        if answer.is_multiple_of(samples) {
            self.prompt += completion.stats.prompt_tokens;
            self.reused += completion.stats.reused_tokens;
        }
        self.generated += completion.tokens.len();
    }

    /// As OpenAI's servers tell it.
    pub fn told(&self) -> Value {
        let mut usage = openai::usage(self.prompt, self.generated);
        usage["prompt_tokens_details"] = json!({"cached_tokens": self.reused});
        usage
    }
}

/// Waits for all answers.
///
/// # Errors
/// If one of them fails.
pub async fn whole(head: &Head, asked: &Asked, mut answers: Answers) -> Result<Value, ApiError> {
    let mut choices: Vec<Value> = vec![Value::Null; asked.answers];
    let mut usage = Usage::default();
    while let Some(happening) = answers.next().await {
        if let Happening::Done(answer, completion) = happening? {
            usage.add(answer, asked.samples, &completion);
            let before = asked.before(answer);
            choices[answer] = openai::choice(answer, &completion, asked.chat, before, Some(&head.tokenizer));
        }
    }
    let mut body = head.around(asked.chat, false, choices);
    body["usage"] = usage.told();
    Ok(body)
}
