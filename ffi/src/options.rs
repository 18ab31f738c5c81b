//! `dmce_options_t` and `dmce_alloc_options_t`: what C may choose, and how Rust says it.

use std::ffi::c_char;

use libdmce::{AllocOptions, Options};

use crate::arguments::{path_or_none, text_or_empty};
use crate::failure::Failure;
use crate::sized;
use crate::version::DMCE_ABI_VERSION;

/// `flags` of `dmce_options_t`: a smaller reservation than asked for is fine.
pub const DMCE_ACCEPT_PARTIAL: u32 = 1;
/// `flags` of `dmce_options_t`: start a private broker and daemons if none is found.
pub const DMCE_SPAWN: u32 = 2;
/// `flags` of `dmce_options_t`: read and write by message, without any mapping.
pub const DMCE_MESSAGE_PATH: u32 = 4;
/// `flags` of `dmce_options_t`: compare what was written with what was to be written.
pub const DMCE_VERIFY: u32 = 8;
/// `flags` of `dmce_options_t`: no service thread; the program calls `dmce_poll`.
pub const DMCE_NO_THREAD: u32 = 16;

const SESSION_FLAGS: u32 =
    DMCE_ACCEPT_PARTIAL | DMCE_SPAWN | DMCE_MESSAGE_PATH | DMCE_VERIFY | DMCE_NO_THREAD;

/// `cache_mode`: no cache.
pub const DMCE_CACHE_NONE: u32 = 0;
/// `cache_mode`: a write is done when the memory has it.
pub const DMCE_CACHE_THROUGH: u32 = 1;
/// `cache_mode`: a write is done when the cache has it; `dmce_flush` brings it to the memory.
pub const DMCE_CACHE_BACK: u32 = 2;

/// `flags` of `dmce_alloc_options_t`: wait until there is space.
pub const DMCE_WAIT: u32 = 1;

/// How to open a session. Initialise it with `dmce_options_init`; zero is the default of each
/// field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dmce_options_t {
    /// `sizeof` of the structure, as the program was compiled.
    pub size: u32,
    /// `DMCE_ABI_VERSION`.
    pub abi_version: u32,
    /// Bytes to reserve for this session. 0: none, all memory is asked for as it is needed.
    pub reserve_bytes: u64,
    /// Bytes of address space to reach memory through; 32 GiB are the most that is used. 0: whole
    /// blocks are mapped in a 64-bit process, and 256 MiB are taken in a 32-bit one.
    /// `DMCE_WINDOW_BUDGET` in the environment replaces the 0.
    pub window_budget: u64,
    /// Bytes of the cache for memory that is not mapped.
    pub cache_bytes: u64,
    /// Copies of each allocation. 0: as the instance is configured.
    pub copies: u32,
    /// How long a call waits for a broker that is away, and on the message path for a daemon. 0:
    /// 10,000.
    pub timeout_ms: u32,
    /// `DMCE_ACCEPT_PARTIAL`, `DMCE_SPAWN`, `DMCE_MESSAGE_PATH`, `DMCE_VERIFY`, `DMCE_NO_THREAD`.
    /// With `DMCE_MESSAGE_PATH` nothing is mapped: daemons are asked for bytes, over connections
    /// that the broker passes, or through it where the environment says
    /// `DMCE_MESSAGE_ROUTE=broker`. A write that ends with `DMCE_E_TIMEOUT` may then be done yet,
    /// and a word for which a call ended with `DMCE_E_IO` may have been changed.
    pub flags: u32,
    /// `DMCE_CACHE_NONE`, `DMCE_CACHE_THROUGH`, `DMCE_CACHE_BACK`: for memory that is not mapped.
    pub cache_mode: u32,
    /// The broker's socket. NULL: `DMCE_SOCKET` of the environment, the host's, the user's own. One
    /// that is named and at which nobody listens is waited for, as its broker may be starting
    /// again; one that is not there is not.
    pub socket: *const c_char,
    /// What the session is called in listings. NULL: nothing.
    pub name: *const c_char,
}

