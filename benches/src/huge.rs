//! How much of a range this process has mapped with huge pages, as the kernel says.

use std::fs;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use dmce_sys::map::{FileRange, Mapping, Populate, Protection};
use dmce_sys::object::{self, ObjectDir};
use dmce_tests::Instance;

use crate::memory::Area;
use crate::{Error, Result};

/// After how long without progress the pages count as not coming.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(50);

/// How much of an area is mapped with huge pages: 0 to 100.
///
/// # Errors
///
/// [`Error::System`] if the kernel does not say.
pub fn percent(area: Area) -> Result<u64> {
    let smaps = fs::read_to_string("/proc/self/smaps").map_err(Error::system("reading smaps"))?;
    let start = area.start().addr();
    let huge = huge_bytes(&smaps, start, start + area.bytes());
    Ok((huge * 100 / area.bytes() as u64).min(100))
}

/// Waits until the huge pages that a daemon makes in the background are there, and have been mapped
/// here. Returns how much of the area has them: all, unless the kernel had no more.
///
/// A page table that was there before is thrown away when the pages under it become a huge one, so
/// each try touches all of the area anew.
///
/// # Errors
///
/// [`Error::System`] if the kernel does not say.
pub fn wait(area: Area) -> Result<u64> {
    wait_elsewhere(|| {
        area.touch_huge();
        percent(area)
    })
}

/// The same for memory of another process, which `look` touches, and says how much of it has them.
///
/// # Errors
///
/// Those of `look`.
pub fn wait_elsewhere(mut look: impl FnMut() -> Result<u64>) -> Result<u64> {
    let (mut best, mut since) = (0, Instant::now());
    loop {
        let now = look()?;
        if now > best {
            (best, since) = (now, Instant::now());
        }
        if now == 100 || since.elapsed() > PATIENCE {
            return Ok(now);
        }
        thread::sleep(PAUSE);
    }
}

/// [`wait`] for an object of an instance, by its name.
///
/// # Errors
///
/// [`Error::System`] if there is no such object, or the kernel does not say.
pub fn wait_object(instance: &Instance, name: &str) -> Result<u64> {
    let failed = |error| Error::of("opening an object", error);
    let folder = instance.folder();
    let fd = ObjectDir::open(folder).and_then(|dir| dir.open_read_write(name)).map_err(failed)?;
    let bytes = object::stat(fd.as_fd()).map_err(failed)?.bytes;
    let range = FileRange { offset: 0, bytes };
    let mapping = Mapping::shared(fd.as_fd(), range, Protection::ReadWrite, Populate::No)
        .map_err(|error| Error::of("mapping an object", error))?;
    // SAFETY: mapped until the end of this function; nobody is measured meanwhile.
    wait(unsafe { Area::new(mapping.as_ptr(), mapping.len()) })
}

/// Bytes in huge pages of the mappings that lie between two addresses.
fn huge_bytes(smaps: &str, start: usize, end: usize) -> u64 {
    let mut inside = false;
    let mut bytes = 0;
    for line in smaps.lines() {
        if let Some((from, to)) = addresses(line) {
            inside = from < end && start < to;
        } else if inside {
            bytes += kib(line).unwrap_or(0) << 10;
        }
    }
    bytes
}

/// The range that a mapping's first line begins with.
fn addresses(line: &str) -> Option<(usize, usize)> {
    let (from, to) = line.split_once(' ')?.0.split_once('-')?;
    Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
}

/// The value of a line that counts huge pages.
fn kib(line: &str) -> Option<u64> {
    const KINDS: [&str; 3] = ["ShmemPmdMapped:", "FilePmdMapped:", "AnonHugePages:"];
    let (kind, value) = line.split_once(' ')?;
    KINDS.contains(&kind).then(|| value.trim().strip_suffix(" kB")?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000400000 rw-s 00000000 00:18 5  /dev/shm/a
Rss:                4096 kB
ShmemPmdMapped:     2048 kB
VmFlags: rd wr sh
7f0000400000-7f0000800000 rw-s 00000000 00:18 6  /dev/shm/b
ShmemPmdMapped:     4096 kB
AnonHugePages:         0 kB
";

    #[test]
    fn counts_the_mappings_of_the_range_alone() {
        let (middle, end) = (0x7f00_0040_0000, 0x7f00_0080_0000);
        assert_eq!(huge_bytes(SMAPS, 0x7f00_0000_0000, middle), 2 << 20);
        assert_eq!(huge_bytes(SMAPS, middle, end), 4 << 20);
        assert_eq!(huge_bytes(SMAPS, 0x7f00_0000_0000, end), 6 << 20);
        assert_eq!(huge_bytes(SMAPS, end, end + 4096), 0);
    }
}
