//! Quantised folders that open: what of `quantization_config` is honoured, and what is noted.

use crate::folder::{Folder, Tensors};
use eesd::load::Checkpoint;
use eesd::model::{Matrix, e4m3};
use safetensors::Dtype;
use serde_json::json;

const MODEL: &str = "model.safetensors";
const UP: &str = "model.layers.0.mlp.up_proj";

fn up(checkpoint: &Checkpoint) -> Matrix<'_> {
    checkpoint.weights().layers[0].up
}

/// Whether a changed copy of a fixture has the matrices of the fixture.
fn assert_same(changed: &Folder, fixture: &str) {
    let (changed, original) = (changed.open().unwrap(), Folder::quantised(fixture).open().unwrap());
    let (a, b) = (up(&changed), up(&original));
    assert_eq!((a.format, a.bytes), (b.format, b.bytes), "{fixture}");
    let (a, b) = (changed.weights(), original.weights());
    assert_eq!((a.head.format, a.head.bytes), (b.head.format, b.head.bytes), "{fixture}");
}

#[test]
fn older_and_terser_spellings_mean_the_same() {
    let folder = Folder::quantised("awq");
    let config = json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMM"});
    folder.set("config.json", json!({"quantization_config": config}));
    assert_same(&folder, "awq");

    // Without `desc_act` groups are runs, listed or not.
    let folder = Folder::quantised("gptq-v1");
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32});
    folder.set("config.json", json!({"quantization_config": config}));
    folder.change_tensors(MODEL, |tensors| tensors.0.retain(|tensor| !tensor.0.ends_with("g_idx")));
    assert_same(&folder, "gptq-v1");

    // AutoFP8's format has one scale for each matrix.
    let folder = Folder::quantised("ct-fp8-tensor");
    let config = json!({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]});
    folder.set("config.json", json!({"quantization_config": config}));
    assert_same(&folder, "ct-fp8-tensor");

    // compressed-tensors: zero points of symmetric weights, no shape, a strategy that follows from the size.
    let folder = Folder::quantised("ct-int4-group");
    folder.announce("/config_groups/group_0/weights/strategy", json!(null));
    folder.announce("/config_groups/group_0/weights/actorder", json!("weight"));
    folder.announce("/config_groups/group_0/format", json!(null));
    folder.change_tensors(MODEL, |tensors| {
        tensors.0.retain(|tensor| !tensor.0.ends_with("weight_shape"));
        tensors.add(&format!("{UP}.weight_zero_point"), Dtype::I8, &[128, 4]);
    });
    let config = folder.json("config.json")["quantization_config"].clone();
    folder.remove_key("config.json", "quantization_config");
    folder.set("config.json", json!({"compression_config": config}));
    assert_same(&folder, "ct-int4-group");
}

/// A target that names a module goes before its class, and `ignore` before both.
#[test]
fn the_most_telling_target_counts() {
    let folder = Folder::quantised("ct-int4-group");
    let config = folder.json("config.json");
    let group = config["quantization_config"]["config_groups"]["group_0"].clone();
    let mut other = group.clone();
    other["weights"]["group_size"] = json!(64);
    other["targets"] = json!(["Linear", "re:.*_proj"]);
    let mut named = group;
    named["targets"] = json!(
        (0..2)
            .flat_map(|layer| {
                ["self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"]
                    .map(|map| format!("model.layers.{layer}.{map}_proj"))
            })
            .collect::<Vec<_>>()
    );
    folder.announce("/config_groups", json!({"a": named, "b": other}));
    assert_same(&folder, "ct-int4-group");
}

/// Numbers for `count` scales, all of them different.
fn scales(count: usize) -> Vec<u8> {
    (0..count).flat_map(|at| (0.5 + at as f32 / 64.0).to_le_bytes()).collect()
}

/// Sets a matrix's scales, in f32, and gives its codes.
fn rescale(folder: &Folder, codes: &str, scale: &str, shape: &[usize]) -> Vec<u8> {
    let mut stored = Vec::new();
    folder.change_tensors(MODEL, |tensors| {
        stored = tensors.bytes(codes).clone();
        tensors.remove(scale);
        tensors.0.push((scale.into(), Dtype::F32, shape.to_vec(), scales(shape.iter().product())));
    });
    stored
}

