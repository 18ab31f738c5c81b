//! Records of 4 KiB that a thread writes without a pause, while others take away what they lie on.
//!
//! Each write is measured alone: the slowest of them is how long a client was held up. A record
//! begins and ends with its number, so that who reads it sees which write it is of, and whether it
//! is of one alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::host::{self, Judge, Judged};
use crate::losses::wait;
use crate::places::Places;
use crate::{Error, Result, machine};

/// Bytes of a record.
pub const RECORD_BYTES: usize = 4 << 10;
const NUMBER_BYTES: usize = size_of::<u64>();
/// Where a record has its number.
const NUMBER_AT: [usize; 2] = [0, RECORD_BYTES - NUMBER_BYTES];

/// The number of the last record of each place that has one.
pub type Last = BTreeMap<u64, u64>;

/// What the thread tells of itself while it runs.
#[derive(Debug, Default)]
struct Progress {
    written: AtomicU64,
    slowest_ns: AtomicU64,
    /// The slowest without what the host took, and how many it disturbed.
    own_ns: AtomicU64,
    disturbed: AtomicU64,
    /// How many were slow, and how many of these are judged: with that, the two above are told.
    slow: AtomicU64,
    judged: AtomicU64,
    is_over: AtomicBool,
}

/// Records that are being written.
#[derive(Debug)]
pub struct Writing {
    progress: Arc<Progress>,
    /// `None` once it has been waited for.
    thread: Option<JoinHandle<Result<Last>>>,
}

impl Writing {
    /// Starts to write, in the order of `places`. `write` gets the place and the record.
    #[must_use]
    pub fn start(
        places: Places,
        write: impl FnMut(u64, &[u8]) -> Result<()> + Send + 'static,
    ) -> Self {
        let progress = Arc::new(Progress::default());
        let told = Arc::clone(&progress);
        let thread = Some(thread::spawn(move || write_all(places, write, &told)));
        Self { progress, thread }
    }

    /// How many have been written.
    ///
    /// # Errors
    ///
    /// That of a write, after which there are no more.
    pub fn written(&mut self) -> Result<u64> {
        if self.thread.as_ref().is_some_and(JoinHandle::is_finished) {
            self.wait()?;
        }
        Ok(self.progress.written.load(Ordering::Relaxed))
    }

    /// The slowest write that has ended since the last call; 0 if none has.
    #[must_use]
    pub fn take_slowest(&self) -> Duration {
        Duration::from_nanos(self.progress.slowest_ns.swap(0, Ordering::Relaxed))
    }

    /// The slowest write that has ended since the last call, without what the host took of the
    /// processors meanwhile.
    ///
    /// # Errors
    ///
    /// That of a write.
    pub fn take_slowest_own(&mut self) -> Result<Duration> {
        let slow = self.progress.slow.load(Ordering::Relaxed);
        wait("writes that are not judged", || {
            self.written()?;
            Ok(self.progress.judged.load(Ordering::Acquire) >= slow)
        })?;
        Ok(Duration::from_nanos(self.progress.own_ns.swap(0, Ordering::Relaxed)))
    }

    /// How many writes the host has disturbed since the last call.
    #[must_use]
    pub fn take_disturbed(&self) -> u64 {
        self.progress.disturbed.swap(0, Ordering::Relaxed)
    }

    /// Ends it, and says what was written.
    ///
    /// # Errors
    ///
    /// That of a write.
    pub fn finish(mut self) -> Result<Last> {
        self.progress.is_over.store(true, Ordering::Relaxed);
        self.wait()
    }

    fn wait(&mut self) -> Result<Last> {
        let thread = self.thread.take();
        thread.map_or(Ok(Last::new()), |thread| thread.join().expect("no thread of these panics"))
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        self.progress.is_over.store(true, Ordering::Relaxed);
        // Who has no use for the value any more has none for its error.
        let _ = self.wait();
    }
}

