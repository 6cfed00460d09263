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
fn refused_with(key: &str, value: Value) -> String {
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
fn what_is_not_run_is_refused_by_name() {
    for (key, value, expected) in [
        (
            "general.architecture",
            Value::text("gemma3"),
            "architecture `gemma3` is not supported (supported: llama, qwen2, qwen3)",
        ),
        ("general.type", Value::text("adapter"), "`general.type` `adapter` is not supported (supported: model)"),
        (
            "llama.expert_count",
            Value::u32(8),
            "mixture of experts (`llama.expert_count`) is not supported (supported: dense models)",
        ),
        (
            "llama.attention.scale",
            Value::f32(0.1),
            "`llama.attention.scale` is not supported (supported: models without it)",
        ),
        (
            "llama.attention.causal",
            Value::truth(false),
            "`llama.attention.causal`: false is not supported (supported: causal decoders)",
        ),
        (
            "tokenizer.ggml.model",
            Value::text("t5"),
            "`tokenizer.ggml.model` `t5` is not supported (supported: gpt2, llama)",
        ),
        (
            "tokenizer.ggml.pre",
            Value::text("kimi-k2"),
            "`tokenizer.ggml.pre` `kimi-k2` is not supported (supported: rules of splitting texts such as gpt-2, llama-bpe, qwen2, smollm)",
        ),
    ] {
        assert_eq!(refused_with(key, value), expected);
    }
    let mut file = File::llama();
    let tensor = file.tensor("blk.1.ffn_up.weight");
    (tensor.kind, tensor.bytes) = (39, vec![0; 64 * 17]);
    let message = refusal(&file);
    let expected = "tensor `blk.1.ffn_up.weight` is [64, 32] in MXFP4, expected [64, 32] in F32, F16, BF16, Q4_0,";
    assert!(message.starts_with(expected), "{message}");
}

#[test]
fn a_wrong_value_is_named_by_its_key() {
    for (key, value, expected) in [
        ("llama.block_count", Value::text("2"), "`llama.block_count` is \"2\", expected a whole number from 1 to 4096"),
        (
            "llama.block_count",
            Value::u32(u32::MAX),
            "`llama.block_count` is 4294967295, expected a whole number from 1 to 4096",
        ),
        (
            "llama.attention.head_count",
            Value::i32s(&[2, 2]),
            "`llama.attention.head_count` is a list of 2, expected a whole number from 1 to 4096",
        ),
        (
            "llama.attention.head_count_kv",
            Value::u32(3),
            "`llama.attention.head_count_kv` is 3, expected a divisor of attention.head_count, 2",
        ),
        (
            "llama.attention.key_length",
            Value::u32(15),
            "`llama.attention.key_length` is 15, expected an even number of features in each head (rotary embedding turns pairs)",
        ),
        (
            "llama.attention.value_length",
            Value::u32(8),
            "`llama.attention.value_length` is 8, expected 16, as long as keys",
        ),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Value::f32(f32::NAN),
            "`llama.attention.layer_norm_rms_epsilon` is NaN, expected a finite number",
        ),
        ("llama.vocab_size", Value::u32(5), "`llama.vocab_size` is 5, expected 267, the rows of `token_embd.weight`"),
        ("llama.rope.freq_base", Value::f32(1.0), "`llama.rope.freq_base` is 1, expected a number above 1"),
        (
            "tokenizer.ggml.tokens",
            Value::texts(&["a", "b", "a"]),
            "`tokenizer.ggml.token_type` is a list of 267, expected a list of 3, one for each token",
        ),
        (
            "tokenizer.ggml.token_type",
            Value::i32s(&[7; 267]),
            "`tokenizer.ggml.token_type[0]` is 7, expected types of tokens, from 1 to 6",
        ),
        (
            "tokenizer.ggml.merges",
            Value::texts(&["d e", "de"]),
            "`tokenizer.ggml.merges[1]` is \"de\", expected two tokens of `tokenizer.ggml.tokens` with a space between, and together a third",
        ),
        (
            "tokenizer.ggml.merges",
            Value::texts(&["d x"]),
            "`tokenizer.ggml.merges[0]` is \"d x\", expected two tokens of `tokenizer.ggml.tokens` with a space between, and together a third",
        ),
        ("tokenizer.ggml.add_bos_token", Value::u32(1), "`tokenizer.ggml.add_bos_token` is 1, expected true or false"),
        (
            "tokenizer.ggml.bos_token_id",
            Value::text("<s>"),
            "`tokenizer.ggml.bos_token_id` is \"<s>\", expected a whole number from 0 to 4294967295",
        ),
        ("tokenizer.chat_template", Value::text("{% for %}"), ""),
    ] {
        let mut file = File::llama();
        if expected.is_empty() {
            // An error only where the template is asked for.
            assert!(open(file.set(key, value)).chat_template().is_err());
        } else {
            assert_eq!(refusal(file.set(key, value)), expected);
        }
    }
    let missing = refusal(File::llama().remove("llama.context_length"));
    assert_eq!(missing, "`llama.context_length` is missing, expected a whole number from 1 to 268435456");
    let strange = open(File::llama().set("llama.wings", Value::u32(2)));
    assert_eq!(strange.notes(), ["model.gguf: `llama.wings` not known to this version: ignored"]);
}

