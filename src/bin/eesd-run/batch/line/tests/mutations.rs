//! Request lines with one thing wrong, and what has to become of each.

use eesd::sample::{Philox, Purpose};

/// Numbers that look random and are the same in every run.
pub struct Dice(Philox);

impl Dice {
    pub fn new() -> Self {
        Self(Philox::new(13, 0, Purpose::Controller, 0))
    }

    /// A number below `sides`.
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0.word() as usize % sides
    }

    fn of<'a>(&mut self, texts: &[&'a str]) -> &'a str {
        texts[self.roll(texts.len())]
    }
}

/// What a line is known by.
#[derive(Debug, Clone)]
pub enum Id {
    /// Spelled so, but for carriage returns between its values.
    Spelled(String),
    Absent,
    /// The damage may have taken it.
    Unknown,
}

/// What has to become of a line.
#[derive(Debug, Clone)]
pub enum Expected {
    Right,
    /// An error, which names one of these keys where there are any.
    Wrong(Vec<String>),
    /// Either; an error names one of these keys.
    NamedIfWrong(Vec<String>),
    Whatever,
}

/// A line, and what is known of it.
pub struct Mutated {
    pub line: Vec<u8>,
    pub id: Id,
    pub expected: Expected,
}

/// Keys with their values as they are written.
type Written = Vec<(String, String)>;

const IDS: [&str; 12] = [
    "7",
    "\"a\"",
    "\"\\ud83d\"",
    "\"caf\\u00e9 \u{2028}\u{feff}\"",
    "123456789012345678901234567890",
    "1e999",
    "-0.0",
    "true",
    "[1, {\"id\": 2}]",
    "{ \"a\"\t:\r1 ,\r\"id\" : [ ] }",
    "\"\"",
    "[[[[[[[[]]]]]]]]",
];

/// Values of which any key may or may not make sense.
const VALUES: [&str; 40] = [
    "null",
    "true",
    "0",
    "-0",
    "-0.0",
    "1",
    "1.0",
    "-1",
    "1e2",
    "1e999",
    "-1e999",
    "1e-999",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "123456789012345678901234567890",
    "-123456789012345678901234567890",
    "0.1234567890123456789012345678901",
    "\"\"",
    "\"x\"",
    "\" \"",
    "\"\\u0000\"",
    "\"\\ud83d\"",
    "\"\\ude00\\ud83d\"",
    "\"\u{202e}é<|eos|>▁\"",
    "\"a\u{2028}b\u{2029}c\u{85}d\u{feff}\u{7f}\"",
    "\" at line 3, expected u32\"",
    "[]",
    "[[]]",
    "{}",
    "{\"a\": 1}",
    "{\"\": null}",
    "{\"5\": 1, \"x\": 2}",
    "{\"4294967296\": 1}",
    "[null]",
    "[\"a\", \"\"]",
    "[1, 2, 3]",
    "[4294967296]",
    "[1, \"a\"]",
    "[ 1 ,\r\t2 ]",
];

/// What is no JSON, and ends the reading of a line.
const NO_JSON: [&str; 20] = [
    "NaN",
    "-Infinity",
    "-",
    "01",
    "1.",
    ".5",
    "+1",
    "0x10",
    "tru",
    "'a'",
    "\"\\q\"",
    "\"\\u12\"",
    "\"open",
    "\"\u{1}\"",
    "\"\0\"",
    "[1,]",
    "{\"a\"}",
    "{\"a\": 1,}",
    "{a: 1}",
    "// 1",
];

/// Native lines' keys, each with a value that is right.
const SETTINGS: [(&str, &str); 20] = [
    ("max_tokens", "5"),
    ("min_tokens", "1"),
    ("n", "2"),
    ("temperature", "0.5"),
    ("top_k", "20"),
    ("top_p", "0.9"),
    ("min_p", "0.01"),
    ("repetition_penalty", "1.1"),
    ("presence_penalty", "-0.5"),
    ("frequency_penalty", "1e-1"),
    ("logit_bias", "{\"5\": -1.5}"),
    ("suppress_tokens", "[3, 4]"),
    ("bad_words", "[\"no\", [7, 8]]"),
    ("seed", "18446744073709551615"),
    ("verify", "\"coupled\""),
    ("stop", "[\"\\n\", \"é\"]"),
    ("stop_token_ids", "[2]"),
    ("ignore_eos", "true"),
    ("speculate", "false"),
    ("draft_max", "3"),
];

/// Keys that only OpenAI's bodies have.
const OPENAI: [(&str, &str); 10] = [
    ("model", "\"m\""),
    ("stream", "false"),
    ("response_format", "{\"type\": \"text\"}"),
    ("tool_choice", "\"auto\""),
    ("best_of", "1"),
    ("user", "\"u\""),
    ("metadata", "{\"a\": [1]}"),
    ("modalities", "[\"text\"]"),
    ("parallel_tool_calls", "true"),
    ("echo", "false"),
];

/// Keys of a body that may hold anything.
const LABELS: [&str; 2] = ["user", "metadata"];

