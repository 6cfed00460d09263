//! JSON schemas and grammars, by the `llguidance` crate.
//!
//! It compiles a grammar to an Earley parser over a lexer of regular expression derivatives, goes through the trie of the
//! vocabulary with it to find the tokens that may follow, and knows which bytes a grammar forces; where these have one way to
//! be cut into tokens, that of the tokenizer is the only one allowed.

use super::vocabulary::Vocabulary;
use super::{Constraint, GrammarError, TokenSet, Walk};
use crate::TokenId;
use crate::load::Tokenizer;
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::TokEnv;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Most bytes of a schema or a grammar, as text.
pub const MOST_GRAMMAR_BYTES: usize = 256 << 10;
/// Most symbols in the rules that it comes to.
const MOST_SYMBOLS: usize = 200_000;
/// Most work, in the crate's own measure, to make its lexer: some 20 ms.
const MOST_LEXER_WORK: u64 = 1_000_000;

/// Grammars that are kept for requests to come, and requests that one of them serves at most.
const MOST_RECENT: usize = 16;
const MOST_USES: usize = 1000;

/// Attributes of rules that grammars may not have: they would not be honoured, or not be taken back with refused drafts.
const REFUSED_ATTRIBUTES: [&str; 4] = ["temperature", "max_tokens", "stop", "stop_capture"];

/// Compiles the grammars of one model. What they need of its vocabulary is made when the first one is compiled.
pub struct Grammars {
    tokenizer: Option<Arc<Tokenizer>>,
    vocab: usize,
    factory: OnceLock<Result<Factory, GrammarError>>,
    /// Those compiled last, by what they were compiled from, and how often each was asked for.
    recent: Mutex<Vec<(String, Arc<Grammar>, usize)>>,
}

struct Factory {
    parsers: ParserFactory,
    /// The token that stands for the end of the answer.
    end: TokenId,
}

impl Grammars {
    /// Of a model with this tokenizer and so many tokens.
    pub fn new(tokenizer: Option<Arc<Tokenizer>>, vocab: usize) -> Self {
        Self { tokenizer, vocab, factory: OnceLock::new(), recent: Mutex::default() }
    }

    /// JSON of a schema: an object, or `true` for any JSON. Between tokens of JSON stands one space, after `,` and `:`; the
    /// schema may have it otherwise by llguidance's own key `x-guidance`, as in `{"whitespace_flexible": true}`.
    ///
    /// # Errors
    /// If the schema is no schema, cannot be fulfilled, or has a keyword that is not supported.
    pub fn json_schema(&self, schema: &Value) -> Result<Arc<Grammar>, GrammarError> {
        let text = schema.to_string();
        if text.len() > MOST_GRAMMAR_BYTES {
            return Err(too_large(text.len()));
        }
        self.recent(format!("json:{text}"), || self.compile_schema(schema))
    }

    /// A grammar in llguidance's dialect of Lark: a text that follows its rule `start`.
    ///
    /// # Errors
    /// If it is no grammar, or has attributes that are not supported.
    pub fn lark(&self, text: &str) -> Result<Arc<Grammar>, GrammarError> {
        if text.len() > MOST_GRAMMAR_BYTES {
            return Err(too_large(text.len()));
        }
        self.recent(format!("lark:{text}"), || self.compile_lark(text))
    }

