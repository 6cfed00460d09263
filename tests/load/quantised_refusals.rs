//! Quantised folders that are refused: by a key of `quantization_config`, or by a tensor that is not what it announces.

use crate::folder::{Folder, Tensors};
use safetensors::Dtype;
use serde_json::json;

const MODEL: &str = "model.safetensors";
const UP: &str = "model.layers.0.mlp.up_proj";

/// Says all rows of a table whose folder is not refused with these words, of this file.
struct Refusals(&'static str, Vec<String>);

impl Refusals {
    fn expect(&mut self, folder: &Folder, row: &str, fragment: &str) {
        let message = folder.open().err().map_or("opened".into(), |error| error.to_string());
        if !(message.contains(self.0) && message.contains(fragment)) {
            self.1.push(format!("{row}, expected {fragment}: {message}"));
        }
    }
}

impl Drop for Refusals {
    fn drop(&mut self) {
        assert!(self.1.is_empty(), "\n{}", self.1.join("\n"));
    }
}

/// What a change of a fixture's `quantization_config` is refused with.
#[test]
fn configurations_are_refused_by_name() {
    let weights = "/config_groups/group_0/weights";
    let of_weights = |key: &str| format!("{weights}/{key}");
    let table = [
        (
            "awq",
            "/quant_method",
            json!("bitsandbytes"),
            "quant_method` `bitsandbytes` is not supported (supported: com",
        ),
        ("awq", "/quant_method", json!("mxfp4"), "`quantization_config.quant_method` `mxfp4` is not supported"),
        ("awq", "/quant_method", json!("eetq"), "`quantization_config.quant_method` `eetq` is not supported"),
        (
            "awq",
            "/quant_method",
            json!(null),
            "`quantization_config.quant_method` is null, expected compressed-tensors",
        ),
        ("awq", "/version", json!("gemv"), "`quantization_config.version` `gemv` is not supported (supported: gemm)"),
        ("awq", "/bits", json!(3), "`quantization_config.bits` `3` is not supported (supported: 4 bits)"),
        ("awq", "/bits", json!(null), "`quantization_config.bits` is null, expected 4"),
        (
            "awq",
            "/group_size",
            json!(0),
            "`quantization_config.group_size` is 0, expected a whole number above 0, or -1",
        ),
        ("awq", "/modules_to_not_convert", json!([1]), "`quantization_config.modules_to_not_convert` is an array of 1"),
        ("gptq-v1", "/bits", json!(2), "`quantization_config.bits` `2` is not supported (supported: 4 and 8 bits)"),
        ("gptq-v1", "/bits", json!(3), "`quantization_config.bits` `3` is not supported"),
        ("gptq-v1", "/bits", json!(null), "`quantization_config.bits` is null, expected 4 or 8"),
        ("gptq-v1", "/checkpoint_format", json!("marlin"), "`quantization_config.checkpoint_format` `marlin` is not"),
        ("gptq-v1", "/pack_dtype", json!("int16"), "`quantization_config.pack_dtype` `int16` is not supported"),
        ("gptq-v1", "/is_marlin_format", json!(true), "`quantization_config.is_marlin_format` `true` is not supported"),
        ("gptq-v1", "/adapter", json!({"name": "lora"}), "`quantization_config.adapter`"),
        (
            "gptq-v1",
            "/group_size",
            json!(-2),
            "`quantization_config.group_size` is -2, expected a whole number above 0",
        ),
        ("gptq-v1", "/dynamic", json!({"+:(": {}}), "`quantization_config.dynamic` is \"+:(\", expected a regular"),
        ("gptq-v1", "/dynamic", json!({"+:a)|(b": {}}), "`quantization_config.dynamic` is \"+:a)|(b\", expected a reg"),
        (
            "gptq-v1",
            "/dynamic",
            json!({"up_proj": {"bits": 3}}),
            "`quantization_config.dynamic.up_proj.bits` `3` is not",
        ),
        (
            "gptq-v1",
            "/dynamic",
            json!({"up_proj": 3}),
            "`quantization_config.dynamic.up_proj` is 3, expected an object",
        ),
        ("fp8-block", "/fmt", json!("e5m2"), "`quantization_config.fmt` `e5m2` is not supported (supported: e4m3)"),
        ("fp8-block", "/weight_block_size", json!([128]), "`quantization_config.weight_block_size` is an array of 1"),
        ("fp8-block", "/weight_block_size", json!([0, 4]), "`quantization_config.weight_block_size` is an array of 2"),
        (
            "ct-int4-group",
            "/config_groups",
            json!(null),
            "`quantization_config.config_groups` is null, expected an obj",
        ),
        (
            "ct-int4-group",
            "/sparsity_config",
            json!({"format": "sparse-24-bitmask"}),
            "sparsity_config.format` `sparse",
        ),
        ("ct-int4-group", "/transform_config", json!({"config_groups": {"u": {}}}), "transform_config.config_groups`"),
        (
            "ct-int4-group",
            "/config_groups/group_0/format",
            json!("nvfp4-pack-quantized"),
            "group_0.format` `nvfp4-pack-",
        ),
        (
            "ct-int4-group",
            "/config_groups/group_0/format",
            json!("marlin-24"),
            "group_0.format` `marlin-24` is not sup",
        ),
        ("ct-int4-group", "/ignore", json!(["re:*"]), "`quantization_config.ignore` is \"re:*\", expected a regular"),
        (
            "ct-int4-group",
            "/ignore",
            json!(vec!["x"; 1025]),
            "entries of `quantization_config.ignore`: 1025 (at most 10",
        ),
        ("ct-int4-group", "/ignore", json!([format!("re:{}", "a".repeat(1025))]), "1025 (at most 1024)"),
        (
            "ct-int4-group",
            &of_weights("num_bits"),
            json!(2),
            "weights.num_bits` `2` is not supported (supported: 4 and",
        ),
        (
            "ct-int4-group",
            &of_weights("type"),
            json!("float"),
            "weights.type` `float` is not supported (supported: int)",
        ),
        (
            "ct-int4-group",
            &of_weights("strategy"),
            json!("tensor_group"),
            "weights.strategy` `tensor_group` is not sup",
        ),
        (
            "ct-int4-group",
            &of_weights("group_size"),
            json!(null),
            "weights.group_size` is null, expected a whole number",
        ),
        ("ct-int4-group", &of_weights("dynamic"), json!("local"), "weights.dynamic` is \"local\", expected false"),
        ("ct-int4-group", &of_weights("actorder"), json!("up"), "weights.actorder` is \"up\", expected \"group\""),
        (
            "ct-fp8-channel",
            &of_weights("symmetric"),
            json!(false),
            "weights.symmetric` is false, expected true, with fp8",
        ),
        ("ct-fp8-channel", &of_weights("num_bits"), json!(4), "weights.num_bits` `4` is not supported"),
        (
            "ct-fp8-block",
            &of_weights("block_structure"),
            json!([32]),
            "weights.block_structure` is an array of 1, expect",
        ),
        (
            "ct-int8-channel",
            &of_weights("strategy"),
            json!("block"),
            "weights.block_structure` is null, expected two whole",
        ),
        (
            "ct-int8-channel",
            weights,
            json!({"num_bits": 8, "type": "int", "strategy": "block", "block_structure": [64, 64]}),
            "weights.strategy` `block` is not supported",
        ),
        ("ct-int8-channel", &of_weights("actorder"), json!("group"), "weights.actorder` is \"group\", expected null"),
    ];
    let mut refusals = Refusals("config.json: ", Vec::new());
    for (fixture, path, value, fragment) in table {
        let folder = Folder::quantised(fixture);
        folder.announce(path, value);
        refusals.expect(&folder, &format!("{fixture}{path}"), fragment);
    }
}

/// Expressions that would search for longer than anybody waits are refused, not run.
#[test]
fn an_expression_that_never_ends_is_refused() {
    let folder = Folder::quantised("ct-int4-group");
    folder.announce("/ignore", json!(["re:((.+)+)+\\2Z"]));
    let message = folder.refusal();
    assert!(message.contains("`quantization_config.ignore` is \"re:"), "{message}");
}

/// What a change of a fixture's tensors is refused with.
#[test]
fn parts_are_checked_against_the_configuration() {
    type Change = fn(&mut Tensors);
    fn shape(tensors: &mut Tensors, part: &str, shape: &[usize]) {
        let name = format!("{UP}.{part}");
        tensors.0.iter_mut().filter(|tensor| tensor.0 == name).for_each(|tensor| tensor.2 = shape.to_vec());
    }
    fn dtype(tensors: &mut Tensors, part: &str, dtype: Dtype) {
        let name = format!("{UP}.{part}");
        tensors.0.iter_mut().filter(|tensor| tensor.0 == name).for_each(|tensor| tensor.1 = dtype);
    }
    fn remove(tensors: &mut Tensors, part: &str) {
        tensors.remove(&format!("{UP}.{part}"));
    }
    fn words<'a>(tensors: &'a mut Tensors, part: &str) -> &'a mut [[u8; 4]] {
        tensors.bytes(&format!("{UP}.{part}")).as_chunks_mut::<4>().0
    }
    let table: [(&str, Change, &str); 28] = [
        (
            "ct-int4-group",
            |t| remove(t, "weight_scale"),
            "up_proj.weight_scale` is missing, expected [128, 4] in F32 or",
        ),
        (
            "ct-int4-group",
            |t| remove(t, "weight_packed"),
            "up_proj.weight_packed` is missing, expected [128, 16] in I32",
        ),
        (
            "ct-int4-group",
            |t| shape(t, "weight_scale", &[4, 128]),
            "weight_scale` is [4, 128] in BF16, expected [128, 4]",
        ),
        (
            "ct-int4-group",
            |t| shape(t, "weight_packed", &[16, 128]),
            "weight_packed` is [16, 128] in I32, expected [128",
        ),
        (
            "ct-int4-group",
            |t| dtype(t, "weight_packed", Dtype::F32),
            "weight_packed` is [128, 16] in F32, expected [128",
        ),
        (
            "ct-int4-group",
            |t| dtype(t, "weight_scale", Dtype::I16),
            "up_proj.weight_scale` is [128, 4] in I16, expected",
        ),
        (
            "ct-int4-group",
            |t| words(t, "weight_shape")[0] = [64, 0, 0, 0],
            "weight_shape` is [64, 128], expected [128, 128]",
        ),
        (
            "ct-int4-group",
            |t| {
                t.add(&format!("{UP}.weight_zero_point"), Dtype::I8, &[128, 4]);
                t.bytes(&format!("{UP}.weight_zero_point"))[5] = 1;
            },
            "weight_zero_point` is not zero, expected zeros, since `quantization_config` says that weights are symmetric",
        ),
        (
            "ct-int4-group",
            |t| t.add(&format!("{UP}.weight"), Dtype::BF16, &[128, 128]),
            "unexpected tensor `model.layers.0.",
        ),
        (
            "ct-int4-group-asymmetric-with-head",
            |t| remove(t, "weight_zero_point"),
            "up_proj.weight_zero_point` is missing, expected [16, 2] in I32",
        ),
        (
            "ct-int4-group-asymmetric-with-head",
            |t| t.remove("lm_head.weight_packed"),
            "`lm_head.weight_packed` is missing, expected [128, 16] in I32",
        ),
        (
            "ct-int4-act-order",
            |t| remove(t, "weight_g_idx"),
            "up_proj.weight_g_idx` is missing, expected [128] in I32 or",
        ),
        (
            "ct-int4-act-order",
            |t| words(t, "weight_g_idx")[9] = [4, 0, 0, 0],
            "weight_g_idx` is 4 for input 9, expected a",
        ),
        (
            "ct-int4-act-order",
            |t| words(t, "weight_g_idx")[9] = [0xFE; 4],
            "weight_g_idx` is -16843010 for input 9, exp",
        ),
        (
            "ct-int4-act-order",
            |t| words(t, "weight_g_idx").fill([0; 4]),
            "a list with 128 inputs in group 0, expected 32",
        ),
        (
            "ct-int8-channel",
            |t| dtype(t, "weight", Dtype::F8_E4M3),
            "up_proj.weight` is [128, 128] in F8_E4M3, expected",
        ),
        (
            "ct-int8-channel",
            |t| shape(t, "weight_scale", &[1, 128]),
            "weight_scale` is [1, 128] in BF16, expected [128, 1]",
        ),
        (
            "ct-fp8-tensor",
            |t| dtype(t, "weight", Dtype::I8),
            "up_proj.weight` is [128, 128] in I8, expected [128, 128] in",
        ),
        (
            "ct-fp8-block",
            |t| shape(t, "weight_scale", &[2, 4]),
            "weight_scale` is [2, 4] in BF16, expected [4, 2] in F32",
        ),
        (
            "fp8-block",
            |t| remove(t, "weight_scale_inv"),
            "up_proj.weight_scale_inv` is missing, expected [4, 2] in F32",
        ),
        (
            "fp8-block",
            |t| dtype(t, "weight", Dtype::F8_E5M2),
            "up_proj.weight` is [128, 128] in F8_E5M2, expected [128",
        ),
        (
            "gptq-v1",
            |t| remove(t, "qzeros"),
            "up_proj.qzeros` is missing, expected [4, 16] in I32, as `quantization_conf",
        ),
        ("gptq-v1", |t| remove(t, "qweight"), "up_proj.qweight` is missing, expected [16, 128] in I32"),
        ("gptq-v1", |t| shape(t, "scales", &[128, 4]), "up_proj.scales` is [128, 4] in F16, expected [4, 128] in F32"),
        ("gptq-v1", |t| t.bytes(&format!("{UP}.bias"))[3] = 60, "unexpected tensor `model.layers.0.mlp.up_proj.bias`"),
        ("gptq-v2-act-order", |t| remove(t, "g_idx"), "up_proj.g_idx` is missing, expected [128] in I32 or I64"),
        (
            "gptq-v2-act-order",
            |t| words(t, "g_idx")[0] = [255; 4],
            "up_proj.g_idx` is -1 for input 0, expected a group, 0",
        ),
        ("awq", |t| shape(t, "qweight", &[16, 128]), "up_proj.qweight` is [16, 128] in I32, expected [128, 16] in I32"),
    ];
    let mut refusals = Refusals("model.safetensors: ", Vec::new());
    for (fixture, change, fragment) in table {
        let folder = Folder::quantised(fixture);
        refusals.expect(folder.change_tensors(MODEL, change), fixture, fragment);
    }
}

