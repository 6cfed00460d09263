//! `POST /tokenize` and `/detokenize`: the model's tokens of a text, and their text, as llama.cpp's server has them.

use super::app::{App, Loaded};
use super::body;
use crate::openai::ApiError;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use eesd::TokenId;
use eesd::load::Keys;
use serde_json::{Value, json};
use std::sync::Arc;

/// `{"content": TEXT, "add_special": false}` becomes `{"tokens": [ID, …]}`.
pub async fn tokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    answer(app, request, "content and add_special", |keys, loaded| {
        let text = keys.take::<String>("content")?.ok_or("\"content\" is missing (expected a text)")?;
        let begin = keys.take::<bool>("add_special")?.unwrap_or(false);
        let tokens = loaded.tokenizer.encode(&text, begin).map_err(|error| format!("\"content\": {error}"))?;
        Ok(json!({"tokens": tokens}))
    })
    .await
}

/// `{"tokens": [ID, …]}` becomes `{"content": TEXT}`, in which special tokens are not spelled.
pub async fn detokenize(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    answer(app, request, "tokens", |keys, loaded| {
        let tokens = keys.take::<Vec<TokenId>>("tokens")?.ok_or("\"tokens\" is missing (expected a list of tokens)")?;
        let vocab = loaded.model.checkpoint.geometry().vocab_size;
        if let Some(token) = tokens.iter().find(|&&token| token as usize >= vocab) {
            return Err(format!("\"tokens\": {token} is not in the vocabulary of {vocab}"));
        }
        Ok(json!({"content": loaded.tokenizer.decode(&tokens)}))
    })
    .await
}

/// Reads a body of which nothing is left, in the words of what it may have.
async fn answer(
    app: Arc<App>,
    request: Request,
    expected: &'static str,
    read: impl FnOnce(&mut Keys, &Loaded) -> Result<Value, String> + Send + 'static,
) -> Result<Response, ApiError> {
    app.loaded()?;
    let body = body::read(request).await?;
    let told = app.aside(move |loaded| {
        let mut keys = Keys::parse(&body);
        let names: Vec<String> = keys.rest().map(str::to_owned).collect();
        let whole = keys.whole();
        let told = whole.and_then(|()| read(&mut keys, loaded)).and_then(|told| keys.finish(expected).map(|()| told));
        told.map_err(|message| ApiError::of_body(&names, &message))
    });
    Ok(body::json(StatusCode::OK, &told.await?))
}
