//! The policy table (002 [20]): how an allocation is made, by its size or by a number.

use dmce_abi::Status;
use dmce_abi::wire::Refusal;
use dmce_abi::wire::client::ClientReply;

use super::Dispatcher;
use super::config::{Placement, Policy};
use super::requests::{Outcome, refuse};

/// How something is made, by what its request and its policy say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// The page size.
    pub page_size: u32,
    /// Bytes that a block with several allocations may grow to.
    pub block_bytes: u64,
    /// Which daemon.
    pub placement: Placement,
    /// Copies of each block.
    pub copies: u32,
}

impl Dispatcher {
    /// The policy of a number; for 0 that of a size, if there is a size, else what holds for all.
    ///
    /// # Errors
    ///
    /// `NOTFOUND` for a number that is not in the table.
    pub(super) fn policy(&self, number: u32, bytes: Option<u64>) -> Result<Policy, Refusal> {
        let policies = &self.config.policies;
        if number == 0 {
            let fits = |policy: &&Policy| bytes.is_some_and(|bytes| bytes <= policy.told.up_to);
            let smallest = policies.iter().filter(fits).min_by_key(|policy| policy.told.up_to);
            return Ok(smallest.copied().unwrap_or_default());
        }
        let index = usize::try_from(number - 1).unwrap_or(usize::MAX);
        policies.get(index).copied().ok_or_else(|| {
            let text = format!("policy {number} is not in the table, which has {}", policies.len());
            Refusal::new(Status::NotFound, text)
        })
    }

    /// What a policy makes of a request that asks for a page size, or for none by 0.
    ///
    /// # Errors
    ///
    /// `INVALID` for a page size that no block has.
    pub(super) fn terms(&self, policy: &Policy, page_size: u32) -> Result<Terms, Refusal> {
        let asked = if page_size == 0 { policy.told.page_size } else { page_size };
        let block_bytes = match policy.told.block_bytes {
            0 => u64::MAX,
            bytes => bytes,
        };
        let placement = policy.placement.unwrap_or(self.config.placement);
        let copies = policy.told.copies.max(1);
        Ok(Terms { page_size: self.page_size(asked)?, block_bytes, placement, copies })
    }

    /// The table, for clients.
    pub(super) fn policy_table(&self) -> Outcome {
        let told = self.config.policies.iter().map(|policy| policy.told);
        ClientReply::Policies(told.collect()).into()
    }

    /// Checks that a heap block may have so many bytes at once.
    ///
    /// # Errors
    ///
    /// `NOSPACE` with the limit.
    pub(super) fn check_block_bytes(terms: &Terms, bytes: u64) -> Result<(), Refusal> {
        let limit = terms.block_bytes;
        if bytes > limit {
            let text = format!("{bytes} bytes in a block of a policy that allows {limit}");
            return refuse(Status::NoSpace, text);
        }
        Ok(())
    }
}
