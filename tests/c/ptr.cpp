// dmce::ptr<T> as the algorithms of the standard library use it, dmce::session and dmce::region.
#include <libdmce.hpp>

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <memory>
#include <numeric>
#include <string>
#include <type_traits>
#include <unordered_set>
#include <utility>
#include <vector>

#include "cpp.hpp"

using dmce::ptr;

namespace {

struct pair {
    std::uint32_t key;
    std::uint32_t value;

    bool operator<(const pair &other) const { return key < other.key; }
    bool operator==(const pair &other) const { return key == other.key && value == other.value; }
};

// No default constructor, and an alignment of its own.
struct alignas(64) line {
    explicit line(std::uint64_t text) : number(text) {}
    std::uint64_t number;
};

using traits = std::iterator_traits<ptr<int>>;
static_assert(std::is_same<traits::difference_type, std::int64_t>::value, "in both widths");
static_assert(std::is_same<traits::iterator_category, std::random_access_iterator_tag>::value, "");
static_assert(std::is_same<std::pointer_traits<ptr<int>>::rebind<long>, ptr<long>>::value, "");
static_assert(std::is_convertible<ptr<int>, ptr<const int>>::value, "");
static_assert(!std::is_convertible<ptr<const int>, ptr<int>>::value, "");
static_assert(std::is_convertible<ptr<int>, ptr<void>>::value, "");
static_assert(std::is_convertible<ptr<int>, ptr<const void>>::value, "");
static_assert(!std::is_convertible<ptr<const int>, ptr<void>>::value, "");
static_assert(!std::is_convertible<ptr<void>, ptr<int>>::value, "");
static_assert(std::is_constructible<ptr<int>, ptr<void>>::value, "");
static_assert(!std::is_constructible<ptr<int>, ptr<const void>>::value, "");
static_assert(!std::is_assignable<decltype(*ptr<const int>()), int>::value, "reads alone");
static_assert(std::is_trivially_copyable<ptr<int>>::value, "");
static_assert(sizeof(ptr<int>) == sizeof(void *) + 8, "a handle and an address");

constexpr std::int64_t many = 2000;

std::vector<std::uint64_t> random_values(std::size_t count)
{
    random_numbers random(7);
    std::vector<std::uint64_t> values(count);
    for (std::uint64_t &value : values)
        value = random.below(count);
    return values;
}

std::vector<std::uint64_t> content(ptr<const std::uint64_t> first, std::int64_t count)
{
    std::vector<std::uint64_t> all(static_cast<std::size_t>(count));
    first.read(all.data(), all.size());
    return all;
}

void algorithms_do_what_they_do_to_a_vector(const dmce::session &session)
{
    std::vector<std::uint64_t> model = random_values(many);
    const ptr<std::uint64_t> first = session.allocate<std::uint64_t>(many), last = first + many;
    std::copy(model.begin(), model.end(), first);
    CHECK(content(first, many) == model && std::equal(first, last, model.begin()));
    CHECK(std::accumulate(first, last, std::uint64_t{0}) ==
          std::accumulate(model.begin(), model.end(), std::uint64_t{0}));

    const auto each = [&](auto algorithm) {
        algorithm(model.begin(), model.end());
        algorithm(first, last);
        CHECK(content(first, many) == model);
    };
    each([](auto from, auto to) { std::reverse(from, to); });
    each([](auto from, auto to) { std::rotate(from, from + 777, to); });
    each([](auto from, auto to) { std::sort(from, to); });
    CHECK(std::is_sorted(ptr<const std::uint64_t>(first), ptr<const std::uint64_t>(last)));
    for (const std::uint64_t wanted : {0U, 1U, 500U, 1999U, 5000U}) {
        const auto ours = std::lower_bound(first, last, wanted) - first;
        CHECK(ours == std::lower_bound(model.begin(), model.end(), wanted) - model.begin());
        const ptr<const std::uint64_t> begin = first, end = last;
        CHECK(std::upper_bound(begin, end, wanted) - begin ==
              std::upper_bound(model.begin(), model.end(), wanted) - model.begin());
    }
    each([](auto from, auto to) {
        std::sort(from, to, [](std::uint64_t a, std::uint64_t b) { return a > b; });
    });
    each([](auto from, auto to) { std::make_heap(from, to); });
    each([](auto from, auto to) { std::sort_heap(from, to); });
    each([](auto from, auto to) { std::stable_sort(from, to, std::greater<>()); });
    each([](auto from, auto to) { std::partial_sum(from, to, from); });
    each([](auto from, auto to) { std::fill(from + 5, to - 5, 9U); });
    each([](auto from, auto to) {
        std::transform(from, to, from, [](std::uint64_t value) { return value * 3; });
    });
    each([](auto from, auto to) { std::iter_swap(from, to - 1); });
    CHECK(std::unique(first, last) - first == std::unique(model.begin(), model.end()) -
                                                  model.begin());
    session.free(first);
}

void structures_are_sorted_and_looked_at(const dmce::session &session)
{
    const ptr<pair> first = session.allocate<pair>(3);
    first[0] = {3, 30};
    first[1] = pair{1, 10};
    *(first + 2) = {2, 20};
    std::sort(first, first + 3);
    CHECK(first->key == 1 && (first + 1)->value == 20 && first[2] == (pair{3, 30}));
    CHECK(first[0] < first[1] && !(first[1] < first[0]) && !(first[0] == first[1]));
    pair own = {9, 90};
    swap(own, *first);
    CHECK(own.key == 1 && first->key == 9);
    first[0] = first[1];
    CHECK(first[0] == first[1] && &first[1] == first + 1);
    session.free(first);

    const ptr<line> lines = session.allocate<line>(3);
    CHECK(lines.addr() % alignof(line) == 0);
    lines[2] = line(7);
    CHECK(lines[2].get().number == 7 && (lines + 2)->number == 7);
    session.free(lines);
}

void elements_are_used_as_numbers(const dmce::session &session)
{
    const ptr<std::uint16_t> at = session.allocate<std::uint16_t>(2);
    at[0] = 5;
    at[1] = 1;
    at[0] += 3;
    at[0] *= at[1];
    CHECK(at[0] == 8 && 8U == at[0] && at[0] > 7.5 && at[0] + at[1] == 9 && at[0]++ == 8);
    --at[0];
    at[1] <<= 2;
    at[1] |= 1U;
    CHECK(*at == 8 && at[1] == 5 && at[0] != at[1] && at[1] <= at[0]);
    session.free(at);
}

void pointers_are_compared_and_moved(const dmce::session &session)
{
    // Addresses that no 32-bit pointer has, without memory behind them.
    const auto low = session.at<std::uint64_t>(std::uint64_t{1} << 40);
    const auto high = low + (std::int64_t{1} << 37);
    CHECK(high - low == std::int64_t{1} << 37 && low - high == -(std::int64_t{1} << 37));
    CHECK(high - 1 < high && low <= low && high > low && high >= low && low != high);
    CHECK(1 + low == low + 1 && low - -1 == low + 1);
    ptr<std::uint64_t> moved = low;
    CHECK(moved++ == low && moved-- == low + 1 && ++moved == low + 1 && --moved == low);
    const ptr<const std::uint64_t> same = low;
    CHECK(same == low && low == same && same - low == 0);
    const ptr<void> untyped = low;
    CHECK(untyped == low && static_cast<ptr<std::uint64_t>>(untyped) == low);
    CHECK(!ptr<int>() && ptr<int>() == nullptr && low && low != nullptr && !ptr<void>(nullptr));
    const std::unordered_set<ptr<std::uint64_t>> set = {low, high, low};
    CHECK(set.size() == 2 && set.count(high) == 1);
}

void failures_are_exceptions_that_say_why(const dmce::session &session)
{
    const ptr<int> at = session.allocate<int>(1);
    session.free(at);
    const dmce::error freed = throws<dmce::error>([&] { session.free(at); });
    CHECK(freed.status() == DMCE_E_ADDRESS);
    CHECK(std::string(freed.what()).find("dmce_free: ") == 0);
    CHECK(throws<dmce::error>([&] { *ptr<int>() = 1; }).status() == DMCE_E_INVALID);
    const dmce::error big = throws<dmce::error>([&] { session.malloc(UINT64_MAX); });
    CHECK(big.status() == DMCE_E_NOSPACE);
    throws<std::length_error>([&] { session.allocate<std::uint64_t>(UINT64_MAX / 4); });
}

void regions_are_reached_by_pointers(const dmce::session &session)
{
    const auto none = [&] { dmce::region(session, "cpp", "ptr"); };
    CHECK(throws<dmce::error>(none).status() == DMCE_E_NOTFOUND);
    dmce_region_options_t options;
    dmce_region_options_init(&options);
    options.copies = 2;
    dmce::region::create(session, "cpp", "ptr", 1 << 20, &options);
    {
        dmce::region opened(session, "cpp", "ptr");
        dmce::region region(std::move(opened));
        CHECK(opened.handle() == nullptr && region.info().region_size == 1 << 20);
        const ptr<std::uint64_t> at = region.at<std::uint64_t>(4096);
        std::iota(at, at + 100, std::uint64_t{5});
        // It was a write to every copy.
        std::uint64_t word = 0;
        region.read(4096 + 8 * 99, &word, sizeof word, DMCE_PM_MIRROR);
        CHECK(word == 104);
        {
            dmce::mapped<std::uint64_t> range(at, 100);
            range[99] = 7;
            CHECK(throws<dmce::error>([&] { region.close(); }).status() == DMCE_E_BUSY);
        }
        // What was stored by a plain pointer is one when the pointer has ended.
        region.read(4096 + 8 * 99, &word, sizeof word, DMCE_PM_MIRROR);
        CHECK(word == 7);
        CHECK(throws<dmce::error>([&] { region.at<char>(1 << 20); }).status() == DMCE_E_ADDRESS);
        region.close();
        region.close();
    }
    dmce::region::remove(session, "cpp", "ptr");
}

void sessions_move_and_end_once()
{
    dmce::session first(dmce::options().name("moved").timeout_ms(5000));
    dmce::session second(std::move(first));
    CHECK(!first && second);
    first = std::move(second);
    CHECK(first && !second);
    const ptr<int> at = first.allocate<int>(1);
    *at = 4;
    {
        const dmce::session borrowed = dmce::session::borrow(first.handle());
        CHECK(*borrowed.at<int>(at.addr()) == 4);
    }
    CHECK(*at == 4);
    dmce::session third = dmce::session::attach(first.detach());
    CHECK(!first && third.stat().allocated_bytes > 0);
    third.close();
    CHECK(!third && throws<dmce::error>([&] { *at = 5; }).status() == DMCE_E_CLOSED);
    third.close();
    first = dmce::session();
    first = std::move(*&first);
    CHECK(first.handle() != nullptr);
}

} // namespace

int main()
{
    const dmce::session session;
    algorithms_do_what_they_do_to_a_vector(session);
    structures_are_sorted_and_looked_at(session);
    elements_are_used_as_numbers(session);
    pointers_are_compared_and_moved(session);
    failures_are_exceptions_that_say_why(session);
    regions_are_reached_by_pointers(session);
    sessions_move_and_end_once();
    CHECK(session.stat().allocated_bytes == 0);
    return 0;
}
