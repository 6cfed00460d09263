use super::*;
use std::collections::BTreeMap;
use std::path::Path;

const HERMES: &str =
    "{% if tools %}<tools>{{ tools | tojson }}</tools> answer with <tool_call>…</tool_call>{% endif %}";
const LLAMA: &str = "{% if tools %}Respond with {\"name\": name, \"parameters\": {…}}.{% endif %}\
    {{ '<|start_header_id|>ipython<|end_header_id|>' }}";
const MISTRAL: &str = "{{ '[AVAILABLE_TOOLS]' + tools | tojson }}[TOOL_CALLS]";

fn template(text: &str) -> ChatTemplate {
    let dir = tempfile::TempDir::new().unwrap();
    let file = dir.path().join("template.jinja");
    std::fs::write(&file, text).unwrap();
    ChatTemplate::from_file(Path::new(&file), BTreeMap::new()).unwrap()
}

fn calls(text: &str) -> Calls {
    Calls::of(&template(text), vec!["weather".into(), "time".into()]).unwrap()
}

fn text(text: &str) -> Said {
    Said::Text(text.into())
}

fn call(name: &str, arguments: &str) -> Said {
    Said::Call(Call { name: name.into(), arguments: arguments.into() })
}

/// Pieces of text next to each other are one.
fn joined(said: Vec<Said>) -> Vec<Said> {
    let mut joined: Vec<Said> = Vec::new();
    for said in said {
        match (joined.last_mut(), said) {
            (Some(Said::Text(before)), Said::Text(text)) => *before += &text,
            (_, said) => joined.push(said),
        }
    }
    joined
}

/// However the text comes, it says the same.
fn assert_says(template: &str, said: &str, expected: &[Said]) {
    let calls = calls(template);
    assert_eq!(joined(calls.all(said)), expected, "{said}");
    let characters: Vec<String> = said.chars().map(String::from).collect();
    for pieces in 1..=3 {
        for offset in 0..pieces {
            let mut reading = calls.reading();
            let mut told = Vec::new();
            let (head, tail) = characters.split_at(offset.min(characters.len()));
            for piece in std::iter::once(head).chain(tail.chunks(pieces)) {
                told.extend(reading.push(&piece.concat()));
            }
            told.extend(reading.finish());
            assert_eq!(joined(told), expected, "{said} in pieces of {pieces} after {offset}");
            assert_eq!(reading.called(), expected.iter().any(|said| matches!(said, Said::Call(_))));
        }
    }
}

#[test]
fn hermes_and_qwen_write_calls_between_marks() {
    let paris = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Paris </tool_call>\"}}\n</tool_call>";
    let city = "{\"city\": \"Paris </tool_call>\"}";
    for (said, expected) in [
        (paris.to_owned(), vec![call("weather", city)]),
        (format!(" \n{paris}"), vec![call("weather", city)]),
        (" \n yes".into(), vec![text(" \n yes")]),
        (format!("I'll look.\n{paris}"), vec![text("I'll look.\n"), call("weather", city)]),
        (
            format!("{paris}\n<tool_call>{{\"name\": \"time\"}}</tool_call>\n"),
            vec![call("weather", city), call("time", "{}")],
        ),
        (format!("{paris} Done <b>"), vec![call("weather", city), text("Done <b>")]),
        // Forgotten ends, arguments in a text of their own, and names that nobody gave.
        ("<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}".into(), vec![call("f", "{\"a\": 1}")]),
        ("<tool_call>{\"name\": \"f\"} <".into(), vec![call("f", "{}"), text("<")]),
        // What is none stays as it was.
        ("1 < 2 <tool <tool_call".into(), vec![text("1 < 2 <tool <tool_call")]),
        ("<tool_call>{\"name\": \"f\", ".into(), vec![text("<tool_call>{\"name\": \"f\", ")]),
        ("<tool_call>weather(\"x\")</tool_call>".into(), vec![text("<tool_call>weather(\"x\")</tool_call>")]),
        ("<tool_call>{\"name\": 7}</tool_call>".into(), vec![text("<tool_call>{\"name\": 7}</tool_call>")]),
        (
            "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>".into(),
            vec![text("<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>")],
        ),
        ("\n  ".into(), vec![text("\n  ")]),
        (String::new(), vec![]),
    ] {
        assert_says(HERMES, &said, &expected);
    }
}

