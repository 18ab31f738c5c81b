//! Over every interleaving and every value that the memory model allows, and once for real.

use super::*;

#[cfg(not(loom))]
mod plain {
    use super::*;

    fn marks(values: &[u32]) -> Marks {
        let mut marks = [0; SLOTS];
        marks[..values.len()].copy_from_slice(values);
        Marks { marks, has_abandoned: false }
    }

    #[test]
    fn only_an_odd_mark_that_stays_the_same_is_waited_for() {
        let before = marks(&[0, 1, 2, 3, 5, u32::MAX, u32::MAX]);
        let now = marks(&[1, 1, 4, 4, 7, u32::MAX, 0]);
        assert_eq!(before.in_flight().collect::<Vec<_>>(), [1, 3, 4, 5, 6]);
        assert_eq!(before.waiting(&now).collect::<Vec<_>>(), [1, 5]);
        assert!(!before.quiesced(&now));
        assert!(before.quiesced(&marks(&[])));
        assert!(marks(&[0, 2, 4]).quiesced(&marks(&[0, 2, 4])));
    }

    #[test]
    fn a_mark_goes_round_past_the_largest_number() {
        let (generation, known) = (AtomicU64::new(1), AtomicU64::new(1));
        let look = Look { generation: &generation, known: &known, fence: Fence::Full };
        let slot = Slot::default();
        slot.mark.store(u32::MAX - 1, Ordering::Relaxed);
        drop(slot.begin(look).unwrap());
        assert_eq!(slot.mark.load(Ordering::Relaxed), 0);
        drop(slot.begin(look).unwrap());
        assert_eq!(slot.mark.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_servers_copy_tells_the_marks_and_the_operations_of_every_slot() {
        let mut copy = vec![0; SLOTS * size_of::<Slot>()];
        copy[..4].copy_from_slice(&7_u32.to_le_bytes());
        copy[24..32].copy_from_slice(&u64::MAX.to_le_bytes());
        let last = (SLOTS - 1) * 64;
        copy[last..last + 4].copy_from_slice(&9_u32.to_le_bytes());
        copy[last + 24..last + 32].copy_from_slice(&3_u64.to_le_bytes());
        let marks = Marks::of_copy(&copy);
        assert_eq!(marks.in_flight().collect::<Vec<_>>(), [0, SLOTS - 1]);
        assert_eq!(operations_of_copy(&copy), 2, "it wraps, whatever a client wrote");
    }

    #[test]
    fn an_intent_of_a_slot_in_no_operation_is_abandoned_unless_one_began_between_the_copies() {
        let copy = |mark: u32, bytes: u64| {
            let mut copy = vec![0; SLOTS * size_of::<Slot>()];
            copy[64..68].copy_from_slice(&mark.to_le_bytes());
            copy[64 + 16..64 + 24].copy_from_slice(&bytes.to_le_bytes());
            copy
        };
        for (first, later, is_abandoned) in [
            ((2, 8), (2, 8), true),
            ((2, 0), (2, 0), false),
            // In an operation, or at the next one by now.
            ((3, 8), (3, 8), false),
            ((2, 0), (3, 8), false),
            ((3, 8), (4, 0), false),
        ] {
            let (first, later) = (copy(first.0, first.1), copy(later.0, later.1));
            assert_eq!(Marks::of_copies(&first, &later).has_abandoned(), is_abandoned);
        }
    }

    /// The model calls the light fence a full one; here the kernel has to make it so. Optimised, a
    /// missing fence is found in most runs; the proof is the model.
    #[test]
    fn nothing_is_used_after_it_was_reclaimed_on_this_machine() {
        use std::hint::spin_loop;
        use std::sync::atomic::AtomicBool;
        const ROUNDS: u64 = 20_000;
        let fence = Fence::register();
        let (generation, known, slot) = (AtomicU64::new(0), AtomicU64::new(0), Slot::default());
        let (reclaimed, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        let client = || {
            let mut used_after = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let look = Look { generation: &generation, known: &known, fence };
                let Ok(operation) = slot.begin(look) else { continue };
                for _ in 0..20 {
                    used_after += u64::from(reclaimed.load(Ordering::Relaxed));
                    spin_loop();
                }
                drop(operation);
            }
            used_after
        };
        std::thread::scope(|scope| {
            let client = scope.spawn(client);
            let marks = || Marks::look(std::slice::from_ref(&slot));
            for round in 1..=ROUNDS {
                generation.store(round, Ordering::Relaxed);
                fence.heavy_process().unwrap();
                let before = marks();
                while !before.quiesced(&marks()) {
                    spin_loop();
                }
                reclaimed.store(true, Ordering::Relaxed);
                (0..50).for_each(|_| spin_loop());
                reclaimed.store(false, Ordering::Release);
                known.store(round, Ordering::Release);
                // Not always at the same place of the client's loop.
                (0..round % 61).for_each(|_| spin_loop());
            }
            stop.store(true, Ordering::Relaxed);
            assert_eq!(client.join().unwrap(), 0, "times that a reclaimed thing was used");
        });
    }
}

#[cfg(loom)]
mod model {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    /// What a client and a broker share, and one block that the old generation may use.
    struct Shared {
        slot: Slot,
        generation: AtomicU64,
        known: AtomicU64,
        /// Whether the table of the client still has the block.
        entry: AtomicU64,
        /// The block's bytes: loom finds an access that is not ordered with the reclaimer's.
        block: UnsafeCell<u64>,
        fence: Fence,
    }

    const PUBLISHED: u64 = 1;
    const NONE: u64 = 0;
    const RECLAIMED: u64 = 99;

    impl Shared {
        fn new(fence: Fence) -> Arc<Self> {
            Arc::new(Self {
                slot: Slot::default(),
                generation: AtomicU64::new(1),
                known: AtomicU64::new(1),
                entry: AtomicU64::new(PUBLISHED),
                block: UnsafeCell::new(0),
                fence,
            })
        }

        fn begin(&self) -> Result<Operation<'_>, Moved> {
            let (generation, known) = (&self.generation, &self.known);
            self.slot.begin(Look { generation, known, fence: self.fence })
        }

        fn marks(&self) -> Marks {
            Marks::look(std::slice::from_ref(&self.slot))
        }

        /// What the heavy side does: waits for whom it saw, then takes the block away.
        fn reclaim(&self) {
            self.fence.heavy_host().unwrap();
            let before = self.marks();
            while !before.quiesced(&self.marks()) {
                thread::yield_now();
            }
            self.block.with_mut(|block| {
                // SAFETY: what this test is about: loom fails if another access is not ordered.
                unsafe { *block = RECLAIMED };
            });
        }

        /// What an operation does with the block.
        fn use_block(&self) {
            self.block.with(|block| {
                // SAFETY: as in `reclaim`.
                let value = unsafe { *block };
                assert_ne!(value, RECLAIMED, "used after it was reclaimed");
            });
        }
    }

    fn explore(test: impl Fn() + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = None;
        model.check(test);
    }

    fn one_sees_the_other(fence: Fence) {
        explore(move || {
            let shared = Shared::new(fence);
            let client = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    // Kept in flight: the scanner either finds it or it has seen the generation.
                    shared.begin().map(std::mem::forget).is_ok()
                })
            };
            shared.generation.store(2, Ordering::Relaxed);
            shared.fence.heavy_host().unwrap();
            let saw_mark = shared.marks().in_flight().count() == 1;
            let saw_old = client.join().unwrap();
            assert!(saw_mark || !saw_old, "neither side saw the other");
        });
    }

    #[test]
    fn the_client_sees_the_generation_or_the_broker_sees_the_mark() {
        one_sees_the_other(Fence::Full);
        one_sees_the_other(Fence::Asymmetric);
    }

    #[test]
    #[should_panic(expected = "neither side saw the other")]
    fn the_model_finds_a_missing_fence() {
        one_sees_the_other(Fence::Missing);
    }

    /// The broker changes the generation and reclaims; the client does two operations, so that the
    /// mark of the second may be what the broker sees of the first.
    fn nothing_is_used_after_it_was_reclaimed(fence: Fence) {
        explore(move || {
            let shared = Shared::new(fence);
            let client = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    for _ in 0..2 {
                        if let Ok(operation) = shared.begin() {
                            shared.use_block();
                            drop(operation);
                        }
                    }
                })
            };
            shared.generation.store(2, Ordering::Relaxed);
            shared.reclaim();
            client.join().unwrap();
        });
    }

    #[test]
    fn the_broker_never_reclaims_what_a_marked_slot_uses() {
        nothing_is_used_after_it_was_reclaimed(Fence::Full);
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn the_model_finds_a_reclaimer_that_does_not_fence() {
        nothing_is_used_after_it_was_reclaimed(Fence::Missing);
    }

    /// Inside one process the table's entry takes the place of the generation.
    #[test]
    fn who_unmaps_waits_for_every_operation_that_found_the_entry() {
        explore(|| {
            let shared = Shared::new(Fence::Full);
            let client = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    for _ in 0..2 {
                        let operation = shared.begin().unwrap();
                        // Loaded while the slot is marked: invariant 2.
                        if shared.entry.load(Ordering::Relaxed) == PUBLISHED {
                            shared.use_block();
                        }
                        drop(operation);
                    }
                })
            };
            shared.entry.store(NONE, Ordering::Relaxed);
            shared.reclaim();
            client.join().unwrap();
        });
    }

    /// What is loaded before the mark is no knowledge: the model finds who uses it.
    #[test]
    #[should_panic(expected = "Causality violation")]
    fn the_model_finds_an_entry_that_was_loaded_before_the_mark() {
        explore(|| {
            let shared = Shared::new(Fence::Full);
            let client = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let entry = shared.entry.load(Ordering::Relaxed);
                    let operation = shared.begin().unwrap();
                    if entry == PUBLISHED {
                        shared.use_block();
                    }
                    drop(operation);
                })
            };
            shared.entry.store(NONE, Ordering::Relaxed);
            shared.reclaim();
            client.join().unwrap();
        });
    }

    /// One thread takes the changes in, another begins: whoever compares with the new number sees
    /// the tables of that number.
    #[test]
    fn an_operation_under_the_new_generation_sees_the_tables_of_the_new_generation() {
        explore(|| {
            let shared = Shared::new(Fence::Full);
            shared.generation.store(2, Ordering::Relaxed);
            let other = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    shared.entry.store(NONE, Ordering::Relaxed);
                    // As `SessionMap::settle` does.
                    shared.known.store(2, Ordering::Release);
                })
            };
            if let Ok(operation) = shared.begin() {
                assert_eq!(shared.entry.load(Ordering::Relaxed), NONE, "an old table");
                drop(operation);
            }
            other.join().unwrap();
        });
    }
}
