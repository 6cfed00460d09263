//! `--quantize`, and `quantize`: models in fewer bits.

use crate::{BUNDLED, PROMPT, model_folder, ok, run, write};
use eesd::backend::Chunk;
use eesd::backend::cpu::{CpuBackend, CpuOptions};
use eesd::kv::PageId;
use eesd::load::{Checkpoint, ExitBlock};
use eesd::model::{Encoder, Format, Matrix, ModelWeights, Quantised, Scheme};
use serde_json::{Value, json};
use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use tempfile::TempDir;

fn json_of(args: &[&str]) -> Value {
    serde_json::from_str(&ok(args).stdout).unwrap()
}

fn path(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

#[test]
fn a_model_is_quantised_as_it_is_opened() {
    let dir = TempDir::new().unwrap();
    let text = write(&dir, "text.py", fs::read_to_string(Path::new(BUNDLED).join("prompts.jsonl")).unwrap());
    let whole = json_of(&["inspect", "--json"]);
    let mut last = 0.0;
    for (scheme, layers, bits) in [("q8", "q8_0", 8.5), ("q4", "q4_0", 4.5)] {
        let report = json_of(&["inspect", "--json", "--quantize", scheme]);
        assert_eq!(report["quantized"], scheme);
        assert_eq!((&report["dtype"], &report["formats"]["embedding"]), (&json!(layers), &json!("q8_0")));
        let of = |report: &Value, part: &str| report["bytes"][part].as_f64().unwrap();
        assert!((of(&report, "layers") / of(&whole, "layers") - bits / 16.0).abs() < 0.005, "{report}");
        assert!((of(&report, "embedding") / of(&whole, "embedding") - 8.5 / 16.0).abs() < 1e-9);
        assert!((of(&report, "total") - of(&report, "layers") - of(&report, "embedding")).abs() < 1000.0, "{report}");
        assert!(ok(&["inspect", "--quantize", scheme]).stdout.contains("quantised to"));

        // The text is another model's, which speculation does not change.
        let with = |more: &[&str]| {
            json_of(&[&["generate", "-p", PROMPT, "-n", "32", "--json", "--quantize", scheme], more].concat())
        };
        let (plain, drafted) = (with(&["--no-exit"]), with(&["--controller", "fixed:3"]));
        assert_eq!(plain["tokens"], drafted["tokens"]);
        assert_eq!((&plain["stats"]["quantized"], &drafted["stats"]["quantized"]), (&json!(scheme), &json!(scheme)));
        assert!(drafted["stats"]["accepted"].as_u64().unwrap() > 0);
        let told = ok(&["generate", "-p", PROMPT, "-n", "4", "--quantize", scheme]).stderr;
        assert!(told.contains(&format!(", weights in {scheme}")), "{told}");

        let against = ["perplexity", &text, "--window", "64", "--max-tokens", "512", "--against", BUNDLED, "--json"];
        let report = json_of(&[&against[..], &["--quantize", scheme]].concat());
        let kl = report["reference"]["mean_kl"].as_f64().unwrap();
        assert!(kl > last && kl < 0.5, "{scheme}: {report}");
        last = kl;
    }
    for (more, expected) in [(&["--quantize", "q4"][..], json!("q4")), (&[], Value::Null)] {
        let line = json!({"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": PROMPT}});
        let input = write(&dir, "batch.jsonl", line.to_string());
        let answer = json_of(&[&["generate", "--input", &input, "-n", "4"], more].concat());
        let body = &answer["response"]["body"];
        assert_eq!((&body["object"], &body["quantized"]), (&json!("text_completion"), &expected));
    }
    let plain = json_of(&["generate", "-p", PROMPT, "-n", "4", "--json"]);
    assert_eq!((&plain["stats"]["quantized"], &whole["quantized"]), (&Value::Null, &Value::Null));
    let idle = ok(&["tokenize", "-p", "x", "--quantize", "q8"]).stderr;
    assert!(idle.contains("--quantize q8 changes nothing where no weights are used"), "{idle}");
}

/// Rows of a matrix in f32.
fn numbers(matrix: &Matrix<'_>) -> Vec<f32> {
    let mut numbers = vec![0.0; matrix.rows * matrix.cols];
    for (row, out) in numbers.chunks_exact_mut(matrix.cols).enumerate() {
        matrix.dequantise_row(row, out);
    }
    numbers
}

fn matrices<'a>(weights: &ModelWeights<'a>) -> Vec<Matrix<'a>> {
    let of_layers = weights.layers.iter().flat_map(|l| [l.q, l.k, l.v, l.o, l.gate, l.up, l.down]);
    [weights.embed, weights.head].into_iter().chain(of_layers).collect()
}

