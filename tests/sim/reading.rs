//! A client reads a page of a region from the first copy that it knows, between two moves of all
//! others: what it finds is what was written last, or is being written.

use dmce_abi::block::BlockId;

use crate::pages;
use crate::view::{Reach, View};
use crate::world::{Checked, World};

/// A page was read that several copies have.
pub const READ: &str = "read";

impl World {
    /// Some client reads a page, if nobody holds it.
    ///
    /// # Errors
    ///
    /// It read what was written over and acknowledged before.
    pub fn client_reads_page(&mut self) -> Checked {
        let able = |place: &usize| {
            let client = &self.clients[*place];
            client.alive && !client.stopped && client.view.is_some()
        };
        let places: Vec<_> = (0..self.clients.len()).filter(able).collect();
        let Some(place) = self.random.pick(places) else { return Ok(()) };
        let client = &self.clients[place];
        let Some(view) = client.view.as_ref().filter(|view| self.is_as_told(view)) else {
            return Ok(());
        };
        let is_open = |first: &BlockId| view.openings.values().any(|region| region.first == *first);
        let reach = view.reach.iter().filter(|(first, _)| is_open(first));
        let reach = reach.map(|(first, reach)| (*first, reach.clone()));
        let pid = client.peer.pid;
        let Some((block, reach)) = self.random.pick(reach) else { return Ok(()) };
        let Some(value) = self.find(block, &reach) else { return Ok(()) };
        self.count(READ);
        let page = self.truth.page_of(reach.guid);
        if page.may_be(value) {
            return Ok(());
        }
        Err(format!("process {pid} reads {value} in block {block}, which is {page:?}: {reach:?}"))
    }

    /// Whether a session is as far as it was told: what it has mapped may be used.
    fn is_as_told(&self, view: &View) -> bool {
        let record = self.host.records.get(&view.session);
        let is_own = record.is_some_and(|of| of.record.guid == view.guid);
        let word = self.host.sessions.get(&view.session).copied();
        is_own && !view.has_given_up && word == Some(view.generation)
    }

    /// What the first copy has that can be read, of a page that nobody holds.
    fn find(&mut self, block: BlockId, reach: &Reach) -> Option<u64> {
        if let Some(table) = reach.table {
            let word = *self.host.pages.words.get(&table)?;
            if !pages::is_free(word) || self.host.harmed_tables.contains(&block) {
                return None;
            }
        }
        let read = |daemon| self.host.page_mut((daemon, block, reach.guid)).copied();
        reach.copies.iter().copied().find_map(read)
    }
}
