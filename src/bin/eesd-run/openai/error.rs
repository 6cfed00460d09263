//! Errors in OpenAI's form: what a client is told, and which field is to blame.

use crate::failure::{one_line, shortened, with_causes};
use axum::http::StatusCode;
use eesd::engine::EngineError;
use serde_json::Value;

/// Why a request has no answer.
#[derive(Debug)]
pub struct ApiError {
    pub status: StatusCode,
    message: String,
    /// The field to blame.
    pub param: Option<String>,
    /// For programs.
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    /// A field that cannot be honoured.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::new(StatusCode::BAD_REQUEST, message) }
    }

    /// A body that cannot be honoured; the first of its `keys` that the message quotes is to blame.
    pub fn of_body(keys: &[String], message: &str) -> Self {
        let quoted = message.split('"').skip(1).step_by(2);
        let param = quoted.map(str::to_owned).find(|name| keys.contains(name));
        Self { param, ..Self::new(StatusCode::BAD_REQUEST, shortened(one_line(&message))) }
    }

    /// The same error of something at a place: what is wrong stands behind it, on one line.
    pub fn at(self, place: &str) -> Self {
        Self { message: format!("{place}: {}", shortened(one_line(&self.message))), ..self }
    }

    /// What to tell people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// A request that breaks a rule of HTTP or of this server.
    pub fn refused(status: StatusCode, message: impl Into<String>) -> Self {
        Self::new(status, message)
    }

    /// No key, or a wrong one.
    pub fn unauthorised() -> Self {
        let message = "this server needs a key: Authorization: Bearer KEY";
        Self { code: Some("invalid_api_key"), ..Self::new(StatusCode::UNAUTHORIZED, message) }
    }

    /// A model that is not here.
    pub fn no_model(asked: &str, here: &str) -> Self {
        let message = shortened(format!("the model {asked:?} is not here (expected {here:?})"));
        let error = Self::new(StatusCode::NOT_FOUND, message);
        Self { param: Some("model".into()), code: Some("model_not_found"), ..error }
    }

    /// The queue is full, with which there are so many places.
    pub fn overloaded(most: usize) -> Self {
        let message = format!("too many answers are under way or wait, of {most} that may: try again later");
        Self { code: Some("rate_limit_exceeded"), ..Self::new(StatusCode::TOO_MANY_REQUESTS, message) }
    }

    /// Not yet, or not any more.
    pub fn unavailable(why: &str) -> Self {
        Self { code: Some("unavailable"), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, why) }
    }

    /// The same error of the engine about a conversation, some of whose fields have other names.
    pub fn of_chat(mut self) -> Self {
        match self.param.as_deref() {
            Some("prompt") => self.param = Some("messages".into()),
            Some("logprobs") => self.param = Some("top_logprobs".into()),
            _ => {}
        }
        self
    }

    /// The form in which clients know errors.
    pub fn body(&self) -> Value {
        let kind = match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        serde_json::json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

/// What the engine does not do, by the field that asks for it.
impl From<EngineError> for ApiError {
    fn from(error: EngineError) -> Self {
        let message = with_causes(&error);
        let param = match &error {
            EngineError::Param(error) => error.name,
            EngineError::EmptyPrompt | EngineError::UnknownToken { .. } => "prompt",
            EngineError::NothingToGenerate | EngineError::CacheTooSmall { .. } => "max_tokens",
            EngineError::LeastBeyondMost { .. } => "min_tokens",
            EngineError::StopNeedsTokenizer | EngineError::EmptyStop => "stop",
            EngineError::PromptTooLong { .. } => {
                return Self { code: Some("context_length_exceeded"), ..Self::invalid("prompt", message) };
            }
            // It shows on the way, when other answers to the same request may be complete.
            EngineError::Constraint(_) => return Self::new(StatusCode::UNPROCESSABLE_ENTITY, message),
            _ => return Self::new(StatusCode::INTERNAL_SERVER_ERROR, message),
        };
        Self::invalid(param, message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_key_that_a_message_quotes_is_to_blame() {
        let keys = ["top_p", "stop", "tempratur"].map(str::to_owned);
        for (message, param) in [
            ("\"top_p\": invalid type: string \"stop\", expected a number", Some("top_p")),
            ("unknown key \"tempratur\" (expected \"top_p\")", Some("tempratur")),
            ("both \"prompt\" and \"stop\"", Some("stop")),
            ("expected value at column 1", None),
            ("top_p and stop", None),
            ("\"", None),
        ] {
            assert_eq!(ApiError::of_body(&keys, message).param.as_deref(), param, "{message}");
        }
    }
}
