//! Chat templates.

use crate::folder::Folder;
use eesd::load::{Checkpoint, Message};
use serde_json::{Value, json};

/// As Llama 3 marks turns; the date line as Llama 3.1 asks for it.
const HEADERS: &str = r#"{{- bos_token }}
{%- if strftime_now is defined %}
    {%- set year = strftime_now("%Y") %}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ["system", "user", "assistant"] %}
        {{- raise_exception("unknown role " + message.role) }}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}
{%- if tools is not none or year | length != 4 %}unreachable{% endif %}
"#;

/// As ChatML marks turns, with block tags on lines of their own and a Python method.
const CHATML: &str = "{% for message in messages %}
    {% if loop.first and message.role != 'system' %}
<|im_start|>system
You help.<|im_end|>
    {% endif %}
<|im_start|>{{ message.role }}
{{ message.content.strip().split('</think>')[-1] }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
";

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

fn open(tokenizer_config: Value) -> Checkpoint {
    Folder::of("llama").write("tokenizer_config.json", tokenizer_config.to_string()).open().unwrap()
}

fn render(template: &str, messages: &[Message]) -> String {
    open(json!({ "chat_template": template })).chat_template().unwrap().render(messages).unwrap()
}

#[test]
fn llama_3_and_chatml_conversations() {
    let conversation = [message("user", "  Hi! "), message("assistant", "Hello."), message("user", "2+2?")];
    let llama = open(json!({"chat_template": HEADERS, "bos_token": {"content": "<|begin_of_text|>"}}));
    assert_eq!(
        llama.chat_template().unwrap().render(&conversation).unwrap(),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert_eq!(
        render(CHATML, &conversation[..1]),
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn templates_come_from_their_file_or_by_name() {
    let one = [message("user", "x")];
    let rendered = |checkpoint: Checkpoint| checkpoint.chat_template().unwrap().render(&one).unwrap();
    let named = json!([{"name": "rag", "template": "rag"}, {"name": "default", "template": "default {{ eos_token }}"}]);
    assert_eq!(rendered(open(json!({"chat_template": named, "eos_token": "</s>"}))), "default </s>");

    let folder = Folder::of("llama");
    folder.write("tokenizer_config.json", r#"{"chat_template": "config"}"#).write("chat_template.jinja", "file");
    assert_eq!(rendered(folder.open().unwrap()), "file");
    assert!(open(json!({"chat_template": null})).chat_template().is_none());

    let refusal = |value: Value| {
        let folder = Folder::of("llama");
        folder.write("tokenizer_config.json", json!({ "chat_template": value }).to_string()).refusal()
    };
    assert!(refusal(json!([{"name": "rag", "template": "rag"}])).contains("one of them named `default`"));
    assert!(refusal(json!(7)).contains("tokenizer_config.json: `chat_template` is 7, expected a string"));
    let message = refusal(json!("{% for %}"));
    assert!(message.contains("tokenizer_config.json: chat template: ") && message.contains("(line 1)"), "{message}");
}

#[test]
fn generation_marks_are_for_training_only() {
    let template = "{% for m in messages %}\n{%- generation -%}\n{{ m.content }}\n{%- endgeneration %}!{% endfor %}{%";
    let conversation = [message("user", "a"), message("user", "generation")];
    assert_eq!(render(template.trim_end_matches("{%"), &conversation), "a!generation!");
    let folder = Folder::of("llama");
    let unclosed = folder.write("chat_template.jinja", template).refusal();
    assert!(unclosed.contains("chat_template.jinja: chat template: unexpected end"), "{unclosed}");
}

#[test]
fn json_is_written_as_python_writes_it() {
    let conversation = [message("user", "a<b> & \"c\" 'd' é")];
    assert_eq!(
        render("{{ messages[0] | tojson }} {{ [1, 2.5, none, true] | tojson }}", &conversation),
        r#"{"role": "user", "content": "a<b> & \"c\" 'd' é"} [1, 2.5, null, true]"#
    );
    assert_eq!(render("{{ {'a': [1]} | tojson(indent=2) }}", &conversation), "{\n  \"a\": [\n    1\n  ]\n}");
}

#[test]
fn what_a_template_raises_is_the_error() {
    let error = |template: &str| {
        let checkpoint = open(json!({ "chat_template": template }));
        checkpoint.chat_template().unwrap().render(&[message("robot", "x")]).unwrap_err().to_string()
    };
    let message = error(HEADERS);
    assert!(message.ends_with("tokenizer_config.json: chat template: unknown role robot (line 7)"), "{message}");
    let endless = "{% for a in range(100000) %}{% for b in range(100000) %}{% set x = a + b %}{% endfor %}{% endfor %}";
    assert!(error(endless).contains("out of fuel"), "{}", error(endless));
}
