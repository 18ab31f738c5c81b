// The elements of a vector that may be larger than the address space: a bounded number of windows
// is mapped, and what is not behind one is read and written by call.
//
//   is a window there?   yes: load and store
//                        no:  at its edge, twice in a row, or often by now: map it, and give up
//                             the one that was not used for longest
//                             else: dmce_read, dmce_write
#ifndef LIBDMCE_WINDOWED_STORAGE_HPP
#define LIBDMCE_WINDOWED_STORAGE_HPP

#include "error.hpp"
#include "mapped_storage.hpp"
#include "proxy.hpp"
#include "ptr.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

namespace dmce {
namespace detail {

template <class T>
class windowed_storage;

// An element, wherever it is mapped now.
template <class T>
class windowed_reference : public proxy<windowed_reference<T>, T> {
public:
    windowed_reference(windowed_storage<T> *storage, std::uint64_t index) noexcept
        : storage_(storage), index_(index)
    {
    }

    windowed_reference(const windowed_reference &) = default;

    const windowed_reference &operator=(const T &value) const
    {
        set(value);
        return *this;
    }

    const windowed_reference &operator=(const windowed_reference &other) const
    {
        set(other.get());
        return *this;
    }

    windowed_reference &operator=(const windowed_reference &other)
    {
        set(other.get());
        return *this;
    }

    T get() const { return storage_->get(index_); }
    void set(const T &value) const { storage_->set(index_, value); }

private:
    windowed_storage<T> *storage_;
    std::uint64_t index_;
};

// An index with its vector, so it stays valid when windows go and when the vector grows.
template <class T, bool IsConst>
class windowed_iterator {
    using storage = std::conditional_t<IsConst, const windowed_storage<T>, windowed_storage<T>>;

public:
    using iterator_category = std::random_access_iterator_tag;
    using value_type = T;
    using difference_type = std::int64_t;
    using reference = std::conditional_t<IsConst, T, windowed_reference<T>>;
    using pointer = arrow<T>;

    constexpr windowed_iterator() noexcept = default;
    windowed_iterator(storage *elements, std::uint64_t index) noexcept
        : storage_(elements), index_(index)
    {
    }

    template <bool Const = IsConst, class = std::enable_if_t<Const>>
    windowed_iterator(const windowed_iterator<T, false> &other) noexcept
        : storage_(other.storage_), index_(other.index_)
    {
    }

    std::uint64_t index() const noexcept { return index_; }

    reference operator*() const
    {
        if constexpr (IsConst)
            return storage_->get(index_);
        else
            return reference(storage_, index_);
    }

    arrow<T> operator->() const { return arrow<T>(storage_->get(index_)); }
    reference operator[](difference_type count) const { return *(*this + count); }

    windowed_iterator &operator+=(difference_type count) noexcept
    {
        index_ += static_cast<std::uint64_t>(count);
        return *this;
    }

    windowed_iterator &operator-=(difference_type count) noexcept
    {
        index_ -= static_cast<std::uint64_t>(count);
        return *this;
    }

    windowed_iterator &operator++() noexcept { return *this += 1; }
    windowed_iterator &operator--() noexcept { return *this -= 1; }

    windowed_iterator operator++(int) noexcept
    {
        const windowed_iterator before = *this;
        ++*this;
        return before;
    }

    windowed_iterator operator--(int) noexcept
    {
        const windowed_iterator before = *this;
        --*this;
        return before;
    }

    using self = windowed_iterator;
    friend self operator+(self at, difference_type count) noexcept { return at += count; }
    friend self operator+(difference_type count, self at) noexcept { return at += count; }
    friend self operator-(self at, difference_type count) noexcept { return at -= count; }

    friend difference_type operator-(const self &a, const self &b) noexcept
    {
        return static_cast<difference_type>(a.index_ - b.index_);
    }

    friend bool operator==(const self &a, const self &b) noexcept { return a.index_ == b.index_; }
    friend bool operator!=(const self &a, const self &b) noexcept { return a.index_ != b.index_; }
    friend bool operator<(const self &a, const self &b) noexcept { return a.index_ < b.index_; }
    friend bool operator>(const self &a, const self &b) noexcept { return a.index_ > b.index_; }
    friend bool operator<=(const self &a, const self &b) noexcept { return a.index_ <= b.index_; }
    friend bool operator>=(const self &a, const self &b) noexcept { return a.index_ >= b.index_; }

private:
    friend class windowed_iterator<T, true>;

