//! Files of JSON lines, as people write them: a byte order mark, empty lines, any spelling of a number. Each line is taken
//! apart key by key, so that an error names the key, and what a wrong line is known by is known all the same.

use super::encoding::without_mark;
use super::error::short;
use super::limits;
use serde::Serialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::io::{self, BufRead, Read};

/// The lines of a file that are not empty.
pub struct JsonLines<R> {
    reader: R,
    /// Lines read, empty ones among them.
    number: usize,
    line: Vec<u8>,
}

impl<R: BufRead> JsonLines<R> {
    /// Reads from the beginning of a file.
    pub fn new(reader: R) -> Self {
        Self { reader, number: 0, line: Vec::new() }
    }

    /// The next line, without the white space at its end, and its number, from 1; `None` at the end.
    ///
    /// # Errors
    /// If it cannot be read, is longer than any prompt, or the file is UTF-16. There is no use in reading on.
    pub fn next_line(&mut self) -> io::Result<Option<(usize, &[u8])>> {
        loop {
            self.line.clear();
            // One more, to see whether the line goes on.
            let most = limits::LINE_BYTES as u64 + 1;
            if self.reader.by_ref().take(most).read_until(b'\n', &mut self.line)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if self.line.len() > limits::LINE_BYTES {
                let message = format!("line {} has more than {} bytes", self.number, limits::LINE_BYTES);
                return Err(io::Error::new(io::ErrorKind::InvalidData, message));
            }
            if self.number == 1 {
                let mark = self.line.len() - without_mark(&self.line)?.len();
                self.line.drain(..mark);
            }
            let line = self.line.trim_ascii_end();
            if !line.is_empty() {
                self.line.truncate(line.len());
                return Ok(Some((self.number, &self.line)));
            }
        }
    }

    /// The number of the line that was read last, from 1.
    pub fn number(&self) -> usize {
        self.number
    }
}

/// The keys of one line, each with its value as it was written.
#[derive(Debug, Default)]
pub struct Keys {
    values: Vec<(String, Box<RawValue>)>,
    /// What is wrong with the line as a whole.
    broken: Option<String>,
}

impl Keys {
    /// Takes a line apart. Where it is no object, or damaged, the keys before the damage are known, and
    /// [`finish`](Self::finish) tells of it.
    pub fn parse(line: &[u8]) -> Self {
        match std::str::from_utf8(line) {
            Ok(text) => Self::of_text(text),
            Err(error) => {
                let at = error.valid_up_to();
                let broken = format!("not UTF-8: byte {} is 0x{:02x}", at + 1, line[at]);
                // What the rest says is worth knowing: an id, first of all, unless it is what the damage has changed.
                let mut values = Self::of_text(&String::from_utf8_lossy(line)).values;
                values.retain(|(_, value)| !value.get().contains(char::REPLACEMENT_CHARACTER));
                Self { values, broken: Some(broken) }
            }
        }
    }

    fn of_text(text: &str) -> Self {
        let mut keys = Self::default();
        let mut parser = serde_json::Deserializer::from_str(text);
        let parsed = parser.deserialize_map(Collect { keys: &mut keys, text }).and_then(|()| parser.end());
        keys.broken = keys.broken.or(parsed.err().map(|error| json_error(&error)));
        keys
    }

    /// The value of a key as it is written, digit for digit; `None` where it is absent or null.
    pub fn raw(&self, key: &str) -> Option<&RawValue> {
        let (_, value) = self.values.iter().find(|(name, _)| name == key)?;
        (value.get() != "null").then_some(value)
    }

