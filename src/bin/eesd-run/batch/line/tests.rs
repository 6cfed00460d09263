//! Lines that are damaged in many ways: each is answered by one line under its own id, and nothing panics.
//!
//! `EESD_MUTATIONS=100000` makes so many of them.

mod mutations;

use super::*;
use crate::args::{ModelArgs, TemplateArgs};
use crate::batch::{answer, job::Row};
use crate::report::Reporter;
use crate::settings::Model;
use eesd::constrain::Grammars;
use eesd::engine::{Completion, Finish, Stats};
use mutations::{Dice, Expected, Id, Mutated};
use std::fs;
use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tempfile::TempDir;

/// Lines where nobody asks for another number.
const LINES: usize = 4000;
/// Lines of one file.
const FILE: usize = 50;
const TEMPLATE: &str = "{% if tools %}{{ tools | tojson }}\n{% endif %}{% if shout %}LOUD\n{% endif %}\
    {% for m in messages %}{{ m.role }}: {{ m.content }}{% for call in m.tool_calls or [] %}{{ call | tojson }}\
    {% endfor %}\n{% endfor %}";

fn items<'a>(file: Vec<u8>, encoder: &'a PromptEncoder<'a>) -> Lines<'a> {
    let input = Input { lines: JsonLines::new(Box::new(Cursor::new(file))), name: "in.jsonl".into() };
    // Each file of lines is read but once in a test.
    let grammars = Box::leak(Box::new(Grammars::new(None, 10)));
    Lines::new(input, encoder, grammars, Request::new(Vec::new(), 8))
}

/// Lines of a file that are not empty, told apart without the reader under test: number, from 1, and content.
fn lines_of(file: &[u8]) -> Vec<(usize, &[u8])> {
    let lines = (1..).zip(file.split(|&byte| byte == b'\n'));
    lines.filter(|(_, line)| !line.iter().all(|byte| b" \t\r\x0c".contains(byte))).collect()
}

/// Every line that is written for a job.
fn rows(job: &Job, error: &ApiError, text: &str) -> Vec<String> {
    let write = |row: &Row<'_>| serde_json::to_string(row).unwrap();
    let completion = Completion {
        tokens: vec![1, 2],
        text: text.into(),
        logprobs: Vec::new(),
        finish: Finish::StopString(text.into()),
        seed: Some(3),
        stats: Stats { prompt_tokens: 5, generated: 2, ..Stats::default() },
    };
    match &job.form {
        Form::Lines => {
            let last = job.samples - 1;
            vec![
                write(&answer::error(job, last, error.message())),
                write(&answer::answer(job, last, &completion, None, None)),
            ]
        }
        Form::OpenAi(shape) => vec![
            write(&openai::error(job, error)),
            write(&openai::interrupted(job)),
            write(&openai::answer(job, shape, &[&completion, &completion], "model", None, None)),
        ],
    }
}

/// Each row is one line of JSON that begins with the id as the job has it, and the index.
fn check_rows(job: &Job, error: &ApiError, text: &str) {
    let (name, index) = match job.form {
        Form::Lines => ("id", format!("\"index\":{}", job.index)),
        Form::OpenAi(_) => ("custom_id", format!("\"id\":\"batch_req_{}\"", job.index)),
    };
    let id = job.id.as_ref().map_or(String::new(), |id| format!("\"{name}\":{},", id.get()));
    for row in rows(job, error, text) {
        assert!(!row.contains(['\n', '\r']), "{row:?} is more than a line");
        assert!(row.starts_with(&format!("{{{id}{index}")), "{row} lacks {id}{index}");
        // Not as a `Value`: an id may be a number that is none of Rust's.
        assert!(serde_json::from_str::<Box<RawValue>>(&row).is_ok(), "{row} is no JSON");
    }
}

