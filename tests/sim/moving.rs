//! Somebody has copies moved, or asks for others of a region, while clients write and all else goes
//! on.

use dmce_abi::block::BlockId;
use dmce_abi::wire::admin::AdminRequest;
use dmce_abi::wire::client::ClientRequest;
use dmce_broker::dispatcher::{Event, RequestId};

use crate::world::{Checked, World};

/// A copy has moved.
pub const MOVED: &str = "moved";
/// Blocks that have begun to move by themselves.
pub const EVENED: &str = "begun to be evened";
/// Others were asked for of a region that is used.
pub const ASKED_ANEW: &str = "other copies asked for";

impl World {
    /// Somebody has a copy moved, or does not wait any longer for those that he has moved.
    ///
    /// # Errors
    ///
    /// What must never be.
    pub fn move_copy(&mut self) -> Checked {
        let Some(conn) = self.connect_admin()? else { return Ok(()) };
        if self.random.once_in(10) {
            if let Some(broker) = &mut self.broker {
                broker.admin = None;
            }
            return self.event(Event::HungUp { conn });
        }
        let Some(broker) = &self.broker else { return Ok(()) };
        let blocks = broker.dispatcher.snapshot().blocks.into_iter();
        let copies = blocks
            .flat_map(|(id, block)| block.copies.into_iter().map(move |copy| (id, copy.daemon)));
        let Some((block, from)) = self.random.pick(copies.collect::<Vec<_>>()) else {
            return Ok(());
        };
        let Some(to) = self.random.pick(self.daemons.iter().map(|daemon| daemon.id)) else {
            return Ok(());
        };
        let (block, from, to) = (block.get(), from.get(), to.get());
        let request = match self.random.below(10) {
            0 => AdminRequest::Drain { daemon: to, is_draining: self.random.once_in(2) },
            1 => {
                self.has_swapped = true;
                let other = BlockId::try_from(1 + u32::try_from(self.random.below(8)).unwrap_or(0));
                AdminRequest::Swap { one: block, other: other.map_or(block, BlockId::get) }
            }
            2 | 3 => {
                let Some(request) = self.other_copies() else { return Ok(()) };
                request
            }
            4 => AdminRequest::Scrub { block: if self.random.once_in(2) { 0 } else { block } },
            _ => AdminRequest::Migrate { block, from, to },
        };
        self.administer(request)
    }

    /// A number of copies for some region.
    fn other_copies(&mut self) -> Option<AdminRequest> {
        let regions = self.truth.regions.iter().map(|(name, guid)| (name.clone(), *guid));
        let (region, guid) = self.random.pick(regions.collect::<Vec<_>>())?;
        let most = u64::from(self.sizes.copies_max);
        let copies = u32::try_from(1 + self.random.below(most)).unwrap_or(1);
        // It has fewer than are asked for until others are made, if there is room.
        self.asked_anew.insert(guid);
        self.count(ASKED_ANEW);
        Some(AdminRequest::SetCopies { region, copies })
    }

    /// No daemon is drained any more.
    ///
    /// # Errors
    ///
    /// What must never be.
    pub fn undrain_all(&mut self) -> Checked {
        for daemon in self.host.draining.clone() {
            self.administer(AdminRequest::Drain { daemon: daemon.get(), is_draining: false })?;
        }
        Ok(())
    }

    fn administer(&mut self, request: AdminRequest) -> Checked {
        let Some(conn) = self.connect_admin()? else { return Ok(()) };
        let request_id = RequestId(self.random.next() | 1);
        let request = ClientRequest::Admin(request);
        self.event(Event::Request { conn, request_id, request })
    }
}
