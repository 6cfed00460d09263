//! OpenAI's forms of requests, answers and errors: what the server and the lines of batches have in common.
//!
//! The body of a request is read in one place: `fields` takes what only OpenAI's bodies have, `request` makes requests of the
//! rest. What comes of them is put into a form by `answer`, and what does not by `error`. Calls of tools are found in an
//! answer's text by `tools`.

mod answer;
mod error;
mod fields;
mod request;
pub mod tools;

pub use answer::{Head, Usage, finish_reason, logprobs, now, whole};
pub use error::ApiError;
pub use request::{Asked, BodyReader, Shape, Stream, seeded};
