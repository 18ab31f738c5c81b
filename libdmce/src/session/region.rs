//! Regions (004): named memory that outlives sessions.
//!
//! # Invariants
//!
//! 1. A handle reaches `base_pointer .. base_pointer + region_size`, to the byte, with the rights
//!    that it was opened with.
//! 2. Each handle is an opening of the broker's, with a number that no other handle has.
//! 3. A handle whose region is gone, or that the broker does not know any more, answers `CLOSED`,
//!    as one that was closed does.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use dmce_abi::block::{BlockId, Half};
use dmce_abi::limits::{REGION_BYTES_MAX, VOLUME_BYTES_MAX};
use dmce_abi::name;
use dmce_abi::wire::client::{
    ClientReply, ClientRequest, Opened, OpeningId, RegionCreate, RegionKey, RegionList, RegionName,
    RegionOpen,
};
use dmce_abi::{DmceAddr, Status};
use dmce_shm::session::pin::PinnedRange;

use super::core::{Core, busy};
use super::openings::{closed, span_of};
use super::service::can_be_later;
use crate::block::check_info;
use crate::connection::Deadline;
use crate::error::Error;
use crate::options::{Mirror, Prot, RegionOptions};
use crate::reach::given::Given;
use crate::stat::RegionInfo;

/// How long a delete waits before it is asked again: so long at first, and twice as long each time.
const DELETE_PAUSE_MIN: Duration = Duration::from_millis(5);
const DELETE_PAUSE_MAX: Duration = Duration::from_millis(100);

/// An open region. Dropping it closes it.
pub struct Region {
    core: Arc<Core>,
    info: RegionInfo,
    opening: OpeningId,
    first: BlockId,
    prot: Prot,
    /// Set by close, and when the opening has ended otherwise.
    is_over: Arc<AtomicBool>,
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("info", &self.info)
            .field("prot", &self.prot)
            .field("is_over", &self.is_over)
            .finish_non_exhaustive()
    }
}

impl Region {
    /// Ends the use of the region by this handle. Its pointers and the region itself stay.
    ///
    /// # Errors
    ///
    /// [`Status::Closed`] for a handle that is closed already, [`Status::Busy`] while a pointer of
    /// [`Region::map`] or [`crate::Session::map`] is into the region and this is its last handle,
    /// or the last with the pointer's right to write; [`Status::Forked`].
    pub fn close(&self) -> Result<(), Error> {
        self.core.usable()?;
        self.usable()?;
        self.core.region_close(self)
    }

    /// Reads from `read_pointer` on. With [`Mirror::Any`], from whichever half is there.
    ///
    /// # Errors
    ///
    /// [`Status::Address`] outside of the region, [`Status::Denied`] without the right to read,
    /// [`Status::NoCopy`] if the half is away, [`Status::Lost`], [`Status::Closed`].
    pub fn read(&self, read_pointer: u64, buffer: &mut [u8], mirror: Mirror) -> Result<(), Error> {
        // SAFETY: the buffer is writable for its length.
        unsafe { self.read_raw(read_pointer, buffer.as_mut_ptr(), buffer.len(), mirror) }
    }

    /// [`Region::read`] into memory that is known by its address.
    ///
    /// # Errors
    ///
    /// As [`Region::read`].
    ///
    /// # Safety
    ///
    /// `buffer` is writable for `bytes`.
    pub unsafe fn read_raw(
        &self,
        read_pointer: u64,
        buffer: *mut u8,
        bytes: usize,
        mirror: Mirror,
    ) -> Result<(), Error> {
        self.core.usable()?;
        let half = match mirror {
            Mirror::Any => None,
            Mirror::Primary => Some(Half::PRIMARY),
            Mirror::Mirror => Some(Half::MIRROR),
            Mirror::Both => return Err(Error::invalid("a read is of one half, not of both")),
        };
        let from = self.at(read_pointer, bytes, Prot::READ)?;
        closed_if_gone(match half {
            // SAFETY: as the caller promises.
            None => unsafe { self.core.read(from, buffer, bytes) },
            // SAFETY: as the caller promises.
            Some(half) => unsafe { self.core.read_half(from, half, buffer, bytes) },
        })
    }

    /// Writes from `write_pointer` on. With [`Mirror::Both`], to every half that exists.
    ///
    /// # Errors
    ///
    /// As [`Region::read`], with the right to write.
    pub fn write(&self, write_pointer: u64, data: &[u8], mirror: Mirror) -> Result<(), Error> {
        // SAFETY: the data is readable for its length.
        unsafe { self.write_raw(write_pointer, data.as_ptr(), data.len(), mirror) }
    }

