// The malloc that this program is linked with: one that has to be there from the start.

#include "pairs.hpp"

#include <cstdlib>
#include <thread>

namespace {

struct heap {
    void *allocate(std::size_t bytes) { return std::malloc(bytes); }

    void deallocate(void *memory) { std::free(memory); }
};

struct threads {
    template <class Work>
    void operator()(unsigned others, Work work) const
    {
        std::vector<std::thread> all;
        for (unsigned other = 0; other < others; ++other)
            all.emplace_back(work);
        work();
        for (std::thread &thread : all)
            thread.join();
    }
};

} // namespace

int main()
{
    heap own;
    return peers::serve(own, threads{});
}
