//! Models in GGUF: what is read from a file, what is refused, and by what name.

use crate::gguf_file::{F32, File, HEAD_DIM, HEADS, HIDDEN, Tensor, Value};
use eesd::load::{Checkpoint, ExitBlock};
use eesd::model::{ExitWeights, RopeScaling, RowOrder};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn write(folder: &TempDir, name: &str, file: &File) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, file.bytes().0).unwrap();
    path
}

pub fn open(file: &File) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    // The file stays mapped when its name is gone.
    Checkpoint::open(&write(&folder, "model.gguf", file)).unwrap()
}

pub fn refusal(file: &File) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "model.gguf", file);
    let message = Checkpoint::open(&path).err().expect("the file should be refused").to_string();
    let start = format!("{}: ", path.display());
    message.strip_prefix(&start).unwrap_or_else(|| panic!("{message} does not begin with the file")).to_owned()
}

/// Refusal of a file that differs in one value.
pub fn refused_with(key: &str, value: Value) -> String {
    refusal(File::llama().set(key, value))
}

#[test]
fn a_file_is_a_model_with_all_that_its_metadata_say() {
    let checkpoint = open(&File::llama());
    let geometry = checkpoint.geometry();
    assert_eq!((checkpoint.name(), &*geometry.family), ("model", "llama"));
    assert_eq!((geometry.hidden_size, geometry.layers, geometry.intermediate_size), (HIDDEN, 2, 64));
    assert_eq!((geometry.heads, geometry.kv_heads, geometry.head_dim), (HEADS, 1, HEAD_DIM));
    assert_eq!((geometry.max_positions, geometry.rms_norm_eps, geometry.rope.theta), (128, 1e-5, 10_000.0));
    assert!(geometry.tied_head && !geometry.qk_norm && geometry.windows == [None, None]);
    assert_eq!(checkpoint.notes(), [""; 0]);
    assert_eq!((checkpoint.generation().begin_token, &*checkpoint.generation().end_tokens), (Some(0), &[1][..]));
    let template = checkpoint.chat_template().unwrap().unwrap();
    let chat = eesd::load::Chat::new([eesd::load::Message::new("user", "hi")]);
    assert_eq!(template.render(&chat).unwrap(), "<|bos|>user: hi\n");
}

#[test]
fn only_architecture_llama_stores_heads_as_pairs() {
    let bias: Vec<f32> = (0..HIDDEN).map(|at| at as f32).collect();
    let with_bias = |architecture: &str| {
        let mut file = File::model(architecture);
        for layer in 0..2 {
            for (name, len) in [("attn_q", HIDDEN), ("attn_k", HEAD_DIM), ("attn_v", HEAD_DIM)] {
                file.tensors.push(Tensor::f32(&format!("blk.{layer}.{name}.bias"), &bias[..len]));
            }
        }
        open(&file)
    };
    let (llama, qwen2) = (with_bias("llama"), with_bias("qwen2"));
    let (llama, qwen2) = (llama.weights().layers[1], qwen2.weights().layers[1]);
    let paired = RowOrder::PairedHalves { head_dim: HEAD_DIM };
    assert_eq!(
        [llama.q.order, llama.k.order, llama.v.order, llama.o.order],
        [paired, paired, RowOrder::AsStored, RowOrder::AsStored]
    );
    assert_eq!([qwen2.q.order, qwen2.k.order], [RowOrder::AsStored; 2]);
    // Stored: 0 and 8 of a head's 16 as its first pair, and so on.
    let in_order: Vec<f32> = [0, 16]
        .iter()
        .flat_map(|head| (0..8).map(move |i| head + 2 * i).chain((0..8).map(move |i| head + 2 * i + 1)))
        .map(|at| at as f32)
        .collect();
    assert_eq!(llama.q_bias.unwrap().to_f32(), in_order);
    assert_eq!(llama.k_bias.unwrap().to_f32(), in_order[..HEAD_DIM]);
    assert_eq!(llama.v_bias.unwrap().to_f32(), bias[..HEAD_DIM]);
    assert_eq!(qwen2.q_bias.unwrap().to_f32(), bias);
}

