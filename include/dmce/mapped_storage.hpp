// The elements of a vector that is mapped whole: an iterator is a plain pointer.
#ifndef LIBDMCE_MAPPED_STORAGE_HPP
#define LIBDMCE_MAPPED_STORAGE_HPP

#include "error.hpp"
#include "ptr.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

namespace dmce {

// How much address space a vector takes where it is not mapped whole.
struct windows {
    // Of one window; what is left over by a power of two of elements is not used.
    std::uint64_t bytes = std::uint64_t{4} << 20;
    // At most so many at one time, and at least two; fewer where the address space has no room.
    std::uint32_t count = 32;
};

namespace detail {

// Invariants: addr_ is mapped from data_ to limit_, or all are null. It is mapped to be written,
// and so pinned, for as long as it is there. The elements end at end_.
//
// Sizes are pointers, as a store to an element that is a number may not be taken for one to them:
// a loop could keep none of them in a register.
template <class T>
class mapped_storage {
public:
    using reference = T &;
    using const_reference = const T &;
    using iterator = T *;
    using const_iterator = const T *;

    static constexpr std::uint64_t count_max =
        static_cast<std::uint64_t>(std::numeric_limits<std::ptrdiff_t>::max()) / sizeof(T);

    mapped_storage(dmce_session_t *session, const windows &) noexcept : session_(session) {}

    mapped_storage(mapped_storage &&other) noexcept
        : session_(other.session_), addr_(std::exchange(other.addr_, 0)),
          data_(std::exchange(other.data_, nullptr)), end_(std::exchange(other.end_, nullptr)),
          limit_(std::exchange(other.limit_, nullptr))
    {
    }

    mapped_storage &operator=(mapped_storage &&other) noexcept
    {
        mapped_storage moved(std::move(other));
        std::swap(session_, moved.session_);
        exchange(moved);
        return *this;
    }

    ~mapped_storage()
    {
        if (data_ == nullptr)
            return;
        static_cast<void>(dmce_unmap(session_, data_));
        static_cast<void>(dmce_free(session_, addr_));
    }

    dmce_session_t *session() const noexcept { return session_; }
    dmce_addr_t addr() const noexcept { return addr_; }
    std::uint64_t capacity() const noexcept { return count(limit_); }
    std::uint64_t mapped_bytes() const noexcept { return capacity() * sizeof(T); }

    std::uint64_t size() const noexcept { return count(end_); }
    void set_size(std::uint64_t size) noexcept { end_ = data_ + size; }

    // Adds an element if there is room.
    bool push(const T &value) noexcept
    {
        if (end_ == limit_)
            return false;
        *end_++ = value;
        return true;
    }

    T *data() const noexcept { return data_; }
    iterator at(std::uint64_t index) noexcept { return data_ + index; }
    const_iterator at(std::uint64_t index) const noexcept { return data_ + index; }
    T get(std::uint64_t index) const noexcept { return data_[index]; }
    void set(std::uint64_t index, const T &value) noexcept { data_[index] = value; }

    // Calls f(T *, count) for elements that lie one after the other.
    template <class F>
    void chunks(std::uint64_t first, std::uint64_t count, F f)
    {
        if (count != 0)
            f(data_ + first, static_cast<std::size_t>(count));
    }

    template <class F>
    void chunks(std::uint64_t first, std::uint64_t count, F f) const
    {
        if (count != 0)
            f(static_cast<const T *>(data_ + first), static_cast<std::size_t>(count));
    }

    void move(std::uint64_t to, std::uint64_t from, std::uint64_t count)
    {
        if (count != 0)
            std::memmove(static_cast<void *>(data_ + to), data_ + from,
                         static_cast<std::size_t>(count * sizeof(T)));
    }

    // Room for so many elements. What is pinned cannot be grown where it is, so there are two of it
    // for a moment, as with std::vector.
    void reallocate(std::uint64_t capacity)
    {
        mapped_storage grown(session_, {});
        grown.allocate(capacity);
        if (data_ != nullptr)
            std::memcpy(static_cast<void *>(grown.data_), data_,
                        static_cast<std::size_t>(size() * sizeof(T)));
        grown.set_size(size());
        const dmce_status_t status = data_ == nullptr ? DMCE_OK : dmce_unmap(session_, data_);
        // Another error has left the old mapping, so the old elements are those that count.
        if (status != DMCE_OK && status != DMCE_E_LOST)
            throw error(status, "dmce_unmap");
        exchange(grown);
        grown.data_ = nullptr;
        if (status != DMCE_OK) {
            const error lost(status, "dmce_unmap");
            static_cast<void>(dmce_free(session_, grown.addr_));
            throw lost;
        }
        static_cast<void>(dmce_free(session_, grown.addr_));
    }

    // The new mapping is there before the old one goes, so that whatever fails leaves one.
    void flush()
    {
        if (data_ == nullptr)
            return;
        T *fresh = map(addr_, capacity());
        const dmce_status_t status = dmce_unmap(session_, data_);
        if (status != DMCE_OK && status != DMCE_E_LOST) {
            const error failed(status, "dmce_unmap");
            static_cast<void>(dmce_unmap(session_, fresh));
            throw failed;
        }
        place(fresh, capacity(), size());
        check(status, "dmce_unmap");
    }

    void release()
    {
        if (data_ == nullptr)
            return;
        const dmce_status_t status = dmce_unmap(session_, data_);
        if (status != DMCE_OK && status != DMCE_E_LOST)
            throw error(status, "dmce_unmap");
        place(nullptr, 0, 0);
        check(dmce_free(session_, std::exchange(addr_, 0)), "dmce_free");
    }

private:
    void allocate(std::uint64_t capacity)
    {
        dmce_addr_t addr = 0;
        check(dmce_malloc(session_, capacity * sizeof(T), &addr), "dmce_malloc");
        try {
            place(map(addr, capacity), capacity, 0);
        } catch (...) {
            static_cast<void>(dmce_free(session_, addr));
            throw;
        }
        addr_ = addr;
    }

    T *map(dmce_addr_t addr, std::uint64_t count) const
    {
        void *pointer = nullptr;
        const auto bytes = static_cast<std::size_t>(count * sizeof(T));
        check(dmce_map(session_, addr, bytes, DMCE_READ | DMCE_WRITE, &pointer), "dmce_map");
        return static_cast<T *>(pointer);
    }

    std::uint64_t count(const T *until) const noexcept
    {
        return static_cast<std::uint64_t>(until - data_);
    }

    void place(T *data, std::uint64_t capacity, std::uint64_t size) noexcept
    {
        data_ = data;
        end_ = data + size;
        limit_ = data + capacity;
    }

    void exchange(mapped_storage &other) noexcept
    {
        std::swap(addr_, other.addr_);
        std::swap(data_, other.data_);
        std::swap(end_, other.end_);
        std::swap(limit_, other.limit_);
    }

    dmce_session_t *session_;
    dmce_addr_t addr_ = 0;
    T *data_ = nullptr;
    T *end_ = nullptr;
    T *limit_ = nullptr;
};

} // namespace detail
} // namespace dmce

#endif
