//! What all handlers know.

use super::engine::EngineHandle;
use super::gate::{Gate, Pass};
use crate::openai::ApiError;
use crate::settings::Model;
use axum::http::StatusCode;
use eesd::engine::Request;
use eesd::load::Tokenizer;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A server, from its first moment.
pub struct App {
    pub gate: Gate,
    /// What there is once the model has been loaded.
    loaded: OnceLock<Loaded>,
}

/// A model that answers.
pub struct Loaded {
    pub model: Model,
    pub tokenizer: Arc<Tokenizer>,
    /// The model's name in requests and answers.
    pub name: String,
    /// What a request asks that says nothing but its prompt.
    pub base: Request,
    pub engine: EngineHandle,
    /// When it was loaded, in seconds of Unix time.
    pub since: u64,
    /// Answers that have had a name.
    pub named: AtomicU64,
}

impl Loaded {
    /// A name that no other answer has, of this run or an earlier one.
    pub fn next_id(&self) -> String {
        format!("{:x}-{:x}", self.since, self.named.fetch_add(1, Ordering::Relaxed))
    }
}

impl App {
    /// Where nothing has been loaded yet.
    pub fn new(gate: Gate) -> Self {
        Self { gate, loaded: OnceLock::new() }
    }

    /// Answers from now on.
    pub fn begin(&self, loaded: Loaded) {
        // It is called once.
        let _ = self.loaded.set(loaded);
    }

    /// What there is to answer with.
    ///
    /// # Errors
    /// If it is not there yet.
    pub fn loaded(&self) -> Result<&Loaded, ApiError> {
        self.loaded.get().ok_or_else(|| ApiError::unavailable("the model is being loaded"))
    }

    /// Lets a request in that is to be answered before the server ends.
    ///
    /// # Errors
    /// If the server is ending.
    pub fn pass(&self) -> Result<Pass, ApiError> {
        self.gate.pass().ok_or_else(|| ApiError::unavailable("the server is ending"))
    }

    /// Does work that would hold up the other connections.
    ///
    /// # Errors
    /// Its own, or if nothing is loaded.
    pub async fn aside<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Loaded) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let app = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || work(app.loaded()?)).await;
        done.unwrap_or_else(|_| {
            Err(ApiError::refused(StatusCode::INTERNAL_SERVER_ERROR, "the request could not be read"))
        })
    }
}