#[test]
fn rope_is_scaled_as_the_file_says() {
    let scaling = |values: &[(&str, Value)]| {
        let mut file = File::llama();
        for (key, value) in values {
            file.set(&format!("llama.rope.{key}"), value.clone());
        }
        open(&file).geometry().rope.scaling.clone()
    };
    let (kind, factor) = (|kind| ("scaling.type", Value::text(kind)), ("scaling.factor", Value::f32(4.0)));
    assert_eq!(scaling(&[kind("none"), factor.clone()]), RopeScaling::Default);
    assert_eq!(scaling(&[kind("linear"), factor.clone()]), RopeScaling::Linear { factor: 4.0 });
    assert_eq!(scaling(&[("scale_linear", Value::f32(2.0))]), RopeScaling::Linear { factor: 2.0 });
    let original = ("scaling.original_context_length", Value::u32(32));
    let yarn = |attention_factor: f64| RopeScaling::Yarn {
        factor: 4.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor,
        truncate: true,
        original_max_positions: 32,
    };
    assert_eq!(scaling(&[kind("yarn"), factor.clone(), original.clone()]), yarn(0.1 * 4f64.ln() + 1.0));
    let attention = ("scaling.yarn_attn_factor", Value::f32(1.5));
    assert_eq!(scaling(&[kind("yarn"), factor, original, attention]), yarn(1.5));

    assert_eq!(
        refused_with("llama.rope.scaling.type", Value::text("longrope")),
        "`llama.rope.scaling.type` `longrope` is not supported (supported: none, linear, yarn)"
    );
    assert_eq!(
        refused_with("llama.rope.dimension_count", Value::u32(8)),
        "`llama.rope.dimension_count` 8 with heads of 16 is not supported (supported: rotation of whole heads)"
    );
}

#[test]
fn divisors_of_frequencies_are_llama_3s_or_their_own() {
    let with = |divisors: &[f32]| {
        let mut file = File::llama();
        file.set("llama.rope.freq_base", Value::f32(500_000.0));
        file.tensors.push(Tensor::f32("rope_freqs.weight", divisors));
        file
    };
    // As llama.cpp's converter computes them, in f32: factor 8, frequency factors 1 and 4, 8192 positions.
    let llama3: Vec<f32> = (0..8)
        .map(|pair| {
            let wavelength = std::f32::consts::TAU * 500_000f32.powf(pair as f32 / 8.0);
            let smooth = (8192.0 / wavelength - 1.0) / 3.0;
            if wavelength < 2048.0 {
                1.0
            } else if wavelength > 8192.0 {
                8.0
            } else {
                1.0 / ((1.0 - smooth) / 8.0 + smooth)
            }
        })
        .collect();
    let expected =
        RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192 };
    assert_eq!(open(&with(&llama3)).geometry().rope.scaling, expected);
    let own = [1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5];
    let divisors = own.iter().map(|&divisor| divisor.into()).collect();
    assert_eq!(open(&with(&own)).geometry().rope.scaling, RopeScaling::Divisors(divisors));
    assert_eq!(open(&with(&[1.0; 8])).geometry().rope.scaling, RopeScaling::Default);

    assert_eq!(refusal(&with(&own[..7])), "tensor `rope_freqs.weight` is [7] in F32, expected [8] in F32");
    let zero = refusal(&with(&[1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0]));
    assert_eq!(zero, "tensor `rope_freqs.weight` is 0 at 5, expected numbers above 0");
    let mut both = with(&own);
    both.set("llama.rope.scaling.factor", Value::f32(2.0));
    assert!(refusal(&both).starts_with("`rope_freqs.weight` and `llama.rope.scaling.type` together"));
}

#[test]
fn windows_and_heads_of_their_own() {
    let mut file = File::llama();
    file.set("llama.attention.sliding_window", Value::u32(64));
    assert_eq!(open(&file).geometry().windows, [Some(64); 2]);
    let vocabulary = file.tensor("token_embd.weight").clone();
    file.tensors.push(Tensor { name: "output.weight".into(), ..vocabulary });
    let checkpoint = open(&file);
    assert!(!checkpoint.geometry().tied_head);
    assert_eq!(checkpoint.weights().head.bytes, checkpoint.weights().embed.bytes);
}

#[test]
fn recommended_sampling_is_the_default() {
    let mut file = File::llama();
    file.set("general.sampling.top_k", Value::u32(20)).set("general.sampling.top_p", Value::f32(0.95));
    assert_eq!(open(&file).generation().sample, None);
    file.set("general.sampling.temp", Value::f32(0.6)).set("tokenizer.ggml.suppress_tokens", Value::i32s(&[3, 4]));
    let checkpoint = open(&file);
    let generation = checkpoint.generation();
    assert_eq!((generation.sample, generation.temperature), (Some(true), Some(0.6)));
    assert_eq!((generation.top_k, generation.top_p, &*generation.suppress_tokens), (Some(20), Some(0.95), &[3, 4][..]));
}

