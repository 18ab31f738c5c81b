// Guards and the memory resource, over calls that this program stands in for: what they ask of the
// library, in which order, and what they do when it refuses. mapped<T> is over the real ones.
#include <libdmce.hpp>

#include <algorithm>
#include <cstdint>
#include <map>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cpp.hpp"

namespace {

// What the calls of this program see and do.
struct {
    std::string calls;
    std::uint64_t words[8];
    std::uint64_t before[8];
    dmce_status_t release = DMCE_OK;
    dmce_status_t abort = DMCE_OK;

    std::set<void *> mapped;
    std::vector<std::uint64_t> sizes;
    std::uint64_t left = UINT64_MAX;
} stand_in;

std::string taken_calls()
{
    return std::exchange(stand_in.calls, "");
}

} // namespace

// The library's functions of these names are left aside for the program's own.
extern "C" {

dmce_status_t dmce_read_ptr(dmce_session_t *, dmce_addr_t, size_t bytes, uint32_t flags,
                            const void **pointer)
{
    stand_in.calls += "read " + std::to_string(bytes) + "/" + std::to_string(flags) + " ";
    *pointer = stand_in.words;
    return DMCE_OK;
}

dmce_status_t dmce_write_ptr(dmce_session_t *, dmce_addr_t, size_t bytes, uint32_t flags,
                             void **pointer)
{
    stand_in.calls += "write " + std::to_string(bytes) + " ";
    if (flags == DMCE_NOWAIT)
        return DMCE_E_BUSY;
    std::copy_n(stand_in.words, 8, stand_in.before);
    *pointer = stand_in.words;
    return DMCE_OK;
}

dmce_status_t dmce_release_ptr(dmce_session_t *, const void *pointer)
{
    CHECK(pointer == stand_in.words);
    stand_in.calls += "release ";
    return stand_in.release;
}

dmce_status_t dmce_abort_ptr(dmce_session_t *, void *pointer)
{
    CHECK(pointer == stand_in.words);
    stand_in.calls += "abort ";
    if (stand_in.abort == DMCE_OK)
        std::copy_n(stand_in.before, 8, stand_in.words);
    return stand_in.abort;
}

dmce_status_t dmce_vmalloc(dmce_session_t *, uint64_t bytes, const dmce_alloc_options_t *,
                           void **pointer)
{
    if (bytes > stand_in.left)
        return DMCE_E_NOSPACE;
    stand_in.left -= bytes;
    *pointer = aligned_alloc(4096, (static_cast<size_t>(bytes) + 4095) / 4096 * 4096);
    stand_in.mapped.insert(*pointer);
    stand_in.sizes.push_back(bytes);
    return DMCE_OK;
}

dmce_status_t dmce_vfree(dmce_session_t *, void *pointer)
{
    CHECK(stand_in.mapped.erase(pointer) == 1);
    free(pointer);
    return DMCE_OK;
}

dmce_status_t dmce_sync(dmce_session_t *, void *pointer, uint64_t bytes)
{
    stand_in.calls += "sync " + std::to_string(bytes) + " ";
    return pointer == nullptr ? DMCE_E_ADDRESS : DMCE_OK;
}
}

