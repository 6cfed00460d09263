//! A template's text, rewritten where Jinja2 and transformers read it otherwise than minijinja does.

use super::code::{Code, is_word};
use super::measured::{Additions, parts, value_of};
use super::python::LOOPED;
use super::values::{HELD, KEPT};
use crate::load::limits;

/// Why a tag is not looked at.
pub(super) enum TooMany {
    /// So many operators.
    Operators(usize),
    /// Brackets inside each other, so many.
    Brackets(usize),
}

/// The text to give to minijinja:
/// - line ends are line feeds, as Jinja2 makes them;
/// - `{% generation %}`, a tag of transformers' own that marks the assistant's words for training, becomes `with`: to
///   render, it means nothing but a scope of its own;
/// - what a `for` loops over goes through the filter [`LOOPED`], which refuses none;
/// - a line end after `{% raw %}` is doubled, since minijinja drops one and Jinja2 does not;
/// - escapes in quoted texts mean what they mean in Python;
/// - values that are kept are measured, as `measured` says.
///
/// # Errors
/// If a tag has more operators than [`limits::TEMPLATE_OPERATORS`] or deeper brackets than
/// [`limits::TEMPLATE_BRACKETS`].
pub(super) fn rewrite(template: &str) -> Result<String, TooMany> {
    let template = template.replace("\r\n", "\n").replace('\r', "\n");
    let mut text = String::with_capacity(template.len());
    let mut rest = template.as_str();
    while let Some(start) = rest.find('{') {
        let (before, from) = rest.split_at(start);
        text += before;
        let length = match from.as_bytes().get(1) {
            Some(b'#') => {
                let length = from.find("#}").map_or(from.len(), |end| end + 2);
                text += &from[..length];
                length
            }
            Some(b'{') => {
                let code = Code::read(&from[2..], "}}");
                text.extend(["{{", &code.checked()?.rewritten()]);
                2 + code.text.len()
            }
            Some(b'%') => {
                let code = Code::read(&from[2..], "%}");
                text.extend(["{%", &code.checked()?.rewritten_tag()]);
                let length = 2 + code.text.len();
                match code.is_raw() {
                    true => length + copy_raw(&from[length..], code.text.ends_with('-'), &mut text),
                    false => length,
                }
            }
            _ => {
                text.push('{');
                1
            }
        };
        rest = &from[length..];
    }
    Ok(text + rest)
}

/// Copies what follows `{% raw` up to `{% endraw`, the end of the first tag and all. `drops_space`: that tag drops the
/// white space after it. The copy's length before the line end is doubled.
fn copy_raw(from: &str, drops_space: bool, text: &mut String) -> usize {
    let is_end = |at: &usize| {
        let inside = from[at + 2..].trim_start_matches(['-', '+']).trim_start();
        inside.starts_with("endraw")
    };
    let end = from.match_indices("{%").map(|(at, _)| at).find(is_end).unwrap_or(from.len());
    match from[..end].strip_prefix("%}\n") {
        Some(after) if !drops_space => text.extend(["%}\n\n", after]),
        _ => text.push_str(&from[..end]),
    }
    end
}

