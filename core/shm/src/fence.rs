//! The fence between a mark and a look: one light side that runs often, one heavy side that pays.
//!
//! Two sides each store a word and then load the other's. Both need a full barrier in between, or
//! both may miss the other. With `membarrier` the light side needs none of its own: the heavy side
//! makes every running thread pass one, and a thread that does not run has passed one.
//!
//! # Invariants
//!
//! 1. [`Fence::light`] between a store and a load pairs with `heavy_*` between a store and a load:
//!    at least one side sees the other's store. No other pairing is promised.
//! 2. [`Fence::Asymmetric`] is only used after the process has registered ([`Fence::register`]),
//!    or the one that it was forked from.

use std::io;

use crate::atomic::{Ordering, compiler_fence, fence};

/// How a process keeps a mark before a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// The light side holds back the compiler alone; the heavy side issues `membarrier`.
    Asymmetric,
    /// Both sides issue a full fence: where `membarrier` is missing.
    Full,
    /// No fence at all: the mistake that the model has to find.
    #[cfg(all(loom, test))]
    Missing,
}

impl Fence {
    /// Registers this process for the barriers of others and of its own, once, and says what it can
    /// use. The registration goes with the memory that says so: a forked child has both, a program
    /// that is executed neither.
    #[cfg(not(loom))]
    #[must_use]
    pub fn register() -> Self {
        use dmce_sys::membarrier;
        use std::sync::OnceLock;
        static OF_PROCESS: OnceLock<Fence> = OnceLock::new();
        *OF_PROCESS.get_or_init(|| {
            let found = membarrier::probe();
            let registered = found.global
                && found.private
                && membarrier::register_global().is_ok()
                && membarrier::register_private().is_ok();
            if registered { Self::Asymmetric } else { Self::Full }
        })
    }

    /// Between the store of a mark and the look. Free where the fence is asymmetric.
    #[inline]
    pub fn light(self) {
        match self {
            Self::Asymmetric => compiler_fence(Ordering::SeqCst),
            Self::Full => fence(Ordering::SeqCst),
            #[cfg(all(loom, test))]
            Self::Missing => {}
        }
    }

    /// Between a store and a look at the marks of this process's threads. Microseconds.
    ///
    /// # Errors
    ///
    /// The kernel had no memory for it: nothing was ordered, call it again.
    pub fn heavy_process(self) -> io::Result<()> {
        #[cfg(not(loom))]
        if self == Self::Asymmetric {
            dmce_sys::membarrier::private()?;
        }
        self.heavy_own();
        Ok(())
    }

    /// Between a store and a look at the marks of any process of this host. Microseconds.
    ///
    /// # Errors
    ///
    /// As [`Fence::heavy_process`].
    pub fn heavy_host(self) -> io::Result<()> {
        #[cfg(not(loom))]
        if self == Self::Asymmetric {
            dmce_sys::membarrier::global()?;
        }
        self.heavy_own();
        Ok(())
    }

    /// The heavy side's own barrier, which a light side with a full fence relies on too.
    fn heavy_own(self) {
        match self {
            Self::Asymmetric | Self::Full => fence(Ordering::SeqCst),
            #[cfg(all(loom, test))]
            Self::Missing => {}
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn every_fence_that_is_offered_can_be_issued() {
        for fence in [Fence::register(), Fence::Full] {
            fence.light();
            fence.heavy_process().unwrap();
            fence.heavy_host().unwrap();
        }
    }
}