    storage *storage_ = nullptr;
    std::uint64_t index_ = 0;
};

// Invariants
//
// 1. places_[k] is 0, or 1 more than the slot that shows window k; another slot shows k only while
//    somebody holds it, and goes when he lets go.
// 2. hot_ is no_window, or a window that a slot shows: hot_data_ is its first element.
// 3. A slot that is held is not given up. What would have to is DMCE_E_BUSY.
// 4. A window is mapped to be written only when somebody writes: what was only read need not be
//    brought to other copies.
template <class T>
class windowed_storage {
public:
    using reference = windowed_reference<T>;
    using const_reference = T;
    using iterator = windowed_iterator<T, false>;
    using const_iterator = windowed_iterator<T, true>;

    static constexpr std::uint64_t count_max = ptr<T>::count_max;

    windowed_storage(dmce_session_t *session, const windows &windows)
        : session_(session), slots_(std::max<std::uint32_t>(windows.count, 2))
    {
        // An address space of 32 bits has hardly a gap for more.
        constexpr std::uint64_t bytes_max = std::uint64_t{1} << 30;
        static_assert(sizeof(T) <= bytes_max, "an element fits into a window");
        const std::uint64_t bytes = std::min(windows.bytes, bytes_max);
        while ((sizeof(T) << (shift_ + 1)) <= bytes)
            ++shift_;
    }

    windowed_storage(windowed_storage &&other) noexcept
        : session_(other.session_), slots_(std::move(other.slots_)),
          places_(std::move(other.places_)), misses_(std::move(other.misses_)),
          addr_(std::exchange(other.addr_, 0)), size_(std::exchange(other.size_, 0)),
          capacity_(std::exchange(other.capacity_, 0)),
          clock_(other.clock_), hot_(std::exchange(other.hot_, no_window)),
          hot_data_(std::exchange(other.hot_data_, nullptr)), missed_(other.missed_),
          shift_(other.shift_), hot_is_writable_(std::exchange(other.hot_is_writable_, false))
    {
        other.slots_.clear();
        other.places_.clear();
    }

    windowed_storage &operator=(windowed_storage &&other) noexcept
    {
        windowed_storage moved(std::move(other));
        swap(moved);
        return *this;
    }

    ~windowed_storage()
    {
        for (slot &each : slots_)
            if (each.data != nullptr)
                static_cast<void>(dmce_unmap(session_, each.data));
        if (addr_ != 0)
            static_cast<void>(dmce_free(session_, addr_));
    }

    dmce_session_t *session() const noexcept { return session_; }
    dmce_addr_t addr() const noexcept { return addr_; }
    std::uint64_t capacity() const noexcept { return capacity_; }
    std::uint64_t size() const noexcept { return size_; }
    void set_size(std::uint64_t size) noexcept { size_ = size; }

    // Adds an element if there is room.
    bool push(const T &value)
    {
        if (size_ == capacity_)
            return false;
        set(size_, value);
        ++size_;
        return true;
    }

    std::uint64_t mapped_bytes() const noexcept
    {
        std::uint64_t bytes = 0;
        for (const slot &each : slots_)
            bytes += each.data == nullptr ? 0 : count_in(each.window) * sizeof(T);
        return bytes;
    }

    iterator at(std::uint64_t index) noexcept { return {this, index}; }
    const_iterator at(std::uint64_t index) const noexcept { return {this, index}; }

    T get(std::uint64_t index) const
    {
        if (index >> shift_ == hot_)
            return hot_data_[offset(index)];
        T *element = seek(index, false);
        return element != nullptr ? *element : read_value<T>(session_, addr_of(index));
    }

    void set(std::uint64_t index, const T &value)
    {
        if (index >> shift_ == hot_ && hot_is_writable_) {
            hot_data_[offset(index)] = value;
            return;
        }
        // It may be in the window that has to go.
        const T kept = value;
        if (T *element = seek(index, true))
            *element = kept;
        else
            write_value(session_, addr_of(index), kept);
    }

    template <class F>
    void chunks(std::uint64_t first, std::uint64_t count, F f)
    {
        each_chunk(first, count, true, f);
    }

    template <class F>
    void chunks(std::uint64_t first, std::uint64_t count, F f) const
    {
        each_chunk(first, count, false, [&](const T *data, std::size_t now) { f(data, now); });
    }

    void move(std::uint64_t to, std::uint64_t from, std::uint64_t count)
    {
        if (count == 0)
            return;
        flush();
        check(dmce_copy(session_, addr_of(to), addr_of(from), count * sizeof(T)), "dmce_copy");
    }

