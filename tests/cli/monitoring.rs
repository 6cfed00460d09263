//! `generate --stats`, `--metrics` and `--stats-json`: what they tell is what happened, and telling it disturbs nothing.

use crate::prometheus::{Metrics, assert_grown, parse};
use crate::{command, finish, lines, ok, write};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// `requests` requests, of which every fiftieth is wrong by itself, into `out.jsonl`.
fn job(dir: &TempDir, requests: usize, more: &[&str]) -> Command {
    let request = |i: usize| match i % 50 {
        9 => json!({"prompt": "x", "top_p": 7}),
        _ => json!({"prompt": format!("class C{i}:\n    def f{i}(self):\n"), "max_tokens": 6 + i % 20}),
    };
    let text: String = (0..requests).map(|i| format!("{}\n", request(i))).collect();
    let input = write(dir, "in.jsonl", text);
    let output = dir.path().join("out.jsonl");
    let base = ["generate", "--input", &input, "--output", output.to_str().unwrap(), "-b", "8", "-t", "1"];
    let mut command = command(&[&base[..], more].concat());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Asks for a path over HTTP: status line, headers, body.
fn get(address: &str, path: &str) -> std::io::Result<(String, String)> {
    let mut connection = TcpStream::connect(address)?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((head.into(), body.into()))
}

/// The address that a run says it serves metrics at.
fn address(stderr: &mut impl BufRead) -> String {
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    let address = line.trim().strip_prefix("metrics at http://").and_then(|line| line.strip_suffix("/metrics"));
    address.unwrap_or_else(|| panic!("{line:?} names no address")).to_owned()
}

/// Waits for the end of a run; what it says until then.
fn end(mut child: Child, mut stderr: impl Read) -> (i32, String) {
    let mut told = String::new();
    stderr.read_to_string(&mut told).unwrap();
    (child.wait().unwrap().code().unwrap(), told)
}

#[test]
fn metrics_over_http_are_what_happened() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("m.prom");
    let summary = dir.path().join("summary.json");
    let (file, summary) = (file.to_str().unwrap(), summary.to_str().unwrap());
    let mut child = job(&dir, 1500, &["--metrics", "0", "--metrics", file, "--stats-json", summary]).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let address = address(&mut stderr);
    // Somebody who connects and says nothing holds up nobody.
    let silent = TcpStream::connect(&address).unwrap();
    let mut pages: Vec<Metrics> = Vec::new();
    while child.try_wait().unwrap().is_none() {
        if let Ok((head, body)) = get(&address, "/metrics") {
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{head}");
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
            pages.push(parse(&body));
        }
        if let Ok((head, _)) = get(&address, "/") {
            assert!(head.starts_with("HTTP/1.1 404 Not Found\r\n"), "{head}");
        }
        // The file is replaced, so there is no moment at which it holds half a page.
        if let Ok(text) = fs::read_to_string(file) {
            parse(&text);
        }
        sleep(Duration::from_millis(100));
    }
    drop(silent);
    let (code, told) = end(child, stderr);
    assert_eq!(code, 1, "{told}");
    assert!(pages.len() >= 3, "{} pages in all", pages.len());
    pages.windows(2).for_each(|pair| assert_grown(&pair[0], &pair[1]));
    let during = &pages[pages.len() - 2];
    assert!(during.one("eesd_generated_tokens_total") > 0.0, "nothing was told before the end");
    let busy = during.labelled("eesd_requests", "state=\"decoding\"")
        + during.labelled("eesd_requests", "state=\"prefilling\"");
    assert!(busy > 0.0 && busy <= 8.0 && during.one("eesd_cache_pages_held") > 0.0, "{during:?}");

    let last = parse(&fs::read_to_string(file).unwrap());
    assert_grown(&pages[pages.len() - 1], &last);
    let answers = lines(&fs::read_to_string(dir.path().join("out.jsonl")).unwrap());
    let sum = |key: &str| answers.iter().filter_map(|line| line["stats"][key].as_f64()).sum::<f64>();
    let answered = answers.iter().filter(|line| line.get("error").is_none()).count() as f64;
    assert_eq!((answers.len(), answered), (1500, 1470.0));
    assert_eq!(last.labelled("eesd_requests_ended_total", "outcome=\"answered\""), answered);
    assert_eq!(last.labelled("eesd_requests_ended_total", "outcome=\"failed\""), 30.0);
    assert_eq!(last.labelled("eesd_requests_ended_total", "outcome=\"cut_short\""), 0.0);
    for (name, key) in [
        ("generated_tokens", "generated"),
        ("prompt_tokens", "prompt_tokens"),
        ("prompt_tokens_reused", "reused_tokens"),
        ("request_rounds", "rounds"),
        ("drafted_tokens", "drafted"),
        ("accepted_tokens", "accepted"),
        ("preemptions", "preemptions"),
    ] {
        assert_eq!(last.one(&format!("eesd_{name}_total")), sum(key), "{name}");
    }
    for state in ["waiting", "prefilling", "decoding", "swapped_out"] {
        assert_eq!(last.labelled("eesd_requests", &format!("state=\"{state}\"")), 0.0);
    }
    let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b.abs();
    let (_, queued, count) = last.histogram("eesd_queue_time_seconds");
    assert!(close(queued, sum("queued_s")) && count == answered, "{queued} of {count}");
    let (_, first, count) = last.histogram("eesd_time_to_first_token_seconds");
    assert!(close(first, sum("queued_s") + sum("first_token_s")) && count == answered, "{first} of {count}");
    let (_, each, count) = last.histogram("eesd_time_per_output_token_seconds");
    let per_token = |line: &Value| Some(1.0 / line["stats"]["tokens_per_second"].as_f64()?);
    assert!(close(each, answers.iter().filter_map(per_token).sum()) && count == answered, "{each} of {count}");
    let (_, accepted, rounds) = last.histogram("eesd_accepted_length_tokens");
    assert_eq!((accepted, rounds), (sum("rounds") + sum("accepted"), sum("rounds")));

    let summary: Value = serde_json::from_str(&fs::read_to_string(summary).unwrap()).unwrap();
    let expected = json!({"answered": 1470, "failed": 30, "cut_short": 0, "taken_over": 0});
    assert_eq!((&summary["requests"], &summary["batch_size"]), (&expected, &json!(8)));
    assert_eq!((&summary["model"], &summary["controller"]), (&json!("pycode-4m"), &json!("goodput-ts")));
    for (key, name) in [
        ("generated", "generated_tokens"),
        ("prompt_tokens", "prompt_tokens"),
        ("rounds", "rounds"),
        ("request_rounds", "request_rounds"),
        ("verified_rows", "verified_rows"),
        ("draft_steps", "draft_steps"),
        ("prefilled_tokens", "prefilled_tokens"),
    ] {
        assert_eq!(summary[key].as_f64().unwrap(), last.one(&format!("eesd_{name}_total")), "{key}");
    }
    assert!(close(summary["mean_accepted_length"].as_f64().unwrap(), 1.0 + sum("accepted") / sum("rounds")));
    let seconds = summary["seconds"].as_f64().unwrap();
    assert!(close(summary["tokens_per_second"].as_f64().unwrap(), sum("generated") / seconds));
    for (key, total) in [("queue_time_s", queued), ("time_to_first_token_s", first), ("time_per_output_token_s", each)]
    {
        let times = &summary[key];
        let of = |name: &str| times[name].as_f64().unwrap();
        assert!(close(of("mean"), total / answered), "{key}: {times}");
        assert!(of("p50") <= of("p90") && of("p90") <= of("p99") && of("p99") <= of("max"), "{key}: {times}");
    }
}

