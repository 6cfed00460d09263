//! Who asked for answers, and in which form they are given.

use crate::openai::Shape;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

/// One request of the input.
#[derive(Debug)]
pub struct Job {
    /// The line's own `id` (OpenAI's `custom_id`), spelled as it is there.
    pub id: Option<Box<RawValue>>,
    /// Its number among the input's requests, from 0.
    pub index: usize,
    /// Answers that it asks for.
    pub samples: usize,
    /// How they are written.
    pub form: Form,
}

/// How the answers to a request are written.
#[derive(Debug, Clone)]
pub enum Form {
    /// A line for each, as soon as it is finished.
    Lines,
    /// One line for all of them together, as in OpenAI's batches.
    OpenAi(Box<Shape>),
}

impl Job {
    /// One answer to the prompt of the command line.
    pub fn sole(index: usize) -> Self {
        Self { id: None, index, samples: 1, form: Form::Lines }
    }

    /// A line of an object's keys, known by the request's own id.
    pub fn row(&self, keys: Value) -> Row<'_> {
        let keys = match keys {
            Value::Object(keys) => keys,
            _ => Map::new(),
        };
        let name = if matches!(self.form, Form::Lines) { "id" } else { "custom_id" };
        Row { id: self.id.as_deref().map(|id| (name, id)), keys }
    }
}

/// One line of the output: what tells it from others, and the rest.
#[derive(Debug)]
pub struct Row<'a> {
    /// Spelled as in the input.
    pub id: Option<(&'static str, &'a RawValue)>,
    /// What follows, in this order.
    pub keys: Map<String, Value>,
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some((key, id)) = self.id {
            map.serialize_entry(key, id)?;
        }
        for (key, value) in &self.keys {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}
