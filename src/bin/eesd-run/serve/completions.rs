//! `POST /v1/chat/completions` and `/v1/completions`.

use super::answer::{Head, whole};
use super::app::App;
use super::body;
use super::error::ApiError;
use super::request::Asked;
use super::stream;
use crate::openai;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use std::sync::Arc;
use std::time::Duration;

/// Silence after which a stream says that it is alive.
const SILENCE: Duration = Duration::from_secs(10);

/// Continues a conversation.
pub async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    answer(app, request, true).await
}

/// Continues a text.
pub async fn text(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    answer(app, request, false).await
}

async fn answer(app: Arc<App>, request: Request, chat: bool) -> Result<Response, ApiError> {
    let pass = app.pass()?;
    app.loaded()?;
    let body = body::read(request).await?;
    // Templates and tokenizers may take their time with long texts.
    let mut asked = app.aside(move |loaded| Asked::read(&body, chat, loaded)).await?;
    let loaded = app.loaded()?;
    let head = Head {
        id: loaded.next_id(),
        model: loaded.name.clone(),
        created: openai::now(),
        quantised: loaded.model.scheme,
        tokenizer: Arc::clone(&loaded.tokenizer),
    };
    let requests = std::mem::take(&mut asked.requests);
    let answers = loaded.engine.submit(requests, asked.stream.is_some(), pass)?;
    let answered = match asked.stream {
        Some(options) => stream::respond(head, asked, options, answers, SILENCE).await,
        None => whole(&head, &asked, answers).await.map(|answer| body::json(StatusCode::OK, &answer)),
    };
    // The engine knows fields by their names in completions.
    answered.map_err(|error| if chat { error.of_chat() } else { error })
}
