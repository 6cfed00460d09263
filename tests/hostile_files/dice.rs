//! Damaged files, the same ones in every run.

use serde_json::Value;

/// Numbers that look random and are the same in every run (Marsaglia's xorshift).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides.max(1) as u64) as usize
    }

    /// Bytes damaged in one place.
    pub fn damage(&mut self, original: &[u8]) -> Vec<u8> {
        let mut bytes = original.to_vec();
        let (at, length) = (self.roll(bytes.len()), 1 + self.roll(64));
        let end = (at + length).min(bytes.len());
        match self.roll(7) {
            0 => bytes.truncate(at),
            1 => bytes[at] ^= 1 << self.roll(8),
            2 => bytes[at] = self.roll(256) as u8,
            3 => drop(bytes.drain(at..end)),
            4 => bytes.extend_from_within(at..end),
            5 => drop(bytes.splice(at..at, [0xFF, 0xC0, 0x80])),
            _ => bytes[at..end].fill(b'['),
        }
        bytes
    }

    /// A JSON text with one value exchanged, dropped, doubled or renamed.
    pub fn twist(&mut self, original: &[u8]) -> Vec<u8> {
        let mut json: Value = serde_json::from_slice(original).unwrap();
        let mut place = &mut json;
        // Down a random branch, but not always to its end.
        while place.as_object().is_some_and(|map| !map.is_empty()) || place.as_array().is_some_and(|a| !a.is_empty()) {
            if self.roll(8) == 0 {
                break;
            }
            place = match place {
                Value::Object(map) => {
                    let at = self.roll(map.len());
                    map.values_mut().nth(at).unwrap()
                }
                Value::Array(items) => {
                    let at = self.roll(items.len());
                    &mut items[at]
                }
                _ => break,
            };
        }
        if self.roll(4) == 0 {
            self.twist_keys(place);
        } else {
            *place = self.value(place);
        }
        self.write(&json)
    }

    /// Drops a key of an object, moves its value to another key, or writes it twice.
    fn twist_keys(&mut self, place: &mut Value) {
        let Value::Object(map) = place else { return };
        if map.is_empty() {
            return;
        }
        let (at, other) = (self.roll(map.len()), self.roll(map.len()));
        let (key, value) = map.iter().nth(at).map(|(key, value)| (key.clone(), value.clone())).unwrap();
        let other = map.keys().nth(other).unwrap().clone();
        match self.roll(5) {
            0 => drop(map.remove(&key)),
            1 => drop(map.insert(other, value)),
            2 => {
                map.remove(&key);
                map.insert(format!("{key}\u{202e}"), value);
            }
            3 => drop(map.insert("never_heard_of".into(), value)),
            _ => {
                let second = self.value(&value);
                map.insert(format!("{TWICE}{key}"), second);
            }
        }
    }

    /// A value in the place of another one.
    pub fn value(&mut self, place: &Value) -> Value {
        match self.roll(18) {
            0 => Value::Null,
            1 => (-1).into(),
            2 => u64::MAX.into(),
            3 => (1u64 << 32).into(),
            4 => 1e308.into(),
            5 => 0.into(),
            6 => 3.into(),
            7 => true.into(),
            8 => "".into(),
            9 => "x".repeat(10_000).into(),
            10 => "\u{0}\u{202e}é<|eos|>▁".into(),
            11 => Value::Array(vec![]),
            12 => Value::Array(vec![0.into(); 1000]),
            13 => Value::Object(Default::default()),
            14 => Value::Array(vec![place.clone(), place.clone()]),
            15 => serde_json::json!({ "type": "Sequence", "x": place.clone() }),
            _ => format!("{RAW}{}", self.roll(RAW_TEXTS.len())).into(),
        }
    }

    /// The JSON with what no `Value` can hold: keys that come twice, and texts as they are.
    pub fn write(&mut self, json: &Value) -> Vec<u8> {
        let mut text = json.to_string().replace(TWICE, "");
        for (n, raw) in RAW_TEXTS.iter().enumerate() {
            let mark = format!("\"{RAW}{n}\"");
            if text.contains(&mark) {
                text = text.replace(&mark, &raw());
            }
        }
        text.into_bytes()
    }
}

/// Marks a key that the object has already.
const TWICE: &str = "@twice@";
/// Marks a text of [`RAW_TEXTS`].
const RAW: &str = "@raw@";

