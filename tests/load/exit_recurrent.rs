//! Exit blocks with a matrix for their input and one for recurrent drafts.

use crate::folder::{Folder, Tensors};
use eesd::load::{ExitBlock, LoadError};
use eesd::model::{BlockType, Encoder, ExitWeights, Format, Matrix};
use std::collections::BTreeMap;
use std::num::NonZeroUsize;

const BLOCK: &str = "exit-1.safetensors";
/// Of the fixtures.
const HIDDEN: usize = 128;

/// Numbers of bf16 that are all different from their neighbours.
fn numbers(cols: usize) -> Vec<u8> {
    (0..HIDDEN * cols).flat_map(|i| half::bf16::from_f32((i % 251) as f32 / 64.0 - 1.0).to_le_bytes()).collect()
}

fn matrix(cols: usize, bytes: &[u8]) -> Matrix<'_> {
    Matrix::new(eesd::model::Dtype::BF16, HIDDEN, cols, bytes)
}

/// Saves a block with these matrices, and opens it.
fn saved(folder: &Folder, input: Option<Matrix<'_>>, recurrent: Option<Matrix<'_>>) -> Result<ExitBlock, LoadError> {
    let checkpoint = folder.open().unwrap();
    let exit = ExitWeights { input, recurrent, ..ExitWeights::from_model(&checkpoint.weights(), 1, 3) };
    ExitBlock::save(&folder.path(BLOCK), &exit, &BTreeMap::new(), &checkpoint).unwrap();
    checkpoint.open_exit(&folder.path(BLOCK))
}

#[test]
fn either_matrix_is_kept_and_counted() {
    let folder = Folder::of("llama");
    let (input, recurrent) = (numbers(HIDDEN), numbers(2 * HIDDEN));
    let (input, recurrent) = (matrix(HIDDEN, &input), matrix(2 * HIDDEN, &recurrent));
    let plain = saved(&folder, None, None).unwrap().parameters();
    let square = (HIDDEN * HIDDEN) as u64;
    for (with_input, with_recurrent, more) in [(false, false, 0), (true, false, 1), (false, true, 2), (true, true, 3)] {
        let given = [with_input.then_some(input), with_recurrent.then_some(recurrent)];
        let block = saved(&folder, given[0], given[1]).unwrap();
        let weights = block.weights();
        for (kept, given) in [weights.input, weights.recurrent].iter().zip(given) {
            let same = |a: &Matrix<'_>| (a.format, a.rows, a.cols, a.bytes.to_vec());
            assert_eq!(kept.as_ref().map(same), given.as_ref().map(same));
        }
        assert_eq!(block.parameters(), plain + more * square);
        assert_eq!(block.bytes(), 2 * block.parameters());
        let stored: usize = Tensors::read(block.path()).0.iter().map(|tensor| tensor.3.len()).sum();
        assert_eq!(stored as u64, block.bytes());
        // What older versions can read is written as they know it.
        let format = if more == 0 { "eesd-exit-1" } else { "eesd-exit-2" };
        assert_eq!(block.metadata()["format"], format);
        assert_eq!(weights.check(folder.open().unwrap().geometry()), Ok(()));
    }
}

#[test]
fn they_may_be_of_eight_bits() {
    let folder = Folder::of("llama");
    let (input, recurrent) = (numbers(HIDDEN), numbers(2 * HIDDEN));
    let eight = |of: Matrix<'_>| Encoder::Q8_0.encode_matrix(&of, NonZeroUsize::MIN).unwrap();
    let (input, recurrent) = (eight(matrix(HIDDEN, &input)), eight(matrix(2 * HIDDEN, &recurrent)));
    let block = saved(&folder, Some(input.view()), Some(recurrent.view())).unwrap();
    let weights = block.weights();
    for (kept, given) in [(weights.input.unwrap(), input.view()), (weights.recurrent.unwrap(), recurrent.view())] {
        assert_eq!(kept.format, Format::Blocks(BlockType::Q8_0));
        assert_eq!((kept.rows, kept.cols, kept.bytes), (given.rows, given.cols, given.bytes));
    }
    assert_eq!((&*block.metadata()["matrices"], &*block.metadata()["format"]), ("q8_0", "eesd-exit-2"));
}

/// Each fault has its own words, in a file and in weights that come from elsewhere.
#[test]
fn what_does_not_fit_is_refused() {
    let folder = Folder::of("llama");
    let (square, wide) = (numbers(HIDDEN), numbers(2 * HIDDEN));
    let (square, wide) = (matrix(HIDDEN, &square), matrix(2 * HIDDEN, &wide));
    for (input, recurrent, of_file, of_weights) in [
        (
            Some(wide),
            None,
            "tensor `exit.input.weight` is [128, 256] in BF16, expected [128, 128] in",
            "input is [128, 256]",
        ),
        (
            Some(square),
            Some(square),
            "tensor `exit.recurrent.weight` is [128, 128] in BF16, expected [128, 256] in",
            "recurrent is [128, 128]",
        ),
    ] {
        let message = saved(&folder, input, recurrent).err().unwrap().to_string();
        assert!(message.contains(BLOCK) && message.contains(of_file), "{message}");
        let checkpoint = folder.open().unwrap();
        let exit = ExitWeights { input, recurrent, ..ExitWeights::from_model(&checkpoint.weights(), 1, 3) };
        let message = exit.check(checkpoint.geometry()).unwrap_err();
        assert!(message.starts_with(of_weights), "{message}");
    }
    // What no writer of ours would write.
    let expect = |fragment: &str, change: &dyn Fn(Vec<u8>) -> Vec<u8>| {
        saved(&folder, Some(square), Some(wide)).unwrap();
        let file = std::fs::read(folder.path(BLOCK)).unwrap();
        folder.write(BLOCK, change(file));
        let message = folder.open().unwrap().open_exit(&folder.path(BLOCK)).err().expect(fragment).to_string();
        assert!(message.contains(BLOCK) && message.contains(fragment), "{message}");
    };
    expect("unexpected tensor `exit.input.weight`: blocks of \"eesd-exit-1\" have none", &|file| {
        replaced(file, "eesd-exit-2", "eesd-exit-1")
    });
    expect("`__metadata__.format` is \"eesd-exit-3\", expected \"eesd-exit-1\" or \"eesd-exit-2\"", &|file| {
        replaced(file, "eesd-exit-2", "eesd-exit-3")
    });
    expect("unexpected tensor `exit.recurrence.weigh`", &|file| {
        replaced(file, "exit.recurrent.weight", "exit.recurrence.weigh")
    });
}

/// A file with a text of its header replaced by one as long.
fn replaced(mut file: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = file.windows(from.len()).position(|window| window == from.as_bytes()).expect(from);
    file[at..at + to.len()].copy_from_slice(to.as_bytes());
    file
}
