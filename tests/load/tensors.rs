//! Weights: single files and shards, and what is wrong with them.

use crate::folder::{Folder, Tensors};
use safetensors::Dtype;
use serde_json::json;

const MODEL: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const EMBED: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const SHARDS: &str = "llama3_rope_sharded";

fn shard(number: usize) -> String {
    format!("model-{number:05}-of-00005.safetensors")
}

#[test]
fn shards_hold_the_same_model_as_one_file() {
    let sharded = Folder::of(SHARDS);
    let mut all = Tensors(Vec::new());
    for number in 1..=5 {
        all.0.append(&mut Tensors::read(&sharded.path(&shard(number))).0);
    }
    let single = Folder::of(SHARDS);
    for number in 1..=5 {
        std::fs::remove_file(single.path(&shard(number))).unwrap();
    }
    // The index stays: a single file goes before it.
    single.write(MODEL, all.to_bytes());

    let (sharded, single) = (sharded.open().unwrap(), single.open().unwrap());
    assert_eq!(sharded.fingerprint(), single.fingerprint());
    assert_eq!((sharded.parameters(), sharded.bytes()), (single.parameters(), single.bytes()));
    let (a, b) = (sharded.weights(), single.weights());
    assert_eq!(a.embed.bytes, b.embed.bytes);
    assert_eq!(a.norm.bytes, b.norm.bytes);
    for (a, b) in a.layers.iter().zip(&b.layers) {
        assert_eq!((a.q.bytes, a.down.bytes, a.post_norm.bytes), (b.q.bytes, b.down.bytes, b.post_norm.bytes));
    }
}

#[test]
fn number_formats_may_be_mixed() {
    let folder = Folder::of("llama");
    folder.change_tensors(MODEL, |tensors| {
        tensors.remove("model.norm.weight");
        tensors.remove("model.layers.1.mlp.up_proj.weight");
        tensors.add("model.norm.weight", Dtype::F32, &[128]);
        tensors.add("model.layers.1.mlp.up_proj.weight", Dtype::F16, &[352, 128]);
    });
    let mixed = folder.open().unwrap();
    assert_eq!(mixed.weights().norm.dtype, eesd::model::Dtype::F32);
    assert_eq!(mixed.weights().layers[1].up.format, eesd::model::Dtype::F16.into());
    assert_ne!(mixed.fingerprint(), Folder::of("llama").open().unwrap().fingerprint());
}

#[test]
fn tensors_are_checked_against_the_configuration() {
    type Change = fn(&mut Tensors);
    let table: [(Change, &str); 8] = [
        (
            |tensors| tensors.remove("model.layers.2.self_attn.k_proj.weight"),
            "tensor `model.layers.2.self_attn.k_proj.weight` is missing, expected [64, 128] in F32, F16 or BF16",
        ),
        (|tensors| tensors.remove("lm_head.weight"), "tensor `lm_head.weight` is missing, expected [512, 128]"),
        (
            |tensors| tensors.0.iter_mut().filter(|t| t.0 == "model.norm.weight").for_each(|t| t.2 = vec![2, 64]),
            "tensor `model.norm.weight` is [2, 64] in BF16, expected [128] in F32, F16 or BF16",
        ),
        (
            |tensors| {
                tensors.remove("model.layers.0.mlp.up_proj.weight");
                tensors.add("model.layers.0.mlp.up_proj.weight", Dtype::F8_E4M3, &[352, 128]);
            },
            "tensor `model.layers.0.mlp.up_proj.weight` is [352, 128] in F8_E4M3, expected [352, 128] in F32, F16 or",
        ),
        (
            |tensors| tensors.add("model.layers.4.input_layernorm.weight", Dtype::BF16, &[128]),
            "unexpected tensor `model.layers.4.input_layernorm.weight`: the configuration has 4 layers",
        ),
        (
            |tensors| tensors.add("model.layers.0.self_attn.q_proj.bias", Dtype::BF16, &[128]),
            "unexpected tensor `model.layers.0.self_attn.q_proj.bias`: a llama of this configuration has no such",
        ),
        (
            |tensors| tensors.add("model.layers.0.self_attn.q_proj.qweight", Dtype::I32, &[16, 128]),
            "unexpected tensor `model.layers.0.self_attn.q_proj.qweight`: quantised weights that `quantization_config`",
        ),
        (|tensors| tensors.add("visual.patch.weight", Dtype::F32, &[3]), "unexpected tensor `visual.patch.weight`"),
    ];
    for (change, fragment) in table {
        let folder = Folder::of("llama");
        let message = folder.change_tensors(MODEL, change).refusal();
        assert!(message.contains("model.safetensors: ") && message.contains(fragment), "{message}");
    }
}