/// JSON, and almost JSON, that a `Value` cannot hold.
const RAW_TEXTS: [fn() -> String; 14] = [
    || "123456789012345678901234567890".into(),
    || "-123456789012345678901234567890".into(),
    || "1e999".into(),
    || "-1e999".into(),
    || "1e2".into(),
    || "-0".into(),
    || "-0.0".into(),
    || "2.0000000000000000000001".into(),
    || "NaN".into(),
    || "-Infinity".into(),
    || r#""\ud83d""#.into(),
    || r#""\ude00\ud83d""#.into(),
    || format!("{}{}", "[".repeat(100), "]".repeat(100)),
    || "{\"a\":".repeat(500),
];

/// Texts that no JSON reader should stumble over.
fn hostile_texts(original: &[u8]) -> Vec<Vec<u8>> {
    let text = String::from_utf8(original.to_vec()).unwrap();
    let doubled = text.replacen('{', "{\"vocab_size\": 7, \"vocab_size\": 8, \"model\": 1, \"model_type\": [],", 1);
    vec![
        vec![],
        b"null".to_vec(),
        b"{}".to_vec(),
        vec![b'['; 1 << 20],
        "{\"a\":".repeat(1 << 18).into_bytes(),
        doubled.into_bytes(),
        format!("\u{feff}{text}").into_bytes(),
        [original, original].concat(),
        vec![0xFF; 4096],
        vec![0; 4096],
    ]
}

pub fn json_variants(dice: &mut Dice, original: &[u8], count: usize) -> Vec<Vec<u8>> {
    let mut variants = hostile_texts(original);
    for _ in 0..count {
        variants.push(dice.twist(original));
        variants.push(dice.damage(original));
    }
    variants
}

/// Variants of a safetensors file, made one at a time since each is as large as the file.
pub fn safetensors_variants(mut dice: Dice, original: &[u8], count: usize) -> impl Iterator<Item = Vec<u8>> {
    let (length, rest) = original.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let assemble = |length: u64, header: &[u8], data: &[u8]| [&length.to_le_bytes(), header, data].concat();
    let whole = move |header: Vec<u8>, data: &[u8]| assemble(header.len() as u64, &header, data);
    (0..count).map(move |_| match dice.roll(8) {
        0 => original[..dice.roll(original.len())].to_vec(),
        1 => {
            let lengths = [0, 1, header.len() as u64 - 1, header.len() as u64 + 1, 100_000_001, 1 << 40, u64::MAX];
            assemble(lengths[dice.roll(lengths.len())], header, data)
        }
        2 => whole(dice.damage(header), data),
        3 => whole(header.to_vec(), &data[..data.len() - 1 - dice.roll(64)]),
        4 => {
            // The offsets of one tensor given to another, or moved.
            let mut json: Value = serde_json::from_slice(header).unwrap();
            let names: Vec<String> =
                json.as_object().unwrap().keys().filter(|k| *k != "__metadata__").cloned().collect();
            let (one, two) = (&names[dice.roll(names.len())], &names[dice.roll(names.len())]);
            let mut offsets = json[two]["data_offsets"].clone();
            if one == two {
                offsets[dice.roll(2)] = ([0, 1, 1 << 20, u64::MAX, 1 << 63][dice.roll(5)]).into();
            }
            json[one]["data_offsets"] = offsets;
            whole(json.to_string().into_bytes(), data)
        }
        5 => {
            // Shapes whose product overflows, or fits and is wrong.
            let mut json: Value = serde_json::from_slice(header).unwrap();
            let names: Vec<String> =
                json.as_object().unwrap().keys().filter(|k| *k != "__metadata__").cloned().collect();
            let sizes = [0, 1, 3, 1 << 16, 1 << 32, 1 << 61, u64::MAX];
            let shape: Vec<u64> = (0..dice.roll(5)).map(|_| sizes[dice.roll(sizes.len())]).collect();
            json[&names[dice.roll(names.len())]]["shape"] = shape.into();
            whole(json.to_string().into_bytes(), data)
        }
        6 => {
            let texts = hostile_texts(header);
            whole(texts[dice.roll(texts.len())].clone(), data)
        }
        _ => whole(dice.twist(header), data),
    })
}
