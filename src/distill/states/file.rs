//! One file of hidden states: records of texts, in any order, that grow at the end.
//!
//! ```text
//! header   128 bytes: a line of text, filled up with spaces; what is kept, of which model
//! record   key u128 · rows u32 · checksum of the rows u32 · checksum of these 24 bytes u32 · 0 u32; then the rows
//! ```
//!
//! All numbers are little-endian; checksums are CRC-32. A record counts once it is whole, so a run that is killed while it
//! writes one loses just that: the next run cuts it off. What is damaged in any other way is noticed when it is read, and
//! made anew.

use crate::distill::DistillError;
use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const HEADER: usize = 128;
const MARK: &str = "eesd-states-";
const HEAD: usize = 32;

/// A file of states that is open, for this process alone.
pub struct StateFile {
    path: PathBuf,
    file: File,
    row_bytes: usize,
    /// Where the rows of each key begin, and how many they are.
    index: HashMap<u128, (u64, u32)>,
    /// Behind the last whole record.
    end: u64,
}

impl StateFile {
    /// Opens or makes the file at `path`, of states that `title` describes in one short line. What is cut off or replaced is
    /// told.
    ///
    /// # Errors
    /// If it cannot be read or written, is in use by another run, or holds something else.
    pub fn open(path: &Path, title: &str, row_bytes: usize) -> Result<(Self, Option<String>), DistillError> {
        let io = |source| DistillError::Io { path: path.to_path_buf(), source };
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).map_err(io)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => io(io::Error::other("in use by another run (expected one run at a time)")),
            TryLockError::Error(error) => io(error),
        })?;
        let mut states = Self { path: path.to_path_buf(), file, row_bytes, index: HashMap::new(), end: 0 };
        let note = states.take_in(title).map_err(io)?;
        Ok((states, note))
    }

    fn take_in(&mut self, title: &str) -> io::Result<Option<String>> {
        let mut header = format!("{MARK}1 {title}");
        let wide = HEADER - 1;
        header = format!("{header:<wide$}\n");
        let len = self.file.metadata()?.len();
        let mut found = vec![0; HEADER.min(len as usize)];
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_exact(&mut found)?;
        if found == header.as_bytes() {
            self.scan(len)?;
            let cut = len - self.end;
            self.file.set_len(self.end)?;
            return Ok((cut > 0).then(|| format!("{cut} bytes of an unfinished record were cut off")));
        }
        if !MARK.as_bytes().starts_with(&found[..found.len().min(MARK.len())]) {
            return Err(io::Error::other("something else than hidden states is there"));
        }
        self.file.set_len(0)?;
        self.write_at(0, header.as_bytes())?;
        self.end = HEADER as u64;
        let found = String::from_utf8_lossy(&found).trim_end().to_owned();
        let other = !header.starts_with(&found);
        Ok((other && len > 0).then(|| format!("made anew: it was {found:?} (expected {:?})", header.trim_end())))
    }

    /// Finds the records, up to one that is not whole.
    fn scan(&mut self, len: u64) -> io::Result<()> {
        self.end = HEADER as u64;
        let mut head = [0; HEAD];
        while self.end + HEAD as u64 <= len {
            self.file.seek(SeekFrom::Start(self.end))?;
            self.file.read_exact(&mut head)?;
            let (key, [rows, _, check, _]) = unpack(&head);
            let begin = self.end + HEAD as u64;
            let end = begin + u64::from(rows) * self.row_bytes as u64;
            if check != crc32fast::hash(&head[..24]) || end > len {
                break;
            }
            self.index.insert(key, (begin, rows));
            self.end = end;
        }
        Ok(())
    }

    /// The rows of `key`, `rows` of them; `None` where there are none, or they are damaged.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn get(&mut self, key: u128, rows: usize) -> Result<Option<Vec<u8>>, DistillError> {
        let Some(&(begin, _)) = self.index.get(&key).filter(|(_, found)| *found as usize == rows) else {
            return Ok(None);
        };
        let mut read = || {
            let mut bytes = vec![0; HEAD + rows * self.row_bytes];
            self.file.seek(SeekFrom::Start(begin - HEAD as u64))?;
            self.file.read_exact(&mut bytes)?;
            io::Result::Ok(bytes)
        };
        let bytes = match read() {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Vec::new(),
            read => read.map_err(|source| DistillError::Io { path: self.path.clone(), source })?,
        };
        match bytes.split_first_chunk::<HEAD>() {
            Some((head, payload)) if unpack(head).1[1] == crc32fast::hash(payload) => Ok(Some(payload.to_vec())),
            _ => {
                self.index.remove(&key);
                Ok(None)
            }
        }
    }

    /// Keeps rows.
    ///
    /// # Errors
    /// If they cannot be written: then the file is as it was.
    pub fn put(&mut self, key: u128, rows: &[u8]) -> Result<(), DistillError> {
        let count = (rows.len() / self.row_bytes) as u32;
        let mut record = Vec::with_capacity(HEAD + rows.len());
        record.extend(key.to_le_bytes());
        record.extend(count.to_le_bytes());
        record.extend(crc32fast::hash(rows).to_le_bytes());
        record.extend(crc32fast::hash(&record).to_le_bytes());
        record.extend([0; 4]);
        record.extend_from_slice(rows);
        self.write_at(self.end, &record).map_err(|source| DistillError::States { path: self.path.clone(), source })?;
        self.index.insert(key, (self.end + HEAD as u64, count));
        self.end += record.len() as u64;
        Ok(())
    }

    /// Writes all of it, or nothing.
    fn write_at(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(at))?;
        self.file.write_all(bytes).inspect_err(|_| {
            // The first error is the one to be told; what is left here would be cut off by the next run.
            let _ = self.file.set_len(at);
        })
    }

    /// Bytes that a record of so many rows takes.
    pub fn record_bytes(&self, rows: usize) -> u64 {
        (HEAD + rows * self.row_bytes) as u64
    }
}

