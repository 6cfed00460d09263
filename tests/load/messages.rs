//! What a chat template gets: messages with all their keys, tools, documents, arguments.

use eesd::load::{Chat, ChatTemplate, Keys, Message, Prompt};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tempfile::TempDir;

fn template(jinja: &str) -> ChatTemplate {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("chat_template.jinja");
    std::fs::write(&path, jinja).unwrap();
    ChatTemplate::from_file(&path, BTreeMap::new()).unwrap()
}

fn read(messages: Value) -> Vec<Message> {
    serde_json::from_value(messages).unwrap()
}

fn render(jinja: &str, messages: Value) -> String {
    template(jinja).render(&Chat::new(read(messages))).unwrap()
}

#[test]
fn keys_are_passed_on_unchanged_and_in_order() {
    let call =
        json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": {"z": 1, "a": [1.5, "é"]}}});
    let conversation = json!([
        {"zeta": {"deep": [1]}, "role": "user", "name": "Ann", "content": "x", "alpha": false},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": ""},
    ]);
    assert_eq!(
        render("{% for m in messages %}{{ m | tojson }}\n{% endfor %}", conversation),
        "{\"zeta\": {\"deep\": [1]}, \"role\": \"user\", \"name\": \"Ann\", \"content\": \"x\", \"alpha\": false}\n\
         {\"role\": \"assistant\", \"tool_calls\": [{\"id\": \"1\", \"type\": \"function\", \"function\": \
         {\"name\": \"f\", \"arguments\": {\"z\": 1, \"a\": [1.5, \"é\"]}}}]}\n\
         {\"role\": \"tool\", \"tool_call_id\": \"1\", \"content\": \"\"}\n"
    );
}

#[test]
fn null_is_as_if_the_key_were_not_there() {
    let call = json!([{"function": {"name": "f", "arguments": {}}}]);
    let conversation = json!([{"role": "assistant", "content": null, "name": null, "tool_calls": call}]);
    assert_eq!(
        render("{{ messages[0].content is defined }} {{ messages[0].keys() | list }}", conversation),
        "False ['role', 'tool_calls']"
    );
}

#[test]
fn reasoning_is_known_by_the_names_that_templates_read() {
    let jinja = "{{ messages[0].reasoning_content }} {{ messages[0].thinking }}";
    for key in ["reasoning_content", "thinking", "reasoning"] {
        assert_eq!(render(jinja, json!([{"role": "assistant", "content": "4", key: "hm"}])), "hm hm");
    }
    assert_eq!(render(jinja, json!([{"role": "assistant", "content": "4"}])), " ");
}

#[test]
fn arguments_of_a_call_that_are_a_json_text_become_an_object() {
    let jinja = "{% for c in messages[0].tool_calls %}{{ c.function.arguments is mapping }} {{ c.function.arguments | tojson }};{% endfor %}";
    let call = |arguments: &str| json!({"function": {"name": "f", "arguments": arguments}});
    let calls = [call("{\"b\": 1, \"a\": null}"), call(""), call("not JSON"), call("[1]")];
    assert_eq!(
        render(jinja, json!([{"role": "assistant", "tool_calls": calls}])),
        "True {\"b\": 1, \"a\": null};True {};False \"not JSON\";False \"[1]\";"
    );
}

#[test]
fn parts_go_to_templates_that_take_them_and_are_joined_for_others() {
    let conversation = json!([
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]);
    let plain = "{% for m in messages %}[{{ m.content }}]{% endfor %}";
    assert_eq!(render(plain, conversation.clone()), "[s][a\nb]");
    let strict = "{% for m in messages %}{% if m.content is not string %}{{ raise_exception('no text') }}{% endif %}{{ m.content }};{% endfor %}";
    assert_eq!(render(strict, conversation.clone()), "s;a\nb;");
    let taking = "{% for m in messages %}[{% if m.content is string %}{{ m.content }}{% else %}\
                  {% for p in m.content %}{% if p.type == 'text' %}<{{ p.text }}>{% endif %}{% endfor %}{% endif %}]{% endfor %}";
    assert_eq!(render(taking, conversation.clone()), "[<s>][<a><b>]");
    // Some take them of the user alone.
    let of_users = taking.replace("m.content is string", "m.role != 'user'");
    assert_eq!(render(&of_users, conversation.clone()), "[s][<a><b>]");
    assert_eq!(read(conversation)[1].text(), "a\nb");
}

