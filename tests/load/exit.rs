//! Exit blocks: read, written, refused.

use crate::folder::{Folder, Tensors};
use crate::grown::grown;
use eesd::load::{Checkpoint, ExitBlock, most_promising};
use eesd::model::{ExitWeights, Matrix};
use std::collections::BTreeMap;

/// An untrained block of the folder's model, written beside it.
fn save(folder: &Folder, file: &str, after: usize, own_head: bool) {
    let checkpoint = folder.open().unwrap();
    let weights = checkpoint.weights();
    let head: Option<Matrix<'_>> = own_head.then_some(weights.head);
    let exit = ExitWeights { head, ..ExitWeights::from_model(&weights, after, 3) };
    let metadata = BTreeMap::from([("loss".to_string(), "1.25".to_string()), ("format".into(), "other".into())]);
    ExitBlock::save(&folder.path(file), &exit, &metadata, &checkpoint).unwrap();
}

#[test]
fn what_is_saved_is_what_is_opened() {
    for (name, own_head) in [("llama", true), ("qwen2", false), ("qwen3", true), ("mistral", false)] {
        let folder = Folder::of(name);
        save(&folder, "exit-2.safetensors", 2, own_head);
        save(&folder, "exit-1.safetensors", 1, own_head);
        let left_over = std::fs::read_dir(folder.path(""))
            .unwrap()
            .any(|e| e.unwrap().path().extension().is_some_and(|e| e == "tmp"));
        assert!(!left_over);

        let checkpoint = folder.open().unwrap();
        let blocks = checkpoint.exit_blocks().unwrap();
        assert_eq!(blocks.iter().map(ExitBlock::after).collect::<Vec<_>>(), [1, 2]);
        let block = &blocks[1];
        assert_eq!(block.path(), folder.path("exit-2.safetensors"));
        assert_eq!(block.metadata()["loss"], "1.25");
        assert_eq!(block.metadata()["format"], "eesd-exit-1");
        assert_eq!(block.metadata()["exit_layer"], "2");
        assert_eq!(block.metadata()["base_fingerprint"], checkpoint.fingerprint());
        assert_eq!(block.bytes(), 2 * block.parameters());

        let (model, exit) = (checkpoint.weights(), block.weights());
        let (a, b) = (&model.layers[3], &exit.layer);
        assert_eq!((a.q.bytes, a.o.bytes, a.gate.bytes), (b.q.bytes, b.o.bytes, b.gate.bytes));
        assert_eq!(a.k_bias.map(|bias| bias.bytes), b.k_bias.map(|bias| bias.bytes));
        assert_eq!(a.q_norm.map(|norm| norm.bytes), b.q_norm.map(|norm| norm.bytes));
        assert_eq!(exit.norm.bytes, model.norm.bytes);
        assert_eq!(exit.head.map(|head| head.bytes), own_head.then_some(model.head.bytes));
        // Hugging Face's own reader takes it too.
        assert_eq!(Tensors::read(block.path()).0.iter().map(|t| t.3.len() as u64).sum::<u64>(), block.bytes());
    }
}

#[test]
fn a_head_may_cover_the_first_tokens_only() {
    let folder = Folder::of("llama");
    let checkpoint = folder.open().unwrap();
    let weights = checkpoint.weights();
    let opened = |rows: usize| {
        let bytes = weights.head.bytes.repeat(2)[..rows * weights.head.cols * 2].to_vec();
        let head = Some(Matrix { rows, bytes: &bytes, ..weights.head });
        let exit = ExitWeights { head, ..ExitWeights::from_model(&weights, 1, 3) };
        ExitBlock::save(&folder.path("exit-1.safetensors"), &exit, &BTreeMap::new(), &checkpoint).unwrap();
        checkpoint.open_exit(&folder.path("exit-1.safetensors"))
    };
    for rows in [1, 300, 512] {
        let block = opened(rows).unwrap();
        assert_eq!((block.draft_vocab(), block.weights().head.unwrap().rows), (rows, rows));
    }
    for rows in [0, 513] {
        let message = opened(rows).err().unwrap().to_string();
        assert!(message.contains(&format!("`exit.lm_head.weight` is [{rows}, 128]")), "{message}");
    }
}