    // All windows go first, as what is pinned cannot move: if the memory is refused after that,
    // the elements are where they were.
    void reallocate(std::uint64_t capacity)
    {
        if (slots_.empty())
            // Moved from: begins again with windows of the same size.
            slots_.resize(windows().count);
        const auto count = static_cast<std::size_t>(((capacity - 1) >> shift_) + 1);
        std::vector<std::uint32_t> places(count);
        std::vector<std::uint8_t> misses(count);
        drop(false);
        dmce_addr_t addr = 0;
        check(dmce_realloc(session_, addr_, capacity * sizeof(T), &addr), "dmce_realloc");
        addr_ = addr;
        capacity_ = capacity;
        places_.swap(places);
        misses_.swap(misses);
    }

    void flush() { drop(true); }

    void release()
    {
        drop(false);
        check(dmce_free(session_, addr_), "dmce_free");
        addr_ = 0;
        size_ = 0;
        capacity_ = 0;
        places_.clear();
        misses_.clear();
    }

private:
    static constexpr std::uint64_t no_window = std::numeric_limits<std::uint64_t>::max();
    // So many accesses by call cost more than a window.
    static constexpr std::uint8_t misses_max = 64;

    struct slot {
        T *data = nullptr;
        std::uint64_t window = 0;
        std::uint64_t used_at = 0;
        std::uint32_t holders = 0;
        bool is_writable = false;
    };

    // Lets go of a slot when the caller's function has returned, or thrown.
    class hold {
    public:
        hold(const windowed_storage &storage, std::size_t place) noexcept
            : storage_(storage), place_(place)
        {
            ++storage_.slots_[place_].holders;
        }

        hold(const hold &) = delete;
        hold &operator=(const hold &) = delete;

        ~hold()
        {
            slot &held = storage_.slots_[place_];
            if (--held.holders == 0 && !storage_.is_current(place_))
                static_cast<void>(storage_.unmap(place_));
        }

    private:
        const windowed_storage &storage_;
        std::size_t place_;
    };

    void swap(windowed_storage &other) noexcept
    {
        std::swap(session_, other.session_);
        slots_.swap(other.slots_);
        places_.swap(other.places_);
        misses_.swap(other.misses_);
        std::swap(addr_, other.addr_);
        std::swap(size_, other.size_);
        std::swap(capacity_, other.capacity_);
        std::swap(clock_, other.clock_);
        std::swap(hot_, other.hot_);
        std::swap(hot_data_, other.hot_data_);
        std::swap(missed_, other.missed_);
        std::swap(shift_, other.shift_);
        std::swap(hot_is_writable_, other.hot_is_writable_);
    }

    std::size_t offset(std::uint64_t index) const noexcept
    {
        return static_cast<std::size_t>(index & ((std::uint64_t{1} << shift_) - 1));
    }

    dmce_addr_t addr_of(std::uint64_t index) const noexcept { return addr_ + index * sizeof(T); }

    // Elements of a window: the last one may be shorter.
    std::uint64_t count_in(std::uint64_t window) const noexcept
    {
        return std::min(capacity_ - (window << shift_), std::uint64_t{1} << shift_);
    }

    bool is_current(std::size_t place) const noexcept
    {
        return places_[static_cast<std::size_t>(slots_[place].window)] == place + 1;
    }

    // The element in a window, or null where a call is cheaper than a window.
    T *seek(std::uint64_t index, bool writes) const
    {
        const std::uint64_t window = index >> shift_;
        if (places_[static_cast<std::size_t>(window)] == 0 && !pays(index))
            return nullptr;
        const std::size_t place = show(window, writes);
        hot_ = window;
        hot_data_ = slots_[place].data;
        hot_is_writable_ = slots_[place].is_writable;
        return hot_data_ + offset(index);
    }

    bool pays(std::uint64_t index) const noexcept
    {
        const std::uint64_t window = index >> shift_;
        if (places_.size() <= slots_.size() || offset(index) == 0 || offset(index + 1) == 0)
            return true;
        std::uint8_t &misses = misses_[static_cast<std::size_t>(window)];
        return std::exchange(missed_, window) == window || ++misses >= misses_max;
    }

    // The slot in which a window is mapped, which it is now if it was not.
    std::size_t show(std::uint64_t window, bool writes) const
    {
        std::uint32_t &place_of = places_[static_cast<std::size_t>(window)];
        if (place_of != 0) {
            const std::size_t place = place_of - 1;
            slot &there = slots_[place];
            there.used_at = ++clock_;
            if (there.is_writable || !writes)
                return place;
            if (there.holders == 0)
                check(unmap(place), "dmce_unmap");
        }
        const std::size_t place = vacate();
        slot &fresh = slots_[place];
        fresh.data = map(window, writes);
        fresh.window = window;
        fresh.used_at = ++clock_;
        fresh.is_writable = writes;
        forget_hot(window);
        place_of = static_cast<std::uint32_t>(place + 1);
        misses_[static_cast<std::size_t>(window)] = 0;
        return place;
    }

