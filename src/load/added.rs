//! Tokens that stand outside of tokenizer.json: in `added_tokens_decoder` of tokenizer_config.json, in
//! added_tokens.json, and under the names of special tokens.
//!
//! They become tokens of the tokenizer as Hugging Face transformers makes them so, but with the ids that the files give:
//! `tokenizers` counts an added token's id up from the vocabulary's size, whatever the files say.

use super::error::{short, spelling};
use super::json::{Document, Object};
use super::source::Source;
use super::tokenizer::guarded;
use super::{LoadError, limits, specials};
use crate::TokenId;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tokenizers::{AddedToken, Model};

const CONFIG: &str = "tokenizer_config.json";
const ADDED: &str = "added_tokens.json";
const DECODER: &str = "added_tokens_decoder";
/// Lists of special tokens without a name, in older and newer files.
const UNNAMED: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// The files beside tokenizer.json, where they are there.
pub(super) struct TokenFiles {
    config: Option<Document>,
    map: Option<Document>,
    added: Option<Document>,
}

impl TokenFiles {
    pub(super) fn read(source: &Source) -> Result<Self, LoadError> {
        Ok(Self {
            config: Document::read(source, CONFIG)?,
            map: Document::read(source, specials::FILE)?,
            added: Document::read(source, ADDED)?,
        })
    }

    /// Root of `tokenizer_config.json`.
    pub(super) fn config(&self) -> Option<Object<'_>> {
        self.config.as_ref().map(Document::root)
    }

    /// Root of `special_tokens_map.json`.
    pub(super) fn map(&self) -> Option<Object<'_>> {
        self.map.as_ref().map(Document::root)
    }
}

/// Where the ids of `tokenizers` and of the model's files differ.
#[derive(Default)]
pub(super) struct Ids {
    to_model: BTreeMap<TokenId, TokenId>,
    to_tokenizers: BTreeMap<TokenId, TokenId>,
    /// Spellings that have an id by no file: the next one, as transformers gives it.
    made_up: BTreeSet<String>,
}

impl Ids {
    pub(super) fn to_model(&self, id: TokenId) -> TokenId {
        self.to_model.get(&id).copied().unwrap_or(id)
    }

    /// `None`: no token has this id, though one of `tokenizers` does.
    pub(super) fn to_tokenizers(&self, id: TokenId) -> Option<TokenId> {
        match self.to_tokenizers.get(&id) {
            None if self.to_model.contains_key(&id) => None,
            moved => Some(moved.copied().unwrap_or(id)),
        }
    }

    pub(super) fn is_made_up(&self, token: &str) -> bool {
        self.made_up.contains(token)
    }

    fn moved(&mut self, from: TokenId, to: TokenId) {
        if from != to {
            self.to_model.insert(from, to);
            self.to_tokenizers.insert(to, from);
        }
    }
}

/// A token to be added, or to be given other flags.
struct Addition {
    id: TokenId,
    token: AddedToken,
    /// It is of added_tokens.json, where only the names of special tokens tell which ones are special.
    unmarked: bool,
}

/// What is to be added to a tokenizer.
struct Additions<'a> {
    inner: &'a tokenizers::Tokenizer,
    ids: Ids,
    /// By spelling.
    tokens: BTreeMap<String, Addition>,
    /// Spellings of the ids that they take.
    taken: BTreeMap<TokenId, String>,
    /// The id for a token that no file gives one, once it was looked for.
    next: Option<TokenId>,
}

/// Adds the tokens of the files beside tokenizer.json to its own.
///
/// # Errors
/// If two files give a token two ids or an id two tokens, or an entry is not what it should be.
pub(super) fn add(
    inner: &mut tokenizers::Tokenizer,
    path: &Path,
    declared: Vec<Declared>,
    files: &TokenFiles,
    notes: &mut Vec<String>,
) -> Result<Ids, LoadError> {
    let ids = moved(inner, declared, notes);
    let mut additions = Additions { inner, ids, tokens: BTreeMap::new(), taken: BTreeMap::new(), next: None };
    let decoder = match files.config() {
        Some(config) => config.object(DECODER)?,
        None => None,
    };
    if let Some(decoder) = &decoder {
        for key in decoder.keys() {
            let id = key.parse().map_err(|_| decoder.wrong(key, "a token's id as its key"))?;
            let entry = decoder.object(key)?.ok_or_else(|| decoder.wrong(key, "an object with `content`"))?;
            additions.put(decoder, key, id, with_flags(&entry, false)?)?;
        }
    }
    if let Some(added) = files.added.as_ref().map(Document::root) {
        for key in added.keys() {
            let id = added.unsigned(key)?.and_then(|id| id.try_into().ok());
            let id = id.ok_or_else(|| added.wrong(key, "a token's id"))?;
            check_length(added.path(), key)?;
            match additions.put(&added, key, id, AddedToken::from(key, false)) {
                // As in transformers, the newer way to list them outdoes the older.
                Err(_) if decoder.is_some() => {
                    notes.push(added.ignored(key, &format!("what {DECODER} of {CONFIG} and tokenizer.json say")));
                }
                other => other?,
            }
        }
    }
    for object in [files.config(), files.map()].iter().flatten() {
        for key in specials::NAMES {
            if let Some(value) = object.value(key) {
                additions.make_special(object, key, special(object, key, value)?, notes);
            }
        }
        for key in UNNAMED {
            for token in unnamed(object, key)? {
                additions.make_special(object, key, token, notes);
            }
        }
    }
    let Additions { mut ids, tokens, .. } = additions;
    let mut tokens: Vec<Addition> = tokens.into_values().collect();
    tokens.sort_by_key(|addition| addition.id);
    let new = |addition: &&Addition| inner.token_to_id(&addition.token.content).is_none();
    let new: BTreeMap<String, TokenId> =
        tokens.iter().filter(new).map(|addition| (addition.token.content.clone(), addition.id)).collect();
    let tokens: Vec<AddedToken> = tokens.into_iter().map(|addition| addition.token).collect();
    guarded(path, || Ok(inner.add_tokens(&tokens)))?;
    for (content, id) in new {
        if let Some(given) = inner.token_to_id(&content) {
            ids.moved(given, id);
        }
    }
    refuse_shared_ids(inner, path)?;
    Ok(ids)
}

