//! Keys: who is answered where not everybody is.

use crate::failure::{Failure, Outcome};
use crate::openai::ApiError;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::Response;
use std::path::Path;
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// The keys that open; without any, no key is asked for.
#[derive(Debug, Default)]
pub struct ApiKeys(Vec<String>);

impl ApiKeys {
    /// The keys of the flags and of a file.
    ///
    /// # Errors
    /// If the file cannot be read or has no key, or one is empty or cannot stand in a header.
    pub fn new(keys: &[String], file: Option<&Path>) -> Outcome<Self> {
        let mut all = keys.to_vec();
        if let Some(key) = keys.iter().find(|key| !can_be_sent(key)) {
            let found = if key.is_empty() { "an empty one" } else { "one with spaces or beyond ASCII" };
            return Err(Failure::usage(format!("--api-key: {found} (expected visible ASCII characters)")));
        }
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).map_err(|error| Failure::file(path, "read", &error))?;
            let lines = (1..).zip(text.lines().map(str::trim)).filter(|(_, line)| !line.is_empty());
            let before = all.len();
            for (number, key) in lines {
                if !can_be_sent(key) {
                    let expected = "expected visible ASCII characters";
                    return Err(Failure::failed(format!("{}:{number}: no key ({expected})", path.display())));
                }
                all.push(key.to_owned());
            }
            if all.len() == before {
                return Err(Failure::failed(format!("{}: no key (expected one a line)", path.display())));
            }
        }
        Ok(Self(all))
    }

    /// Nobody needs a key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a request with these headers is answered. How long it takes to say so does not tell how much of a key was
    /// right, nor of which.
    fn open_to(&self, headers: &HeaderMap) -> bool {
        if self.is_empty() {
            return true;
        }
        let Some(sent) = headers.get(header::AUTHORIZATION).and_then(|value| bearer(value.as_bytes())) else {
            return false;
        };
        self.0.iter().fold(false, |open, key| open | bool::from(key.as_bytes().ct_eq(sent)))
    }
}

/// What follows the scheme, whose name may be written in any case.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| key.trim_ascii())
}

fn can_be_sent(key: &str) -> bool {
    !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Lets requests through that have a key.
pub async fn guard(State(keys): State<Arc<ApiKeys>>, request: Request, next: Next) -> Result<Response, ApiError> {
    if !keys.open_to(request.headers()) {
        return Err(ApiError::unauthorised());
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_key_opens_and_nothing_like_it_does() {
        let keys = ApiKeys(vec!["first".into(), "second".into()]);
        let open = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, HeaderValue::from_str(value).unwrap());
            keys.open_to(&headers)
        };
        for right in ["Bearer first", "bearer second", "BEARER  first "] {
            assert!(open(right), "{right}");
        }
        let wrong = ["Bearer", "Bearer ", "Bearer fir", "Bearer firsts", "Bearer First", "Basic first", "first", ""];
        for value in wrong {
            assert!(!open(value), "{value:?}");
        }
        assert!(!keys.open_to(&HeaderMap::new()));
        assert!(ApiKeys::default().open_to(&HeaderMap::new()), "nobody needs a key where there is none");
    }

    #[test]
    fn files_have_a_key_a_line() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("keys");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            ApiKeys::new(&["flag".into()], Some(&path))
                .map(|keys| keys.0)
                .map_err(|failure| failure.message().to_owned())
        };
        assert_eq!(read("a\r\n\n  b\n"), Ok(vec!["flag".to_owned(), "a".into(), "b".into()]));
        assert!(read("\n \n").is_err_and(|error| error.ends_with("no key (expected one a line)")));
        assert!(read("a\nb c\n").is_err_and(|error| error.contains(":2: no key")));
        for key in ["", "a b", "é"] {
            assert!(ApiKeys::new(&[key.into()], None).is_err(), "{key:?}");
        }
        assert!(ApiKeys::new(&[], Some(&dir.path().join("missing"))).is_err());
    }
}
