//! JSON in and out, within limits of size and time.

use crate::openai::ApiError;
use axum::body::{Bytes, HttpBody, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use std::time::Duration;
use tokio::time::timeout;

/// Most bytes of a body.
const BYTES: usize = 16 << 20;
/// Time for a body to come in, after its headers.
const TIME: Duration = Duration::from_secs(60);

/// The body of a request, as it is.
///
/// # Errors
/// If it is no JSON by its headers, too long, or does not come.
pub async fn read(request: Request) -> Result<Bytes, ApiError> {
    let refused = |status, message: String| Err(ApiError::refused(status, message));
    let (head, body) = request.into_parts();
    let is_json =
        |kind: &str| kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    match text(&head.headers, header::CONTENT_TYPE) {
        Some(kind) if is_json(kind) => {}
        // What forms and scripts of other sites can send without asking is no JSON by its name.
        found => {
            let found = found.map_or("no Content-Type".into(), |kind| format!("the Content-Type {kind:?}"));
            let message = format!("{found} (expected application/json)");
            return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, message);
        }
    }
    if let Some(coding) = text(&head.headers, header::CONTENT_ENCODING).filter(|coding| *coding != "identity") {
        let message = format!("the Content-Encoding {coding:?} is not supported (expected none)");
        return refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, message);
    }
    let too_long = || format!("the body has more than {BYTES} bytes, or was cut off");
    if body.size_hint().lower() > BYTES as u64 {
        return refused(StatusCode::PAYLOAD_TOO_LARGE, too_long());
    }
    match timeout(TIME, to_bytes(body, BYTES)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) => refused(StatusCode::PAYLOAD_TOO_LARGE, too_long()),
        Err(_) => refused(StatusCode::REQUEST_TIMEOUT, format!("the body did not come within {} s", TIME.as_secs())),
    }
}

/// A header's value; what is no text is not one that anybody expects.
fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).map(|value| value.to_str().unwrap_or("?"))
}

/// An answer in JSON.
pub fn json(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}