    /// [`Region::write`] from memory that is known by its address.
    ///
    /// # Errors
    ///
    /// As [`Region::write`].
    ///
    /// # Safety
    ///
    /// `data` is readable for `bytes`.
    pub unsafe fn write_raw(
        &self,
        write_pointer: u64,
        data: *const u8,
        bytes: usize,
        mirror: Mirror,
    ) -> Result<(), Error> {
        self.core.usable()?;
        let half = match mirror {
            Mirror::Both => None,
            Mirror::Primary => Some(Half::PRIMARY),
            Mirror::Mirror => Some(Half::MIRROR),
            Mirror::Any => return Err(Error::invalid("a write is of a named half, or of both")),
        };
        let to = self.at(write_pointer, bytes, Prot::WRITE)?;
        closed_if_gone(match half {
            // SAFETY: as the caller promises.
            None => unsafe { self.core.write(to, data, bytes) },
            // SAFETY: as the caller promises.
            Some(half) => unsafe { self.core.write_half(to, half, data, bytes) },
        })
    }

    /// Ends all differences between the halves: every copy gets what one half has.
    ///
    /// # Errors
    ///
    /// [`Status::Denied`] without the rights to read and to write, [`Status::NoCopy`] if that half
    /// is away, [`Status::Invalid`] for what is no half, [`Status::Lost`], [`Status::Closed`]. What
    /// was done stays done.
    pub fn resync(&self, from: Mirror) -> Result<(), Error> {
        self.core.usable()?;
        let half = match from {
            Mirror::Primary => Half::PRIMARY,
            Mirror::Mirror => Half::MIRROR,
            Mirror::Any | Mirror::Both => return Err(Error::invalid("that is no half")),
        };
        let RegionInfo { base_pointer, region_size, .. } = self.info;
        let all = self.at(base_pointer, 0, Prot::READ_WRITE)?;
        closed_if_gone(self.core.resync(all, region_size, half))
    }

    /// The address of a byte of the region, for every other call.
    ///
    /// # Errors
    ///
    /// [`Status::Address`] outside of the region, [`Status::Closed`], [`Status::Forked`].
    pub fn addr(&self, pointer: u64) -> Result<DmceAddr, Error> {
        self.core.usable()?;
        self.at(pointer, 1, Prot::default())
    }

    /// Maps all of the region: at its base pointer, if it has one, else anywhere, until
    /// [`crate::Session::unmap`]. The page that its last byte is in is mapped as a whole. Mapped
    /// once more with the same rights it is the same pointer, which ends when it was unmapped as
    /// often.
    ///
    /// # Errors
    ///
    /// [`Status::NoMem`] if not all of that is free in this process, the base pointer is no
    /// multiple of 4 KiB, or the session has 512 pointers; [`Status::Denied`] to write with a
    /// handle that may not; [`Status::Invalid`] without [`Prot::READ`]; [`Status::Busy`] while
    /// the session has it mapped with other rights; [`Status::Unsupported`] on the message path;
    /// [`Status::Lost`], [`Status::Closed`].
    pub fn map(&self, prot: Prot) -> Result<*mut u8, Error> {
        self.core.usable()?;
        if !prot.contains(Prot::READ) {
            let text = format!("a region is mapped with rights {}", prot.bits());
            return Err(Error::invalid(text));
        }
        let RegionInfo { base_pointer, region_size: bytes, .. } = self.info;
        let writable = prot.contains(Prot::WRITE);
        // What may be written can be read, as any memory.
        let rights = if writable { Prot::WRITE } else { Prot::default() };
        let addr = self.at(base_pointer, 0, rights)?.to_raw();
        let mapped =
            self.core.map_whole_region(PinnedRange { addr, bytes, writable }, base_pointer);
        match mapped {
            Err(error) if error.status() == Status::Address => Err(closed()),
            mapped => mapped,
        }
    }

    /// What open learned.
    ///
    /// # Errors
    ///
    /// [`Status::Closed`], [`Status::Forked`].
    pub fn info(&self) -> Result<RegionInfo, Error> {
        self.core.usable()?;
        self.usable().map(|()| self.info)
    }

    #[inline]
    fn usable(&self) -> Result<(), Error> {
        if self.is_over.load(Ordering::Acquire) { Err(closed()) } else { Ok(()) }
    }

