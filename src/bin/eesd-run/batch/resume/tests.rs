use super::*;
use crate::args::ModelArgs;
use crate::batch::Input;
use crate::report::Reporter;
use crate::settings::Model;
use eesd::engine::Request;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

/// The bundled model's tokenizer, and a small input of which request 1 is wrong by itself.
struct Place {
    dir: TempDir,
    model: Model,
}

const INPUT: &str =
    "{\"id\": \"é\", \"prompt\": \"def f(x):\"}\n\n{\"id\": 7, \"promt\": \"x\"}\n{\"prompt\": \"import\"}\n";

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("in.jsonl"), INPUT).unwrap();
        Self { dir, model: Model::open(&ModelArgs { model: None, quantize: None }, Reporter::new(true)).unwrap() }
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out.jsonl")
    }

    /// Takes over an output with this content; returns it with what is left of it.
    fn go_on(&self, content: &[u8]) -> Result<(TakenOver, Vec<u8>), String> {
        fs::write(self.output(), content).unwrap();
        let input = Input::open(&self.dir.path().join("in.jsonl")).unwrap();
        let encoder = self.model.encoder();
        let requests = Lines::new(input, &encoder, &self.model.grammars, Request::new(Vec::new(), 8));
        let file = AnswerFile::open(&self.output(), true).unwrap();
        let taken = TakenOver::check(&file, requests).map_err(|failure| failure.message().to_owned())?;
        file.without(&taken.dropped).unwrap();
        Ok((taken, fs::read(self.output()).unwrap()))
    }

    fn tokens(&self, prompt: &str) -> usize {
        self.model.tokenizer().unwrap().encode(prompt, true).unwrap().len()
    }

    /// The lines of a finished run, in the order in which the requests were finished.
    fn lines(&self) -> [String; 3] {
        let answer = |head: &str, prompt: &str, finish: &str| {
            let stats = format!("{{\"prompt_tokens\":{},\"generated\":2}}", self.tokens(prompt));
            format!(
                "{{{head},\"text\":\"ü\\n\",\"tokens\":[1,2],\"finish\":\"{finish}\",\"seed\":3,\"stats\":{stats}}}\n"
            )
        };
        [
            "{\"id\":7,\"index\":1,\"error\":\"in.jsonl:3: unknown key \\\"promt\\\"\"}\n".into(),
            answer("\"index\":2", "import", "length"),
            answer("\"id\":\"é\",\"index\":0", "def f(x):", "end_token"),
        ]
    }
}

#[test]
fn an_output_killed_at_any_byte_is_gone_on_with() {
    let place = Place::new();
    let whole = place.lines().concat().into_bytes();
    for length in 0..=whole.len() {
        let killed = &whole[..length];
        let kept = killed.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let lines = killed.iter().filter(|&&byte| byte == b'\n').count();
        let (taken, left) = place.go_on(killed).unwrap_or_else(|error| panic!("at byte {length}: {error}"));
        assert_eq!(left, &whole[..kept], "at byte {length}");
        let has: Vec<usize> = [1, 2, 0].into_iter().filter(|&index| taken.has(index)).collect();
        assert_eq!(has, [1, 2, 0][..lines], "at byte {length}");
        assert_eq!((taken.lines(), taken.failed), (lines, lines.min(1)), "at byte {length}");
    }
}

#[test]
fn a_line_of_either_form_may_have_lost_its_end() {
    let place = Place::new();
    let [error, ..] = place.lines();
    for row in ["{\"custom_id\":\"a\",\"id\":\"batch_req_0\"", "{\"id\":\"batch_req_2\"", "{\"index\":2,\"text\""] {
        for length in 1..row.len() {
            let (taken, left) = place.go_on(format!("{error}{}", &row[..length]).as_bytes()).unwrap();
            assert_eq!((taken.lines(), String::from_utf8(left).unwrap()), (1, error.clone()), "{}", &row[..length]);
        }
    }
}