/// Groups and blocks need not divide a matrix, and groups of an odd length are f32 in memory.
#[test]
fn the_last_groups_and_blocks_may_be_shorter() {
    let only_up = json!(["re:.*up_proj"]);
    let unpacked =
        |codes: &[u8], row: usize, col: usize| f32::from(codes[row * 64 + col / 2] >> (col % 2 * 4) & 15) - 8.0;
    for (size, format) in [(48, "int4, groups of 48"), (43, "f32"), (200, "int4, groups of 128")] {
        let folder = Folder::quantised("ct-int4-channel");
        folder.announce("/config_groups/group_0/weights/strategy", json!("group"));
        folder.announce("/config_groups/group_0/weights/group_size", json!(size));
        folder.announce("/config_groups/group_0/targets", only_up.clone());
        leave_only(&folder, UP);
        let groups = 128usize.div_ceil(size);
        let codes = rescale(&folder, &format!("{UP}.weight_packed"), &format!("{UP}.weight_scale"), &[128, groups]);
        let checkpoint = folder.open().unwrap();
        assert_eq!(up(&checkpoint).format.to_string(), format);
        let scale = |row: usize, col: usize| 0.5 + (row * groups + col / size) as f32 / 64.0;
        assert_rows(up(&checkpoint), |row, col| unpacked(&codes, row, col) * scale(row, col));
        assert_eq!(checkpoint.notes().iter().any(|note| note.contains("kept in f32")), format == "f32");
    }

    let folder = Folder::quantised("fp8-block");
    folder.announce("/weight_block_size", json!([48, 80]));
    leave_only(&folder, UP);
    let codes = rescale(&folder, &format!("{UP}.weight"), &format!("{UP}.weight_scale_inv"), &[3, 2]);
    let checkpoint = folder.open().unwrap();
    let scale = |row: usize, col: usize| 0.5 + (row / 48 * 2 + col / 80) as f32 / 64.0;
    assert_rows(up(&checkpoint), |row, col| e4m3(codes[row * 128 + col]) * scale(row, col));
}

/// A list of inputs' groups that is no reordering of equal ones counts as it is, and has no packed form.
#[test]
fn groups_of_uneven_lengths_are_kept_in_f32() {
    const MOVED: usize = 9;
    let folder = Folder::quantised("gptq-v2-act-order");
    let original = folder.open().unwrap();
    folder.change_tensors(MODEL, |tensors| {
        let group = &mut tensors.bytes(&format!("{UP}.g_idx")).as_chunks_mut::<4>().0[MOVED];
        *group = ((u32::from_le_bytes(*group) + 1) % 4).to_le_bytes();
    });
    let checkpoint = folder.open().unwrap();
    let (found, expected) = (up(&checkpoint), up(&original));
    assert_eq!((&*found.format.to_string(), found.columns), ("f32", None));
    assert_eq!(
        checkpoint.notes(),
        [
            "config.json: `quantization_config`: groups of `model.layers.0.mlp.up_proj.weight` are of odd or uneven lengths, \
          or of fp8 numbers in act-order: kept in f32, 0.1 MB in memory"
        ]
    );
    let (mut row, mut moved) = (vec![0.0; 128], 0);
    for output in 0..expected.rows {
        expected.dequantise_row(output, &mut row);
        let mut changed = vec![0.0; 128];
        found.dequantise_row(output, &mut changed);
        moved += usize::from(row[MOVED] != changed[MOVED]);
        row[MOVED] = changed[MOVED];
        assert_eq!(row, changed, "row {output}");
    }
    assert!(moved > expected.rows / 2, "{moved} rows");
}

