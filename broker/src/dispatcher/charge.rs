//! Who pays for what: bytes on daemons, quotas of users, reservations of sessions.
//!
//! ```text
//! daemon:  capacity >= committed (all charges there) + reserved (left of reservations)
//! user:    bytes = totals of reservations + what charges take beyond them
//! charge:  bytes = from the reservation of its session on that daemon + beyond it
//! ```
//!
//! # Invariants
//!
//! 1. A [`Charge`] is made here, cannot be copied, and ends in [`Ledger::refund`]. So what was
//!    charged is refunded once; [`Ledger::audit`] proves it from the charges that exist.
//! 2. A charge that was *retired* costs its user nothing, and its daemon all of its bytes, until
//!    the daemon has given the memory back.
//! 3. What was taken from a reservation returns to it if its session still has it.
//! 4. A user whom no quota limits, and who is neither root nor the service's own, still takes no
//!    more than half of what there is for all ([`Ledger::quota`]).
//! 5. Only what a daemon reports by itself (`force_*`) goes beyond a limit: it is a fact already.
//!    So do lock tables, by less than a page for each 2 MiB of a block and two pages for it: they
//!    count for their user, who may then have less of all else, and refuse nothing by themselves.
//!    Otherwise what a reservation promised could not be had.

use std::collections::BTreeMap;

use dmce_abi::Status;
use dmce_abi::block::DaemonId;
use dmce_abi::limits::PAGE_BYTES;
use dmce_abi::wire::Refusal;

use super::config::{DispatcherConfig, Quota};
use aside::Aside;
pub(super) use tables::TableCharge;

/// The account of one session. A number is never given twice, unlike a session's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AccountId(u64);

/// Who pays for a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Payer {
    /// The user.
    pub uid: u32,
    /// The account whose reservation is used first.
    pub account: Option<AccountId>,
}

/// What a block costs, and whom.
#[derive(Debug)]
#[must_use = "a charge ends in a refund"]
pub(super) struct Charge {
    daemon: DaemonId,
    bytes: u64,
    /// Of these, so many from the reservation of `account`.
    reserved: u64,
    account: Option<AccountId>,
    /// The user; `None` once retired, and for what nobody owns.
    uid: Option<u32>,
}

impl Charge {
    /// Bytes that the daemon is charged.
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    const fn beyond(&self) -> u64 {
        self.bytes - self.reserved
    }
}

/// Why a charge is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(super) enum ChargeError {
    /// The daemon is full.
    #[error("daemon {daemon} has {left} bytes left of the {needs} needed")]
    Room { daemon: DaemonId, needs: u64, left: u64 },
    /// The user's bytes.
    #[error("user {uid} needs {needs} bytes, quota leaves {left}")]
    Bytes { uid: u32, needs: u64, left: u64 },
    /// Something that is counted.
    #[error("user {uid} has {held} {what}, quota is {limit}")]
    Count { uid: u32, what: &'static str, held: u64, limit: u64 },
}

impl From<ChargeError> for Refusal {
    fn from(error: ChargeError) -> Self {
        let status = match error {
            ChargeError::Room { .. } => Status::NoSpace,
            ChargeError::Bytes { .. } | ChargeError::Count { .. } => Status::Quota,
        };
        Self::new(status, error.to_string())
    }
}

/// What a daemon has and owes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Store {
    /// Bytes that it may hold.
    pub capacity: u64,
    /// Bytes of all charges there.
    pub committed: u64,
    /// Bytes that are left of reservations there.
    pub reserved: u64,
}

impl Store {
    /// Whether it holds and owes more than it may hold.
    pub(super) const fn is_over(&self) -> bool {
        self.committed.saturating_add(self.reserved) > self.capacity
    }

    /// Bytes that anybody may have.
    pub(super) const fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.committed.saturating_add(self.reserved))
    }
}

/// What a session has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// The user.
    pub uid: u32,
    /// Bytes of the reservation.
    pub total: u64,
    /// What is left of it, and where.
    pub left: BTreeMap<DaemonId, u64>,
    /// Bytes of its charges.
    pub bytes: u64,
    /// Its charges.
    pub blocks: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct User {
    connections: u64,
    bytes: u64,
    sessions: u64,
    blocks: u64,
    regions: u64,
}

