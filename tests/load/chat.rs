//! Chat templates: where they are found, and whole conversations.

use crate::folder::Folder;
use eesd::load::{Chat, Checkpoint, LoadError, Message};
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
    Message::new(role, content)
}

fn hello() -> Chat {
    Chat::new([message("user", "x")])
}

fn open(tokenizer_config: Value) -> Checkpoint {
    Folder::of("llama").write("tokenizer_config.json", tokenizer_config.to_string()).open().unwrap()
}

fn render(checkpoint: &Checkpoint, chat: &Chat) -> Result<String, LoadError> {
    checkpoint.chat_template().unwrap().expect("there is a template").render(chat)
}

/// What is wrong with the template of a folder that opens all the same.
fn refusal(folder: &Folder) -> String {
    let checkpoint = folder.open().unwrap();
    checkpoint.chat_template().err().expect("the template should be refused").to_string()
}

#[test]
fn llama_3_and_chatml_conversations() {
    let conversation = [message("user", "  Hi! "), message("assistant", "Hello."), message("user", "2+2?")];
    let llama = open(json!({"chat_template": HEADERS, "bos_token": {"content": "<|begin_of_text|>"}}));
    assert_eq!(
        render(&llama, &Chat::new(conversation.clone())).unwrap(),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>\
         <|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert_eq!(
        render(&open(json!({ "chat_template": CHATML })), &Chat::new(&conversation[..1])).unwrap(),
        "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn each_place_of_a_template_comes_before_the_next() {
    let folder = Folder::of("llama");
    std::fs::create_dir(folder.path("additional_chat_templates")).unwrap();
    let rendered = || render(&folder.open().unwrap(), &hello()).unwrap();
    assert!(folder.open().unwrap().chat_template().unwrap().is_none());
    folder.write("tokenizer_config.json", r#"{"chat_template": "in tokenizer_config.json"}"#);
    assert_eq!(rendered(), "in tokenizer_config.json");
    folder.write("chat_template.json", r#"{"chat_template": "in chat_template.json"}"#);
    assert_eq!(rendered(), "in chat_template.json");
    folder.write("additional_chat_templates/default.jinja", "additional");
    assert_eq!(rendered(), "additional");
    folder.write("chat_template.jinja", "a file of its own");
    assert_eq!(rendered(), "a file of its own");
    assert!(open(json!({"chat_template": null})).chat_template().unwrap().is_none());
}

#[test]
fn tools_choose_the_template_named_for_them() {
    let named = |names: &[&str]| {
        let templates: Vec<Value> = names.iter().map(|name| json!({"name": name, "template": name})).collect();
        open(json!({ "chat_template": templates }))
    };
    let tools = Chat { tools: Some(json!([])), ..hello() };
    let three = named(&["rag", "tool_use", "default"]);
    assert_eq!(render(&three, &hello()).unwrap(), "default");
    assert_eq!(render(&three, &tools).unwrap(), "tool_use");
    assert_eq!(render(&named(&["rag", "default"]), &tools).unwrap(), "default");

    let only_tools = named(&["tool_use"]);
    assert_eq!(render(&only_tools, &tools).unwrap(), "tool_use");
    let message = render(&only_tools, &hello()).unwrap_err().to_string();
    assert!(message.contains("no template named `default`"), "{message}");

    let folder = Folder::of("llama");
    std::fs::create_dir(folder.path("additional_chat_templates")).unwrap();
    folder.write("additional_chat_templates/tool_use.jinja", "with tools").write("chat_template.jinja", "without");
    let checkpoint = folder.open().unwrap();
    assert_eq!(render(&checkpoint, &tools).unwrap(), "with tools");
    assert_eq!(render(&checkpoint, &hello()).unwrap(), "without");
}

#[test]
fn a_broken_template_leaves_the_folder_usable_and_gives_way_to_another() {
    let with = |value: Value| {
        let folder = Folder::of("llama");
        folder.write("tokenizer_config.json", json!({"chat_template": value, "eos_token": "</s>"}).to_string());
        folder
    };
    let broken = [
        (json!([{"name": "rag", "template": "rag"}]), "one of them named `default`"),
        (json!([{"name": "default"}]), "a list of {name, template}"),
        (json!(7), "tokenizer_config.json: `chat_template` is 7, expected a string"),
        (json!("{% for %}"), "tokenizer_config.json: chat template: "),
        (json!("a\n{{ b"), "(line 2)"),
        (json!("{{ x | nothing_like_that }}{% endfor %}"), "chat template: "),
        (json!("x".repeat(300 << 10)), "bytes of a chat template: 307200 (at most 262144)"),
    ];
    for (value, expected) in broken {
        let folder = with(value);
        let message = refusal(&folder);
        assert!(message.contains(expected), "{message}");
        let checkpoint = folder.open().unwrap();
        assert!(checkpoint.parameters() > 0);
        folder.write("other.jinja", "other{{ eos_token }}");
        let other = checkpoint.chat_template_from(&folder.path("other.jinja")).unwrap();
        assert_eq!(other.render(&hello()).unwrap(), "other</s>");
    }
    let folder = with(json!("fine"));
    folder.write("chat_template.jinja", b"not UTF-8: \xff");
    assert!(refusal(&folder).contains("chat_template.jinja: invalid utf-8"), "{}", refusal(&folder));
}

#[test]
fn a_template_may_be_taken_from_any_file() {
    let folder = Folder::of("llama");
    folder.write("a.jinja", "jinja").write("b.txt", "any name").write("c.json", r#"{"chat_template": "json"}"#);
    folder.write("d.json", r#"{"chat_template": [{"name": "default", "template": "named"}]}"#).write("e.json", "{}");
    let checkpoint = folder.open().unwrap();
    let from = |file: &str| checkpoint.chat_template_from(&folder.path(file));
    for (file, text) in [("a.jinja", "jinja"), ("b.txt", "any name"), ("c.json", "json"), ("d.json", "named")] {
        assert_eq!(from(file).unwrap().render(&hello()).unwrap(), text);
    }
    let refusal = |file: &str| from(file).err().expect("should be refused").to_string();
    assert!(refusal("e.json").contains("e.json: `chat_template` is missing, expected a chat template"));
    assert!(refusal("no.jinja").contains("no.jinja: "), "{}", refusal("no.jinja"));
    assert!(refusal("").contains(": "), "{}", refusal(""));
}

#[test]
fn special_tokens_of_both_files_are_known_to_the_template() {
    let template =
        "{{ bos_token }}{{ eos_token }}{{ unk_token }}{{ sep_token }}{{ pad_token }}{{ cls_token }}{{ mask_token }}";
    let folder = Folder::of("llama");
    let config =
        json!({"chat_template": template, "bos_token": "<b>", "pad_token": null, "cls_token": {"content": "<c>"}});
    let map = json!({
        "bos_token": "other", "eos_token": {"content": "<e>", "lstrip": false}, "pad_token": "other",
        "sep_token": "<s>", "mask_token": "<m>",
    });
    folder.write("tokenizer_config.json", config.to_string()).write("special_tokens_map.json", map.to_string());
    assert_eq!(render(&folder.open().unwrap(), &hello()).unwrap(), "<b><e><s><c><m>");
    folder.write("special_tokens_map.json", r#"{"eos_token": [1]}"#);
    let message = refusal(&folder);
    assert!(message.contains("special_tokens_map.json: `eos_token` is an array of 1, expected a string"), "{message}");
}

#[test]
fn what_a_template_raises_is_the_error() {
    let error = |template: &str| {
        let chat = Chat::new([message("robot", "x")]);
        render(&open(json!({ "chat_template": template })), &chat).unwrap_err().to_string()
    };
    let message = error(HEADERS);
    assert!(message.ends_with("tokenizer_config.json: chat template: unknown role robot (line 7)"), "{message}");
}

#[test]
fn a_hostile_template_is_an_error_and_nothing_worse() {
    let grown = |start: &str, step: &str, end: &str| {
        format!(
            "{{% set ns = namespace(x={start}) %}}{{% for i in range(90000) %}}{{% set ns.x = {step} %}}{{% endfor %}}{end}"
        )
    };
    let hostile = [
        ("endless", "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}".into()),
        ("doubled", grown("'aaaa'", "ns.x ~ ns.x", "")),
        ("replaced", grown("'aaaa'", "ns.x.replace('a', 'aa')", "")),
        ("long", "{{ 'a' * 20000000 }}".into()),
        ("padded", "{{ 'a'.ljust(99999999999) }}".into()),
        ("wide", "{{ '{:9999999999}'.format(1) }}".into()),
        ("deep JSON", grown("1", "[ns.x]", "{{ ns.x | tojson }}")),
        ("shared JSON", grown("1", "[ns.x, ns.x]", "{{ ns.x | tojson }}")),
        ("recursive", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into()),
        ("brackets", format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000))),
    ];
    for (name, template) in hostile {
        let checkpoint = open(json!({ "chat_template": template }));
        let refused = match checkpoint.chat_template() {
            Ok(template) => template.expect("there is a template").render(&hello()).is_err(),
            Err(_) => true,
        };
        assert!(refused, "{name}");
    }
    let nested = [
        grown("1", "[ns.x]", ""),
        grown("1", "{'a': ns.x}", "{{ ns.x | string | length }}"),
        format!("{{{{ {}1 }}}}", "not ".repeat(50_000)),
        format!("{{{{ 1{} }}}}", " + 1".repeat(50_000)),
        format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(20_000)),
    ];
    for template in nested {
        // Rendered or refused: what matters is that the process is still there.
        let folder = Folder::of("llama");
        folder.write("chat_template.jinja", template);
        if let Ok(Some(template)) = folder.open().unwrap().chat_template() {
            let _ = template.render(&hello());
        }
    }
}

#[test]
fn long_conversations_are_within_what_a_template_may_spend() {
    let turn = |index: usize| message(if index.is_multiple_of(2) { "user" } else { "assistant" }, &"word ".repeat(200));
    let chat = Chat::new((0..1000).map(turn).collect::<Vec<_>>());
    for template in [
        CHATML,
        "{% for m in messages %}{{ m | tojson }}{% for n in messages[-3:] %}{{ n.role }}{% endfor %}{% endfor %}",
    ] {
        let prompt = render(&open(json!({ "chat_template": template })), &chat).unwrap();
        assert!(prompt.len() > 1_000_000);
    }
}
