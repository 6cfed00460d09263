//! Jinja as Jinja2 and transformers have it: expected texts are theirs.

use eesd::load::{Chat, ChatTemplate, LoadError, Message};
use std::collections::BTreeMap;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

fn render(jinja: &str) -> Result<String, LoadError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("chat_template.jinja");
    std::fs::write(&path, jinja).unwrap();
    let messages = [Message::new("system", "Be good."), Message::new("user", "Hello")];
    ChatTemplate::from_file(&path, BTreeMap::new())?.render(&Chat::new(messages))
}

fn check(expected: &[(&str, &str)]) {
    for (jinja, text) in expected {
        assert_eq!(render(jinja).unwrap_or_else(|error| error.to_string()), *text, "{jinja}");
    }
}

fn check_refused(templates: &[(&str, &str)]) {
    for (jinja, expected) in templates {
        let error = render(jinja).expect_err(jinja).to_string();
        assert!(error.contains(expected), "{jinja}: {error}");
    }
}

#[test]
fn none_is_neither_iterable_nor_of_any_other_kind() {
    check(&[
        ("{% if tools is iterable and tools | length > 0 %}tools{% endif %}x", "x"),
        (
            "{{ tools is defined }} {{ tools is none }} {{ tools is not none }} {{ tools == none }}",
            "True True False True",
        ),
        (
            "{{ none is iterable }} {{ none is sequence }} {{ none is mapping }} {{ none is string }}",
            "False False False False",
        ),
        ("{{ none is number }} {{ none is boolean }} {{ none is callable }}", "False False False"),
        (
            "{{ undef is iterable }} {{ undef is sequence }} {{ undef is none }} {{ undef is defined }}",
            "True True False False",
        ),
        (
            "{{ 'a' is iterable }} {{ {} is iterable }} {{ [] is iterable }} {{ 1 is iterable }} {{ true is iterable }}",
            "True True True False False",
        ),
        (
            "{{ 'a' is sequence }} {{ {} is sequence }} {{ (1,) is sequence }} {{ 1 is sequence }}",
            "True True True False",
        ),
        ("{{ messages is sequence }} {{ messages[0] is mapping }} {{ range is callable }}", "True True True"),
        ("{{ true is number }} {{ true is integer }} {{ 1.0 is float }} {{ 1 is float }}", "True False True False"),
        ("{% for t in tools or [] %}a{% else %}none{% endfor %}{% for t in undef %}a{% endfor %}", "none"),
        ("{% for k, v in {'a': 1}.items() if v %}{{ k }}{% endfor %}", "a"),
    ]);
    check_refused(&[
        ("{% for t in tools %}{% endfor %}", "none is not iterable (line 1)"),
        ("\n{%- for t in tools if t -%}{% endfor %}", "none is not iterable (line 2)"),
        ("{% if tools | length > 0 %}{% endif %}", "length"),
    ]);
}

#[test]
fn white_space_and_line_ends_are_jinja2s() {
    check(&[
        ("a\r\nb\rc\n", "a\nb\nc"),
        ("a\n\n", "a\n"),
        ("{% if true %}\r\n x\r\n{% endif %}\r\ny", " x\ny"),
        ("{{ 'a\r\nb' | length }}", "3"),
        ("  {% if true %}  \n x\n  {% endif %}\ny\n", "  \n x\ny"),
        ("{% raw %}\n{{ x }}\n{% endraw %}\ny", "\n{{ x }}\ny"),
        ("{# c #}\nx\n  {# d #}\ny", "x\ny"),
        ("  {%+ if true %}x{% endif %}", "  x"),
    ]);
}

#[test]
fn values_are_written_as_python_writes_them() {
    check(&[
        ("{{ true }} {{ none }} {{ undef }} {{ 1.0 }} {{ 4 / 2 }} {{ 7 // 2 }} {{ -7 % 3 }}", "True None  1.0 2.0 3 2"),
        ("{{ 1e16 }} {{ 0.00001 }} {{ 1e15 }}", "1e+16 1e-05 1000000000000000.0"),
        ("{{ [1, 'a', none, true, {'k': \"it's\"}] }} {{ (1,) }}", "[1, 'a', None, True, {'k': \"it's\"}] (1,)"),
        ("{{ 'a' ~ none ~ true ~ 1.5 ~ undef }}", "aNoneTrue1.5"),
        ("{{ [1, none] | join('-') }} {{ none | string }}", "1-None None"),
        (r"{{ '\/' }} {{ '\U0001F600' }} {{ '\u00e9' }} {{ '\q' }}", "\\/ 😀 é \\q"),
    ]);
}

