//! Models: opened, described, freed; text to tokens and back.

use super::argument::{
    Incoming, Place, Text, Versioned, check_size, fill, fixed, optional_string, slice, string, structure, terminated,
    text, within,
};
use super::exit_choice::{EESD_EXIT_DEFAULT, exit_block};
use super::handle::{self, Handled, Object};
use super::log::{LogLevel, log};
use super::status::{Failure, Outcome, Status, entry};
use crate::TokenId;
use crate::load::{Chat, Checkpoint, ExitBlock, Message, Tokenizer};
use crate::model::{ModelWeights, Quantised, Scheme};
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

/// One message of a conversation.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct ChatMessage {
    /// "system", "user" or "assistant", or what else the template knows; ends in a zero.
    pub role: *const c_char,
    /// What is said.
    pub content: Text,
}

/// Most messages of a conversation.
const MOST_MESSAGES: usize = 1 << 20;
/// Most tokens that are turned into text at a time.
const MOST_TOKENS: usize = 1 << 28;

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
        let checkpoint = match folder {
            Some(folder) => Checkpoint::open(folder)?,
            None => Checkpoint::bundled()?,
        };
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
        place.write(handle::register(Arc::new(Model { checkpoint, exit, quantised }))?);
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
            has_chat_template: matches!(checkpoint.chat_template(), Ok(Some(_))).into(),
        });
        Ok(())
    })
}

pub(super) fn tokenizer(model: &Model) -> Outcome<&Arc<Tokenizer>> {
    let missing = || format!("{} has no tokenizer.json, which turning text into tokens needs", model.checkpoint.name());
    model.checkpoint.tokenizer().ok_or_else(|| Failure::new(Status::Unsupported, missing()))
}

/// Turns a text into tokens.
///
/// begin: other than 0 puts before them what the model wants at a text's start, unless the text has it already; 0 for
/// what a chat template wrote. *needed (may be NULL) gets the number of tokens; where it is more than capacity, nothing is
/// written to tokens, and the status is EESD_STATUS_BUFFER_TOO_SMALL: capacity 0 asks for the number.
///
/// # Safety
///
/// `data` is good to read for `length` bytes, `tokens` to write for `capacity` tokens, `needed` is NULL or good to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_tokenize(
    model: *const Model,
    data: *const c_char,
    length: usize,
    begin: i32,
    tokens: *mut TokenId,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    entry(|| {
        let model = handle::find(model)?;
        // SAFETY: the caller vouches for it.
        let text = unsafe { text(data, length, "text") }?;
        let encoded = tokenizer(&model)?.encode(text, begin != 0)?;
        // SAFETY: the same.
        unsafe { fill(&encoded, tokens, capacity, needed) }
    })
}

/// Turns tokens into a text, special tokens left out.
///
/// *needed (may be NULL) gets the text's length in bytes with the final zero; where it is more than capacity, nothing is
/// written to buffer, and the status is EESD_STATUS_BUFFER_TOO_SMALL.
///
/// # Safety
///
/// `tokens` is good to read for `count` tokens, `buffer` to write for `capacity` bytes, `needed` is NULL or good to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_detokenize(
    model: *const Model,
    tokens: *const TokenId,
    count: usize,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    entry(|| {
        let model = handle::find(model)?;
        // SAFETY: the caller vouches for it.
        let tokens = unsafe { slice(tokens, count, MOST_TOKENS, "tokens") }?;
        let text = terminated(tokenizer(&model)?.decode(tokens));
        // SAFETY: the same.
        unsafe { fill(&text, buffer.cast(), capacity, needed) }
    })
}

/// Writes a conversation as the model's chat template does, up to where the assistant answers; to be tokenized with begin
/// 0. Buffer, capacity and needed as for eesd_detokenize().
///
/// # Safety
///
/// `messages` is good to read for `count` messages, whose roles end in zeros and whose contents are as long as they say;
/// `buffer` is good to write for `capacity` bytes, `needed` is NULL or good to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_apply_chat_template(
    model: *const Model,
    messages: *const ChatMessage,
    count: usize,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    entry(|| {
        let model = handle::find(model)?;
        within(count, 1, MOST_MESSAGES, "count")?;
        // SAFETY: the caller vouches for it.
        let messages = unsafe { slice(messages, count, MOST_MESSAGES, "messages") }?;
        let name = model.checkpoint.name();
        let missing = || Failure::new(Status::Unsupported, format!("{name} has no chat template: it continues text"));
        let template = model.checkpoint.chat_template()?.ok_or_else(missing)?;
        let read = |message: &ChatMessage| {
            // SAFETY: the same.
            let role = unsafe { string(message.role, "role") }?;
            // SAFETY: the same.
            let content = unsafe { text(message.content.data, message.content.length, "content") }?;
            Ok(Message::new(role, content))
        };
        let messages = messages.iter().map(read).collect::<Outcome<Vec<_>>>()?;
        let prompt = terminated(template.render(&Chat::new(messages))?);
        // SAFETY: the same.
        unsafe { fill(&prompt, buffer.cast(), capacity, needed) }
    })
}