/// Where a vocabulary's ids have gaps, `tokenizers` can give an added token the id of another one.
fn refuse_shared_ids(inner: &tokenizers::Tokenizer, path: &Path) -> Result<(), LoadError> {
    for (&id, AddedToken { content, .. }) in inner.get_added_vocabulary().get_added_tokens_decoder() {
        if let Some(other) = inner.get_model().id_to_token(id).filter(|other| other != content)
            && inner.get_model().token_to_id(content) != Some(id)
        {
            let message = format!(
                "added token {} would get id {id} of the vocabulary's {}, which has gaps",
                spelling(content),
                spelling(&other)
            );
            return Err(LoadError::tokenizer(path, message));
        }
    }
    Ok(())
}

/// An added token of tokenizer.json with its id there.
#[derive(serde::Deserialize)]
pub(super) struct Declared {
    id: TokenId,
    content: String,
}

/// The added tokens that tokenizer.json lists, of which `tokenizers` does not keep the ids.
pub(super) fn declared(path: &Path, json: &[u8]) -> Result<Vec<Declared>, LoadError> {
    #[derive(serde::Deserialize)]
    struct File {
        #[serde(default)]
        added_tokens: Vec<Declared>,
    }
    let file: File = serde_json::from_slice(json).map_err(|error| LoadError::tokenizer(path, error))?;
    file.added_tokens.iter().try_for_each(|token| check_length(path, &token.content))?;
    let bytes = file.added_tokens.iter().map(|token| token.content.len()).sum::<usize>();
    if bytes > limits::ADDED_TOKENS_BYTES {
        return Err(LoadError::limit(path, "bytes of all added tokens", bytes, limits::ADDED_TOKENS_BYTES as u64));
    }
    Ok(file.added_tokens)
}

/// Where `tokenizers` has other ids for added tokens than tokenizer.json itself.
fn moved(inner: &tokenizers::Tokenizer, declared: Vec<Declared>, notes: &mut Vec<String>) -> Ids {
    let mut ids = Ids::default();
    for Declared { id, content } in declared {
        let Some(given) = inner.token_to_id(&content).filter(|&given| given != id) else { continue };
        let in_vocabulary = inner.get_model().token_to_id(&content).is_some();
        if in_vocabulary || inner.get_model().id_to_token(id).is_some() || ids.to_tokenizers.contains_key(&id) {
            let content = spelling(&content);
            notes
                .push(format!("tokenizer.json: added token {content} has id {id}, expected {given}: taken as {given}"));
        } else {
            ids.moved(given, id);
        }
    }
    ids
}

