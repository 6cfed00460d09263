//! Models: opened, described, freed.

use super::argument::{Incoming, Place, Versioned, check_size, fixed, json_object, optional_string, structure};
use super::exit_choice::{EESD_EXIT_DEFAULT, exit_block};
use super::handle::{self, Handled, Object};
use super::log::{LogLevel, log};
use super::status::{Failure, Outcome, Status, entry};
use crate::TokenId;
use crate::constrain::Grammars;
use crate::load::{ChatTemplate, Checkpoint, ExitBlock, Prompt, PromptEncoder, Tokenizer};
use crate::model::{ModelWeights, Quantised, Scheme};
use serde_json::{Map, Value};
use std::ffi::c_char;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

/// An opened model and its exit block. Immutable: any number of threads and sessions may use one at the same time.
pub struct Model {
    pub(super) checkpoint: Checkpoint,
    pub(super) exit: Option<ExitBlock>,
    /// The matrices in the place of the checkpoint's own.
    quantised: Option<Quantised>,
    /// A chat template in the place of the checkpoint's own.
    template: Option<ChatTemplate>,
    /// Values for the chat template, under those that a conversation brings itself.
    arguments: Map<String, Value>,
    /// What compiles the schemas and grammars of its answers.
    pub(super) grammars: Grammars,
}

impl Model {
    /// The weights as sessions use them.
    pub(super) fn weights(&self) -> ModelWeights<'_> {
        let own = self.checkpoint.weights();
        match &self.quantised {
            Some(quantised) => quantised.weights(&own),
            None => own,
        }
    }

    /// The tokenizer, which whatever handles text needs.
    pub(super) fn tokenizer(&self) -> Outcome<&Arc<Tokenizer>> {
        let name = self.checkpoint.name();
        let missing = || format!("{name} has no tokenizer.json, which turning text into tokens needs");
        self.checkpoint.tokenizer().ok_or_else(|| Failure::new(Status::Unsupported, missing()))
    }

    /// The chat template.
    pub(super) fn template(&self) -> Outcome<&ChatTemplate> {
        if let Some(template) = &self.template {
            return Ok(template);
        }
        let name = self.checkpoint.name();
        let missing = || {
            let found = format!("{name} has no chat template: it continues text");
            Failure::new(Status::Unsupported, format!("{found} (chat_template of eesd_model_params gives it one)"))
        };
        self.checkpoint.chat_template()?.ok_or_else(missing)
    }

    /// What makes tokens of prompts.
    pub(super) fn encoder(&self) -> PromptEncoder<'_> {
        PromptEncoder {
            tokenizer: self.checkpoint.tokenizer().map(Arc::as_ref),
            template: self.template().map_err(|failure| failure.message),
            arguments: self.arguments.clone(),
        }
    }

    /// The tokens of a prompt.
    pub(super) fn encode(&self, prompt: Prompt) -> Outcome<Vec<TokenId>> {
        match prompt {
            Prompt::Tokens(tokens) => Ok(tokens),
            Prompt::Text(text) => self.tokenizer()?.encode(&text, true).map_err(|error| Failure::refused(&error)),
            Prompt::Chat(_) => {
                // Their own errors tell what is broken from what is not there.
                self.template()?;
                self.tokenizer()?;
                Ok(self.encoder().encode(&prompt)?)
            }
        }
    }
}

impl Handled for Model {
    const KIND: &'static str = "model";

    fn of(object: &Object) -> Option<&Arc<Self>> {
        match object {
            Object::Model(model) => Some(model),
            Object::Session(_) => None,
        }
    }

    fn into_object(this: Arc<Self>) -> Object {
        Object::Model(this)
    }
}

/// Which model to open. Begin with eesd_model_params_default().
#[repr(C)]
pub struct ModelParams {
    /// sizeof(eesd_model_params).
    pub struct_size: usize,
    /// A Hugging Face model folder or a GGUF file (any part, where it is split), in UTF-8. NULL: the small model inside the
    /// library.
    pub folder: *const c_char,
    /// N of an exit-N.safetensors beside the model, which comes after N layers; EESD_EXIT_DEFAULT or EESD_EXIT_NONE.
    pub exit_layer: i32,
    /// An exit block by its file, in UTF-8, with exit_layer EESD_EXIT_DEFAULT; else NULL.
    pub exit_file: *const c_char,
    /// As after eesd-run's --quantize: "q8" or "q4" puts the matrices of a 16- or 32-bit model into blocks of 8 or 4 bits as it
    /// is opened, which takes memory of their size. NULL: they stay as they are stored.
    pub quantize: *const c_char,
    /// A file with the chat template in the place of the model's own, in UTF-8: Jinja, or JSON with the key chat_template. NULL:
    /// the model's own, where it has one.
    pub chat_template: *const c_char,
    /// Values that the chat template reads, under those that a conversation has in chat_template_kwargs: a JSON object, such as
    /// {"enable_thinking": false}. NULL: none.
    pub template_arguments: *const c_char,
}

