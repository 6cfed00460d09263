use super::*;
use serde_json::json;
use std::fs;
use tempfile::TempDir;

const VOCAB: usize = 50;

fn prompts() -> Vec<Vec<TokenId>> {
    vec![vec![1, 2, 3], vec![4], vec![5, 6]]
}

fn asked(prompts: &[Vec<TokenId>]) -> Asked<'_> {
    Asked { prompts, samples: 2, max_tokens: 8, seed: 3, vocab: VOCAB }
}

fn header() -> Header {
    let header = json!({"format": FORMAT, "base_fingerprint": "abc", "temperature": 0.7, "logit_bias": ["1:-inf"]});
    header.as_object().unwrap().clone()
}

/// What a teacher would write, without one.
fn answer(asked: &Asked<'_>, index: usize, sample: usize) -> Answer {
    let seed = asked.seed_of(index, sample);
    let tokens = (0..1 + seed % 7).map(|i| (seed >> i) as u32 % VOCAB as u32).collect();
    Answer { index, sample, seed, prompt: asked.prompts[index].clone(), tokens, finish: "length".into() }
}

/// Opens the file, writes what is missing, and tells what was there and what was cut.
fn go_on(path: &Path, prompts: &[Vec<TokenId>]) -> Result<(usize, u64), DataError> {
    let asked = asked(prompts);
    let Opened { mut file, answers, cut } = AnswerFile::open(path, &header(), &asked)?;
    for index in 0..prompts.len() {
        for sample in 0..asked.samples {
            if !answers.contains_key(&(index, sample)) {
                file.append(&answer(&asked, index, sample))?;
            }
        }
    }
    file.finish()?;
    Ok((answers.len(), cut))
}

/// The file of a run that nothing happened to.
fn undisturbed(dir: &TempDir) -> Vec<u8> {
    let path = dir.path().join("undisturbed.jsonl");
    let _ = fs::remove_file(&path);
    assert_eq!(go_on(&path, &prompts()).unwrap(), (0, 0));
    fs::read(path).unwrap()
}

#[test]
fn a_run_killed_at_any_byte_is_gone_on_with() {
    let dir = TempDir::new().unwrap();
    let whole = undisturbed(&dir);
    let path = dir.path().join("killed.jsonl");
    for length in 0..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let lines = whole[..length].iter().filter(|&&byte| byte == b'\n').count();
        let half = length - whole[..length].iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        if lines > 0 {
            let read = read_answers(&path, "abc", VOCAB).unwrap();
            assert_eq!((read.documents.len(), read.cut), (lines - 1, half as u64), "at byte {length}");
        } else {
            let error = read_answers(&path, "abc", VOCAB).unwrap_err();
            assert!(matches!(error, DataError::NotAnswers { .. }), "at byte {length}: {error}");
        }
        let (found, cut) = go_on(&path, &prompts()).unwrap();
        assert_eq!((found, cut), (lines.saturating_sub(1), half as u64), "at byte {length}");
        assert!(fs::read(&path).unwrap() == whole, "killed at byte {length}");
    }
}

#[test]
fn a_longer_run_extends_the_file() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("answers.jsonl");
    go_on(&path, &prompts()[..2]).unwrap();
    let shorter = fs::read(&path).unwrap();
    assert_eq!(go_on(&path, &prompts()).unwrap(), (4, 0));
    assert!(fs::read(&path).unwrap().starts_with(&shorter));
    assert_eq!(fs::read(&path).unwrap(), undisturbed(&dir));
    let error = go_on(&path, &prompts()[..2]).unwrap_err().to_string();
    assert!(error.ends_with("answers.jsonl:6: an answer to prompt 2 (expected 2 prompts from 0 on)"), "{error}");
}

/// A disk with so much room left.
struct Disk {
    bytes: Vec<u8>,
    room: usize,
}

