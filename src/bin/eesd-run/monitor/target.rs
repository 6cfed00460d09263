//! Where metrics go: a file, or whoever asks at an address.

use crate::failure::{Failure, Outcome};
use crate::files;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use tempfile::NamedTempFile;

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
        let (mut temporary, place) = successor(path)?;
        temporary.write_all(text.as_bytes())?;
        temporary.persist(&place)?;
        Ok(())
    };
    replace().map_err(|error: io::Error| Failure::file(path, "written", &error))
}

/// Whether [`replace_file`] could write there; leaves everything as it is.
///
/// # Errors
/// As there.
pub fn check_file(path: &Path) -> Outcome {
    successor(path).map(drop).map_err(|error| Failure::file(path, "written", &error))
}

/// A file under a name of its own, gone where it is dropped, and the place that it is to take.
fn successor(path: &Path) -> io::Result<(NamedTempFile, PathBuf)> {
    // Where `path` is a link, the file that it leads to is replaced, not the link.
    let place = files::place(path);
    if fs::metadata(&place).is_ok_and(|kind| !kind.is_file()) {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(place.file_name().unwrap_or_default()).suffix(".tmp");
    // As other new files are: others read it, unless the system's mask says that they do not.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    Ok((builder.tempfile_in(folder(&place))?, place))
}

/// The folder that a file is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use MetricsTarget::{Address, File};
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
    fn files_are_replaced_whole_and_nothing_else_is() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("m.prom");
        check_file(&file).unwrap();
        assert!(!file.exists());
        replace_file(&file, "one").unwrap();
        check_file(&file).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "one");
        replace_file(&file, "two").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "two");
        for wrong in [dir.path().to_owned(), dir.path().join("missing/m.prom")] {
            for error in [replace_file(&wrong, "x").unwrap_err(), check_file(&wrong).unwrap_err()] {
                assert!(error.message().starts_with(&format!("{}: could not be written: ", wrong.display())));
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something is left over");
    }

    /// A name that somebody could have guessed is somebody's file.
    #[test]
    fn neighbours_are_left_alone() {
        let dir = TempDir::new().unwrap();
        let [file, neighbour] = ["run", "run.tmp"].map(|name| dir.path().join(name));
        fs::write(&neighbour, "mine").unwrap();
        check_file(&file).unwrap();
        replace_file(&file, "theirs").unwrap();
        assert_eq!(fs::read_to_string(&neighbour).unwrap(), "mine");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something is left over");
    }

    /// Whoever may read other new files may read these.
    #[cfg(unix)]
    #[test]
    fn the_mask_decides_who_reads() {
        use std::os::unix::fs::PermissionsExt;
        let dir = TempDir::new().unwrap();
        let [ours, other] = ["ours", "other"].map(|name| dir.path().join(name));
        replace_file(&ours, "x").unwrap();
        fs::write(&other, "x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&other));
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_on_and_devices_stay() {
        use std::os::unix::fs::symlink;
        let dir = TempDir::new().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        symlink("file", &link).unwrap();
        replace_file(&link, "new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert!(replace_file(Path::new("/dev/null"), "x").unwrap_err().message().contains("not a regular file"));
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