#[test]
fn a_head_may_be_that_of_listed_tokens() {
    let folder = Folder::of("llama");
    let checkpoint = folder.open().unwrap();
    let weights = checkpoint.weights();
    let path = folder.path("exit-1.safetensors");
    let saved = |ids: Option<&[u32]>, rows: Option<usize>| {
        let head = rows.map(|rows| Matrix { rows, bytes: &weights.head.bytes[..rows * 128 * 2], ..weights.head });
        let exit = ExitWeights { head, draft_ids: ids, ..ExitWeights::from_model(&weights, 1, 3) };
        ExitBlock::save(&path, &exit, &BTreeMap::new(), &checkpoint).unwrap();
        (exit.check(checkpoint.geometry()), checkpoint.open_exit(&path))
    };
    let ids = [3, 4, 100, 511];
    let (checked, block) = saved(Some(&ids), Some(4));
    let block = block.unwrap();
    assert_eq!((checked, block.draft_vocab()), (Ok(()), 4));
    assert_eq!(block.weights().draft_ids, Some(&ids[..]));
    let tensors = Tensors::read(&path).0;
    let (_, dtype, shape, bytes) = tensors.iter().find(|tensor| tensor.0 == "exit.draft_ids").unwrap();
    assert_eq!((*dtype, &shape[..]), (safetensors::Dtype::I64, &[4][..]));
    assert_eq!(*bytes, ids.map(|id| i64::from(id).to_le_bytes()).concat());
    assert_eq!(tensors.iter().map(|t| t.3.len() as u64).sum::<u64>(), block.bytes());
    assert_eq!(block.parameters(), saved(None, Some(4)).1.unwrap().parameters(), "ids are no parameters");

    for (ids, rows, fragment) in [
        (&ids[..], Some(5), "tensor `exit.draft_ids` is [4] in I64, expected [5] in I64, a token for each row"),
        (&ids, None, "unexpected tensor `exit.draft_ids`: there is no `exit.lm_head.weight` whose rows it would name"),
        (&[3, 4, 4], Some(3), "`exit.draft_ids` is token 4 after token 4, at 2, expected ascending tokens, each once"),
        (&[3, 9, 4], Some(3), "is token 4 after token 9, at 2, expected ascending"),
        (&[3, 4, 512], Some(3), "is token 512, at 2, expected tokens below 512"),
    ] {
        let (checked, opened) = saved(Some(ids), rows);
        let message = opened.err().expect(fragment).to_string();
        assert!(message.contains("exit-1.safetensors: ") && message.contains(fragment), "{message}");
        assert!(checked.unwrap_err().starts_with("draft_ids "), "{fragment}");
    }
    // What no writer of ours would write.
    for (at, bytes, fragment) in [
        (0, &(-1i64).to_le_bytes()[..], "`exit.draft_ids` is -1, at 0, expected a token"),
        (4, &[1], "is 4294967299, at 0, expected a token"),
        (3, &[1], "is token 4 after token 16777219, at 1, expected ascending"),
    ] {
        saved(Some(&ids), Some(4)).1.unwrap();
        let mut file = std::fs::read(&path).unwrap();
        let header = u64::from_le_bytes(*file.first_chunk().unwrap()) as usize;
        let mut listed = file.split_off(8 + header); // the list comes first
        listed[at..at + bytes.len()].copy_from_slice(bytes);
        std::fs::write(&path, [file, listed].concat()).unwrap();
        let message = checkpoint.open_exit(&path).err().expect(fragment).to_string();
        assert!(message.contains("exit-1.safetensors: ") && message.contains(fragment), "{message}");
    }
    saved(Some(&ids), Some(4)).1.unwrap();
    edit(&folder, "exit-1.safetensors", "\"I64\"", "\"F64\"");
    let message = checkpoint.open_exit(&path).err().unwrap().to_string();
    assert!(message.contains("`exit.draft_ids` is [4] in F64, expected [4] in I64"), "{message}");
}

