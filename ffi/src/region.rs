//! Regions: named memory that outlives sessions (004).

use std::ffi::{c_char, c_void};
use std::ptr;

use libdmce::{Mirror, Region, RegionOptions, Status};

use crate::alloc::dmce_addr_t;
use crate::arguments::{Out, buffer as check_buffer, text};
use crate::boundary::{self, InSession};
use crate::failure::Failure;
use crate::handles::{self, Object};
use crate::later;
use crate::map;
use crate::options::only_known;
use crate::session::dmce_session_t;
use crate::sized::{self, Fill};
use crate::strings::List;
use crate::version::dmce_status_t;

/// `mirror` of a read: any half that is there.
pub const DMCE_PM_ANY: u32 = 0;
/// `mirror`: the half that was created as the primary, alone.
pub const DMCE_PM_PRIMARY: u32 = 1;
/// `mirror`: the half that was created as the mirror, alone.
pub const DMCE_PM_MIRROR: u32 = 2;
/// `mirror` of a write: every half that exists.
pub const DMCE_PM_BOTH: u32 = 3;

/// Stands for an open region in C. No value of it exists: see [`handles`].
#[repr(C)]
pub struct dmce_region_t {
    _private: [u8; 0],
}

/// What the handle of a region stands for.
pub(crate) struct OpenRegion {
    pub(crate) region: Region,
    /// The handle of the session that opened it.
    session: usize,
}

impl Object for OpenRegion {
    const KIND: usize = 2;
    const NAME: &'static str = "region";
}

impl InSession for OpenRegion {
    fn session_handle(&self, _own: usize) -> usize {
        self.session
    }

    fn check(&self) -> Result<(), libdmce::Error> {
        self.region.info().map(drop)
    }
}

/// How to create a region. Initialise it with `dmce_region_options_init`; zero is the default of
/// each field.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dmce_region_options_t {
    /// `sizeof` of the structure, as the program was compiled.
    pub size: u32,
    /// Nine permission bits, as of a file. 0: 0600.
    pub mode: u32,
    /// What a pointer to the first byte reads. 0: offsets, as in a file. Fixed for ever.
    pub base_pointer: u64,
    /// Copies. 0: as the instance is configured.
    pub copies: u32,
    /// The page size of the memory: a power of two from 4 KiB to 2 MiB. 0: the default.
    pub page_size: u32,
    /// No flag is defined yet.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// What opening a region found. Set `size` before the call.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct dmce_region_info_t {
    /// `sizeof` of the structure, as the program was compiled.
    pub size: u32,
    /// Copies that were asked for. How many there are of each block, `dmce blocks` tells.
    pub copies: u32,
    /// Bytes.
    pub region_size: u64,
    /// What a pointer to the first byte reads.
    pub base_pointer: u64,
    /// The address of the first byte.
    pub first: dmce_addr_t,
    /// The daemon that holds the primary half.
    pub primary_daemon: u32,
    /// The daemon that holds the mirror. 0: none.
    pub mirror_daemon: u32,
}

/// `dmce_region_options_init(options)` for a structure of `size` bytes. NULL is ignored.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_options_init_sized(
    options: *mut dmce_region_options_t,
    size: usize,
) {
    // SAFETY: the C contract: NULL, or a structure of so many bytes.
    unsafe { sized::init(options, size) };
}

/// Makes a region of `region_size` bytes, all zero. `options` may be NULL. A volume that does not
/// exist is made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_create(
    session: *mut dmce_session_t,
    volume: *const c_char,
    name: *const c_char,
    region_size: u64,
    options: *const dmce_region_options_t,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL or C strings.
        let (volume, name) = unsafe { names(volume, name)? };
        // SAFETY: the C contract: NULL, or options that begin with their size.
        let c = unsafe { sized::take_or_default(options)? };
        only_known("dmce_region_options_t", c.flags | c.reserved, 0)?;
        let options = RegionOptions {
            mode: c.mode,
            base_pointer: c.base_pointer,
            copies: c.copies,
            page_size: c.page_size,
        };
        Ok(session.region_create(volume, name, region_size, &options)?)
    })
}

/// Deletes a region. A handle of this session answers `DMCE_E_CLOSED` afterwards. `DMCE_E_BUSY`
/// while another session has it open, or if the daemon that holds its beginning stays away: then
/// nothing is deleted. After `DMCE_E_UNAVAILABLE` it may go yet, and the handles are closed even if
/// it stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_delete(
    session: *mut dmce_session_t,
    volume: *const c_char,
    name: *const c_char,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL or C strings.
        let (volume, name) = unsafe { names(volume, name)? };
        Ok(session.region_delete(volume, name)?)
    })
}