/// All accounts.
#[derive(Debug)]
pub(super) struct Ledger {
    quota: Quota,
    /// What the quota means for who is neither root nor the service's own user.
    of_others: Quota,
    service_uid: u32,
    quotas: BTreeMap<u32, Quota>,
    users: BTreeMap<u32, User>,
    stores: BTreeMap<DaemonId, Store>,
    accounts: BTreeMap<AccountId, Account>,
    aside: Aside,
    /// Whether the sums of a daemon have changed.
    touched: bool,
    opened: u64,
}

impl Ledger {
    /// Nobody has anything.
    pub(super) fn new(config: &DispatcherConfig) -> Self {
        Self {
            quota: config.quota,
            of_others: config.quota.or_share_of(&config.limits),
            service_uid: config.service_uid,
            quotas: config.quotas.clone(),
            users: BTreeMap::new(),
            stores: BTreeMap::new(),
            accounts: BTreeMap::new(),
            aside: Aside::default(),
            touched: false,
            opened: 0,
        }
    }

    /// What the user may hold.
    pub(super) fn quota(&self, uid: u32) -> Quota {
        let of_all = if uid == 0 || uid == self.service_uid { self.quota } else { self.of_others };
        self.quotas.get(&uid).copied().unwrap_or(of_all)
    }

    /// Bytes that the user may still take.
    pub(super) fn quota_left(&self, uid: u32) -> u64 {
        self.quota(uid).bytes.saturating_sub(self.user(uid).bytes)
    }

    /// Copies of blocks that the user may still have.
    pub(super) fn blocks_left(&self, uid: u32) -> u64 {
        self.quota(uid).blocks.saturating_sub(self.user(uid).blocks)
    }

    /// What a daemon has and owes.
    pub(super) fn store(&self, daemon: DaemonId) -> Store {
        self.stores.get(&daemon).copied().unwrap_or_default()
    }

    /// What a session has, while its account is open.
    pub(super) fn account(&self, account: AccountId) -> Option<&Account> {
        self.accounts.get(&account)
    }

    /// What is left of a reservation, and where. `None` if nothing is.
    pub(super) fn reservation(
        &self,
        account: Option<AccountId>,
    ) -> Option<&BTreeMap<DaemonId, u64>> {
        let account = account.and_then(|account| self.accounts.get(&account));
        account.map(|account| &account.left).filter(|left| !left.is_empty())
    }

    /// What is left of a reservation on a daemon.
    pub(super) fn reserved_left(&self, account: Option<AccountId>, daemon: DaemonId) -> u64 {
        let left = self.reservation(account);
        left.and_then(|left| left.get(&daemon)).copied().unwrap_or(0)
    }

    /// Says how many bytes a daemon may hold. Less than it holds only means that it gets no more.
    pub(super) fn set_capacity(&mut self, daemon: DaemonId, capacity: u64) {
        self.stores.entry(daemon).or_default().capacity = capacity;
        self.touched = true;
    }

    /// Opens the account of a session, with a reservation.
    ///
    /// # Errors
    ///
    /// [`ChargeError::Count`] of sessions, [`ChargeError::Bytes`], or [`ChargeError::Room`] on one
    /// of the daemons. Then nothing was opened.
    pub(super) fn open_account(
        &mut self,
        uid: u32,
        pieces: BTreeMap<DaemonId, u64>,
    ) -> Result<AccountId, ChargeError> {
        let (user, quota) = (self.user(uid), self.quota(uid));
        count(uid, "sessions", user.sessions, quota.sessions)?;
        let total = pieces.values().sum();
        self.check_bytes(uid, total)?;
        for (&daemon, &needs) in &pieces {
            let left = self.store(daemon).free();
            if needs > left {
                return Err(ChargeError::Room { daemon, needs, left });
            }
        }
        let account = self.force_account(uid);
        self.fill_account(account, total, pieces);
        Ok(account)
    }

    /// Opens the account of a session that lived before this broker. Its reservation follows by
    /// [`Ledger::fill_account`], when all daemons are known.
    pub(super) fn force_account(&mut self, uid: u32) -> AccountId {
        self.opened += 1;
        let account = AccountId(self.opened);
        self.accounts.insert(account, Account { uid, ..Account::default() });
        self.users.entry(uid).or_default().sessions += 1;
        account
    }

    /// Adds a reservation of `total` bytes, of which `pieces` are left. Whoever calls has checked
    /// that there is room.
    pub(super) fn fill_account(
        &mut self,
        account: AccountId,
        total: u64,
        pieces: BTreeMap<DaemonId, u64>,
    ) {
        let Some(account) = self.accounts.get_mut(&account) else { return };
        self.touched = true;
        account.total += total;
        self.users.entry(account.uid).or_default().bytes += total;
        for (daemon, bytes) in pieces {
            *account.left.entry(daemon).or_default() += bytes;
            self.stores.entry(daemon).or_default().reserved += bytes;
        }
    }