#[test]
fn a_failed_save_leaves_the_old_file_and_nothing_else() {
    let folder = Folder::of("llama");
    std::fs::create_dir(folder.path("exit-1.safetensors")).unwrap();
    let checkpoint = folder.open().unwrap();
    let exit = ExitWeights::from_model(&checkpoint.weights(), 1, 0);
    let path = folder.path("exit-1.safetensors");
    let files = || std::fs::read_dir(folder.path("")).unwrap().count();
    let before = files();
    let error = ExitBlock::save(&path, &exit, &BTreeMap::new(), &checkpoint).unwrap_err();
    assert!(error.to_string().contains("exit-1.safetensors: "), "{error}");
    assert_eq!(files(), before);
}

/// Rewrites the header of an exit block by replacing a text in it.
fn edit(folder: &Folder, file: &str, from: &str, to: &str) {
    let bytes = std::fs::read(folder.path(file)).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let header = String::from_utf8(header.to_vec()).unwrap();
    assert!(header.contains(from), "{header}");
    let header = header.replace(from, to);
    folder.write(file, [(header.len() as u64).to_le_bytes().as_slice(), header.as_bytes(), data].concat());
}

#[test]
fn blocks_that_do_not_fit_are_refused() {
    let fingerprint = Folder::of("llama").open().unwrap().fingerprint().to_string();
    let missing = format!("not an exit block of this model: base_fingerprint is missing, expected {fingerprint}");
    let table = [
        ("\"base_".into(), "\"bose_".into(), missing),
        (
            "\"base_geometry_2\":\"".to_string(),
            "\"base_geometry_2\":\"0123".to_string(),
            "not an exit block of this model: base_geometry_2 is \"0123".into(),
        ),
        (
            "eesd-exit-1".into(),
            "eesd-exit-9".into(),
            "`__metadata__.format` is \"eesd-exit-9\", expected \"eesd".into(),
        ),
        ("\"exit_layer\":\"2\"".into(), "\"exit_layer\":\"0\"".into(), "`__metadata__.exit_layer` is \"0\", ex".into()),
        ("\"exit_layer\":\"2\"".into(), "\"exit_layer\":\"4\"".into(), "is \"4\", expected a layer in 1..=3".into()),
        ("\"exit_layer\":\"2\"".into(), "\"exit_layer\":\"1\"".into(), "is \"1\", expected \"2\", as the fil".into()),
        ("exit.norm.weight".into(), "exit.morn.weight".into(), "unexpected tensor `exit.morn.weight`".into()),
        ("[64,128]".into(), "[128,64]".into(), "is [128, 64] in BF16, expected [64, 128] in F32".into()),
    ];
    for (from, to, fragment) in table {
        let folder = Folder::of("llama");
        save(&folder, "exit-2.safetensors", 2, true);
        edit(&folder, "exit-2.safetensors", &from, &to);
        let message = folder.open().unwrap().exit_blocks().err().expect(&fragment).to_string();
        assert!(message.contains("exit-2.safetensors: ") && message.contains(&fragment), "{message}");
    }
}

#[test]
fn a_block_of_another_model_is_refused_though_its_shapes_fit() {
    let (llama, other) = (Folder::of("llama"), Folder::of("llama"));
    other.set("config.json", serde_json::json!({"rms_norm_eps": 1e-6}));
    save(&llama, "exit-1.safetensors", 1, true);
    let path = llama.path("exit-1.safetensors");
    assert!(llama.open().unwrap().open_exit(&path).is_ok());
    let message = other.open().unwrap().open_exit(&path).err().unwrap().to_string();
    assert!(message.contains("exit-1.safetensors: not an exit block of this model"), "{message}");
    let absent = llama.open().unwrap().open_exit(&llama.path("absent")).err().unwrap().to_string();
    assert!(absent.ends_with("absent: entity not found"), "{absent}");
}

