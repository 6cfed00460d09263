//! `generate --stats`, `--metrics` and `--stats-json`: what they tell is what happened, and telling it disturbs nothing.

use crate::live::{Live, until};
use crate::prometheus::{Metrics, assert_grown, parse};
use crate::{command, finish, lines, ok, write};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Requests from `from` on, of which every fiftieth is wrong by itself.
fn requests(from: usize, count: usize) -> String {
    let request = |i: usize| match i % 50 {
        9 => json!({"prompt": "x", "top_p": 7}),
        _ => json!({"prompt": format!("class C{i}:\n    def f{i}(self):\n"), "max_tokens": 6 + i % 20}),
    };
    (from..from + count).map(|i| format!("{}\n", request(i))).collect()
}

/// A request that goes on for far longer than any of the others.
fn long_request() -> String {
    format!("{}\n", json!({"prompt": "class Long:\n", "max_tokens": 900, "ignore_eos": true}))
}

/// `count` requests from a file into `out.jsonl`.
fn job(dir: &TempDir, count: usize, more: &[&str]) -> Command {
    let input = write(dir, "in.jsonl", requests(0, count));
    let output = dir.path().join("out.jsonl");
    let base = ["generate", "--input", &input, "--output", output.to_str().unwrap(), "-b", "8", "-t", "1"];
    let mut command = command(&[&base[..], more].concat());
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// The same into the same file, as long as the test goes on submitting requests.
fn live(dir: &TempDir, more: &[&str]) -> Live {
    Live::start(dir.path().join("out.jsonl").to_str().unwrap(), more)
}

fn outcome(page: &Metrics, outcome: &str) -> f64 {
    page.labelled("eesd_requests_ended_total", &format!("outcome=\"{outcome}\""))
}

#[test]
fn metrics_over_http_are_what_happened() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("m.prom");
    let summary = dir.path().join("summary.json");
    let (file, summary) = (file.to_str().unwrap(), summary.to_str().unwrap());
    let mut run = live(&dir, &["--metrics", file, "--stats-json", summary]);
    let mut pages = Vec::new();
    let (mut short, mut submitted) = (0, 0);
    for part in [1, 7, 92, 99] {
        // The long one is still being answered when the others have made room for a request that has yet to come.
        run.submit(&format!("{}{}", long_request(), requests(short, part)));
        (short, submitted) = (short + part, submitted + part + 1);
        pages.extend(run.until_idle(submitted));
        // The file says what the page says, and is replaced, so there is no moment at which it holds half a page.
        while fs::read_to_string(file).unwrap() != run.page() {
            parse(&fs::read_to_string(file).unwrap());
        }
    }
    pages.windows(2).for_each(|pair| assert_grown(&pair[0], &pair[1]));
    let during = &pages[pages.len() - 1];
    let busy = during.labelled("eesd_requests", "state=\"decoding\"")
        + during.labelled("eesd_requests", "state=\"prefilling\"");
    assert!(busy > 0.0 && busy < 8.0 && during.one("eesd_cache_pages_held") > 0.0, "{during:?}");
    assert!(during.one("eesd_generated_tokens_total") > 0.0 && outcome(during, "failed") == 4.0, "{during:?}");
    let ended = run.end();
    assert_eq!(ended.code, 1, "{}", ended.stderr);

    let last = parse(&fs::read_to_string(file).unwrap());
    assert_grown(&pages[pages.len() - 1], &last);
    let answers = lines(&fs::read_to_string(dir.path().join("out.jsonl")).unwrap());
    let sum = |key: &str| answers.iter().filter_map(|line| line["stats"][key].as_f64()).sum::<f64>();
    let answered = answers.iter().filter(|line| line.get("error").is_none()).count() as f64;
    assert_eq!((answers.len(), answered), (submitted, submitted as f64 - 4.0));
    assert_eq!(outcome(&last, "answered"), answered);
    assert_eq!(outcome(&last, "failed"), 4.0);
    assert_eq!(outcome(&last, "cut_short"), 0.0);
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
    let mut by_source = json!({});
    for source in ["exit", "lookup", "shared"] {
        let of =
            |key: &str| answers.iter().filter_map(|line| line["stats"]["by_source"][source][key].as_u64()).sum::<u64>();
        let counts = ["rounds", "drafted", "accepted"].map(of);
        let told = ["rounds", "drafted_tokens", "accepted_tokens"]
            .map(|name| last.labelled(&format!("eesd_source_{name}_total"), &format!("source=\"{source}\"")));
        assert_eq!(told, counts.map(|count| count as f64), "{source}");
        let [rounds, drafted, accepted] = counts;
        if rounds > 0 {
            by_source[source] = json!({"rounds": rounds, "drafted": drafted, "accepted": accepted});
        }
    }
    let in_all =
        |key: &str| by_source.as_object().unwrap().values().filter_map(|counts| counts[key].as_f64()).sum::<f64>();
    assert_eq!((in_all("drafted"), in_all("accepted")), (sum("drafted"), sum("accepted")));
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
    let expected = json!({"answered": submitted - 4, "failed": 4, "cut_short": 0, "taken_over": 0});
    assert_eq!((&summary["requests"], &summary["batch_size"]), (&expected, &json!(8)));
    assert_eq!(summary["by_source"], by_source);
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

/// What comes in through a pipe takes any time: what happened before is told while the run waits for it.
#[test]
fn a_run_that_waits_tells_how_far_it_is() {
    let dir = TempDir::new().unwrap();
    let mut run = live(&dir, &[]);
    let before = run.until_idle(0).pop().unwrap();
    assert_eq!((outcome(&before, "answered"), before.one("eesd_generated_tokens_total")), (0.0, 0.0));
    // A line that is wrong is answered at once; of the others one is long, and the run reads on at the first other's end.
    run.submit(&format!("no JSON\n{}", long_request()));
    let page = run.until_idle(2).pop().unwrap();
    assert_eq!((outcome(&page, "failed"), page.labelled("eesd_requests", "state=\"waiting\"")), (1.0, 1.0));
    run.submit(&requests(0, 7));
    let page = run.until_idle(9).pop().unwrap();
    assert!(outcome(&page, "answered") >= 1.0 && page.one("eesd_generated_tokens_total") > 6.0, "{page:?}");
    assert_eq!(run.end().code, 1);
}

/// Clients that say nothing, or never end what they say, keep nobody out and hold up nothing.
#[test]
fn silent_and_slow_clients_keep_nobody_out() {
    let dir = TempDir::new().unwrap();
    let mut run = live(&dir, &[]);
    let connect = || TcpStream::connect(&run.address).unwrap();
    let mut silent: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
    silent.iter_mut().skip(100).for_each(|half| half.write_all(b"GET /metrics HTTP/1.1\r\nHos").unwrap());
    let mut endless = connect();
    parse(&run.page());
    // It is cut off at some length; until then it is not answered, and after that it may fail at any byte.
    while endless.write_all(&[b'x'; 4096]).is_ok() {}
    parse(&run.page());
    run.submit(&requests(0, 3));
    run.until_idle(3);
    let mut late = TcpStream::connect(&run.address).unwrap();
    late.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let ended = run.end();
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    drop((silent, late));
}

#[test]
fn many_clients_are_answered_at_once() {
    let dir = TempDir::new().unwrap();
    let mut run = live(&dir, &[]);
    run.submit(&requests(0, 3));
    run.until_idle(3);
    // Nothing happens any more, so there is one page for all.
    let page = run.page();
    std::thread::scope(|scope| {
        let ask = || (0..10).for_each(|_| assert_eq!(run.page(), page));
        let clients: Vec<_> = (0..40).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().for_each(|client| client.join().unwrap());
    });
    assert_eq!(run.end().code, 0);
}

#[test]
fn what_is_not_asked_for_the_metrics_is_refused() {
    let dir = TempDir::new().unwrap();
    let run = live(&dir, &[]);
    for (method, path, status) in [
        ("GET", "/", 404),
        ("GET", "/metrics/x", 404),
        ("POST", "/metrics", 405),
        ("PUT", "/other", 404),
        ("GET", &format!("/{}", "x".repeat(12_000)), 404),
    ] {
        let (head, body) = run.ask(method, path);
        assert!(head.starts_with(&format!("http/1.1 {status} ")), "{method}: {head}");
        assert!(head.contains("\r\ncontent-type: text/plain") && body.contains("GET"), "{method}: {head}\n{body}");
    }
    let length = format!("\r\ncontent-length: {}\r\n", run.page().len());
    let (head, body) = run.ask("HEAD", "/metrics");
    assert!(head.starts_with("http/1.1 200 ok\r\n") && head.contains(&length) && body.is_empty(), "{head}\n{body}");
    assert_eq!(run.end().code, 0);
}

/// Controllers keep what they believe by sequence, by expert, by bin: each number is told under the names that lead to it.
#[test]
fn a_controller_tells_all_that_it_believes() {
    for (controller, keys) in [
        ("goodput-ts", &["calibration.rates.0", "calibration.pooled"][..]),
        ("beta-ts", &["slots.0.alpha", "slots.0.mean"]),
        ("calibration-ts", &["scale", "rate.0"]),
        ("threshold:0.5", &["threshold"]),
        ("fixed:3", &["length"]),
    ] {
        let dir = TempDir::new().unwrap();
        let mut run = live(&dir, &["--controller", controller]);
        // It waits with seven requests or fewer under way, among them the first, which has the first place.
        run.submit(&format!("{}{}", long_request(), requests(0, 8)));
        let page = run.until_idle(9).pop().unwrap();
        for key in keys {
            let value = page.labelled("eesd_controller_state", &format!("key=\"{key}\""));
            assert!(value.is_finite(), "{controller}: {key} is {value}");
        }
        assert_eq!(run.end().code, 0);
    }
}

/// An interrupt is told as what it is.
#[cfg(unix)]
#[test]
fn an_interrupted_run_tells_what_it_cut_short() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("m.prom");
    let mut run = live(&dir, &["--metrics", file.to_str().unwrap()]);
    // By its first page it listens to interrupts.
    run.page();
    assert!(Command::new("kill").args(["-INT", &run.child.id().to_string()]).status().unwrap().success());
    // There is always one more, so there is always something to cut short, whenever the run hears of it.
    while run.try_submit(&long_request()).is_ok() {}
    let told = run.end().stderr;
    let answers = lines(&fs::read_to_string(dir.path().join("out.jsonl")).unwrap());
    let short = |line: &&Value| line["finish"] == "cancelled" || line["error"] == "interrupted";
    let cut_short = answers.iter().filter(short).count();
    assert!(cut_short > 0 && told.contains(&format!("{cut_short} cut short, ")), "{told}");
    assert_eq!(outcome(&parse(&fs::read_to_string(file).unwrap()), "cut_short"), cut_short as f64);
}

