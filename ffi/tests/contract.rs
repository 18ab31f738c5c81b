//! The C contract, as far as it holds without any server: NULLs, handles that are none, options of
//! other ages, texts of errors. `tests/c` holds it with servers.

#![allow(
    clippy::multiple_unsafe_ops_per_block,
    reason = "a block is a list of calls with one and the same contract"
)]

use std::ffi::{CStr, c_int, c_void};
use std::ptr;

use dmce::access::*;
use dmce::alloc::*;
use dmce::attrs::*;
use dmce::context::*;
use dmce::event::*;
use dmce::map::*;
use dmce::options::*;
use dmce::pointer::*;
use dmce::region::*;
use dmce::session::*;
use dmce::strings::*;
use dmce::version::*;

/// Where nobody listens.
const NOWHERE: &CStr = c"/nonexistent/dmce/broker.sock";

fn last_error() -> String {
    // SAFETY: a C string of this thread.
    unsafe { CStr::from_ptr(dmce_last_error()) }.to_string_lossy().into_owned()
}

fn options() -> dmce_options_t {
    let mut options = std::mem::MaybeUninit::<dmce_options_t>::uninit();
    // SAFETY: room for the whole structure.
    unsafe { dmce_options_init_sized(options.as_mut_ptr(), size_of::<dmce_options_t>()) };
    // SAFETY: `init` filled all of it.
    let mut options = unsafe { options.assume_init() };
    options.socket = NOWHERE.as_ptr();
    options
}

/// Opens, which fails everywhere in this file; checks that no handle was given out.
fn open(options: *const dmce_options_t) -> dmce_status_t {
    let untouched = ptr::without_provenance_mut(0x5a5a);
    let mut session = untouched;
    // SAFETY: NULL or options that state their size, and a place for a handle.
    let status = unsafe { dmce_open(options, &raw mut session) };
    assert_eq!(session, untouched, "an output was written by a call that failed");
    status
}

#[test]
fn a_broker_that_is_not_there_is_unavailable_and_the_text_names_its_place() {
    let options = options();
    assert_eq!(open(&raw const options), DMCE_E_UNAVAILABLE);
    assert!(last_error().contains(NOWHERE.to_str().unwrap()), "{}", last_error());
}

/// The options of a program that knows one field more.
#[repr(C)]
struct Newer {
    known: dmce_options_t,
    unknown: [u8; 8],
}

#[test]
fn options_of_another_age_are_told_apart_from_garbage() {
    let whole = u32::try_from(size_of::<dmce_options_t>()).unwrap();
    let with_size = |size| dmce_options_t { size, ..options() };
    for size in [0, 3, whole - 1, 4097, u32::MAX] {
        let garbage = with_size(size);
        assert_eq!(open(&raw const garbage), DMCE_E_INVALID, "{size}");
    }
    let mut newer = Newer { known: with_size(whole + 8), unknown: [0; 8] };
    assert_eq!(open((&raw const newer).cast()), DMCE_E_UNAVAILABLE);
    newer.unknown[7] = 1;
    assert_eq!(open((&raw const newer).cast()), DMCE_E_VERSION);

    let other = dmce_options_t { abi_version: DMCE_ABI_VERSION + 1, ..options() };
    assert_eq!(open(&raw const other), DMCE_E_VERSION);
}

#[test]
fn options_that_mean_nothing_are_refused() {
    for bad in [
        dmce_options_t { flags: 1 << 31, ..options() },
        dmce_options_t { cache_mode: 3, ..options() },
        dmce_options_t { name: c"\xff".as_ptr(), ..options() },
    ] {
        assert_eq!(open(&raw const bad), DMCE_E_INVALID, "{bad:?}");
    }
    let cached = dmce_options_t { cache_mode: DMCE_CACHE_BACK, ..options() };
    assert_eq!(open(&raw const cached), DMCE_E_UNSUPPORTED);
    // SAFETY: an output that is NULL is refused before it is used.
    assert_eq!(unsafe { dmce_open(ptr::null(), ptr::null_mut()) }, DMCE_E_INVALID);
}