#[test]
fn tools_documents_and_arguments_reach_the_template() {
    let jinja = "{{ tools | tojson }} {{ documents | tojson }} {{ enable_thinking }} {{ add_generation_prompt }}";
    let bare = Chat::new(read(json!([{"role": "user", "content": "x"}])));
    assert_eq!(template(jinja).render(&bare).unwrap(), "null null  True");
    let arguments = json!({"enable_thinking": false, "add_generation_prompt": false});
    let chat = Chat {
        tools: Some(json!([{"type": "function"}])),
        documents: Some(json!([{"text": "t"}])),
        arguments: arguments.as_object().unwrap().clone(),
        ..bare.clone()
    };
    assert_eq!(template(jinja).render(&chat).unwrap(), "[{\"type\": \"function\"}] [{\"text\": \"t\"}] False False");
    let refused = |chat: Chat| template(jinja).render(&chat).unwrap_err().to_string();
    let with = |arguments: Value| Chat { arguments: arguments.as_object().unwrap().clone(), ..bare.clone() };
    assert!(refused(with(json!({"messages": []}))).contains("`messages` cannot be given as an argument"));
    assert!(refused(with(json!({"tools": 1}))).contains("`tools` is no list of objects"));
    assert!(
        refused(Chat { documents: Some(json!(["x"])), ..bare.clone() }).contains("`documents` is no list of objects")
    );
}

#[test]
fn what_goes_beside_a_conversation_is_named_where_it_is_wrong() {
    let told = |key: &str, value: Value| {
        let line = json!({"messages": [{"role": "user", "content": "x"}], key: value}).to_string();
        Prompt::of_keys(&mut Keys::parse(line.as_bytes())).map(drop)
    };
    for key in ["tools", "documents"] {
        assert_eq!(told(key, json!([{"name": "f"}])), Ok(()));
        for (wrong, found) in
            [(json!(7), "is 7"), (json!({"a": 1}), "is an object"), (json!([{}, "f"]), "has a text in it")]
        {
            assert_eq!(told(key, wrong), Err(format!("\"{key}\" {found} (expected a list of objects)")));
        }
    }
}

#[test]
fn a_wrong_message_is_named_with_its_key() {
    let parse = |value: Value| {
        let line = json!({ "messages": value }).to_string();
        Prompt::of_keys(&mut Keys::parse(line.as_bytes()))
    };
    assert_eq!(parse(Value::Null), Err("neither \"prompt\" nor \"messages\"".into()));
    let fine = json!({"role": "user", "content": "x"});
    assert_eq!(parse(json!([fine])), Ok(Prompt::Chat(Box::new(Chat::new([Message::new("user", "x")])))));
    let wrong = [
        (json!({"content": "x"}), "\"role\" is missing, expected a text"),
        (json!({"role": 5, "content": "x"}), "\"role\" is 5, expected a text"),
        (json!({"role": "user"}), "\"content\" is missing, expected a text or a list of text parts"),
        (json!({"role": "user", "content": null}), "\"content\" is null"),
        (json!({"role": "user", "content": {"text": "x"}}), "\"content\" is an object"),
        (json!({"role": "assistant", "tool_calls": []}), "\"content\" is missing"),
        (json!({"role": "assistant", "tool_calls": "f"}), "\"tool_calls\" is a text, expected a list of objects"),
        (
            json!({"role": "assistant", "content": "", "tool_calls": [1]}),
            "\"tool_calls\" is a list, expected a list of objects",
        ),
        (
            json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}),
            "\"content\"[0]: a part of type \"image_url\"",
        ),
        (
            json!({"role": "user", "content": [{"type": "text", "text": "x"}, "y"]}),
            "\"content\"[1]: a text, expected an object",
        ),
        (json!({"role": "user", "content": [{"type": "text"}]}), "\"content\"[0]: a part without a \"text\""),
        (json!({"role": "user", "content": [{"text": "x"}]}), "\"content\"[0]: a part without a \"type\""),
        (json!("x"), "a message is a text, expected an object"),
    ];
    for (message, expected) in wrong {
        let error = parse(json!([fine, message])).unwrap_err();
        assert!(error.contains("\"messages\"[1]: ") && error.contains(expected), "{error}");
    }
    let error = parse(json!({})).unwrap_err();
    assert_eq!(error, "\"messages\": invalid type: map, expected a sequence");
}
