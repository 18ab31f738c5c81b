// dmce::vector and std::vector of numbers, under the same loops.
//
// It reads one command a line and answers one line, as the workers of a run do:
//
//   open COUNT                   makes both, of COUNT numbers each, a power of two -> ok
//   SIDE loads, SIDE stores      all of them in order, by iterators
//   SIDE indexed                 all of them in order, by indices; loads
//   SIDE pushed                  as many again, one by one, to one that has room for them
//   SIDE random-loads COUNT SEED, SIDE random-stores COUNT SEED
//                                so many at places that the seed chooses
//   -> ok SECONDS                of one number; SIDE is `dmce` or `std`
//   huge -> ok PERCENT           how much of dmce::vector is mapped with huge pages

#include "places.hpp"

#include <libdmce.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using number = std::uint64_t;

// Keeps the compiler from leaving out what made a value.
void use(number value)
{
    asm volatile("" : : "r"(value) : "memory");
}

template <class Vector>
void loads(const Vector &numbers)
{
    number sum = 0;
    for (const number each : numbers)
        sum += each;
    use(sum);
}

template <class Vector>
void indexed(const Vector &numbers)
{
    number sum = 0;
    for (typename Vector::size_type i = 0; i < numbers.size(); ++i)
        sum += numbers[i];
    use(sum);
}

template <class Vector>
void stores(Vector &numbers)
{
    number next = 0;
    for (number &each : numbers)
        each = ++next;
    use(next);
}

template <class Vector>
void pushed(Vector &numbers)
{
    const auto count = numbers.size();
    numbers.clear();
    for (number next = 0; next < count; ++next)
        numbers.push_back(next);
    use(numbers.back());
}

template <class Vector>
void random_loads(const Vector &numbers, std::uint64_t count, std::uint64_t seed)
{
    peers::places places(numbers.size(), seed);
    number sum = 0;
    for (std::uint64_t done = 0; done < count; ++done)
        sum += numbers[places.next()];
    use(sum);
}

template <class Vector>
void random_stores(Vector &numbers, std::uint64_t count, std::uint64_t seed)
{
    peers::places places(numbers.size(), seed);
    for (std::uint64_t done = 0; done < count; ++done)
        numbers[places.next()] = done;
    use(numbers.back());
}

// Seconds of one number.
template <class Vector>
double measure(Vector &numbers, const std::string &what, std::uint64_t count, std::uint64_t seed)
{
    using clock = std::chrono::steady_clock;
    const auto begin = clock::now();
    if (what == "loads")
        loads(numbers);
    else if (what == "indexed")
        indexed(numbers);
    else if (what == "stores")
        stores(numbers);
    else if (what == "pushed")
        pushed(numbers);
    else if (what == "random-loads" && count != 0)
        random_loads(numbers, count, seed);
    else if (what == "random-stores" && count != 0)
        random_stores(numbers, count, seed);
    else
        throw std::runtime_error("nothing to measure: " + what);
    const std::chrono::duration<double> taken = clock::now() - begin;
    return taken.count() / static_cast<double>(count != 0 ? count : numbers.size());
}

class both {
public:
    explicit both(std::uint64_t count) : ours_(session_, count, 1), theirs_(count, 1)
    {
        if (count < 2 || (count & (count - 1)) != 0)
            throw std::runtime_error("the places have to be a power of two");
    }

    double measure(const std::string &side, const std::string &what, std::uint64_t count,
                   std::uint64_t seed)
    {
        if (side == "dmce")
            return ::measure(ours_, what, count, seed);
        if (side == "std")
            return ::measure(theirs_, what, count, seed);
        throw std::runtime_error("no such side: " + side);
    }

    std::uint64_t huge_percent()
    {
        // A page table that was there before goes when the pages under it become a huge one.
        loads(ours_);
        std::ifstream maps("/proc/self/smaps");
        const std::string name = "ShmemPmdMapped:";
        std::uint64_t kib = 0;
        for (std::string line; std::getline(maps, line);)
            if (line.compare(0, name.size(), name) == 0)
                kib += std::stoull(line.substr(name.size()));
        return std::min<std::uint64_t>(kib * 1024 * 100 / ours_.mapped_bytes(), 100);
    }

private:
    dmce::session session_;
    dmce::vector<number> ours_;
    std::vector<number> theirs_;
};

std::unique_ptr<both> opened;

std::string answer(const std::string &line)
{
    std::istringstream words(line);
    std::string side, what;
    std::uint64_t count = 0, seed = 0;
    words >> side;
    if (side == "open" && words >> count) {
        opened = std::make_unique<both>(count);
        return "ok";
    }
    words >> what >> count >> seed;
    if (opened == nullptr)
        throw std::runtime_error("not opened: " + line);
    if (side == "huge")
        return "ok " + std::to_string(opened->huge_percent());
    std::ostringstream text;
    text.precision(17);
    text << "ok " << opened->measure(side, what, count, seed);
    return text.str();
}

} // namespace

int main()
{
    for (std::string line; std::getline(std::cin, line);) {
        try {
            std::cout << answer(line) << std::endl;
        } catch (const std::exception &error) {
            std::cout << "error: " << error.what() << std::endl;
        }
    }
    return 0;
}
