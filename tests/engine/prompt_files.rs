//! Files of prompts and texts, as `bench`, `verify` and `distill` read them.

use eesd::TokenId;
use eesd::distill::data::{read_answers, read_corpus};
use eesd::load::{ChatTemplate, Checkpoint, PromptEncoder, PromptFile, Tokenizer, is_json_lines};
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn bundled_prompts_file() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pycode-4m/prompts.jsonl")
}

/// The prompts of a file, or what is wrong with it.
fn read_prompts(
    path: &Path,
    tokenizer: &Tokenizer,
    template: Option<&ChatTemplate>,
    chat: bool,
) -> Result<Vec<Vec<TokenId>>, String> {
    let template = template.ok_or("the model has no chat template".to_owned());
    let encoder = PromptEncoder { tokenizer: Some(tokenizer), template, arguments: Default::default() };
    let name = path.display().to_string();
    let file = PromptFile { name, json_lines: is_json_lines(path), chat, encoder: &encoder };
    let prompts = file.read(fs::read(path).unwrap()).map_err(|error| error.to_string())?;
    assert!(prompts.unused.is_empty(), "{:?}", prompts.unused);
    Ok(prompts.tokens)
}

#[test]
fn prompts_are_read_as_the_command_line_reads_them() {
    let checkpoint = Checkpoint::bundled().unwrap();
    let dir = TempDir::new().unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let encode = |text: &str, begin| tokenizer.encode(text, begin).unwrap();
    let read = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        read_prompts(&path, tokenizer, None, false)
    };
    let texts = eesd::load::bundled_prompts();
    let expected: Vec<_> = texts.iter().map(|text| encode(text, true)).collect();
    assert_eq!(read_prompts(&bundled_prompts_file(), tokenizer, None, false).unwrap(), expected);
    let both = [encode("def f(x):\n    y", true), encode("class A", true)];
    assert_eq!(read("p.txt", "\ndef f(x):\r\n    y\n\n  \nclass A\n").unwrap(), both);
    assert_eq!(
        read("p.jsonl", "{\"prompt\": \"def f(x):\\n    y\", \"id\": [1]}\n\n{\"prompt\": \"class A\"}").unwrap(),
        both
    );
    assert_eq!(read("p", "class A").unwrap(), both[1..]);

    // A chat template, for a model that has one.
    let folder = dir.path().join("model");
    fs::create_dir(&folder).unwrap();
    for file in
        ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"]
    {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pycode-4m").join(file);
        fs::copy(from, folder.join(file)).unwrap();
    }
    let template = "{% for m in messages %}# {{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}# {% endif %}";
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
    let config = fs::read_to_string(folder.join("tokenizer_config.json")).unwrap();
    fs::write(
        folder.join("tokenizer_config.json"),
        config.replace("\"add_bos_token\": true", "\"add_bos_token\": false"),
    )
    .unwrap();
    let chatty = Checkpoint::open(&folder).unwrap();
    let template = chatty.chat_template().unwrap();
    assert!(template.is_some());
    let path = dir.path().join("chat.jsonl");
    fs::write(
        &path,
        "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"u\"}]}\n{\"prompt\": \"u\"}\n",
    )
    .unwrap();
    let conversation = encode("# system: s\n# user: u\n# ", false);
    let as_is = read_prompts(&path, tokenizer, template, false).unwrap();
    assert_eq!(as_is, [conversation.clone(), encode("u", true)]);
    let chat = read_prompts(&path, tokenizer, template, true).unwrap();
    assert_eq!(chat, [conversation, encode("# user: u\n# ", false)]);

    // This model has no begin-of-text token either, so an empty prompt has nothing to begin with.
    fs::write(&path, "{\"prompt\": \"u\"}\n{\"prompt\": \"\"}\n").unwrap();
    let error = read_prompts(&path, chatty.tokenizer().unwrap(), None, false).unwrap_err();
    assert!(error.ends_with("chat.jsonl:2: a prompt without a token (expected something to continue)"), "{error}");
}