#[test]
fn methods_and_filters_of_python() {
    check(&[
        ("{{ 'a,b,c'.split(',', 1) }} {{ 'a,b,c'.rsplit(',', maxsplit=1) }}", "['a', 'b,c'] ['a,b', 'c']"),
        ("{{ ' a  b c '.split() }} {{ ' a  b c '.split(none, 1) }}", "['a', 'b', 'c'] ['a', 'b c']"),
        ("{{ ' a  b c '.rsplit(maxsplit=1) }} {{ ''.split() }} {{ ''.split(',') }}", "['a  b', 'c'] [] ['']"),
        ("{{ 'a-b-c'.partition('-') }} {{ 'a-b-c'.rpartition('-') }}", "('a', '-', 'b-c') ('a-b', '-', 'c')"),
        ("{{ 'a'.partition('-') }} {{ 'a'.rpartition('-') }}", "('a', '', '') ('', '', 'a')"),
        ("{{ 'abc'.removeprefix('a') }} {{ 'abc'.removesuffix('x') }} {{ 'éb'.index('b') }}", "bc abc 1"),
        (
            "[{{ 'a'.ljust(3) }}] [{{ 'a'.rjust(3, '-') }}] [{{ 'a'.center(4) }}] [{{ 'ab'.center(5) }}]",
            "[a  ] [--a] [ a  ] [  ab ]",
        ),
        ("{{ '-5'.zfill(4) }} {{ 'aB'.swapcase() }} {{ \"it's so\".title() }}", "-005 Ab It'S So"),
        ("{{ 'abc'.startswith(('x', 'a')) }} {{ 'xax'.strip('x') }} {{ 'aaa'.replace('a', 'b', 1) }}", "True a baa"),
        ("{{ [1, 2].index(2) }} {{ {'a': 1}.get('b', 3) }} {{ {'a': 1}.copy() }}", "1 3 {'a': 1}"),
        (
            "{{ 'x' | int }} {{ 'x' | int(7) }} {{ '5.5' | int }} {{ 'x' | float }} {{ 'x' | int(default=2) }}",
            "0 7 5 0.0 2",
        ),
        ("{{ 'abcdef'[::-1] }} {{ 'abcdef'[-2:] }} {{ [1, 2, 3][2:0:-1] }} {{ 'ab' * 2 }}", "fedcba ef [3, 2] abab"),
        ("{{ none | default('d') }} {{ none | default('d', true) }} {{ 'xax' | trim('x') }}", "None d a"),
        ("{{ messages | map(attribute='role') | join(', ') }}", "system, user"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | list }}", "['Hello']"),
        (
            "{% for m in messages %}{{ loop.previtem.role if loop.previtem }}{{ loop.cycle('a', 'b') }}{% endfor %}",
            "asystemb",
        ),
        ("{% macro m(a, b=2) %}{{ a }}{{ b }}{{ caller() }}{% endmacro %}{% call m(1, b=3) %}x{% endcall %}", "13x"),
        (
            "{% set ns = namespace(n=0) %}{% for i in [1, 2, 3] %}{% if i == 3 %}{%- break %}{% endif %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
            "3",
        ),
    ]);
    check_refused(&[
        ("{{ 'a'.split('') }}", "empty separator"),
        ("{{ 'a'.split(foo=1) }}", "foo"),
        ("{{ 'a'.index('b') }}", "substring not found"),
        ("{{ [1].index(2) }}", "not in the list"),
        ("{{ 'a,b' | split(',') }}", "split"),
        ("{{ 'a' is startingwith 'a' }}", "startingwith"),
        ("{{ debug() }}", "debug"),
        ("{{ [].append(1) }}", "append"),
        ("{% for m in messages %}{{ loop.previtem.role }}{% endfor %}", "undefined"),
    ]);
}

