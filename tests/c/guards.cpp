// Guards, dmce::mapped<T> and the memory resource, over real servers: what they hold and how they
// end it, with one copy and with two, and what they do when the library refuses.
#include <libdmce.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cpp.hpp"

namespace {

using word = std::uint64_t;
using reading = dmce::read_guard<word>;
using writing = dmce::write_guard<word>;

constexpr std::size_t many = 1000;
constexpr std::size_t MiB = std::size_t{1} << 20;

struct failed {};

template <class Action>
dmce_status_t refusal(Action action)
{
    return throws<dmce::error>(action).status();
}

// The words of an allocation, by dmce_read.
std::vector<word> stored(dmce::ptr<const word> first)
{
    std::vector<word> all(many);
    first.read(all.data(), all.size());
    return all;
}

dmce::ptr<word> allocate_filled(const dmce::session &session, word value)
{
    const dmce::ptr<word> first = session.allocate<word>(many);
    std::fill_n(first, many, value);
    return first;
}

void a_write_guard_releases_at_its_end(const dmce::session &session)
{
    const auto at = allocate_filled(session, 1);
    std::vector<word> model(many, 1);
    {
        const writing guard(at + 10, 700);
        CHECK(guard.size() == 700 && guard.end() - guard.begin() == 700 && guard[699] == 1);
        for (std::size_t i = 0; i < guard.size(); ++i)
            guard[i] = model[10 + i] = i;
        CHECK(refusal([&] { writing(at + 709, 2, DMCE_NOWAIT); }) == DMCE_E_BUSY);
        // Beside it nothing is held, to the byte.
        *writing(at + 710, 2, DMCE_NOWAIT) = model[710] = 5;
    }
    CHECK(stored(at) == model);
    {
        writing guard(session, at.addr(), 1, DMCE_NOWAIT);
        *guard = model[0] = 9;
        const word *pointer = guard.data();
        guard.release();
        CHECK(!guard && guard.data() == nullptr && guard.empty() && guard.begin() == guard.end());
        // It has ended, also for the library; to end it again is nothing to do.
        guard.release();
        guard.abort();
        CHECK(dmce_release_ptr(session.handle(), pointer) == DMCE_E_NOTFOUND);
    }
    CHECK(stored(at) == model);
    {
        const writing whole(at, many, DMCE_NOWAIT);
        CHECK(std::equal(whole.begin(), whole.end(), model.begin()));
        CHECK(refusal([&] { session.free(at); }) == DMCE_E_BUSY);
    }
    session.free(at);
}

void with_two_copies_what_failed_was_never_stored(const dmce::session &session)
{
    const auto at = allocate_filled(session, 1);
    const std::vector<word> before(many, 1);
    throws<failed>([&] {
        const writing guard(at + 3, 900);
        std::fill(guard.begin(), guard.end(), 2U);
        throw failed();
    });
    CHECK(stored(at) == before);
    {
        writing guard(at, many);
        std::fill(guard.begin(), guard.end(), 3U);
        guard.abort();
        CHECK(!guard);
        guard.abort();
        guard.release();
    }
    CHECK(stored(at) == before);
    // One that was moved to where no exception passes is kept.
    const auto fails_after = [&](auto take) {
        throws<failed>([&] {
            writing guard(at, 1);
            *guard = 4;
            take(std::move(guard));
            throw failed();
        });
    };
    fails_after([](writing guard) { guard.release(); });
    CHECK(at[0] == 4);
    *at = 1;
    {
        std::vector<writing> kept;
        fails_after([&](writing guard) { kept.push_back(std::move(guard)); });
        CHECK(kept[0] && refusal([&] { reading(at, 1, DMCE_NOWAIT); }) == DMCE_E_BUSY);
    }
    CHECK(at[0] == 4);
    writing(at, many, DMCE_NOWAIT).release();
    session.free(at);
}

void with_one_copy_an_abort_is_refused_and_the_guard_releases(const dmce::session &session)
{
    const auto at = allocate_filled(session, 1);
    throws<failed>([&] {
        const writing guard(at, 1);
        *guard = 2;
        throw failed();
    });
    // Nobody waits for it.
    CHECK(*writing(at, 1, DMCE_NOWAIT) == 2);
    {
        writing guard(at, 1);
        *guard = 3;
        CHECK(refusal([&] { guard.abort(); }) == DMCE_E_UNSUPPORTED);
        CHECK(guard && refusal([&] { reading(at, 1, DMCE_NOWAIT); }) == DMCE_E_BUSY);
        *guard += 1;
    }
    CHECK(*reading(at, 1, DMCE_NOWAIT) == 4);
    session.free(at);
}

void a_guard_in_a_destructor_is_no_part_of_what_failed(const dmce::session &session)
{
    const auto at = allocate_filled(session, 1);
    struct last_words {
        const dmce::ptr<word> &at;
        ~last_words() { writing(at, 1)[0] = 9; }
    };
    throws<failed>([&] {
        const last_words words{at};
        throw failed();
    });
    CHECK(at[0] == 9);
    session.free(at);
}

void guards_move_with_what_they_hold(const dmce::session &session)
{
    const auto at = allocate_filled(session, 0);
    const auto is_free = [&](std::int64_t index) {
        try {
            writing(at + index, 1, DMCE_NOWAIT).release();
            return true;
        } catch (const dmce::error &error) {
            CHECK(error.status() == DMCE_E_BUSY);
            return false;
        }
    };
    {
        writing first(at, 1), second(at + 1, 1);
        *second = 8;
        first = std::move(second);
        CHECK(is_free(0) && !is_free(1) && *first == 8 && !second);
        const writing third(std::move(first));
        CHECK(!first && third && !is_free(1));
    }
    CHECK(is_free(1) && at[1] == 8);
    {
        reading first(at, 1), second(at + 1, 2);
        first = std::move(second);
        CHECK(is_free(0) && !is_free(2) && first.size() == 2 && *first == 8);
        const reading third(std::move(first));
        CHECK(!is_free(1) && third[0] == 8);
    }
    CHECK(is_free(1) && is_free(2));
    session.free(at);
}

void readers_nest_and_keep_writers_out(const dmce::session &session)
{
    const auto at = allocate_filled(session, 7);
    {
        reading outer(at, 100);
        {
            const reading inner(at, 100, DMCE_NOWAIT), part(at + 50, 100, DMCE_NOWAIT);
            CHECK(inner[99] == 7 && part[99] == 7);
        }
        const dmce::error busy = throws<dmce::error>([&] { writing(at + 99, 1, DMCE_NOWAIT); });
        CHECK(busy.status() == DMCE_E_BUSY);
        CHECK(std::string(busy.what()).find("dmce_write_ptr: ") == 0);
        writing(at + 100, 1, DMCE_NOWAIT).release();
        CHECK(dmce_abort_ptr(session.handle(), const_cast<word *>(outer.data())) ==
              DMCE_E_INVALID);
        outer.release();
        outer.release();
    }
    // A place in the queue is given up, or taken when the turn comes.
    {
        const reading held(at, 1);
        const auto queued = [&] { writing(at, 1, DMCE_QUEUE); };
        CHECK(refusal(queued) == DMCE_E_BUSY);
        CHECK(dmce_cancel_ptr(session.handle(), at.addr(), 8) == DMCE_OK);
        CHECK(dmce_cancel_ptr(session.handle(), at.addr(), 8) == DMCE_E_NOTFOUND);
        CHECK(refusal(queued) == DMCE_E_BUSY);
    }
    *writing(at, 1, DMCE_QUEUE) = 8;
    CHECK(at[0] == 8);
    CHECK(refusal([&] { writing(at, 1, 1U << 30); }) == DMCE_E_INVALID);
    CHECK(refusal([&] { writing(at, 0); }) == DMCE_E_INVALID);
    CHECK(refusal([&] { reading(at + 2 * many, 1); }) == DMCE_E_ADDRESS);
    throws<std::length_error>([&] { writing(at, SIZE_MAX / 4); });
    throws<std::length_error>([&] { reading(at, SIZE_MAX / 4); });
    session.free(at);
}

void writers_take_turns(const dmce::session &session)
{
    constexpr word rounds = 200;
    const auto at = allocate_filled(session, 0);
    const auto count = [&] {
        for (word i = 0; i < rounds; ++i) {
            const writing guard(at, 2);
            const word next = guard[0] + 1;
            std::this_thread::yield();
            guard[0] = guard[1] = next;
        }
    };
    std::thread one(count), other(count);
    for (word i = 0; i < rounds; ++i) {
        const reading guard(at, 2);
        CHECK(guard[0] == guard[1]);
    }
    one.join();
    other.join();
    CHECK(at[0] == 2 * rounds && at[1] == 2 * rounds);
    session.free(at);
}

void a_guard_whose_pointer_somebody_else_ended_is_empty(const dmce::session &session)
{
    const auto at = allocate_filled(session, 1);
    const auto end = [&](const auto &guard) {
        OK(dmce_release_ptr(session.handle(), guard.data()));
    };
    {
        writing first(at, 1);
        end(first);
        CHECK(refusal([&] { first.release(); }) == DMCE_E_NOTFOUND && !first);
        writing second(at, 1, DMCE_NOWAIT);
        end(second);
        CHECK(refusal([&] { second.abort(); }) == DMCE_E_NOTFOUND && !second);
        reading third(at, 1, DMCE_NOWAIT);
        end(third);
        CHECK(refusal([&] { third.release(); }) == DMCE_E_NOTFOUND && !third);
        // Whose pointer may be at the same place by then, they do not end.
        reading fourth(at, 1, DMCE_NOWAIT);
        first = writing(at + 1, 1);
        third = reading(at + 2, 1);
        CHECK(refusal([&] { writing(at, 1, DMCE_NOWAIT); }) == DMCE_E_BUSY);
    }
    writing(at, many, DMCE_NOWAIT).release();
    session.free(at);
}

void a_session_may_end_before_its_guards()
{
    dmce::session session(dmce::options().timeout_ms(30));
    const auto at = allocate_filled(session, 1);
    writing held(at, 1);
    CHECK(refusal([&] { reading(at, 1); }) == DMCE_E_TIMEOUT);
    session.close();
    CHECK(refusal([&] { held.release(); }) == DMCE_E_CLOSED);
    CHECK(refusal([&] { held.abort(); }) == DMCE_E_CLOSED);
}

void what_has_no_guards_says_so(const dmce::session &session)
{
    dmce::region::create(session, "cpp", "guards", 4096);
    {
        const dmce::region region(session, "cpp", "guards");
        const auto first = region.at<word>(0);
        CHECK(refusal([&] { writing(first, 1); }) == DMCE_E_UNSUPPORTED);
        CHECK(refusal([&] { reading(first, 1); }) == DMCE_E_UNSUPPORTED);
    }
    dmce::region::remove(session, "cpp", "guards");

    const dmce::session by_message(dmce::options().message_path());
    const auto at = by_message.allocate<word>(1);
    CHECK(refusal([&] { writing(at, 1); }) == DMCE_E_UNSUPPORTED);
    CHECK(refusal([&] { dmce::mapped<word>(at, 1); }) == DMCE_E_UNSUPPORTED);
}

void mapped_ranges_are_memory(const dmce::session &session)
{
    const auto at = session.allocate<word>(many);
    {
        dmce::mapped<word> all(at, many);
        std::fill(all.begin(), all.end(), 3U);
        const dmce::mapped<const word> part(session, (at + 10).addr(), 5);
        all[12] = 4;
        CHECK(part[2] == 4 && part.size() == 5 && *part == 3);
        CHECK(refusal([&] { session.free(at); }) == DMCE_E_BUSY);
        dmce::mapped<word> moved(std::move(all));
        all = std::move(moved);
        all.unmap();
        all.unmap();
        CHECK(all.empty() && all.begin() == all.end());
    }
    CHECK(at[12] == 4 && at[999] == 3);
    session.free(at);
    CHECK(refusal([&] { dmce::mapped<word>(at, 1); }) == DMCE_E_ADDRESS);
    throws<std::length_error>([&] { dmce::mapped<word>(at, SIZE_MAX / 4); });
}

#if __has_include(<memory_resource>)

std::uint64_t held_by(const dmce::session &session)
{
    return session.stat().allocated_bytes;
}

// The address of what a container has at a plain pointer.
dmce_addr_t address_of(const dmce::session &session, const void *pointer)
{
    dmce_addr_t addr = 0;
    OK(dmce_addr_of(session.handle(), pointer, &addr));
    return addr;
}

void containers_live_in_the_memory(const dmce::session &session)
{
    const std::uint64_t before = held_by(session);
    {
        dmce::memory_resource memory(session);
        std::pmr::unordered_map<int, std::pmr::string> texts(&memory);
        std::unordered_map<int, std::string> model;
        random_numbers random(5);
        for (int i = 0; i < 10000; ++i) {
            const int key = static_cast<int>(random.below(1500));
            const std::string text(static_cast<std::size_t>(random.below(1500)), 'a');
            texts[key] = text;
            model[key] = text;
            const int gone = static_cast<int>(random.below(1500));
            CHECK(texts.erase(gone) == model.erase(gone));
        }
        CHECK(texts.size() == model.size());
        for (const auto &[key, text] : model)
            CHECK(std::string_view(texts.at(key)) == text);
        // What was freed is used again: so much was allocated in all, and so little is held.
        const std::uint64_t held = held_by(session) - before;
        CHECK(held >= 1 * MiB && held <= 16 * MiB);

        std::pmr::vector<word> numbers(&memory);
        for (word i = 0; i < 100000; ++i)
            numbers.push_back(i * i);
        const std::size_t bytes = numbers.size() * sizeof(word);
        memory.sync(numbers.data(), bytes);
        std::vector<word> back(numbers.size());
        session.read(address_of(session, numbers.data()), back.data(), bytes);
        CHECK(std::equal(back.begin(), back.end(), numbers.begin(), numbers.end()));
        // It is the session's own memory, of which there are guards.
        *writing(session, address_of(session, numbers.data()), 1) = 77;
        CHECK(numbers[0] == 77);
        std::pmr::string text(3 * MiB, 't', &memory);
        text += "end";
        char end[3];
        session.read(address_of(session, text.data() + 3 * MiB), end, sizeof end);
        CHECK(std::memcmp(end, "end", sizeof end) == 0);

        word own = 0;
        CHECK(refusal([&] { memory.sync(&own, 8); }) == DMCE_E_ADDRESS);
        CHECK(refusal([&] { memory.sync(nullptr, 1); }) == DMCE_E_INVALID);
        CHECK(memory.is_equal(memory) && !memory.is_equal(*std::pmr::new_delete_resource()));
    }
    CHECK(held_by(session) == before);
}

void large_ones_are_by_themselves_and_go_back_at_once(const dmce::session &session)
{
    const std::uint64_t before = held_by(session);
    {
        dmce::memory_resource memory(session);
        void *aligned = memory.allocate(100, 2048);
        CHECK(reinterpret_cast<std::uintptr_t>(aligned) % 2048 == 0);
        const std::uint64_t small = held_by(session);
        for (const std::size_t bytes : {MiB / 3, 3 * MiB, 100 * MiB}) {
            auto *large = static_cast<unsigned char *>(memory.allocate(bytes, 64));
            CHECK(large[0] == 0 && large[bytes - 1] == 0);
            large[0] = large[bytes - 1] = 1;
            CHECK(held_by(session) >= small + bytes);
            memory.deallocate(large, bytes, 64);
            CHECK(held_by(session) == small);
        }
        // Of every size between: what one frees is there for the next one.
        for (std::size_t bytes = 1; bytes < MiB; bytes = bytes * 3 + 1) {
            memory.deallocate(memory.allocate(bytes), bytes);
            const std::uint64_t held = held_by(session);
            for (int i = 0; i < 20; ++i)
                memory.deallocate(memory.allocate(bytes), bytes);
            CHECK(held_by(session) == held);
        }
    }
    CHECK(held_by(session) == before);
}

void a_refusal_is_bad_alloc(const dmce::session &session)
{
    const std::uint64_t before = held_by(session);
    constexpr std::size_t large = 64 * MiB;
    dmce::memory_resource memory(session);
    std::pmr::vector<char> held(1000, 'h', &memory);
    throws<std::bad_alloc>([&] { static_cast<void>(memory.allocate(SIZE_MAX / 2)); });
    // Until the daemons have no room.
    std::vector<void *> taken;
    throws<std::bad_alloc>([&] {
        for (;;)
            taken.push_back(memory.allocate(large));
    });
    CHECK(taken.size() >= 2);
    void *pointer = nullptr;
    CHECK(dmce_vmalloc(session.handle(), large, nullptr, &pointer) == DMCE_E_NOSPACE);
    throws<std::bad_alloc>([&] { held.reserve(large); });
    CHECK(held == std::pmr::vector<char>(1000, 'h'));
    for (void *each : taken)
        memory.deallocate(each, large);
    held.reserve(large);
    CHECK(held.size() == 1000 && held_by(session) >= before + large);

    // Its first chunk may be taken when it is made.
    throws<std::bad_alloc>([&] {
        const dmce::session by_message(dmce::options().message_path());
        dmce::memory_resource refused(by_message);
        static_cast<void>(refused.allocate(1));
    });
}

#endif

} // namespace

int main()
{
    const dmce::session session, twofold(dmce::options().copies(2));
    for (const dmce::session *each : {&session, &twofold}) {
        a_write_guard_releases_at_its_end(*each);
        a_guard_in_a_destructor_is_no_part_of_what_failed(*each);
        guards_move_with_what_they_hold(*each);
        readers_nest_and_keep_writers_out(*each);
        writers_take_turns(*each);
        a_guard_whose_pointer_somebody_else_ended_is_empty(*each);
        mapped_ranges_are_memory(*each);
#if __has_include(<memory_resource>)
        containers_live_in_the_memory(*each);
#endif
    }
    with_two_copies_what_failed_was_never_stored(twofold);
    with_one_copy_an_abort_is_refused_and_the_guard_releases(session);
    a_session_may_end_before_its_guards();
    what_has_no_guards_says_so(session);
#if __has_include(<memory_resource>)
    large_ones_are_by_themselves_and_go_back_at_once(session);
    a_refusal_is_bad_alloc(session);
#endif
    return 0;
}
