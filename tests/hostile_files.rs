//! Damaged and hostile model files: thousands of them, each opened and used. Every one gives a model
//! or an error; none a panic, and none makes the loader take memory that its files do not justify.

use eesd::load::{Chat, Checkpoint, LoadError, Message};
use serde_json::Value;
use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tempfile::TempDir;

/// Most memory that may be in use at any time; the largest file here has 8 MB.
const MOST_MEMORY: usize = 512 << 20;

/// The system's allocator, counting.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(in_use, Relaxed);
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One test at a time, so that the peak is its own.
static ALONE: Mutex<()> = Mutex::new(());

/// A model folder of which one file is replaced again and again.
struct Victim {
    folder: TempDir,
    file: &'static str,
    original: Vec<u8>,
}

impl Victim {
    fn new(model: &str, file: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
        for entry in std::fs::read_dir(&model).unwrap() {
            let path = entry.unwrap().path();
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
        let extra = folder.path().join(file);
        if !extra.exists() {
            std::fs::write(&extra, TOKENIZER_CONFIG).unwrap();
        }
        let original = std::fs::read(extra).unwrap();
        let victim = Self { folder, file, original };
        victim.open().expect("the untouched folder opens");
        victim
    }

    /// Opens the folder and uses everything that it gives.
    fn open(&self) -> Result<(), LoadError> {
        let checkpoint = Checkpoint::open(self.folder.path())?;
        let weights = checkpoint.weights();
        assert_eq!(weights.layers.len(), checkpoint.geometry().layers);
        weights.norm.to_f32();
        for block in checkpoint.exit_blocks()? {
            assert!(block.weights().norm.to_f32().len() == checkpoint.geometry().hidden_size);
        }
        if let Some(tokenizer) = checkpoint.tokenizer() {
            let ids = tokenizer.encode("def f(x):\n    return 'é你😀' <|eos|>", true)?;
            tokenizer.decode(&ids);
            let mut stream = tokenizer.stream();
            for id in ids.into_iter().chain([0, 1, 2, 300, 4095, u32::MAX]) {
                stream.push(id);
            }
            stream.finish();
        }
        if let Ok(Some(template)) = checkpoint.chat_template() {
            template.render(&Chat::new([Message::new("user", "hi")]))?;
        }
        Ok(())
    }

    /// Opens one variant of the file after another; at least `errors` of a hundred must be refused.
    fn attack(&self, variants: impl IntoIterator<Item = Vec<u8>>, errors: usize) -> usize {
        let (mut tried, mut refused) = (0, 0);
        let path: PathBuf = self.folder.path().join(self.file);
        for variant in variants {
            // A new file each time: the old one may not change while it is mapped.
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, &variant).unwrap();
            tried += 1;
            match catch_unwind(AssertUnwindSafe(|| self.open())) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    let message = error.to_string();
                    assert!(message.len() < 2000, "{}: an error of {} bytes", self.file, message.len());
                    refused += 1;
                }
                Err(_) => {
                    let kept = std::env::temp_dir().join("hostile_file");
                    std::fs::write(&kept, &variant).unwrap();
                    panic!("variant {tried} of {} made the loader panic; kept as {}", self.file, kept.display());
                }
            }
            let peak = PEAK.load(Relaxed);
            assert!(peak < MOST_MEMORY, "variant {tried} of {} took {peak} bytes", self.file);
        }
        assert!(refused * 100 >= tried * errors, "{}: {refused} of {tried} refused", self.file);
        tried
    }
}

const TOKENIZER_CONFIG: &str = r#"{"add_bos_token": false, "bos_token": {"content": "<s>"}, "eos_token": "</s>",
    "chat_template": [{"name": "default", "template": "{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}"}]}"#;

