//! How large a template's values may become, told while it is rendered.

use crate::load::limits;
use minijinja::value::{Kwargs, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, functions};

/// The filter that measures a value which is kept.
pub(super) const KEPT: &str = "kept";
/// The same for a value that is put into a namespace, which must hold no namespace: two could hold each other.
pub(super) const HELD: &str = "held";
/// The filter for what is multiplied.
pub(super) const FACTOR: &str = "factor";

/// Bytes of a text that is kept, for 1 of fuel: what costs no fuel, such as comparing it, can be done to it again and again.
const TEXT_PER_FUEL: u64 = 32;

/// Parts of a value that is kept, for 1 of fuel; and of the largest value, for 1 of all fuel.
const PARTS_PER_FUEL: u64 = 16;

/// Makes the filters known.
pub(super) fn add_filters(environment: &mut Environment<'_>) {
    environment.add_filter(KEPT, |state: &mut State, value: Value| keep(state, value, false));
    environment.add_filter(HELD, |state: &mut State, value: Value| keep(state, value, true));
    environment.add_filter(FACTOR, factor);
    environment.add_function("namespace", namespace);
}

/// A value as it was, unless it is one that makes its items anew each time it is looked at: then a list of them.
///
/// # Errors
/// If it is too large or nested too deeply, or the fuel is used up.
fn keep(state: &mut State<'_, '_>, value: Value, held: bool) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        state.consume_fuel(text.len() as u64 / TEXT_PER_FUEL)?;
        return Ok(value);
    }
    if !held && is_namespace(&value) {
        return Ok(value);
    }
    // Where there is no fuel to be used up, there is no limit to this either.
    let fuel = state.fuel_levels().map_or(u64::MAX, |(consumed, remaining)| consumed.saturating_add(remaining));
    let most = match state.get_extension::<HoldsNamespaces>() {
        Some(HoldsNamespaces) if held => limits::TEMPLATE_NAMESPACE_PARTS,
        _ => fuel / PARTS_PER_FUEL,
    };
    let mut measure = Measure { most, held, size: 0, visited: 0, namespaces: false };
    let kept = measure.keep(&value, 0)?;
    state.consume_fuel(measure.visited / PARTS_PER_FUEL)?;
    if measure.namespaces {
        state.get_or_insert_extension(HoldsNamespaces);
    }
    Ok(kept.unwrap_or(value))
}

/// In a rendering's state: some value holds a namespace. What is put into that one from now on is measured nowhere else.
struct HoldsNamespaces;

/// What a namespace counts, which may grow when it was measured already.
const NAMESPACE: u64 = 100;

struct Measure {
    most: u64,
    held: bool,
    /// Whether there are namespaces inside the value.
    namespaces: bool,
    /// A value counts 1, and so do 64 bytes of text.
    size: u64,
    visited: u64,
}

impl Measure {
    /// What the value is to be replaced by, if it is.
    fn keep(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        self.visited += 1;
        self.size += 1 + value.as_str().map_or(0, |text| text.len() as u64 / 64);
        if self.size > self.most {
            return Err(invalid(format!("a value of more than {} parts", self.most)));
        }
        if depth > limits::TEMPLATE_VALUE_DEPTH {
            return Err(invalid(format!("values more than {} inside each other", limits::TEMPLATE_VALUE_DEPTH)));
        }
        match value.kind() {
            ValueKind::Seq | ValueKind::Iterable => self.keep_items(value, depth),
            ValueKind::Map => {
                if is_namespace(value) {
                    if self.held {
                        return Err(invalid("a namespace inside a namespace".into()));
                    }
                    self.namespaces = true;
                    self.size += NAMESPACE;
                }
                let mut changed = false;
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    self.keep(&key, depth + 1)?;
                    let item = value.get_item(&key)?;
                    let kept = self.keep(&item, depth + 1)?;
                    changed |= kept.is_some();
                    entries.push((key, kept.unwrap_or(item)));
                }
                if changed { mapping(entries).map(Some) } else { Ok(None) }
            }
            _ => Ok(None),
        }
    }

    fn keep_items(&mut self, value: &Value, depth: usize) -> Result<Option<Value>, Error> {
        let mut changed = value.kind() == ValueKind::Iterable;
        let mut items = Vec::new();
        for item in value.try_iter()? {
            let kept = self.keep(&item, depth + 1)?;
            changed |= kept.is_some();
            items.push(kept.unwrap_or(item));
        }
        let list = |items| if value.is_tuple() { Value::from(Tuple::from(items)) } else { Value::from(items) };
        Ok(changed.then(|| list(items)))
    }
}

/// A mapping in the order of its entries.
fn mapping(entries: Vec<(Value, Value)>) -> Result<Value, Error> {
    let text = |key: Value| key.as_str().map(str::to_owned).ok_or_else(|| invalid("a key that is no text".into()));
    let entries = entries.into_iter().map(|(key, value)| Ok((text(key)?, value)));
    functions::dict(None, entries.collect::<Result<Kwargs, Error>>()?)
}

/// Any value but a list, which could be repeated a hundred million times in a few words.
fn factor(value: Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => Err(invalid("a list is not multiplied in a chat template".into())),
        _ => Ok(value),
    }
}

/// minijinja's own, whose values are measured.
fn namespace(state: &mut State<'_, '_>, defaults: Option<ValueOrKwargs>) -> Result<Value, Error> {
    let namespace = functions::namespace(defaults)?;
    let values = namespace.try_iter()?.map(|key| namespace.get_item(&key)).collect::<Result<Vec<_>, _>>()?;
    keep(state, values.into(), false)?;
    Ok(namespace)
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