/// The configuration of one thing, the tensors of another.
#[test]
fn contradictions_are_refused() {
    let table = [
        ("ct-int4-group", "/config_groups/group_0/weights/group_size", json!(64), "weight_scale` is [128, 4] in BF16"),
        ("ct-int4-group", "/config_groups/group_0/weights/num_bits", json!(8), "weight_packed` is [128, 16] in I32"),
        ("ct-int4-group", "/config_groups/group_0/weights/symmetric", json!(false), "weight_zero_point` is missing"),
        ("ct-int4-group", "/ignore", json!(["re:.*up_proj"]), "quantised weights that `quantization_config` of config"),
        ("ct-int4-group", "/config_groups/group_0/targets", json!(["re:.*q_proj"]), "does not announce"),
        (
            "ct-mixed",
            "/config_groups/group_1/targets",
            json!(["lm_head"]),
            "up_proj.weight_packed`: quantised weights that",
        ),
        (
            "ct-int4-channel",
            "/config_groups/group_0/targets",
            json!(["Linear", "Embedding"]),
            "embed_tokens.weight_packed` is m",
        ),
        ("ct-fp8-channel", "/config_groups/group_0/weights/strategy", json!("tensor"), "expected [1] or [] in F32"),
        ("gptq-v1", "/bits", json!(8), "qweight` is [16, 128] in I32, expected [32, 128] in I32"),
        ("gptq-v1", "/group_size", json!(64), "qzeros` is [4, 16] in I32, expected [2, 16] in I32"),
        (
            "gptq-dynamic",
            "/dynamic",
            json!({"-:.*(k|down)_proj": {}, ".*up_proj": {"bits": 4, "group_size": 64}}),
            "`model.layers.0.mlp.down_proj.g_idx`: quantised",
        ),
        ("awq", "/group_size", json!(64), "qzeros` is [4, 16] in I32, expected [2, 16] in I32"),
        ("awq", "/modules_to_not_convert", json!(["mlp"]), "`model.layers.0.mlp.down_proj.qweight`: quantised weights"),
        (
            "fp8-block",
            "/weight_block_size",
            json!([128, 128]),
            "weight_scale_inv` is [4, 2] in F32, expected [1, 1] in",
        ),
        (
            "fp8-block",
            "/modules_to_not_convert",
            json!(["up_proj"]),
            "up_proj.weight_scale_inv`: quantised weights that",
        ),
    ];
    let mut refusals = Refusals("model.safetensors: ", Vec::new());
    for (fixture, path, value, fragment) in table {
        let folder = Folder::quantised(fixture);
        folder.announce(path, value);
        refusals.expect(&folder, &format!("{fixture}{path}"), fragment);
    }
}