impl Additions<'_> {
    fn id(&self, token: &str) -> Option<TokenId> {
        let of_tokenizer = || self.inner.token_to_id(token).map(|id| self.ids.to_model(id));
        self.tokens.get(token).map(|addition| addition.id).or_else(of_tokenizer)
    }

    /// The token that has an id, and where.
    fn holder(&self, id: TokenId) -> Option<(String, &'static str)> {
        let of_tokenizer = || {
            let token = self.inner.id_to_token(self.ids.to_tokenizers(id)?)?;
            Some((token, "in tokenizer.json"))
        };
        of_tokenizer().or_else(|| self.taken.get(&id).map(|token| (token.clone(), "already")))
    }

    /// Puts in a token that a file has under `key`, with its id.
    fn put(&mut self, object: &Object<'_>, key: &str, id: TokenId, token: AddedToken) -> Result<(), LoadError> {
        if token.content.is_empty() {
            return Err(object.wrong(key, "a token of at least one byte"));
        }
        let content = token.content.clone();
        if let Some(other) = self.id(&content).filter(|&other| other != id) {
            let place = if self.tokens.contains_key(&content) { "already" } else { "in tokenizer.json" };
            return Err(contradiction(
                object,
                key,
                id,
                &content,
                format!("{} to have id {other}, as {place}", spelling(&content)),
            ));
        }
        if let Some((holder, place)) = self.holder(id).filter(|(holder, _)| *holder != content) {
            return Err(contradiction(
                object,
                key,
                id,
                &content,
                format!("id {id} to be {}, as {place}", spelling(&holder)),
            ));
        }
        if self.added(&content) != Some(&token) {
            self.taken.insert(id, content.clone());
            let unmarked = object.file() == ADDED;
            self.tokens.insert(content, Addition { id, token, unmarked });
        }
        Ok(())
    }

    /// Makes a token special that a file names under `key`. One that no file gives an id gets the next one.
    fn make_special(&mut self, object: &Object<'_>, key: &str, mut token: AddedToken, notes: &mut Vec<String>) {
        token.special = true;
        if token.content.is_empty() {
            return;
        }
        if let Some(addition) = self.tokens.get_mut(&token.content) {
            addition.token.normalized &= !addition.unmarked;
            addition.token.special = true;
            return;
        }
        if self.inner.get_added_vocabulary().is_special_token(&token.content) {
            return;
        }
        if let Some(there) = self.added(&token.content) {
            token = AddedToken { special: true, ..there.clone() };
        }
        let id = self.id(&token.content).unwrap_or_else(|| {
            let next = self.next_id();
            let (file, content) = (object.file(), spelling(&token.content));
            notes.push(format!(
                "{file}: `{key}` names {content}, which no file gives an id: it gets the next one, {next}"
            ));
            self.ids.made_up.insert(token.content.clone());
            next
        });
        self.taken.insert(id, token.content.clone());
        self.tokens.insert(token.content.clone(), Addition { id, token, unmarked: false });
    }

    /// The added token of tokenizer.json that is spelled so.
    fn added(&self, content: &str) -> Option<&AddedToken> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&self.inner.token_to_id(content)?).filter(|token| token.content == content)
    }

    fn next_id(&mut self) -> TokenId {
        let next = self.next.unwrap_or_else(|| {
            let there = self.inner.get_vocab(true).into_values().map(|id| self.ids.to_model(id)).max();
            there.max(self.taken.keys().next_back().copied()).map_or(0, |last| last.saturating_add(1))
        });
        self.next = Some(next.saturating_add(1));
        next
    }
}

fn contradiction(object: &Object<'_>, key: &str, id: TokenId, content: &str, expected: String) -> LoadError {
    LoadError::Key {
        path: object.path().to_path_buf(),
        key: short(object.name(key)),
        found: format!("{} with id {id}", spelling(content)),
        expected,
    }
}

fn check_length(path: &Path, token: &str) -> Result<(), LoadError> {
    let most = limits::ADDED_TOKEN_BYTES;
    match token.len() > most {
        true => {
            Err(LoadError::limit(path, format!("bytes of the token {}", spelling(token)), token.len(), most as u64))
        }
        false => Ok(()),
    }
}

/// A special token: a string, or an object with its `content` and flags.
fn special(object: &Object<'_>, name: &str, value: &Value) -> Result<AddedToken, LoadError> {
    match (value, object.child(name, value)) {
        (Value::String(content), _) => {
            check_length(object.path(), content)?;
            Ok(AddedToken::from(content, true))
        }
        (_, Some(entry)) => with_flags(&entry, true),
        _ => Err(object.wrong(name, "a string or an object with `content`")),
    }
}

/// `special`: what the token is where its entry does not say.
fn with_flags(entry: &Object<'_>, special: bool) -> Result<AddedToken, LoadError> {
    let content = entry.text("content")?.ok_or_else(|| entry.wrong("content", "a string"))?;
    check_length(entry.path(), content)?;
    let flag = |key: &str, default: bool| Ok(entry.flag(key)?.unwrap_or(default));
    let special = flag("special", special)?;
    Ok(AddedToken {
        content: content.to_owned(),
        single_word: flag("single_word", false)?,
        lstrip: flag("lstrip", false)?,
        rstrip: flag("rstrip", false)?,
        normalized: flag("normalized", !special)?,
        special,
    })
}

/// The tokens of a list, or of an object that names them.
fn unnamed(object: &Object<'_>, key: &str) -> Result<Vec<AddedToken>, LoadError> {
    match object.value(key) {
        None => Ok(Vec::new()),
        Some(Value::Object(names)) => {
            names.iter().map(|(name, value)| special(object, &format!("{key}.{name}"), value)).collect()
        }
        Some(Value::Array(items)) => {
            items.iter().enumerate().map(|(n, value)| special(object, &format!("{key}[{n}]"), value)).collect()
        }
        Some(_) => Err(object.wrong(key, "a list of tokens")),
    }
}
