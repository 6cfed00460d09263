//! The settings of a request in JSON (a line of a batch, a server's body, a host's text): what it says of its answer, over
//! what it is given.

mod constraint;

use super::Request;
use crate::TokenId;
use crate::constrain::Grammars;
use crate::draft::Sources;
use crate::load::{Keys, Tokenizer};
use crate::sample::VerifyMode;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Most answers to one request.
pub const MOST_SAMPLES: usize = 1024;
/// Most tokens of an answer where nobody says.
pub const MAX_TOKENS: usize = 256;

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Verify {
    Rejection,
    Coupled,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a text or a list of texts")]
enum Stop {
    One(String),
    Several(Vec<String>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected texts or lists of tokens")]
enum BadWord {
    Text(String),
    Tokens(Vec<TokenId>),
}

/// Sets `request` as the rest of a line says, whose prompt has been taken; returns how many answers it asks for. `expected`
/// are the keys that such a line may have.
///
/// # Errors
/// Which key is wrong, and how.
pub fn take(
    mut keys: Keys,
    request: &mut Request,
    tokenizer: Option<&Tokenizer>,
    grammars: &Grammars,
    expected: &dyn Fn() -> String,
) -> Result<usize, String> {
    let samples = keys.take::<usize>("n")?.unwrap_or(1);
    if !(1..=MOST_SAMPLES).contains(&samples) {
        return Err(format!("\"n\" is {samples} (expected 1 to {MOST_SAMPLES})"));
    }
    set(&mut request.max_tokens, keys.take("max_tokens")?);
    set(&mut request.min_tokens, keys.take("min_tokens")?);
    set(&mut request.ignore_end, keys.take("ignore_eos")?);
    if keys.take("speculate")? == Some(false) {
        request.sources = Sources::OFF;
    }
    if let Some(draft) = keys.take::<String>("draft")? {
        request.sources = draft.parse().map_err(|error| format!("\"draft\": {error}"))?;
    }
    set(&mut request.stop_token_ids, keys.take("stop_token_ids")?);
    request.draft_max = keys.take("draft_max")?.or(request.draft_max);
    if let Some(stop) = keys.take("stop")? {
        request.stop = match stop {
            Stop::One(stop) => vec![stop],
            Stop::Several(stops) => stops,
        };
    }
    constraint::take(&mut keys, request, grammars)?;
    let sampling = &mut request.sampling;
    set(&mut sampling.temperature, keys.take("temperature")?);
    set(&mut sampling.top_k, keys.take("top_k")?);
    set(&mut sampling.top_p, keys.take("top_p")?);
    set(&mut sampling.min_p, keys.take("min_p")?);
    set(&mut sampling.repetition_penalty, keys.take("repetition_penalty")?);
    set(&mut sampling.presence_penalty, keys.take("presence_penalty")?);
    set(&mut sampling.frequency_penalty, keys.take("frequency_penalty")?);
    let bias = keys.take::<BTreeMap<TokenId, f32>>("logit_bias")?;
    set(&mut sampling.logit_bias, bias.map(|bias| bias.into_iter().collect()));
    set(&mut sampling.suppress_tokens, keys.take("suppress_tokens")?);
    if let Some(words) = keys.take::<Vec<BadWord>>("bad_words")? {
        let runs = words.into_iter().map(|word| match word {
            BadWord::Tokens(tokens) => Ok(vec![tokens]),
            BadWord::Text(text) => bad_word(&text, tokenizer),
        });
        sampling.bad_words = runs.collect::<Result<Vec<_>, _>>()?.concat();
    }
    sampling.seed = keys.take("seed")?.or(sampling.seed);
    sampling.logprobs = keys.take("logprobs")?.or(sampling.logprobs);
    if let Some(mode) = keys.take("verify")? {
        sampling.verify = Some(match mode {
            Verify::Rejection => VerifyMode::Rejection,
            Verify::Coupled => VerifyMode::Coupled,
        });
    }
    // Most lines have no such key: what it would be told is not put together for them.
    match keys.rest().next().is_some() || keys.whole().is_err() {
        true => keys.finish(&expected()).map(|()| samples),
        false => Ok(samples),
    }
}

/// The runs of tokens that write a word: as the beginning of a text, and after a space.
///
/// # Errors
/// If there is no tokenizer, or no word.
pub fn bad_word(word: &str, tokenizer: Option<&Tokenizer>) -> Result<Vec<Vec<TokenId>>, String> {
    let tokenizer = tokenizer.ok_or("\"bad_words\" as texts need a tokenizer (expected lists of tokens)")?;
    let word = word.trim_start();
    if word.is_empty() {
        return Err("\"bad_words\" holds an empty text".into());
    }
    let encode = |text: &str| tokenizer.encode(text, false).map_err(|error| format!("\"bad_words\": {error}"));
    let mut runs = vec![encode(word)?, encode(&format!(" {word}"))?];
    runs.dedup();
    Ok(runs)
}

/// Overwrites a default where the line has a value.
fn set<T>(default: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *default = value;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::REQUEST_KEYS;

    #[test]
    fn every_key_that_other_commands_pass_over_is_a_setting() {
        let take = |line: &str| {
            let (grammars, expected) = (Grammars::new(None, 10), || REQUEST_KEYS.join(", "));
            take(Keys::parse(line.as_bytes()), &mut Request::new(vec![1], 1), None, &grammars, &expected)
        };
        for key in REQUEST_KEYS {
            assert_eq!(take(&format!("{{{key:?}: null}}")), Ok(1), "{key}");
        }
        let unknown = take("{\"heat\": 1}");
        assert!(unknown.is_err_and(|error| error.contains("\"heat\"") && error.contains("temperature")));
        assert!(take("{").is_err());
    }
}
