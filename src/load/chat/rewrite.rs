//! A template's text, rewritten where Jinja2 and transformers read it otherwise than minijinja does.

use super::python::LOOPED;

/// The text to give to minijinja:
/// - line ends are line feeds, as Jinja2 makes them;
/// - `{% generation %}`, a tag of transformers' own that marks the assistant's words for training, becomes `with`: to
///   render, it means nothing but a scope of its own;
/// - what a `for` loops over goes through the filter [`LOOPED`], which refuses none;
/// - a line end after `{% raw %}` is doubled, since minijinja drops one and Jinja2 does not;
/// - escapes in quoted texts mean what they mean in Python.
pub(super) fn rewrite(template: &str) -> String {
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
                text.extend(["{{", &code.rewritten()]);
                2 + code.text.len()
            }
            Some(b'%') => {
                let code = Code::read(&from[2..], "%}");
                text.extend(["{%", &code.rewritten_tag()]);
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
    text + rest
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

/// The code of a tag, from after its opening delimiter up to its closing one.
struct Code<'a> {
    text: &'a str,
    pieces: Vec<Piece>,
}

/// A word, a text in quotes or any other single character, white space left out.
struct Piece {
    start: usize,
    end: usize,
    /// How many brackets are open around it.
    depth: usize,
}

impl<'a> Code<'a> {
    /// Reads up to `end`, where that stands outside of quotes and brackets.
    fn read(from: &'a str, end: &str) -> Self {
        let mut pieces = Vec::new();
        let (mut at, mut depth) = (0, 0_usize);
        while let Some(first) = from[at..].chars().next() {
            let rest = &from[at..];
            if depth == 0 && rest.starts_with(end) {
                break;
            }
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            let length = match first {
                '\'' | '"' => quoted(rest, first),
                _ if is_word(first) => rest.find(|c| !is_word(c)).unwrap_or(rest.len()),
                _ => first.len_utf8(),
            };
            if matches!(first, ')' | ']' | '}') {
                depth = depth.saturating_sub(1);
            }
            if !first.is_whitespace() {
                pieces.push(Piece { start: at, end: at + length, depth });
            }
            if matches!(first, '(' | '[' | '{') {
                depth += 1;
            }
            at += length;
        }
        Self { text: &from[..at], pieces }
    }

    fn piece(&self, index: usize) -> &'a str {
        self.pieces.get(index).map_or("", |piece| &self.text[piece.start..piece.end])
    }

    /// The index of the tag's name, after the sign that keeps or drops white space.
    fn name(&self) -> usize {
        usize::from(matches!(self.piece(0), "-" | "+"))
    }

    fn is_raw(&self) -> bool {
        self.piece(self.name()) == "raw"
    }

    fn rewritten_tag(&self) -> String {
        let replaced = |name: &str| {
            let piece = &self.pieces[self.name()];
            [&self.text[..piece.start], name, &self.text[piece.end..]].concat()
        };
        match self.piece(self.name()) {
            "generation" => replaced("with"),
            "endgeneration" => replaced("endwith"),
            "for" => self.rewritten_loop(),
            _ => self.rewritten(),
        }
    }

    /// `for x in a if b` as `for x in (a)|looped if b`.
    fn rewritten_loop(&self) -> String {
        let outside =
            |word: &'static str| move |index: &usize| self.pieces[*index].depth == 0 && self.piece(*index) == word;
        let indices = 0..self.pieces.len();
        let Some(start) = indices.clone().find(outside("in")) else { return self.rewritten() };
        let word =
            indices.clone().find(|index| *index > start && (outside("if")(index) || outside("recursive")(index)));
        let sign = indices.last().filter(|&last| matches!(self.piece(last), "-" | "+"));
        let (before, after) = self.pieces.split_at(start + 1);
        let end = word.or(sign).map_or(self.text.len(), |index| self.pieces[index].start);
        let start = before.last().map_or(0, |piece| piece.end);
        let inside = after.iter().any(|piece| piece.start < end);
        if !inside {
            return self.rewritten();
        }
        let iterated = self.with_escapes(start..end);
        let (lead, tail) = (self.with_escapes(0..start), self.with_escapes(end..self.text.len()));
        format!("{lead} ({iterated})|{LOOPED} {tail}")
    }

    fn rewritten(&self) -> String {
        self.with_escapes(0..self.text.len())
    }

    /// A stretch of the code, the escapes in its quoted texts as minijinja reads them.
    fn with_escapes(&self, range: std::ops::Range<usize>) -> String {
        let mut text = String::new();
        let mut at = range.start;
        for piece in self.pieces.iter().filter(|piece| piece.start >= range.start && piece.end <= range.end) {
            let piece_text = &self.text[piece.start..piece.end];
            if piece_text.starts_with(['\'', '"']) {
                text += &self.text[at..piece.start];
                text += &escapes(piece_text);
                at = piece.end;
            }
        }
        text + &self.text[at..range.end]
    }
}

/// The length of a quoted text with its quotes; to the end where it is not closed.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
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
            ("{% for x in y %}", "{% for x in ( y )|looped %}"),
            ("{%- for k, v in d.items() -%}", "{%- for k, v in ( d.items() )|looped -%}"),
            ("{% for x in [1 if a else 2] if x in 'if' %}", "{% for x in ( [1 if a else 2] )|looped if x in 'if' %}"),
            ("{%for x in tree recursive%}", "{%for x in ( tree )|looped recursive%}"),
            ("{% for x in a['%}'] %}", "{% for x in ( a['%}'] )|looped %}"),
            ("{% if x in y %}{{ 'for x in y' }}", "{% if x in y %}{{ 'for x in y' }}"),
            ("{# {% for x in y %} #}", "{# {% for x in y %} #}"),
            ("{% raw %}{% for x in y %}{% endraw %}", "{% raw %}{% for x in y %}{% endraw %}"),
            ("{{ '{% for x in y %}' }}", "{{ '{% for x in y %}' }}"),
            ("{% for x in %}", "{% for x in %}"),
            ("{% for x in y", "{% for x in ( y)|looped "),
            ("{% for", "{% for"),
            ("{ {x} {", "{ {x} {"),
        ];
        for (template, text) in rewritten {
            assert_eq!(rewrite(template), text, "{template}");
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
            assert_eq!(rewrite(template), text, "{template}");
        }
    }
}
