//! Random numbers from the kernel, for GUIDs, nonces and seeds.
//!
//! # Invariants
//!
//! 1. Every bit comes from `getrandom`, initialised: the call waits for the kernel's pool at boot.

use std::io;

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// 64 random bits.
///
/// # Errors
///
/// An error of the kernel; with a kernel that DMCE supports there is none.
pub fn random_u64() -> io::Result<u64> {
    let mut bytes = [0; 8];
    fill(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// 128 random bits, as in a GUID.
///
/// # Errors
///
/// As [`random_u64`].
pub fn random_u128() -> io::Result<u128> {
    let mut bytes = [0; 16];
    fill(&mut bytes)?;
    Ok(u128::from_ne_bytes(bytes))
}

fn fill(bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match getrandom(&mut bytes[done..], GetRandomFlags::empty()) {
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_and_use_the_whole_width() {
        let numbers: Vec<u128> = (0..64).map(|_| random_u128().unwrap()).collect();
        let any_bit = numbers.iter().fold(0, |all, n| all | n);
        assert_eq!(any_bit, u128::MAX);
        assert_ne!(numbers[0], numbers[1]);
        assert_ne!(random_u64().unwrap(), random_u64().unwrap());
    }
}