/// Opens a region. `prot` is `DMCE_READ`, `DMCE_WRITE`, or both; what the region's mode does not
/// grant is `DMCE_E_DENIED`. A region that the caller neither owns nor has any right to is
/// `DMCE_E_NOTFOUND`, as it is for `dmce_region_delete`; `dmce_region_list` leaves it out. Memory
/// that may be written can be read: with `DMCE_WRITE` alone only `dmce_region_read` refuses.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_open(
    session: *mut dmce_session_t,
    volume: *const c_char,
    name: *const c_char,
    prot: u32,
    region: *mut *mut dmce_region_t,
) -> dmce_status_t {
    let parent = session.addr();
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or a place for a handle.
        let out = unsafe { Out::new("region", region)? };
        // SAFETY: the C contract: NULL or C strings.
        let (volume, name) = unsafe { names(volume, name)? };
        let region = session.region_open(volume, name, map::prot(prot)?)?;
        let opened = handles::open(OpenRegion { region, session: parent }, parent);
        let handle = opened.map_err(|(unused, failure)| {
            // The caller learns why there is no handle; that closing failed too adds nothing.
            let _ = unused.region.close();
            failure
        })?;
        out.set(ptr::without_provenance_mut(handle));
        Ok(())
    })
}

/// Closes a region.
///
/// The handle is closed in any case but two: `DMCE_E_FORKED`, and `DMCE_E_BUSY` while a pointer of
/// `dmce_map` or `dmce_region_map` is into the region and this is its last handle.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_close(region: *mut dmce_region_t) -> dmce_status_t {
    let handle = region.addr();
    boundary::closing::<OpenRegion>(handle, || {
        // The visit is over with this line, or retiring the handle would wait for it.
        let closed = handles::enter::<OpenRegion>(handle)?.region.close();
        match closed {
            Err(error) if matches!(error.status(), Status::Forked | Status::Busy) => {
                Err(error.into())
            }
            // Of two that close at a time, libdmce tells one so; the table may tell the other.
            closed => {
                drop(handles::retire::<OpenRegion>(handle)?);
                Ok(closed?)
            }
        }
    })
}

/// Reads `bytes` bytes from `read_pointer` on. `mirror` is `DMCE_PM_ANY`, `DMCE_PM_PRIMARY` or
/// `DMCE_PM_MIRROR`: any copy that is there, or the half that was created as that, and
/// `DMCE_E_NOCOPY` if that one is away.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_read(
    region: *mut dmce_region_t,
    read_pointer: u64,
    buffer: *mut c_void,
    bytes: usize,
    mirror: u32,
) -> dmce_status_t {
    boundary::region(region, |region| {
        check_buffer(buffer, bytes)?;
        let half = match mirror {
            DMCE_PM_ANY => Mirror::Any,
            other => one_half(other, "read")?,
        };
        // SAFETY: the C contract: `bytes` bytes at `buffer` may be written, by nobody else
        // meanwhile; NULL only if they are none.
        unsafe { region.read_raw(read_pointer, buffer.cast(), bytes, half)? };
        Ok(())
    })
}

/// Writes `bytes` bytes from `write_pointer` on. `mirror` is `DMCE_PM_BOTH`, `DMCE_PM_PRIMARY` or
/// `DMCE_PM_MIRROR`: all copies that there are, or one half alone, and `DMCE_E_NOCOPY` if that one
/// is away. After a write to one half the copies differ, as it was wanted, until all of the range
/// is written with `DMCE_PM_BOTH`, or `dmce region resync` is called.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_write(
    region: *mut dmce_region_t,
    write_pointer: u64,
    buffer: *const c_void,
    bytes: usize,
    mirror: u32,
) -> dmce_status_t {
    boundary::region(region, |region| {
        check_buffer(buffer, bytes)?;
        let half = match mirror {
            DMCE_PM_BOTH => Mirror::Both,
            other => one_half(other, "write")?,
        };
        // SAFETY: the C contract: `bytes` bytes at `buffer` may be read and do not change; NULL
        // only if they are none.
        unsafe { region.write_raw(write_pointer, buffer.cast(), bytes, half)? };
        Ok(())
    })
}

/// What opening the region found. `info->size` must be set; no more than that is written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_info(
    region: *mut dmce_region_t,
    info: *mut dmce_region_info_t,
) -> dmce_status_t {
    boundary::region(region, |region| {
        // SAFETY: the C contract: NULL, or a structure that begins with its size.
        let fill = unsafe { Fill::new(info)? };
        let found = region.info()?;
        fill.set(&dmce_region_info_t {
            size: 0,
            copies: found.copies,
            region_size: found.region_size,
            base_pointer: found.base_pointer,
            first: found.first.to_raw(),
            primary_daemon: found.primary_daemon,
            mirror_daemon: found.mirror_daemon,
        });
        Ok(())
    })
}