/// How to allocate. Initialise it with `dmce_alloc_options_init`; zero is the default of each
/// field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dmce_alloc_options_t {
    /// `sizeof` of the structure, as the program was compiled.
    pub size: u32,
    /// Copies. 0: as the session. Too few daemons for them is an error, never silently fewer.
    pub copies: u32,
    /// The page size of the memory: a power of two from 4 KiB to 2 MiB. 0: the default.
    pub page_size: u32,
    /// Alignment: a power of two up to 2 MiB. 0: 16, and a page from 4 KiB up.
    pub align: u32,
    /// How long `DMCE_WAIT` waits. 0: for ever.
    pub timeout_ms: u32,
    /// `DMCE_WAIT`: until there is space on the daemon of every copy, or `DMCE_E_TIMEOUT`. Other
    /// calls of the session go on meanwhile. Without it the answer is immediate, unless the policy
    /// waits.
    pub flags: u32,
    /// 0: by size from the configured table; else a number of that table, or `DMCE_E_NOTFOUND`.
    /// What else is said here comes first.
    pub policy: u32,
    /// The node to prefer. 0: no preference.
    pub numa_node: u32,
    /// A name for logs and listings. NULL: none.
    pub label: *const c_char,
}

/// `dmce_options_init(options)` for a structure of `size` bytes. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_options_init_sized(options: *mut dmce_options_t, size: usize) {
    // SAFETY: the C contract: NULL, or a structure of so many bytes.
    unsafe { sized::init(options, size) };
    if !options.is_null() && size >= std::mem::offset_of!(dmce_options_t, reserve_bytes) {
        // SAFETY: the structure has the field, as its size says.
        let version = unsafe { &raw mut (*options).abi_version };
        // SAFETY: the same; a field of the caller's structure may be written.
        unsafe { version.write_unaligned(DMCE_ABI_VERSION) };
    }
}

/// `dmce_alloc_options_init(options)` for a structure of `size` bytes. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_alloc_options_init_sized(
    options: *mut dmce_alloc_options_t,
    size: usize,
) {
    // SAFETY: the C contract: NULL, or a structure of so many bytes.
    unsafe { sized::init(options, size) };
}

/// Reads the options of `dmce_open`; NULL means the defaults.
///
/// # Safety
///
/// As [`sized::take`]; the texts are NULL or C strings.
pub(crate) unsafe fn of_session(options: *const dmce_options_t) -> Result<Options, Failure> {
    // SAFETY: the same contract.
    let c = unsafe { sized::take_or_default(options)? };
    if !matches!(c.abi_version, 0 | DMCE_ABI_VERSION) {
        return Err(Failure::new(
            libdmce::Status::Version,
            format!("abi_version is {}, the library has {DMCE_ABI_VERSION}", c.abi_version),
        ));
    }
    only_known("dmce_options_t", c.flags, SESSION_FLAGS)?;
    match c.cache_mode {
        DMCE_CACHE_NONE => {}
        DMCE_CACHE_THROUGH | DMCE_CACHE_BACK => {
            return Err(Failure::unsupported("a cache is for the message path alone"));
        }
        other => return Err(Failure::invalid(format!("{other} is no cache_mode"))),
    }
    let has = |flag| c.flags & flag != 0;
    Ok(Options {
        reserve_bytes: c.reserve_bytes,
        window_budget: c.window_budget,
        cache_bytes: c.cache_bytes,
        copies: c.copies,
        timeout_ms: c.timeout_ms,
        accept_partial: has(DMCE_ACCEPT_PARTIAL),
        spawn: has(DMCE_SPAWN),
        message_path: has(DMCE_MESSAGE_PATH),
        verify: has(DMCE_VERIFY),
        no_thread: has(DMCE_NO_THREAD),
        // SAFETY: the C contract of the field: NULL or a C string.
        socket: unsafe { path_or_none(c.socket) },
        // SAFETY: the same.
        name: unsafe { text_or_empty("name", c.name)? }.to_owned(),
    })
}

/// Reads the options of an allocation; NULL means the defaults.
///
/// # Safety
///
/// As [`of_session`].
pub(crate) unsafe fn of_alloc(
    options: *const dmce_alloc_options_t,
) -> Result<AllocOptions, Failure> {
    // SAFETY: the same contract.
    let c = unsafe { sized::take_or_default(options)? };
    only_known("dmce_alloc_options_t", c.flags, DMCE_WAIT)?;
    Ok(AllocOptions {
        copies: c.copies,
        page_size: c.page_size,
        align: c.align,
        timeout_ms: c.timeout_ms,
        wait: c.flags & DMCE_WAIT != 0,
        policy: c.policy,
        numa_node: c.numa_node,
        // SAFETY: the C contract of the field: NULL or a C string.
        label: unsafe { text_or_empty("label", c.label)? }.to_owned(),
    })
}

/// Refuses flags that mean nothing, so that they can mean something later.
pub(crate) fn only_known(structure: &str, flags: u32, known: u32) -> Result<(), Failure> {
    if flags & !known == 0 {
        return Ok(());
    }
    Err(Failure::invalid(format!(
        "flags {flags:#x} of {structure} has bits that mean nothing, {known:#x} do"
    )))
}
