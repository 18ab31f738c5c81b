// hello: memory of other processes in C++, by the C interface and a few lines of RAII.
//
//     c++ -std=c++14 hello.cpp $(pkg-config --cflags --libs libdmce) -o hello
#include <libdmce.h>

#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>

namespace {

// Turns a status into an exception that tells what went wrong.
void check(dmce_status_t status)
{
    if (status != DMCE_OK)
        throw std::runtime_error(dmce_last_error());
}

struct Close {
    void operator()(dmce_session_t *session) const { dmce_close(session); }
    void operator()(dmce_region_t *region) const { dmce_region_close(region); }
};

using Session = std::unique_ptr<dmce_session_t, Close>;
using Region = std::unique_ptr<dmce_region_t, Close>;

Session open()
{
    dmce_options_t options;
    dmce_options_init(&options);
    options.flags = DMCE_SPAWN; // start a private instance if there is no broker
    dmce_session_t *session = nullptr;
    check(dmce_open(&options, &session));
    return Session(session);
}

Region open_region(dmce_session_t *session, const char *volume, const char *name)
{
    dmce_region_t *region = nullptr;
    check(dmce_region_open(session, volume, name, DMCE_READ | DMCE_WRITE, &region));
    return Region(region);
}

void greet()
{
    const Session session = open();

    // Memory of this session: it goes when the session ends.
    const std::string text = "not my memory";
    std::string back(text.size(), ' ');
    dmce_addr_t addr = 0;
    check(dmce_malloc(session.get(), 1 << 20, &addr));
    check(dmce_write(session.get(), addr + 4096, text.data(), text.size()));
    check(dmce_read(session.get(), addr + 4096, &back[0], back.size()));
    std::cout << back << '\n';

    // A region has a name, outlives its sessions, and is shared with whoever may open it.
    check(dmce_region_create(session.get(), "demo", "greeting", 1 << 16, nullptr));
    const Region region = open_region(session.get(), "demo", "greeting");
    check(dmce_region_write(region.get(), 0, "hello", 5, DMCE_PM_BOTH));
    back.resize(5);
    check(dmce_region_read(region.get(), 0, &back[0], back.size(), DMCE_PM_ANY));
    std::cout << back << '\n';
    check(dmce_region_delete(session.get(), "demo", "greeting"));
}

} // namespace

int main()
{
    try {
        greet();
        return 0;
    } catch (const std::exception &error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
