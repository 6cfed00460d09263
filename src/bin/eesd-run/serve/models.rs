//! `GET /v1/models`: the one that there is.

use super::app::{App, Loaded};
use super::body;
use crate::openai::ApiError;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use std::sync::Arc;

/// All of them.
pub async fn list(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    Ok(body::json(StatusCode::OK, &json!({"object": "list", "data": [told(app.loaded()?)]})))
}

/// One by its name.
pub async fn one(State(app): State<Arc<App>>, name: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    let Path(name) = name.map_err(|error| ApiError::invalid("model", error.body_text()))?;
    let loaded = app.loaded()?;
    if name != loaded.name {
        return Err(ApiError::no_model(&name, &loaded.name));
    }
    Ok(body::json(StatusCode::OK, &told(loaded)))
}

fn told(loaded: &Loaded) -> Value {
    json!({"id": loaded.name, "object": "model", "created": loaded.since, "owned_by": "eesd"})
}
