//! Files that a command reads and writes are different ones, whatever they are called.

use crate::failure::{Failure, Outcome};
use eesd::replace::place;
use std::path::{Path, PathBuf};

/// A file by the flag that names it.
pub type Named<'a> = (&'static str, &'a Path);

/// Refuses to write over what is read, or twice to one file: by the same path, a link of either kind, or another way
/// around. Standard input and output, `-`, and devices are no files.
///
/// # Errors
/// Which flag names the file of which other.
pub fn all_different(read: &[Named<'_>], written: &[Named<'_>]) -> Outcome {
    let written: Vec<&Named<'_>> = written.iter().filter(|(_, path)| *path != Path::new("-")).collect();
    for (number, (flag, path)) in written.iter().enumerate() {
        let others = read.iter().chain(written[..number].iter().copied());
        if let Some((other, _)) = others.into_iter().find(|(_, other)| same(path, other)) {
            return Err(Failure::usage(format!("{flag} {}: would overwrite the file of {other}", path.display())));
        }
    }
    Ok(())
}

/// The files of a model, which no command writes over: all of its folder's; of a folder with a GGUF file, where other files
/// of any kind may lie, those that a model consists of.
pub fn of_model(folder: Option<&Path>, gguf: bool) -> Vec<PathBuf> {
    let entries = folder.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let is_part = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default();
        !gguf || extension == "gguf" || extension == "safetensors"
    };
    entries.map(|entry| entry.path()).filter(|path| path.is_file()).filter(is_part).collect()
}

fn same(one: &Path, other: &Path) -> bool {
    if one.exists() && !one.is_file() {
        return false; // a device or a pipe, such as /dev/stdout, takes what two write
    }
    same_file::is_same_file(one, other).unwrap_or_else(|_| place(one) == place(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use tempfile::TempDir;

    #[test]
    #[cfg(unix)]
    fn a_file_is_known_under_all_its_names() {
        let dir = TempDir::new().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("in"), "x").unwrap();
        fs::hard_link(path("in"), path("hard")).unwrap();
        std::os::unix::fs::symlink(path("in"), path("soft")).unwrap();
        std::os::unix::fs::symlink(dir.path(), path("folder")).unwrap();
        let input = path("in");
        let read: [Named<'_>; 1] = [("--input", &input)];
        for name in ["in", "hard", "soft", "folder/in", "folder/../in"] {
            // A link to a folder, and back out of it: `..` leaves the folder that the link leads to.
            let same_file = name != "folder/../in";
            let found = all_different(&read, &[("--output", &path(name))]);
            assert_eq!(found.is_err(), same_file, "{name}");
        }
        // Not there yet, and the same all the same.
        let (one, two) = (path("new"), path("folder/new"));
        assert!(all_different(&read, &[("--output", &one), ("--plot", &two)]).is_err());
        assert!(all_different(&read, &[("--output", &one), ("--plot", &path("other"))]).is_ok());
        let (null, dash) = (Path::new("/dev/null"), Path::new("-"));
        assert!(
            all_different(&[("--input", dash)], &[("--output", dash), ("--plot", null), ("--trace", null)]).is_ok()
        );
    }
}