#[test]
fn wrong_lines_are_named() {
    let checkpoint = Checkpoint::bundled().unwrap();
    let dir = TempDir::new().unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let read = |name: &str, bytes: &[u8], chat: bool| -> Result<usize, String> {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        match name.starts_with("corpus") {
            true => read_corpus(&[path], tokenizer).map(|documents| documents.len()).map_err(|error| error.to_string()),
            false => read_prompts(&path, tokenizer, None, chat).map(|prompts| prompts.len()),
        }
    };
    const GOOD: &str = "{\"prompt\": \"x\"}\n\n";
    #[rustfmt::skip]
    let cases: [(&str, Vec<u8>, bool, &str); 18] = [
        ("p.jsonl", format!("{GOOD}not json").into(), false, "p.jsonl:3: expected ident at column 2 (expected a JSON object with \"prompt\" or \"messages\", and"),
        ("p.jsonl", format!("{GOOD}{{}}").into(), false, "p.jsonl:3: neither \"prompt\" nor \"messages\" (expected"),
        ("p.jsonl", format!("{GOOD}[1]").into(), false, "p.jsonl:3: invalid"),
        ("p.jsonl", format!("{GOOD}{{\"prompt\": \"x\", \"messages\": []}}").into(), false, "p.jsonl:3: both \"prompt\" and \"messages\""),
        ("p.jsonl", format!("{GOOD}{{\"messages\": []}}").into(), false, "p.jsonl:3: \"messages\" is empty"),
        ("p.jsonl", format!("{GOOD}{{\"prompt\": 7}}").into(), false, "p.jsonl:3: \"prompt\": 7 (expected a text, or a list of tokens)"),
        ("p.jsonl", format!("{GOOD}{{\"prompt\": \"x\", \"heat\": 1}}").into(), false, "p.jsonl:3: unknown key \"heat\""),
        ("p.jsonl", format!("{GOOD}{{\"messages\": [{{\"role\": \"user\"}}]}}").into(), false, "p.jsonl:3: \"messages\"[0]: \"content\" is missing"),
        ("p.jsonl", format!("{GOOD}{{\"messages\": [{{\"role\": \"user\", \"content\": \"x\"}}]}}").into(), false, "p.jsonl:3: the model has no chat template"),
        ("p.json", b"{\n  \"prompt\": \"x\"\n}".to_vec(), false, "p.json:1: EOF while parsing an object at column 1"),
        ("p.jsonl", GOOD.into(), true, "p.jsonl:1: the model has no chat template"),
        ("p.txt", b" \n\n".to_vec(), false, "p.txt: no prompts (expected at least one)"),
        ("p.jsonl", b"".to_vec(), false, "p.jsonl: no prompts (expected at least one)"),
        ("p.txt", b"abc\n\xe4\xb8x".to_vec(), false, "p.txt: byte 4 is 0xe4, which is no UTF-8 there (expected a file in UTF-8)"),
        ("corpus.py", b"x = 1\xff".to_vec(), false, "corpus.py: byte 5 is 0xff"),
        ("corpus.jsonl", b"{\"text\": \"x\"}\n{\"content\": \"x\"}\n".to_vec(), false, "corpus.jsonl:2: no key \"text\" (expected a JSON object with a text under \"text\")"),
        ("corpus.jsonl", b"{\"text\": [1]}\n".to_vec(), false, "corpus.jsonl:1: \"text\": invalid type: sequence, expected a string"),
        ("corpus.jsonl", b"\n".to_vec(), false, "corpus.jsonl: expected at least one line with a text"),
    ];
    for (name, bytes, chat, expected) in cases {
        let error = read(name, &bytes, chat).unwrap_err();
        assert!(error.contains(expected), "{error}\nhas no\n{expected}");
    }
    let missing = dir.path().join("missing.txt");
    for error in [
        read_corpus(std::slice::from_ref(&missing), tokenizer).unwrap_err(),
        read_answers(&missing, "", 1).unwrap_err(),
    ] {
        assert!(error.to_string().starts_with(&missing.display().to_string()), "{error}");
    }
    // Nothing but special tokens or nothing at all: no document to learn from, and no error either.
    assert_eq!(read("corpus.txt", b"", false).unwrap(), 1);
}
