// sort: sorts more bytes of real files than this process can address, in two vectors of DMCE
// memory, and proves that the result is in order and is what there was before.
//
//     sort [--gib N] [--run-mib N] PATH...
//
// It cuts the files below each PATH into records until N GiB are filled (1 if not said); with
// fewer bytes in the files it takes them again. Runs of 512 MiB, if not said otherwise, are sorted
// in memory of its own; then all runs are merged at once from one vector into the other, each read
// and written through windows.
//
// Written against libdmce.hpp alone. Build it as a 32-bit program, where it means most:
//
//     c++ -m32 -std=c++17 -O2 -o sort sort.cpp -ldmce
//
// Exit status: 0 all is right, 1 the result was wrong or a call failed, 2 usage.
#include <libdmce.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <memory>
#include <stdexcept>
#include <string>
#include <system_error>
#include <vector>

namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t mib = std::uint64_t{1} << 20;
constexpr std::uint64_t gib = std::uint64_t{1} << 30;

// A piece of a file. Its layout is the same in every process; no two records are equal, as a place
// is read once a round.
struct record {
    unsigned char bytes[48];
    std::uint64_t offset;
    std::uint32_t file;
    std::uint32_t round;

    // The first bytes as a number that compares as they do.
    std::uint64_t prefix() const noexcept
    {
        std::uint64_t number = 0;
        for (int i = 0; i < 8; ++i)
            number = number << 8 | bytes[i];
        return number;
    }
};

static_assert(sizeof(record) == 64, "a power of two, and no padding");

bool operator<(const record &a, const record &b) noexcept
{
    const std::uint64_t first = a.prefix(), second = b.prefix();
    if (first != second)
        return first < second;
    if (const int order = std::memcmp(a.bytes, b.bytes, sizeof a.bytes))
        return order < 0;
    if (a.file != b.file)
        return a.file < b.file;
    return a.offset != b.offset ? a.offset < b.offset : a.round < b.round;
}

// How many records there are, and a sum that does not depend on their order: of one hash each, so
// that a record which is changed, lost or there twice changes it.
struct fingerprint {
    std::uint64_t count = 0;
    std::uint64_t sum = 0;

    void add(const record &each) noexcept
    {
        std::uint64_t words[sizeof(record) / 8];
        std::memcpy(words, &each, sizeof words);
        std::uint64_t hash = 0;
        for (const std::uint64_t word : words) {
            hash = (hash ^ word) * UINT64_C(0xbf58476d1ce4e5b9);
            hash ^= hash >> 29;
        }
        sum += hash * UINT64_C(0x94d049bb133111eb);
        ++count;
    }

    bool operator==(const fingerprint &other) const noexcept
    {
        return count == other.count && sum == other.sum;
    }
};

using records = dmce::windowed_vector<record>;

struct order {
    double gib = 1;
    std::uint64_t run_mib = 512;
    std::vector<std::string> paths;
};

class stopwatch {
public:
    double seconds() const
    {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    }

private:
    std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

// ---- what is sorted ----

std::vector<fs::path> files_below(const std::vector<std::string> &paths)
{
    std::vector<fs::path> files;
    const auto options = fs::directory_options::skip_permission_denied;
    for (const std::string &path : paths) {
        std::error_code error;
        fs::recursive_directory_iterator each(path, options), end;
        for (; each != end; each.increment(error)) {
            std::error_code unreadable;
            if (!each->is_symlink(unreadable) && each->is_regular_file(unreadable))
                files.push_back(each->path());
        }
    }
    return files;
}

// Fills a vector with records, and tells how often the files had to be taken.
class filler {
public:
    filler(records &into, std::uint64_t count) : into_(into), count_(count)
    {
        into_.reserve(count);
        pending_.reserve(pending_max);
    }

    std::uint32_t fill(const std::vector<fs::path> &files)
    {
        for (;;) {
            const std::uint64_t before = taken();
            for (std::size_t file = 0; file < files.size() && taken() < count_; ++file)
                cut(files[file], static_cast<std::uint32_t>(file));
            if (taken() == before)
                throw std::runtime_error("there are no bytes to sort in what was given");
            ++round_;
            if (taken() == count_)
                break;
        }
        put();
        return round_;
    }