    /// The address of a range that the handle reaches with these rights.
    fn at(&self, pointer: u64, bytes: usize, rights: Prot) -> Result<DmceAddr, Error> {
        self.usable()?;
        if !self.prot.contains(rights) {
            let text = format!("the region is open with rights {}", self.prot.bits());
            return Err(Error::new(Status::Denied, text));
        }
        let RegionInfo { base_pointer, region_size, first, .. } = self.info;
        let offset = pointer.checked_sub(base_pointer);
        let rest = offset.and_then(|offset| region_size.checked_sub(offset));
        match (offset, rest) {
            (Some(offset), Some(rest)) if bytes as u64 <= rest => {
                Ok(first.checked_add(self.core.layout, offset)?)
            }
            _ => Err(Error::address(format!(
                "{bytes} bytes at {pointer:#x} are not in {region_size} from {base_pointer:#x}"
            ))),
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.core.is_forked() {
            // The session is the parent's: nothing is touched, and what is shared with it stays.
            std::mem::forget(Arc::clone(&self.core));
            return;
        }
        if self.usable().is_ok()
            && let Err(error) = self.core.region_close(self)
        {
            tracing::debug!(error = %error, "a region was dropped and stays open");
        }
    }
}

impl Core {
    pub(crate) fn region_create(
        &self,
        volume: &str,
        name: &str,
        region_size: u64,
        options: &RegionOptions,
    ) -> Result<(), Error> {
        self.usable()?;
        if region_size == 0 {
            return Err(Error::invalid("a region of no bytes"));
        }
        let RegionOptions { mode, base_pointer, copies, page_size } = *options;
        let region = region_name(volume, name)?;
        let (reply, _) = self.ask_making_room(|| {
            self.ask(&ClientRequest::RegionCreate(RegionCreate {
                ticket: self.ticket(),
                region: region.clone(),
                region_size,
                base_pointer,
                mode,
                copies,
                page_size,
            }))
        })?;
        done(&reply, "RegionCreate")
    }

    pub(crate) fn region_delete(&self, volume: &str, name: &str) -> Result<(), Error> {
        self.usable()?;
        let find = ClientRequest::RegionFind(region_name(volume, name)?);
        let ClientReply::Found(region) = self.ask(&find)?.0 else {
            return Err(Error::unexpected_reply("RegionFind"));
        };
        self.delete_until_gone(region)
    }

    /// Asks for the deletion of a region again and again while its daemon does not answer. Once it
    /// has begun, the session's own openings are over, whatever becomes of it.
    fn delete_until_gone(&self, region: RegionKey) -> Result<(), Error> {
        let deadline = self.deadline();
        // Asked no more when three quarters of the time are over: so the last answer arrives, and
        // nothing is deleted after the caller was told that it is not.
        let patience = Deadline::after_ms(self.timeout_ms - self.timeout_ms / 4);
        let (mut pause, mut begun) = (DELETE_PAUSE_MIN, false);
        loop {
            if !begun {
                self.check_region_unpinned(region)?;
            }
            let (reply, _) = self.ask_until(&ClientRequest::RegionDelete(region), deadline)?;
            let daemon = match reply {
                ClientReply::Done => return Ok(()),
                ClientReply::NotYet { daemon, begun: has_begun } => {
                    begun = has_begun;
                    daemon
                }
                _ => return Err(Error::unexpected_reply("RegionDelete")),
            };
            let Some(left) = patience.left() else {
                let status = if begun { Status::Unavailable } else { Status::Busy };
                let text = format!("daemon {daemon}, which has the first block, does not answer");
                return Err(Error::new(status, text));
            };
            self.link.pause(pause.min(left)).map_err(|error| self.of_link(error))?;
            pause = DELETE_PAUSE_MAX.min(pause * 2);
        }
    }

    pub(crate) fn region_list(&self, volume: &str) -> Result<Vec<String>, Error> {
        self.usable()?;
        check_name("volume", volume, VOLUME_BYTES_MAX)?;
        let mut found: Vec<String> = Vec::new();
        loop {
            let after = found.last().cloned().unwrap_or_default();
            let list = RegionList { volume: volume.to_owned(), after };
            let (reply, _) = self.ask(&ClientRequest::RegionList(list))?;
            let ClientReply::Names { names, more } = reply else {
                return Err(Error::unexpected_reply("RegionList"));
            };
            // Names that do not rise would be asked for without end.
            let rises = names.first() > found.last();
            if more && !rises {
                return Err(Error::unexpected_reply("RegionList"));
            }
            found.extend(names);
            if !more {
                return Ok(found);
            }
        }
    }