/// Makes all other quantised matrices plain ones.
fn leave_only(folder: &Folder, module: &str) {
    folder.change_tensors(MODEL, |tensors| {
        let quantised = |name: &str| name.contains("_proj.") && !name.contains(module);
        let names: Vec<String> =
            tensors.0.iter().map(|tensor| tensor.0.clone()).filter(|name| quantised(name)).collect();
        for name in &names {
            tensors.remove(name);
        }
        for name in names
            .iter()
            .filter_map(|name| name.strip_suffix(".weight_scale").or(name.strip_suffix(".weight_scale_inv")))
        {
            let outputs = if name.ends_with("k_proj") || name.ends_with("v_proj") { 64 } else { 128 };
            tensors.add(&format!("{name}.weight"), Dtype::BF16, &[outputs, 128]);
        }
    });
}

fn assert_rows(matrix: Matrix<'_>, expected: impl Fn(usize, usize) -> f32) {
    let mut numbers = vec![0.0; matrix.cols];
    for row in 0..matrix.rows {
        matrix.dequantise_row(row, &mut numbers);
        for (col, &number) in numbers.iter().enumerate() {
            assert_eq!(number, expected(row, col), "row {row}, column {col}");
        }
    }
}

#[test]
fn parts_may_lie_in_different_shards() {
    let folder = Folder::quantised("gptq-v1");
    let mut first = Tensors::read(&folder.path(MODEL));
    let second = first.0.extract_if(.., |tensor| tensor.0.ends_with("scales")).collect();
    let second = Tensors(second);
    let map = |tensors: &Tensors, file: &str| {
        tensors.0.iter().map(|tensor| (tensor.0.clone(), json!(file))).collect::<serde_json::Map<_, _>>()
    };
    let mut weight_map = map(&first, "a.safetensors");
    weight_map.extend(map(&second, "b.safetensors"));
    std::fs::remove_file(folder.path(MODEL)).unwrap();
    folder.write("a.safetensors", first.to_bytes()).write("b.safetensors", second.to_bytes());
    folder.write("model.safetensors.index.json", json!({ "weight_map": weight_map }).to_string());
    assert_same(&folder, "gptq-v1");

    let folder = folder.change_tensors("b.safetensors", |tensors| tensors.0[0].2.push(1));
    let message = folder.refusal();
    assert!(
        message.contains("b.safetensors: tensor `model.layers.0.mlp.down_proj.scales` is [4, 128, 1]"),
        "{message}"
    );
}

#[test]
fn what_is_not_computed_is_noted() {
    let notes = |fixture: &str| Folder::quantised(fixture).open().unwrap().notes().to_vec();
    for (fixture, expected) in [
        ("ct-int4-group", vec![]),
        ("awq-skipping", vec![]),
        (
            "ct-int8-channel",
            vec![
                "config.json: `quantization_config` also means activations or the KV cache \
                 (`quantization_config.config_groups.group_0.input_activations`): only weights are quantised here",
            ],
        ),
        (
            "ct-fp8-tensor",
            vec![
                "config.json: `quantization_config` also means activations or the KV cache \
                 (`quantization_config.config_groups.group_0.input_activations`, \
                 `quantization_config.kv_cache_scheme`, `model.layers.0.mlp.down_proj.input_scale` and 8 more): \
                 only weights are quantised here",
            ],
        ),
        ("ct-int4-act-order", vec![]),
        ("gptq-v2-act-order", vec![]),
        (
            "gptq-v1",
            vec![
                "config.json: no bias is announced for `model.layers.0.mlp.down_proj.bias` and 13 more: theirs are \
                 zeros, left out",
            ],
        ),
    ] {
        assert_eq!(notes(fixture), expected, "{fixture}");
    }
}

/// A head of its own that is stored though `tie_word_embeddings` is true.
#[test]
fn a_quantised_head_is_the_models_though_it_is_tied() {
    let folder = Folder::quantised("ct-int4-group-asymmetric-with-head");
    folder.set("config.json", json!({"tie_word_embeddings": true}));
    let checkpoint = folder.open().unwrap();
    assert_eq!(checkpoint.weights().head.format.to_string(), "int4, groups of 64 with minima");
    assert!(
        checkpoint.notes().iter().any(|note| note.contains("used as the model's head")),
        "{:?}",
        checkpoint.notes()
    );
}
