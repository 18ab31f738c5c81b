//! How much memory may still be committed before the kernel would kill somebody for it.
//!
//! Shared memory that exceeds a cgroup's limit gets the toucher killed instead of an error, so who
//! commits looks here first.
//!
//! # Invariants
//!
//! 1. The answer is the least of: `MemAvailable`, and for this process's memory cgroup and each of
//!    its parents, limit - usage + page cache that the kernel would drop first.
//! 2. It is a moment's view. Who commits keeps a margin; others allocate meanwhile.
//! 3. What cannot be read limits nothing, and where nothing can be read, [`headroom`] fails.
//!
//! Active page cache is not counted as free: it is the programs that run. Nor is swap: memory that
//! is lent must stay as fast as memory.

use std::io;
use std::path::{Path, PathBuf};

/// What the least of the limits is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitedBy {
    /// The memory of the host.
    Host,
    /// A memory cgroup of this process.
    Cgroup,
}

/// How much may still be committed, and what says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headroom {
    /// 0 if a limit is reached already.
    pub bytes: u64,
    /// Where to look when it is too little.
    pub limited_by: LimitedBy,
}

/// Why the headroom is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeadroomError {
    /// `/proc` is not readable.
    #[error("reading the memory state of the host failed")]
    Io(#[source] io::Error),
    /// `/proc/meminfo` has no `MemAvailable`.
    #[error("the memory state of the host is not understood")]
    Format,
}

/// Looks at the host and at every memory cgroup of this process.
///
/// # Errors
///
/// [`HeadroomError::Io`], [`HeadroomError::Format`].
pub fn headroom() -> Result<Headroom, HeadroomError> {
    let read = |path: &str| std::fs::read_to_string(path).map_err(HeadroomError::Io);
    let available = parse_mem_available(&read("/proc/meminfo")?).ok_or(HeadroomError::Format)?;
    let mut least = Headroom { bytes: available, limited_by: LimitedBy::Host };
    let (Ok(mounts), Ok(own)) = (read("/proc/self/mountinfo"), read("/proc/self/cgroup")) else {
        return Ok(least);
    };
    for cgroup in memory_cgroups(&mounts, &own) {
        for folder in cgroup.folders() {
            let bytes = cgroup.version.headroom_of(&folder).unwrap_or(u64::MAX);
            if bytes < least.bytes {
                least = Headroom { bytes, limited_by: LimitedBy::Cgroup };
            }
        }
    }
    Ok(least)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    V1,
    V2,
}

impl Version {
    /// Limit - usage + inactive page cache, of one level; `None` without a limit.
    fn headroom_of(self, folder: &Path) -> Option<u64> {
        let (limits, usage, cache): (&[&str], _, _) = match self {
            Self::V1 => {
                (&["memory.limit_in_bytes"], "memory.usage_in_bytes", "total_inactive_file")
            }
            // Beyond `memory.high` nobody is killed, but whoever allocates is all but stopped.
            Self::V2 => (&["memory.max", "memory.high"], "memory.current", "inactive_file"),
        };
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok();
        let limit = limits.iter().filter_map(|name| parse_limit(&read(name)?)).min()?;
        let usage: u64 = read(usage)?.trim().parse().ok()?;
        let cache = read("memory.stat").and_then(|text| parse_stat(&text, cache)).unwrap_or(0);
        Some(limit.saturating_sub(usage.saturating_sub(cache)))
    }
}

/// Where this process's memory cgroup is, and the root above it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cgroup {
    version: Version,
    mount_point: PathBuf,
    folder: PathBuf,
}

impl Cgroup {
    /// The folder of the process and all above it, up to the mount point.
    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        let within = |folder: &&Path| folder.starts_with(&self.mount_point);
        self.folder.ancestors().take_while(within).map(Path::to_owned)
    }
}

/// The cgroups, of either version, that may limit the memory of the process.
fn memory_cgroups(mountinfo: &str, own: &str) -> Vec<Cgroup> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some(mount) = parse_mount(line) else { continue };
        let Some(path) = own.lines().find_map(|line| own_path(line, mount.version)) else {
            continue;
        };
        let folder = folder_of(&mount, path);
        found.push(Cgroup { version: mount.version, mount_point: mount.point, folder });
    }
    found
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    version: Version,
    /// Which cgroup the mount point shows.
    root: PathBuf,
    point: PathBuf,
}

/// A line of mountinfo, if it is of a hierarchy with the memory controller:
/// `id parent dev root point options [tags] - type source superoptions`.
fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut right = right.split(' ');
    let version = match right.next()? {
        "cgroup2" => Version::V2,
        "cgroup" if right.nth(1)?.split(',').any(|option| option == "memory") => Version::V1,
        _ => return None,
    };
    let mut left = left.split(' ').skip(3);
    let root = unescape(left.next()?);
    let point = unescape(left.next()?);
    Some(Mount { version, root: root.into(), point: point.into() })
}

/// The path in a line of `/proc/self/cgroup` (`id:controllers:path`), if it is of the hierarchy.
fn own_path(line: &str, version: Version) -> Option<&str> {
    let mut fields = line.splitn(3, ':');
    let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
    let matches = match version {
        Version::V1 => controllers.split(',').any(|controller| controller == "memory"),
        Version::V2 => controllers.is_empty(),
    };
    matches.then_some(path)
}