#[test]
fn damage_is_named_by_key_or_tensor() {
    let lie = |change: &dyn Fn(&mut File)| {
        let mut file = File::llama();
        change(&mut file);
        refusal(&file)
    };
    let damaged = |message: &str| format!("damaged GGUF file: {message}");
    let tensor = |change: &dyn Fn(&mut Tensor)| lie(&|file| change(file.tensor("blk.0.attn_q.weight")));
    assert_eq!(
        lie(&|file| file.version = 3u32.swap_bytes()),
        damaged("version 50331648, big-endian (expected 2 or 3, little-endian)")
    );
    assert!(
        lie(&|file| file.counts = Some([u64::MAX, 1])).contains("18446744073709551615 tensors (at most 1048576)")
            || lie(&|file| file.counts = Some([u64::MAX, 1])).contains("have room for")
    );
    let twice = lie(&|file| file.values.push(("llama.block_count".into(), Value::u32(2))));
    assert_eq!(twice, damaged("`llama.block_count` comes twice"));
    let long = lie(&|file| {
        file.set("general.name", Value { kind: 8, list: None, bytes: u64::MAX.to_le_bytes().into() });
    });
    assert!(long.starts_with(&damaged("`general.name`: 18446744073709551615 bytes of a text")), "{long}");
    let nested = lie(&|file| {
        file.set("general.tags", Value { kind: 9, list: Some((9, 1)), bytes: vec![0; 64] });
    });
    assert_eq!(nested, damaged("`general.tags`: a list within a list"));
    assert_eq!(tensor(&|t| t.kind = 77), damaged("tensor `blk.0.attn_q.weight`: type 77, of which there is none"));
    let blocks = tensor(&|t| t.shape = vec![32, 33]);
    assert!(blocks.starts_with(&damaged("tensor `blk.0.attn_q.weight`: sizes [33, 32] in Q8_0 at")), "{blocks}");
    assert!(tensor(&|t| t.offset = Some(7)).contains("tensor `blk.0.attn_q.weight` is at 7.."));
    assert!(tensor(&|t| t.offset = Some(1 << 40)).contains("tensor `blk.0.attn_q.weight` ends"));
    assert!(tensor(&|t| t.offset = Some(0)).contains("(expected a multiple of 32, from"));
    assert!(tensor(&|t| t.shape = vec![1 << 40, 1 << 40]).contains("tensor `blk.0.attn_q.weight`: sizes"));
    let doubled = lie(&|file| file.tensors[3].name = file.tensors[4].name.clone());
    assert_eq!(doubled, damaged("tensor `blk.0.attn_v.weight` comes twice"));
    let stranger = tensor(&|t| t.name = "blk.0.attn_qkv.weight".into());
    assert_eq!(stranger, "unexpected tensor `blk.0.attn_qkv.weight`: a llama of this configuration has no such tensor");
    let deeper = tensor(&|t| t.name = "blk.5.attn_q.weight".into());
    assert_eq!(deeper, "unexpected tensor `blk.5.attn_q.weight`: the configuration has 2 layers, counted from 0");
    let missing = lie(&|file| file.tensors.retain(|tensor| tensor.name != "blk.0.attn_q.weight"));
    assert!(missing.starts_with("tensor `blk.0.attn_q.weight` is missing, expected [32, 32] in F32,"), "{missing}");
    let quantised = lie(&|file| {
        let norm = file.tensor("output_norm.weight");
        (norm.kind, norm.bytes) = (8, vec![0; 34]);
    });
    assert_eq!(quantised, "tensor `output_norm.weight` is [32] in Q8_0, expected [32] in F32, F16 or BF16");
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
