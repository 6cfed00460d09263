//! By which names a server is asked that asks nobody for a key.
//!
//! A page of another site may let its own name lead to this machine (DNS rebinding). To a browser this server then is that
//! site's own, and answers to it are the page's to read. But the name stands in `Host`, so who is there for programs of this
//! machine alone answers to names of this machine alone.

use super::auth::ApiKeys;
use crate::openai::ApiError;
use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use std::net::IpAddr;

/// Names that are answered to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Any: a key is asked for, or others are meant to ask.
    Any,
    /// `localhost` and loopback addresses.
    Local,
}

impl Names {
    /// Those of a server that listens at this address.
    pub fn new(address: IpAddr, keys: &ApiKeys) -> Self {
        if address.is_loopback() && keys.is_empty() { Self::Local } else { Self::Any }
    }

    /// Whether a request with these headers is answered. One without a name, which no browser sends, is.
    fn have(self, headers: &HeaderMap) -> bool {
        self == Self::Any || headers.get_all(header::HOST).iter().all(is_local)
    }
}

fn is_local(host: &HeaderValue) -> bool {
    let Ok(authority) = Authority::try_from(host.as_bytes()) else { return false };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Lets requests through that ask by one of these names.
pub async fn guard(State(names): State<Names>, request: Request, next: Next) -> Result<Response, ApiError> {
    if !names.have(request.headers()) {
        let what = "Host is not a name of this machine (expected localhost or 127.0.0.1; a server with --api-key answers to any)";
        return Err(ApiError::refused(StatusCode::FORBIDDEN, what));
    }
    Ok(next.run(request).await)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_by(hosts: &[&str]) -> HeaderMap {
        hosts.iter().map(|host| (header::HOST, HeaderValue::from_str(host).unwrap())).collect()
    }

    #[test]
    fn names_of_this_machine_are_answered_to_and_others_are_not() {
        for local in ["localhost", "LocalHost:8080", "127.0.0.1", "127.0.0.1:80", "127.3.2.1", "[::1]", "[::1]:8080"] {
            assert!(Names::Local.have(&asked_by(&[local])), "{local}");
        }
        let others = [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "10.0.0.1:8080",
            "",
            "a b",
            "127.0.0.1.nip.io",
        ];
        for other in others {
            assert!(!Names::Local.have(&asked_by(&[other])), "{other:?}");
            assert!(!Names::Local.have(&asked_by(&["localhost", other])), "{other:?}");
            assert!(Names::Any.have(&asked_by(&[other])), "{other:?}");
        }
        assert!(Names::Local.have(&HeaderMap::new()));
    }

    #[test]
    fn who_asks_for_keys_or_listens_to_others_has_any_name() {
        let (none, some) = (ApiKeys::default(), ApiKeys::new(&["key".into()], None).unwrap());
        let [here, everywhere] = ["127.0.0.1", "0.0.0.0"].map(|address| address.parse().unwrap());
        assert_eq!(Names::new(here, &none), Names::Local);
        assert_eq!([Names::new(here, &some), Names::new(everywhere, &none)], [Names::Any; 2]);
    }
}
