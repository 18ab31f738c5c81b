// Plain pointers that end themselves: dmce::mapped<T>, dmce::read_guard<T>, dmce::write_guard<T>.
//
// Each is a range of elements with begin() and end(), moves and is not copied. Ending one
// explicitly reports errors; destructors swallow them. After an error a pointer is still held, and
// the destructor tries once more; only after DMCE_E_LOST, unless of an abort, it has ended. After
// DMCE_E_NOTFOUND, as somebody else has ended it, there is none to hold.
//
// Guards are for the session's own memory: what it allocates, also as transparent memory. For
// regions, and on the message path, their constructors throw DMCE_E_UNSUPPORTED. Guards shut out
// one another: dmce_write and its like do not wait for them, nor do elements by dmce::ptr.
#ifndef LIBDMCE_GUARDS_HPP
#define LIBDMCE_GUARDS_HPP

#include "error.hpp"
#include "ptr.hpp"
#include "session.hpp"

#include <cstddef>
#include <exception>
#include <limits>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace dmce {
namespace detail {

// The bytes of elements that a process is to have pointers to.
template <class T>
std::size_t pointed_bytes(std::size_t count)
{
    if (count > static_cast<std::size_t>(std::numeric_limits<std::ptrdiff_t>::max()) / sizeof(T))
        throw std::length_error("more elements than this process can address");
    return count * sizeof(T);
}

// Elements at a plain pointer that the session gave.
template <class T>
class held {
    static_assert(std::is_trivially_copyable<std::remove_cv_t<T>>::value,
                  "its bytes have to be its value");

public:
    T *data() const noexcept { return data_; }
    std::size_t size() const noexcept { return data_ == nullptr ? 0 : size_; }
    bool empty() const noexcept { return size() == 0; }
    T *begin() const noexcept { return data_; }
    T *end() const noexcept { return data_ + size(); }
    T &operator*() const noexcept { return *data_; }
    T *operator->() const noexcept { return data_; }
    T &operator[](std::size_t index) const noexcept { return data_[index]; }
    explicit operator bool() const noexcept { return data_ != nullptr; }

protected:
    held(dmce_session_t *session, std::size_t size) noexcept : session_(session), size_(size) {}

    held(held &&other) noexcept
        : session_(other.session_), data_(std::exchange(other.data_, nullptr)), size_(other.size_)
    {
    }

    held(const held &) = delete;
    held &operator=(const held &) = delete;
    ~held() = default;

    void exchange(held &other) noexcept
    {
        std::swap(session_, other.session_);
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
    }

    // Takes in what a call that ends the pointer has answered. A pointer that is not known to the
    // session is let alone from then on: another one may be at the same place by and by.
    dmce_status_t ended(dmce_status_t status, bool ends_if_lost = true) noexcept
    {
        const bool has_ended = status == DMCE_OK || status == DMCE_E_NOTFOUND;
        if (has_ended || (ends_if_lost && status == DMCE_E_LOST))
            data_ = nullptr;
        return status;
    }

    dmce_session_t *session_;
    T *data_ = nullptr;
    std::size_t size_;
};

} // namespace detail

// A range that is mapped, as by dmce_map: pinned, neither freed nor moved, until it is unmapped.
// mapped<const T> is for reading.
//
// What is stored by it reaches the other copies at unmap() alone, also what the destructor does.
// Two of them into the same bytes see each other's stores at once, in all processes.
template <class T>
class mapped : public detail::held<T> {
    static constexpr std::uint32_t prot =
        std::is_const<T>::value ? DMCE_READ : DMCE_READ | DMCE_WRITE;

public:
    mapped(ptr<T> first, std::size_t count) : mapped(first.session(), first.addr(), count) {}
    mapped(const session &session, dmce_addr_t addr, std::size_t count)
        : mapped(session.handle(), addr, count)
    {
    }

    mapped(dmce_session_t *session, dmce_addr_t addr, std::size_t count)
        : detail::held<T>(session, count)
    {
        void *pointer = nullptr;
        const std::size_t bytes = detail::pointed_bytes<T>(count);
        detail::check(dmce_map(session, addr, bytes, prot, &pointer), "dmce_map");
        this->data_ = static_cast<T *>(pointer);
    }

    mapped(mapped &&other) noexcept = default;

    mapped &operator=(mapped &&other) noexcept
    {
        mapped moved(std::move(other));
        this->exchange(moved);
        return *this;
    }

    ~mapped() { static_cast<void>(end_it()); }