    // Where the address space has no room for as many windows, others make room.
    T *map(std::uint64_t window, bool writes) const
    {
        const auto bytes = static_cast<std::size_t>(count_in(window) * sizeof(T));
        const std::uint32_t prot = writes ? DMCE_READ | DMCE_WRITE : DMCE_READ;
        for (;;) {
            void *pointer = nullptr;
            const dmce_status_t status =
                dmce_map(session_, addr_of(window << shift_), bytes, prot, &pointer);
            if (status == DMCE_OK)
                return static_cast<T *>(pointer);
            const std::size_t other = oldest();
            if (status != DMCE_E_NOMEM || other == slots_.size())
                throw error(status, "dmce_map");
            check(unmap(other), "dmce_unmap");
        }
    }

    // A slot that shows nothing.
    std::size_t vacate() const
    {
        for (std::size_t place = 0; place < slots_.size(); ++place)
            if (slots_[place].data == nullptr)
                return place;
        const std::size_t place = oldest();
        if (place == slots_.size())
            throw error(DMCE_E_BUSY, "dmce::vector", "all windows are in use by for_chunks");
        check(unmap(place), "dmce_unmap");
        return place;
    }

    // The slot that was not used for longest, of those that nobody holds; their number if none.
    std::size_t oldest() const noexcept
    {
        std::size_t oldest = slots_.size();
        for (std::size_t place = 0; place < slots_.size(); ++place) {
            const slot &each = slots_[place];
            if (each.data == nullptr || each.holders != 0)
                continue;
            if (oldest == slots_.size() || each.used_at < slots_[oldest].used_at)
                oldest = place;
        }
        return oldest;
    }

    // What is lost has been unmapped; after another error the window is there still.
    dmce_status_t unmap(std::size_t place) const noexcept
    {
        slot &gone = slots_[place];
        const dmce_status_t status = dmce_unmap(session_, gone.data);
        if (status != DMCE_OK && status != DMCE_E_LOST)
            return status;
        forget_hot(gone.window);
        if (is_current(place))
            places_[static_cast<std::size_t>(gone.window)] = 0;
        gone.data = nullptr;
        return status;
    }

    void forget_hot(std::uint64_t window) const noexcept
    {
        if (hot_ == window) {
            hot_ = no_window;
            hot_is_writable_ = false;
        }
    }

    // Gives up all windows, or those that can write; all that can be, before an error is thrown.
    void drop(bool writable_alone)
    {
        for (const slot &each : slots_)
            if (each.data != nullptr && each.holders != 0)
                throw error(DMCE_E_BUSY, "dmce::vector", "in use by for_chunks");
        std::exception_ptr first;
        for (std::size_t place = 0; place < slots_.size(); ++place) {
            if (slots_[place].data == nullptr || (writable_alone && !slots_[place].is_writable))
                continue;
            const dmce_status_t status = unmap(place);
            if (status != DMCE_OK && first == nullptr)
                first = std::make_exception_ptr(error(status, "dmce_unmap"));
        }
        if (first != nullptr)
            std::rethrow_exception(first);
    }

    template <class F>
    void each_chunk(std::uint64_t first, std::uint64_t count, bool writes, F f) const
    {
        while (count != 0) {
            const std::uint64_t window = first >> shift_;
            const std::size_t place = show(window, writes);
            const hold held(*this, place);
            const std::uint64_t left = count_in(window) - offset(first);
            const std::uint64_t now = std::min(left, count);
            f(slots_[place].data + offset(first), static_cast<std::size_t>(now));
            first += now;
            count -= now;
        }
    }

    dmce_session_t *session_;
    // Reading moves windows too.
    mutable std::vector<slot> slots_;
    mutable std::vector<std::uint32_t> places_;
    mutable std::vector<std::uint8_t> misses_;
    dmce_addr_t addr_ = 0;
    std::uint64_t size_ = 0;
    std::uint64_t capacity_ = 0;
    mutable std::uint64_t clock_ = 0;
    mutable std::uint64_t hot_ = no_window;
    mutable T *hot_data_ = nullptr;
    mutable std::uint64_t missed_ = no_window;
    std::uint32_t shift_ = 0;
    mutable bool hot_is_writable_ = false;
};

} // namespace detail
} // namespace dmce

#endif
