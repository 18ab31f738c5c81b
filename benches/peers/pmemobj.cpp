// libpmemobj: values at random places of a pool that has a replica.
//
// It reads one command a line and answers one line, as the workers of a run do:
//
//   open SET PARTS BYTES           makes a pool with room for BYTES, and a replica of it: the file
//                                  SET describes both, PARTS.0 and PARTS.1 hold them -> ok
//   store BYTES PLACES COUNT SEED  stores a value of BYTES at COUNT of PLACES places, in the order
//                                  that a run uses for the same seed -> ok SECONDS of one

#include "places.hpp"

#include <libpmemobj.h>

#include <chrono>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

// What a pool has besides its objects.
constexpr std::uint64_t overhead = std::uint64_t{64} << 20;

class pool {
public:
    pool(const std::string &set, const std::string &parts, std::uint64_t bytes) : bytes_(bytes)
    {
        const std::string files[] = {parts + ".0", parts + ".1"};
        const std::uint64_t each = bytes + overhead;
        std::ofstream(set) << "PMEMPOOLSET\n"
                           << each << ' ' << files[0] << "\nREPLICA\n"
                           << each << ' ' << files[1] << '\n';
        pool_ = pmemobj_create(set.c_str(), "bench", 0, 0600);
        // The files are gone by name as soon as they are mapped, so that nothing stays.
        for (const std::string &file : files)
            unlink(file.c_str());
        unlink(set.c_str());
        if (pool_ == nullptr)
            throw std::runtime_error(pmemobj_errormsg());
        PMEMoid values;
        if (pmemobj_zalloc(pool_, &values, bytes, 0) != 0)
            throw std::runtime_error(pmemobj_errormsg());
        values_ = static_cast<char *>(pmemobj_direct(values));
    }

    pool(const pool &) = delete;
    pool &operator=(const pool &) = delete;

    ~pool()
    {
        if (pool_ != nullptr)
            pmemobj_close(pool_);
    }

    // Seconds of one store.
    double store(std::uint64_t bytes, std::uint64_t count_of_places, std::uint64_t count,
                 std::uint64_t seed)
    {
        if (bytes == 0 || count == 0 || count_of_places < 2 ||
            (count_of_places & (count_of_places - 1)) != 0 || count_of_places > bytes_ / bytes)
            throw std::runtime_error("no such places");
        using clock = std::chrono::steady_clock;
        std::vector<char> value(bytes, 'v');
        peers::places order(count_of_places, seed);
        auto begin = clock::now();
        for (std::uint64_t done = 0; done < count; ++done)
            pmemobj_memcpy_persist(pool_, values_ + order.next() * bytes, value.data(), bytes);
        std::chrono::duration<double> taken = clock::now() - begin;
        return taken.count() / static_cast<double>(count);
    }

private:
    PMEMobjpool *pool_ = nullptr;
    char *values_ = nullptr;
    std::uint64_t bytes_;
};

// The pool is not destroyed: the process ends, and the kernel takes its memory back.
pool *opened = nullptr;

std::string answer(const std::string &line)
{
    std::istringstream words(line);
    std::string command;
    words >> command;
    std::string set, parts;
    std::uint64_t bytes = 0, count_of_places = 0, count = 0, seed = 0;
    if (command == "open" && opened == nullptr && words >> set >> parts >> bytes) {
        opened = new pool(set, parts, bytes);
        return "ok";
    }
    if (command == "store" && opened != nullptr &&
        words >> bytes >> count_of_places >> count >> seed) {
        std::ostringstream text;
        text.precision(17);
        text << "ok " << opened->store(bytes, count_of_places, count, seed);
        return text.str();
    }
    throw std::runtime_error("unknown command: " + line);
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