    /// Takes a key out; `None` where it is absent or null.
    ///
    /// # Errors
    /// If its value is no `T`, in words for users, with the key.
    pub fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        let Some(place) = self.values.iter().position(|(name, _)| name == key) else { return Ok(None) };
        let (_, value) = self.values.remove(place);
        value_of(&value).map_err(|error| format!("\"{key}\": {error}"))
    }

    /// Takes a key's object out, to be read key by key as well; `None` where it is absent or null.
    ///
    /// # Errors
    /// If it is no object, or has a key twice.
    pub fn take_object(&mut self, key: &str) -> Result<Option<Self>, String> {
        let Some(value) = self.take::<Box<RawValue>>(key)? else { return Ok(None) };
        let keys = Self::parse(value.get().as_bytes());
        keys.whole().map_err(|error| format!("\"{key}\": {error}"))?;
        Ok(Some(keys))
    }

    /// Drops a key whose value is of no use.
    pub fn forget(&mut self, key: &str) {
        self.values.retain(|(name, _)| name != key);
    }

    /// Adds a key, as if the line had it.
    ///
    /// # Errors
    /// If it has it already, and not as null.
    pub fn put(&mut self, key: &str, value: &impl Serialize) -> Result<(), String> {
        if self.raw(key).is_some() {
            return Err(format!("the key {key:?} twice"));
        }
        self.forget(key);
        let value = serde_json::value::to_raw_value(value).map_err(|error| error.to_string())?;
        self.values.push((key.to_owned(), value));
        Ok(())
    }

    /// The line has been read: nothing is left of it.
    ///
    /// # Errors
    /// If the line is no JSON object, has a key twice, or has one that nobody took: then `expected` says what a line may
    /// hold.
    pub fn finish(self, expected: &str) -> Result<(), String> {
        match (self.broken, self.values.first()) {
            (Some(error), _) => Err(error),
            (None, Some((key, _))) => Err(format!("unknown key {key:?} (expected {expected})")),
            (None, None) => Ok(()),
        }
    }

    /// Tells what is wrong with the line as a whole.
    ///
    /// # Errors
    /// If it is no JSON object, or has a key twice.
    pub fn whole(&self) -> Result<(), String> {
        self.broken.clone().map_or(Ok(()), Err)
    }

    /// The keys that nobody has taken.
    pub fn rest(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(|(key, _)| key.as_str())
    }
}

/// Fills [`Keys`] as far as a line can be read.
struct Collect<'k, 'de> {
    keys: &'k mut Keys,
    text: &'de str,
}

impl Collect<'_, '_> {
    /// Whether a value has not been cut short by damage. Those in quotes and brackets have an end of their own; a number
    /// (or a word) may have lost its own, where nothing that separates values follows.
    fn is_whole(&self, value: &str) -> bool {
        let end = value.as_ptr() as usize - self.text.as_ptr() as usize + value.len();
        let rest = &self.text[end..];
        value.starts_with(['"', '{', '[']) || rest.starts_with([',', '}', ' ', '\t', '\r']) && !rest.trim().is_empty()
    }
}

impl<'de> Visitor<'de> for Collect<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value::<&RawValue>()?;
            if self.keys.values.iter().any(|(name, _)| *name == key) {
                self.keys.broken.get_or_insert(format!("the key {key:?} twice"));
            } else if self.is_whole(value.get()) {
                self.keys.values.push((key, value.to_owned()));
            }
        }
        Ok(())
    }
}

/// A value of its type, or what is wrong with it in words for users, without Rust's names of numbers.
fn value_of<T: DeserializeOwned>(value: &RawValue) -> Result<Option<T>, String> {
    let error = match serde_json::from_str::<Option<T>>(value.get()) {
        Ok(value) => return Ok(value),
        Err(error) => error.to_string(),
    };
    let place = error.rfind(" at line ").unwrap_or(error.len());
    let mut message = error[..place].to_owned();
    // Of several forms that a value may have, none fits: what it is, nobody has said yet.
    if message.starts_with("expected ") {
        message = format!("{} ({message})", short(value.get()));
    }
    for (rust, plain) in [
        ("usize", "whole number, 0 or more"),
        ("u64", "whole number from 0 to 18446744073709551615"),
        ("u32", "whole number from 0 to 4294967295"),
        ("f64", "number"),
        ("f32", "number"),
    ] {
        message = message.replace(&format!("expected {rust}"), &format!("expected a {plain}"));
    }
    Err(message)
}

