//! Inputs that are near those that are kept, by chance from a seed.

/// Numbers at which things change.
const EDGES: [u64; 12] = [
    0,
    1,
    7,
    0x7f,
    0x80,
    0xff,
    0x1000,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

/// A sequence of mutations: `SplitMix64` from a seed.
#[derive(Clone, Debug)]
pub struct Mutator(u64);

impl Mutator {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Changes one of `inputs` in one to four places, and keeps it within `bytes_max`.
    #[must_use]
    pub fn next_input(&mut self, inputs: &[impl AsRef<[u8]>], bytes_max: usize) -> Vec<u8> {
        let mut input = self.pick(inputs).map_or(Vec::new(), |input| input.as_ref().to_vec());
        for _ in 0..=self.below(4) {
            match self.below(6) {
                0 => self.flip(&mut input),
                1 => self.set_edge(&mut input),
                2 => self.insert(&mut input),
                3 => self.remove(&mut input),
                4 => self.repeat(&mut input),
                _ => self.splice(&mut input, inputs),
            }
        }
        input.truncate(bytes_max);
        input
    }

    fn next_number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `bound`; 0 if that is 0.
    fn below(&mut self, bound: usize) -> usize {
        let number = self.next_number().checked_rem(bound as u64).unwrap_or(0);
        usize::try_from(number).expect("it is less than a usize")
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> Option<&'a T> {
        items.get(self.below(items.len()))
    }

    fn flip(&mut self, input: &mut [u8]) {
        let place = self.below(input.len());
        if let Some(byte) = input.get_mut(place) {
            *byte ^= 1 << self.below(8);
        }
    }

    /// A number of one to eight bytes that is at an edge.
    fn set_edge(&mut self, input: &mut [u8]) {
        let edge = EDGES[self.below(EDGES.len())].to_le_bytes();
        let from = self.below(input.len());
        let width = 1 << self.below(4);
        for (byte, edge) in input[from..].iter_mut().zip(&edge[..width]) {
            *byte = *edge;
        }
    }

    fn insert(&mut self, input: &mut Vec<u8>) {
        let place = self.below(input.len() + 1);
        let [byte, ..] = self.next_number().to_le_bytes();
        input.insert(place, byte);
    }

    fn remove(&mut self, input: &mut Vec<u8>) {
        let from = self.below(input.len());
        let count = self.below(8).min(input.len() - from);
        input.drain(from..from + count);
    }

    fn repeat(&mut self, input: &mut Vec<u8>) {
        let from = self.below(input.len());
        let count = self.below(32).min(input.len() - from);
        let again = input[from..from + count].to_vec();
        let place = self.below(input.len() + 1);
        input.splice(place..place, again);
    }

    /// The end of another input behind the beginning of this one.
    fn splice(&mut self, input: &mut Vec<u8>, inputs: &[impl AsRef<[u8]>]) {
        let keep = self.below(input.len() + 1);
        input.truncate(keep);
        if let Some(other) = self.pick(inputs) {
            let other = other.as_ref();
            input.extend_from_slice(&other[self.below(other.len() + 1)..]);
        }
    }
}
