// What the tests in C++ have in common.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include "check.h"

// splitmix64: the same numbers on every width, so that a seed repeats a run.
class random_numbers {
public:
    explicit random_numbers(std::uint64_t seed) : state_(seed) {}

    std::uint64_t next()
    {
        std::uint64_t mixed = state_ += UINT64_C(0x9e3779b97f4a7c15);
        mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
        return mixed ^ (mixed >> 31);
    }

    std::uint64_t below(std::uint64_t limit) { return next() % limit; }

private:
    std::uint64_t state_;
};

// The exception that something throws; the program fails if it throws no such one.
template <class Exception, class Action>
Exception throws(Action action)
{
    try {
        action();
    } catch (const Exception &thrown) {
        return thrown;
    }
    std::fprintf(stderr, "nothing was thrown\n");
    std::exit(1);
}
