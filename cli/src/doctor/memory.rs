//! The folder of the objects, and how much memory there is behind it.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use dmce_config::Bytes;
use dmce_sys::headroom::{LimitedBy, headroom};
use dmce_sys::map::{FileRange, MapError, Populate, Protection, Reservation, collapse};
use dmce_sys::object::{self, ObjectDir, ObjectError};
use dmce_sys::process::own_pid;

use super::{Finding, Patient};

const HUGE_PAGE: u64 = 2 << 20;

/// What the kernel does about huge pages of shared memory that is not of a mount with its own rule.
const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

pub(super) fn checks(patient: &Patient) -> Vec<Finding> {
    let folder = match folder(&patient.objects) {
        Ok(folder) => folder,
        Err(check) => return vec![check, host_memory(patient.wanted)],
    };
    vec![
        Finding::ok("shared memory", format!("{} is a tmpfs", folder.path().display())),
        size(&folder, patient.wanted),
        host_memory(patient.wanted),
        huge_pages(&folder),
    ]
}

fn folder(path: &Path) -> Result<ObjectDir, Finding> {
    let name = "shared memory";
    let shown = path.display();
    let mount = format!("mount a tmpfs there: mount -t tmpfs -o mode=1777 tmpfs {shown}");
    let folder = ObjectDir::open(path)
        .map_err(|error| Finding::fail(name, error.to_string(), mount.clone()))?;
    match folder.is_tmpfs() {
        Ok(true) => Ok(folder),
        Ok(false) => {
            Err(Finding::fail(name, format!("{shown} is no tmpfs, so it is no memory"), mount))
        }
        Err(error) => Err(Finding::unknown(name, &error)),
    }
}

fn size(folder: &ObjectDir, wanted: u64) -> Finding {
    let name = "shared memory size";
    let (total, free) = match (folder.total_bytes(), folder.free_bytes()) {
        (Ok(total), Ok(free)) => (total, free),
        (Err(error), _) | (_, Err(error)) => return Finding::unknown(name, &error),
    };
    if total == 0 {
        return Finding::ok(name, "not limited");
    }
    let (total, free, wanted) = (Bytes(total), Bytes(free), Bytes(wanted));
    if free >= wanted {
        return Finding::ok(name, format!("{free} of {total} free, {wanted} may be asked for"));
    }
    let short = wanted.get() - free.get();
    Finding::warn(
        name,
        format!("{free} of {total} free, and {wanted} may be asked for: the rest is refused"),
        format!(
            "mount -o remount,size={} {}, or less --capacity",
            total.get().saturating_add(short),
            folder.path().display()
        ),
    )
}

fn host_memory(wanted: u64) -> Finding {
    let name = "memory";
    let found = match headroom() {
        Ok(found) => found,
        Err(error) => return Finding::unknown(name, &error),
    };
    let (bytes, wanted) = (Bytes(found.bytes), Bytes(wanted));
    let (whose, fix) = match found.limited_by {
        LimitedBy::Host => ("this host", "free memory, or give the daemons less --capacity"),
        LimitedBy::Cgroup => {
            ("this control group", "raise memory.max (MemoryMax=), or less --capacity")
        }
    };
    if bytes >= wanted {
        return Finding::ok(name, format!("{bytes} available to {whose}"));
    }
    let text = format!("{bytes} available to {whose}, and {wanted} may be asked for");
    Finding::warn(name, format!("{text}: the rest is refused"), fix)
}

fn huge_pages(folder: &ObjectDir) -> Finding {
    let name = "huge pages";
    let mount = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let rule = huge_option(&mount, folder.path());
    let by_default = fs::read_to_string(SHMEM_ENABLED).unwrap_or_default();
    let by_default = chosen(&by_default).unwrap_or("unknown");
    let rules = format!("huge={rule} of the mount, shmem_enabled {by_default}");
    if matches!(rule, "always" | "within_size" | "advise") {
        return Finding::ok(name, format!("from the first touch ({rules})"));
    }
    match try_collapse(folder) {
        Ok(()) => Finding::ok(name, format!("made by the daemons in the background ({rules})")),
        Err(error) => Finding::warn(
            name,
            format!("none, so random loads are slower: {error} ({rules})"),
            "mount a tmpfs with huge=advise and name it in [instance].objects",
        ),
    }
}

/// Whether the kernel makes a huge page of an object's pages when it is asked to.
fn try_collapse(folder: &ObjectDir) -> Result<(), Untried> {
    let object = nameless(folder)?;
    object::commit(object.as_fd(), 0, HUGE_PAGE)?;
    let place = Reservation::aligned(HUGE_PAGE, HUGE_PAGE)?;
    let whole = FileRange { offset: 0, bytes: HUGE_PAGE };
    let range = place.map_at(0, object.as_fd(), whole, Protection::ReadWrite, Populate::Yes)?;
    Ok(collapse(range)?)
}

#[derive(Debug, thiserror::Error)]
enum Untried {
    #[error(transparent)]
    Object(#[from] ObjectError),
    #[error(transparent)]
    Map(#[from] MapError),
}

/// An object that is gone when this process is.
fn nameless(folder: &ObjectDir) -> Result<OwnedFd, ObjectError> {
    let name = format!(".dmce-doctor-{}", own_pid());
    let object = folder.create(&name)?;
    folder.unlink(&name)?;
    Ok(object)
}

/// The word in brackets: `always [never] deny` is `never`.
fn chosen(choices: &str) -> Option<&str> {
    choices.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// The `huge=` option of the mount that a folder lies in; `never` is what a mount without it means.
fn huge_option<'m>(mountinfo: &'m str, folder: &Path) -> &'m str {
    let mut best = (0, "never");
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let Some(point) = left.split(' ').nth(4) else { continue };
        let depth = Path::new(point).components().count();
        // Of two mounts at one place the later covers the earlier.
        if folder.starts_with(point) && depth >= best.0 {
            let mut options = right.split(' ').nth(2).unwrap_or_default().split(',');
            let huge = options.find_map(|option| option.strip_prefix("huge="));
            best = (depth, huge.unwrap_or("never"));
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:26 / /dev/shm rw,nosuid shared:4 - tmpfs tmpfs rw,size=1024k
31 22 0:27 / /mnt/huge rw - tmpfs tmpfs rw,size=1024k,huge=within_size
32 22 0:28 / /mnt/huge rw - tmpfs tmpfs rw,huge=advise
33 22 broken
";

    #[test]
    fn the_rule_of_the_innermost_and_latest_mount_counts() {
        let rule = |folder: &str| huge_option(MOUNTS, Path::new(folder));
        assert_eq!(rule("/dev/shm"), "never");
        assert_eq!(rule("/mnt/huge/objects"), "advise");
        assert_eq!(rule("/mnt/hugest"), "never");
        assert_eq!(huge_option("", Path::new("/dev/shm")), "never");
    }

    #[test]
    fn the_kernels_choice_is_the_word_in_brackets() {
        assert_eq!(chosen("always within_size advise [never] deny force\n"), Some("never"));
        assert_eq!(chosen(""), None);
    }

    #[test]
    fn too_little_memory_is_a_warning_and_enough_is_none() {
        use super::super::State;
        assert_eq!(host_memory(0).state, State::Ok);
        assert_eq!(host_memory(u64::MAX).state, State::Warn);
        let folder = folder(Path::new(object::DEFAULT_DIR)).unwrap();
        assert_eq!(size(&folder, 0).state, State::Ok);
        let check = super::folder(Path::new("/proc")).unwrap_err();
        assert_eq!(check.state, State::Fail, "{check:?}");
    }
}