/// What a JSON parser says about one line of a file, without its own count of lines, which is always 1.
pub fn json_error(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column ", " at column ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(file: &[u8]) -> Vec<(usize, Vec<u8>)> {
        let mut lines = JsonLines::new(file);
        let mut read = Vec::new();
        while let Some((number, line)) = lines.next_line().unwrap() {
            read.push((number, line.to_vec()));
        }
        read
    }

    #[test]
    fn marks_and_empty_lines_are_passed_over_and_counted() {
        assert_eq!(lines(b"\xef\xbb\xbf{}\r\n \t\n\n[]"), [(1, b"{}".to_vec()), (4, b"[]".to_vec())]);
        assert_eq!(lines(b"\xef\xbb\xbf\n1\n"), [(2, b"1".to_vec())]);
        assert_eq!(lines(b""), []);
    }

    #[test]
    fn utf16_is_named_and_not_read() {
        for file in [&b"\xff\xfe{\0}\0\n\0"[..], b"{\0}\0\n\0", b"\0{\0}\0\n"] {
            let error = JsonLines::new(file).next_line().unwrap_err();
            assert!(error.to_string().contains("UTF-16"), "{error}");
        }
    }

    #[test]
    fn values_keep_their_spelling() {
        for spelling in ["123456789012345678901234567890", "1e2", "\"\\ud83d\"", "1e999", "{ \"a\" : [1] }", "-0.0"] {
            let keys = Keys::parse(format!("{{\"x\": 1, \"id\": {spelling}}}").as_bytes());
            assert_eq!(keys.raw("id").map(RawValue::get), Some(spelling));
            assert_eq!(keys.whole(), Ok(()), "{spelling}");
        }
        assert!(Keys::parse(br#"{"id": null}"#).raw("id").is_none());
    }

    #[test]
    fn a_broken_line_is_known_by_what_comes_before_the_damage() {
        for line in [
            &br#"{"id": 7, "prompt": "a"#[..],
            br#"{"id": 7, "prompt": tru}"#,
            br#"{"id": 7} x"#,
            br#"{"id": 7 "prompt": "a"}"#,
            b"{\"prompt\": \"\xff\", \"id\": 7}",
            br#"{"id": 7, "a": 1, "a": 2}"#,
        ] {
            let keys = Keys::parse(line);
            assert_eq!(keys.raw("id").map(RawValue::get), Some("7"), "{}", String::from_utf8_lossy(line));
            assert!(keys.whole().is_err());
        }
        // Of a number that the damage has cut, nobody knows the rest, nor what a byte of a text was.
        for line in [
            &b"{\"id\": 7"[..],
            b"{\"id\": 7\r\n",
            b"{\"id\": 7x, \"a\": 1}",
            b"{\"id\": 7\xb1, \"a\": 1}",
            b"{\"id\": \"\xe9\"}",
        ] {
            let keys = Keys::parse(line);
            assert!(keys.raw("id").is_none() && keys.whole().is_err(), "{}", String::from_utf8_lossy(line));
        }
        for line in [&b"[1]"[..], b"7", b"\"a\"", b"x", b"null"] {
            assert!(Keys::parse(line).finish("anything").is_err());
        }
    }

    #[test]
    fn errors_name_the_key_in_plain_words() {
        let mut keys = Keys::parse(br#"{"n": "x", "m": -1, "t": 1e999, "text": "\ud83d", "z": 1}"#);
        let n = keys.take::<f64>("n").unwrap_err();
        assert_eq!(n, "\"n\": invalid type: string \"x\", expected a number");
        assert!(keys.take::<usize>("m").unwrap_err().contains("expected a whole number, 0 or more"));
        assert!(keys.take::<f64>("t").unwrap_err().starts_with("\"t\": number out of range"));
        assert!(keys.take::<String>("text").unwrap_err().starts_with("\"text\": "));
        assert_eq!(keys.take::<String>("absent"), Ok(None));
        // A value that looks like the key does not stand for it, and a number too large is not told to be whole.
        let mut keys = Keys::parse(br#"{"stop": "\"stop\"", "ids": [4294967296], "z": 1}"#);
        assert!(keys.take::<Vec<u32>>("stop").unwrap_err().starts_with("\"stop\": invalid type: string"));
        assert!(keys.take::<Vec<u32>>("ids").unwrap_err().contains("4294967296`, expected a whole number from 0 to 4"));
        assert_eq!(keys.finish("nothing"), Err("unknown key \"z\" (expected nothing)".into()));
    }
}