/// Where the process's cgroup is in the file system. A container may see only a part of the tree;
/// what it cannot see is replaced by the nearest that it can, the mount point.
fn folder_of(mount: &Mount, path: &str) -> PathBuf {
    let path = Path::new(path);
    match path.strip_prefix(&mount.root) {
        Ok(rest) if !rest.components().any(|c| c == std::path::Component::ParentDir) => {
            mount.point.join(rest)
        }
        _ => mount.point.clone(),
    }
}

/// Spaces and the like are octal in mountinfo.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
}

/// `max`, or bytes. Version 1 says "no limit" with a number near 2^63.
fn parse_limit(text: &str) -> Option<u64> {
    const NO_LIMIT: u64 = 1 << 60;
    text.trim().parse().ok().filter(|&bytes| bytes < NO_LIMIT)
}

/// A value of a file of `key value` lines.
fn parse_stat(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `MemAvailable` of `/proc/meminfo`, in bytes.
fn parse_mem_available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/devices rw,relatime - cgroup cgroup rw,devices
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn finds_the_cgroups_of_both_versions_and_their_parents() {
        let own = "9:name=systemd:/\n4:cpu,memory:/jobs/a:b\n0::/x\n";
        let found = memory_cgroups(HYBRID, own);
        let folders: Vec<Vec<PathBuf>> = found.iter().map(|c| c.folders().collect()).collect();
        let v1 = ["/sys/fs/cgroup/memory/jobs/a:b", "/sys/fs/cgroup/memory/jobs"];
        assert_eq!(found[0].version, Version::V1);
        assert_eq!(folders[0][..2], v1.map(PathBuf::from));
        assert_eq!(folders[0][2], Path::new("/sys/fs/cgroup/memory"));
        assert_eq!(folders[0].len(), 3);
        assert_eq!(found[1].version, Version::V2);
        assert_eq!(folders[1].len(), 2);
    }

    #[test]
    fn a_container_that_sees_a_part_of_the_tree_is_found_in_it() {
        let mount = |root: &str| Mount {
            version: Version::V2,
            root: root.into(),
            point: "/sys/fs/cgroup".into(),
        };
        let folder = |root, path| folder_of(&mount(root), path);
        assert_eq!(folder("/docker/1", "/docker/1/app"), Path::new("/sys/fs/cgroup/app"));
        assert_eq!(folder("/docker/1", "/docker/2"), Path::new("/sys/fs/cgroup"));
        assert_eq!(folder("/", "/../other"), Path::new("/sys/fs/cgroup"));
        assert_eq!(folder("/", "/"), Path::new("/sys/fs/cgroup/"));
    }

    #[test]
    fn lines_that_mean_nothing_are_skipped() {
        for line in ["", "a - ", "1 2 3 - cgroup2", "1 2 3 / /m rw - cgroup cgroup"] {
            assert_eq!(parse_mount(line), None, "{line}");
        }
        let spaced = parse_mount(r"1 2 0:3 / /my\040mnt rw - cgroup2 none rw").unwrap();
        assert_eq!(spaced.point, Path::new("/my mnt"));
        assert_eq!(own_path("nonsense", Version::V2), None);
    }

    #[test]
    fn no_limit_is_none_in_either_version() {
        assert_eq!(parse_limit("max\n"), None);
        assert_eq!(parse_limit("9223372036854771712\n"), None);
        assert_eq!(parse_limit("1073741824\n"), Some(1 << 30));
        assert_eq!(parse_limit(""), None);
    }

    #[test]
    fn values_are_found_by_their_whole_key() {
        let stat = "active_file 1\ninactive_file 4096\ntotal_inactive_file 8192\n";
        assert_eq!(parse_stat(stat, "inactive_file"), Some(4096));
        assert_eq!(parse_stat(stat, "total_inactive_file"), Some(8192));
        assert_eq!(parse_stat(stat, "file"), None);
        let meminfo = "MemTotal:  100 kB\nMemAvailable:   24 kB\n";
        assert_eq!(parse_mem_available(meminfo), Some(24 * 1024));
        assert_eq!(parse_mem_available("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn each_level_of_a_cgroup_counts_and_inactive_cache_is_free() {
        let root = std::env::temp_dir().join(format!("dmce.test-{}-cgroup", std::process::id()));
        let _cleanup = RemoveOnDrop(root.clone());
        std::fs::create_dir_all(&root).unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.join(name), text).unwrap();
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        assert_eq!(Version::V2.headroom_of(&root), Some(100));
        write("memory.stat", "anon 1\ninactive_file 300\n");
        assert_eq!(Version::V2.headroom_of(&root), Some(400));
        write("memory.current", "5000\n");
        assert_eq!(Version::V2.headroom_of(&root), Some(0));
        write("memory.max", "max\n");
        assert_eq!(Version::V2.headroom_of(&root), None);
        write("memory.high", "6000\n");
        assert_eq!(Version::V2.headroom_of(&root), Some(1300));
        assert_eq!(Version::V1.headroom_of(&root), None);
    }

    struct RemoveOnDrop(PathBuf);

    impl Drop for RemoveOnDrop {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn this_host_has_some() {
        assert!(headroom().unwrap().bytes > 0);
    }
}
