//! Peers that lie: raw frames against a real broker, and claims in shared words.
#![forbid(unsafe_code)]

mod descriptors;
mod frames;
mod names;
mod words;