// SAFETY: repr(C), struct_size first.
unsafe impl Versioned for ModelParams {
    const NAME: &'static str = "eesd_model_params";
}

// SAFETY: integers and pointers.
unsafe impl Incoming for ModelParams {}

/// What a model is.
#[repr(C)]
pub struct ModelInfo {
    /// sizeof(eesd_model_info); to be set before the call.
    pub struct_size: usize,
    /// The name of the folder, or of the GGUF file without its ending, or "pycode-4m".
    pub name: [c_char; 128],
    /// "llama", "mistral", "qwen2" or "qwen3".
    pub family: [c_char; 32],
    /// 32 hexadecimal digits, which exit blocks for the model carry.
    pub fingerprint: [c_char; 40],
    /// Tokens of the vocabulary: ids are below it.
    pub vocab_size: usize,
    /// Longest sequence that the model was trained for, in tokens.
    pub max_positions: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Parameters; a tied head counts once.
    pub parameters: u64,
    /// Bytes of the weights as stored, or as quantised.
    pub bytes: u64,
    /// "q8" or "q4", as eesd_model_params asked; "": as stored.
    pub quantized: [c_char; 16],
    /// N of the exit block, the layers before it; 0: there is none.
    pub exit_layer: usize,
    /// Parameters of the exit block.
    pub exit_parameters: u64,
    /// Bytes of the exit block as stored.
    pub exit_bytes: u64,
    /// 1: there is a tokenizer. 0: prompts are tokens, answers have no text.
    pub has_tokenizer: i32,
    /// 1: there is a chat template.
    pub has_chat_template: i32,
}

// SAFETY: repr(C), struct_size first, integers.
unsafe impl Versioned for ModelInfo {
    const NAME: &'static str = "eesd_model_info";
}

/// Fills in the defaults: the model inside the library, EESD_EXIT_DEFAULT, weights as stored.
///
/// struct_size: sizeof(eesd_model_params).
///
/// # Safety
///
/// `params` is NULL or good to write for `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_model_params_default(params: *mut ModelParams, struct_size: usize) -> Status {
    entry(|| {
        check_size::<ModelParams>(struct_size)?;
        let null = std::ptr::null();
        // SAFETY: as large as a `ModelParams` by the check; the caller vouches for the rest.
        unsafe { Place::new(params, ModelParams::NAME) }?.write(ModelParams {
            struct_size,
            folder: null,
            exit_layer: EESD_EXIT_DEFAULT,
            exit_file: null,
            quantize: null,
            chat_template: null,
            template_arguments: null,
        });
        Ok(())
    })
}

