//! Names: of objects in a folder that everybody writes to, of instances, of what people name.

use dmce_abi::limits::{INSTANCE_BYTES_MAX, REGION_BYTES_MAX};
use dmce_abi::name::{self, Instance, ObjectName};

pub fn run(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    if let Ok(name) = ObjectName::parse(text) {
        assert_eq!(name.to_string(), text, "a name is written in one way");
        assert!(text.starts_with(&name.instance.daemon_prefix(name.daemon)));
        assert!(text.starts_with(&name.instance.prefix()));
        instance(name.instance.as_str());
    }
    instance(text);
    if name::check("region", text, REGION_BYTES_MAX).is_ok() {
        assert!((1..=REGION_BYTES_MAX).contains(&text.len()));
        assert!(!text.contains(['/', '\n', '\0', '\u{7f}']));
        // A header holds it padded with zeros, and finds its end by the first one.
        assert!(!text.as_bytes().contains(&0));
    }
}

fn instance(text: &str) {
    let plain = text.bytes().all(|byte| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-'
    });
    let fits = (1..=INSTANCE_BYTES_MAX).contains(&text.len());
    match Instance::new(text) {
        Ok(instance) => assert!(plain && fits && instance.as_str() == text),
        Err(_) => assert!(!plain || !fits),
    }
}