#[test]
fn a_resumed_run_tells_what_it_took_over() {
    let dir = TempDir::new().unwrap();
    assert_eq!(finish(job(&dir, 8, &[])).code, 0);
    let output = dir.path().join("out.jsonl");
    let text = fs::read_to_string(&output).unwrap();
    let kept: String = text.split_inclusive('\n').take(5).collect();
    fs::write(&output, kept).unwrap();
    let (summary, file) = (dir.path().join("s.json"), dir.path().join("m.prom"));
    let watched = ["--resume", "--stats-json", summary.to_str().unwrap(), "--metrics", file.to_str().unwrap()];
    assert_eq!(finish(job(&dir, 8, &watched)).code, 0);
    let summary: Value = serde_json::from_str(&fs::read_to_string(summary).unwrap()).unwrap();
    assert_eq!(summary["requests"], json!({"answered": 3, "failed": 0, "cut_short": 0, "taken_over": 5}));
    let metrics = parse(&fs::read_to_string(file).unwrap());
    assert_eq!(metrics.one("eesd_requests_taken_over"), 5.0);
    assert_eq!(metrics.labelled("eesd_requests_ended_total", "outcome=\"answered\""), 3.0);
}

/// An interrupt is told as what it is.
#[cfg(unix)]
#[test]
fn an_interrupted_run_tells_what_it_cut_short() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("m.prom");
    let child = job(&dir, 2000, &["--metrics", file.to_str().unwrap()]).spawn().unwrap();
    let output = dir.path().join("out.jsonl");
    let start = Instant::now();
    while fs::metadata(&output).map_or(0, |file| file.len()) < 5000 && start.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(2));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let told = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
    let answers = lines(&fs::read_to_string(&output).unwrap());
    let short = |line: &&Value| line["finish"] == "cancelled" || line["error"] == "interrupted";
    let cut_short = answers.iter().filter(short).count();
    assert!(cut_short > 0 && told.contains(&format!("{cut_short} cut short, ")), "{told}");
    let metrics = parse(&fs::read_to_string(file).unwrap());
    assert_eq!(metrics.labelled("eesd_requests_ended_total", "outcome=\"cut_short\""), cut_short as f64);
}

