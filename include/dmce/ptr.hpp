// dmce::ptr<T>: a random-access pointer over a 64-bit address, in programs of both widths.
#ifndef LIBDMCE_PTR_HPP
#define LIBDMCE_PTR_HPP

#include "error.hpp"
#include "proxy.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <iterator>
#include <limits>
#include <type_traits>

namespace dmce {

template <class T>
class ptr;

namespace detail {

// The strictest alignment that an allocation of DMCE can be asked for and a mapping keeps.
constexpr std::size_t page_bytes = 4096;

// Where a value is read to whose type need not have a default constructor.
template <class T>
union slot {
    slot() noexcept : none() {}

    unsigned char none;
    T value;
};

template <class T>
T read_value(dmce_session_t *session, dmce_addr_t addr)
{
    slot<T> read;
    check(dmce_read(session, addr, &read, sizeof(T)), "dmce_read");
    return read.value;
}

template <class T>
void write_value(dmce_session_t *session, dmce_addr_t addr, const T &value)
{
    check(dmce_write(session, addr, &value, sizeof(T)), "dmce_write");
}

// Bytes of one call for what may be longer than a size_t can tell.
constexpr std::uint64_t call_bytes_max = std::uint64_t{1} << 30;

} // namespace detail

// What *p is: reading it is dmce_read, assigning to it dmce_write, done on every copy.
template <class T>
class reference : public detail::proxy<reference<T>, T> {
public:
    reference(dmce_session_t *session, dmce_addr_t addr) noexcept : session_(session), addr_(addr)
    {
    }

    reference(const reference &) = default;

    const reference &operator=(const T &value) const
    {
        set(value);
        return *this;
    }

    // Assigns through, as a reference does: `*p = *q` copies the element.
    const reference &operator=(const reference &other) const
    {
        set(other.get());
        return *this;
    }

    reference &operator=(const reference &other)
    {
        set(other.get());
        return *this;
    }

    T get() const { return detail::read_value<T>(session_, addr_); }
    void set(const T &value) const { detail::write_value(session_, addr_, value); }

    ptr<T> operator&() const noexcept { return ptr<T>(session_, addr_); }

private:
    dmce_session_t *session_;
    dmce_addr_t addr_;
};

// A pointer to elements of an allocation or a region.
//
// It is the session's handle and the address: 16 bytes in a 64-bit program, 12 in a 32-bit one.
// The handle is in each pointer, as two sessions may reach the same address with different rights,
// and one that is closed has to be found out. It is never dereferenced, so a pointer that outlives
// its session throws DMCE_E_CLOSED and does no harm.
//
// Differences have 64 bits in both widths. Each access is a call: sort and search through it where
// elements are few or scattered, and use dmce::vector, dmce::mapped or read() and write() for many.
// It is an iterator for the algorithms, and no allocator's pointer: there is no T & to an element,
// so the containers of the standard library cannot be made of it.
//
// ptr<const T> reads alone; a pointer converts as T * does, ptr<void> included.
template <class T>
class ptr {
    using element = std::remove_cv_t<T>;
    static_assert(std::is_trivially_copyable<element>::value, "its bytes have to be its value");

public:
    using iterator_category = std::random_access_iterator_tag;
    using value_type = element;
    using element_type = T;
    using difference_type = std::int64_t;
    using reference =
        std::conditional_t<std::is_const<T>::value, element, dmce::reference<element>>;
    using pointer = ptr;

    // Elements that one pointer can be moved over.
    static constexpr std::uint64_t count_max =
        static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()) / sizeof(T);

    constexpr ptr() noexcept = default;
    constexpr ptr(std::nullptr_t) noexcept {}
    constexpr ptr(dmce_session_t *session, dmce_addr_t addr) noexcept
        : session_(session), addr_(addr)
    {
    }

    // T to const T.
    template <class U, class = std::enable_if_t<std::is_same<const U, T>::value>>
    constexpr ptr(const ptr<U> &other) noexcept : session_(other.session()), addr_(other.addr())
    {
    }

    // From void, as static_cast does it.
    template <class U, class = std::enable_if_t<std::is_void<U>::value &&
                                                (std::is_const<T>::value ||
                                                 !std::is_const<U>::value)>,
              class = void>
    constexpr explicit ptr(const ptr<U> &other) noexcept
        : session_(other.session()), addr_(other.addr())
    {
    }

    constexpr dmce_addr_t addr() const noexcept { return addr_; }
    constexpr dmce_session_t *session() const noexcept { return session_; }
    constexpr explicit operator bool() const noexcept { return addr_ != 0; }

    reference operator*() const
    {
        if constexpr (std::is_const<T>::value)
            return detail::read_value<element>(session_, addr_);
        else
            return reference(session_, addr_);
    }

    // The element as it is now: `p->field` reads; to change a field, read, change and assign.
    detail::arrow<element> operator->() const
    {
        return detail::arrow<element>(detail::read_value<element>(session_, addr_));
    }

    reference operator[](difference_type index) const { return *(*this + index); }

