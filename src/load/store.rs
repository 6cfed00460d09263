//! Writes safetensors files: exit blocks, and what a training run needs to go on.

use super::LoadError;
use super::source::map;
use super::tensors::Tensors;
use crate::TokenId;
use crate::model::{Dtype, Format, Matrix, RowOrder, Vector};
use crate::replace::Replacement;
use safetensors::Dtype as StoredDtype;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

/// A tensor as it goes into a file.
pub(crate) struct Stored<'a> {
    /// Number format.
    pub dtype: StoredDtype,
    /// Elements in each dimension.
    pub shape: Vec<usize>,
    /// Little-endian.
    pub bytes: Cow<'a, [u8]>,
}

/// Plain numbers as they are; what this format of files has no name for, or another order of rows, in f32.
impl<'a> From<Matrix<'a>> for Stored<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        let (shape, bytes) = (vec![matrix.rows, matrix.cols], matrix.bytes);
        match matrix.format.dtype() {
            Some(dtype) if matrix.order == RowOrder::AsStored => {
                Self { dtype: dtype.into(), shape, bytes: bytes.into() }
            }
            _ => Self { dtype: StoredDtype::F32, shape, bytes: widened(&matrix).into() },
        }
    }
}

impl<'a> From<Vector<'a>> for Stored<'a> {
    fn from(vector: Vector<'a>) -> Self {
        Self { dtype: vector.dtype.into(), shape: vec![vector.len], bytes: vector.bytes.into() }
    }
}

fn widened(matrix: &Matrix<'_>) -> Vec<u8> {
    let mut row = vec![0.0; matrix.cols];
    let mut bytes = Vec::with_capacity(matrix.rows * matrix.cols * size_of::<f32>());
    for index in 0..matrix.rows {
        matrix.dequantise_row(index, &mut row);
        bytes.extend(row.iter().flat_map(|number| number.to_le_bytes()));
    }
    bytes
}

/// In I64, as other libraries have indices.
impl From<&[TokenId]> for Stored<'_> {
    fn from(ids: &[TokenId]) -> Self {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| i64::from(id).to_le_bytes()).collect();
        Self { dtype: StoredDtype::I64, shape: vec![ids.len()], bytes: bytes.into() }
    }
}

impl From<Dtype> for StoredDtype {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Self::F32,
            Dtype::F16 => Self::F16,
            Dtype::BF16 => Self::BF16,
        }
    }
}

/// Writes tensors and metadata.
///
/// The file appears whole or not at all, and once this returns it outlives a loss of power.
///
/// # Errors
/// If the file cannot be written; an older one is still there then.
pub(crate) fn save(
    path: &Path,
    tensors: &BTreeMap<String, Stored<'_>>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), LoadError> {
    let replace = || {
        let new = Replacement::of(path)?;
        write(new.file(), &header(tensors, metadata), tensors)?;
        new.persist_durably()
    };
    replace().map(drop).map_err(|error| LoadError::io(path, error))
}

/// Metadata, and the vectors of these names, which must be there in f32; `None` where there is no such file.
///
/// # Errors
/// If the file cannot be read, is damaged, or lacks one of the vectors.
#[expect(clippy::type_complexity, reason = "a name for it would hide more than it tells")]
pub(crate) fn load(
    path: &Path,
    names: &[&str],
) -> Result<Option<(BTreeMap<String, String>, Vec<Vec<f32>>)>, LoadError> {
    let Some(bytes) = map(path)? else { return Ok(None) };
    let (tensors, metadata) = Tensors::of_file(path.to_path_buf(), bytes)?;
    let vector = |&name: &&str| {
        let shape: Vec<usize> = tensors.shape(name).unwrap_or(&[]).iter().take(1).copied().collect();
        match tensors.check(name, &shape)? {
            Format::Float(Dtype::F32) if shape.len() == 1 => Ok(tensors.vector(name).to_f32()),
            format => Err(LoadError::Tensor {
                path: path.to_path_buf(),
                tensor: name.into(),
                found: format!("{shape:?} in {format}"),
                expected: "a vector in f32".into(),
            }),
        }
    };
    let vectors = names.iter().map(vector).collect::<Result<_, _>>()?;
    Ok(Some((metadata, vectors)))
}

/// The file's first bytes: the header's length and the header, padded so that the data are aligned.
fn header(tensors: &BTreeMap<String, Stored<'_>>, metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let mut json = serde_json::Map::new();
    json.insert("__metadata__".into(), serde_json::json!(metadata));
    let mut end = 0;
    for (name, Stored { dtype, shape, bytes }) in tensors {
        let start = end;
        end += bytes.len();
        json.insert(name.clone(), serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, end] }));
    }
    let mut json = serde_json::Value::Object(json).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.append(&mut json);
    header
}

fn write(file: &File, header: &[u8], tensors: &BTreeMap<String, Stored<'_>>) -> std::io::Result<()> {
    let mut file = BufWriter::new(file);
    file.write_all(header)?;
    for tensor in tensors.values() {
        file.write_all(&tensor.bytes)?;
    }
    file.flush()
}
