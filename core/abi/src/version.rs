//! The three versions that a mismatch is reported with.

/// The C interface (`libdmce.h`). Grows with additions, breaks with the major number.
pub const ABI_VERSION: u32 = 1;

/// The messages ([`crate::wire`]). Both sides of a connection speak the same one.
pub const WIRE_VERSION: u16 = 2;

/// The layout of the shared objects (`docs/shared-memory.md`). Objects of another are not adopted.
pub const SEGMENT_VERSION: u32 = 2;

/// The release, as `dmce_version()` gives it: `major << 16 | minor << 8 | patch`.
pub const RELEASE: u32 = 1 << 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_the_version_of_the_package() {
        let mut parts = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap());
        let mut packed = 0_u32;
        for _ in 0..3 {
            packed = packed << 8 | parts.next().unwrap_or(0_u32);
        }
        assert_eq!(packed, RELEASE);
    }
}