    /// Closes an account. All charges of the session must be retired or refunded before.
    pub(super) fn close_account(&mut self, account: AccountId) {
        let Some(account) = self.accounts.remove(&account) else { return };
        self.touched = true;
        assert_eq!(account.blocks, 0, "an account is closed with blocks that it pays for");
        for (daemon, bytes) in account.left {
            self.stores.entry(daemon).or_default().reserved -= bytes;
        }
        self.change_user(account.uid, |user| {
            user.bytes -= account.total;
            user.sessions -= 1;
        });
    }

    /// Counts a region of the user.
    ///
    /// # Errors
    ///
    /// [`ChargeError::Count`] at the quota.
    pub(super) fn charge_region(&mut self, uid: u32) -> Result<(), ChargeError> {
        count(uid, "regions", self.user(uid).regions, self.quota(uid).regions)?;
        self.force_region(uid);
        Ok(())
    }

    /// Counts a region that was found.
    pub(super) fn force_region(&mut self, uid: u32) {
        self.users.entry(uid).or_default().regions += 1;
    }

    /// A region of the user is gone.
    pub(super) fn refund_region(&mut self, uid: u32) {
        self.change_user(uid, |user| user.regions -= 1);
    }

    /// Charges a new block.
    ///
    /// # Errors
    ///
    /// [`ChargeError`] names the limit that it would pass. Then nothing was charged.
    pub(super) fn charge(
        &mut self,
        payer: Payer,
        daemon: DaemonId,
        bytes: u64,
    ) -> Result<Charge, ChargeError> {
        let (user, quota) = (self.user(payer.uid), self.quota(payer.uid));
        count(payer.uid, "blocks", user.blocks, quota.blocks)?;
        let mut charge = self.force_charge(Some(payer), daemon, 0);
        match self.extend(&mut charge, bytes) {
            Ok(()) => Ok(charge),
            Err(error) => {
                self.refund(charge);
                Err(error)
            }
        }
    }

    /// Charges a block that is there, whatever the limits say. Nobody pays for what nobody owns.
    pub(super) fn force_charge(
        &mut self,
        payer: Option<Payer>,
        daemon: DaemonId,
        bytes: u64,
    ) -> Charge {
        let account = payer.and_then(|payer| payer.account);
        let uid = payer.map(|payer| payer.uid);
        let mut charge = Charge { daemon, bytes: 0, reserved: 0, account, uid };
        if let Some(uid) = uid {
            self.users.entry(uid).or_default().blocks += 1;
        }
        if let Some(account) = account.and_then(|account| self.accounts.get_mut(&account)) {
            account.blocks += 1;
        }
        self.add(&mut charge, bytes, 0);
        charge
    }

    /// Makes a charge larger: from the reservation first.
    ///
    /// # Errors
    ///
    /// [`ChargeError`] names the limit that it would pass. Then the charge is as it was.
    pub(super) fn extend(&mut self, charge: &mut Charge, more: u64) -> Result<(), ChargeError> {
        let own = self.reserved_left(charge.account, charge.daemon).min(more);
        let left = self.store(charge.daemon).free();
        if more - own > left {
            let daemon = charge.daemon;
            return Err(ChargeError::Room { daemon, needs: more, left: left.saturating_add(own) });
        }
        if let Some(uid) = charge.uid {
            self.check_bytes(uid, more - own)?;
        }
        self.add(charge, more, own);
        Ok(())
    }

    /// Makes a charge what the daemon says that the block has, whatever the limits say.
    pub(super) fn force_bytes(&mut self, charge: &mut Charge, bytes: u64) {
        match bytes.checked_sub(charge.bytes) {
            Some(more) => {
                let own = self.reserved_left(charge.account, charge.daemon).min(more);
                let own = if charge.uid.is_some() { own } else { 0 };
                self.add(charge, more, own);
            }
            None => self.reduce(charge, charge.bytes - bytes),
        }
    }

    /// Lets the reservation of its session pay for up to `bytes` of a charge that was forced.
    /// The total of that reservation must have been raised by as much. Returns the bytes.
    pub(super) fn cover(&mut self, charge: &mut Charge, bytes: u64) -> u64 {
        let covered = bytes.min(charge.beyond());
        charge.reserved += covered;
        if let Some(uid) = charge.uid {
            self.change_user(uid, |user| user.bytes -= covered);
        }
        covered
    }

