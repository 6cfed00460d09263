//! Exit blocks on copies of their model: in other number formats, with other tokens, trained further.

use crate::folder::{Folder, Tensors};
use crate::tokenizer::sentencepiece;
use eesd::load::{ExitBlock, LoadError};
use eesd::model::{BlockType, Encoder, ExitWeights, Format, Matrix, OwnedMatrix};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;

const BLOCK: &str = "exit-1.safetensors";

/// An untrained block of the folder's model, written beside it.
fn save(folder: &Folder) {
    let checkpoint = folder.open().unwrap();
    let exit = ExitWeights::from_model(&checkpoint.weights(), 1, 3);
    ExitBlock::save(&folder.path(BLOCK), &exit, &BTreeMap::new(), &checkpoint).unwrap();
}

/// The block of `of` on the model in `folder`.
fn open(folder: &Folder, of: &Folder) -> Result<ExitBlock, LoadError> {
    folder.open().unwrap().open_exit(&of.path(BLOCK))
}

/// Rewrites a block's header.
fn edit_header(path: &Path, change: impl Fn(&mut Value)) {
    let file = std::fs::read(path).unwrap();
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header: Value = serde_json::from_slice(header).unwrap();
    change(&mut header);
    let header = header.to_string();
    std::fs::write(path, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), data].concat()).unwrap();
}

/// Takes keys out of a block's metadata, as if an earlier version had written it.
fn without_keys(path: &Path, keys: &[&str]) {
    edit_header(path, |header| {
        let metadata = header["__metadata__"].as_object_mut().unwrap();
        keys.iter().for_each(|key| assert!(metadata.remove(*key).is_some(), "{key}"));
    });
}

/// The model of the fixture `name` with the tensors that `chosen` picks in another number format.
fn copy_in(name: &str, dtype: Dtype, chosen: impl Fn(&str) -> bool) -> Folder {
    let folder = Folder::of(name);
    folder.change_tensors("model.safetensors", |tensors: &mut Tensors| {
        for (_, of, _, bytes) in tensors.0.iter_mut().filter(|tensor| chosen(&tensor.0)) {
            assert_eq!(*of, Dtype::BF16);
            let numbers = bytes.chunks_exact(2).map(|b| half::bf16::from_le_bytes([b[0], b[1]]).to_f32());
            *bytes = match dtype {
                Dtype::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
                Dtype::F16 => numbers.flat_map(|x| half::f16::from_f32(x).to_le_bytes()).collect(),
                other => panic!("{other}"),
            };
            *of = dtype;
        }
    });
    folder
}

#[test]
fn a_block_fits_its_model_in_every_format() {
    for name in ["llama", "qwen2", "qwen3", "mistral"] {
        let model = Folder::of(name);
        save(&model);
        let norms = |name: &str| name.contains("norm");
        for copy in [
            copy_in(name, Dtype::F32, |_| true),
            copy_in(name, Dtype::F16, |_| true),
            copy_in(name, Dtype::F32, norms),
            copy_in(name, Dtype::F16, |name| !norms(name)),
        ] {
            assert_ne!(copy.open().unwrap().fingerprint(), model.open().unwrap().fingerprint());
            let block = open(&copy, &model).unwrap();
            assert_eq!((block.after(), block.notes()), (1, &[][..]), "{name}");
        }
    }
}

/// Such have `base_fingerprint` alone, over the formats of the model that they were trained on.
#[test]
fn blocks_of_earlier_versions_fit_where_they_did_and_on_copies() {
    let later = ["base_geometry_2", "base_norms_2"];
    let model = Folder::of("llama");
    save(&model);
    without_keys(&model.path(BLOCK), &later);
    let mixed = copy_in("llama", Dtype::F32, |name| name.contains("norm"));
    for copy in [&model, &copy_in("llama", Dtype::F16, |_| true), &mixed] {
        assert_eq!(open(copy, &model).unwrap().notes(), [""; 0]);
    }
    // A block of the mixed model says so of itself, and nothing tells that it is the other one's too.
    save(&mixed);
    without_keys(&mixed.path(BLOCK), &later);
    assert!(open(&mixed, &mixed).is_ok());
    let message = open(&model, &mixed).err().unwrap().to_string();
    assert!(message.contains("not an exit block of this model: base_fingerprint is \""), "{message}");
}

