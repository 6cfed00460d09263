//! The Jinja environment that Hugging Face transformers gives to chat templates.

use super::{clock, json, python, values};
use minijinja::{Environment, Error, ErrorKind, Value};

/// An environment without templates, and without fuel: that is a matter of each conversation.
pub(super) fn new() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = environment.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("Jinja's own delimiters are distinct"));
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", |format: &str| clock::now(format));
    environment.add_filter("tojson", json::to_json);
    python::imitate(&mut environment);
    values::add_filters(&mut environment);
    environment
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.to_owned()))
}
