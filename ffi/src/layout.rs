//! The layout of every structure that C sees, asserted when this is compiled, for both widths.
//!
//! The same numbers stand in `tests/c/layout.c`, where a C compiler checks the header by them.
//!
//! # Invariants
//!
//! 1. Each field begins where the one before it ends, and the last one ends the structure: there
//!    is no padding, on 64 bits or on 32, where a `u64` is aligned to 4.
//! 2. Structures grow at their end alone.

use std::mem::offset_of;

use crate::event::dmce_event_t;
use crate::options::{dmce_alloc_options_t, dmce_options_t};
use crate::region::{dmce_region_info_t, dmce_region_options_t};
use crate::session::dmce_stat_t;
use crate::sized::SizePrefixed;

/// `layout!(TYPE SIZE, [FIELD OFFSET, ..])`; `64 / 56` is a number for 64 bits and one for 32.
macro_rules! layout {
    ($type:ident $size:literal $(/ $size32:literal)?,
     [$($field:ident $at:literal $(/ $at32:literal)?),+ $(,)?]) => {
        const _: () = {
            assert!(size_of::<$type>() == by_width($size, &[$($size32)?]));
            assert!(align_of::<$type>() == align_of::<u64>());
            let mut end = 0;
            $(
                assert!(offset_of!($type, $field) == by_width($at, &[$($at32)?]));
                assert!(offset_of!($type, $field) == end);
                end += size_of_field(|whole: &$type| &whole.$field);
            )+
            assert!(end == size_of::<$type>());
        };

        // SAFETY: repr(C), integers and pointers alone, and without padding, as asserted above; the
        // first field of each is `size`.
        unsafe impl SizePrefixed for $type {
            const NAME: &'static str = stringify!($type);
            const FIELD_ENDS: &'static [usize] =
                &[$(offset_of!($type, $field) + size_of_field(|whole: &$type| &whole.$field)),+];
        }
    };
}

const fn by_width(on_64: usize, on_32: &[usize]) -> usize {
    if cfg!(target_pointer_width = "32") && !on_32.is_empty() { on_32[0] } else { on_64 }
}

const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

layout!(dmce_options_t 64 / 56, [
    size 0, abi_version 4, reserve_bytes 8, window_budget 16, cache_bytes 24, copies 32,
    timeout_ms 36, flags 40, cache_mode 44, socket 48, name 56 / 52,
]);

layout!(dmce_event_t 24, [size 0, kind 4, addr 8, bytes 16]);

layout!(dmce_alloc_options_t 40 / 36, [
    size 0, copies 4, page_size 8, align 12, timeout_ms 16, flags 20, policy 24, numa_node 28,
    label 32,
]);

layout!(dmce_region_options_t 32, [
    size 0, mode 4, base_pointer 8, copies 16, page_size 20, flags 24, reserved 28,
]);

layout!(dmce_region_info_t 40, [
    size 0, copies 4, region_size 8, base_pointer 16, first 24, primary_daemon 32,
    mirror_daemon 36,
]);

layout!(dmce_stat_t 80, [
    size 0, server_bits 4, block_bits 8, cell_bits 12, reserved_bytes 16, allocated_bytes 24,
    committed_bytes 32, quota_bytes 40, blocks 48, windows 56, window_bytes 64, epoch 72,
]);