const MESSAGES: &str = r#"[{"role": "system", "content": "Be brief."}, {"role": "user", "name": "Ann", "content":
    [{"type": "text", "text": "hi"}, {"type": "text", "text": "\ud83d\ude00"}]}, {"role": "assistant", "tool_calls":
    [{"type": "function", "id": "call", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]}, {"role": "tool",
    "tool_call_id": "call", "content": "5"}, {"role": "assistant", "content": "Five.", "reasoning_content": "5"},
    {"role": "user", "content": "And now?"}]"#;
const TOOLS: &str = r#"[{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]"#;

fn written(key: &str, value: &str) -> (String, String) {
    (key.into(), value.replace("\n", " "))
}

/// Everything that a request may say, right as it is.
fn request(dice: &mut Dice, chat: bool, openai: bool) -> Written {
    let mut keys: Written = match (chat, dice.roll(2)) {
        (true, with_tools) => {
            let mut keys = vec![written("messages", MESSAGES)];
            if with_tools == 1 {
                keys.push(written("tools", TOOLS));
                keys.push(written("documents", "[{\"title\": \"t\", \"text\": \"x\"}]"));
                keys.push(written("chat_template_kwargs", "{\"shout\": true}"));
            }
            keys
        }
        (false, 0) => vec![written("prompt", "\"def f(x):\\n\\u0000\\\"é\"")],
        (false, _) => vec![written("prompt", "[1, 2, 3]")],
    };
    match (openai, chat) {
        (true, true) => keys.extend([written("logprobs", "true"), written("top_logprobs", "2")]),
        _ => keys.push(written("logprobs", "1")),
    }
    for (key, value) in SETTINGS.iter().chain(if openai { &OPENAI[..] } else { &[] }) {
        if dice.roll(3) == 0 {
            // OpenAI's newer name for the same.
            let key = if openai && *key == "max_tokens" { "max_completion_tokens" } else { key };
            keys.push(written(key, value));
        }
    }
    for last in (1..keys.len()).rev() {
        let other = dice.roll(last + 1);
        keys.swap(last, other);
    }
    keys
}

fn object(keys: &Written) -> String {
    let pairs: Vec<String> = keys.iter().map(|(key, value)| format!("\"{key}\": {value}")).collect();
    format!("{{{}}}", pairs.join(", "))
}

/// A line with at most one thing wrong.
pub fn line(dice: &mut Dice) -> Mutated {
    let kind @ (openai, chat) = (dice.roll(2) == 0, dice.roll(2) == 0);
    let mut keys = request(dice, chat, openai);
    let mut id = dice.of(&IDS).to_owned();
    if openai {
        // There, ids are texts.
        id = format!("\"{}\"", id.replace(['"', '\\', '\r', '\t'], ""));
    }
    match dice.roll(8) {
        0 | 1 => return damaged(dice, outer(id, keys, kind, 0)),
        2 => return with_odd_id(dice, keys, kind),
        _ => {}
    }
    let place = dice.roll(keys.len());
    let (expected, readable) = change(dice, &mut keys, place);
    let in_front = dice.roll(2) == 0;
    let line = outer(id.clone(), keys, kind, if in_front { 0 } else { usize::MAX });
    let id = if in_front || readable { Id::Spelled(id) } else { Id::Absent };
    Mutated { line: line.into_bytes(), id, expected }
}

/// The line of a request, with its id before the other keys or after them.
fn outer(id: String, keys: Written, (openai, chat): (bool, bool), id_at: usize) -> String {
    let mut line = match openai {
        false => keys,
        true => {
            let url = if chat { "\"/v1/chat/completions\"" } else { "\"/v1/completions\"" };
            vec![written("method", "\"POST\""), written("url", url), ("body".into(), object(&keys))]
        }
    };
    line.insert(id_at.min(line.len()), (if openai { "custom_id" } else { "id" }.into(), id));
    object(&line)
}

/// Anything for an id: the line is known by it, digit for digit.
fn with_odd_id(dice: &mut Dice, keys: Written, kind: (bool, bool)) -> Mutated {
    let id = match dice.roll(8) {
        0 => format!("{}{}", "[".repeat(20_000), "]".repeat(20_000)),
        1 => format!("\"{}\"", "é".repeat(20_000)),
        2 => dice.of(&IDS).to_owned(),
        _ => dice.of(&VALUES).to_owned(),
    };
    let (openai, _) = kind;
    let text = id.starts_with('"') && !["\"\\ud83d\"", "\"\\ude00\\ud83d\""].contains(&id.as_str());
    let expected = if openai && !text { Expected::Wrong(vec!["custom_id".into()]) } else { Expected::Right };
    let known = if id == "null" { Id::Absent } else { Id::Spelled(id.clone()) };
    let id_at = [0, 1, usize::MAX][dice.roll(3)];
    Mutated { line: outer(id, keys, kind, id_at).into_bytes(), id: known, expected }
}