/// Opens a model; *model gets a handle for eesd_model_free().
///
/// Weights are mapped, not read: the model's files must stay as they are until the model and all its sessions are freed.
///
/// # Safety
///
/// `params` is NULL or as its struct_size says, its texts end in zeros; `model` is NULL or good to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_model_load(params: *const ModelParams, model: *mut *mut Model) -> Status {
    entry(|| {
        // SAFETY: the caller vouches for each of them.
        let (place, params) = unsafe { (Place::new(model, "model")?, structure(params)?) };
        // SAFETY: the same.
        let folder = unsafe { optional_string(params.folder, "folder") }?.map(Path::new);
        // SAFETY: the same.
        let exit_file = unsafe { optional_string(params.exit_file, "exit_file") }?.map(Path::new);
        // SAFETY: the same.
        let quantize = unsafe { optional_string(params.quantize, "quantize") }?.map(scheme).transpose()?;
        // SAFETY: the same.
        let template = unsafe { optional_string(params.chat_template, "chat_template") }?.map(Path::new);
        // SAFETY: the same.
        let arguments = unsafe { optional_string(params.template_arguments, "template_arguments") }?;
        let arguments = arguments.map(|text| json_object(text, "template_arguments")).transpose()?.unwrap_or_default();
        let checkpoint = match folder {
            Some(folder) => Checkpoint::open(folder)?,
            None => Checkpoint::bundled()?,
        };
        let template = template.map(|file| checkpoint.chat_template_from(file)).transpose()?;
        checkpoint.notes().iter().for_each(|note| log(LogLevel::Warning, || note.clone()));
        let exit = exit_block(&checkpoint, params.exit_layer, exit_file, folder.is_none())?;
        let notes = exit.iter().flat_map(ExitBlock::notes);
        notes.for_each(|note| log(LogLevel::Warning, || note.clone()));
        let quantised = quantize.map(|scheme| quantise(&checkpoint, scheme)).transpose()?;
        log(LogLevel::Info, || {
            let exit =
                exit.as_ref().map_or("no exit block".into(), |exit| format!("exit block after {}", exit.after()));
            format!("opened {}: {} parameters, {exit}", checkpoint.name(), checkpoint.parameters())
        });
        let grammars = Grammars::new(checkpoint.tokenizer().cloned(), checkpoint.geometry().vocab_size);
        let model = Model { checkpoint, exit, quantised, template, arguments, grammars };
        place.write(handle::register(Arc::new(model))?);
        Ok(())
    })
}

fn scheme(name: &str) -> Outcome<Scheme> {
    match name {
        "q8" => Ok(Scheme::Q8),
        "q4" => Ok(Scheme::Q4),
        other => Err(Failure::argument(format!("quantize: {other:?} (expected \"q8\", \"q4\" or NULL)"))),
    }
}

/// A model's matrices in blocks.
fn quantise(checkpoint: &Checkpoint, scheme: Scheme) -> Outcome<Quantised> {
    let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let failed =
        |error| Failure::new(Status::LoadFailed, format!("quantize: {scheme}: {}: {error}", checkpoint.name()));
    let quantised = Quantised::of(&checkpoint.weights(), scheme, threads).map_err(failed)?;
    if quantised.kept() > 0 {
        let why = "quantised already, or rows of no whole blocks of 32";
        log(LogLevel::Warning, || {
            format!("quantize: {scheme}: {} matrices stay as they are ({why})", quantised.kept())
        });
    }
    Ok(quantised)
}

/// Frees a model's handle; NULL does nothing. Sessions over the model keep it and go on.
#[unsafe(no_mangle)]
pub extern "C" fn eesd_model_free(model: *mut Model) -> Status {
    entry(|| if model.is_null() { Ok(()) } else { handle::remove(model).map(drop) })
}

/// Describes a model.
///
/// # Safety
///
/// `info` is NULL, or as its struct_size, which is set, says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_model_get_info(model: *const Model, info: *mut ModelInfo) -> Status {
    entry(|| {
        let model = handle::find(model)?;
        // SAFETY: the caller vouches for it.
        let place = unsafe { Place::structure(info) }?;
        let (checkpoint, exit) = (&model.checkpoint, model.exit.as_ref());
        let geometry = checkpoint.geometry();
        let saved = model.quantised.as_ref().map_or(0, |quantised| quantised.saved(&checkpoint.weights()));
        let scheme = model.quantised.as_ref().map(|quantised| quantised.scheme().to_string()).unwrap_or_default();
        place.write(ModelInfo {
            struct_size: size_of::<ModelInfo>(),
            name: fixed(checkpoint.name()),
            family: fixed(&geometry.family),
            fingerprint: fixed(checkpoint.fingerprint()),
            vocab_size: geometry.vocab_size,
            max_positions: geometry.max_positions,
            layers: geometry.layers,
            hidden_size: geometry.hidden_size,
            intermediate_size: geometry.intermediate_size,
            heads: geometry.heads,
            kv_heads: geometry.kv_heads,
            head_dim: geometry.head_dim,
            parameters: checkpoint.parameters(),
            bytes: checkpoint.bytes() - saved,
            quantized: fixed(&scheme),
            exit_layer: exit.map_or(0, ExitBlock::after),
            exit_parameters: exit.map_or(0, ExitBlock::parameters),
            exit_bytes: exit.map_or(0, ExitBlock::bytes),
            has_tokenizer: checkpoint.tokenizer().is_some().into(),
            has_chat_template: model.template().is_ok().into(),
        });
        Ok(())
    })
}
