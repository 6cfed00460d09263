//! Where metrics go: a file, or whoever asks at an address.

use crate::failure::{Failure, Outcome};
use eesd::replace::Replacement;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A value of `--metrics`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsTarget {
    /// Written anew about once a second.
    File(PathBuf),
    /// Served over HTTP, at an address with its port.
    Address(String),
}

impl FromStr for MetricsTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let (host, port) = match text.rsplit_once(':') {
            _ if is_number(text) => ("127.0.0.1", text),
            Some((host, port)) if !host.is_empty() && is_number(port) && !host.contains(['/', '\\']) => (host, port),
            _ if text.is_empty() || text == "-" => return Err("expected a file, a port or ADDRESS:PORT".into()),
            _ => return Ok(MetricsTarget::File(text.into())),
        };
        match port.parse::<u16>() {
            Ok(port) => Ok(MetricsTarget::Address(format!("{host}:{port}"))),
            Err(_) => Err(format!("expected a port from 0 to {}, or a file (written as ./{port})", u16::MAX)),
        }
    }
}

/// Puts a text in the place of a file: whoever reads it sees the old one or the new one, never a part.
///
/// # Errors
/// If it cannot be written, or there is something else than a regular file.
pub fn replace_file(path: &Path, text: &str) -> Outcome {
    let replace = || {
        let new = Replacement::of(path)?;
        new.file().write_all(text.as_bytes())?;
        new.persist()
    };
    replace().map(drop).map_err(|error| Failure::file(path, "written", &error))
}

/// Whether [`replace_file`] could write there; leaves everything as it is.
///
/// # Errors
/// As there.
pub fn check_file(path: &Path) -> Outcome {
    Replacement::of(path).map(drop).map_err(|error| Failure::file(path, "written", &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use MetricsTarget::{Address, File};
    use std::fs;
    use tempfile::TempDir;

    #[test]
    fn files_and_addresses_are_told_apart() {
        let target = |text: &str| text.parse::<MetricsTarget>();
        for (text, address) in [
            ("9090", "127.0.0.1:9090"),
            ("0", "127.0.0.1:0"),
            ("0.0.0.0:9090", "0.0.0.0:9090"),
            ("[::1]:80", "[::1]:80"),
            ("localhost:8000", "localhost:8000"),
        ] {
            assert_eq!(target(text), Ok(Address(address.into())), "{text}");
        }
        for file in ["m.prom", "./9090", "dir/a:9090", "a:b", ":9090", "C:\\x", "a:"] {
            assert_eq!(target(file), Ok(File(file.into())), "{file}");
        }
        for wrong in ["", "-", "65536", "host:70000", "99999999999999"] {
            assert!(target(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn files_are_replaced_whole_and_what_cannot_be_is_told() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("m.prom");
        check_file(&file).unwrap();
        assert!(!file.exists());
        for text in ["one", "two"] {
            replace_file(&file, text).unwrap();
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        for wrong in [dir.path().to_owned(), dir.path().join("missing/m.prom")] {
            for error in [replace_file(&wrong, "x").unwrap_err(), check_file(&wrong).unwrap_err()] {
                assert!(error.message().starts_with(&format!("{}: could not be written: ", wrong.display())));
            }
        }
    }
}
