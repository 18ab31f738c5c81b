//! What the measurements ran on.

use std::fs;
use std::time::Duration;

use rustix::param::clock_ticks_per_second;

/// Facts about the machine, one a line of a list.
#[must_use]
pub fn facts() -> Vec<(&'static str, String)> {
    let cpuinfo = read("/proc/cpuinfo");
    let model = field(&cpuinfo, "model name").unwrap_or("unknown").to_owned();
    let guest = field(&cpuinfo, "flags").is_some_and(|flags| flags.contains(" hypervisor"));
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let place = if guest { ", in a virtual machine" } else { "" };
    let kernel = rustix::system::uname();
    let kib = field(&read("/proc/meminfo"), "MemTotal")
        .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok())
        .unwrap_or(0);
    let huge = |file: &str| chosen(&read(&format!("/sys/kernel/mm/transparent_hugepage/{file}")));
    vec![
        ("processor", format!("{model}, {cpus} processors{place}")),
        ("memory", format!("{} GiB", kib.div_ceil(1 << 20))),
        ("kernel", format!("Linux {}", kernel.release().to_string_lossy())),
        ("transparent huge pages", format!("{}, shmem {}", huge("enabled"), huge("shmem_enabled"))),
    ]
}

/// How long since boot the processors of a virtual machine had something to run and the host ran
/// something else, in ticks of the kernel; zero where nobody says.
#[must_use]
pub fn stolen() -> Duration {
    let ticks = stolen_ticks(&read("/proc/stat")).unwrap_or(0);
    Duration::from_secs(ticks) / u32::try_from(clock_ticks_per_second()).unwrap_or(u32::MAX)
}

/// The eighth number of the line of all processors, as in proc(5).
fn stolen_ticks(stat: &str) -> Option<u64> {
    let of_all = stat.lines().next()?.strip_prefix("cpu ")?;
    of_all.split_whitespace().nth(7)?.parse().ok()
}

fn read(path: &str) -> String {
    // What the kernel does not say is shown as unknown.
    fs::read_to_string(path).unwrap_or_default()
}

/// The value of the first line of a key.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    lines.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim()).next()
}

/// The choice in brackets of a setting such as `always [madvise] never`.
fn chosen(setting: &str) -> String {
    let inner = setting.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inner.map_or("unknown", |(choice, _)| choice).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_that_of_all_processors() {
        assert_eq!(
            stolen_ticks("cpu  1 2 3 4 5 6 7 80 9 10\ncpu0 1 2 3 4 5 6 7 8 9 10\n"),
            Some(80)
        );
        assert_eq!(stolen_ticks("intr 1"), None);
        assert!(stolen_ticks(&read("/proc/stat")).is_some());
    }

    #[test]
    fn reads_settings_and_fields() {
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen(""), "unknown");
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU\nmodel name\t: Other\n";
        assert_eq!(field(cpuinfo, "model name"), Some("Some CPU"));
    }
}
