//! Values of chat templates: as they were once they are measured, and refused where they grow out of hand.

use eesd::load::{Chat, ChatTemplate, LoadError, Message};
use std::collections::BTreeMap;
use tempfile::TempDir;

fn render(jinja: &str, messages: usize) -> Result<String, LoadError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("chat_template.jinja");
    std::fs::write(&path, jinja).unwrap();
    let message = |n: usize| Message::new(if n.is_multiple_of(2) { "user" } else { "assistant" }, format!("m{n}"));
    let chat = Chat::new((0..messages).map(message).collect::<Vec<_>>());
    ChatTemplate::from_file(&path, BTreeMap::new())?.render(&chat)
}

#[test]
fn measured_values_are_what_they_were() {
    for (jinja, text) in [
        ("{% set x = messages[1:] %}{{ x | length }} {{ x[0].content }} {{ x is sequence }}", "2 m1 True"),
        (
            "{% set x = {'b': messages[::-1], 'a': (1, [2][:])} %}{{ x.b[0].content }} {{ x.a }} {{ x | list }}",
            "m2 (1, [2]) ['b', 'a']",
        ),
        (
            "{% set x = [range(3), (1, 2) + (3,)] + [messages[:1]] %}{{ x[0] }}{{ x[1] }}{{ x[2][0].role }}",
            "[0, 1, 2](1, 2, 3)user",
        ),
        ("{% for k, v in {'b': 1, 'a': [2]}.items() %}{{ k }}{{ v }}{% endfor %}", "b1a[2]"),
        ("{% for i in range(messages | length - 1, -1, -1) %}{{ messages[i].content }}{% endfor %}", "m2m1m0"),
        (
            "{% for m in messages[1:] + messages[:1] %}{{ loop.index }}/{{ loop.length }}{{ m.content }} {% endfor %}",
            "1/3m1 2/3m2 3/3m0 ",
        ),
        (
            "{% set x %}a{{ 'b' * 3 }}{% endset %}{{ x }}{{ -2 * 3 }} {{ 2 * 1.5 ** 2 * 2 }} {{ '-' * messages | length }}",
            "abbb-6 9.0 ---",
        ),
        (
            "{% macro f(a, b=[1, 2][1:], c='x') %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(messages[0].role ~ 1, c=('y', 'z')[1:] | join) }}",
            "user1[2]z",
        ),
        ("{% set a, b = [1, 2], (3,) %}{% with c = a + [4], d = b %}{{ c }}{{ d }}{% endwith %}", "[1, 2, 4](3,)"),
        (
            "{% set n = namespace(a=[]) %}{% for m in messages %}{% set n.a = n.a + [m.content] %}{% endfor %}{{ n.a | join(',') }}",
            "m0,m1,m2",
        ),
        // Namespaces serve as records, also in lists.
        (
            "{% set r = namespace(a=1) %}{% set l = [r] + [namespace(b=r)] %}{% set r.a = 2 %}{{ l[0].a }}{{ l[1].b.a }}",
            "22",
        ),
        (
            "{% set x = none %}{{ [x, undef is defined, true, 1.0] }}{{ (none)|default('d', true) }}",
            "[None, False, True, 1.0]d",
        ),
    ] {
        assert_eq!(render(jinja, 3).unwrap_or_else(|error| error.to_string()), text, "{jinja}");
    }
}

#[test]
fn what_grows_out_of_hand_is_refused_by_its_name() {
    let doubled = |step: &str, times: usize| {
        format!("{{% set n = namespace(x=[1]) %}}{}{{{{ n.x }}}}", format!("{{% set n.x = {step} %}}").repeat(times))
    };
    for (jinja, expected) in [
        (doubled("[n.x, n.x]", 60), "a value of more than 6"),
        (doubled("{'a': n.x, 'b': (n.x,)}", 60), "a value of more than 6"),
        (doubled("[n.x]", 300), "values more than 200 inside each other"),
        ("{{ [1] * 3 }}".into(), "a list is not multiplied"),
        ("{{ 3 * messages[1:] | list }}".into(), "a list is not multiplied"),
        ("{% set n = namespace() %}{% set n.x = n %}".into(), "a namespace inside a namespace"),
        ("{% set n = namespace() %}{% set l = [[n]] %}{% set n.x = l %}".into(), "a namespace inside a namespace"),
        (
            "{% set n = namespace() %}{% set l = [n, n] %}{% set n.x = range(50) | list %}".into(),
            "a value of more than 16 parts",
        ),
        (format!("{{{{ 1{} }}}}", " + 1".repeat(201)), "operators in one tag of a chat template: 201 (at most 200)"),
        (format!("{{% if {}1 %}}{{% endif %}}", "not ".repeat(300)), "operators in one tag of a chat template: 300"),
        (format!("{{{{ {}1{} }}}}", "(".repeat(200), ")".repeat(200)), "brackets inside each other in one tag"),
        ("{% set a = 'a' * 6000000 %}{{ a }}{{ a }}{{ a }}".into(), "out of fuel"),
    ] {
        let error = render(&jinja, 1).expect_err(&jinja).to_string();
        assert!(error.contains("chat_template.jinja: ") && error.contains(expected), "{error}");
    }
    assert_eq!(render(&format!("{{{{ 1{} }}}}", " + 1".repeat(200)), 1).unwrap(), "201");
}

#[test]
fn a_longer_conversation_may_take_more() {
    // As published templates do: from each message, a look at all of those before.
    let backwards = "{% for m in messages %}{% set n = namespace(x=none) %}{% for i in range(TIMES - 1, -1, -1) %}\
        {% if n.x is none %}{% set n.x = messages[i % 2].role %}{% endif %}{% endfor %}{{ (n.x or 'x')[0] }}{% endfor %}";
    let all = render(&backwards.replace("TIMES", "loop.index0"), 600).unwrap();
    assert_eq!(all.len(), 600);
    let often = format!("{{% for a in range(9) %}}{}{{% endfor %}}", backwards.replace("TIMES", "6000"));
    let error = render(&often, 2).unwrap_err().to_string();
    assert!(error.contains("out of fuel"), "{error}");
}
