//! `GET /health`: whether requests are taken now.

use super::app::App;
use super::body::json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use std::sync::Arc;

/// 200 where they are, 503 before the model is loaded and once the server is ending.
pub async fn health(State(app): State<Arc<App>>) -> Response {
    let (status, word) = match app.loaded() {
        _ if app.gate.is_closed() => (StatusCode::SERVICE_UNAVAILABLE, "ending"),
        Ok(_) => (StatusCode::OK, "ok"),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "loading"),
    };
    json(status, &serde_json::json!({"status": word}))
}
