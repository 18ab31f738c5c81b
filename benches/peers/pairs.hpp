// The other side of rows about allocations: a program that does them when it is told to.
//
// It reads one command a line and answers one line, as the workers of a run do:
//
//   pairs BYTES COUNT AT_ONCE      so many threads, or processes, allocate and free COUNT times
//   batches BYTES COUNT            the same alone, a thousand allocations and then their frees
//
//   -> ok SECONDS                  of one allocation with its free

#pragma once

#include <chrono>
#include <cstddef>
#include <exception>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

namespace peers {

constexpr std::size_t batch = 1000;

// Keeps the compiler from seeing what becomes of a pointer.
inline void *used(void *memory)
{
    asm volatile("" : "+r"(memory) : : "memory");
    return memory;
}

template <class Heap>
void pairs(Heap &heap, std::size_t bytes, unsigned long count)
{
    for (unsigned long done = 0; done < count; ++done)
        heap.deallocate(used(heap.allocate(bytes)));
}

template <class Heap>
void batches(Heap &heap, std::size_t bytes, unsigned long count)
{
    std::vector<void *> all(batch);
    for (unsigned long done = 0; done < count; done += batch) {
        for (void *&memory : all)
            memory = used(heap.allocate(bytes));
        for (void *memory : all)
            heap.deallocate(memory);
    }
}

// Serves commands until there are no more. `at_once(others, work)` runs `work` here, and beside it
// in so many others.
template <class Heap, class AtOnce>
int serve(Heap &heap, AtOnce at_once)
{
    using clock = std::chrono::steady_clock;
    std::cout.precision(17);
    for (std::string line; std::getline(std::cin, line);) {
        std::istringstream words(line);
        std::string command;
        std::size_t bytes = 0;
        unsigned long count = 0;
        unsigned all = 1;
        words >> command >> bytes >> count;
        bool is_pairs = command == "pairs" && words >> all && all > 0;
        if (count == 0 || !(is_pairs || command == "batches")) {
            std::cout << "error: unknown command: " << line << std::endl;
            continue;
        }
        auto begin = clock::now();
        if (is_pairs)
            at_once(all - 1, [&] { pairs(heap, bytes, count); });
        else
            batches(heap, bytes, count);
        std::chrono::duration<double> taken = clock::now() - begin;
        std::cout << "ok " << taken.count() / static_cast<double>(count) << std::endl;
    }
    return 0;
}

} // namespace peers