    /// One that was compiled lately, or else is now: what it has learned of its lexer serves other requests too. After many
    /// of them it begins anew, because what it learns takes memory.
    fn recent(
        &self,
        source: String,
        compile: impl FnOnce() -> Result<Grammar, GrammarError>,
    ) -> Result<Arc<Grammar>, GrammarError> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = recent.iter().position(|(of, ..)| *of == source) {
            let (source, grammar, uses) = recent.remove(at);
            if uses < MOST_USES {
                recent.push((source, grammar.clone(), uses + 1));
                return Ok(grammar);
            }
        }
        // Nobody else waits while this one is compiled.
        drop(recent);
        let grammar = Arc::new(compile()?);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= MOST_RECENT {
            recent.remove(0);
        }
        recent.push((source, grammar.clone(), 1));
        Ok(grammar)
    }

    fn compile_schema(&self, schema: &Value) -> Result<Grammar, GrammarError> {
        let mut spaced = match schema {
            Value::Bool(true) => json!({}),
            other => other.clone(),
        };
        if let Some(keys) = spaced.as_object_mut() {
            let mut layout = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
            if let (Some(layout), Some(given)) = (layout.as_object_mut(), keys.get("x-guidance")) {
                let given = given.as_object().ok_or_else(|| {
                    GrammarError::new(format!("\"x-guidance\" is {given}"), "an object of llguidance's options")
                })?;
                layout.extend(given.clone());
            }
            keys.insert("x-guidance".into(), layout);
        }
        self.compile("JSON schema", TopLevelGrammar::from_json_schema(spaced)).map_err(|message| match message {
            Refusal::Error(error) => error,
            Refusal::Message(message) => refused_schema(schema, &message),
        })
    }

    fn compile_lark(&self, text: &str) -> Result<Grammar, GrammarError> {
        if let Some((line, attribute)) = refused_attribute(text) {
            let found = format!("line {line}: the attribute {attribute:?}, which is not supported");
            return Err(GrammarError::new(found, "the lengths and temperatures of answers among a request's settings"));
        }
        self.compile("grammar", TopLevelGrammar::from_lark(text.to_owned())).map_err(|message| match message {
            Refusal::Error(error) => error,
            Refusal::Message(message) => GrammarError::new(message, "a Lark grammar with a rule \"start\""),
        })
    }

    fn compile(&self, name: &'static str, grammar: TopLevelGrammar) -> Result<Grammar, Refusal> {
        let Factory { parsers, end } = self.factory().as_ref().map_err(|error| Refusal::Error(error.clone()))?;
        let parser = parsers.create_parser(grammar).map_err(|error| Refusal::Message(first_lines(&error)))?;
        let rollback = parser.parser.grammar().lexer_spec().check_rollback();
        rollback.map_err(|error| Refusal::Message(first_lines(&error)))?;
        let grammar = Grammar { name, matcher: Matcher::new(Ok(parser)), end: *end };
        let mut walk = grammar.walk();
        // What nothing can follow is no constraint but a mistake; and it would be told only after the first pass.
        let empty = walk.allowed().map_err(Refusal::Message)?.is_empty();
        match empty {
            true => Err(Refusal::Message("no text but the empty one fits".into())),
            false => Ok(grammar),
        }
    }

    fn factory(&self) -> &Result<Factory, GrammarError> {
        self.factory.get_or_init(|| {
            let Some(tokenizer) = &self.tokenizer else {
                return Err(GrammarError::new("a grammar for a model without tokenizer.json", "a model that has one"));
            };
            let vocabulary = Arc::new(Vocabulary::new(tokenizer.clone(), self.vocab));
            let end = vocabulary.end();
            let vocabulary: TokEnv = vocabulary;
            let failed = |error| GrammarError::new(first_lines(&error), "a vocabulary that grammars can be made for");
            let mut parsers = ParserFactory::new_simple(&vocabulary).map_err(failed)?;
            parsers.quiet();
            let limits = parsers.limits_mut();
            limits.verbose_errors = false;
            limits.max_grammar_size = MOST_SYMBOLS;
            limits.initial_lexer_fuel = MOST_LEXER_WORK;
            Ok(Factory { parsers, end })
        })
    }
}

/// A compiled JSON schema or grammar.
pub struct Grammar {
    name: &'static str,
    /// Before the first token. Its copies share what they learn of the lexer.
    matcher: Matcher,
    end: TokenId,
}

impl Grammar {
    fn walk(&self) -> GrammarWalk {
        GrammarWalk { matcher: self.matcher.clone(), end: self.end }
    }
}

impl Constraint for Grammar {
    fn start(&self) -> Box<dyn Walk> {
        Box::new(self.walk())
    }
}

impl fmt::Display for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("name", &self.name).finish_non_exhaustive()
    }
}

struct GrammarWalk {
    matcher: Matcher,
    end: TokenId,
}

impl Walk for GrammarWalk {
    fn push(&mut self, token: TokenId) -> Result<bool, String> {
        Ok(self.matcher.try_consume_tokens(&[token]).map_err(|error| first_lines(&error))? == 1)
    }