    pub(crate) fn region_open(
        self: &Arc<Self>,
        volume: &str,
        name: &str,
        prot: Prot,
    ) -> Result<Region, Error> {
        self.usable()?;
        if prot == Prot::default() {
            return Err(Error::invalid("a region is opened to read or to write"));
        }
        let region = region_name(volume, name)?;
        let write = prot.contains(Prot::WRITE);
        let asked_at = self.map.known();
        let (opening, opened, fds) = match self.ask_to_open(&region, prot) {
            // The first block is gone, as the broker finds just now: the next answer says so, and
            // there may be other blocks.
            Err(error) if error.status() == Status::Lost => self.ask_to_open(&region, prot)?,
            asked => asked?,
        };
        let checked = self.check_opened(&opened);
        let given = checked.and_then(|()| Given::of(&opened.first, fds));
        let taken = given.and_then(|given| Ok((given, self.take_in(&opened, opening, write)?)));
        let (given, is_over) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                self.chores().region_closes.push(opening);
                self.link.wake();
                return Err(error);
            }
        };
        if !opened.first.lost {
            self.take_fetched(&opened.first, given, asked_at);
        }
        self.fetch_ahead(span_of(&opened));
        let info = RegionInfo {
            copies: opened.copies,
            region_size: opened.region_size,
            base_pointer: opened.base_pointer,
            first: self.join(opened.first.block, 0)?,
            primary_daemon: opened.primary_daemon,
            mirror_daemon: opened.mirror_daemon,
        };
        Ok(Region {
            core: Arc::clone(self),
            info,
            opening,
            first: opened.first.block,
            prot,
            is_over,
        })
    }

    /// Opens a region at the broker.
    fn ask_to_open(
        &self,
        region: &RegionName,
        prot: Prot,
    ) -> Result<(OpeningId, Opened, Vec<OwnedFd>), Error> {
        let opening = OpeningId(self.ticket());
        let (read, write) = (prot.contains(Prot::READ), prot.contains(Prot::WRITE));
        let open = RegionOpen { opening, region: region.clone(), read, write };
        let asked = self.ask(&ClientRequest::RegionOpen(open)).inspect_err(|error| {
            // The opening may be there all the same.
            if matches!(error.status(), Status::NoSpace | Status::Lost) {
                self.chores().region_closes.push(opening);
                self.link.wake();
            }
        });
        match asked? {
            (ClientReply::Opened(opened), fds) => Ok((opening, opened, fds)),
            _ => Err(Error::unexpected_reply("RegionOpen")),
        }
    }

    /// Checks what the broker says of a region.
    fn check_opened(&self, opened: &Opened) -> Result<(), Error> {
        let Opened { first: info, region_size, base_pointer, .. } = *opened;
        check_info(&info, self.layout, self.ready.block_ids)?;
        let (first, count) = (info.block, info.span_count);
        let end = first.get().checked_add(count);
        let ids_fit = first == info.span_first
            && count > 0
            && end.is_some_and(|end| end <= self.ready.block_ids);
        let room = u64::from(count).checked_mul(self.layout.block_bytes());
        let bytes_fit = region_size > 0 && room.is_some_and(|room| region_size <= room);
        let is_full = region_size > u64::from(count.saturating_sub(1)) * self.layout.block_bytes();
        let ends = base_pointer.checked_add(region_size).is_some();
        if ids_fit && bytes_fit && is_full && ends {
            Ok(())
        } else {
            Err(Error::unexpected_reply("RegionOpen"))
        }
    }

    fn region_close(&self, region: &Region) -> Result<(), Error> {
        let RegionInfo { first: addr, region_size, .. } = region.info;
        let range = (addr.to_raw(), region_size);
        self.close_handle((region.first, region.opening), range, &region.is_over)?;
        if self.is_closed() {
            return Ok(());
        }
        match self.ask_if_attached(&ClientRequest::RegionClose(region.opening)) {
            Err(error) if can_be_later(error.status()) => {
                self.chores().region_closes.push(region.opening);
                self.link.wake();
                Ok(())
            }
            asked => asked.map(|_| ()),
        }
    }

    /// Asks the broker if it is there; a call that can be done later need not wait for it.
    fn ask_if_attached(&self, request: &ClientRequest) -> Result<crate::connection::Answer, Error> {
        if self.link.is_attached() { self.ask(request) } else { Err(busy()) }
    }
}

fn region_name(volume: &str, name: &str) -> Result<RegionName, Error> {
    check_name("volume", volume, VOLUME_BYTES_MAX)?;
    check_name("region", name, REGION_BYTES_MAX)?;
    Ok(RegionName { volume: volume.to_owned(), name: name.to_owned() })
}

fn check_name(kind: &'static str, text: &str, bytes_max: usize) -> Result<(), Error> {
    name::check(kind, text, bytes_max).map_err(|error| Error::invalid(error.to_string()))
}

/// The range was one of the region: if the session does not have it, the region is gone.
#[inline]
fn closed_if_gone(done: Result<(), Error>) -> Result<(), Error> {
    match done {
        Err(error) if error.status() == Status::Address => Err(closed()),
        done => done,
    }
}

fn done(reply: &ClientReply, request: &str) -> Result<(), Error> {
    match reply {
        ClientReply::Done => Ok(()),
        _ => Err(Error::unexpected_reply(request)),
    }
}
