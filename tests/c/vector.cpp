// dmce::vector against std::vector: the same operations, drawn by a seed, on vectors that are
// mapped whole and on those behind windows, of which there are far fewer than the elements need.
//
//     vector [SEED]
#include <libdmce.hpp>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <list>
#include <numeric>
#include <sstream>
#include <type_traits>
#include <utility>
#include <vector>

#include <sys/resource.h>

#include "cpp.hpp"

namespace {

// 24 bytes: no power of two, so that windows end inside pages.
struct record {
    std::uint64_t key;
    std::uint32_t parts[4];

    bool operator==(const record &other) const
    {
        return key == other.key && std::equal(parts, parts + 4, other.parts);
    }

    bool operator<(const record &other) const { return key < other.key; }
};

record record_of(std::uint64_t number)
{
    const auto part = static_cast<std::uint32_t>(number);
    return {number, {part, part + 1, ~part, part * 7}};
}

// Windows of a page, three of them: 512 elements of which an allocation has thousands.
constexpr dmce::windows narrow = {4096, 3};

using of_this_width = std::conditional_t<sizeof(void *) == 8, dmce::mapped_vector<int>,
                                         dmce::windowed_vector<int>>;
static_assert(std::is_same<dmce::vector<int>, of_this_width>::value, "what suits the width");
static_assert(sizeof(dmce::vector<int>::size_type) == 8, "in both widths");
static_assert(sizeof(dmce::vector<int>::difference_type) == 8, "in both widths");
static_assert(!std::is_copy_constructible<dmce::vector<int>>::value, "it is moved alone");
static_assert(std::is_nothrow_move_constructible<dmce::windowed_vector<int>>::value, "");

template <class Vector>
void same(const Vector &ours, const std::vector<record> &model)
{
    CHECK(ours.size() == model.size() && ours.empty() == model.empty());
    CHECK(std::equal(ours.begin(), ours.end(), model.begin()));
    // By call too: what windows hold is what the memory has.
    std::vector<record> stored(model.size());
    ours.pointer().read(stored.data(), stored.size());
    CHECK(stored == model);
}

// One operation, drawn by chance, on both.
template <class Vector>
void step(Vector &ours, std::vector<record> &model, random_numbers &random)
{
    const std::size_t size = model.size();
    const auto offset = [](std::uint64_t at) { return static_cast<std::ptrdiff_t>(at); };
    const auto any = [&] { return random.below(size + 1); };
    const record fresh = record_of(random.next());
    switch (random.below(16)) {
    case 0:
    case 1: {
        const std::uint64_t count = random.below(200);
        for (std::uint64_t i = 0; i < count; ++i) {
            ours.push_back(record_of(i));
            model.push_back(record_of(i));
        }
        break;
    }
    case 2: {
        std::vector<record> more(static_cast<std::size_t>(random.below(900)), fresh);
        ours.append(more.data(), more.size());
        model.insert(model.end(), more.begin(), more.end());
        break;
    }
    case 3: {
        const std::uint64_t count = random.below(3000);
        ours.resize(count, fresh);
        model.resize(static_cast<std::size_t>(count), fresh);
        break;
    }
    case 4: {
        const std::uint64_t at = any();
        const auto where = ours.insert(ours.cbegin() + offset(at), fresh);
        CHECK(where - ours.begin() == offset(at));
        model.insert(model.begin() + offset(at), fresh);
        break;
    }
    case 5: {
        const std::list<record> more(static_cast<std::size_t>(random.below(300)), fresh);
        const std::uint64_t at = any();
        ours.insert(ours.cbegin() + offset(at), more.begin(), more.end());
        model.insert(model.begin() + offset(at), more.begin(), more.end());
        break;
    }
    case 6: {
        const std::uint64_t from = any(), until = from + random.below(size - from + 1);
        ours.erase(ours.cbegin() + offset(from), ours.cbegin() + offset(until));
        model.erase(model.begin() + offset(from), model.begin() + offset(until));
        break;
    }
    case 7:
        if (size != 0) {
            ours.pop_back();
            model.pop_back();
        }
        break;
    case 8:
        for (int i = 0; size != 0 && i < 300; ++i) {
            const std::uint64_t at = random.below(size);
            ours[at] = fresh;
            model[static_cast<std::size_t>(at)] = fresh;
            const std::uint64_t other = random.below(size);
            CHECK(ours.at(other) == model[static_cast<std::size_t>(other)]);
        }
        break;
    case 9:
        std::reverse(ours.begin(), ours.end());
        std::reverse(model.begin(), model.end());
        break;
    case 10: {
        const std::uint64_t from = any(), count = random.below(size - from + 1);
        std::vector<record> part(static_cast<std::size_t>(count));
        ours.read(from, part.data(), count);
        CHECK(std::equal(part.begin(), part.end(), model.begin() + offset(from)));
        for (record &each : part)
            each.key ^= fresh.key;
        ours.write(from, part.data(), count);
        std::copy(part.begin(), part.end(), model.begin() + offset(from));
        break;
    }
    case 11:
        ours.flush();
        break;
    case 12:
        ours.shrink_to_fit();
        break;
    case 13: {
        Vector moved(std::move(ours));
        CHECK(ours.empty() && ours.capacity() == 0);
        ours = std::move(moved);
        break;
    }
    case 14: {
        const std::uint64_t from = any();
        ours.for_chunks(from, size - from, [](record *data, std::size_t count) {
            for (std::size_t i = 0; i < count; ++i)
                ++data[i].parts[1];
        });
        for (std::size_t i = static_cast<std::size_t>(from); i < size; ++i)
            ++model[i].parts[1];
        break;
    }
    default:
        std::sort(ours.begin(), ours.end());
        std::sort(model.begin(), model.end());
        // Which of two with equal keys comes first is for each library to say.
        ours.assign(model.begin(), model.end());
        break;
    }
}

template <class Vector>
void it_is_a_vector(const dmce::session &session, std::uint64_t seed, int steps)
{
    random_numbers random(seed);
    Vector ours(session, narrow);
    std::vector<record> model;
    for (int i = 0; i < steps; ++i) {
        step(ours, model, random);
        if (model.size() > 6000) {
            ours.clear();
            model.clear();
        }
        same(ours, model);
    }
    ours.close();
    CHECK(ours.empty() && ours.capacity() == 0 && session.stat().allocated_bytes == 0);
    ours.push_back(record_of(1));
    CHECK(ours.back() == record_of(1));
}

template <class Vector>
void its_own_elements_are_arguments(const dmce::session &session)
{
    Vector ours(session, {record_of(1), record_of(2)}, narrow);
    while (ours.size() < ours.capacity())
        ours.push_back(record_of(ours.size()));
    // This one has to move.
    ours.push_back(ours[1]);
    CHECK(ours.back() == record_of(2));
    ours.insert(ours.cbegin(), ours.back());
    CHECK(ours.front() == record_of(2) && ours[1] == record_of(1));
    ours[0] = ours[1];
    ours[2] = ours[2];
    CHECK(ours[0] == record_of(1) && ours[2] == record_of(2));
    Vector &same = ours;
    ours = std::move(same);
    CHECK(ours[0] == record_of(1));
    Vector other(session, narrow);
    swap(ours, other);
    CHECK(ours.empty() && other[0] == record_of(1) && ours != other);
}

struct failed {};

// Five records, of which the fourth cannot be read.
struct failing {
    using iterator_category = std::forward_iterator_tag;
    using value_type = record;
    using difference_type = std::ptrdiff_t;
    using pointer = const record *;
    using reference = const record &;