/// A record's key, and its rows, their checksum, its own, and zeros.
fn unpack(head: &[u8; HEAD]) -> (u128, [u32; 4]) {
    let (key, rest) = head.split_at(16);
    let key = key.iter().rev().fold(0, |key, &byte| key << 8 | u128::from(byte));
    let number = |i: usize| rest[4 * i..4 * i + 4].iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte));
    (key, [0, 1, 2, 3].map(number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ROW: usize = 6;

    fn rows(key: u128, count: usize) -> Vec<u8> {
        (0..count * ROW).map(|i| (i as u128 * 31 + key * 7) as u8).collect()
    }

    fn open(path: &Path) -> (StateFile, Option<String>) {
        StateFile::open(path, "of a test", ROW).unwrap()
    }

    /// Whatever byte a writer was killed at: what was whole is there, the rest can be written again.
    #[test]
    fn a_file_that_is_cut_anywhere_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.states");
        let (mut file, note) = open(&path);
        assert_eq!(note, None);
        (0..3).for_each(|key| file.put(key, &rows(key, 2 + key as usize)).unwrap());
        drop(file);
        let whole = fs::read(&path).unwrap();
        for len in 0..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let (mut file, _) = open(&path);
            let found: Vec<bool> = (0..3).map(|key| file.get(key, 2 + key as usize).unwrap().is_some()).collect();
            let ends = [1, 2, 3].map(|n| HEADER + (0..n).map(|key| HEAD + (2 + key) * ROW).sum::<usize>());
            assert_eq!(found, ends.map(|end| len >= end), "{len} bytes");
            for key in (0..3).filter(|&key| !found[key as usize]) {
                file.put(key, &rows(key, 2 + key as usize)).unwrap();
            }
            drop(file);
            assert_eq!(fs::read(&path).unwrap(), whole, "{len} bytes");
        }
    }

    #[test]
    fn a_damaged_byte_is_never_taken_for_states() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.states");
        let (mut file, _) = open(&path);
        (1..3).for_each(|key| file.put(key, &rows(key, 3)).unwrap());
        drop(file);
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, &damaged).unwrap();
            let Ok((mut file, _)) = StateFile::open(&path, "of a test", ROW) else {
                assert!(at < MARK.len(), "byte {at}");
                continue;
            };
            for key in 1..3 {
                let found = file.get(key, 3).unwrap();
                assert!(found.is_none_or(|found| found == rows(key, 3)), "byte {at}, key {key}");
                file.put(key, &rows(key, 3)).unwrap();
                assert_eq!(file.get(key, 3).unwrap().unwrap(), rows(key, 3), "byte {at}, key {key}");
            }
        }
    }

    #[test]
    fn states_of_something_else_are_replaced_and_other_files_are_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.states");
        let (mut file, _) = open(&path);
        file.put(1, &rows(1, 1)).unwrap();
        assert!(StateFile::open(&path, "of a test", ROW).err().unwrap().to_string().contains("in use by another run"));
        drop(file);
        let (mut file, note) = StateFile::open(&path, "of another model", ROW).unwrap();
        assert!(note.unwrap().contains("of a test"));
        assert_eq!(file.get(1, 1).unwrap(), None);
        drop(file);
        fs::write(&path, "my thesis").unwrap();
        assert!(StateFile::open(&path, "of a test", ROW).err().unwrap().to_string().contains("something else"));
        assert_eq!(fs::read(&path).unwrap(), b"my thesis");
    }
}
