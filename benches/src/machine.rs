//! What the measurements ran on.

use std::fs;

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
    fn reads_settings_and_fields() {
        assert_eq!(chosen("always [madvise] never\n"), "madvise");
        assert_eq!(chosen(""), "unknown");
        let cpuinfo = "processor\t: 0\nmodel name\t: Some CPU\nmodel name\t: Other\n";
        assert_eq!(field(cpuinfo, "model name"), Some("Some CPU"));
    }
}