#[cfg(feature = "bundled-model")]
#[test]
fn the_bundled_model_has_its_three_blocks() {
    let bundled = Checkpoint::bundled().unwrap();
    assert_eq!((bundled.name(), bundled.parameters()), ("pycode-4m", 3_935_424));
    let blocks = bundled.exit_blocks().unwrap();
    assert_eq!(blocks.iter().map(ExitBlock::after).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(blocks.iter().all(|block| block.weights().head.is_some()));
    assert_eq!(eesd::load::bundled_prompts().len(), 32);
    assert!(eesd::load::bundled_prompts()[0].starts_with("def fibonacci(n):\n"));

    // The same files as a folder are the same model.
    let folder =
        Checkpoint::open(std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/pycode-4m"))).unwrap();
    assert_eq!(folder.fingerprint(), bundled.fingerprint());
    assert_eq!(folder.exit_blocks().unwrap().len(), 3);
}

#[test]
fn a_model_in_shards_has_its_block() {
    let folder = grown(32);
    let deeper = Checkpoint::open(folder.path()).unwrap();
    assert_eq!((deeper.geometry().layers, deeper.parameters()), (32, 13_381_824));
    assert_eq!(deeper.exit_blocks().unwrap().iter().map(ExitBlock::after).collect::<Vec<_>>(), [3]);
}

#[cfg(not(feature = "bundled-model"))]
#[test]
fn without_its_feature_the_bundled_model_says_so() {
    let message = Checkpoint::bundled().err().unwrap().to_string();
    assert_eq!(message, "this binary was built without the feature `bundled-model`: give a model folder with -m");
}

/// What a block's file says of its acceptance decides which one is taken; where it says nothing, or nothing sensible, some
/// acceptance is assumed, and the cheapest one is.
#[test]
fn the_most_promising_block_is_the_one_whose_file_says_so() {
    let folder = Folder::of("llama");
    let save = |after: usize, overlap: Option<&str>| {
        let checkpoint = folder.open().unwrap();
        let exit = ExitWeights::from_model(&checkpoint.weights(), after, 3);
        let metadata = overlap.map(|overlap| ("held_out_overlap".to_owned(), overlap.to_owned())).into_iter().collect();
        ExitBlock::save(&folder.path(&format!("exit-{after}.safetensors")), &exit, &metadata, &checkpoint).unwrap();
    };
    for (overlaps, best, said) in [
        ([Some("0.5"), Some("0.99"), Some("0.6")], 2, true),
        ([Some("0.9"), Some("0.8"), Some("0.91")], 1, true),
        ([None, None, None], 1, false),
        ([Some("much"), Some("NaN"), Some("7")], 1, false),
        ([Some("0.1"), None, Some("0.2")], 2, false),
    ] {
        overlaps.iter().enumerate().for_each(|(i, overlap)| save(i + 1, *overlap));
        let checkpoint = folder.open().unwrap();
        let (blocks, weights) = (checkpoint.exit_blocks().unwrap(), checkpoint.weights());
        let taken = &blocks[most_promising(&blocks, &weights).unwrap()];
        let promise = taken.promise(&weights);
        assert_eq!((taken.after(), promise.held_out), (best, said), "{overlaps:?}: {promise}");
        assert!((1..=16).contains(&promise.drafts), "{promise}");
        assert!(blocks.iter().all(|block| block.promise(&weights).speed_up <= promise.speed_up));
    }
    assert_eq!(most_promising(&[], &folder.open().unwrap().weights()), None);
}