    const fingerprint &seen() const { return seen_; }

private:
    static constexpr std::size_t pending_max = 16384;

    std::uint64_t taken() const { return into_.size() + pending_.size(); }

    void put()
    {
        into_.append(pending_.data(), pending_.size());
        pending_.clear();
    }

    // The end of a file that is shorter than a record is filled up with zeros.
    void cut(const fs::path &path, std::uint32_t file)
    {
        std::ifstream input(path, std::ios::binary);
        std::uint64_t offset = 0;
        while (input && taken() < count_) {
            record next = {};
            input.read(reinterpret_cast<char *>(next.bytes), sizeof next.bytes);
            if (input.gcount() == 0)
                break;
            next.offset = offset;
            next.file = file;
            next.round = round_;
            offset += static_cast<std::uint64_t>(input.gcount());
            seen_.add(next);
            pending_.push_back(next);
            if (pending_.size() == pending_max)
                put();
        }
    }

    records &into_;
    std::uint64_t count_;
    std::uint32_t round_ = 0;
    std::vector<record> pending_;
    fingerprint seen_;
};

// ---- sorting ----

// Sorts runs, each in memory of this process, where they lie.
void sort_runs(records &all, std::uint64_t run)
{
    const auto most = static_cast<std::size_t>(std::min(run, all.size()));
    const std::unique_ptr<record[]> own(new record[most]);
    for (std::uint64_t first = 0; first < all.size(); first += run) {
        const std::uint64_t count = std::min(run, all.size() - first);
        all.read(first, own.get(), count);
        std::sort(own.get(), own.get() + count);
        all.write(first, own.get(), count);
    }
}

// What is left of a run, a piece of it in memory of this process.
class source {
public:
    source(const records &from, std::uint64_t first, std::uint64_t count)
        : from_(from), next_(first), left_(count)
    {
        refill();
    }

    bool empty() const noexcept { return at_ == here_.size(); }
    const record &front() const noexcept { return here_[at_]; }

    void pop()
    {
        if (++at_ == here_.size())
            refill();
    }

private:
    static constexpr std::uint64_t at_once = 16384;

    void refill()
    {
        const std::uint64_t count = std::min(left_, at_once);
        here_.resize(static_cast<std::size_t>(count));
        from_.read(next_, here_.data(), count);
        next_ += count;
        left_ -= count;
        at_ = 0;
    }

    const records &from_;
    std::uint64_t next_;
    std::uint64_t left_;
    std::vector<record> here_;
    std::size_t at_ = 0;
};

// Merges all runs at once: the heap holds the runs that are left, the least record on top.
void merge(const records &from, std::uint64_t run, records &into)
{
    into.reserve(from.size());
    std::vector<source> heap;
    for (std::uint64_t first = 0; first < from.size(); first += run)
        heap.emplace_back(from, first, std::min(run, from.size() - first));
    std::vector<std::size_t> order(heap.size());
    for (std::size_t i = 0; i < order.size(); ++i)
        order[i] = i;
    const auto is_later = [&](std::size_t a, std::size_t b) {
        return heap[b].front() < heap[a].front();
    };
    std::make_heap(order.begin(), order.end(), is_later);
    while (!order.empty()) {
        std::pop_heap(order.begin(), order.end(), is_later);
        source &least = heap[order.back()];
        into.push_back(least.front());
        least.pop();
        if (least.empty())
            order.pop_back();
        else
            std::push_heap(order.begin(), order.end(), is_later);
    }
}

// ---- the proof ----

std::uint64_t out_of_order(const records &sorted, fingerprint &seen)
{
    std::uint64_t wrong = 0;
    record last = {};
    sorted.for_chunks(0, sorted.size(), [&](const record *data, std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) {
            if (seen.count != 0 && !(last < data[i]))
                ++wrong;
            seen.add(data[i]);
            last = data[i];
        }
    });
    return wrong;
}

