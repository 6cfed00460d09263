//! Mistral: `[TOOL_CALLS]`, and then a list of `{"name": …, "arguments": {…}}`; or, since the eleventh version of its
//! tokenizer, `[TOOL_CALLS]NAME[ARGS]{…}`, once for each call and perhaps with `[CALL_ID]ID` after the name.

use super::json::{Json, begun, call, json, object};
use super::{Call, Family, Next, Rest};
use serde_json::value::RawValue;

const BEGIN: &str = "[TOOL_CALLS]";
const ID: &str = "[CALL_ID]";
const ARGUMENTS: &str = "[ARGS]";

pub(super) const FAMILY: Family =
    Family { has: |template| template.for_tools_has(BEGIN), marks: &[BEGIN, ID, ARGUMENTS], next };

fn next(rest: &Rest<'_>) -> Next {
    let text = rest.text;
    let Some(inside) = text.strip_prefix(BEGIN) else {
        return match text.find(BEGIN) {
            Some(before) => Next::Text(before),
            None if rest.last => Next::Text(text.len()),
            None => match text.len() - begun(text, BEGIN) {
                0 => Next::Unsure,
                certain => Next::Text(certain),
            },
        };
    };
    let found = match inside.trim_start() {
        "" => Found::Cut,
        list if list.starts_with('[') => listed(list),
        named => self::named(named),
    };
    match found {
        Found::Calls(calls, behind) => Next::Calls(text.len() - behind, calls),
        Found::Cut if !rest.last => Next::Unsure,
        Found::Cut | Found::Nothing => Next::Text(BEGIN.len()),
    }
}

enum Found {
    /// Calls, and how many bytes stand behind them.
    Calls(Vec<Call>, usize),
    Cut,
    Nothing,
}

fn listed(text: &str) -> Found {
    match json(text) {
        Json::Whole(list, length) => {
            let items: Vec<Box<RawValue>> = serde_json::from_str(list.get()).unwrap_or_default();
            let calls: Option<Vec<Call>> = items.iter().map(|item| call(item, &["arguments", "parameters"])).collect();
            match calls.filter(|calls| !calls.is_empty()) {
                Some(calls) => Found::Calls(calls, text.len() - length),
                None => Found::Nothing,
            }
        }
        Json::Cut => Found::Cut,
        Json::Broken => Found::Nothing,
    }
}

fn named(text: &str) -> Found {
    let end = text.find(['[', '{']).unwrap_or(text.len());
    let (name, mut left) = text.split_at(end);
    let name = name.trim();
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Found::Nothing;
    }
    if let Some(id) = left.strip_prefix(ID) {
        left = &id[id.find(['[', '{']).unwrap_or(id.len())..];
    }
    left = left.strip_prefix(ARGUMENTS).unwrap_or(left);
    if ID.starts_with(left) || ARGUMENTS.starts_with(left) {
        return Found::Cut;
    }
    match json(left) {
        Json::Whole(value, length) => match object(value) {
            Some(arguments) => Found::Calls(vec![Call { name: name.into(), arguments }], left.len() - length),
            None => Found::Nothing,
        },
        Json::Cut => Found::Cut,
        Json::Broken => Found::Nothing,
    }
}