impl Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match bytes.len().min(self.room) {
            0 if !bytes.is_empty() => Err(ErrorKind::StorageFull.into()),
            fits => {
                self.bytes.extend(&bytes[..fits]);
                self.room -= fits;
                Ok(fits)
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error_and_loses_nothing() {
    let dir = TempDir::new().unwrap();
    let whole = undisturbed(&dir);
    let prompts = prompts();
    let asked = asked(&prompts);
    for room in 0..whole.len() {
        let path = dir.path().join("full.jsonl");
        let mut file = AnswerFile { path: path.clone(), sink: Disk { bytes: Vec::new(), room } };
        let tasks = (0..3).flat_map(|index| [(index, 0), (index, 1)]);
        let written = file.write_line(&json_line_of(&header())).and_then(|()| {
            tasks.into_iter().try_for_each(|(index, sample)| file.append(&answer(&asked, index, sample)))
        });
        let error = written.unwrap_err().to_string();
        assert!(error.starts_with(&path.display().to_string()), "{error}");
        assert_eq!(file.sink.bytes, whole[..room]);
        fs::write(&path, file.sink.bytes).unwrap();
        go_on(&path, &prompts).unwrap();
        assert!(fs::read(&path).unwrap() == whole, "full after byte {room}");
    }
}

#[test]
fn another_run_is_refused_with_both_values() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("other.jsonl");
    let prompts = prompts();
    let changes = [
        ("base_fingerprint", json!("abd"), "base_fingerprint = \"abd\", this run has \"abc\""),
        ("temperature", json!(0.8), "temperature = 0.8, this run has 0.7"),
        ("logit_bias", json!([]), "logit_bias = [], this run has [\"1:-inf\"]"),
        ("temperature", Value::Null, "temperature = nothing, this run has 0.7"),
        ("more", json!(1), "more = 1, this run has nothing"),
    ];
    for (key, value, expected) in changes {
        let mut other = header();
        match value {
            Value::Null => drop(other.remove(key)),
            value => drop(other.insert(key.into(), value)),
        }
        // Even with a half line at its end, a refused file stays as it is.
        let bytes = [json_line_of(&other), b"{\"ind".to_vec()].concat();
        fs::write(&path, &bytes).unwrap();
        let error = go_on(&path, &prompts).unwrap_err().to_string();
        assert!(error.contains(&format!("other.jsonl: was written with {expected}")), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    fs::write(&path, json_line_of(&header())).unwrap();
    let error = read_answers(&path, "xyz", VOCAB).unwrap_err().to_string();
    assert!(error.contains("base_fingerprint = \"abc\", this run has \"xyz\""), "{error}");
}

#[test]
fn damaged_and_foreign_files_are_left_alone() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("f.jsonl");
    let prompts = prompts();
    let asked = asked(&prompts);
    let head = String::from_utf8(json_line_of(&header())).unwrap();
    let right = || serde_json::to_value(answer(&asked, 1, 0)).unwrap();
    let with = |key: &str, value: Value| {
        let mut answer = right();
        answer[key] = value;
        format!("{head}{answer}\n")
    };
    #[rustfmt::skip]
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (b"my notes".to_vec(), "f.jsonl: not a file of answers: it begins with \"my notes\" (expected a first line with \"format\": \"eesd-answers-1\")"),
        (b"my notes\n".to_vec(), "it begins with \"my notes\""),
        (b"\xff\xfe\n".to_vec(), "not a file of answers"),
        (b"\n".to_vec(), "it begins with \"\""),
        (b"{}\n".to_vec(), "it begins with \"{}\""),
        (b"{\"format\": 1}\n".to_vec(), "not a file of answers"),
        (b"{\"prompt\": \"x\"}".to_vec(), "not a file of answers"),
        (format!("{head}\n").into(), "f.jsonl:2: EOF while parsing a value at column 0 (expected an answer"),
        (format!("{head}{{\"index\": 1}}\n").into(), "f.jsonl:2: missing field `sample`"),
        ([head.as_bytes(), &[0; 9], b"\n"].concat(), "f.jsonl:2: expected value at column 1"),
        (format!("{head}{}\n{}x\n", right(), right()).into(), "f.jsonl:3: trailing characters"),
        (format!("{head}{0}\n{0}\n", right()).into(), "f.jsonl:3: a second answer to prompt 1, sample 0 (expected one)"),
        (with("index", json!(-1)).into(), "f.jsonl:2: invalid value"),
        (with("index", json!(3)).into(), "f.jsonl:2: an answer to prompt 3 (expected 3 prompts from 0 on)"),
        (with("index", json!(u64::MAX)).into(), "f.jsonl:2: an answer to prompt 18446744073709551615"),
        (with("sample", json!(2)).into(), "f.jsonl:2: sample 2 of prompt 1 (expected 2 samples from 0 on)"),
        (with("prompt", json!([9])).into(), "f.jsonl:2: a prompt 1 that this run does not have"),
        (with("prompt", json!([-1])).into(), "f.jsonl:2: invalid value"),
        (with("seed", json!(7)).into(), "f.jsonl:2: seed 7 (expected "),
        (with("tokens", json!([])).into(), "f.jsonl:2: no token in the prompt or in the answer"),
        (with("tokens", json!([50])).into(), "f.jsonl:2: token 50 (expected tokens below 50"),
        (with("tokens", json!([1, 1, 1, 1, 1, 1, 1, 1, 1])).into(), "f.jsonl:2: an answer of 9 tokens (expected at most 8)"),
        (with("more", json!(1)).into(), "f.jsonl:2: unknown field `more`"),
    ];
    for (bytes, expected) in cases {
        fs::write(&path, &bytes).unwrap();
        let error = go_on(&path, &prompts).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}\nhas no\n{expected}");
        assert_eq!(fs::read(&path).unwrap(), bytes, "{expected}");
    }
    // Whoever only reads knows no prompts, but a vocabulary.
    fs::write(&path, with("tokens", json!([50]))).unwrap();
    let error = read_answers(&path, "abc", VOCAB).unwrap_err().to_string();
    assert!(error.contains("f.jsonl:2: token 50"), "{error}");
    fs::write(&path, with("prompt", json!([]))).unwrap();
    assert!(read_answers(&path, "abc", VOCAB).unwrap_err().to_string().contains("no token in the prompt"));
}