/// What is written is read back: the same model but for the rounding of its matrices, and the same text.
#[test]
fn a_written_file_is_the_model_with_rounded_matrices() {
    let dir = TempDir::new().unwrap();
    let original = Checkpoint::open(Path::new(BUNDLED)).unwrap();
    let (own, tokenizer) = (original.weights(), original.tokenizer().unwrap());
    for (kind, most) in [("Q8_0", 0.007), ("Q6_K", 0.025), ("q4_k", 0.09), ("Q4_0", 0.11)] {
        let file = path(&dir, &format!("{kind}.gguf"));
        let told = ok(&["quantize", "-o", &file, "--type", kind]).stderr;
        assert!(told.contains(&format!("{kind}.gguf: written, ")), "{told}");
        // Rows of 192 are no blocks of 256; those of the MLP's 512 are.
        let instead = told.lines().filter(|line| line.starts_with("matrices in q8_0 instead of q")).count();
        assert_eq!(
            instead,
            match kind {
                "Q6_K" => 1,
                "q4_k" => 2,
                "Q4_0" => 1,
                _ => 0,
            },
            "{kind}: {told}"
        );
        let written = Checkpoint::open(Path::new(&file)).unwrap();
        assert_eq!(written.notes(), [""; 0], "{kind}");
        let (ours, theirs) = (original.geometry(), written.geometry());
        assert_eq!(format!("{ours:?}"), format!("{theirs:?}"));
        let weights = written.weights();
        let mut formats = Vec::new();
        for (own, found) in matrices(&own).iter().zip(&matrices(&weights)) {
            let (own, numbers) = (numbers(own), numbers(found));
            let size = own.iter().map(|x| f64::from(x * x)).sum::<f64>();
            let error = own.iter().zip(&numbers).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
            assert!((error / size).sqrt() < most, "{kind}, {}: {}", found.format, (error / size).sqrt());
            formats.push(found.format);
        }
        let asked: Encoder = match kind {
            "Q8_0" => Encoder::Q8_0,
            "Q6_K" => Encoder::Q6K,
            "q4_k" => Encoder::Q4K,
            _ => Encoder::Q4_0,
        };
        assert!(formats.contains(&Format::Blocks(asked.blocks())), "{kind}: {formats:?}");
        for (own, found) in own.layers.iter().zip(&weights.layers) {
            assert_eq!(own.input_norm.to_f32(), found.input_norm.to_f32());
        }
        let text = "def f(x):\n    return {'é': x ** 2, \"日本\": 1_000}  # 😀\n\t<|eos|>";
        let found = written.tokenizer().unwrap();
        assert_eq!(found.encode(text, true).unwrap(), tokenizer.encode(text, true).unwrap());
        assert_eq!(written.generation().end_tokens, original.generation().end_tokens);

        // The blocks of the 16-bit folder draft for it, in whatever format it is.
        let block = path(&dir, "exit-2.safetensors");
        let bundled = original.open_exit(&Path::new(BUNDLED).join("exit-2.safetensors")).unwrap();
        assert!(
            written.open_exit(&Path::new(BUNDLED).join("exit-2.safetensors")).is_ok(),
            "a block of an earlier version"
        );
        ExitBlock::save(Path::new(&block), &bundled.weights(), bundled.metadata(), &original).unwrap();
        assert_eq!(written.open_exit(Path::new(&block)).unwrap().notes(), [""; 0]);
        let generated =
            |more: &[&str]| json_of(&[&["generate", "-m", &file, "-p", PROMPT, "-n", "32", "--json"], more].concat());
        let drafted = generated(&["--exit", "2", "--controller", "fixed:3"]);
        assert_eq!(drafted["tokens"], generated(&["--no-exit"])["tokens"]);
        assert!(drafted["stats"]["accepted"].as_u64().unwrap() > 0, "{drafted}");
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn what_a_model_says_beside_its_weights_is_written_too() {
    let dir = TempDir::new().unwrap();
    let template = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let folder = model_folder(&dir, &[], &[("chat_template.jinja", template)]);
    let file = path(&dir, "out.gguf");
    ok(&["quantize", "-m", &folder, "-o", &file, "--type", "Q8_0", "-q"]);
    let report = json_of(&["inspect", "-m", &file, "--json"]);
    assert_eq!((&report["chat_template"], &report["tokenizer"]), (&json!(true), &json!(true)));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something is left over");
    // A quantised model is quantised again, and that is said.
    let again = path(&dir, "again.gguf");
    let told = ok(&["quantize", "-m", &file, "-o", &again, "--type", "Q8_0"]).stderr;
    assert!(told.contains("the model is in q8_0 already"), "{told}");
    assert_eq!(fs::read(&file).unwrap().len(), fs::read(&again).unwrap().len());
    assert!(run(&["generate", "-m", &file, "-p", "x", "--quantize", "q4"]).stderr.contains("no matrix to quantise"));
}

/// The logits of a few tokens.
fn logits(model: &Checkpoint, weights: &ModelWeights<'_>) -> Vec<f32> {
    let options = CpuOptions { context: 64, threads: Some(1), ..CpuOptions::default() };
    let mut backend = CpuBackend::new(model.geometry(), weights, None, &options).unwrap();
    let tokens: Vec<u32> = (0..40).map(|at| at * 37 % 512).collect();
    backend.evaluate(&Chunk { pages: &[PageId(0)], start: 0, tokens: &tokens }, 0).unwrap().logits
}

/// Other models: those whose rows are stored in order, with biases, norms of queries, tied heads, RoPE scaling. What is read
/// back computes what the original does once its matrices are rounded alike.
#[test]
fn every_family_is_written_and_read_back() {
    let dir = TempDir::new().unwrap();
    for name in ["llama", "llama3_rope_sharded", "mistral", "qwen2", "qwen3"] {
        let folder = format!("{}/tests/fixtures/hf/{name}", env!("CARGO_MANIFEST_DIR"));
        let file = path(&dir, &format!("{name}.gguf"));
        ok(&["quantize", "-m", &folder, "-o", &file, "--type", "Q8_0", "-q"]);
        let (original, written) =
            (Checkpoint::open(Path::new(&folder)).unwrap(), Checkpoint::open(Path::new(&file)).unwrap());
        assert!(written.tokenizer().is_none() && written.notes().is_empty(), "{name}: {:?}", written.notes());
        let own = original.weights();
        let rounded = Quantised::of(&own, Scheme::Q8, NonZeroUsize::MIN).unwrap();
        let (expected, found) = (logits(&original, &rounded.weights(&own)), logits(&written, &written.weights()));
        let difference = expected.iter().zip(&found).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        // Divisors of frequencies are stored in f32.
        let most = if name == "llama3_rope_sharded" { 1e-3 } else { 0.0 };
        assert!(difference <= most, "{name}: {difference}");
        assert!(expected.iter().any(|logit| logit.abs() > 0.1));
        assert_eq!(written.parameters(), original.parameters());
    }
}

#[test]
fn what_cannot_be_quantised_is_refused_and_nothing_is_written() {
    let dir = TempDir::new().unwrap();
    let folder = model_folder(&dir, &[], &[]);
    let there = write(&dir, "there.gguf", "mine");
    let new = path(&dir, "new.gguf");
    let refused = |args: &[&str], code: i32, fragment: &str| {
        let run = run(&[&["quantize"], args].concat());
        assert!(run.code == code && run.stderr.contains(fragment), "{args:?}: {} {}", run.code, run.stderr);
        assert!(!Path::new(&new).exists() && fs::read_to_string(&there).unwrap() == "mine", "{args:?}");
    };
    refused(&["-o", &there, "--type", "Q8_0"], 1, "there.gguf: there already; --overwrite replaces it");
    refused(&["-o", &new, "--type", "Q3_K"], 2, "Q4_K");
    refused(&["-o", &new], 2, "--type <TYPE>");
    refused(&["-o", &path(&dir, "missing/x.gguf"), "--type", "Q8_0"], 1, "x.gguf: ");
    let own = format!("{folder}/model.safetensors");
    refused(&["-m", &folder, "-o", &own, "--type", "Q8_0", "--overwrite"], 2, "would overwrite the file of --model");

    let edit = |file: &str, change: &dyn Fn(&mut Value)| {
        let path = Path::new(&folder).join(file);
        let before = fs::read(&path).unwrap();
        let mut json: Value = serde_json::from_slice(&before).unwrap();
        change(&mut json);
        fs::write(&path, json.to_string()).unwrap();
        before
    };
    for (file, change, fragment) in [
        (
            "tokenizer.json",
            (&|json: &mut Value| json["normalizer"] = json!({"type": "NFKC"})) as &dyn Fn(&mut Value),
            "tokenizer.json: its normalizer and its pre_tokenizer cannot be said in a GGUF file",
        ),
        (
            "tokenizer.json",
            &|json: &mut Value| json["pre_tokenizer"]["add_prefix_space"] = json!(true),
            "its pre_tokenizer cannot be said",
        ),
        (
            "config.json",
            &|json: &mut Value| json["rope_scaling"] = json!({"rope_type": "dynamic", "factor": 2.0}),
            "dynamic RoPE scaling cannot be said",
        ),
    ] {
        let before = edit(file, change);
        refused(&["-m", &folder, "-o", &new, "--type", "Q8_0"], 1, fragment);
        fs::write(Path::new(&folder).join(file), before).unwrap();
    }
    // A number that no block holds is named by its place.
    let mut bytes = fs::read(&own).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let at = |name: &str| 8 + header + tensors[name]["data_offsets"][0].as_u64().unwrap() as usize;
    let place = at("model.layers.3.mlp.up_proj.weight") + 2 * (192 * 5 + 7);
    bytes[place..place + 2].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    fs::write(&own, bytes).unwrap();
    refused(
        &["-m", &folder, "-o", &new, "--type", "Q4_0"],
        1,
        "blk.3.ffn_up.weight: row 5, column 7: NaN (expected a number",
    );
    let at_load = run(&["generate", "-m", &folder, "-p", "x", "--quantize", "q4"]);
    assert!(
        at_load.code == 1 && at_load.stderr.contains("layer 3: up_proj: row 5, column 7: NaN"),
        "{}",
        at_load.stderr
    );
}
