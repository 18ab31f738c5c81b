//! Deaths at any moment, against a model of what was answered.

use std::collections::BTreeMap;

use super::*;

/// Blocks and their bytes, as far as the answers tell.
type Model = BTreeMap<u32, u64>;

const ROUNDS: u64 = 40;
const BLOCKS: u32 = 24;

/// Numbers that look random and are the same for the same seed (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// What a request makes of a block: the bytes that it has then.
fn next(numbers: &mut Numbers, block: u32, now: Option<u64>) -> (DaemonRequest, Option<u64>) {
    let pages_max = if numbers.below(4) == 0 { 2048 } else { 64 };
    let pages = 1 + numbers.below(pages_max);
    match now {
        None => (create(block, pages * 4096), Some(pages * 4096)),
        Some(bytes) if numbers.below(2) == 0 => {
            let grown = bytes + pages * 4096;
            (grow(block, grown), Some(grown))
        }
        Some(_) => (destroy(block), None),
    }
}

/// The names of the daemon's objects, pool and lock apart.
fn objects(broker: &Broker) -> Vec<String> {
    let dir = ObjectDir::open("/dev/shm").unwrap();
    let prefix = broker.instance.daemon_prefix(1);
    let names = dir.names(&prefix).unwrap();
    let tails = names.iter().map(|name| name[prefix.len()..].to_owned());
    tails.filter(|tail| tail.starts_with("data") || tail.starts_with("head")).collect()
}

#[test]
fn whenever_it_dies_what_was_answered_holds_and_nothing_else_is_left() {
    let mut broker = Broker::new();
    let mut numbers = Numbers(2026);
    let mut model = Model::new();
    // What a request in flight at a death may have made of its block.
    let mut open: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    for round in 0..ROUNDS {
        broker.start_daemon();
        let found: Model = held(&broker.accept()).into_iter().collect();
        for block in 1..=BLOCKS {
            let (is, was) = (found.get(&block), model.get(&block));
            let may_be = open.get(&block).is_some_and(|bytes| bytes.as_ref() == is);
            assert!(is == was || may_be, "round {round}, block {block}: {is:?}, was {was:?}");
        }
        let ids = found.keys();
        let data = ids.clone().map(|block| format!("data-{block:08x}"));
        let expected: Vec<_> = data.chain(ids.map(|block| format!("head-{block:08x}"))).collect();
        assert_eq!(objects(&broker), expected, "round {round}");
        model = found;

        open.clear();
        let mut asked = BTreeMap::new();
        for block in 1..=BLOCKS {
            let (request, bytes) = next(&mut numbers, block, model.get(&block).copied());
            asked.insert(broker.request(&request), block);
            open.insert(block, bytes);
        }
        for _ in 0..numbers.below(u64::from(BLOCKS) + 1) {
            let (request, reply) = broker.receive_reply();
            assert!(reply.is_ok(), "{reply:?}");
            let block = asked[&request];
            match open.remove(&block).expect("each request is answered once") {
                Some(bytes) => _ = model.insert(block, bytes),
                None => _ = model.remove(&block),
            }
        }
        broker.kill_daemon();
    }
}
