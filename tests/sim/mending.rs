//! The shell's part of the repair of the dead.

use std::collections::BTreeMap;

use dmce_abi::block::BlockId;
use dmce_broker::dispatcher::{Action, Event, Grant, Repair, Repaired, SessionRecord};
use dmce_shm::lock::LockBits;
use dmce_shm::slot::intent::{Progress, Undo};

use crate::broker::Waited;
use crate::pages;
use crate::world::{Checked, World};

/// What a dead slot left is equal on all copies; without a lock table; or is lost.
pub const REPAIRED: &str = "repaired";
/// As above.
pub const LEVEL: &str = "made equal without a lock table";
/// As above.
pub const LOST: &str = "lost";
/// A broker died over it.
pub const CUT_SHORT: &str = "cut short";
/// A copy or a table was in the way.
pub const NOT_REPAIRED: &str = "not repaired";

impl World {
    /// Looks at slots, or does something about what they left.
    ///
    /// # Errors
    ///
    /// An action that no dispatcher may ask for.
    pub fn mend(&mut self, action: &Action) -> Checked {
        let Some(broker) = &mut self.broker else { return Ok(()) };
        match *action {
            Action::AwaitIdle { session, block, epoch } => {
                let Some(record) = self.host.records.get(&session) else {
                    return Err(format!(
                        "session {session} has ended, and its marks are looked at"
                    ));
                };
                let marks = self.host.pages.marks(record.record.guid);
                let found = broker.dispatcher.snapshot().blocks.remove(&block);
                // Of an epoch that is over since, nobody waits for it any more.
                let is_for_table = found.is_some_and(|found| found.losing && found.epoch == epoch);
                broker.idles.insert((session, block, epoch), Waited { marks, is_for_table });
            }
            Action::ReadIntents { session, pid, lived_at } => {
                let lives = self.host.processes.get(&pid).is_some_and(|at| *at <= lived_at);
                let Some(record) = self.host.records.get(&session) else {
                    return Err(format!("session {session} has no record, and is to be repaired"));
                };
                let found = self.host.pages.intents(record.record.guid, lives);
                if found.is_all {
                    broker.idles.retain(|(of, _, _), _| *of != session);
                }
                let found = Ok(found);
                broker.soon.push_back(Event::IntentsRead { session, found });
            }
            Action::Repair(ref repair) => {
                let Repair { session, slot, .. } = *repair;
                let may_be_lost = self.may_be_lost(repair);
                let Some(repaired) = self.repair(repair, None) else {
                    return Err(format!("{action:?} of a session that is gone"));
                };
                if let Repaired::Done { lost } = &repaired
                    && !lost.is_empty()
                    && !may_be_lost
                {
                    return Err(format!("{action:?} lost pages that something was left of"));
                }
                self.count(match &repaired {
                    Repaired::Done { lost } if !lost.is_empty() => LOST,
                    Repaired::Done { .. } if repair.has_locks => REPAIRED,
                    Repaired::Done { .. } => LEVEL,
                    Repaired::Copy { .. } | Repaired::Table { .. } | Repaired::Busy => NOT_REPAIRED,
                });
                let Some(broker) = &mut self.broker else { return Ok(()) };
                broker.soon.push_back(Event::Repaired { session, slot, repaired });
            }
            Action::ClearIntent { session, slot } => {
                let guid = self.host.records.get(&session).map(|record| record.record.guid);
                let of = guid.and_then(|guid| self.host.pages.slots.get_mut(&(guid, slot)));
                let Some(slot) = of else { return Err(format!("no slot {slot} of {session}")) };
                slot.intent = None;
            }
            _ => {}
        }
        Ok(())
    }

    /// Begins a repair, and does not live to end it.
    pub fn begin_repair(&mut self, action: &Action) {
        let steps = Some(self.random.below(6));
        if let Action::Repair(repair) = action
            && self.repair(repair, steps).is_some()
        {
            self.count(CUT_SHORT);
        }
    }

    /// Whether nothing that is whole may be left of what a slot was writing: what it had not saved,
    /// and what no other copy has.
    fn may_be_lost(&self, repair: &Repair) -> bool {
        let session = self.host.records.get(&repair.session).map(|record| record.record.guid);
        let slot = session.and_then(|guid| self.host.pages.slots.get(&(guid, repair.slot)));
        let intent = slot.and_then(|slot| slot.intent);
        let good = || repair.copies.iter().map(|daemon| daemon.get());
        let was_lost = self.host.pages.word_of(repair.block).is_some_and(LockBits::was_lost);
        was_lost
            || repair.copies.is_empty()
            || match intent.map(|intent| intent.progress) {
                Some(Progress::First { first, undo: Undo::Absent }) => good().eq([first]),
                Some(Progress::Others { first, undo: Undo::Absent }) => {
                    !good().any(|daemon| daemon == first)
                }
                _ => false,
            }
    }

    /// Does so many steps of a repair, or all; none of a session that is gone.
    fn repair(&mut self, repair: &Repair, steps: Option<u64>) -> Option<Repaired> {
        let session = self.host.records.get(&repair.session)?.record.guid;
        Some(pages::repair(&mut self.host, repair, session, steps))
    }

    /// Of a session that ends nothing is left to be repaired where it could write.
    ///
    /// # Errors
    ///
    /// What is left.
    pub fn check_left(
        &self,
        record: &SessionRecord,
        grants: &BTreeMap<u32, Grant>,
        lives: bool,
    ) -> Checked {
        let left = self.host.pages.intents(record.guid, lives);
        for (slot, claim) in left.claims {
            let block =
                BlockId::try_from(u32::try_from(claim.addr >> self.sizes.cell_bits).unwrap_or(0));
            let is_writable = |grant: &Grant| grant.rights.write && Ok(grant.block) == block;
            let Some(broker) = &self.broker else { return Ok(()) };
            let snapshot = broker.dispatcher.snapshot();
            // An only copy whose pages nobody locks any more is as whole as memcpy leaves it.
            let is_there = block.is_ok_and(|id| {
                let is_usable = snapshot.blocks.get(&id).is_some_and(|of| !of.lost);
                is_usable && self.host.is_locked(id)
            });
            if is_there && grants.values().any(is_writable) {
                let session = record.session;
                return Err(format!("session {session} ends, and slot {slot} has {claim:?}"));
            }
        }
        Ok(())
    }
}
