//! What the scheduler says of the calling thread.

use std::fs;
use std::io::{self, ErrorKind};

/// For how long in all the calling thread has waited for a processor that others had, in
/// nanoseconds.
///
/// # Errors
///
/// Those of reading `/proc/thread-self/schedstat`; [`ErrorKind::InvalidData`] if it says what no
/// kernel says.
pub fn waited_ns() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/thread-self/schedstat")?;
    parse_waited(&text).ok_or_else(|| ErrorKind::InvalidData.into())
}

/// The second field: nanoseconds spent waiting on a run queue.
fn parse_waited(text: &str) -> Option<u64> {
    text.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_a_thread_waits_is_found() {
        assert_eq!(parse_waited("81562811 340713 52\n"), Some(340_713));
        for text in ["", "81562811", "81562811 -1 52", "81562811 none 52"] {
            assert_eq!(parse_waited(text), None, "{text}");
        }
        let before = waited_ns().unwrap();
        assert!(waited_ns().unwrap() >= before);
    }
}
