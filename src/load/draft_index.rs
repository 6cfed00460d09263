//! The file behind `--draft-index`: texts that later runs look up.
//!
//! A safetensors file with one tensor, `tokens` U32 `[n]`: the texts one after the other, the oldest first, each ended by
//! 2³² − 1. Its metadata have `format` and the vocabulary that the tokens are of, as exit blocks do.

use super::header::Header;
use super::source::map;
use super::store::{self, Stored};
use super::{Checkpoint, LoadError, error};
use crate::TokenId;
use crate::draft::TEXT_END;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::path::Path;

const FORMAT_KEY: &str = "format";
const FORMAT: &str = "eesd-draft-index-1";
const TOKENS: &str = "tokens";

impl Checkpoint {
    /// The texts of a file that [`write_draft_index`](Self::write_draft_index) has left; none where there is no file.
    ///
    /// # Errors
    /// If it cannot be read, is damaged or something else, or its tokens are another model's.
    pub fn read_draft_index(&self, path: &Path) -> Result<Vec<TokenId>, LoadError> {
        let Some(bytes) = map(path)? else { return Ok(Vec::new()) };
        let header = Header::parse(&bytes).map_err(|message| LoadError::safetensors(path, message))?;
        let key = |key: &str, expected: String| LoadError::Key {
            path: path.to_path_buf(),
            key: format!("__metadata__.{key}"),
            found: header.metadata.get(key).map_or("missing".into(), |value| error::short(format!("{value:?}"))),
            expected,
        };
        if header.metadata.get(FORMAT_KEY).is_none_or(|format| format != FORMAT) {
            return Err(key(FORMAT_KEY, format!("{FORMAT:?}, as `--draft-index` writes it")));
        }
        if let Some((name, expected)) = self.base().other_vocabulary(&header.metadata) {
            return Err(key(name, format!("{expected:?}, this model's")));
        }
        let tensor = |found: String, expected: String| LoadError::Tensor {
            path: path.to_path_buf(),
            tensor: TOKENS.into(),
            found,
            expected,
        };
        let [(name, entry)] = &header.tensors[..] else {
            return Err(tensor(format!("one of {} tensors", header.tensors.len()), "the only one".into()));
        };
        if name != TOKENS || entry.dtype != Dtype::U32 || entry.shape.len() != 1 {
            let found = error::short(format!("`{name}`, {} {:?}", entry.dtype, entry.shape));
            return Err(tensor(found, format!("{} [n]", Dtype::U32)));
        }
        let numbers = bytes[entry.range.clone()].chunks_exact(4);
        let tokens: Vec<TokenId> = numbers.map(|n| TokenId::from_le_bytes([n[0], n[1], n[2], n[3]])).collect();
        let vocab = self.geometry().vocab_size;
        match tokens.iter().find(|&&token| token as usize >= vocab && token != TEXT_END) {
            Some(token) => Err(tensor(format!("one with token {token}"), format!("of tokens below {vocab}"))),
            None => Ok(tokens),
        }
    }

    /// Writes texts, each ended by [`TEXT_END`], in place of the file that is there.
    ///
    /// # Errors
    /// If it cannot be written; then the old one is there still.
    pub fn write_draft_index(&self, path: &Path, texts: &[TokenId]) -> Result<(), LoadError> {
        let mut metadata = BTreeMap::from([(FORMAT_KEY.to_owned(), FORMAT.to_owned())]);
        self.base().write_vocabulary(&mut metadata);
        let bytes: Vec<u8> = texts.iter().flat_map(|token| token.to_le_bytes()).collect();
        let tokens = Stored { dtype: Dtype::U32, shape: vec![texts.len()], bytes: bytes.into() };
        store::save(path, &BTreeMap::from([(TOKENS.to_owned(), tokens)]), &metadata)
    }
}

#[cfg(all(test, feature = "bundled-model"))]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_as_they_were_written_and_what_is_none_is_refused() {
        let model = Checkpoint::bundled().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts");
        assert_eq!(model.read_draft_index(&path).unwrap(), [0; 0]);
        for texts in [vec![], vec![1, 2, 3, TEXT_END, 4, TEXT_END]] {
            model.write_draft_index(&path, &texts).unwrap();
            assert_eq!(model.read_draft_index(&path).unwrap(), texts);
        }
        model.write_draft_index(&path, &[1, 1 << 20]).unwrap();
        let refused = |path: &Path| model.read_draft_index(path).unwrap_err().to_string();
        assert!(refused(&path).contains("tensor `tokens` is one with token 1048576, expected of tokens below"));
        std::fs::write(&path, "no such file").unwrap();
        assert!(refused(&path).contains("texts: damaged safetensors file"), "{}", refused(&path));
        let exit = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/pycode-4m/exit-2.safetensors");
        let found = refused(&exit);
        assert!(
            found.contains("`__metadata__.format` is \"") && found.contains("expected \"eesd-draft-index-1\""),
            "{found}"
        );
    }

    #[test]
    fn texts_of_another_vocabulary_are_refused() {
        let model = Checkpoint::bundled().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts");
        model.write_draft_index(&path, &[1, TEXT_END]).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(17).position(|key| key == b"base_vocabulary_2").unwrap() + 20;
        let digit = if bytes[at] == b'0' { b'1' } else { b'0' };
        std::fs::write(&path, [&bytes[..at], &[digit], &bytes[at + 1..]].concat()).unwrap();
        let error = model.read_draft_index(&path).unwrap_err().to_string();
        assert!(error.contains("`__metadata__.base_vocabulary_2` is") && error.contains("this model's"), "{error}");
    }
}