/// Every call that takes a session, with outputs that are there, and what it should answer.
///
/// # Safety
///
/// `session` is a handle, or was never one.
unsafe fn calls_on(session: *mut dmce_session_t) -> Vec<(&'static str, dmce_status_t)> {
    let (mut addr, mut word, mut order, mut count) = (0, 0, 0, 0);
    let mut bytes = [0_u8; 8];
    let buffer: *mut c_void = bytes.as_mut_ptr().cast();
    let mut pointer = ptr::null_mut();
    let mut read_pointer = ptr::null();
    let (volume, name) = (c"v".as_ptr(), c"n".as_ptr());
    let mut region = ptr::null_mut();
    let mut attrs = ptr::null_mut();
    macro_rules! calls {
        ($($function:ident($($argument:expr),*);)+) => {
            // SAFETY: outputs and texts are locals; handles by this function's own contract.
            vec![$((stringify!($function), unsafe { $function(session, $($argument),*) })),+]
        };
    }
    calls! {
        dmce_close();
        dmce_poll();
        dmce_flush();
        dmce_event_fd(&raw mut order);
        dmce_malloc(1, &raw mut addr);
        dmce_malloc_ex(1, ptr::null(), &raw mut addr);
        dmce_calloc(1, 1, &raw mut addr);
        dmce_realloc(0, 1, &raw mut addr);
        dmce_free(0);
        dmce_usable_size(1 << 40, &raw mut word);
        dmce_read(1 << 40, buffer, 8);
        dmce_write(1 << 40, buffer, 8);
        dmce_cas64(1 << 40, 0, 1, &raw mut word);
        dmce_add64(1 << 40, 1, &raw mut word);
        dmce_wait64(1 << 40, 0, 1);
        dmce_wake(1 << 40, 1);
        dmce_copy(1 << 40, 1 << 40, 1);
        dmce_fill(1 << 40, 0, 1);
        dmce_compare(1 << 40, buffer, 8, &raw mut order);
        dmce_map(1 << 40, 1, DMCE_READ, &raw mut pointer);
        dmce_unmap(buffer);
        dmce_read_ptr(1 << 40, 1, 0, &raw mut read_pointer);
        dmce_write_ptr(1 << 40, 1, 0, &raw mut pointer);
        dmce_release_ptr(buffer);
        dmce_abort_ptr(buffer);
        dmce_cancel_ptr(1 << 40, 1);
        dmce_vmalloc(1, ptr::null(), &raw mut pointer);
        dmce_vfree(buffer);
        dmce_sync(buffer, 1);
        dmce_addr_of(buffer, &raw mut addr);
        dmce_ptr_of(1 << 40, &raw mut pointer);
        dmce_region_create(volume, name, 1, ptr::null());
        dmce_region_delete(volume, name);
        dmce_region_open(volume, name, DMCE_READ, &raw mut region);
        dmce_region_resize(volume, name, 1);
        dmce_region_rename(volume, name, name);
        dmce_region_list(volume, ptr::null_mut(), 0, &raw mut count);
        dmce_region_attrs(volume, name, &raw mut attrs);
        dmce_context_save(name, buffer, 8);
        dmce_context_restore(name, buffer, 8, &raw mut count);
        dmce_context_delete(name);
    }
}

/// Every call that takes a region.
///
/// # Safety
///
/// `region` is a handle, or was never one.
unsafe fn calls_on_region(region: *mut dmce_region_t) -> Vec<(&'static str, dmce_status_t)> {
    let mut word = 0;
    let mut bytes = [0_u8; 8];
    let buffer: *mut c_void = bytes.as_mut_ptr().cast();
    let mut pointer = ptr::null_mut();
    macro_rules! calls {
        ($($function:ident($($argument:expr),*);)+) => {
            // SAFETY: outputs and texts are locals; handles by this function's own contract.
            vec![$((stringify!($function), unsafe { $function(region, $($argument),*) })),+]
        };
    }
    calls! {
        dmce_region_close();
        dmce_region_root_set(c"r".as_ptr(), 0);
        dmce_region_root_get(c"r".as_ptr(), &raw mut word);
        dmce_region_read(0, buffer, 8, DMCE_PM_ANY);
        dmce_region_write(0, buffer, 8, DMCE_PM_BOTH);
        dmce_region_map(DMCE_READ, &raw mut pointer);
        dmce_region_addr(0, &raw mut word);
        dmce_region_flush();
    }
}