#[test]
fn a_model_split_over_files_is_opened_by_any_of_them() {
    let part = |number: usize, count: u32, file: &mut File| {
        file.set("split.no", Value::u32(number as u32)).set("split.count", Value::u32(count));
        file.set("split.tensors.count", Value::u32(20));
    };
    let mut first = File::llama();
    let mut second = File { values: Vec::new(), tensors: first.tensors.split_off(9), ..first.clone() };
    let mut third = File { values: Vec::new(), tensors: second.tensors.split_off(5), ..second.clone() };
    [&mut first, &mut second, &mut third].into_iter().enumerate().for_each(|(n, file)| part(n, 3, file));
    let folder = tempfile::tempdir().unwrap();
    let name = |number: usize| format!("tiny-{number:05}-of-00003.gguf");
    let paths: Vec<PathBuf> =
        [&first, &second, &third].iter().enumerate().map(|(n, file)| write(&folder, &name(n + 1), file)).collect();
    let whole = open(&File::llama());
    for path in paths.iter().map(PathBuf::as_path).chain([folder.path()]) {
        let checkpoint = Checkpoint::open(path).unwrap();
        assert_eq!((checkpoint.name(), checkpoint.file()), ("tiny", Some(&*paths[0])));
        assert_eq!(checkpoint.fingerprint(), whole.fingerprint());
        assert_eq!(checkpoint.weights().layers[1].down.bytes, whole.weights().layers[1].down.bytes);
    }
    let refused = |path: &Path| Checkpoint::open(path).err().unwrap().to_string();
    std::fs::write(&paths[1], third.bytes().0).unwrap();
    assert!(
        refused(&paths[0]).contains(": `split.no` is 2, expected 1, as the file's name says"),
        "{}",
        refused(&paths[0])
    );
    part(1, 2, &mut second);
    std::fs::write(&paths[1], second.bytes().0).unwrap();
    assert!(refused(&paths[0]).contains(": `split.count` is 2, expected 3, as the file's name says"));
    part(1, 3, &mut second);
    second.tensors.pop();
    std::fs::write(&paths[1], second.bytes().0).unwrap();
    assert!(refused(&paths[2]).contains("`split.tensors.count` is 20, expected 19, those of all parts"));
    std::fs::remove_file(&paths[1]).unwrap();
    assert!(refused(&paths[2]).starts_with(&paths[1].display().to_string()), "{}", refused(&paths[2]));
    let alone = write(&folder, "alone.gguf", &first);
    assert!(refused(&alone).contains("`split.count` is 3, expected 1, as the file's name says"));
}

#[test]
fn a_folder_with_one_model_is_that_model() {
    let folder = tempfile::tempdir().unwrap();
    write(&folder, "a.gguf", &File::llama());
    assert_eq!(Checkpoint::open(folder.path()).unwrap().name(), "a");
    write(&folder, "b.gguf", &File::llama());
    let message = Checkpoint::open(folder.path()).err().unwrap().to_string();
    assert!(message.ends_with("several GGUF models here, give the file of one: a.gguf, b.gguf"), "{message}");
    // A Hugging Face folder is one, whatever else lies there.
    std::fs::write(folder.path().join("config.json"), "{}").unwrap();
    let message = Checkpoint::open(folder.path()).err().unwrap().to_string();
    assert!(message.contains("config.json: `model_type` is missing"), "{message}");
    let message = Checkpoint::open(&folder.path().join("config.json")).err().unwrap().to_string();
    assert!(
        message.contains("does not begin with `GGUF` (a model is a Hugging Face folder, or a GGUF file)"),
        "{message}"
    );
}

#[test]
fn exit_blocks_lie_beside_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "model.gguf", &File::llama());
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert!(checkpoint.exit_blocks().unwrap().is_empty());
    let exit = folder.path().join("exit-1.safetensors");
    let untrained = ExitWeights::from_model(&checkpoint.weights(), 1, 1);
    ExitBlock::save(&exit, &untrained, &Default::default(), &checkpoint).unwrap();
    let blocks = checkpoint.exit_blocks().unwrap();
    assert_eq!((blocks.len(), blocks[0].after(), blocks[0].path()), (1, 1, &*exit));
    // Its rows are in order, and in f32.
    let (mut stored, mut copied) = ([0.0; HIDDEN], [0.0; HIDDEN]);
    checkpoint.weights().layers[1].q.dequantise_row(3, &mut stored);
    blocks[0].weights().layer.q.dequantise_row(3, &mut copied);
    assert_eq!(stored, copied);
}

#[test]
fn other_number_formats_of_vectors_are_read_as_they_are() {
    let mut file = File::llama();
    let norm = file.tensor("output_norm.weight");
    assert_eq!(norm.kind, F32);
    (norm.kind, norm.bytes) = (30, [0x80, 0x3F].repeat(HIDDEN));
    assert_eq!(open(&file).weights().norm.to_f32(), [1.0; HIDDEN]);
}
