//! Tensors that are parts of a matrix, and the matrix that takes their place.

use super::super::source::Bytes;
use super::{Entry, Kind, Location, TensorFile, Tensors};
use crate::model::{Format, RowOrder};
use std::sync::Arc;

/// A tensor as its file has it.
pub(in super::super) struct Stored<'a> {
    /// Its number format, as the file calls it.
    pub(in super::super) dtype: String,
    pub(in super::super) shape: &'a [usize],
    pub(in super::super) bytes: &'a [u8],
}

impl Stored<'_> {
    /// Whether it is plain numbers, all of them zero.
    pub(in super::super) fn is_zero(&self) -> bool {
        matches!(&self.dtype[..], "F32" | "F16" | "BF16") && self.bytes.iter().all(|&byte| byte == 0)
    }
}

/// A matrix that was made of some tensors.
pub(in super::super) struct Made {
    pub(in super::super) format: Format,
    pub(in super::super) rows: usize,
    pub(in super::super) cols: usize,
    /// `rows · format.row_bytes(cols)` bytes.
    pub(in super::super) bytes: Vec<u8>,
    /// The column that each stored one is; `None`: they are stored in order.
    pub(in super::super) columns: Option<Vec<u32>>,
}

impl Tensors {
    /// A tensor as it is stored, whatever its number format.
    pub(in super::super) fn stored(&self, name: &str) -> Option<Stored<'_>> {
        let Location { file, entry } = self.entries.get(name)?;
        let bytes = &self.files[*file].bytes[entry.range.clone()];
        Some(Stored { dtype: entry.kind.to_string(), shape: &entry.shape, bytes })
    }

    /// Takes a tensor out.
    pub(in super::super) fn remove(&mut self, name: &str) {
        self.entries.remove(name);
    }

    /// Puts a matrix in the place of the tensors that it was made of, the first of which says the file to blame.
    pub(in super::super) fn replace(&mut self, parts: &[String], name: String, made: Made) {
        let path = self.path_of(&parts[0]).to_path_buf();
        parts.iter().for_each(|part| self.remove(part));
        let Made { format, rows, cols, bytes, columns } = made;
        let (kind, shape, range) = (Kind::Numbers(format), vec![rows, cols], 0..bytes.len());
        let entry = Entry { kind, shape, range, order: RowOrder::AsStored, columns };
        self.entries.insert(name, Location { file: self.files.len(), entry });
        self.files.push(TensorFile { path, bytes: Bytes::Made(Arc::new(bytes)) });
    }
}