fn write_all(
    mut places: Places,
    mut write: impl FnMut(u64, &[u8]) -> Result<()>,
    progress: &Progress,
) -> Result<Last> {
    let mut last = Last::new();
    let mut record = vec![0xa5_u8; RECORD_BYTES];
    let mut judge = Judge::new(machine::stolen);
    let ns = |taken: Duration| u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
    while !progress.is_over.load(Ordering::Relaxed) {
        let number = progress.written.load(Ordering::Relaxed) + 1;
        let place = places.next();
        for at in NUMBER_AT {
            record[at..at + NUMBER_BYTES].copy_from_slice(&number.to_le_bytes());
        }
        let begin = Instant::now();
        write(place, &record)?;
        let ended = Instant::now();
        let taken = ended - begin;
        last.insert(place, number);
        progress.slowest_ns.fetch_max(ns(taken), Ordering::Relaxed);
        if taken >= host::SLOW {
            judge.slow(taken, ended);
            progress.slow.fetch_add(1, Ordering::Relaxed);
        } else {
            progress.own_ns.fetch_max(ns(taken), Ordering::Relaxed);
        }
        for Judged { own, was_disturbed } in judge.look(ended) {
            progress.own_ns.fetch_max(ns(own), Ordering::Relaxed);
            progress.disturbed.fetch_add(u64::from(was_disturbed), Ordering::Relaxed);
            progress.judged.fetch_add(1, Ordering::Release);
        }
        progress.written.store(number, Ordering::Relaxed);
    }
    for taken in judge.end() {
        progress.own_ns.fetch_max(ns(taken), Ordering::Relaxed);
        progress.judged.fetch_add(1, Ordering::Release);
    }
    Ok(last)
}

/// Reads every record, and sees that it is the last one that was written there, from its beginning
/// to its end.
///
/// # Errors
///
/// That of `read`; [`Error::Content`], with the place instead of an address.
pub fn check(last: &Last, mut read: impl FnMut(u64, &mut [u8]) -> Result<()>) -> Result<()> {
    let mut record = vec![0_u8; RECORD_BYTES];
    for (&place, &expected) in last {
        read(place, &mut record)?;
        for at in NUMBER_AT {
            let mut word = [0; NUMBER_BYTES];
            word.copy_from_slice(&record[at..at + NUMBER_BYTES]);
            let found = u64::from_le_bytes(word);
            if found != expected {
                return Err(Error::Content { addr: place, found, expected });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_is_lost_or_torn_is_found() {
        let kept: Arc<Mutex<BTreeMap<u64, Vec<u8>>>> = Arc::default();
        let (all, (told, many)) = (Arc::clone(&kept), mpsc::channel());
        let mut writing = Writing::start(Places::below(16, 1), move |place, record| {
            all.lock().unwrap().insert(place, record.to_vec());
            let _ = told.send(place);
            Ok(())
        });
        many.iter().take(1_000).for_each(drop);
        // The last one of these may not be counted yet.
        assert!(writing.written().unwrap() >= 999);
        assert!(writing.take_slowest() > Duration::ZERO);
        // Either it was one of these, or there is a slow one.
        let own = writing.take_slowest_own().unwrap();
        assert!(own > Duration::ZERO || writing.take_disturbed() > 0);
        let last = writing.finish().unwrap();
        assert_eq!(last.len(), 16);
        let read = |place: u64, record: &mut [u8]| {
            record.copy_from_slice(&kept.lock().unwrap()[&place]);
            Ok(())
        };
        check(&last, read).unwrap();
        kept.lock().unwrap().get_mut(&5).unwrap()[NUMBER_AT[1]] ^= 1;
        assert!(matches!(check(&last, read), Err(Error::Content { addr: 5, .. })));
    }

    #[test]
    fn a_write_that_fails_is_the_last_and_is_told() {
        let (told, ended) = mpsc::channel::<()>();
        let mut left = 3;
        let writing = Writing::start(Places::below(16, 1), move |place, _| {
            let _ = &told;
            left -= 1;
            if left > 0 {
                Ok(())
            } else {
                Err(Error::Content { addr: place, found: 0, expected: 0 })
            }
        });
        // The thread has the only sender.
        assert!(ended.recv().is_err());
        assert!(writing.finish().is_err());
    }
}