#[test]
fn what_people_change_for_one_model_changes_nothing() {
    let model = Folder::of("mistral");
    save(&model);
    for change in [
        json!({"max_position_embeddings": 99}),
        json!({"sliding_window": 128}),
        json!({"model_type": "llama"}),
        json!({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000000.0}}),
    ] {
        let other = Folder::of("mistral");
        other.set("config.json", change.clone());
        assert!(open(&other, &model).is_ok(), "{change}");
    }
    for change in
        [json!({"rms_norm_eps": 1e-3}), json!({"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}})]
    {
        let other = Folder::of("mistral");
        other.set("config.json", change.clone());
        let message = open(&other, &model).err().expect("another model").to_string();
        assert!(message.contains("not an exit block of this model: base_geometry_2 is \""), "{change}: {message}");
    }
}

#[test]
fn another_fine_tune_is_told_and_no_error() {
    let model = Folder::of("llama");
    save(&model);
    let changed = |tensor: &str| {
        let other = Folder::of("llama");
        other.change_tensors("model.safetensors", |tensors| tensors.bytes(tensor)[..2].copy_from_slice(&[0, 0x42]));
        open(&other, &model).unwrap().notes().to_vec()
    };
    for norm in ["model.layers.2.input_layernorm.weight", "model.norm.weight"] {
        let notes = changed(norm);
        assert!(
            matches!(&notes[..], [note] if note.starts_with("exit-1.safetensors: trained on another model")),
            "{norm}"
        );
    }
    // What quantising changes is not looked at.
    assert_eq!(changed("model.layers.2.mlp.up_proj.weight"), [""; 0]);
}

#[test]
fn a_block_is_tied_to_its_vocabulary() {
    let of = |change: &dyn Fn(&mut Value)| {
        let folder = Folder::of("llama");
        let mut tokenizer = sentencepiece();
        change(&mut tokenizer);
        folder.write("tokenizer.json", tokenizer.to_string());
        folder
    };
    let (model, none) = (of(&|_| ()), Folder::of("llama"));
    save(&model);
    save(&none);
    // A token for an id that had none is another vocabulary, unless it is the name of such an id.
    let padded = of(&|json| json["model"]["vocab"]["[PAD400]"] = json!(400));
    let more = of(&|json| json["model"]["vocab"]["more"] = json!(400));
    let other = of(&|json| {
        let vocab = json["model"]["vocab"].as_object_mut().unwrap();
        let id = vocab.remove("o").unwrap();
        vocab.insert("x".into(), id);
    });
    for (folder, block, fits) in [
        (&model, &model, true),
        (&model, &none, true),
        (&none, &model, true),
        (&padded, &model, true),
        (&more, &model, false),
        (&other, &model, false),
        (&model, &other, false),
    ] {
        if !block.path(BLOCK).exists() {
            save(block);
        }
        let opened = open(folder, block).map(drop).map_err(|error| error.to_string());
        let refused = |message: &String| message.contains("exit block of this model: base_vocabulary_2 is \"");
        assert!(if fits { opened == Ok(()) } else { opened.as_ref().is_err_and(refused) }, "{opened:?}");
    }
}

#[test]
fn matrices_may_be_of_eight_bits() {
    let folder = Folder::of("llama");
    let checkpoint = folder.open().unwrap();
    let weights = checkpoint.weights();
    let plain = ExitWeights { head: Some(weights.head), ..ExitWeights::from_model(&weights, 1, 3) };
    let blocks =
        |matrix: Matrix<'_>| -> OwnedMatrix { Encoder::Q8_0.encode_matrix(&matrix, NonZeroUsize::MIN).unwrap() };
    let (q, down, head) = (blocks(plain.layer.q), blocks(plain.layer.down), blocks(weights.head));
    let mut exit = ExitWeights { head: Some(head.view()), ..plain };
    (exit.layer.q, exit.layer.down) = (q.view(), down.view());
    let path = folder.path(BLOCK);
    ExitBlock::save(&path, &exit, &BTreeMap::new(), &checkpoint).unwrap();

    let block = checkpoint.open_exit(&path).unwrap();
    let opened = block.weights();
    let q8 = Format::Blocks(BlockType::Q8_0);
    let same =
        |a: Matrix<'_>, b: Matrix<'_>| (a.format, a.rows, a.cols, a.bytes) == (b.format, b.rows, b.cols, b.bytes);
    assert!(same(opened.layer.q, exit.layer.q) && opened.layer.q.format == q8);
    assert!(same(opened.layer.down, exit.layer.down) && same(opened.head.unwrap(), head.view()));
    assert!(same(opened.layer.up, plain.layer.up), "what is plain stays plain");
    assert_eq!(block.metadata()["matrices"], "q8_0");
    assert_eq!(opened.check(checkpoint.geometry()), Ok(()));
    // Saved anew in plain numbers, it says nothing of blocks.
    ExitBlock::save(
        &folder.path("exit-2.safetensors"),
        &ExitWeights { after: 2, ..plain },
        block.metadata(),
        &checkpoint,
    )
    .unwrap();
    let plain_again = checkpoint.open_exit(&folder.path("exit-2.safetensors")).unwrap();
    assert!(!plain_again.metadata().contains_key("matrices"));
    drop((block, plain_again));

    let name = "exit.layer.self_attn.q_proj.weight";
    let damaged = |change: &dyn Fn(&mut Value)| {
        ExitBlock::save(&path, &exit, &BTreeMap::new(), &checkpoint).unwrap();
        edit_header(&path, change);
        checkpoint.open_exit(&path).err().expect("it is damaged").to_string()
    };
    // [128, 136]: 128 numbers a row, four blocks of 34 bytes.
    for (shape, fragment) in [
        (json!([136, 128]), "is [136, 128] in U8, expected [rows, 34 bytes for each block of q8_0] in U8"),
        (json!([64, 272]), "is [64, 256] in Q8_0, expected [128, 128] in"),
        (json!([128, 4, 34]), "is [128, 4, 34] in U8, expected [rows, 34 bytes"),
        (json!([17408]), "is [17408] in U8, expected [rows, 34 bytes"),
    ] {
        let message = damaged(&|header| header[name]["shape"] = shape.clone());
        assert!(message.contains("exit-1.safetensors: tensor `exit.layer.self_attn.q_proj.weight` "), "{message}");
        assert!(message.contains(fragment), "{message}");
    }
    let message = damaged(&|header| header["__metadata__"]["matrices"] = json!("q9"));
    assert!(message.contains("`__metadata__.matrices` is \"q9\", expected \"q8_0\""), "{message}");
    let message = damaged(&|header| drop(header["__metadata__"].as_object_mut().unwrap().remove("matrices")));
    assert!(message.contains("` is [") && message.contains("] in U8, expected ["), "{message}");
    let message = damaged(&|header| header["exit.norm.weight"]["dtype"] = json!("U8"));
    assert!(message.contains("does not fill"), "{message}");
}
