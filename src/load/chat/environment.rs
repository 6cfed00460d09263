//! The Jinja environment that Hugging Face transformers gives to chat templates.

use super::{clock, json, python};
use minijinja::{Environment, Error, ErrorKind, Value};

/// What a template may spend: an instruction costs 1, and so do 64 bytes of any text it makes. A conversation of a
/// thousand messages takes a hundredth of it.
const FUEL: u64 = 3_000_000;

/// An environment without templates.
pub(super) fn new() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = environment.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("Jinja's own delimiters are distinct"));
    environment.set_fuel(Some(FUEL));
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| clock::now(format));
    environment.add_filter("tojson", json::to_json);
    python::imitate(&mut environment);
    environment
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}
