//! Many threads in one session.

use std::sync::Barrier;

use dmce_tests::{Instance, Seeded};
use libdmce::{Options, Session};

fn sixty_four_threads(session: &Session) {
    let begin = Barrier::new(64);
    std::thread::scope(|scope| {
        for thread in 0..64_u64 {
            let begin = &begin;
            scope.spawn(move || {
                let mut random = Seeded::quiet(thread);
                begin.wait();
                let mut live = Vec::new();
                for round in 0..60_u64 {
                    let bytes = 1 + random.below(40_000) as usize;
                    let addr = session.malloc(bytes as u64).unwrap();
                    let mut content = vec![0; bytes];
                    Seeded::quiet(thread << 32 | round).fill(&mut content);
                    session.write(addr, &content).unwrap();
                    live.push((addr, content));
                    if live.len() > 8 {
                        let place = random.below(live.len() as u64) as usize;
                        let (addr, content) = live.swap_remove(place);
                        let same = session.compare(addr, &content).unwrap();
                        assert_eq!(same, std::cmp::Ordering::Equal);
                        session.free(addr).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn sixty_four_threads_share_a_session_that_maps_all() {
    let instance = Instance::start(2);
    let session = instance.open();
    sixty_four_threads(&session);
    session.close().unwrap();
    instance.wait_empty();
}

#[test]
fn sixty_four_threads_share_a_session_with_few_windows() {
    let instance = Instance::start(2);
    let windowed = Options { window_budget: 4 << 20, ..instance.options() };
    let session = Session::open(&windowed).unwrap();
    sixty_four_threads(&session);
    session.close().unwrap();
    instance.wait_empty();
}

#[test]
fn more_threads_than_slots_still_work() {
    let instance = Instance::start(1);
    let session = instance.open();
    let addr = session.malloc(4096).unwrap();
    let begin = Barrier::new(300);
    std::thread::scope(|scope| {
        for _ in 0..300 {
            std::thread::Builder::new()
                .stack_size(256 << 10)
                .spawn_scoped(scope, || {
                    let mut found = [0; 64];
                    session.read(addr, &mut found).unwrap();
                    let own = session.malloc(100).unwrap();
                    begin.wait();
                    session.read(addr, &mut found).unwrap();
                    session.free(own).unwrap();
                })
                .unwrap();
        }
    });
}
