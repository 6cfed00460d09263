//! What is answered where.

use super::app::App;
use super::auth::{self, ApiKeys};
use super::names::{self, Names};
use super::{completions, health, models, page, tokens};
use crate::monitor::{Seen, metrics_page};
use crate::openai::ApiError;
use axum::Router;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use std::sync::Arc;

/// All endpoints. Whoever asks for anything but the page and the server's health needs a key, where there are keys, and everybody
/// asks by one of the server's names.
pub fn routes(app: Arc<App>, names: Names, keys: ApiKeys, metrics: Seen) -> Router {
    let routes = Router::new()
        .route("/v1/chat/completions", post(completions::chat))
        .route("/v1/completions", post(completions::text))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::one))
        .route("/tokenize", post(tokens::tokenize))
        .route("/detokenize", post(tokens::detokenize))
        .route("/metrics", get(metrics_page).with_state(metrics))
        .fallback(nowhere)
        .method_not_allowed_fallback(otherwise)
        .layer(from_fn_with_state(Arc::new(keys), auth::guard))
        .route("/health", get(health::health).fallback(otherwise));
    page::add(routes).layer(from_fn_with_state(names, names::guard)).with_state(app)
}

async fn nowhere(uri: Uri) -> ApiError {
    ApiError::refused(StatusCode::NOT_FOUND, format!("nothing is at {}", uri.path()))
}

/// The answer to a method that a path does not have.
pub async fn otherwise(method: Method, uri: Uri) -> ApiError {
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not answer {method}", uri.path()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::Listening;
    use crate::monitor::Listeners;
    use crate::serve::LIMITS;
    use crate::serve::gate::Gate;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    #[test]
    fn whoever_comes_before_the_model_is_told_so() {
        let (gate, _inside) = Gate::open();
        let app = Arc::new(App::new(gate));
        let (_listeners, metrics) = Listeners::page_elsewhere();
        let listening = Listening::at("--port", "127.0.0.1:0").unwrap();
        let address = listening.address();
        let _server =
            listening.serve(routes(Arc::clone(&app), Names::Any, ApiKeys::default(), metrics), LIMITS).unwrap();
        let ask = |request: &str| {
            let mut connection = TcpStream::connect(address).unwrap();
            connection.write_all(format!("{request} HTTP/1.0\r\nHost: a\r\n\r\n").as_bytes()).unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).unwrap();
            answer
        };
        let health = ask("GET /health");
        assert!(health.starts_with("HTTP/1.0 503 ") && health.ends_with("{\"status\":\"loading\"}"), "{health}");
        for request in [
            "POST /v1/completions",
            "POST /v1/chat/completions",
            "GET /v1/models",
            "POST /tokenize",
            "POST /detokenize",
        ] {
            let answer = ask(request);
            assert!(answer.starts_with("HTTP/1.0 503 ") && answer.contains("\r\nretry-after: 1\r\n"), "{answer}");
            assert!(answer.contains("the model is being loaded"), "{request}: {answer}");
        }
        app.gate.close();
        assert!(ask("GET /health").ends_with("{\"status\":\"ending\"}"));
        assert!(ask("POST /v1/completions").contains("the server is ending"));
    }
}