    ptr &operator+=(difference_type count) noexcept
    {
        // Unsigned, so that the way back below an address is defined as well.
        addr_ += static_cast<std::uint64_t>(count) * sizeof(T);
        return *this;
    }

    ptr &operator-=(difference_type count) noexcept
    {
        addr_ -= static_cast<std::uint64_t>(count) * sizeof(T);
        return *this;
    }

    ptr &operator++() noexcept { return *this += 1; }
    ptr &operator--() noexcept { return *this -= 1; }

    ptr operator++(int) noexcept
    {
        const ptr before = *this;
        ++*this;
        return before;
    }

    ptr operator--(int) noexcept
    {
        const ptr before = *this;
        --*this;
        return before;
    }

    friend ptr operator+(ptr pointer, difference_type count) noexcept { return pointer += count; }
    friend ptr operator+(difference_type count, ptr pointer) noexcept { return pointer += count; }
    friend ptr operator-(ptr pointer, difference_type count) noexcept { return pointer -= count; }

    friend difference_type operator-(const ptr &a, const ptr &b) noexcept
    {
        const auto bytes = static_cast<difference_type>(a.addr_ - b.addr_);
        return bytes / static_cast<difference_type>(sizeof(T));
    }

    // Addresses alone: that of one byte is the same in every session.
    friend bool operator==(const ptr &a, const ptr &b) noexcept { return a.addr_ == b.addr_; }
    friend bool operator!=(const ptr &a, const ptr &b) noexcept { return a.addr_ != b.addr_; }
    friend bool operator<(const ptr &a, const ptr &b) noexcept { return a.addr_ < b.addr_; }
    friend bool operator>(const ptr &a, const ptr &b) noexcept { return a.addr_ > b.addr_; }
    friend bool operator<=(const ptr &a, const ptr &b) noexcept { return a.addr_ <= b.addr_; }
    friend bool operator>=(const ptr &a, const ptr &b) noexcept { return a.addr_ >= b.addr_; }

    // Many elements by as few calls as can be.
    void read(element *to, std::uint64_t count) const
    {
        each_call(count, [&](dmce_addr_t addr, std::uint64_t done, std::size_t bytes) {
            detail::check(dmce_read(session_, addr, to + done, bytes), "dmce_read");
        });
    }

    template <class U = T, class = std::enable_if_t<!std::is_const<U>::value>>
    void write(const element *from, std::uint64_t count) const
    {
        each_call(count, [&](dmce_addr_t addr, std::uint64_t done, std::size_t bytes) {
            detail::check(dmce_write(session_, addr, from + done, bytes), "dmce_write");
        });
    }

private:
    template <class Call>
    void each_call(std::uint64_t count, Call call) const
    {
        static_assert(sizeof(T) <= detail::call_bytes_max, "an element is one call at most");
        constexpr std::uint64_t at_once = detail::call_bytes_max / sizeof(T);
        for (std::uint64_t done = 0; done < count; done += at_once) {
            const auto now = static_cast<std::size_t>(std::min(at_once, count - done));
            call(addr_ + done * sizeof(T), done, now * sizeof(T));
        }
    }

    dmce_session_t *session_ = nullptr;
    dmce_addr_t addr_ = 0;
};

namespace detail {

// An address without a type.
template <class Void>
class void_ptr {
public:
    using element_type = Void;
    using difference_type = std::int64_t;

    constexpr void_ptr() noexcept = default;
    constexpr void_ptr(std::nullptr_t) noexcept {}
    constexpr void_ptr(dmce_session_t *session, dmce_addr_t addr) noexcept
        : session_(session), addr_(addr)
    {
    }

    constexpr dmce_addr_t addr() const noexcept { return addr_; }
    constexpr dmce_session_t *session() const noexcept { return session_; }
    constexpr explicit operator bool() const noexcept { return addr_ != 0; }

private:
    dmce_session_t *session_ = nullptr;
    dmce_addr_t addr_ = 0;
};

} // namespace detail

template <>
class ptr<void> : public detail::void_ptr<void> {
public:
    using void_ptr::void_ptr;

    template <class T, class = std::enable_if_t<!std::is_const<T>::value>>
    constexpr ptr(const ptr<T> &other) noexcept : void_ptr(other.session(), other.addr())
    {
    }

    friend bool operator==(const ptr &a, const ptr &b) noexcept { return a.addr() == b.addr(); }
    friend bool operator!=(const ptr &a, const ptr &b) noexcept { return a.addr() != b.addr(); }
};

template <>
class ptr<const void> : public detail::void_ptr<const void> {
public:
    using void_ptr::void_ptr;

    template <class T>
    constexpr ptr(const ptr<T> &other) noexcept : void_ptr(other.session(), other.addr())
    {
    }

    friend bool operator==(const ptr &a, const ptr &b) noexcept { return a.addr() == b.addr(); }
    friend bool operator!=(const ptr &a, const ptr &b) noexcept { return a.addr() != b.addr(); }
};

} // namespace dmce

template <class T>
struct std::hash<dmce::ptr<T>> {
    std::size_t operator()(const dmce::ptr<T> &pointer) const noexcept
    {
        return std::hash<dmce_addr_t>()(pointer.addr());
    }
};

#endif
