// The header as C++ reads it: every function has C linkage, every macro works on C++ objects.
#include "libdmce.h"

#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "check.h"

static_assert(std::is_trivial<dmce_options_t>::value, "options are plain data");
static_assert(std::is_standard_layout<dmce_stat_t>::value, "structures are plain data");
static_assert(std::is_same<decltype(dmce_open),
                           dmce_status_t(const dmce_options_t *, dmce_session_t **)>::value,
              "the types are those of C");

struct close_session {
    void operator()(dmce_session_t *session) const { OK(dmce_close(session)); }
};

int main()
{
    auto options = std::make_unique<dmce_options_t>();
    dmce_options_init(options.get());
    dmce_alloc_options_t alloc_options;
    dmce_alloc_options_init(&alloc_options);
    dmce_region_options_t region_options;
    dmce_region_options_init(&region_options);
    CHECK(options->size == sizeof(dmce_options_t) && region_options.size == 32);

    dmce_session_t *opened = nullptr;
    OK(dmce_open(options.get(), &opened));
    std::unique_ptr<dmce_session_t, close_session> session(opened);

    std::string const text = "from C++";
    std::vector<char> back(text.size());
    std::vector<char> const empty;
    dmce_addr_t addr = 0;
    OK(dmce_malloc_ex(session.get(), text.size(), &alloc_options, &addr));
    OK(dmce_write(session.get(), addr, text.data(), text.size()));
    OK(dmce_write(session.get(), addr, empty.data(), empty.size()));
    OK(dmce_read(session.get(), addr, back.data(), back.size()));
    CHECK(std::string(back.begin(), back.end()) == text);
    OK(dmce_free(session.get(), addr));
}
