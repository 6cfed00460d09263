//! `POST /v1/chat/completions` and `/v1/completions`.

use super::app::{App, Loaded};
use super::body;
use super::engine::{Answers, Happening};
use super::stream;
use crate::openai::{self, ApiError, Asked, BodyReader, Head, Shape};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use eesd::engine::Completion;
use eesd::load::Keys;
use serde_json::Value;
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
    let Asked { requests, shape, stream, .. } = app.aside(move |loaded| read(&body, chat, loaded)).await?;
    let loaded = app.loaded()?;
    let head = Head {
        id: loaded.next_id(),
        model: loaded.name.clone(),
        created: openai::now(),
        quantised: loaded.model.scheme,
        tokenizer: Some(Arc::clone(&loaded.tokenizer)),
    };
    let count = requests.len();
    let answers = loaded.engine.submit(requests, stream.is_some(), pass)?;
    let answered = match stream {
        Some(options) => stream::respond(head, shape, options, answers, SILENCE).await,
        None => whole(&head, &shape, count, answers).await.map(|answer| body::json(StatusCode::OK, &answer)),
    };
    // The engine knows fields by their names in completions.
    answered.map_err(|error| if chat { error.of_chat() } else { error })
}

fn read(body: &[u8], chat: bool, loaded: &Loaded) -> Result<Asked, ApiError> {
    let reader = BodyReader {
        encoder: &loaded.model.encoder(),
        grammars: &loaded.model.grammars,
        base: &loaded.base,
        model: Some(&loaded.name),
        most: loaded.engine.most(),
        streams: true,
    };
    reader.read(Keys::parse(body), chat)
}

/// Waits for all answers.
async fn whole(head: &Head, shape: &Shape, count: usize, mut answers: Answers) -> Result<Value, ApiError> {
    let mut completions: Vec<Option<Box<Completion>>> = vec![None; count];
    while let Some(happening) = answers.next().await {
        if let Happening::Done(answer, completion) = happening? {
            completions[answer] = Some(completion);
        }
    }
    Ok(openai::whole(head, shape, completions.iter().flatten().map(Box::as_ref)))
}