#[test]
fn one_writer_at_a_time_and_regular_files_only() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("a.jsonl");
    let prompts = prompts();
    let asked = asked(&prompts);
    let first = AnswerFile::open(&path, &header(), &asked).unwrap();
    let error = AnswerFile::open(&path, &header(), &asked).err().unwrap().to_string();
    assert!(error.ends_with("a.jsonl: another process is writing it (expected to be alone)"), "{error}");
    drop(first);
    assert!(AnswerFile::open(&path, &header(), &asked).is_ok());
    for wrong in [dir.path().to_path_buf(), dir.path().join("missing/a.jsonl")] {
        let error = AnswerFile::open(&wrong, &header(), &asked).err().unwrap().to_string();
        assert!(error.starts_with(&wrong.display().to_string()), "{error}");
    }
}

#[test]
fn answers_are_read_by_prompt_and_sample() {
    let dir = TempDir::new().unwrap();
    let whole = undisturbed(&dir);
    let path = dir.path().join("undisturbed.jsonl");
    let documents = read_answers(&path, "abc", VOCAB).unwrap().documents;
    let prompts = prompts();
    let asked = asked(&prompts);
    let tasks = (0..3).flat_map(|index| [(index, 0), (index, 1)]);
    let expected: Vec<Document> = tasks.map(|(index, sample)| answer(&asked, index, sample).into()).collect();
    assert_eq!(documents, expected);
    let lines: Vec<&str> = std::str::from_utf8(&whole).unwrap().lines().collect();
    let turned: Vec<&str> = lines[..1].iter().chain(lines[1..].iter().rev()).copied().collect();
    fs::write(&path, turned.join("\n") + "\n").unwrap();
    assert_eq!(read_answers(&path, "abc", VOCAB).unwrap().documents, expected);
}

#[test]
fn seeds_differ_by_run_prompt_and_sample() {
    let seeds: std::collections::BTreeSet<u64> = [1, 2, 1 << 40]
        .iter()
        .flat_map(|&seed| {
            let asked = Asked { prompts: &[], samples: 1, max_tokens: 1, seed, vocab: 1 };
            (0..100)
                .flat_map(move |index| (0..10).map(move |sample| (index, sample)))
                .map(move |(i, s)| asked.seed_of(i, s))
        })
        .collect();
    assert_eq!(seeds.len(), 3 * 100 * 10);
}