/// Numbers that look random and are the same in every run (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % sides.max(1) as u64) as usize
    }

    /// Bytes damaged in one place.
    fn damage(&mut self, original: &[u8]) -> Vec<u8> {
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
    fn twist(&mut self, original: &[u8]) -> Vec<u8> {
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
        *place = match self.roll(16) {
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
            _ => serde_json::json!({ "type": "Sequence", "x": place.clone() }),
        };
        json.to_string().into_bytes()
    }
}

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

fn json_variants(dice: &mut Dice, original: &[u8], count: usize) -> Vec<Vec<u8>> {
    let mut variants = hostile_texts(original);
    for _ in 0..count {
        variants.push(dice.twist(original));
        variants.push(dice.damage(original));
    }
    variants
}

/// Variants of a safetensors file, made one at a time since each is as large as the file.
fn safetensors_variants(mut dice: Dice, original: &[u8], count: usize) -> impl Iterator<Item = Vec<u8>> {
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

const LLAMA: &str = "tests/fixtures/hf/llama";
const SHARDED: &str = "tests/fixtures/hf/llama3_rope_sharded";
const BUNDLED: &str = "models/pycode-4m";

#[test]
fn configurations() {
    let _alone = ALONE.lock();
    let mut tried = 0;
    for (model, file, count, errors) in [
        (LLAMA, "config.json", 250, 30),
        (BUNDLED, "config.json", 50, 30),
        (LLAMA, "generation_config.json", 100, 20),
        (LLAMA, "tokenizer_config.json", 150, 20),
        (SHARDED, "model.safetensors.index.json", 150, 50),
    ] {
        let victim = Victim::new(model, file);
        let variants = json_variants(&mut Dice(0x9E37_79B9_7F4A_7C15), &victim.original, count);
        tried += victim.attack(variants, errors);
    }
    assert!(tried >= 1400, "{tried}");
}

#[test]
fn weights_and_exit_blocks() {
    let _alone = ALONE.lock();
    let mut tried = 0;
    for (model, file, count) in [
        (LLAMA, "model.safetensors", 400),
        (SHARDED, "model-00002-of-00005.safetensors", 300),
        (BUNDLED, "exit-2.safetensors", 300),
    ] {
        let victim = Victim::new(model, file);
        tried += victim.attack(safetensors_variants(Dice(0xD1B5_4A32_D192_ED03), &victim.original, count), 70);
    }
    assert_eq!(tried, 1000);
}

#[test]
fn tokenizers() {
    let _alone = ALONE.lock();
    let victim = Victim::new(BUNDLED, "tokenizer.json");
    let mut dice = Dice(0x2545_F491_4F6C_DD1D);
    // The vocabulary and the merges are most of the file: twist the rest by itself too.
    let mut json: Value = serde_json::from_slice(&victim.original).unwrap();
    json["model"]["merges"] = Value::Array(vec![]);
    json["model"]["vocab"].as_object_mut().unwrap().retain(|_, id| id.as_u64().unwrap() < 300);
    json["decoder"] = serde_json::json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]});
    json["normalizer"] = serde_json::json!({"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"Regex": " +"}, "content": "▁"}, {"type": "NFKC"}
    ]});
    json["post_processor"] = serde_json::json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}}});
    json["truncation"] =
        serde_json::json!({"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = serde_json::json!({"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|bos|>"});
    let small = json.to_string().into_bytes();
    json["model"] = serde_json::json!({"type": "Unigram", "unk_id": 2, "byte_fallback": true,
        "vocab": [["<|bos|>", 0.0], ["<|eos|>", 0.0], ["<unk>", -9.0], ["▁", -1.0], ["d", -2.5], ["<0xE4>", -3.0]]});
    json["pre_tokenizer"] =
        serde_json::json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    let unigram = json.to_string().into_bytes();

    let whole_file = json_variants(&mut dice, &victim.original, 150);
    let tried = victim.attack(whole_file, 30)
        + victim.attack(json_variants(&mut dice, &small, 350), 30)
        + victim.attack(json_variants(&mut dice, &unigram, 250), 30);
    assert!(tried >= 1500, "{tried}");
}