/// In a pipe, `--stats` writes lines to standard error, and none anywhere else.
#[test]
fn live_statistics_are_lines_on_standard_error() {
    let dir = TempDir::new().unwrap();
    let mut run = live(&dir, &["--stats"]);
    assert_eq!(run.told(), "answering requests, 8 side by side\n");
    // The next line comes after half a second of work, however many requests that is.
    let mut pipe = run.take_pipe();
    let submitting = std::thread::spawn(move || while pipe.write_all(long_request().as_bytes()).is_ok() {});
    let line = run.told();
    run.child.kill().unwrap();
    submitting.join().unwrap();
    let mut printed = String::new();
    run.child.stdout.take().unwrap().read_to_string(&mut printed).unwrap();
    assert_eq!(printed, "");
    for part in [" s: ", " waiting, ", " running, ", " swapped out, ", " done; ", " tok/s, mean accepted length "] {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    for part in [" rows a pass; ", "goodput-ts drafts ", " a round", " pages held, ", " kept, ", " preemptions\n"] {
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
    let mut run = live(&dir, &["--metrics", file.to_str().unwrap()]);
    run.submit(&requests(0, 3));
    run.until_idle(3);
    // Now it waits, and does not write the file while its folder is taken away.
    let page = run.page();
    until(&mut run.child, || fs::read_to_string(&file).is_ok_and(|text| text == page));
    fs::remove_dir_all(&folder).unwrap();
    run.submit(&requests(3, 3));
    let message = format!("{}: could not be written: ", file.display());
    assert!(run.told().starts_with("answering requests, "));
    let told = run.told();
    assert!(told.starts_with(&message) && told.ends_with(" (it will be tried again)\n"), "{told}");
    run.submit(&requests(20, 14));
    let ended = run.end();
    assert_eq!((ended.code, ended.stderr.matches(&message).count()), (1, 1), "it is said once more: {}", ended.stderr);
    assert_eq!(lines(&fs::read_to_string(dir.path().join("out.jsonl")).unwrap()).len(), 20, "no answer is lost");
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
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something is left over");
}
