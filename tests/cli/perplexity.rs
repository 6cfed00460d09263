//! `perplexity`: its numbers against the library's own logits, and what it refuses.

use crate::{BUNDLED, model_folder, ok, run, run_with_stdin, write};
use eesd::backend::Chunk;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::kv::PageId;
use eesd::load::Checkpoint;
use serde_json::Value;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

const TEXT: &str = "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n\n\
                    class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        \
                    self.items.append(item)\n";

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&ok(&[&["perplexity", "--json"], args].concat()).stdout).unwrap()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Log-probabilities that the bundled model gives to the second half of each window, computed apart.
fn expected(window: usize) -> Vec<f64> {
    let checkpoint = Checkpoint::open(Path::new(BUNDLED)).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let begin = tokenizer.encode("", true).unwrap();
    assert_eq!(begin.len(), 1, "the bundled model's texts have a begin token");
    let options = CpuOptions { context: window, ..CpuOptions::default() };
    let mut backend = CpuBackend::new(checkpoint.geometry(), &checkpoint.weights(), None, &options).unwrap();
    let (pages, vocab) = ([PageId(0)], checkpoint.geometry().vocab_size);
    let mut scored = Vec::new();
    for part in tokenizer.encode(TEXT, true).unwrap().chunks_exact(window) {
        let tokens = [&begin[..], &part[1..]].concat();
        let logits = backend.evaluate(&Chunk { pages: &pages, start: 0, tokens: &tokens }, 0).unwrap().logits;
        for at in window / 2..window - 1 {
            let row: Vec<f64> = logits[at * vocab..(at + 1) * vocab].iter().map(|&logit| f64::from(logit)).collect();
            let sum: f64 = row.iter().map(|logit| logit.exp()).sum();
            scored.push(row[tokens[at + 1] as usize] - sum.ln());
        }
    }
    scored
}

