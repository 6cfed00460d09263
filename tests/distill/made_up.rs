//! Prompts that the model makes up itself.

use super::{Place, ok, stderr};
use eesd::load::Checkpoint;
use serde_json::Value;
use std::fs;
use std::process::Command;

/// A user's words are a comment, and what follows is the answer.
const TEMPLATE: &str = "{% for message in messages %}# {{ message['content'] }}\n{% endfor %}";

fn command(place: &Place, more: &[&str]) -> Command {
    let mut command = super::distill(&["-N", "1", "-t", "1", "-n", "16", "--steps", "2", "--window", "64"]);
    command.args(["--batch-tokens", "256", "--output", place.path("out").to_str().unwrap()]).args(more);
    command
}

fn lines(place: &Place, name: &str) -> Vec<Value> {
    let text = String::from_utf8(place.read(name)).unwrap();
    text.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn made_up_prompts_are_answered_and_learned_from() {
    let place = Place::new();
    let template = place.path("comment.jinja");
    fs::write(&template, TEMPLATE).unwrap();
    let with = |count| ["--chat-template", template.to_str().unwrap(), "--make-up", count];
    let told = ok(command(&place, &with("12")));
    let (made_up, answers) = (lines(&place, "out/prompts.made-up.jsonl"), lines(&place, "out/answers.jsonl"));
    assert_eq!(made_up.len(), 12);
    assert!(!answers.is_empty() && answers.len() <= 12, "{told}");
    assert!(told.contains(&format!("{} of 12 made-up prompts are of use", answers.len())), "{told}");
    // What was made up, up to the line's end, stands in the prompt.
    let checkpoint = Checkpoint::open(super::BUNDLED.as_ref()).unwrap();
    let text = |tokens: &Value| {
        let tokens: Vec<u32> = serde_json::from_value(tokens.clone()).unwrap();
        checkpoint.tokenizer().unwrap().decode(&tokens)
    };
    let words: Vec<String> =
        made_up.iter().map(|line| text(&line["tokens"]).lines().next().unwrap_or_default().trim().to_owned()).collect();
    for answer in &answers {
        let prompt = text(&answer["prompt"]);
        assert!(words.iter().any(|words| prompt == format!("# {words}\n")), "{prompt:?}");
    }
    assert!(place.path("out/exit-1.safetensors").exists());

    // More of them: what is there is kept, those of a file come first.
    let before = place.read("out/prompts.made-up.jsonl");
    ok(command(&place, &[&with("15")[..], &["--overwrite"]].concat()));
    assert!(place.read("out/prompts.made-up.jsonl").starts_with(&before));
    assert!(lines(&place, "out/answers.jsonl").starts_with(&answers));
}

#[test]
fn without_a_chat_template_nothing_is_made_up() {
    let place = Place::new();
    let output = command(&place, &["--make-up", "3"]).output().unwrap();
    assert!(!output.status.success());
    assert!(stderr(&output).contains("chat template"), "{}", stderr(&output));
    let template = place.path("silent.jinja");
    fs::write(&template, "{{ messages[0]['content'] }}").unwrap();
    let output = command(&place, &["--make-up", "3", "--chat-template", template.to_str().unwrap()]).output().unwrap();
    assert!(!output.status.success());
    assert!(stderr(&output).contains("expected something, then its words"), "{}", stderr(&output));
    assert!(!place.path("out/prompts.made-up.jsonl").exists());
}
