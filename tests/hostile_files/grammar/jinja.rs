//! Chat templates that nest, double, repeat and recurse.

use super::dice;
use crate::dice::Dice;

/// Templates that took minutes, or all memory, before there were limits: each stands for a kind.
const BOMBS: [&str; 30] = [
    // Constants are folded at every level of a chain, and a chain that does not fold is tried at each.
    "{{ 1@(~1)120000 }}",
    "{{ 1@(~1)60000@(~x)60000 }}",
    "{{ 2@(**2)80000 }}",
    "{{ x@(+1)120000 }}",
    "{{ @(not )60000x }}",
    "{{ @(-)100000x }}",
    "{{ @(()100000@())100000 }}",
    "{{ @([)100000x@(])100000 }}",
    "{{ messages@([:])80000 }}",
    "{{ ['a' * 100000000@(, 'a' * 100000000)190] | length }}",
    "{{ [(1,) * 100000000@(, (1,) * 100000000)190] | length }}",
    // Lists that stand twice in a list, to a depth.
    "{% set n = namespace(x=[1], y=[1]) %}@({% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %})60{{ n.x == n.y }}",
    "{% set n = namespace(x=[1], y=[1]) %}@({% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %})60{{ n.x < n.y }}",
    "{% set n = namespace(x=(1,)) %}@({% set n.x = (n.x, n.x) %})60{{ {n.x: 1} }}",
    "{% set n = namespace(x=[]) %}@({% set n.x = [n.x, n.x] %})60{{ n.x ~ '' }}{{ n.x in 'a' }}{{ n.x | pprint }}",
    "{% set n = namespace(x={}) %}@({% set n.x = {'a': n.x, 'b': n.x} %})40{{ [n.x] | join }}{{ '%s' | format(n.x) }}",
    "{% set n = namespace(x=[]) %}@({% set n.x = [n.x, n.x] %})22{{ n.x | tojson(indent=64) }}",
    "{% set n = namespace(x=[1]) %}@({% set n.x = n.x + n.x %})60{{ n.x | length }}",
    "{% macro m(x, n) %}{% if n %}{{ m([x, x], n - 1) }}{% else %}{{ x ~ '' }}{% endif %}{% endmacro %}{{ m([1], 60) }}",
    "{% set n0 = namespace() %}{% set n1 = namespace(a=n0, b=n0) %}{% set n0.x = n1 %}{{ n0 }}",
    "{% set n = namespace() %}{% set l = [n] %}{% set n.x = l %}{{ n }}",
    // Values that make their items anew each time, inside each other.
    "{% set n = namespace(x=[1]) %}{% for i in range(90000) %}{% set n.x = n.x[::1] %}{% endfor %}{{ n.x | length }}",
    "{% set n = namespace(x=range(1000)) %}{% for i in range(90000) %}{% set n.x = [n.x[0:]] %}{% endfor %}",
    "{% set n = namespace(x=[1]) %}{% for i in range(90000) %}{% set n.x = n.x * 1 %}{% endfor %}{{ n.x }}",
    // Work that costs no fuel, again and again.
    "{% set a = 'a' * 900000 %}{% set b = 'a' * 899999 ~ 'a' %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    "{% set a = 'é' * 500000 %}{% for i in range(99999) %}{% if a[-1:] %}{% endif %}{% endfor %}",
    "{% set a = [[range(5000) | list]] %}{% for i in range(99999) %}{% if a in 'a' %}{% endif %}{% endfor %}",
    "{{ ([1] * 99999999) | tojson(separators=('a' * 1000000, ':')) }}",
    "{% for x in [1] recursive %}{{ loop([x, x]) }}{% endfor %}",
    "{% if 0 %}@({% elif 0 %})20000{% endif %}",
];

const ATOMS: [&str; 24] = [
    "1",
    "-1",
    "0",
    "99999999999",
    "1e308",
    "340282366920938463463374607431768211455",
    "2.5",
    "''",
    "'a'",
    "'é\\n'",
    "'<|x|>'",
    "true",
    "none",
    "[]",
    "{}",
    "v",
    "n.x",
    "n",
    "messages",
    "messages[0].content",
    "bos_token",
    "undef",
    "loop",
    "range(1000)",
];

const FILTERS: [&str; 34] = [
    "list",
    "length",
    "join",
    "first",
    "last",
    "sort",
    "unique",
    "reverse",
    "string",
    "int",
    "float",
    "trim",
    "upper",
    "title",
    "tojson",
    "tojson(indent=9)",
    "pprint",
    "items",
    "dictsort",
    "batch(2)",
    "slice(3)",
    "min",
    "max",
    "sum",
    "indent(99)",
    "replace('a', 'aa')",
    "map('list')",
    "select",
    "groupby('role')",
    "default([1])",
    "abs",
    "round(9)",
    "format(v, n.x)",
    "safe",
];

const TESTS: [&str; 8] = ["defined", "none", "iterable", "mapping", "eq(v)", "in([v])", "lower", "divisibleby(3)"];

const METHODS: [&str; 14] = [
    "split('a')",
    "split()",
    "strip()",
    "replace('', v)",
    "join(n.x)",
    "items()",
    "get('role')",
    "center(9999)",
    "format(v, v)",
    "title()",
    "zfill(99)",
    "count('a')",
    "startswith(v)",
    "index(v)",
];

