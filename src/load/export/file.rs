//! The bytes of a GGUF file, version 3, before its tensors' data: metadata, then where each tensor lies.

/// What tensors' data are aligned to, as where a file does not say.
pub(super) const ALIGNMENT: u64 = 32;
const VERSION: u32 = 3;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub(in super::super) enum Value {
    Whole(u32),
    Number(f32),
    Truth(bool),
    Text(String),
    Texts(Vec<String>),
    Wholes(Vec<i32>),
    Numbers(Vec<f32>),
}

/// Keys and their values, in the order of the file.
pub(in super::super) type Values = Vec<(String, Value)>;

/// A tensor to come.
pub(super) struct Planned {
    pub name: String,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// Its type's number.
    pub kind: u32,
    pub bytes: u64,
}

/// Everything before the tensors' data, which follow in this order, each from a multiple of [`ALIGNMENT`] on.
pub(super) fn head(values: &Values, tensors: &[Planned]) -> Vec<u8> {
    let mut head = b"GGUF".to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((values.len() as u64).to_le_bytes());
    for (key, value) in values {
        text(&mut head, key);
        write(&mut head, value);
    }
    let mut offset = 0u64;
    for Planned { name, shape, kind, bytes } in tensors {
        text(&mut head, name);
        head.extend((shape.len() as u32).to_le_bytes());
        shape.iter().rev().for_each(|&size| head.extend((size as u64).to_le_bytes()));
        head.extend(kind.to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
    head
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The numbers of types.
const WHOLE: u32 = 4;
const SIGNED: u32 = 5;
const NUMBER: u32 = 6;
const TRUTH: u32 = 7;
const TEXT: u32 = 8;
const LIST: u32 = 9;

fn write(out: &mut Vec<u8>, value: &Value) {
    let list = |out: &mut Vec<u8>, of: u32, len: usize| {
        out.extend(LIST.to_le_bytes());
        out.extend(of.to_le_bytes());
        out.extend((len as u64).to_le_bytes());
    };
    match value {
        Value::Whole(number) => {
            out.extend(WHOLE.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Value::Number(number) => {
            out.extend(NUMBER.to_le_bytes());
            out.extend(number.to_le_bytes());
        }
        Value::Truth(truth) => {
            out.extend(TRUTH.to_le_bytes());
            out.push(u8::from(*truth));
        }
        Value::Text(content) => {
            out.extend(TEXT.to_le_bytes());
            text(out, content);
        }
        Value::Texts(texts) => {
            list(out, TEXT, texts.len());
            texts.iter().for_each(|content| text(out, content));
        }
        Value::Wholes(numbers) => {
            list(out, SIGNED, numbers.len());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
        Value::Numbers(numbers) => {
            list(out, NUMBER, numbers.len());
            numbers.iter().for_each(|number| out.extend(number.to_le_bytes()));
        }
    }
}