    fn pop(&mut self, tokens: usize) -> Result<(), String> {
        self.matcher.rollback(tokens).map_err(|error| first_lines(&error))
    }

    fn allowed(&mut self) -> Result<TokenSet, String> {
        if self.matcher.is_stopped() && !self.matcher.is_error() {
            return Ok(TokenSet::default());
        }
        let allowed = self.matcher.compute_mask().map_err(|error| first_lines(&error))?;
        let mut set = TokenSet::from_words(allowed.as_slice().to_vec());
        set.remove(self.end);
        Ok(set)
    }

    fn may_end(&mut self) -> Result<bool, String> {
        let complete = self.matcher.is_stopped() && !self.matcher.is_error();
        Ok(complete || self.matcher.is_accepting().map_err(|error| first_lines(&error))?)
    }

    fn accepts(&mut self, tokens: &[TokenId]) -> Result<usize, String> {
        self.matcher.validate_tokens(tokens).map_err(|error| first_lines(&error))
    }

    fn forced(&mut self) -> Vec<TokenId> {
        let mut forced = self.matcher.compute_ff_tokens();
        forced.truncate(forced.iter().take_while(|&&token| token != self.end).count());
        forced
    }
}

/// Why a grammar was not compiled.
enum Refusal {
    Error(GrammarError),
    Message(String),
}

fn too_large(bytes: usize) -> GrammarError {
    GrammarError::new(format!("{bytes} bytes"), format!("at most {MOST_GRAMMAR_BYTES}"))
}

/// What the crate says, without what it adds for itself.
fn first_lines(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    let text = text.split("<non-verbose/>").next().unwrap_or_default().split("<backtrace>").next().unwrap_or_default();
    text.trim_end().to_owned()
}

/// The first attribute in a grammar, and its line from 1, that would not be honoured. Attributes stand in brackets after the
/// name of a rule, at the beginning of a line.
fn refused_attribute(text: &str) -> Option<(usize, &'static str)> {
    let of_line = |line: &str| {
        let (name, rest) = line.split_once('[')?;
        let name = name.trim().trim_start_matches(['?', '!']);
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
        let (attributes, rest) = rest.split_once(']').filter(|_| is_name)?;
        let keys = attributes.split(',').map(|attribute| attribute.split('=').next().unwrap_or_default().trim());
        let keys: Vec<&str> = keys.filter(|_| rest.trim_start().starts_with(':')).collect();
        REFUSED_ATTRIBUTES.into_iter().find(|refused| keys.contains(refused))
    };
    text.lines().enumerate().find_map(|(at, line)| Some((at + 1, of_line(line)?)))
}

/// Says where in a schema that is which the crate refuses by its name alone.
fn refused_schema(schema: &Value, message: &str) -> GrammarError {
    let expected = "a JSON schema of what can be guaranteed token by token";
    let unsupported =
        |key: &str, _: &Value| message.starts_with("Unimplemented") && message.contains(&format!("{key:?}"));
    let named = |what: &str, of: &str| message.strip_prefix(what).map(|value| (of.to_owned(), value.to_owned()));
    let wrong = named("Invalid type: ", "type").or_else(|| named("Unknown format: ", "format"));
    let is_wrong = |key: &str, value: &Value| {
        wrong.as_ref().is_some_and(|(of, wrong)| key == of && (value == wrong || value.to_string().contains(wrong)))
    };
    let place = find(schema, "", &|key, value| unsupported(key, value) || is_wrong(key, value));
    let message = match (place, message.starts_with("Unimplemented")) {
        (Some(place), true) => format!("\"{place}\": this keyword is not supported"),
        (Some(place), false) => format!("\"{place}\": {message}"),
        (None, _) => message.to_owned(),
    };
    GrammarError::new(message, expected)
}

/// The JSON pointer to the first key of which this holds.
fn find(value: &Value, at: &str, holds: &dyn Fn(&str, &Value) -> bool) -> Option<String> {
    match value {
        Value::Object(keys) => keys.iter().find_map(|(key, value)| {
            let place = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
            if holds(key, value) { Some(place) } else { find(value, &place, holds) }
        }),
        Value::Array(items) => {
            items.iter().enumerate().find_map(|(index, value)| find(value, &format!("{at}/{index}"), holds))
        }
        _ => None,
    }
}
