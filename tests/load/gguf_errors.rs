//! What is wrong with a GGUF file is told by its key or its tensor.

use crate::gguf::{open, refusal, refused_with};
use crate::gguf_file::{File, Tensor, Value};

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
}

#[test]
fn what_a_file_says_in_vain_is_told() {
    let notes = |key: &str, value: Value| open(File::llama().set(key, value)).notes().join("; ");
    for (key, value, expected) in [
        ("llama.wings", Value::u32(2), "model.gguf: `llama.wings` not known to this version: ignored"),
        (
            "general.sampling.mirostat",
            Value::u32(2),
            "model.gguf: `general.sampling.mirostat`: no such sampling here: ignored",
        ),
        ("general.sampling.mirostat", Value::u32(0), ""),
        (
            "tokenizer.ggml.add_eos_token",
            Value::truth(true),
            "model.gguf: `tokenizer.ggml.add_eos_token` is true: ignored, since texts are continued",
        ),
        (
            "tokenizer.ggml.eos_token_id",
            Value::u32(300),
            "model.gguf: `eos_token_id` has 300, expected tokens below vocab_size, 267: ignored",
        ),
    ] {
        assert_eq!(notes(key, value), expected);
    }
    let unnamed = open(File::llama().remove("tokenizer.ggml.pre"));
    assert!(unnamed.notes()[0].starts_with("model.gguf: `tokenizer.ggml.pre` is missing"), "{:?}", unnamed.notes());
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
