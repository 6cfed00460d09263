//! The bundled model grown deeper, as `tools/grow_model.py` grows it: a model on which speculation pays.

use half::bf16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

use eesd::load::{Checkpoint, ExitBlock};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m");
/// Layers of the bundled model, and how many of the first ones no layer is put between.
const LAYERS: usize = 8;
const KEPT: usize = 3;

/// A folder of the bundled model with `layers` layers, its weights in two shards, and the exit block after the third.
///
/// Each new layer is a copy of the one before it that adds a 32nd of what that one adds to the residual stream: every
/// layer says something, and drafts are about as good as on the bundled model.
pub fn grown(layers: usize) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |file: &str| folder.path().join(file);
    for file in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        std::fs::copy(Path::new(SOURCE).join(file), path(file)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&read("config.json")).unwrap();
    config["num_hidden_layers"] = json!(layers);
    std::fs::write(path("config.json"), config.to_string()).unwrap();

    let weights = grown_weights(layers);
    let names: Vec<&String> = weights.keys().collect();
    let mut files = BTreeMap::new();
    for (number, shard) in names.chunks(names.len().div_ceil(2)).enumerate() {
        let file = format!("model-{:05}-of-00002.safetensors", number + 1);
        let view = |name: &&String| {
            let (shape, bytes) = &weights[*name];
            (name.to_string(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap())
        };
        safetensors::serialize_to_file(shard.iter().map(view), None, &path(&file)).unwrap();
        files.extend(shard.iter().map(|name| (name.to_string(), file.clone())));
    }
    std::fs::write(path("model.safetensors.index.json"), json!({ "weight_map": files }).to_string()).unwrap();

    let model = Checkpoint::open(folder.path()).unwrap();
    let bundled = Checkpoint::open(Path::new(SOURCE)).unwrap();
    let blocks = bundled.exit_blocks().unwrap();
    let block = blocks.iter().find(|block| block.after() == KEPT).unwrap();
    ExitBlock::save(&path("exit-3.safetensors"), &block.weights(), block.metadata(), &model).unwrap();
    folder
}

fn read(file: &str) -> Vec<u8> {
    std::fs::read(Path::new(SOURCE).join(file)).unwrap()
}

/// Shape and bf16 bytes of each tensor.
fn grown_weights(layers: usize) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let bytes = read("model.safetensors");
    let source = SafeTensors::deserialize(&bytes).unwrap();
    let mut weights = BTreeMap::new();
    let mut grown = 0;
    for layer in 0..LAYERS {
        let copies = match layer.checked_sub(KEPT) {
            None => 1,
            Some(i) => 1 + (layers - LAYERS) * (i + 1) / (LAYERS - KEPT) - (layers - LAYERS) * i / (LAYERS - KEPT),
        };
        let prefix = format!("model.layers.{layer}.");
        for copy in 0..copies {
            for (name, tensor) in source.iter() {
                let Some(suffix) = name.strip_prefix(&prefix) else { continue };
                let adds = suffix == "self_attn.o_proj.weight" || suffix == "mlp.down_proj.weight";
                let factor = if adds && copy > 0 { 1.0 / 32.0 } else { 1.0 };
                let values = tensor.data().chunks_exact(2).map(|pair| bf16::from_le_bytes([pair[0], pair[1]]));
                let scaled = values.flat_map(|value| bf16::from_f32(value.to_f32() * factor).to_le_bytes()).collect();
                weights.insert(format!("model.layers.{grown}.{suffix}"), (tensor.shape().to_vec(), scaled));
            }
            grown += 1;
        }
    }
    assert_eq!(grown, layers);
    for (name, tensor) in source.iter().filter(|(name, _)| !name.contains(".layers.")) {
        weights.insert(name.to_string(), (tensor.shape().to_vec(), tensor.data().to_vec()));
    }
    weights
}