#[test]
fn json_is_written_as_python_writes_it() {
    check(&[
        ("{{ messages[0] | tojson }}", r#"{"role": "system", "content": "Be good."}"#),
        ("{{ 'a<b> & \"c\" \\'d\\' é\\n\\x01\\x7f' | tojson }}", "\"a<b> & \\\"c\\\" 'd' é\\n\\u0001\u{7f}\""),
        ("{{ [1, 2.5, none, true, 1.0, 1e20, ()] | tojson }}", "[1, 2.5, null, true, 1.0, 1e+20, []]"),
        ("{{ {'a': [1], 'b': {}} | tojson(indent=2) }}", "{\n  \"a\": [\n    1\n  ],\n  \"b\": {}\n}"),
        ("{{ {'a': [1]} | tojson(indent='\t') }}", "{\n\t\"a\": [\n\t\t1\n\t]\n}"),
        ("{{ {'a': [1, 2]} | tojson(separators=(',', ':')) }}", r#"{"a":[1,2]}"#),
        ("{{ {'a': 1} | tojson(indent=0, separators=('; ', ' = ')) }}", "{\n\"a\" = 1\n}"),
        ("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true) }}", r#"{"a": 2, "b": 1}"#),
        ("{{ 'é😀\\x7f' | tojson(ensure_ascii=true) }}", r#""\u00e9\ud83d\ude00\u007f""#),
        ("{{ {'é': [1]} | tojson(true, 1, none, true) }}", "{\n \"\\u00e9\": [\n  1\n ]\n}"),
        ("{{ {1: 2, none: 3, false: 4, 1.5: 5} | tojson }}", r#"{"1": 2, "null": 3, "false": 4, "1.5": 5}"#),
        ("{{ 1e999 | tojson }} {{ -1e999 | tojson }}", "Infinity -Infinity"),
    ]);
    check_refused(&[
        ("{{ 1 | tojson(foo=1) }}", "foo"),
        ("{{ 1 | tojson(indent=[]) }}", "indent"),
        ("{{ 1 | tojson(separators=',') }}", "separators"),
        ("{{ 1 | tojson(separators=(',', 1)) }}", "separators"),
        ("{{ 1 | tojson(true, ensure_ascii=false) }}", "ensure_ascii given twice"),
        ("{{ 1 | tojson(1, 2, none, 4, 5) }}", "at most four arguments"),
        ("{{ undef | tojson }}", "undefined"),
    ]);
}

#[test]
fn generation_marks_are_for_training_only() {
    check(&[
        (
            "{% for m in messages %}\n{%- generation -%}\n{{ m.content }}\n{%- endgeneration %}!{% endfor %}",
            "Be good.!Hello!",
        ),
        ("{% generation %}{% set a = 1 %}{% endgeneration %}[{{ a }}]{{ '{% generation %}' }}", "[]{% generation %}"),
    ]);
    check_refused(&[("{% generation %}", "unexpected end")]);
}

#[test]
fn dates_are_in_local_time() {
    // In a process of its own, since the zone is the whole process's. Offsets are written as POSIX has them: west is
    // positive.
    if std::env::var_os("RENDER_THE_TIME").is_some() {
        println!("time: {}", render("{{ strftime_now('%s %H:%M:%S %p %j %Q%') }}").unwrap());
        return;
    }
    for (zone, east_of_utc) in [("UTC0", 0), ("XXX-5:30", 19_800), ("YYY11", -39_600)] {
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "jinja::dates_are_in_local_time", "--nocapture"])
            .envs([("TZ", zone), ("RENDER_THE_TIME", "1")])
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let line = text.split("time: ").nth(1).and_then(|rest| rest.lines().next()).expect(&text);
        let fields: Vec<&str> = line.split(' ').collect();
        let seconds: i64 = fields[0].parse().unwrap();
        assert!(seconds >= before, "{line}");
        let of_day = (seconds + east_of_utc).rem_euclid(86_400);
        let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
        assert_eq!(fields[1], format!("{hour:02}:{minute:02}:{second:02}"), "{zone}: {line}");
        assert_eq!(fields[2], if hour < 12 { "AM" } else { "PM" }, "{zone}: {line}");
        assert_eq!((fields[3].len(), fields[4]), (3, "%Q%"), "{zone}: {line}");
    }
}
