//! How much memory this process may still take, by `/proc` and the limits of its control groups (Linux only).

use std::fs;
use std::path::Path;

/// Bytes of memory that the machine has; `None` where the system does not tell.
pub fn total() -> Option<u64> {
    meminfo("MemTotal")
}

/// A number of `/proc/meminfo`, in bytes.
fn meminfo(key: &str) -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Bytes that can be had without swapping; `None` where the system does not tell.
pub fn free() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let within = left_within_groups(&groups, Path::new("/sys/fs/cgroup"));
    [meminfo("MemAvailable"), within].into_iter().flatten().min()
}

/// What the tightest limit on memory leaves, of the groups of `/proc/self/cgroup` and those around them.
fn left_within_groups(groups: &str, root: &Path) -> Option<u64> {
    let mut tightest = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let version1 = controllers.split(',').any(|name| name == "memory");
        let (root, names) = match version1 {
            true => (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"]),
            false if controllers.is_empty() => (root.to_owned(), ["memory.max", "memory.current", "inactive_file"]),
            false => continue,
        };
        // In a container the path may be one of the host's: what is there of it counts, and the root in any case.
        let group = root.join(path.trim_start_matches('/'));
        for group in group.ancestors().take_while(|group| group.starts_with(&root)) {
            tightest = [tightest, left_within(group, names)].into_iter().flatten().min();
        }
    }
    tightest
}

/// What one group's limit leaves; `None` without a limit. What it keeps of files can be taken back.
fn left_within(group: &Path, [limit, usage, files]: [&str; 3]) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(group.join(name)).ok();
    let number = |name| read(name)?.trim().parse::<u64>().ok();
    let stat = read("memory.stat").unwrap_or_default();
    let files = stat.lines().find_map(|line| line.strip_prefix(files)?.trim().parse::<u64>().ok()).unwrap_or(0);
    Some(number(limit)?.saturating_sub(number(usage)?.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::TempDir;

    fn group(root: &TempDir, path: &str, files: &[(&str, &str)]) {
        let folder = root.path().join(path);
        fs::create_dir_all(&folder).unwrap();
        files.iter().for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
    }

    #[test]
    fn the_tightest_limit_counts() {
        let root = TempDir::new().unwrap();
        let left = |groups: &str| left_within_groups(groups, root.path());
        assert_eq!(left("0::/a/b\n"), None, "no limits");
        group(&root, "a", &[("memory.max", "1000\n"), ("memory.current", "700\n"), ("memory.stat", "anon 600\n")]);
        group(&root, "a/b", &[("memory.max", "max\n"), ("memory.current", "200\n")]);
        assert_eq!(left("0::/a/b\n"), Some(300), "the limit of the group around it");
        let stat = "anon 600\ninactive_file 50\nactive_file 50\n";
        group(&root, "a/b", &[("memory.max", "400\n"), ("memory.stat", stat)]);
        assert_eq!(left("0::/a/b\n"), Some(250), "files can be taken back");
        assert_eq!(left("0::/a\n"), Some(300));
        assert_eq!(left("0::/not/visible\n"), None);
        let unlimited = ("memory.limit_in_bytes", "9223372036854771712\n");
        group(&root, "memory", &[unlimited, ("memory.usage_in_bytes", "5000\n")]);
        let limited = [("memory.limit_in_bytes", "900\n"), ("memory.usage_in_bytes", "1000\n")];
        group(&root, "memory/c", &limited);
        assert_eq!(left("5:devices:/a\n4:cpu,memory:/c\n0::/\n"), Some(0), "more used than the limit");
        group(&root, "memory/c", &[("memory.stat", "inactive_file 1\ntotal_inactive_file 300\n")]);
        assert_eq!(left("4:memory:/c\n"), Some(200));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_machine_has_memory() {
        let (free, total) = (free().unwrap(), meminfo("MemTotal").unwrap());
        assert!(free > 1 << 20 && free <= total, "{free} of {total}");
    }
}