/// The DMCE address of a pointer into the region, so that every other call works on it too.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_addr(
    region: *mut dmce_region_t,
    pointer: u64,
    addr: *mut dmce_addr_t,
) -> dmce_status_t {
    boundary::region(region, |region| {
        // SAFETY: the C contract: NULL, or a place for an address.
        let out = unsafe { Out::new("addr", addr)? };
        out.set(region.addr(pointer)?.to_raw());
        Ok(())
    })
}

/// The names of a volume's regions, sorted.
///
/// `names` is an array of `list_size` entries, which get texts for `dmce_strings_free`; entries
/// without a text get NULL. `region_cnt` gets how many regions there are, which may be more. (NULL,
/// 0) only counts.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_list(
    session: *mut dmce_session_t,
    volume: *const c_char,
    names: *mut *mut c_char,
    list_size: usize,
    region_cnt: *mut usize,
) -> dmce_status_t {
    boundary::session(session, |session| {
        // SAFETY: the C contract: NULL, or an array of that size and a place for a number.
        let list = unsafe { List::new(names, list_size, region_cnt)? };
        // SAFETY: the C contract: NULL or a C string.
        let volume = unsafe { text("volume", volume)? };
        list.set(session.region_list(volume)?)
    })
}

const RESIZING: &str = "resizing a region is not in this release";
const RENAMING: &str = "renaming a region is not in this release";
const ROOTS: &str = "named places inside a region are not in this release";
const FLUSHING: &str = "files behind a region are not in this release";

/// Changes the size of a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_resize(
    session: *mut dmce_session_t,
    volume: *const c_char,
    name: *const c_char,
    region_size: u64,
) -> dmce_status_t {
    let _ = region_size;
    later::on_session(session, &[("volume", volume.is_null()), ("name", name.is_null())], RESIZING)
}

/// Renames a region.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_rename(
    session: *mut dmce_session_t,
    volume: *const c_char,
    name: *const c_char,
    new_name: *const c_char,
) -> dmce_status_t {
    let required =
        [("volume", volume.is_null()), ("name", name.is_null()), ("new_name", new_name.is_null())];
    later::on_session(session, &required, RENAMING)
}

/// Names a place inside the region, or moves the name, atomically.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_root_set(
    region: *mut dmce_region_t,
    root: *const c_char,
    pointer: u64,
) -> dmce_status_t {
    let _ = pointer;
    later::on_region(region, &[("root", root.is_null())], ROOTS)
}

/// The place that a name stands for.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_root_get(
    region: *mut dmce_region_t,
    root: *const c_char,
    pointer: *mut u64,
) -> dmce_status_t {
    let required = [("root", root.is_null()), ("pointer", pointer.is_null())];
    later::on_region(region, &required, ROOTS)
}

/// Maps the whole region, at `base_pointer` where that is free in this process, else
/// `DMCE_E_NOMEM`; anywhere if `base_pointer` is 0. `prot` is `DMCE_READ`, or
/// `DMCE_READ | DMCE_WRITE`.
///
/// It is mapped until `dmce_unmap`, which brings what was stored to every copy, as `dmce_sync` does
/// before; until then the region's last handle cannot be closed: `DMCE_E_BUSY`. The page that the
/// last byte is in is mapped to its end; `dmce_addr_of` ends with the byte. Mapped again by the
/// same session, with the same rights, it is the same pointer, which ends with as many calls of
/// `dmce_unmap`; with other rights, `DMCE_E_BUSY`. A `base_pointer` that is no multiple of 4 KiB
/// cannot be mapped.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_map(
    region: *mut dmce_region_t,
    prot: u32,
    pointer: *mut *mut c_void,
) -> dmce_status_t {
    boundary::region(region, |region| {
        // SAFETY: the C contract: NULL, or a place for a pointer.
        let out = unsafe { Out::new("pointer", pointer)? };
        out.set(region.map(map::prot(prot)?)?.cast());
        Ok(())
    })
}

/// Brings the region to the file behind it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dmce_region_flush(region: *mut dmce_region_t) -> dmce_status_t {
    later::on_region(region, &[], FLUSHING)
}

/// The two texts that name a region.
///
/// # Safety
///
/// Each is NULL or a C string that does not change while the result is used.
unsafe fn names<'a>(
    volume: *const c_char,
    name: *const c_char,
) -> Result<(&'a str, &'a str), Failure> {
    // SAFETY: the same contract.
    let volume = unsafe { text("volume", volume)? };
    // SAFETY: the same contract.
    let name = unsafe { text("name", name)? };
    Ok((volume, name))
}

fn one_half(mirror: u32, verb: &str) -> Result<Mirror, Failure> {
    match mirror {
        DMCE_PM_PRIMARY => Ok(Mirror::Primary),
        DMCE_PM_MIRROR => Ok(Mirror::Mirror),
        other => Err(Failure::invalid(format!("{other} is no half to {verb}"))),
    }
}
