// The places of benches/src/places.rs: an order that no prefetcher guesses, from a seed.

#pragma once

#include <cstdint>

namespace peers {

class places {
public:
    // `count` is a power of two, and more than 1.
    places(std::uint64_t count, std::uint64_t seed)
        : state_((seed + 1) * 0x9e3779b97f4a7c15U), shift_(64 - __builtin_ctzll(count))
    {
    }

    std::uint64_t next()
    {
        state_ = state_ * 6364136223846793005U + 1442695040888963407U;
        return state_ >> shift_;
    }

private:
    std::uint64_t state_;
    int shift_;
};

} // namespace peers