/// Checks what became of one line; returns whether it is a request.
fn check(item: &Item, place: (usize, usize), id: &Id, expected: &Expected) -> bool {
    let (number, index) = place;
    let some_error = ApiError::invalid("top_p", "some error");
    let (job, error, text) = match item {
        Item::Request { job, text, .. } => (job, &some_error, text.as_deref().unwrap_or_default()),
        Item::Wrong { job, error } => (job, error, "some text"),
        Item::Unreadable { error } => panic!("the file ends here: {error}"),
    };
    assert_eq!(job.index, index);
    let found = job.id.as_deref().map(RawValue::get);
    match id {
        Id::Spelled(id) => assert_eq!(found, Some(id.replace('\r', " ").as_str())),
        Id::Absent => assert_eq!(found, None),
        Id::Unknown => assert!(found.is_none_or(|id| !id.contains(char::REPLACEMENT_CHARACTER)), "{found:?}"),
    }
    check_rows(job, error, text);
    let Item::Wrong { error, .. } = item else {
        assert!(!matches!(expected, Expected::Wrong(_)), "taken, but {expected:?}");
        return true;
    };
    let error = error.message();
    assert!(error.starts_with(&format!("in.jsonl:{number}: ")), "{error}");
    assert!(error.chars().count() < 1000 && !error.contains('\n'), "{error}");
    let names = |key: &String| error.contains(&format!("{key:?}")) || error.contains(&format!("`{key}`"));
    match expected {
        Expected::Right => panic!("refused: {error}"),
        Expected::Wrong(keys) | Expected::NamedIfWrong(keys) => {
            assert!(keys.is_empty() || keys.iter().any(names), "none of {keys:?} is named: {error}");
        }
        Expected::Whatever => {}
    }
    false
}

/// The id that a JSON parser finds in a line, if it finds one and only one.
fn found_by_parser(line: &[u8]) -> Option<serde_json::Value> {
    let text = String::from_utf8_lossy(line);
    let object: serde_json::Map<_, _> = serde_json::from_str(&text).ok()?;
    let form = if object.contains_key("custom_id") || object.contains_key("body") { "custom_id" } else { "id" };
    let once = text.matches(&format!("\"{form}\"")).count() == 1 && !text.contains("\\u");
    let whole = |id: &serde_json::Value| !id.is_null() && !id.to_string().contains(char::REPLACEMENT_CHARACTER);
    object.get(form).filter(|id| once && whole(id)).cloned()
}

#[test]
fn every_mutated_line_is_answered_under_its_own_id() {
    let dir = TempDir::new().unwrap();
    let template = dir.path().join("template.jinja");
    fs::write(&template, TEMPLATE).unwrap();
    let template = TemplateArgs { chat_template: Some(template), ..TemplateArgs::default() };
    let model = Model::open(&ModelArgs { model: None, quantize: None }, Reporter::new(true))
        .unwrap()
        .with_template(&template)
        .unwrap();
    let encoder = model.encoder();
    let wanted = std::env::var("EESD_MUTATIONS").map_or(LINES, |lines| lines.parse().unwrap());
    let mut dice = Dice::new();
    let (mut mutated, mut taken, mut named) = (0, 0, 0);
    while mutated < wanted {
        // The first line says what kind of file it is: it stays as it is.
        let mut file = b"{\"id\":0,\"prompt\":\"x\"}\n".to_vec();
        let mut all = vec![Mutated { line: Vec::new(), id: Id::Spelled("0".into()), expected: Expected::Right }];
        for _ in 0..FILE {
            let line = mutations::line(&mut dice);
            file.extend_from_slice(&line.line);
            file.extend_from_slice([&b"\n"[..], b"\r\n", b"\n \t\n"][dice.roll(3)]);
            // Damage can break a line in two, or leave nothing of it: of the pieces, only the first one is known.
            for piece in 0..lines_of(&line.line).len() {
                all.push(match piece {
                    0 => Mutated { line: line.line.clone(), id: line.id.clone(), expected: line.expected.clone() },
                    _ => Mutated { line: line.line.clone(), id: Id::Unknown, expected: Expected::Whatever },
                });
            }
        }
        let lines = lines_of(&file);
        assert_eq!(lines.len(), all.len());
        let mut items = items(file.clone(), &encoder);
        for (index, (&(number, line), mutated)) in lines.iter().zip(&all).enumerate() {
            let checked = catch_unwind(AssertUnwindSafe(|| {
                let item = items.next().expect("one item a line");
                let right = check(&item, (number, index), &mutated.id, &mutated.expected);
                if let (Id::Unknown, Some(id)) = (&mutated.id, found_by_parser(line)) {
                    let (Item::Request { job, .. } | Item::Wrong { job, .. }) = &item else { return right };
                    let found = job.id.as_deref().map(|id| serde_json::from_str(id.get()).unwrap());
                    assert_eq!(found, Some(id));
                }
                right
            }));
            match checked {
                Ok(right) => taken += usize::from(right),
                Err(_) => panic!("{:?}", String::from_utf8_lossy(&line[..line.len().min(3000)])),
            }
            named += usize::from(matches!(&mutated.expected, Expected::Wrong(keys) if !keys.is_empty()));
        }
        assert!(items.next().is_none());
        mutated += FILE;
    }
    println!("{mutated} lines: {taken} taken, {named} refused with the name of the key that was made wrong");
    assert!(taken > mutated / 10 && named > mutated / 10, "{taken} taken and {named} named of {mutated}");
}