    /// The owner has given the block up; the daemon still has it.
    pub(super) fn retire(&mut self, charge: &mut Charge) {
        let Some(uid) = charge.uid.take() else { return };
        let beyond = charge.beyond();
        self.change_user(uid, |user| {
            user.bytes -= beyond;
            user.blocks -= 1;
        });
        if let Some(account) = charge.account.and_then(|account| self.accounts.get_mut(&account)) {
            account.blocks -= 1;
            account.bytes -= charge.bytes;
        }
    }

    /// The accounts that have something reserved on a daemon.
    pub(super) fn reserved_on(&self, daemon: DaemonId) -> Vec<AccountId> {
        let has_some = |(_, account): &(&AccountId, &Account)| account.left.contains_key(&daemon);
        self.accounts.iter().filter(has_some).map(|(id, _)| *id).collect()
    }

    /// What an account has reserved on a daemon it has on another, as far as there is room.
    pub(super) fn move_reservation(&mut self, id: AccountId, from: DaemonId, to: DaemonId) {
        let (free, Some(account)) = (self.store(to).free(), self.accounts.get_mut(&id)) else {
            return;
        };
        let Some(left) = account.left.get_mut(&from) else { return };
        let moved = (free - free % PAGE_BYTES).min(*left);
        *left -= moved;
        if *left == 0 {
            account.left.remove(&from);
        }
        if moved > 0 {
            *account.left.entry(to).or_default() += moved;
            self.stores.entry(from).or_default().reserved -= moved;
            self.stores.entry(to).or_default().reserved += moved;
            self.touched = true;
        }
    }

    /// One copy is in the place of another: who paid for that pays for this, with what there is of
    /// his reservation in it. Nobody has paid for this until now.
    pub(super) fn hand_over(&mut self, from: &mut Charge, to: &mut Charge) {
        debug_assert!(to.uid.is_none() && to.account.is_none(), "{to:?} is paid for");
        let Some(uid) = from.uid.take() else { return };
        let before = from.beyond();
        let own = from.reserved.min(to.bytes);
        from.reserved -= own;
        (to.reserved, to.uid, to.account) = (own, Some(uid), from.account);
        from.account.take_if(|_| from.reserved == 0);
        let beyond = to.beyond();
        self.change_user(uid, |user| user.bytes = user.bytes - before + beyond);
        if let Some(account) = to.account.and_then(|account| self.accounts.get_mut(&account)) {
            account.bytes = account.bytes - from.bytes + to.bytes;
        }
    }

    /// Somebody pays from now on for a copy that was made in the place of another.
    pub(super) fn pay(&mut self, charge: &mut Charge, payer: Option<Payer>) {
        if charge.uid.is_none() {
            let paid = self.force_charge(payer, charge.daemon, charge.bytes);
            self.refund(std::mem::replace(charge, paid));
        }
    }

    /// The memory is gone: nobody pays for its bytes. The block still counts.
    pub(super) fn lose(&mut self, charge: &mut Charge) {
        self.reduce(charge, charge.bytes);
    }

    /// The daemon has given the memory back.
    pub(super) fn refund(&mut self, mut charge: Charge) {
        self.retire(&mut charge);
        let bytes = charge.bytes;
        self.reduce(&mut charge, bytes);
    }

    fn add(&mut self, charge: &mut Charge, more: u64, own: u64) {
        self.touched = true;
        charge.bytes += more;
        charge.reserved += own;
        if let Some(uid) = charge.uid {
            self.users.entry(uid).or_default().bytes += more - own;
        }
        let store = self.stores.entry(charge.daemon).or_default();
        store.committed += more;
        store.reserved -= own;
        let Some(account) = charge.account.and_then(|account| self.accounts.get_mut(&account))
        else {
            return;
        };
        if let Some(left) = account.left.get_mut(&charge.daemon) {
            *left -= own;
            if *left == 0 {
                account.left.remove(&charge.daemon);
            }
        }
        if charge.uid.is_some() {
            account.bytes += more;
        }
    }

    /// Takes `less` off a charge: what lies beyond the reservation first.
    fn reduce(&mut self, charge: &mut Charge, less: u64) {
        let beyond = charge.beyond().min(less);
        let own = less - beyond;
        self.touched = true;
        charge.bytes -= less;
        charge.reserved -= own;
        if let Some(uid) = charge.uid {
            self.change_user(uid, |user| user.bytes -= beyond);
        }
        let account = charge.account.and_then(|account| self.accounts.get_mut(&account));
        let store = self.stores.entry(charge.daemon).or_default();
        store.committed -= less;
        let Some(account) = account else { return };
        if charge.uid.is_some() {
            account.bytes -= less;
        }
        if own > 0 {
            *account.left.entry(charge.daemon).or_default() += own;
            store.reserved += own;
        }
    }