#[test]
fn biases_are_where_the_configuration_says() {
    let folder = Folder::of("llama");
    folder.set("config.json", json!({"attention_bias": true, "mlp_bias": true}));
    assert!(folder.refusal().contains(".bias` is missing, expected ["));
    folder.change_tensors(MODEL, |tensors| {
        for layer in 0..4 {
            for (map, size) in [("q", 128), ("k", 64), ("v", 64), ("o", 128)] {
                tensors.add(&format!("model.layers.{layer}.self_attn.{map}_proj.bias"), Dtype::F32, &[size]);
            }
            for (map, size) in [("gate", 352), ("up", 352), ("down", 128)] {
                tensors.add(&format!("model.layers.{layer}.mlp.{map}_proj.bias"), Dtype::F32, &[size]);
            }
        }
    });
    let opened = folder.open().unwrap();
    let layer = opened.weights().layers[3];
    let lengths = [layer.q_bias, layer.k_bias, layer.o_bias, layer.gate_bias, layer.down_bias].map(|b| b.unwrap().len);
    assert_eq!(lengths, [128, 64, 128, 352, 128]);
}

#[test]
fn tensors_that_change_nothing_are_left_alone() {
    let folder = Folder::of("qwen2");
    let before = folder.open().unwrap().fingerprint().to_string();
    folder.change_tensors(MODEL, |tensors| {
        tensors.copy(EMBED, HEAD);
        tensors.add("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, &[16]);
        tensors.add("model.rotary_emb.cos_cached", Dtype::F32, &[4, 16]);
    });
    let opened = folder.open().unwrap();
    assert_eq!((opened.fingerprint(), opened.parameters()), (before.as_str(), 411_776));
    assert!(opened.geometry().tied_head && opened.notes().is_empty(), "{:?}", opened.notes());
}

#[test]
fn a_head_that_differs_from_the_embedding_is_used_though_the_configuration_ties_them() {
    let folder = Folder::of("qwen2");
    let tied = folder.open().unwrap();
    // One bit is enough.
    folder.change_tensors(MODEL, |tensors| {
        tensors.copy(EMBED, HEAD);
        *tensors.bytes(HEAD).last_mut().unwrap() ^= 1;
    });
    let opened = folder.open().unwrap();
    assert_eq!(
        opened.notes(),
        ["model.safetensors: `lm_head.weight` differs from `model.embed_tokens.weight`: used as the model's head, \
          though `tie_word_embeddings` of config.json is true"]
    );
    let weights = opened.weights();
    assert!(!opened.geometry().tied_head);
    assert_ne!(weights.head.bytes, weights.embed.bytes);
    let head = 512 * 128;
    assert_eq!((opened.parameters(), opened.bytes()), (tied.parameters() + head, tied.bytes() + 2 * head));

    // It is the model of a folder that says so itself.
    let untied = folder.set("config.json", json!({"tie_word_embeddings": false})).open().unwrap();
    assert_eq!(opened.fingerprint(), untied.fingerprint());
    assert_ne!(opened.fingerprint(), tied.fingerprint());
    assert!(untied.notes().is_empty());
}

#[test]
fn a_tied_head_in_another_number_format_or_shape() {
    let folder = Folder::of("qwen2");
    folder.change_tensors(MODEL, |tensors| tensors.add(HEAD, Dtype::F32, &[512, 128]));
    let opened = folder.open().unwrap();
    assert_eq!((opened.geometry().tied_head, opened.weights().head.format), (false, eesd::model::Dtype::F32.into()));

    for (dtype, shape) in [(Dtype::BF16, vec![0]), (Dtype::BF16, vec![511, 128]), (Dtype::I8, vec![512, 128])] {
        let folder = Folder::of("qwen2");
        folder.change_tensors(MODEL, |tensors| tensors.add(HEAD, dtype, &shape));
        let opened = folder.open().unwrap();
        assert!(opened.geometry().tied_head);
        assert!(opened.notes()[0].contains("`lm_head.weight` cannot be the model's head"), "{:?}", opened.notes());
    }
}

#[test]
fn what_an_index_does_not_list_counts_as_in_a_single_file() {
    let norm = "model.norm.weight";
    let folder = Folder::of(SHARDS);
    let whole = folder.open().unwrap();
    let mut index = folder.json(INDEX);
    index["weight_map"].as_object_mut().unwrap().remove(norm);
    let opened = folder.write(INDEX, index.to_string()).open().unwrap();
    assert_eq!(opened.fingerprint(), whole.fingerprint());
    assert_eq!(opened.weights().norm.bytes, whole.weights().norm.bytes);

    // Spare in a single file, so spare in a shard; derived ones may stand in all of them.
    for number in [1, 2] {
        folder.change_tensors(&shard(number), |tensors| {
            tensors.add("model.layers.0.self_attn.rotary_emb.inv_freq", Dtype::F32, &[16]);
        });
    }
    let embedding = Tensors::read(&folder.path(&shard(1))).0.into_iter().find(|tensor| tensor.0 == EMBED).unwrap();
    folder.change_tensors(&shard(3), |tensors| tensors.0.push((HEAD.into(), embedding.1, embedding.2, embedding.3)));
    let opened = folder.open().unwrap();
    assert_eq!(opened.fingerprint(), whole.fingerprint());
    assert!(opened.notes().is_empty(), "{:?}", opened.notes());

    // Refused in a single file, so refused in a shard.
    folder.change_tensors(&shard(4), |tensors| tensors.add("visual.patch.weight", Dtype::F32, &[3]));
    let message = folder.refusal();
    assert!(message.contains("model-00004-of-00005.safetensors: unexpected tensor `visual.patch.weight`"), "{message}");
}

#[test]
fn of_two_copies_in_two_shards_the_index_says_which_one_counts() {
    let norm = "model.norm.weight";
    let folder = Folder::of(SHARDS);
    let right = folder.open().unwrap().weights().norm.bytes.to_vec();
    folder.change_tensors(&shard(1), |tensors| tensors.add(norm, Dtype::BF16, &[128]));
    let opened = folder.open().unwrap();
    assert_eq!(opened.weights().norm.bytes, right);
    assert_eq!(
        opened.notes(),
        ["model-00001-of-00005.safetensors: `model.norm.weight` left out: the index takes it from another file"]
    );

    let mut index = folder.json(INDEX);
    index["weight_map"].as_object_mut().unwrap().remove(norm);
    let message = folder.write(INDEX, index.to_string()).refusal();
    let fragment = "model-00005-of-00005.safetensors: unexpected tensor `model.norm.weight`: other files have it too";
    assert!(message.contains(fragment), "{message}");
}

#[test]
fn an_index_leads_only_to_files_beside_it() {
    let norm = "model.norm.weight";
    let table = [
        (
            json!("../model.safetensors"),
            "`weight_map.model.norm.weight` is \"../model.safetensors\", expected the name",
        ),
        (json!("/model.safetensors"), "expected the name of a file in the same folder"),
        (json!("a/../b.safetensors"), "expected the name of a file in the same folder"),
        (json!(".."), "expected the name of a file in the same folder"),
        (json!("x".repeat(256)), "expected the name of a file in the same folder"),
        (json!(["x"]), "is an array of 1, expected a string"),
        (json!("absent.safetensors"), "absent.safetensors: entity not found"),
        (json!(shard(1)), "model-00001-of-00005.safetensors: tensor `model.norm.weight` is missing, expected here"),
    ];
    for (place, fragment) in table {
        let folder = Folder::of(SHARDS);
        let mut index = folder.json(INDEX);
        index["weight_map"][norm] = place;
        let message = folder.write(INDEX, index.to_string()).refusal();
        assert!(message.contains(fragment), "{message}");
    }

    let folder = Folder::of(SHARDS);
    let mut index = folder.json(INDEX);
    index["weight_map"]["model.ghost.weight"] = json!(shard(2));
    let message = folder.write(INDEX, index.to_string()).refusal();
    assert!(message.contains("model-00002-of-00005.safetensors: tensor `model.ghost.weight` is missing"), "{message}");

    index.as_object_mut().unwrap().remove("weight_map");
    assert!(folder.write(INDEX, index.to_string()).refusal().contains("`weight_map` is missing, expected an object"));
}

#[test]
fn a_folder_without_safetensors_says_what_it_has_instead() {
    let folder = Folder::of("llama");
    std::fs::remove_file(folder.path(MODEL)).unwrap();
    assert!(folder.refusal().ends_with("no model.safetensors here"));
    let message = folder.write("pytorch_model.bin", "x").refusal();
    assert!(
        message.ends_with("no model.safetensors here, only PyTorch files: convert them to safetensors"),
        "{message}"
    );
}

#[test]
fn damaged_headers_are_named() {
    let with_header = |json: &str, data: usize| {
        let mut file = (json.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(json.as_bytes());
        file.resize(file.len() + data, 0);
        file
    };
    let two = |first: &str, second: &str| {
        with_header(
            &format!(
                r#"{{"a":{{"dtype":"F32","shape":[1],"data_offsets":{first}}},"b":{{"dtype":"F32","shape":[1],"data_offsets":{second}}}}}"#
            ),
            8,
        )
    };
    let table = [
        (vec![1, 2, 3], "shorter than the 8 bytes of a header's length"),
        (u64::MAX.to_le_bytes().to_vec(), "a header of 18446744073709551615 bytes, but at most 0 are possible"),
        (with_header("[]", 0), "header: invalid type: sequence, expected a map of tensor names"),
        (two("[0,4]", "[0,4]"), "tensor `b` is at 0..4, expected a start at 4"),
        (two("[0,4]", "[5,8]"), "tensor `b` is at 5..8, expected a start at 4"),
        (two("[0,4]", "[4,12]"), "tensor `b` is at 4..12, expected a start at 4 and an end by 8"),
        (two("[0,4]", "[4,6]"), "tensor `b` has 2 bytes, which F32 [1] does not fill"),
        (two("[4,0]", "[4,8]"), "tensor `a` is at 4..0"),
        (with_header(r#"{"a":{"dtype":"F99","shape":[],"data_offsets":[0,0]}}"#, 0), "`a`: unknown variant `F99`"),
        (
            with_header(r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}"#, 0),
            "tensor `a` has 0 bytes, which F32 [4294967296, 4294967296, 4] does not fill",
        ),
        (with_header(r#"{"__metadata__":{"a":1}}"#, 0), "`__metadata__`: invalid type: integer `1`, expected a string"),
        (with_header(r#"{"__metadata__":{},"__metadata__":{}}"#, 0), "`__metadata__` comes twice"),
        (with_header("{}", 3), "3 bytes of data, but the header describes 0"),
    ];
    for (file, fragment) in table {
        let folder = Folder::of("llama");
        let message = folder.write(MODEL, file).refusal();
        assert!(
            message.contains("model.safetensors: damaged safetensors file: ") && message.contains(fragment),
            "{message}"
        );
    }
}