impl Code<'_> {
    fn checked(&self) -> Result<&Self, TooMany> {
        let depth = self.pieces.iter().map(|piece| piece.depth).max().unwrap_or(0);
        match self.operators() {
            _ if depth > limits::TEMPLATE_BRACKETS => Err(TooMany::Brackets(depth)),
            operators if operators > limits::TEMPLATE_OPERATORS => Err(TooMany::Operators(operators)),
            _ => Ok(self),
        }
    }

    fn is_raw(&self) -> bool {
        self.piece(self.name()) == "raw"
    }

    fn rewritten_tag(&self) -> String {
        let name = self.name();
        let replaced = |other: &str| {
            let piece = &self.pieces[name];
            [&self.text[..piece.start], other, &self.text[piece.end..]].concat()
        };
        match self.piece(name) {
            "generation" => replaced("with"),
            "endgeneration" => replaced("endwith"),
            "for" => self.rewritten_loop(),
            "set" => self.rewritten_assignment(),
            "with" => {
                let pieces = name + 1..self.unsigned().end;
                let mut additions = Additions::of(self, pieces.clone());
                for assigned in parts(self, pieces) {
                    additions.keep(self, value_of(self, assigned));
                }
                self.written(&additions)
            }
            _ => self.rewritten(),
        }
    }

    /// `for x in a if b` as `for x in (a)|looped if b`.
    fn rewritten_loop(&self) -> String {
        let pieces = self.unsigned();
        let outside = |words: &[&str], from: usize| {
            (from..pieces.end).find(|&index| self.pieces[index].depth == 0 && words.contains(&self.piece(index)))
        };
        let Some(start) = outside(&["in"], 0).map(|index| index + 1) else { return self.rewritten() };
        let end = outside(&["if", "recursive"], start).unwrap_or(pieces.end);
        if start >= end {
            return self.rewritten();
        }
        let mut additions = Additions::of(self, start..pieces.end);
        additions.keep(self, start..end);
        additions.put_in_brackets(start..end, LOOPED);
        self.written(&additions)
    }

    /// `set x = a` with the value measured; so is a block's text.
    fn rewritten_assignment(&self) -> String {
        let pieces = self.unsigned();
        let is_sign = |&index: &usize| self.pieces[index].depth == 0 && self.piece(index) == "=";
        let Some(sign) = pieces.clone().find(is_sign) else {
            let mut additions = Additions::of(self, pieces.clone());
            if pieces.len() > 1 && is_word(self.piece(pieces.end - 1)) || self.piece(pieces.end - 1) == ")" {
                additions.after(pieces.end - 1, &format!(" | {KEPT}"));
            }
            return self.written(&additions);
        };
        let value = sign + 1..pieces.end;
        let mut additions = Additions::of(self, value.clone());
        let attribute = (pieces.start..sign).any(|index| self.piece(index) == ".");
        match attribute && !value.is_empty() {
            true => additions.put_in_brackets(value, HELD),
            false => additions.keep(self, value),
        }
        self.written(&additions)
    }

    fn rewritten(&self) -> String {
        self.written(&Additions::of(self, self.unsigned()))
    }

    /// The code with what is added to it, escapes in quoted texts as minijinja reads them.
    fn written(&self, additions: &Additions) -> String {
        let mut text = String::new();
        let mut at = 0;
        for index in 0..self.pieces.len() {
            let piece = &self.pieces[index];
            let [before, after] = additions.around(index);
            text += &self.text[at..piece.start];
            text += before;
            let code = self.piece(index);
            if code.starts_with(['\'', '"']) {
                text += &escapes(code)
            } else {
                text += code
            }
            text += after;
            at = piece.end;
        }
        text + &self.text[at..]
    }
}

