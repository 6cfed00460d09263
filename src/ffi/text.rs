//! Texts: to tokens and back, and conversations by the chat template.

use super::argument::{Text, fill, json, slice, string, terminated, text, within};
use super::handle;
use super::model::Model;
use super::status::{Failure, Outcome, Status, entry};
use crate::TokenId;
use crate::load::{Chat, Message, Prompt};
use std::ffi::c_char;

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
        let encoded = model.tokenizer()?.encode(text, begin != 0).map_err(|error| Failure::refused(&error))?;
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
        let text = terminated(model.tokenizer()?.decode(tokens));
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
        let read = |message: &ChatMessage| {
            // SAFETY: the same.
            let role = unsafe { string(message.role, "role") }?;
            // SAFETY: the same.
            let content = unsafe { text(message.content.data, message.content.length, "content") }?;
            Ok(Message::new(role, content))
        };
        let messages = messages.iter().map(read).collect::<Outcome<Vec<_>>>()?;
        let prompt = written(&model, Chat::new(messages))?;
        // SAFETY: the same.
        unsafe { fill(&prompt, buffer.cast(), capacity, needed) }
    })
}

/// The same for a conversation in JSON: an object with "messages", each with a "role", a "content" (a text, or a list of text
/// parts) and whatever else the template reads ("name", "tool_calls", "tool_call_id", ...), and beside them "tools",
/// "documents" and "chat_template_kwargs", where there are any. These keys of eesd_request's json make the same prompt.
///
/// # Safety
///
/// `json` is good to read for `length` bytes, `buffer` to write for `capacity` bytes, `needed` is NULL or good to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_apply_chat_template_json(
    model: *const Model,
    json: *const c_char,
    length: usize,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    entry(|| {
        let model = handle::find(model)?;
        // SAFETY: the caller vouches for it.
        let mut keys = unsafe { self::json(json, length, "json") }?;
        let wrong = |error: String| Failure::argument(format!("json: {error}"));
        if keys.raw("prompt").is_some() {
            return Err(wrong("\"prompt\" is no conversation (expected \"messages\")".into()));
        }
        let prompt = Prompt::of_keys(&mut keys).map_err(wrong)?;
        keys.finish("messages, tools, documents and chat_template_kwargs").map_err(wrong)?;
        let Prompt::Chat(chat) = prompt else { return Err(wrong("no \"messages\"".into())) };
        let prompt = written(&model, *chat)?;
        // SAFETY: the same.
        unsafe { fill(&prompt, buffer.cast(), capacity, needed) }
    })
}

/// What the chat template writes, with a zero at its end.
fn written(model: &Model, chat: Chat) -> Outcome<Vec<u8>> {
    model.template()?;
    let text = model.encoder().text(&Prompt::Chat(Box::new(chat)))?;
    Ok(terminated(text.unwrap_or_default()))
}

/// The spelling of a token in the vocabulary, which may be no text: "\u0120def", "<0x0A>", "<|im_end|>". Buffer, capacity and needed
/// as for eesd_detokenize(), which tells a token's text.
///
/// EESD_STATUS_NOT_FOUND if the vocabulary has no such token.
///
/// # Safety
///
/// `buffer` is good to write for `capacity` bytes, `needed` is NULL or good to write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn eesd_token_spelling(
    model: *const Model,
    token: TokenId,
    buffer: *mut c_char,
    capacity: usize,
    needed: *mut usize,
) -> Status {
    entry(|| {
        let model = handle::find(model)?;
        let none = || Failure::new(Status::NotFound, format!("the vocabulary has no token {token}"));
        let spelling = terminated(model.tokenizer()?.token(token).ok_or_else(none)?);
        // SAFETY: the caller vouches for it.
        unsafe { fill(&spelling, buffer.cast(), capacity, needed) }
    })
}