std::string status_line(const std::string &name)
{
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.compare(0, name.size() + 1, name + ":") == 0)
            return line.substr(line.find_first_not_of(" \t", name.size() + 1));
    return "unknown";
}

void report(const char *what, const stopwatch &since, std::uint64_t bytes)
{
    const double seconds = since.seconds();
    std::cout << "  " << std::left << std::setw(10) << what << std::right << std::setw(8) << seconds
              << " s, " << std::setw(6) << static_cast<double>(bytes) / seconds / 1e6 << " MB/s\n"
              << std::flush;
}

bool sort_and_check(const order &order)
{
    // Gigabytes are granted in one piece, and their daemons fill them with zeros before.
    const dmce::session session(dmce::options().name("sort").timeout_ms(300'000));
    const auto count = static_cast<std::uint64_t>(order.gib * static_cast<double>(gib)) /
                       sizeof(record);
    const std::uint64_t run = std::max<std::uint64_t>(order.run_mib * mib / sizeof(record), 1);
    const std::uint64_t bytes = count * sizeof(record);
    std::cout << std::fixed << std::setprecision(1) << "sort, a " << sizeof(void *) * 8
              << "-bit process: " << count << " records of " << sizeof(record) << " bytes, "
              << std::setprecision(2) << static_cast<double>(bytes) / static_cast<double>(gib)
              << " GiB\n";

    stopwatch watch;
    const std::vector<fs::path> files = files_below(order.paths);
    records all(session);
    filler filler(all, count);
    const std::uint32_t rounds = filler.fill(files);
    report("filled", watch, bytes);
    std::cout << "  of " << files.size() << " files"
              << (rounds > 1 ? ", which were taken " + std::to_string(rounds) + " times" : "")
              << '\n';

    watch = {};
    sort_runs(all, run);
    report("runs", watch, bytes);
    watch = {};
    records sorted(session);
    merge(all, run, sorted);
    all.close();
    sorted.flush();
    report("merged", watch, bytes);

    watch = {};
    fingerprint seen;
    const std::uint64_t wrong = out_of_order(sorted, seen);
    report("checked", watch, bytes);
    const bool is_same = seen == filler.seen();
    std::cout << "  out of order: " << wrong << ", the same records: " << (is_same ? "yes" : "NO")
              << " (" << seen.count << ", sum " << std::hex << seen.sum << std::dec << ")\n"
              << "  peak address space: " << status_line("VmPeak")
              << ", resident: " << status_line("VmHWM") << '\n';
    return wrong == 0 && is_same;
}

// ---- the command line ----

double number(const std::string &text, double most)
{
    std::size_t end = 0;
    const double value = std::stod(text, &end);
    if (end != text.size() || !(value > 0 && value <= most))
        throw std::invalid_argument(text);
    return value;
}

order understood(int count, char **arguments)
{
    order order;
    for (int i = 1; i < count; ++i) {
        const std::string argument = arguments[i];
        if (argument == "--gib" && i + 1 < count)
            order.gib = number(arguments[++i], 1024);
        else if (argument == "--run-mib" && i + 1 < count)
            order.run_mib = static_cast<std::uint64_t>(number(arguments[++i], 1024));
        else if (argument.compare(0, 2, "--") != 0)
            order.paths.push_back(argument);
        else
            throw std::invalid_argument(argument);
    }
    if (order.paths.empty() || order.run_mib == 0)
        throw std::invalid_argument("no PATH");
    return order;
}

} // namespace

int main(int count, char **arguments)
{
    order order;
    try {
        order = understood(count, arguments);
    } catch (const std::logic_error &) {
        std::cerr << "usage: sort [--gib N] [--run-mib N] PATH...\n";
        return 2;
    }
    try {
        return sort_and_check(order) ? 0 : 1;
    } catch (const std::exception &error) {
        std::cerr << "sort: " << error.what() << '\n';
        return 1;
    }
}