#[test]
fn what_was_never_a_handle_is_invalid_everywhere_and_is_not_touched() {
    let local = [0_u64; 8];
    let aligned = ptr::from_ref(&local).addr();
    for garbage in [0, 1, 2, 3, 0x1001, aligned, usize::MAX, usize::MAX - 2] {
        // SAFETY: none of these was ever given out: no session is ever opened in this process.
        let calls = unsafe { calls_on(ptr::without_provenance_mut(garbage)) };
        // SAFETY: the same.
        let on_region = unsafe { calls_on_region(ptr::without_provenance_mut(garbage)) };
        for (function, status) in calls.into_iter().chain(on_region) {
            assert_eq!(status, DMCE_E_INVALID, "{function}({garbage:#x})");
            assert!(last_error().starts_with("invalid argument: "), "{function}: {}", last_error());
        }
    }
}

#[test]
fn structures_that_a_call_fills_do_not_need_a_good_size_to_be_refused() {
    let mut stat = dmce_stat_t { size: 3, ..zeroed() };
    let mut info = dmce_region_info_t { size: 3, ..zeroed() };
    let mut event = dmce_event_t { size: 3, ..zeroed() };
    // SAFETY: NULL handles, and structures that are there.
    let statuses = unsafe {
        [
            dmce_stat(ptr::null_mut(), &raw mut stat),
            dmce_region_info(ptr::null_mut(), &raw mut info),
            dmce_event_next(ptr::null_mut(), &raw mut event),
        ]
    };
    assert_eq!(statuses, [DMCE_E_INVALID; 3]);
    assert_eq!((stat.size, info.size, event.size), (3, 3, 3));
}

fn zeroed<T>() -> T {
    // SAFETY: used with the interface's structures alone, which zeros make a value of.
    unsafe { std::mem::zeroed() }
}

#[test]
fn attributes_are_checked_like_everything_else() {
    let (mut long, mut int, mut short, mut text) = (0_u64, 0_u32, 0_u16, [0; 4]);
    let name = c"mode".as_ptr();
    for attrs in [ptr::null(), ptr::dangling()] {
        // SAFETY: attributes that were never given out are not touched; the rest are locals.
        let statuses = unsafe {
            [
                dmce_attr_u64(attrs, name, &raw mut long),
                dmce_attr_u32(attrs, name, &raw mut int),
                dmce_attr_u16(attrs, name, &raw mut short),
                dmce_attr_str(attrs, name, text.as_mut_ptr(), text.len()),
                dmce_attr_u64(attrs, ptr::null(), &raw mut long),
                dmce_attr_u64(attrs, name, ptr::null_mut()),
            ]
        };
        assert_eq!(statuses, [DMCE_E_INVALID; 6]);
    }
    // SAFETY: NULL is fine in both.
    unsafe {
        dmce_attrs_free(ptr::null_mut());
        dmce_strings_free(ptr::null_mut(), 3);
    }
}

#[test]
fn init_sets_the_size_the_version_and_nothing_behind_the_stated_bytes() {
    let whole = size_of::<dmce_options_t>();
    let options = options();
    assert_eq!(usize::try_from(options.size), Ok(whole));
    assert_eq!(options.abi_version, DMCE_ABI_VERSION);
    assert_eq!((options.flags, options.copies, options.timeout_ms), (0, 0, 0));

    let mut small = [0xff_u8; 16];
    // SAFETY: eight bytes of sixteen.
    unsafe { dmce_options_init_sized(small.as_mut_ptr().cast(), 8) };
    assert_eq!(small[..8], [8, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(small[8..], [0xff; 8]);
    // SAFETY: NULL is ignored, as are structures without room for a size.
    unsafe {
        dmce_options_init_sized(ptr::null_mut(), whole);
        dmce_alloc_options_init_sized(ptr::null_mut(), 40);
        dmce_region_options_init_sized(ptr::null_mut(), 32);
        dmce_options_init_sized(small.as_mut_ptr().cast(), 3);
    }
    assert_eq!(small[0], 8);
}

#[test]
fn errors_have_static_texts_and_the_version_is_the_headers() {
    // SAFETY: static C strings.
    let text = |status: c_int| unsafe { CStr::from_ptr(dmce_strerror(status)) };
    assert_eq!(text(DMCE_OK), c"success");
    assert_eq!(text(DMCE_E_FORKED), c"handle of the parent process");
    assert_eq!(text(1000), c"unknown status");
    assert_eq!(dmce_version(), DMCE_VERSION);
}
