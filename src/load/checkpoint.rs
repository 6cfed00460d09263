//! A model's folder or file, opened.

use super::added::TokenFiles;
use super::base::Base;
use super::config::{self, Config};
use super::fingerprint::fingerprint;
use super::gguf::{self, Gguf};
use super::json::Document;
use super::quantised::Quantisation;
use super::source::{self, Source};
use super::specials::special_tokens;
use super::tensors::Tensors;
use super::{ChatTemplate, ExitBlock, GenerationDefaults, LoadError, Tokenizer, bundled, weights};
use crate::model::{Geometry, ModelWeights};
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// An opened model: configuration, mapped tensors, tokenizer, chat template, generation defaults.
pub struct Checkpoint {
    source: Source,
    name: String,
    config: Config,
    tensors: Tensors,
    parameters: u64,
    bytes: u64,
    fingerprint: String,
    /// What exit blocks are tied to, once one is asked for.
    base: OnceLock<Base>,
    generation: GenerationDefaults,
    tokenizer: Option<Arc<Tokenizer>>,
    /// A broken one is an error only where it is asked for.
    chat_template: Result<Option<ChatTemplate>, LoadError>,
    notes: Vec<String>,
}

impl Checkpoint {
    /// Opens a model and checks every tensor's presence, shape and number format.
    ///
    /// `path` is a Hugging Face folder, a GGUF file (or one of the files that a model is split over), or a folder that
    /// holds one model as GGUF and no other.
    ///
    /// The weights are mapped, not read: the files must stay as they are while this lives. Only the quantised matrices of
    /// a Hugging Face folder are read, and put into rows of a [`Format`](crate::model::Format) that says the same.
    ///
    /// # Errors
    /// If a file is missing, damaged, or describes something this engine does not run.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        // Resolved, so that `.` has a name too.
        let place = path.canonicalize().map_err(|error| LoadError::io(path, error))?;
        let is_folder = FOLDER_FILES.iter().any(|file| path.join(file).exists());
        let file = match place.is_file() {
            true => Some(path.to_path_buf()),
            false if place.is_dir() && !is_folder => gguf::in_folder(path)?,
            false => None,
        };
        if let Some(file) = file {
            let gguf = Gguf::open(&file)?;
            let name = gguf.name().to_owned();
            return Self::of_source(Source::Gguf(Box::new(gguf)), name);
        }
        let name = place.file_name().unwrap_or(place.as_os_str()).to_string_lossy().into_owned();
        Self::of_source(Source::Folder(path.to_path_buf()), name)
    }

    /// The model embedded in the binary (feature `bundled-model`).
    ///
    /// # Errors
    /// If the binary was built without it.
    pub fn bundled() -> Result<Self, LoadError> {
        Self::of_source(bundled::source()?, bundled::NAME.into())
    }

    fn of_source(source: Source, name: String) -> Result<Self, LoadError> {
        let mut notes = Vec::new();
        let (config, tensors, document) = match &source {
            Source::Gguf(gguf) => of_gguf(gguf, &mut notes)?,
            _ => of_folder(&source, &mut notes)?,
        };
        let plan = weights::model_plan(&config);
        let formats = weights::check(&tensors, &plan, &config)?;
        let tensors = in_order(tensors, &source, &config);

        let limits = (config.geometry.vocab_size, config.geometry.max_positions);
        let generation_config = Document::read(&source, "generation_config.json")?;
        let generation_config = generation_config.as_ref().map(Document::root);
        let mut generation = GenerationDefaults::parse(
            generation_config.as_ref(),
            document.as_ref().map(Document::root).as_ref(),
            limits,
            &mut notes,
        )?;

        let files = TokenFiles::read(&source)?;
        let tokenizer = Tokenizer::of_source(&source, &files, &generation, limits.0, &mut notes)?;
        if let Some(tokenizer) = &tokenizer {
            generation.add_end_tokens(tokenizer.ends(&files)?, &mut notes);
        }
        Ok(Self {
            name,
            parameters: weights::parameters(&plan),
            bytes: tensors.bytes(plan.keys()),
            fingerprint: fingerprint(&config.geometry, &plan, &formats),
            base: OnceLock::new(),
            tokenizer: tokenizer.map(Arc::new),
            chat_template: chat_template(&source, &files),
            source,
            config,
            tensors,
            generation,
            notes,
        })
    }

    /// The name of the folder, or of the GGUF file without its ending, or the bundled model's.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The GGUF file of the model (the first where it is split), where it is one.
    pub fn file(&self) -> Option<&Path> {
        match &self.source {
            Source::Gguf(gguf) => Some(gguf.path()),
            _ => None,
        }
    }

    /// The model's shape.
    pub fn geometry(&self) -> &Geometry {
        &self.config.geometry
    }

    /// Views of the tensors.
    pub fn weights(&self) -> ModelWeights<'_> {
        weights::model(&self.tensors, &self.config)
    }

    /// Number of parameters; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// Bytes of the weights as stored, or as kept in memory where they are made of parts; a tied head counts once.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The tokenizer, where the folder has one.
    pub fn tokenizer(&self) -> Option<&Arc<Tokenizer>> {
        self.tokenizer.as_ref()
    }

    /// The chat template, where the folder has one.
    ///
    /// # Errors
    /// If it is broken. Another may be taken in its place: see [`Checkpoint::chat_template_from`].
    pub fn chat_template(&self) -> Result<Option<&ChatTemplate>, &LoadError> {
        self.chat_template.as_ref().map(Option::as_ref)
    }

    /// The chat template of a file, with this model's special tokens: see [`ChatTemplate::from_file`].
    ///
    /// # Errors
    /// If the file holds no template or a broken one, or the special tokens of the folder are broken.
    pub fn chat_template_from(&self, path: &Path) -> Result<ChatTemplate, LoadError> {
        let files = TokenFiles::read(&self.source)?;
        ChatTemplate::from_file(path, special_tokens(files.config().as_ref(), files.map().as_ref())?)
    }

    /// What `generation_config.json` (or the model's configuration, or its GGUF file) says.
    pub fn generation(&self) -> &GenerationDefaults {
        &self.generation
    }

    /// What is no error, and still should be known to who uses the model: one sentence each, with file and key.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Hash of the configuration and of the tensors' names, shapes and formats, in hexadecimal.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// What exit blocks of this model are tied to.
    pub(super) fn base(&self) -> &Base {
        let tokenizer = self.tokenizer().map(Arc::as_ref);
        self.base.get_or_init(|| Base::of(&self.config, &self.weights(), tokenizer, &self.fingerprint))
    }

    /// The exit blocks beside the model, `exit-<N>.safetensors`, by exit layer.
    ///
    /// # Errors
    /// If a block is damaged, belongs to another model, or is not of the layer that its name says.
    pub fn exit_blocks(&self) -> Result<Vec<ExitBlock>, LoadError> {
        let mut blocks = Vec::new();
        for name in self.source.names()? {
            let layer = name.strip_prefix("exit-").and_then(|rest| rest.strip_suffix(".safetensors"));
            let Some(layer) = layer.and_then(|digits| digits.parse::<usize>().ok()) else { continue };
            let Some(bytes) = self.source.map(&name)? else { continue };
            let path = self.source.path(&name);
            let block = ExitBlock::parse(path.clone(), bytes, &self.config, self.base())?;
            if block.after() != layer {
                return Err(LoadError::Key {
                    path,
                    key: "__metadata__.exit_layer".into(),
                    found: format!("\"{}\"", block.after()),
                    expected: format!("\"{layer}\", as the file's name says"),
                });
            }
            blocks.push(block);
        }
        blocks.sort_by_key(ExitBlock::after);
        Ok(blocks)
    }

    /// Opens an exit block for this model, whatever the file's name.
    ///
    /// # Errors
    /// If the block is missing, damaged, or belongs to another model.
    pub fn open_exit(&self, path: &Path) -> Result<ExitBlock, LoadError> {
        let missing = || LoadError::io(path, std::io::ErrorKind::NotFound.into());
        let bytes = source::map(path)?.ok_or_else(missing)?;
        ExitBlock::parse(path.to_path_buf(), bytes, &self.config, self.base())
    }
}

