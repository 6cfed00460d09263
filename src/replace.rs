//! Files that take another one's place whole or not at all.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use tempfile::NamedTempFile;

/// A file under a name that nobody else has, in the folder of the one that it is to replace; gone where it is dropped.
#[derive(Debug)]
pub struct Replacement {
    file: NamedTempFile,
    place: PathBuf,
}

impl Replacement {
    /// An empty one for the file at `path`, which need not be there yet. Where `path` is a link, the file that it leads to
    /// is replaced, not the link.
    ///
    /// # Errors
    /// If the folder cannot be written, or something else than a regular file is there.
    pub fn of(path: &Path) -> io::Result<Self> {
        let place = place(path);
        if fs::metadata(&place).is_ok_and(|kind| !kind.is_file()) {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(place.file_name().unwrap_or_default()).suffix(".tmp");
        // As other new files are: others read it, unless the system's mask says that they do not.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        Ok(Self { file: builder.tempfile_in(folder(&place))?, place })
    }

    /// To write to.
    pub fn file(&self) -> &File {
        self.file.as_file()
    }

    /// Puts it in its place: whoever reads there sees the old file or this one, never a part.
    ///
    /// # Errors
    /// If it cannot be put there; the old file is there still.
    pub fn persist(self) -> io::Result<File> {
        Ok(self.file.persist(&self.place)?)
    }

    /// The same, so that it holds through a loss of power: file and folder are on the disk before this returns.
    ///
    /// # Errors
    /// If it cannot be put there, or the disk cannot take it.
    pub fn persist_durably(self) -> io::Result<File> {
        self.file().sync_all()?;
        let folder = folder(&self.place).to_owned();
        let file = self.persist()?;
        // A folder cannot be opened everywhere; where it can, it has to be written too.
        #[cfg(unix)]
        File::open(folder)?.sync_all()?;
        Ok(file)
    }
}

/// Where a path leads, whether or not there is a file yet.
pub fn place(path: &Path) -> PathBuf {
    let of_folder = || Some(folder(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(of_folder).unwrap_or_else(|| path.to_owned())
}

/// The folder that a file is in.
fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use tempfile::TempDir;

    fn replace(path: &Path, text: &str) -> io::Result<()> {
        let new = Replacement::of(path)?;
        new.file().write_all(text.as_bytes())?;
        new.persist_durably().map(drop)
    }

    #[test]
    fn files_are_replaced_whole_and_nothing_else_is() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("m.prom");
        drop(Replacement::of(&file).unwrap());
        assert!(!file.exists());
        for text in ["one", "two"] {
            replace(&file, text).unwrap();
            drop(Replacement::of(&file).unwrap());
            assert_eq!(fs::read_to_string(&file).unwrap(), text);
        }
        for wrong in [dir.path().to_owned(), dir.path().join("missing/m.prom")] {
            assert!(replace(&wrong, "x").is_err(), "{}", wrong.display());
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something is left over");
    }

    /// A name that somebody could have guessed is somebody's file, and two at a time do not meet.
    #[test]
    fn neighbours_are_left_alone() {
        let dir = TempDir::new().unwrap();
        let [file, neighbour, ours] =
            ["run", "run.tmp", &format!("run.{}.tmp", std::process::id())].map(|name| dir.path().join(name));
        fs::write(&neighbour, "mine").unwrap();
        fs::write(&ours, "mine").unwrap();
        let (first, second) = (Replacement::of(&file).unwrap(), Replacement::of(&file).unwrap());
        first.file().write_all(b"first").unwrap();
        second.file().write_all(b"second").unwrap();
        second.persist().unwrap();
        first.persist().unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "first");
        assert!([&neighbour, &ours].iter().all(|path| fs::read_to_string(path).unwrap() == "mine"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "something is left over");
    }

    /// Whoever may read other new files may read these.
    #[cfg(unix)]
    #[test]
    fn the_mask_decides_who_reads() {
        use std::os::unix::fs::PermissionsExt;
        let dir = TempDir::new().unwrap();
        let [ours, other] = ["ours", "other"].map(|name| dir.path().join(name));
        replace(&ours, "x").unwrap();
        fs::write(&other, "x").unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&ours), mode(&other));
    }

    #[cfg(unix)]
    #[test]
    fn links_lead_on_and_devices_stay() {
        let dir = TempDir::new().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        replace(&link, "new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert!(replace(Path::new("/dev/null"), "x").unwrap_err().to_string().contains("not a regular file"));
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }
}
