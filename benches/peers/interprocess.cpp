// Boost.Interprocess: processes that allocate in one managed shared memory.

#include "pairs.hpp"

#include <boost/interprocess/managed_shared_memory.hpp>

#include <csignal>
#include <stdexcept>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

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

    void *allocate(std::size_t bytes) { return memory_.allocate(bytes); }

    void deallocate(void *memory) { memory_.deallocate(memory); }

private:
    std::string name_;
    bip::managed_shared_memory memory_;
};

// Children have the memory mapped, and its locks are for all processes that have.
struct processes {
    template <class Work>
    void operator()(unsigned others, Work work) const
    {
        std::vector<pid_t> children;
        for (unsigned other = 0; other < others; ++other) {
            pid_t child = fork();
            if (child < 0)
                throw std::runtime_error("no process can be made");
            if (child == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                work();
                _exit(0);
            }
            children.push_back(child);
        }
        work();
        for (pid_t child : children) {
            int status = 0;
            if (waitpid(child, &status, 0) != child || status != 0)
                throw std::runtime_error("a process has failed");
        }
    }
};

} // namespace

int main()
{
    try {
        segment memory(std::size_t{64} << 20);
        return peers::serve(memory, processes{});
    } catch (const std::exception &error) {
        std::cout << "error: " << error.what() << std::endl;
        return 1;
    }
}