#[test]
fn llama_writes_calls_and_nothing_else() {
    let weather = "{\"name\": \"weather\", \"parameters\": {\"city\": \"Bern\"}}";
    for (said, expected) in [
        (format!("\n{weather}"), vec![call("weather", "{\"city\": \"Bern\"}")]),
        (format!("<|python_tag|>{weather}"), vec![call("weather", "{\"city\": \"Bern\"}")]),
        (
            format!("{weather}; {{\"name\": \"time\", \"parameters\": {{}}}}\n"),
            vec![call("weather", "{\"city\": \"Bern\"}"), call("time", "{}")],
        ),
        ("<|python_tag|>{\"name\": \"other\", \"parameters\": {}}".into(), vec![call("other", "{}")]),
        // JSON that was asked for, code, and answers with words around.
        ("{\"name\": \"Ann\", \"age\": 7}".into(), vec![text("{\"name\": \"Ann\", \"age\": 7}")]),
        ("{\"name\": \"wea".into(), vec![text("{\"name\": \"wea")]),
        ("<|python_tag|>print(1)".into(), vec![text("<|python_tag|>print(1)")]),
        (format!("Sure: {weather}"), vec![text(&format!("Sure: {weather}"))]),
        (format!("{weather} is it"), vec![text(&format!("{weather} is it"))]),
        ("<|pyth".into(), vec![text("<|pyth")]),
        ("7; {".into(), vec![text("7; {")]),
    ] {
        assert_says(LLAMA, &said, &expected);
    }
}

#[test]
fn mistral_writes_calls_behind_a_mark_in_two_ways() {
    let weather = "{\"name\": \"weather\", \"arguments\": {\"city\": \"Ulm]\"}}";
    for (said, expected) in [
        (format!("[TOOL_CALLS] [{weather}]"), vec![call("weather", "{\"city\": \"Ulm]\"}")]),
        (
            format!("Wait.[TOOL_CALLS][{weather}, {{\"name\": \"time\"}}] ok"),
            vec![text("Wait."), call("weather", "{\"city\": \"Ulm]\"}"), call("time", "{}"), text("ok")],
        ),
        (
            "[TOOL_CALLS]weather[ARGS]{\"city\": \"Ulm\"}[TOOL_CALLS]time[CALL_ID]abc[ARGS]{}".into(),
            vec![call("weather", "{\"city\": \"Ulm\"}"), call("time", "{}")],
        ),
        ("[TOOL_CALLS]time{}".into(), vec![call("time", "{}")]),
        ("[TOOL_CALLS][]".into(), vec![text("[TOOL_CALLS][]")]),
        ("[TOOL_CALLS][{\"name\"".into(), vec![text("[TOOL_CALLS][{\"name\"")]),
        ("[TOOL_CALLS]two words{}".into(), vec![text("[TOOL_CALLS]two words{}")]),
        ("[TOOL_CALLS]time[ARGS][1]".into(), vec![text("[TOOL_CALLS]time[ARGS][1]")]),
        ("[TOOL_CALLS]time".into(), vec![text("[TOOL_CALLS]time")]),
        ("[TOOL_CALLS] ".into(), vec![text("[TOOL_CALLS] ")]),
        ("a [TOOL".into(), vec![text("a [TOOL")]),
    ] {
        assert_says(MISTRAL, &said, &expected);
    }
}

#[test]
fn templates_of_other_families_have_no_calls() {
    for other in ["{{ tools }}", "<tool_call><function=f>{{ tools }}", "{{ '<tool_call>f<arg_key>' + tools }}"] {
        assert!(Calls::of(&template(other), vec!["f".into()]).is_none(), "{other}");
    }
}

#[test]
fn tools_are_functions_with_a_name() {
    let read = |json: &str| names(&serde_json::from_str(json).unwrap());
    let tool = "{\"type\": \"function\", \"function\": {\"name\": \"f\"}}";
    assert_eq!(read(&format!("[{tool}, {tool}]")), Ok(vec!["f".to_owned(), "f".into()]));
    for (json, fragment) in [
        ("7", "\"tools\" is no list"),
        ("[7]", "\"tools\"[0] has no type"),
        ("[{\"type\": \"web_search\"}]", "\"tools\"[0] is of type \"web_search\""),
        ("[{\"type\": \"function\"}]", "\"tools\"[0] has no name"),
        ("[{\"type\": \"function\", \"function\": {\"name\": \"\"}}]", "has no name"),
    ] {
        assert!(read(json).is_err_and(|error| error.contains(fragment)), "{json}");
    }
}

/// Some templates refuse a conversation in which they are of another length.
#[test]
fn calls_have_names_of_nine_letters_and_digits() {
    let ids: Vec<String> = (0..1000).map(|n| id("6a-7", n % 10, n / 10)).collect();
    assert!(ids.iter().all(|id| id.len() == 9 && id.bytes().all(|byte| byte.is_ascii_alphanumeric())));
    assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len());
}