    const record *at;
    int left;

    const record &operator*() const
    {
        if (left <= 2)
            throw failed();
        return *at;
    }

    failing &operator++()
    {
        --left;
        return *this;
    }

    bool operator==(const failing &other) const { return left == other.left; }
    bool operator!=(const failing &other) const { return left != other.left; }
};

template <class Vector>
void what_it_cannot_do_leaves_it_as_it_was(const dmce::session &session)
{
    Vector ours(session, 1000, record_of(3), narrow);
    const std::uint64_t capacity = ours.capacity();
    throws<std::length_error>([&] { ours.reserve(Vector::max_size() + 1); });
    throws<std::length_error>([&] { ours.resize(UINT64_MAX); });
    throws<std::length_error>([&] { ours.append(nullptr, UINT64_MAX - 10); });
    // More than the daemons have.
    CHECK(throws<dmce::error>([&] { ours.reserve(std::uint64_t{1} << 26); }).status() ==
          DMCE_E_NOSPACE);
    throws<std::out_of_range>([&] { ours.at(1000); });
    throws<std::out_of_range>([&] { ours.at(UINT64_MAX); });
    throws<std::out_of_range>([&] { ours.read(1, nullptr, UINT64_MAX); });
    const std::vector<record> more(5, record_of(9));
    throws<failed>([&] {
        ours.insert(ours.cend(), failing{more.data(), 5}, failing{more.data(), 0});
    });
    same(ours, std::vector<record>(1000, record_of(3)));
    CHECK(ours.capacity() >= capacity);
    std::istringstream text("4 5 6");
    dmce::vector<int> numbers(session, std::istream_iterator<int>(text),
                              std::istream_iterator<int>());
    CHECK(numbers.size() == 3 && numbers[2] == 6);
    text = std::istringstream("4 5 6");
    numbers.clear();
    numbers.insert(numbers.cend(), std::istream_iterator<int>(text), std::istream_iterator<int>());
    CHECK(numbers.size() == 3 && std::accumulate(numbers.begin(), numbers.end(), 0) == 15);
}

void windows_stay_within_their_number(const dmce::session &session)
{
    dmce::windowed_vector<record> ours(session, 20000, record_of(1), narrow);
    random_numbers random(3);
    for (int i = 0; i < 5000; ++i)
        ours[random.below(20000)] = record_of(2);
    std::sort(ours.begin(), ours.end());
    CHECK(ours.mapped_bytes() <= 3 * 4096 && ours.mapped_bytes() > 0);
    ours.flush();
    CHECK(ours.mapped_bytes() <= 3 * 4096);

    // Each of the nested calls holds a window; there is none left for the fourth.
    ours.for_chunks(0, 1, [&](record *first, std::size_t) {
        ours.for_chunks(5000, 1, [&](record *second, std::size_t) {
            CHECK(throws<dmce::error>([&] { ours.flush(); }).status() == DMCE_E_BUSY);
            CHECK(throws<dmce::error>([&] { ours.reserve(30000); }).status() == DMCE_E_BUSY);
            ours.for_chunks(9000, 1, [&](record *third, std::size_t) {
                const dmce::error full =
                    throws<dmce::error>([&] { ours.for_chunks(15000, 1, [](record *, auto) {}); });
                CHECK(full.status() == DMCE_E_BUSY);
                *first = *second = *third = record_of(7);
            });
            // An element elsewhere is reached all the same.
            ours[15000] = record_of(8);
        });
    });
    CHECK(ours[0] == record_of(7) && ours[5000] == record_of(7) && ours[9000] == record_of(7));
    CHECK(ours[15000] == record_of(8));
}

void a_window_that_is_read_is_written_to_while_it_is_held(const dmce::session &session)
{
    dmce::windowed_vector<record> ours(session, 2000, record_of(1), narrow);
    ours.flush();
    const auto &reader = ours;
    reader.for_chunks(0, 1, [&](const record *seen, std::size_t) {
        ours[0] = record_of(2);
        // Two windows show the same memory.
        CHECK(*seen == record_of(2));
        for (std::uint64_t at = 0; at < 2000; ++at)
            CHECK(reader[at] == record_of(at == 0 ? 2 : 1));
        CHECK(*seen == record_of(2));
    });
    CHECK(ours[0] == record_of(2) && ours.mapped_bytes() <= 3 * 4096);
    struct left {};
    throws<left>([&] { ours.for_chunks(0, 2000, [](record *, std::size_t) { throw left(); }); });
    // Nothing is held any more.
    ours.reserve(40000);
    CHECK(ours[0] == record_of(2));
}

// Bytes of address space that this process takes.
std::uint64_t address_space()
{
    std::ifstream statm("/proc/self/statm");
    std::uint64_t pages = 0;
    statm >> pages;
    CHECK(pages != 0);
    return pages * 4096;
}

void windows_are_fewer_where_the_address_space_ends()
{
    // Behind windows in both widths, with hardly anything that the session could give up itself.
    const dmce::session session(dmce::options().window_budget(4U << 20));
    constexpr std::uint64_t count = (std::uint64_t{48} << 20) / sizeof(record);
    dmce::windowed_vector<record> ours(session, dmce::windows{std::uint64_t{1} << 20, 64});
    ours.resize(count, record_of(1));
    ours.flush();
    rlimit before = {};
    CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    rlimit tight = before;
    tight.rlim_cur = static_cast<rlim_t>(address_space() + (8U << 20));
    CHECK(setrlimit(RLIMIT_AS, &tight) == 0);
    for (std::uint64_t at = 0; at < count; ++at)
        ours[at] = record_of(at);
    std::uint64_t wrong = 0;
    for (std::uint64_t at = 0; at < count; ++at)
        wrong += ours[at] == record_of(at) ? 0 : 1;
    CHECK(setrlimit(RLIMIT_AS, &before) == 0 && wrong == 0);
    CHECK(ours.mapped_bytes() < 20U << 20);
}

void iterators_of_windows_are_indices(const dmce::session &session)
{
    dmce::windowed_vector<record> ours(session, narrow);
    ours.push_back(record_of(1));
    const auto first = ours.begin();
    const dmce::windowed_vector<record>::const_iterator same = first;
    const dmce::windowed_vector<int> zeros(session, 5000, narrow);
    CHECK(std::count(zeros.begin(), zeros.end(), 0) == 5000);
    for (std::uint64_t i = 2; i < 3000; ++i)
        ours.push_back(record_of(i));
    CHECK(first->key == 1 && same[2998].key == 2999 && same == first && ours.end() - same == 2999);
    CHECK(std::lower_bound(ours.cbegin(), ours.cend(), record_of(77)) - same == 76);
    std::uint64_t sum = 0;
    for (auto &&each : ours)
        sum += record(each).key;
    CHECK(sum == 2999 * 3000 / 2 && (*ours.rbegin()).get().key == 2999);
}

template <class Vector>
void all(const dmce::session &session, std::uint64_t seed, int steps)
{
    it_is_a_vector<Vector>(session, seed, steps);
    its_own_elements_are_arguments<Vector>(session);
    what_it_cannot_do_leaves_it_as_it_was<Vector>(session);
}

} // namespace

int main(int count, char **arguments)
{
    const std::uint64_t seed = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 1;
    const int steps = count > 2 ? std::atoi(arguments[2]) : 300;
    const dmce::session session;
    all<dmce::mapped_vector<record>>(session, seed, steps);
    all<dmce::windowed_vector<record>>(session, seed, steps);
    windows_stay_within_their_number(session);
    a_window_that_is_read_is_written_to_while_it_is_held(session);
    windows_are_fewer_where_the_address_space_ends();
    iterators_of_windows_are_indices(session);
    CHECK(session.stat().allocated_bytes == 0);

    // What is closed under it is told, and does no harm.
    dmce::session short_lived;
    dmce::windowed_vector<record> orphan(short_lived, 2000, record_of(1), narrow);
    short_lived.close();
    CHECK(throws<dmce::error>([&] { orphan.reserve(5000); }).status() == DMCE_E_CLOSED);
    return 0;
}