const OPERATORS: [&str; 18] = [
    "+",
    "-",
    "*",
    "/",
    "//",
    "%",
    "**",
    "~",
    "==",
    "!=",
    "<",
    ">=",
    "in",
    "not in",
    "and",
    "or",
    "if 1 else",
    "is in",
];

/// A chat_template.jinja.
pub fn template(number: usize) -> Vec<u8> {
    if let Some(bomb) = BOMBS.get(number) {
        return repeated(bomb).into_bytes();
    }
    let mut dice = dice(2, number);
    let mut text = String::from("{% set n = namespace(x=[1], y='a') %}{% set v = 'ab' %}");
    for _ in 0..1 + dice.roll(5) {
        text += &statement(&mut dice, 3);
    }
    match dice.roll(8) {
        0 => dice.damage(text.as_bytes()),
        _ => text.into_bytes(),
    }
}

/// A text in which `@(part)7` stands for seven times the part.
fn repeated(short: &str) -> String {
    let mut text = String::new();
    let mut rest = short;
    while let Some((before, from)) = rest.split_once("@(") {
        let end = from
            .match_indices(')')
            .map(|(at, _)| at)
            .find(|at| from[at + 1..].starts_with(|c: char| c.is_ascii_digit()));
        let end = end.expect("a part ends in a bracket and a number");
        let digits = from[end + 1..].find(|c: char| !c.is_ascii_digit()).map_or(from.len(), |at| end + 1 + at);
        text += before;
        text += &from[..end].repeat(from[end + 1..digits].parse().unwrap());
        rest = &from[digits..];
    }
    text + rest
}

fn statement(dice: &mut Dice, depth: usize) -> String {
    let body = |dice: &mut Dice| if depth > 0 { statement(dice, depth - 1) } else { "x".into() };
    match dice.roll(12) {
        0 | 1 => format!("{{{{ {} }}}}", expression(dice, 4)),
        2 => format!("{{% set v = {} %}}", expression(dice, 4)),
        3 => format!("{{% set n.x = {} %}}", expression(dice, 4)),
        4 => {
            let (times, step) = (dice.one(&["range(3)", "range(60)", "range(99999)"]), expression(dice, 2));
            format!("{{% for i in {times} %}}{{% set n.x = {step} %}}{{% endfor %}}{{{{ n.x ~ '' }}}}")
        }
        5 => format!("{{% for v in {} %}}{}{{% endfor %}}", expression(dice, 3), body(dice)),
        6 => format!("{{% if {} %}}{}{{% else %}}{}{{% endif %}}", expression(dice, 3), body(dice), body(dice)),
        7 => format!(
            "{{% macro m(v, w=[v]) %}}{}{{{{ m(v + w) }}}}{{% endmacro %}}{{{{ m({}) }}}}",
            body(dice),
            expression(dice, 2)
        ),
        8 => format!("{{% set v %}}{}{}{{% endset %}}", body(dice), body(dice)),
        9 => format!("{{% with v = {}, w = v %}}{}{{% endwith %}}", expression(dice, 3), body(dice)),
        10 => format!(
            "{{% for v in [[n.x, n.x]] recursive %}}{}{{{{ loop(v) if v is iterable }}}}{{% endfor %}}",
            body(dice)
        ),
        _ => {
            // One thing over and over, beside and inside itself.
            let (part, times) = (expression(dice, 1), [5, 150, 199, 201, 3000][dice.roll(5)]);
            let operator = dice.one(&OPERATORS);
            match dice.roll(3) {
                0 => format!("{{{{ {part}{} }}}}", format!(" {operator} {part}").repeat(times)),
                1 => format!("{{{{ {}{part}{} }}}}", "[".repeat(times), "]".repeat(times)),
                _ => format!("{{{{ {part}{} }}}}", format!("|{}", dice.one(&FILTERS)).repeat(times)),
            }
        }
    }
}

fn expression(dice: &mut Dice, depth: usize) -> String {
    if depth == 0 {
        return dice.one(&ATOMS).into();
    }
    let part = |dice: &mut Dice| expression(dice, depth - 1);
    match dice.roll(14) {
        0 | 1 => dice.one(&ATOMS).into(),
        2..=4 => format!("{} {} {}", part(dice), dice.one(&OPERATORS), part(dice)),
        5 => format!("[{}, {}]", part(dice), part(dice)),
        6 => format!("({}, {})", part(dice), part(dice)),
        7 => format!("{{'a': {}, {}: v}}", part(dice), part(dice)),
        8 => format!("({}) | {}", part(dice), dice.one(&FILTERS)),
        9 => format!("({}) is {}", part(dice), dice.one(&TESTS)),
        10 => format!("({}).{}", part(dice), dice.one(&METHODS)),
        11 => format!(
            "({})[{}:{}]",
            part(dice),
            dice.one(&["", "1", "-1", "-99999999999"]),
            dice.one(&["", "-1", "2:-1", ":-1", ":2"])
        ),
        12 => format!("({}) * {}", part(dice), dice.one(&["3", "1000", "99999999", "-1"])),
        _ => format!(
            "{}({})",
            dice.one(&["range", "dict", "namespace", "strftime_now", "m", "raise_exception"]),
            part(dice)
        ),
    }
}
