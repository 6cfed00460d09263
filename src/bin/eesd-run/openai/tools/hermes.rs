//! Hermes, Qwen and others after them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as often as need be, with text
//! before or without.

use super::json::{Json, begun, call, json};
use super::{Family, Next, Rest};

const BEGIN: &str = "<tool_call>";
const END: &str = "</tool_call>";

/// Some templates have other things than JSON between the same marks.
const OTHERS: [&str; 2] = ["<function=", "<arg_key>"];

pub(super) const FAMILY: Family = Family {
    has: |template| template.for_tools_has(BEGIN) && !OTHERS.iter().any(|other| template.for_tools_has(other)),
    marks: &[BEGIN, END],
    next,
};

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
    let no_call = Next::Text(BEGIN.len());
    match json(inside) {
        Json::Whole(value, length) => {
            let Some(call) = call(value, &["arguments", "parameters"]) else { return no_call };
            let behind = inside[length..].trim_start();
            let end = match behind.strip_prefix(END) {
                Some(after) => text.len() - after.len(),
                None if END.starts_with(behind) && !rest.last => return Next::Unsure,
                // Small models forget it.
                None => text.len() - inside.len() + length,
            };
            Next::Calls(end, vec![call])
        }
        Json::Cut if !rest.last => Next::Unsure,
        Json::Cut | Json::Broken => no_call,
    }
}
