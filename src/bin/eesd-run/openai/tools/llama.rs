//! Llama 3.x: an answer that is `{"name": …, "parameters": {…}}` and nothing else, several of them with `;` between, and a
//! `<|python_tag|>` before them or not.

use super::json::{Json, call, json};
use super::{Family, Next, Rest};

const TAG: &str = "<|python_tag|>";

pub(super) const FAMILY: Family = Family {
    has: |template| template.for_tools_has("<|start_header_id|>ipython") && template.for_tools_has("\"parameters\""),
    marks: &[TAG],
    next,
};

/// Without the tag only the names of tools tell a call from an answer that happens to be JSON.
fn next(rest: &Rest<'_>) -> Next {
    let all_text = Next::Text(rest.text.len());
    let text = rest.text.trim_start();
    if !rest.first {
        return all_text;
    }
    if TAG.starts_with(text) && !rest.last {
        return Next::Unsure;
    }
    let (tagged, mut left) = text.strip_prefix(TAG).map_or((false, text), |text| (true, text));
    let mut calls = Vec::new();
    loop {
        left = left.trim_start();
        if left.is_empty() && !calls.is_empty() && rest.last {
            return Next::Calls(rest.text.len(), calls);
        }
        match json(left) {
            Json::Whole(value, length) => {
                let call = call(value, &["parameters", "arguments"]);
                let Some(call) = call.filter(|call| tagged || rest.tools.contains(&call.name)) else { return all_text };
                calls.push(call);
                left = left[length..].trim_start();
                left = left.strip_prefix(';').unwrap_or(left);
            }
            Json::Cut if !rest.last && (left.is_empty() || left.starts_with('{')) => return Next::Unsure,
            Json::Cut | Json::Broken => return all_text,
        }
    }
}