    // Ends the mapping; what was stored is on every copy then.
    void unmap() { detail::check(end_it(), "dmce_unmap"); }

private:
    dmce_status_t end_it() noexcept
    {
        if (this->data_ == nullptr)
            return DMCE_OK;
        void *pointer = const_cast<std::remove_cv_t<T> *>(this->data_);
        return this->ended(dmce_unmap(this->session_, pointer));
    }
};

// A range for which nobody has a write_guard while it is held, as by dmce_read_ptr, which says how
// it waits and what `flags` are. Read guards nest; of those that begin at the same byte and are not
// equally long the one that was made last is to end first, as by scopes.
template <class T>
class read_guard : public detail::held<const T> {
public:
    read_guard(ptr<const T> first, std::size_t count, std::uint32_t flags = 0)
        : detail::held<const T>(first.session(), count)
    {
        const void *pointer = nullptr;
        const std::size_t bytes = detail::pointed_bytes<T>(count);
        detail::check(dmce_read_ptr(first.session(), first.addr(), bytes, flags, &pointer),
                      "dmce_read_ptr");
        this->data_ = static_cast<const T *>(pointer);
    }

    read_guard(const session &session, dmce_addr_t addr, std::size_t count,
               std::uint32_t flags = 0)
        : read_guard(ptr<const T>(session.handle(), addr), count, flags)
    {
    }

    read_guard(read_guard &&other) noexcept = default;

    read_guard &operator=(read_guard &&other) noexcept
    {
        read_guard moved(std::move(other));
        this->exchange(moved);
        return *this;
    }

    ~read_guard() { static_cast<void>(end_it()); }

    void release() { detail::check(end_it(), "dmce_release_ptr"); }

private:
    dmce_status_t end_it() noexcept
    {
        if (this->data_ == nullptr)
            return DMCE_OK;
        return this->ended(dmce_release_ptr(this->session_, this->data_));
    }
};

// A range that nobody else reads or writes by a guard while it is held, as by dmce_write_ptr.
//
// release(), and the destructor, bring what was stored to every copy. abort(), and the destructor
// where an exception passes it, leave the range as it was, which takes memory with several copies.
// With one copy alone, or where the copies have changed meanwhile, abort() throws DMCE_E_UNSUPPORTED and holds on, and the destructor releases
// what was stored until then, so that others do not wait for it. To end one that has ended, or was
// moved from, is nothing to do.
template <class T>
class write_guard : public detail::held<T> {
    static_assert(!std::is_const<T>::value, "a read_guard is for that");

public:
    write_guard(ptr<T> first, std::size_t count, std::uint32_t flags = 0)
        : detail::held<T>(first.session(), count), exceptions_(std::uncaught_exceptions())
    {
        void *pointer = nullptr;
        const std::size_t bytes = detail::pointed_bytes<T>(count);
        detail::check(dmce_write_ptr(first.session(), first.addr(), bytes, flags, &pointer),
                      "dmce_write_ptr");
        this->data_ = static_cast<T *>(pointer);
    }

    write_guard(const session &session, dmce_addr_t addr, std::size_t count,
                std::uint32_t flags = 0)
        : write_guard(ptr<T>(session.handle(), addr), count, flags)
    {
    }

    // The new owner judges by the exceptions that pass where it is.
    write_guard(write_guard &&other) noexcept
        : detail::held<T>(std::move(other)), exceptions_(std::uncaught_exceptions())
    {
    }

    write_guard &operator=(write_guard &&other) noexcept
    {
        if (this == &other)
            return *this;
        // What this held was finished as its destructor would finish it, judged by its own count.
        end_it();
        this->exchange(other);
        exceptions_ = std::uncaught_exceptions();
        return *this;
    }

    ~write_guard() { end_it(); }

    void release() { detail::check(release_it(), "dmce_release_ptr"); }
    void abort() { detail::check(abort_it(), "dmce_abort_ptr"); }

private:
    void end_it() noexcept
    {
        if (std::uncaught_exceptions() > exceptions_)
            static_cast<void>(abort_it());
        static_cast<void>(release_it());
    }

    dmce_status_t release_it() noexcept
    {
        if (this->data_ == nullptr)
            return DMCE_OK;
        return this->ended(dmce_release_ptr(this->session_, this->data_));
    }

    dmce_status_t abort_it() noexcept
    {
        if (this->data_ == nullptr)
            return DMCE_OK;
        return this->ended(dmce_abort_ptr(this->session_, this->data_), false);
    }

    int exceptions_;
};

} // namespace dmce

#endif
