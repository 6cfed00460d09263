//! Renders conversations with any chat template, without a model: JSON lines in, JSON lines out.
//!
//! ```sh
//! echo '{"template": "chat_template.jinja", "specials": {"bos_token": "<s>"},
//!        "messages": [{"role": "user", "content": "Hi!"}]}' | tr -d '\n' | cargo run --example render_chat
//! ```
//!
//! A line also takes `tools`, `documents` and `arguments`, an object of other values for the template. The answer is
//! `{"prompt": …}`, or `{"error": …}` where the template or the line is refused.

use eesd::load::{Chat, ChatTemplate, Message};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::error::Error;
use std::io::{self, BufRead, Write};
use std::path::PathBuf;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    template: PathBuf,
    #[serde(default)]
    specials: BTreeMap<String, String>,
    messages: Vec<Message>,
    tools: Option<Value>,
    documents: Option<Value>,
    #[serde(default)]
    arguments: Map<String, Value>,
}

fn render(line: &str) -> Result<String, Box<dyn Error>> {
    let Line { template, specials, messages, tools, documents, arguments } = serde_json::from_str(line)?;
    let template = ChatTemplate::from_file(&template, specials)?;
    let chat = Chat { tools, documents, arguments, ..Chat::new(messages) };
    Ok(template.render(&chat)?)
}

fn main() -> io::Result<()> {
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let answer = match render(&line?) {
            Ok(prompt) => json!({ "prompt": prompt }),
            Err(error) => json!({ "error": error.to_string() }),
        };
        writeln!(output, "{answer}")?;
    }
    Ok(())
}