/// Makes one key wrong, or perhaps wrong; also says whether the line can be read beyond it.
fn change(dice: &mut Dice, keys: &mut Written, place: usize) -> (Expected, bool) {
    let (key, value) = keys[place].clone();
    let one = |key: &str| vec![key.to_owned()];
    // Where one of these is missing, the others have nothing to belong to.
    let related = |key: &str| match key {
        "messages" => ["messages", "tools", "documents", "chat_template_kwargs"].map(str::to_owned).to_vec(),
        "logprobs" => ["logprobs", "top_logprobs"].map(str::to_owned).to_vec(),
        key => one(key),
    };
    let label = LABELS.contains(&key.as_str());
    match dice.roll(8) {
        0 => {
            let expected = match key.as_str() {
                "prompt" | "messages" => Expected::Wrong(related(&key)),
                key => Expected::NamedIfWrong(related(key)),
            };
            keys.remove(place);
            (expected, true)
        }
        1 => {
            let wrong = ["_x", "\u{202e}", "é", "S"].map(|more| format!("{key}{more}"));
            let renamed = wrong[dice.roll(4)].clone();
            keys[place].0 = renamed.clone();
            // What lacks its prompt now is wrong for that reason too.
            (Expected::Wrong([vec![renamed], related(&key)].concat()), true)
        }
        2 => {
            let second = if dice.roll(2) == 0 { value } else { dice.of(&VALUES).to_owned() };
            let at = dice.roll(keys.len() + 1);
            keys.insert(at, (key.clone(), second));
            (Expected::Wrong(one(&key)), true)
        }
        3 if !label => {
            keys[place].1 = ["{\"deep\": 1}", "\"\\ud800\"", "1e400", "[[[\"x\"]]]"][dice.roll(4)].into();
            let template = key == "chat_template_kwargs" && keys[place].1.starts_with('{');
            (if template { Expected::Right } else { Expected::Wrong(related(&key)) }, true)
        }
        4 => {
            let no_json = dice.of(&NO_JSON);
            keys[place].1 = if dice.roll(2) == 0 { no_json.to_owned() } else { nested(dice, &value, no_json) };
            (Expected::Wrong(Vec::new()), false)
        }
        5 => {
            let depth = [100, 200, 20_000][dice.roll(3)];
            keys[place].1 = nested(dice, &value, &format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
            (Expected::NamedIfWrong(related(&key)), true)
        }
        6 => {
            keys[place].1 = nested(dice, &value, &format!("\"{}\"", "x\u{1f600}".repeat(3000)));
            (Expected::NamedIfWrong(related(&key)), true)
        }
        _ => {
            let odd = dice.of(&VALUES);
            keys[place].1 = if dice.roll(2) == 0 { odd.to_owned() } else { nested(dice, &value, odd) };
            (Expected::NamedIfWrong(related(&key)), true)
        }
    }
}

/// A value with another one somewhere within, or in its place.
fn nested(dice: &mut Dice, value: &str, other: &str) -> String {
    const MARK: &str = "@here@";
    let mut json: serde_json::Value = serde_json::from_str(value).unwrap();
    let mut place = &mut json;
    let inner = |place: &serde_json::Value| match place {
        serde_json::Value::Object(map) => map.len(),
        serde_json::Value::Array(items) => items.len(),
        _ => 0,
    };
    while inner(place) > 0 && dice.roll(5) > 0 {
        let at = dice.roll(inner(place));
        place = match place {
            serde_json::Value::Object(map) => map.values_mut().nth(at).unwrap(),
            items => &mut items[at],
        };
    }
    *place = MARK.into();
    json.to_string().replace(&format!("\"{MARK}\""), other)
}

/// Bytes damaged in one place. What is known of the line stands at its beginning.
fn damaged(dice: &mut Dice, line: String) -> Mutated {
    let original = line.into_bytes();
    let mut bytes = original.clone();
    let at = dice.roll(bytes.len());
    let end = (at + 1 + dice.roll(64)).min(bytes.len());
    match dice.roll(9) {
        0 => bytes.truncate(at),
        1 => bytes[at] ^= 1 << dice.roll(8),
        2 => bytes[at] = dice.roll(256) as u8,
        3 => drop(bytes.drain(at..end)),
        4 => drop(bytes.splice(at..at, original[at..end].to_vec())),
        5 => bytes[at..end].fill(b'['),
        6 => drop(bytes.splice(at..at, [0xff, 0xc0, 0x80])),
        7 => {
            let odd = ["\0", "\u{feff}", "\u{2028}", "\r", "\n", "\r\n", "\u{1b}[31m", "\\", "\""];
            drop(bytes.splice(at..at, dice.of(&odd).bytes()));
        }
        _ => bytes.extend_from_slice(&original),
    }
    // The id comes first: once the comma behind it is read, it is known. A line that was whole may have lost nothing.
    let same = bytes.iter().zip(&original).take_while(|(one, other)| one == other).count();
    let text = String::from_utf8_lossy(&original[..same]);
    let id = text.split_once(", \"").and_then(|(head, _)| {
        let (_, id) = head.split_once(": ")?;
        serde_json::from_str::<&serde_json::value::RawValue>(id).ok().map(|id| id.get().to_owned())
    });
    Mutated { line: bytes, id: id.map_or(Id::Unknown, Id::Spelled), expected: Expected::Whatever }
}