/// Files of which each says that a folder is a Hugging Face model's.
const FOLDER_FILES: [&str; 3] = ["config.json", "model.safetensors", "model.safetensors.index.json"];

/// What a model's files say: the configuration, its tensors, and the document that the first is from, where it is one.
type Parsed = (Config, Tensors, Option<Document>);

fn of_folder(source: &Source, notes: &mut Vec<String>) -> Result<Parsed, LoadError> {
    let missing = || LoadError::MissingFile { folder: source.path(""), wanted: "config.json", hint: "" };
    let document = Document::read(source, "config.json")?.ok_or_else(missing)?;
    let mut config = config::parse(&document.root())?;
    let quantisation = Quantisation::parse(&document.root())?;
    let mut tensors = Tensors::of_model(source, notes)?;
    if let Some(quantisation) = quantisation {
        quantisation.transcode(&mut tensors, &config, notes)?;
    }
    weights::settle_head(&tensors, &mut config.geometry, notes);
    Ok((config, tensors, Some(document)))
}

fn of_gguf(gguf: &Gguf, notes: &mut Vec<String>) -> Result<Parsed, LoadError> {
    let mut tensors = Tensors::of_gguf(gguf)?;
    let config = gguf::parse(gguf, &mut tensors, notes)?;
    Ok((config, tensors, None))
}

/// The checked tensors with their rows in this engine's order: architecture `llama` of GGUF has another one.
fn in_order(mut tensors: Tensors, source: &Source, config: &Config) -> Tensors {
    if let Source::Gguf(_) = source
        && config.geometry.family == "llama"
    {
        tensors.pair_halves(config.geometry.head_dim, gguf::is_paired);
    }
    tensors
}

fn chat_template(source: &Source, files: &TokenFiles) -> Result<Option<ChatTemplate>, LoadError> {
    let config = files.config();
    ChatTemplate::of_source(source, config.as_ref(), special_tokens(config.as_ref(), files.map().as_ref())?)
}