#[test]
fn perplexity_is_that_of_the_models_own_logits() {
    let dir = TempDir::new().unwrap();
    let file = write(&dir, "text.py", TEXT);
    for window in [17, 32] {
        let report = json(&[&file, "--window", &window.to_string()]);
        let scored = expected(window);
        assert!(scored.len() > 20 && report["tokens_scored"] == scored.len(), "{report}");
        let n = scored.len() as f64;
        let mean = -scored.iter().sum::<f64>() / n;
        let error = (scored.iter().map(|log| (log + mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt();
        for (key, expected) in [
            ("mean_nll", mean),
            ("mean_nll_error", error),
            ("perplexity", mean.exp()),
            ("perplexity_error", mean.exp() * error),
        ] {
            let found = number(&report[key]);
            assert!((found - expected).abs() < 1e-9 * expected, "{key}, windows of {window}: {found}, not {expected}");
        }
        assert_eq!((&report["windows"], &report["reference"]), (&report["windows_of_text"], &Value::Null));
        assert!(mean < 5.0, "the bundled model knows Python better than that: {mean}");
    }
}

/// What threads, batches and pipes are used changes nothing.
#[test]
fn the_same_text_has_the_same_perplexity_however_it_is_read() {
    let dir = TempDir::new().unwrap();
    let file = write(&dir, "text.py", TEXT.repeat(4));
    let args = ["perplexity", "--json", "--window", "16", "--max-tokens", "100"];
    let of = |report: &str| {
        let mut report: Value = serde_json::from_str(report).unwrap();
        for key in ["file", "device"] {
            report[key] = Value::Null;
        }
        report
    };
    let whole = ok(&[&args[..], &[&file, "--threads", "1"]].concat());
    assert_eq!(of(&whole.stdout)["windows"], 6);
    assert!(whole.stderr.contains("reading: 6 of 6, "), "{}", whole.stderr);
    let piped = run_with_stdin(&[&args[..], &["-", "--threads", "2", "-q"]].concat(), TEXT.repeat(4).as_bytes());
    assert_eq!((of(&piped.stdout), piped.stderr.as_str()), (of(&whole.stdout), ""));
    let told = ok(&["perplexity", &file, "--window", "64", "--ctx-size", "99"]).stderr;
    assert!(told.contains("--ctx-size changes nothing here: --window decides"), "{told}");
}

#[test]
fn a_model_is_no_way_from_itself_and_some_way_from_another() {
    let dir = TempDir::new().unwrap();
    let file = write(&dir, "text.py", TEXT);
    let report = json(&[&file, "--window", "32", "--against", BUNDLED]);
    let reference = &report["reference"];
    assert_eq!((number(&reference["mean_kl"]), number(&reference["max_kl"])), (0.0, 0.0));
    assert!(reference["kl_quantiles"].as_array().unwrap().iter().all(|quantile| quantile["kl"] == 0.0));
    assert_eq!((&reference["perplexity"], number(&reference["top_1_agreement"])), (&report["perplexity"], 1.0));

    // The same model with another final norm: another distribution.
    let folder = model_folder(&dir, &[], &[]);
    let weights = Path::new(&folder).join("model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let header: u64 = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header as usize]).unwrap();
    let start = 8 + header as usize + tensors["model.norm.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    let one = half::bf16::from_f32(1.0).to_le_bytes();
    bytes[start..start + 100].chunks_exact_mut(2).for_each(|number| number.copy_from_slice(&one));
    fs::write(&weights, bytes).unwrap();
    let report = json(&["-m", &folder, &file, "--window", "32", "--against", BUNDLED]);
    let reference = &report["reference"];
    let kl: Vec<f64> = reference["kl_quantiles"].as_array().unwrap().iter().map(|q| number(&q["kl"])).collect();
    assert!(kl[0] > 0.0 && kl.is_sorted() && *kl.last().unwrap() <= number(&reference["max_kl"]), "{report}");
    assert!(number(&reference["mean_kl"]) > 0.0 && number(&reference["top_1_agreement"]) < 1.0, "{report}");
    assert_ne!(reference["perplexity"], report["perplexity"]);
    let text = ok(&["perplexity", "-m", &folder, &file, "--window", "32", "--against", BUNDLED]).stdout;
    for line in ["mean NLL ", "perplexity ", "its perplexity ", "mean KL ", "same top 1 "] {
        assert!(text.lines().any(|told| told.starts_with(line)), "{line}: {text}");
    }
    assert!(text.contains("50 % ") && text.contains("99.9 % "), "{text}");
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let dir = TempDir::new().unwrap();
    let (file, empty) = (write(&dir, "text.py", TEXT), write(&dir, "empty.txt", ""));
    let folder = model_folder(&dir, &[], &[]);
    let path = Path::new(&folder).join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let vocabulary = tokenizer["model"]["vocab"].as_object_mut().unwrap();
    let names: Vec<String> = vocabulary.keys().rev().take(2).cloned().collect();
    let ids: Vec<Value> = names.iter().map(|name| vocabulary[name].clone()).collect();
    (vocabulary[&names[0]], vocabulary[&names[1]]) = (ids[1].clone(), ids[0].clone());
    fs::write(&path, tokenizer.to_string()).unwrap();
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf/llama");
    for (args, code, told) in [
        (&["nowhere.txt"][..], 1, "nowhere.txt: could not be read"),
        (&[&empty], 1, "empty.txt: it is empty (expected at least a window, which has "),
        (&[&file, "--window", "400"], 1, "text.py: "),
        (&[&file, "--max-tokens", "20", "--window", "32"], 1, "20 tokens to read (expected at least a window"),
        (&[&file, "--window", "999999"], 1, "--window 999999: the model was trained for 1024 positions"),
        (&[&file, "--window", "3"], 2, "expected a whole number from 4"),
        (&[&file, "-m", fixture], 1, "no tokenizer.json"),
        (&[&file, "--against", fixture], 1, "(expected the vocabulary of pycode-4m)"),
        (&[&file, "--against", &folder], 1, &format!("token {} is ", ids[0].as_u64().min(ids[1].as_u64()).unwrap())),
        (&[&file, "--against", "/nowhere"], 1, "/nowhere"),
        (&[], 2, "<FILE>"),
    ] {
        let refused = run(&[&["perplexity"], args].concat());
        assert_eq!((refused.code, refused.stdout.as_str()), (code, ""), "{args:?}: {}", refused.stderr);
        assert!(refused.stderr.contains(told), "{args:?}: {told:?} is not in {}", refused.stderr);
    }
}