    /// Recomputes every sum from `charges` and `tables`, and from the users of all regions and
    /// connections. For tests.
    ///
    /// # Errors
    ///
    /// The first sum that does not add up.
    pub(super) fn audit<'a>(
        &self,
        charges: impl Iterator<Item = &'a Charge>,
        tables: impl Iterator<Item = &'a TableCharge>,
        regions: impl Iterator<Item = u32>,
        connections: impl Iterator<Item = u32>,
    ) -> Result<(), String> {
        let mut users: BTreeMap<u32, User> = BTreeMap::new();
        let mut stores: BTreeMap<DaemonId, Store> = BTreeMap::new();
        let mut accounts: BTreeMap<AccountId, (u64, u64, u64)> = BTreeMap::new();
        for (id, account) in &self.accounts {
            let user = users.entry(account.uid).or_default();
            user.sessions += 1;
            user.bytes += account.total;
            let left = account.left.values().sum();
            accounts.insert(*id, (left, 0, 0));
            for (&daemon, &bytes) in &account.left {
                stores.entry(daemon).or_default().reserved += bytes;
            }
        }
        for charge in charges {
            stores.entry(charge.daemon).or_default().committed += charge.bytes;
            let mut account = charge.account.and_then(|account| accounts.get_mut(&account));
            if let Some((total, _, _)) = &mut account {
                *total += charge.reserved;
            }
            let Some(uid) = charge.uid else { continue };
            let user = users.entry(uid).or_default();
            user.bytes += charge.beyond();
            user.blocks += 1;
            if let Some((_, bytes, blocks)) = account {
                *bytes += charge.bytes;
                *blocks += 1;
            }
        }
        for table in tables {
            if let Some(uid) = table.uid {
                users.entry(uid).or_default().bytes += table.bytes;
            }
        }
        for uid in regions {
            users.entry(uid).or_default().regions += 1;
        }
        for uid in connections {
            users.entry(uid).or_default().connections += 1;
        }
        for (&daemon, &bytes) in &self.aside.pieces {
            stores.entry(daemon).or_default().reserved += bytes;
            users.entry(self.aside.uid).or_default().bytes += bytes;
        }
        self.compare(&users, &stores, &accounts)
    }

    fn compare(
        &self,
        users: &BTreeMap<u32, User>,
        stores: &BTreeMap<DaemonId, Store>,
        accounts: &BTreeMap<AccountId, (u64, u64, u64)>,
    ) -> Result<(), String> {
        if self.users != *users {
            return Err(format!("users are charged {:?}, and hold {users:?}", self.users));
        }
        for (daemon, store) in &self.stores {
            let found = stores.get(daemon).copied().unwrap_or_default();
            if (store.committed, store.reserved) != (found.committed, found.reserved) {
                return Err(format!("daemon {daemon} is charged {store:?}, and holds {found:?}"));
            }
        }
        for (id, account) in &self.accounts {
            let kept = (account.total, account.bytes, account.blocks);
            if accounts.get(id) != Some(&kept) {
                return Err(format!("{id:?} says {kept:?}, and has {:?}", accounts.get(id)));
            }
        }
        Ok(())
    }

    fn user(&self, uid: u32) -> User {
        self.users.get(&uid).copied().unwrap_or_default()
    }

    fn check_bytes(&self, uid: u32, needs: u64) -> Result<(), ChargeError> {
        let left = self.quota_left(uid);
        if needs > left { Err(ChargeError::Bytes { uid, needs, left }) } else { Ok(()) }
    }

    /// Users who hold nothing are forgotten, so that the table is no longer than what it counts.
    fn change_user(&mut self, uid: u32, change: impl FnOnce(&mut User)) {
        let user = self.users.entry(uid).or_default();
        change(user);
        if *user == User::default() {
            self.users.remove(&uid);
        }
    }
}

fn count(uid: u32, what: &'static str, held: u64, limit: u64) -> Result<(), ChargeError> {
    if held >= limit { Err(ChargeError::Count { uid, what, held, limit }) } else { Ok(()) }
}

mod aside;
mod tables;
#[cfg(test)]
mod tests;