/// In a pipe, `--stats` writes lines to standard error, and none anywhere else.
#[test]
fn live_statistics_are_lines_on_standard_error() {
    let dir = TempDir::new().unwrap();
    let mut command = job(&dir, 6000, &["--stats"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    stderr.read_line(&mut line).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let mut printed = String::new();
    child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "");
    for part in [
        " s: ",
        " waiting, ",
        " running, ",
        " swapped out, ",
        " of 6000 done",
        " tok/s, mean accepted length ",
        " rows a pass; ",
    ] {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    for part in ["goodput-ts drafts ", " a round; ", " pages held, ", " kept, ", " preemptions\n"] {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    assert!(!line.contains('\x1b'), "{line:?}");
}

/// What is to be told and cannot be is an error before anything is loaded, or at the end if it comes later.
#[test]
fn what_cannot_be_told_is_an_error() {
    let dir = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let missing = dir.path().join("missing/m");
    let missing = missing.to_str().unwrap();
    for (more, message) in [
        (["--metrics", &port], format!("error: --metrics 127.0.0.1:{port}: cannot be listened on: ")),
        (
            ["--metrics", "no-such-host.invalid:9"],
            "error: --metrics no-such-host.invalid:9: cannot be listened on: ".into(),
        ),
        (["--metrics", missing], format!("error: {missing}: could not be written: ")),
        (["--stats-json", missing], format!("error: {missing}: could not be written: ")),
        (["--metrics", "/dev/null"], "error: /dev/null: could not be written: it is not a regular file".into()),
    ] {
        let run = finish(job(&dir, 4, &more));
        assert!(run.code == 1 && run.stderr.starts_with(&message), "{message:?} is not in {}", run.stderr);
        assert!(!dir.path().join("out.jsonl").exists(), "{more:?}: the output was touched");
    }

    let folder = dir.path().join("folder");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("m.prom");
    let mut child = job(&dir, 1000, &["--metrics", file.to_str().unwrap()]).spawn().unwrap();
    let start = Instant::now();
    while !file.exists() && child.try_wait().unwrap().is_none() && start.elapsed() < Duration::from_secs(60) {
        sleep(Duration::from_millis(2));
    }
    fs::remove_dir_all(&folder).unwrap();
    let stderr = child.stderr.take().unwrap();
    let (code, told) = end(child, stderr);
    let message = format!("{}: could not be written: ", file.display());
    assert_eq!((code, told.matches(&message).count()), (1, 2), "it is said once and in the end: {told}");
    assert_eq!(lines(&fs::read_to_string(dir.path().join("out.jsonl")).unwrap()).len(), 1000, "no answer is lost");
}

/// Samples of one prompt are a batch too.
#[test]
fn samples_are_watched_as_well() {
    let dir = TempDir::new().unwrap();
    let summary = dir.path().join("s.json");
    let args = ["generate", "-p", "def f(x):", "-n", "8", "-N", "3", "-b", "2", "--json", "--temp", "1", "-s", "1"];
    let run = ok(&[&args[..], &["--stats-json", summary.to_str().unwrap()]].concat());
    assert_eq!(lines(&run.stdout).len(), 3);
    let summary: Value = serde_json::from_str(&fs::read_to_string(&summary).unwrap()).unwrap();
    assert_eq!(summary["requests"]["answered"], 3);
    assert!(!Path::new(&format!("{}.tmp", dir.path().join("s.json").display())).exists());
}