/// Escapes of Python's that minijinja does not know, by ones that it does; `\/`, which is none in Python, by itself.
fn escapes(quoted: &str) -> String {
    let mut text = String::new();
    let mut rest = quoted;
    while let Some(at) = rest.find('\\') {
        text += &rest[..at];
        let escape = &rest[at..];
        let code = escape.get(2..10).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let (written, length) = match (escape.as_bytes().get(1), code.and_then(char::from_u32)) {
            (Some(b'/'), _) => ("\\\\/".to_owned(), 2),
            (Some(b'a'), _) => ("\\x07".to_owned(), 2),
            (Some(b'v'), _) => ("\\x0b".to_owned(), 2),
            (Some(b'U'), Some(character)) if character > '\u{ffff}' => (character.to_string(), 10),
            _ => {
                let length = 1 + escape[1..].chars().next().map_or(0, char::len_utf8);
                (escape[..length].to_owned(), length)
            }
        };
        text += &written;
        rest = &escape[length..];
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn loops_go_through_the_filter_and_nothing_else_does() {
        let rewritten = [
            ("{% for x in y %}", "{% for x in (y)|looped %}"),
            ("{%- for k, v in d.items() -%}", "{%- for k, v in ((d.items())|kept)|looped -%}"),
            (
                "{% for x in [1 if a else 2] if x in 'if' %}",
                "{% for x in (([1 if a else 2])|kept)|looped if x in 'if' %}",
            ),
            ("{%for x in tree recursive%}", "{%for x in (tree)|looped recursive%}"),
            ("{% for x in a['%}'] %}", "{% for x in (a['%}'])|looped %}"),
            ("{% if x in y %}{{ 'for x in y' }}", "{% if x in y %}{{ 'for x in y' }}"),
            ("{# {% for x in y %} #}", "{# {% for x in y %} #}"),
            ("{% raw %}{% for x in y %}{% endraw %}", "{% raw %}{% for x in y %}{% endraw %}"),
            ("{{ '{% for x in y %}' }}", "{{ '{% for x in y %}' }}"),
            ("{% for x in %}", "{% for x in %}"),
            ("{% for x in y", "{% for x in (y)|looped"),
            ("{% for", "{% for"),
            ("{ {x} {", "{ {x} {"),
        ];
        for (template, text) in rewritten {
            assert_eq!(rewrite(template).ok().as_deref(), Some(text), "{template}");
        }
    }

    #[test]
    fn what_is_kept_is_measured_and_what_is_only_taken_out_is_not() {
        let rewritten = [
            ("{% set a = b.c['d'][0] or e %}", "{% set a = b.c['d'][0] or e %}"),
            ("{%- set a = b + [c, d] -%}", "{%- set a = (b + ([c, d]|kept))|kept -%}"),
            ("{% set a, b = b, a %}", "{% set a, b = (b, a)|kept %}"),
            ("{% set n.a = b %}", "{% set n.a = (b)|held %}"),
            ("{% set a %}b{% endset %}", "{% set a | kept %}b{% endset %}"),
            ("{% set a | f(b ~ c) -%}", "{% set a | f((b ~ c)|kept) | kept -%}"),
            ("{% with a = b, c = d ~ e %}", "{% with a = b, c = (d ~ e)|kept %}"),
            ("{{ f(a, b=c + d, *e, **{'g': h}) }}", "{{ f(a, b=(c + d)|kept, *e, **(({'g': h}|kept))|kept) }}"),
            ("{{ a[1:] ~ ['b', 1] ~ (c, d)[0] }}", "{{ a[1:] ~ ['b', 1] ~ ((c, d)|kept)[0] }}"),
            ("{{ 'a' * -b.c(d)|e(1) + f ** 2 }}", "{{ 'a'|factor * -b.c(d)|e(1)|factor + f ** 2 }}"),
            ("{{ a is in (b, c) and not (d == e) }}", "{{ a is in ((b, c)|kept) and not ((d == e)|kept) }}"),
            (
                "{% macro m(a, b=[c, d]) %}{% call(e, f) m(g) %}",
                "{% macro m(a, b=(([c, d]|kept))|kept) %}{% call(e, f) m(g) %}",
            ),
            ("{{ [1, [2]] }} {{ {'a': [true]} }} {{ () }}", "{{ [1, [2]] }} {{ {'a': [true]} }} {{ () }}"),
        ];
        for (template, text) in rewritten {
            assert_eq!(rewrite(template).ok().as_deref(), Some(text), "{template}");
        }
    }

    #[test]
    fn generation_tags_line_ends_and_escapes() {
        let rewritten = [
            ("{%- generation -%}a{% endgeneration %}", "{%- with -%}a{% endwith %}"),
            (
                "{{ 'generation' }}{% raw %}{% generation %}{% endraw %}",
                "{{ 'generation' }}{% raw %}{% generation %}{% endraw %}",
            ),
            ("a\r\nb\rc", "a\nb\nc"),
            ("{% raw %}\na\n{%- endraw %}", "{% raw %}\n\na\n{%- endraw %}"),
            ("{% raw -%}\na", "{% raw -%}\na"),
            (r#"{{ '\/\a\\/' ~ "\v\U0001F600\'\U0000d800" }}"#, "{{ '\\\\/\\x07\\\\/' ~ \"\\x0b😀\\'\\U0000d800\" }}"),
            (r"{{ 'é\é' }} \/", r"{{ 'é\é' }} \/"),
            (r"{{ '\", r"{{ '\"),
        ];
        for (template, text) in rewritten {
            assert_eq!(rewrite(template).ok().as_deref(), Some(text), "{template}");
        }
    }
}
