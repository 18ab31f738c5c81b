// Boost.Interprocess as the other side of rows: a process that allocates in a managed shared memory.
//
// Reads one command a line and answers one line, as the workers of a run do:
//
//   pairs BYTES COUNT THREADS    each thread allocates and frees COUNT times -> ok SECONDS
//
// where SECONDS is the time of one allocation with its free.

#include <boost/interprocess/managed_shared_memory.hpp>

#include <chrono>
#include <cstddef>
#include <iostream>
#include <sstream>
#include <string>
#include <thread>
#include <unistd.h>
#include <vector>

namespace bip = boost::interprocess;

namespace {

// The object is gone by name as soon as it is mapped, so that nothing stays however this ends.
class segment {
public:
    explicit segment(std::size_t bytes)
        : name_("dmce.bench.interprocess." + std::to_string(getpid())),
          memory_(bip::create_only, name_.c_str(), bytes)
    {
        bip::shared_memory_object::remove(name_.c_str());
    }

    void pairs(std::size_t bytes, unsigned long count)
    {
        for (unsigned long done = 0; done < count; ++done) {
            void *memory = memory_.allocate(bytes);
            asm volatile("" : "+r"(memory) : : "memory");
            memory_.deallocate(memory);
        }
    }

private:
    std::string name_;
    bip::managed_shared_memory memory_;
};

double seconds_of_a_pair(segment &memory, std::size_t bytes, unsigned long count, unsigned threads)
{
    auto begin = std::chrono::steady_clock::now();
    std::vector<std::thread> others;
    for (unsigned other = 1; other < threads; ++other)
        others.emplace_back([&] { memory.pairs(bytes, count); });
    memory.pairs(bytes, count);
    for (auto &other : others)
        other.join();
    std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    return taken.count() / static_cast<double>(count);
}

} // namespace

int main()
{
    try {
        segment memory(std::size_t{64} << 20);
        std::cout.precision(17);
        for (std::string line; std::getline(std::cin, line);) {
            std::istringstream words(line);
            std::string command;
            std::size_t bytes = 0;
            unsigned long count = 0;
            unsigned threads = 0;
            if (words >> command >> bytes >> count >> threads && command == "pairs" && count > 0)
                std::cout << "ok " << seconds_of_a_pair(memory, bytes, count, threads) << std::endl;
            else
                std::cout << "error: unknown command: " << line << std::endl;
        }
    } catch (const std::exception &error) {
        std::cout << "error: " << error.what() << std::endl;
        return 1;
    }
    return 0;
}
