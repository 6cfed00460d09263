//! A page to talk to the model: `GET /`. It asks the same endpoints as everybody else, and holds nothing that needs a key.

use axum::Router;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::IntoResponse;
use axum::routing::get;

/// The page's files: where each is, of what kind, and what it holds.
const FILES: [(&str, &str, &str); 3] = [
    ("/", "text/html; charset=utf-8", include_str!("page/index.html")),
    ("/page.css", "text/css; charset=utf-8", include_str!("page/page.css")),
    ("/page.js", "text/javascript; charset=utf-8", include_str!("page/page.js")),
];

/// The page runs its own script and asks its own server; nobody else's, and nobody shows it inside another page.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 4] = [
    (header::CONTENT_SECURITY_POLICY, POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-cache"),
];

/// Adds the page's files to other routes.
pub fn add<S: Clone + Send + Sync + 'static>(routes: Router<S>) -> Router<S> {
    FILES.into_iter().fold(routes, |routes, (path, kind, text)| {
        routes.route(path, get(async move || answer(kind, text)).fallback(super::routes::otherwise))
    })
}

fn answer(kind: &'static str, text: &'static str) -> impl IntoResponse {
    let mut response = ([(header::CONTENT_TYPE, kind)], text).into_response();
    let headers = HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value)));
    response.headers_mut().extend(headers);
    response
}