#[test]
fn lines_cut_short_are_taken_out_wherever_they_are() {
    let place = Place::new();
    let [error, second, first] = place.lines();
    let interrupted = "{\"id\":\"é\",\"index\":0,\"error\":\"interrupted\"}\n".to_string();
    let cancelled = second.replace("length", "cancelled");
    for (lines, kept) in [
        ([&interrupted, &error, &second], vec![&error, &second]),
        ([&error, &interrupted, &second], vec![&error, &second]),
        ([&cancelled, &error, &first], vec![&error, &first]),
        ([&cancelled, &interrupted, &error], vec![&error]),
        ([&error, &cancelled, &interrupted], vec![&error]),
        ([&second, &first, &error], vec![&second, &first, &error]),
    ] {
        for half in ["", "{\"inde"] {
            let content = lines.map(String::as_str).concat() + half;
            let (taken, left) = place.go_on(content.as_bytes()).unwrap();
            let kept: String = kept.iter().map(|line| line.as_str()).collect();
            assert_eq!(String::from_utf8(left).unwrap(), kept);
            assert_eq!(taken.lines(), kept.lines().count());
        }
    }
}

#[test]
fn what_no_run_on_this_input_writes_is_refused_and_left_as_it_is() {
    let place = Place::new();
    let [error, second, first] = place.lines();
    let tokens = place.tokens("import");
    let other_prompt = second.replace(&format!("\"prompt_tokens\":{tokens}"), "\"prompt_tokens\":77");
    let other_tokens =
        format!("out.jsonl:2: an answer to a prompt of 77 tokens (expected {tokens} tokens, that of request 2 of ");
    let no_end = second.replace("\"finish\":\"length\",", "");
    let both = second.replace("\"finish\"", "\"error\":\"x\",\"finish\"");
    let answered = first.replace("\"id\":\"é\",\"index\":0", "\"id\":7,\"index\":1");
    let beyond = second.replace("\"index\":2", "\"index\":3");
    let negative = second.replace("\"index\":2", "\"index\":-1");
    let [other_id, no_id] = ["\"id\":\"e\",", ""].map(|id| first.replace("\"id\":\"é\",", id));
    #[rustfmt::skip]
    let cases: Vec<(Vec<&str>, &str)> = vec![
        (vec![&beyond], "out.jsonl:1: a line of request 3 (expected a request of "),
        (vec![&second, &first, &error, &beyond], "out.jsonl:4: a line of request 3 (expected a request of "),
        (vec![&negative], "out.jsonl:1: \"index\": invalid value: integer `-1`"),
        (vec![&second, &other_id], "out.jsonl:2: id \"e\" (expected id \"é\", that of request 0 of "),
        (vec![&no_id], "out.jsonl:1: no id (expected id \"é\""),
        (vec!["{\"id\":2,\"index\":2,\"error\":\"x\"}\n"], "out.jsonl:1: id 2 (expected no id"),
        (vec![&error, &other_prompt], &other_tokens),
        (vec![&answered], "out.jsonl:1: an answer (expected an error, that of request 1 of "),
        (vec![&error, &first, &second, &first], "out.jsonl:4: a second line of request 0, after line 2 (expected one line an answer)"),
        (vec![&first, "\n", &second], "out.jsonl:2: EOF while parsing a value at column 0 in \"\""),
        (vec![&first, "note\n"], "out.jsonl:2: expected ident at column 2 in \"note\""),
        (vec![&first, "[0]\n", &second], "out.jsonl:2: invalid type: sequence, expected a JSON object at column 0 in \"[0]\""),
        (vec![&first[..20], "\n", &second], "out.jsonl:1: EOF while parsing"),
        (vec!["{\"prompt\": \"x\"}\n"], "out.jsonl:1: no \"index\" in "),
        (vec!["{\"prompt\": \"x\", \"prompt\": 1}\n"], "out.jsonl:1: the key \"prompt\" twice in "),
        (vec!["{\"index\": 0}\n"], "out.jsonl:1: neither"),
        (vec![&no_end], "out.jsonl:1: neither"),
        (vec![&both], "out.jsonl:1: neither"),
        (vec![&first, "a line of something else"], "out.jsonl:2: \"a line of something else\" without a line break (expected the beginning of an answer"),
        (vec!["{\"key\": 1}"], "out.jsonl:1: \"{\\\"key\\\": 1}\" without a line break"),
    ];
    for (content, message) in cases {
        let content = content.concat();
        match place.go_on(content.as_bytes()) {
            Ok(_) => panic!("taken over: {content}"),
            Err(told) => assert!(told.contains(message), "{content}: {message:?} is not in {told:?}"),
        }
        assert_eq!(fs::read_to_string(place.output()).unwrap(), content);
    }
}
