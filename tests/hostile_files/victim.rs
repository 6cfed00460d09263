//! A model folder of which one file is replaced again and again.

use crate::memory;
use eesd::backend::DEFAULT_CONTEXT;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::load::{Chat, ChatTemplate, Checkpoint, LoadError, Message};
use serde_json::{Map, Value};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tempfile::TempDir;

/// Most memory that may be in use at any time; the largest file here has 8 MB.
const MOST_MEMORY: usize = 512 << 20;

/// Files whose every error has the key, where their content is a JSON object.
const KEYED: [&str; 4] =
    ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

/// Panics of this process, also those that the loader catches and makes errors of.
static PANICS: AtomicUsize = AtomicUsize::new(0);

pub struct Victim {
    folder: TempDir,
    file: &'static str,
    pub original: Vec<u8>,
}

impl Victim {
    /// A copy of a model's folder with these files written into it.
    pub fn new(model: &str, files: &[(&str, &str)], file: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join(model);
        for entry in std::fs::read_dir(&model).unwrap() {
            let path = entry.unwrap().path();
            if !path.ends_with("expected.safetensors") {
                std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        for (file, content) in files {
            std::fs::write(folder.path().join(file), content).unwrap();
        }
        let original = std::fs::read(folder.path().join(file)).unwrap();
        let victim = Self { folder, file, original };
        victim.open().and_then(use_it).expect("the untouched folder opens");
        victim
    }

    /// A folder with nothing but this file.
    pub fn of_file(file: &'static str, content: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(file), content).unwrap();
        let victim = Self { folder, file, original: content.to_vec() };
        victim.open().and_then(use_it).expect("the untouched file opens");
        victim
    }

    pub fn open(&self) -> Result<Checkpoint, LoadError> {
        Checkpoint::open(self.folder.path())
    }

    /// The file that is replaced.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join(self.file)
    }

    /// The folder, as errors have it.
    pub fn folder(&self) -> String {
        self.folder.path().display().to_string()
    }

    /// Replaces the file.
    pub fn put(&self, variant: &[u8]) {
        // A new file each time: the old one may not change while it is mapped.
        std::fs::remove_file(self.path()).unwrap();
        std::fs::write(self.path(), variant).unwrap();
    }

    /// Opens one variant of the file after another; at least `errors` of a hundred must be refused.
    pub fn attack(&self, variants: impl IntoIterator<Item = Vec<u8>>, errors: usize) -> usize {
        self.attack_with(variants, errors, |_| true)
    }

    /// The same, with what must hold for every error of opening.
    pub fn attack_with(
        &self,
        variants: impl IntoIterator<Item = Vec<u8>>,
        errors: usize,
        is_right: impl Fn(&LoadError) -> bool,
    ) -> usize {
        count_panics();
        let (mut tried, mut refused) = (0, 0);
        for variant in variants {
            self.put(&variant);
            tried += 1;
            let outcome = catch_unwind(AssertUnwindSafe(|| match self.open() {
                Ok(checkpoint) => use_it(checkpoint).err().map(|error| (error, false)),
                Err(error) => Some((error, true)),
            }));
            match outcome {
                Ok(None) => {}
                Ok(Some((error, opening))) => {
                    self.check(&error, opening, &variant);
                    assert!(!opening || is_right(&error), "{}: {error}", self.file);
                    refused += 1;
                }
                // Counted.
                Err(_) => {}
            }
            if PANICS.load(Relaxed) > 0 {
                let kept = std::env::temp_dir().join("hostile_file");
                std::fs::write(&kept, &variant).unwrap();
                panic!("variant {tried} of {} made the loader panic; kept as {}", self.file, kept.display());
            }
            let peak = memory::peak();
            assert!(peak < MOST_MEMORY, "variant {tried} of {} took {peak} bytes", self.file);
        }
        drop(std::panic::take_hook());
        assert!(refused * 100 >= tried * errors, "{}: {refused} of {tried} refused", self.file);
        tried
    }

    /// An error names a file, the one that was replaced unless another one no longer fits to it, and the key.
    fn check(&self, error: &LoadError, opening: bool, variant: &[u8]) {
        let message = error.to_string();
        assert!(message.len() < 2000, "{}: an error of {} bytes", self.file, message.len());
        assert!(message.starts_with(&self.folder()), "{}: {message}", self.file);
        // Before the first key there is none to name; and a template has no keys.
        if opening && self.file.ends_with(".gguf") {
            let keyless = [
                "begin with",
                "version ",
                " tensors (",
                " values (",
                "the file ends at byte",
                "key ",
                "tensor ",
                "template",
            ];
            let named = message.contains('`') || keyless.iter().any(|what| message.contains(what));
            assert!(named && message.contains(self.file), "{}: {message}", self.file);
        }
        if opening && KEYED.contains(&self.file) {
            assert!(message.contains(self.file), "{}: {message}", self.file);
            if serde_json::from_slice::<Map<String, Value>>(variant).is_ok() {
                let named =
                    matches!(error, LoadError::Key { .. } | LoadError::Limit { .. } | LoadError::Template { .. });
                assert!(named, "{}: {message}", self.file);
            }
        }
    }
}

/// Counts the panics of this process from here on, and still tells of them.
fn count_panics() {
    std::panic::set_hook(Box::new(|panic| {
        PANICS.fetch_add(1, Relaxed);
        eprintln!("{panic}");
    }));
}

/// Renders a conversation with the chat template of a file.
pub fn use_template(path: &Path) -> Result<(), LoadError> {
    let specials = [("bos_token".to_owned(), "<s>".to_owned())].into();
    ChatTemplate::from_file(path, specials)?.render(&conversation()).map(drop)
}

fn conversation() -> Chat {
    Chat::new([Message::new("user", "hi")])
}

/// Uses everything that a folder gives.
pub fn use_it(checkpoint: Checkpoint) -> Result<(), LoadError> {
    let weights = checkpoint.weights();
    assert_eq!(weights.layers.len(), checkpoint.geometry().layers);
    weights.norm.to_f32();
    assert!(
        checkpoint
            .notes()
            .iter()
            .all(|note| note.len() < 10_000 && [".json", ".gguf"].iter().any(|end| note.contains(end)))
    );
    let generation = checkpoint.generation();
    generation.sampling().check(checkpoint.geometry().vocab_size).unwrap();
    let tokens =
        generation.end_tokens.iter().chain(&generation.suppress_tokens).chain(generation.bad_words.iter().flatten());
    assert!(tokens.chain(&generation.begin_token).all(|&token| (token as usize) < checkpoint.geometry().vocab_size));
    for block in checkpoint.exit_blocks()? {
        assert!(block.weights().norm.to_f32().len() == checkpoint.geometry().hidden_size);
    }
    if let Some(tokenizer) = checkpoint.tokenizer() {
        let ids = tokenizer.encode("def f(x):\n    return 'é你😀' <|eos|><s> Hi</s>", true)?;
        assert!(ids.iter().all(|&id| (id as usize) < checkpoint.geometry().vocab_size));
        tokenizer.decode(&ids);
        let mut stream = tokenizer.stream();
        for id in ids.into_iter().chain([0, 1, 2, 300, 4095, u32::MAX]) {
            stream.push(id);
        }
        stream.finish();
    }
    if let Ok(Some(template)) = checkpoint.chat_template() {
        template.render(&conversation())?;
    }
    make_room(&checkpoint);
    Ok(())
}

/// Tables, cache and workspace by the geometry; it is an error, and nothing worse, where there is no memory for them.
fn make_room(checkpoint: &Checkpoint) {
    // Enough of the embedded model's many forms for a test, which reads its weights anew each time.
    if checkpoint.parameters() < 1_000_000 {
        let context = checkpoint.geometry().max_positions.min(DEFAULT_CONTEXT);
        let options = CpuOptions { threads: Some(1), context, ..CpuOptions::default() };
        let _ = CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), None, &options);
    }
}
