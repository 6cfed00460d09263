//! What is exported, what is taken in, what is refused.

use super::*;
use crate::load::Checkpoint;

#[test]
fn what_is_exported_is_what_was_taken_in() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf/");
    for name in ["llama", "qwen2", "qwen3"] {
        let checkpoint = Checkpoint::open(format!("{folder}{name}").as_ref()).unwrap();
        let model = checkpoint.weights();
        let exit = ExitWeights::from_model(&model, 1, 0);
        let dtype = exit.layer.q.format.dtype().unwrap();
        let ids = [2, 3, 40];
        let kinds = [(Head::Trained, None), (Head::Frozen, Some(&[0, 1, 2][..])), (Head::Shared, None)];
        for (kind, listed) in kinds.into_iter().chain([(Head::Trained, Some(&ids[..])), (Head::Frozen, Some(&ids))]) {
            let (layout, values) = Layout::new(&exit, &model, kind, listed).unwrap();
            assert_eq!(values.len(), layout.len());
            let exported = layout.export(&values, dtype).unwrap();
            let weights = exported.weights();
            weights.check(checkpoint.geometry()).unwrap();
            let (again, values_again) = Layout::new(&weights, &model, kind, None).unwrap();
            assert_eq!((&again, &values_again), (&layout, &values), "{name}");
            let rows = layout.draft_vocab().size;
            assert_eq!(weights.head.map(|head| head.rows), (kind != Head::Shared).then_some(rows));
            assert_eq!(weights.draft_ids, listed.filter(|listed| **listed == ids));
            assert_eq!(layout.trained() == layout.len(), kind == Head::Trained);
            let (row, head) = (model.head.cols * dtype.size(), model.head.bytes);
            for (column, &id) in listed.unwrap_or(&[]).iter().enumerate() {
                let found = &weights.head.unwrap().bytes[column * row..][..row];
                assert_eq!(found, &head[id as usize * row..][..row], "{name}: the row of token {id}");
            }
        }
        // Of a block that lists its tokens a part can be taken; tokens that it does not have begin as the model's.
        let (layout, mut values) = Layout::new(&exit, &model, Head::Trained, Some(&ids)).unwrap();
        values[layout.head.range.clone()].iter_mut().for_each(|x| *x = -*x);
        let block = layout.export(&values, dtype).unwrap();
        let head = |of: &ExitWeights<'_>, ids: &[TokenId]| {
            let (layout, values) = Layout::new(of, &model, Head::Trained, Some(ids)).unwrap();
            assert_eq!(layout.draft_ids.as_deref(), Some(ids));
            values[layout.head.range].to_vec()
        };
        let (width, negative) = (model.head.cols, |rows: &[f32]| rows.iter().map(|x| -x).collect::<Vec<f32>>());
        let (of_model, of_block) = (head(&exit, &[3, 7, 40]), head(&block.weights(), &[3, 7, 40]));
        assert_eq!(of_block[width..2 * width], of_model[width..2 * width], "{name}: token 7 is the model's");
        for known in [0, 2] {
            let row = known * width..(known + 1) * width;
            assert_eq!(of_block[row.clone()], negative(&of_model[row]), "{name}: tokens 3 and 40 are the block's");
        }
        for (kind, listed, why) in [
            (Head::Frozen, &[3, 2][..], "token 2 after token 3"),
            (Head::Frozen, &[1 << 20], "expected tokens below"),
            (Head::Trained, &[], "no token to draft"),
            (Head::Shared, &[2], "1 tokens to draft with the model's own head"),
        ] {
            let error = Layout::new(&block.weights(), &model, kind, Some(listed)).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
#[test]
fn a_block_of_eight_bits_is_what_its_values_say() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf/llama");
    let checkpoint = Checkpoint::open(folder.as_ref()).unwrap();
    let model = checkpoint.weights();
    for kind in [Head::Trained, Head::Shared] {
        let (layout, values) = Layout::new(&ExitWeights::from_model(&model, 1, 0), &model, kind, None).unwrap();
        let block = layout.export(&values, Rounding::Q8).unwrap();
        let (weights, rounded) = (block.weights(), block.values());
        weights.check(checkpoint.geometry()).unwrap();
        let q8 = crate::model::Format::Blocks(crate::model::BlockType::Q8_0);
        assert!([weights.layer.q, weights.layer.down].iter().chain(&weights.head).all(|matrix| matrix.format == q8));
        assert_eq!(weights.norm.dtype, Dtype::F32);
        let (again, values_again) = Layout::new(&weights, &model, kind, None).unwrap();
        assert_eq!((&again, &values_again), (&layout, &rounded));
        // Rounded once is rounded: what is measured of these values holds for the file.
        assert_eq!(layout.export(&rounded, Rounding::Q8).unwrap().values(), rounded);
        let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
        let far = values.iter().zip(&rounded).filter(|(a, b)| (*a - *b).abs() > largest / 220.0).count();
        assert!(rounded != values && far == 0, "{far} of {} are far off", values.len());
        if kind == Head::Shared {
            assert_eq!(rounded[layout.head.range.clone()], values[layout.head.range.clone()], "the model's head");
        }
    }
}