namespace {

using word = std::uint64_t;
using writing = dmce::write_guard<word>;

struct failed {};

void guards_end_what_they_began(const dmce::session &session)
{
    const auto at = session.at<word>(4096);
    {
        const dmce::read_guard<word> reading(at, 3, DMCE_QUEUE);
        CHECK(reading.size() == 3 && reading.data() == stand_in.words && reading.end()[-1] == 0);
    }
    CHECK(taken_calls() == "read 24/2 release ");
    {
        writing guard(at, 2);
        guard[1] = 5;
        writing moved(std::move(guard));
        CHECK(guard.data() == nullptr && guard.empty() && moved.size() == 2);
        moved.release();
        moved.release();
        CHECK(!moved);
    }
    CHECK(taken_calls() == "write 16 release " && stand_in.words[1] == 5);
    {
        writing guard(at, 2);
        guard[1] = 6;
        guard.abort();
    }
    CHECK(taken_calls() == "write 16 abort " && stand_in.words[1] == 5);
    {
        writing first(at, 1), second(at, 1);
        first = std::move(second);
        CHECK(taken_calls() == "write 8 write 8 release ");
    }
    CHECK(taken_calls() == "release ");
    const dmce::error busy = throws<dmce::error>([&] { writing(at, 1, DMCE_NOWAIT); });
    CHECK(busy.status() == DMCE_E_BUSY && taken_calls() == "write 8 ");
    throws<std::length_error>([&] { writing(at, SIZE_MAX / 4); });
    CHECK(taken_calls().empty());
}

void an_exception_that_passes_a_write_guard_aborts_it(const dmce::session &session)
{
    const auto at = session.at<word>(4096);
    stand_in.words[0] = 1;
    throws<failed>([&] {
        writing guard(at, 1);
        guard[0] = 2;
        throw failed();
    });
    CHECK(taken_calls() == "write 8 abort " && stand_in.words[0] == 1);

    // With one copy nothing can be taken back, and nobody may be left waiting.
    stand_in.abort = DMCE_E_UNSUPPORTED;
    throws<failed>([&] {
        writing guard(at, 1);
        guard[0] = 2;
        CHECK(throws<dmce::error>([&] { guard.abort(); }).status() == DMCE_E_UNSUPPORTED);
        throw failed();
    });
    CHECK(taken_calls() == "write 8 abort abort release " && stand_in.words[0] == 2);
    stand_in.abort = DMCE_OK;

    // A guard inside a destructor that runs because of an exception is no part of what failed.
    struct last_words {
        const dmce::ptr<word> &at;
        ~last_words() { writing(at, 1)[0] = 9; }
    };
    throws<failed>([&] {
        const last_words words{at};
        throw failed();
    });
    CHECK(taken_calls() == "write 8 release " && stand_in.words[0] == 9);
}

void a_release_that_fails_is_told_and_tried_once_more(const dmce::session &session)
{
    const auto at = session.at<word>(4096);
    {
        writing guard(at, 1);
        stand_in.release = DMCE_E_TIMEOUT;
        CHECK(throws<dmce::error>([&] { guard.release(); }).status() == DMCE_E_TIMEOUT);
        CHECK(guard.data() != nullptr);
    }
    CHECK(taken_calls() == "write 8 release release ");
    {
        writing guard(at, 1);
        stand_in.release = DMCE_E_LOST;
        CHECK(throws<dmce::error>([&] { guard.release(); }).status() == DMCE_E_LOST);
        CHECK(guard.data() == nullptr);
    }
    CHECK(taken_calls() == "write 8 release ");
    stand_in.release = DMCE_OK;
}

void mapped_ranges_are_memory(const dmce::session &session)
{
    const auto at = session.allocate<word>(1000);
    {
        dmce::mapped<word> all(at, 1000);
        std::fill(all.begin(), all.end(), 3U);
        const dmce::mapped<const word> part(session, (at + 10).addr(), 5);
        all[12] = 4;
        CHECK(part[2] == 4 && part.size() == 5 && *part == 3);
        CHECK(throws<dmce::error>([&] { session.free(at); }).status() == DMCE_E_BUSY);
        dmce::mapped<word> moved(std::move(all));
        all = std::move(moved);
        all.unmap();
        all.unmap();
        CHECK(all.empty() && all.begin() == all.end());
    }
    CHECK(at[12] == 4 && at[999] == 3);
    session.free(at);
    CHECK(throws<dmce::error>([&] { dmce::mapped<word>(at, 1); }).status() == DMCE_E_ADDRESS);
    throws<std::length_error>([&] { dmce::mapped<word>(at, SIZE_MAX / 4); });
}

void small_pieces_come_of_chunks_that_grow(const dmce::session &session)
{
    stand_in.sizes.clear();
    {
        dmce::memory_resource memory(session);
        std::pmr::map<int, std::pmr::string> texts(&memory);
        std::map<int, std::string> model;
        random_numbers random(5);
        for (int i = 0; i < 20000; ++i) {
            const int key = static_cast<int>(random.below(3000));
            const std::string text(static_cast<std::size_t>(random.below(1500)), 'a');
            texts[key] = text;
            model[key] = text;
            const int gone = static_cast<int>(random.below(3000));
            CHECK(texts.erase(gone) == model.erase(gone));
        }
        CHECK(texts.size() == model.size());
        CHECK(std::equal(texts.begin(), texts.end(), model.begin(), [](auto &a, auto &b) {
            return a.first == b.first && std::string_view(a.second) == b.second;
        }));
        // What was freed is used again: so much was allocated in all, and so little is held.
        std::uint64_t held = 0;
        for (const std::uint64_t bytes : stand_in.sizes) {
            CHECK(bytes >= 1U << 20 && bytes <= 64U << 20);
            held += bytes;
        }
        CHECK(std::is_sorted(stand_in.sizes.begin(), stand_in.sizes.end()));
        CHECK(stand_in.sizes.size() <= 5 && held <= 16U << 20);
        memory.sync(&texts, 8);
        CHECK(taken_calls() == "sync 8 ");
        CHECK(throws<dmce::error>([&] { memory.sync(nullptr, 1); }).status() == DMCE_E_ADDRESS);
        CHECK(taken_calls() == "sync 1 ");
        CHECK(memory.is_equal(memory) && !memory.is_equal(*std::pmr::new_delete_resource()));
    }
    CHECK(stand_in.mapped.empty());
}

void large_ones_are_by_themselves_and_go_back_at_once(const dmce::session &session)
{
    dmce::memory_resource memory(session);
    CHECK(reinterpret_cast<std::uintptr_t>(memory.allocate(100, 2048)) % 2048 == 0);
    CHECK(stand_in.mapped.size() == 1);
    stand_in.sizes.clear();
    void *large = memory.allocate(3U << 20);
    CHECK(stand_in.sizes == std::vector<std::uint64_t>{3U << 20} && stand_in.mapped.size() == 2);
    memory.deallocate(large, 3U << 20);
    CHECK(stand_in.mapped.size() == 1);
    // Of every size between: what one frees is there for the next one.
    for (std::size_t bytes = 1; bytes < 1U << 20; bytes = bytes * 3 + 1) {
        const std::size_t before = stand_in.mapped.size();
        for (int i = 0; i < 100; ++i)
            memory.deallocate(memory.allocate(bytes), bytes);
        CHECK(stand_in.mapped.size() <= before + 1);
    }
}

void a_refusal_is_bad_alloc(const dmce::session &session)
{
    dmce::memory_resource memory(session);
    std::pmr::vector<char> held(1000, 'h', &memory);
    stand_in.left = 1U << 20;
    throws<std::bad_alloc>([&] { held.reserve(2U << 20); });
    throws<std::bad_alloc>([&] {
        for (;;)
            static_cast<void>(memory.allocate(1000));
    });
    CHECK(held == std::pmr::vector<char>(1000, 'h'));
    // Its first chunk may be taken when it is made.
    stand_in.left = 0;
    throws<std::bad_alloc>([&] {
        dmce::memory_resource refused(session);
        static_cast<void>(refused.allocate(1));
    });
    stand_in.left = UINT64_MAX;
    held.reserve(2U << 20);
    CHECK(held.size() == 1000);
}

} // namespace

int main()
{
    const dmce::session session;
    guards_end_what_they_began(session);
    an_exception_that_passes_a_write_guard_aborts_it(session);
    a_release_that_fails_is_told_and_tried_once_more(session);
    mapped_ranges_are_memory(session);
    small_pieces_come_of_chunks_that_grow(session);
    large_ones_are_by_themselves_and_go_back_at_once(session);
    a_refusal_is_bad_alloc(session);
    CHECK(stand_in.mapped.empty());
    return 0;
}
