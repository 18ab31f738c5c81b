//! A daemon changes a page for a client that maps nothing: by the headers that are there, under the
//! page's lock, and between two moves of all others.

use dmce_abi::block::{BlockDescription, BlockId, DaemonId, Owner};
use dmce_abi::limits::PAGE_BYTES;

use crate::host::Header;
use crate::pages;
use crate::world::{Checked, World};

/// A page was changed so.
pub const SERVED: &str = "changed by a daemon";

/// Of how many moves one is that of a daemon.
const OFTEN: u64 = 6;

impl World {
    /// Some daemon changes a page of a region, if nobody holds it and its headers agree.
    ///
    /// # Errors
    ///
    /// What it found there first was written over and acknowledged before.
    pub fn daemon_changes_page(&mut self) -> Checked {
        if !self.sizes.writes || !self.random.once_in(OFTEN) {
            return Ok(());
        }
        let locks = &self.host.locks;
        let stores = self.host.stores.iter().filter(|(daemon, _)| locks.contains(daemon));
        let held = stores.flat_map(|(daemon, store)| store.keys().map(|block| (*daemon, *block)));
        let Some((daemon, block)) = self.random.pick(held.collect::<Vec<_>>()) else {
            return Ok(());
        };
        let Some(copies) = self.agreed_copies(daemon, block) else { return Ok(()) };
        let said = self.said(daemon, block).filter(|said| !self.host.harmed.contains(&said.guid));
        let Some(said) = said.cloned() else { return Ok(()) };
        let Some(table) = self.free_table(block, &said) else { return Ok(()) };
        let mut found = None;
        for copy in &copies {
            let page = self.host.named_page((*copy, block, said.guid)).copied();
            let Some(value) = page else { return Ok(()) };
            found.get_or_insert(value);
        }
        let value = self.truth.next_value();
        let page = self.truth.page_of(said.guid);
        if let Some(found) = found
            && !page.may_be(found)
        {
            return Err(format!(
                "daemon {daemon} finds {found} in block {block}, which is {page:?}: {copies:?}"
            ));
        }
        for copy in copies {
            if let Some(page) = self.host.named_page((copy, block, said.guid)) {
                *page = value;
            }
        }
        self.truth.writes(said.guid, value);
        self.truth.wrote(said.guid, value);
        if let Some(word) = self.host.pages.words.get_mut(&table) {
            *word = pages::stepped(pages::stepped(*word, true), false);
        }
        self.count(SERVED);
        Ok(())
    }

    /// What the header of a copy says.
    fn said(&self, daemon: DaemonId, block: BlockId) -> Option<&BlockDescription> {
        let object = self.host.stores.get(&daemon)?.get(&block)?;
        (object.header == Header::Valid).then_some(&object.description)
    }

    /// The copies that are written of a block that has locks, if all of their headers say the same.
    fn agreed_copies(&self, daemon: DaemonId, block: BlockId) -> Option<Vec<DaemonId>> {
        let own = self.said(daemon, block)?;
        if !own.has_locks() || !matches!(own.owner, Owner::Region(_)) {
            return None;
        }
        let good = own.membership.daemons(daemon);
        let syncing = own.membership.syncing(daemon);
        let all: Vec<DaemonId> = good.iter().copied().chain(syncing).collect();
        let agrees = |copy: &DaemonId| {
            self.said(*copy, block).is_some_and(|said| {
                (said.guid, said.epoch) == (own.guid, own.epoch)
                    && said.membership.daemons(*copy) == good
                    && said.membership.syncing(*copy) == syncing
            })
        };
        all.iter().all(agrees).then_some(all)
    }

    /// The lock table of a block, if its page is nobody's, and not lost.
    fn free_table(&self, block: BlockId, said: &BlockDescription) -> Option<u64> {
        let (guid, bytes) = *self.host.tables.get(&block)?;
        let table = *self.host.pages.named.get(&block)?;
        let is_whole =
            guid == said.guid && bytes >= PAGE_BYTES && !self.host.harmed_tables.contains(&block);
        let word = self.host.pages.words.get(&table).filter(|_| is_whole)?;
        pages::is_free(*word).then_some(table)
    }
}
