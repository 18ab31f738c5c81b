// dmce::session: a connection that closes itself, and dmce::options for it.
#ifndef LIBDMCE_SESSION_HPP
#define LIBDMCE_SESSION_HPP

#include "error.hpp"
#include "ptr.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace dmce {

// How to open a session; what is not said has its default. The comments of dmce_options_t hold.
class options {
public:
    options() { dmce_options_init(&raw_); }

    options &reserve_bytes(std::uint64_t bytes) { return with(raw_.reserve_bytes, bytes); }
    options &window_budget(std::uint64_t bytes) { return with(raw_.window_budget, bytes); }
    options &copies(std::uint32_t count) { return with(raw_.copies, count); }
    options &timeout_ms(std::uint32_t ms) { return with(raw_.timeout_ms, ms); }
    options &cache(std::uint32_t mode, std::uint64_t bytes)
    {
        raw_.cache_mode = mode;
        return with(raw_.cache_bytes, bytes);
    }

    options &accept_partial() { return flag(DMCE_ACCEPT_PARTIAL); }
    options &spawn() { return flag(DMCE_SPAWN); }
    options &message_path() { return flag(DMCE_MESSAGE_PATH); }
    options &verify() { return flag(DMCE_VERIFY); }
    options &no_thread() { return flag(DMCE_NO_THREAD); }

    options &socket(std::string path)
    {
        socket_ = std::move(path);
        return *this;
    }

    options &name(std::string name)
    {
        name_ = std::move(name);
        return *this;
    }

    // For dmce_open, as long as this lives and is not changed.
    dmce_options_t raw() const noexcept
    {
        dmce_options_t raw = raw_;
        raw.socket = socket_.empty() ? nullptr : socket_.c_str();
        raw.name = name_.empty() ? nullptr : name_.c_str();
        return raw;
    }

private:
    template <class Field, class Value>
    options &with(Field &field, Value value)
    {
        field = value;
        return *this;
    }

    options &flag(std::uint32_t flag)
    {
        raw_.flags |= flag;
        return *this;
    }

    dmce_options_t raw_;
    std::string socket_;
    std::string name_;
};

// A session. It can be moved and not copied; the one that owns the handle closes it at its end,
// which frees all that was allocated by it. May be used by several threads, as the handle may.
class session {
public:
    session() : session(options()) {}

    explicit session(const options &options) : owns_(true)
    {
        const dmce_options_t raw = options.raw();
        detail::check(dmce_open(&raw, &handle_), "dmce_open");
    }

    // Takes over a handle that dmce_open gave.
    static session attach(dmce_session_t *handle) noexcept { return session(handle, true); }

    // Uses a handle that somebody else closes, later than this ends.
    static session borrow(dmce_session_t *handle) noexcept { return session(handle, false); }

    session(session &&other) noexcept
        : handle_(std::exchange(other.handle_, nullptr)), owns_(std::exchange(other.owns_, false))
    {
    }

    session &operator=(session &&other) noexcept
    {
        session moved(std::move(other));
        std::swap(handle_, moved.handle_);
        std::swap(owns_, moved.owns_);
        return *this;
    }

    session(const session &) = delete;
    session &operator=(const session &) = delete;

    ~session()
    {
        // Who wants to hear of an error calls close().
        if (owns_ && handle_ != nullptr)
            static_cast<void>(dmce_close(handle_));
    }

    // Ends the session now, if this owns it. The session is closed in any case, and this is empty.
    void close()
    {
        dmce_session_t *handle = std::exchange(handle_, nullptr);
        if (std::exchange(owns_, false) && handle != nullptr)
            detail::check(dmce_close(handle), "dmce_close");
    }

    // Gives the handle to the caller, who closes it.
    dmce_session_t *detach() noexcept
    {
        owns_ = false;
        return std::exchange(handle_, nullptr);
    }

    // For the calls of libdmce.h; null if this was moved from or closed.
    dmce_session_t *handle() const noexcept { return handle_; }
    explicit operator bool() const noexcept { return handle_ != nullptr; }

    // Bytes.

    dmce_addr_t malloc(std::uint64_t bytes) const
    {
        dmce_addr_t addr = 0;
        detail::check(dmce_malloc(handle_, bytes, &addr), "dmce_malloc");
        return addr;
    }

    dmce_addr_t malloc(std::uint64_t bytes, const dmce_alloc_options_t &options) const
    {
        dmce_addr_t addr = 0;
        detail::check(dmce_malloc_ex(handle_, bytes, &options, &addr), "dmce_malloc_ex");
        return addr;
    }

    dmce_addr_t calloc(std::uint64_t count, std::uint64_t bytes) const
    {
        dmce_addr_t addr = 0;
        detail::check(dmce_calloc(handle_, count, bytes, &addr), "dmce_calloc");
        return addr;
    }

    dmce_addr_t realloc(dmce_addr_t old, std::uint64_t bytes) const
    {
        dmce_addr_t addr = 0;
        detail::check(dmce_realloc(handle_, old, bytes, &addr), "dmce_realloc");
        return addr;
    }

    void free(dmce_addr_t addr) const { detail::check(dmce_free(handle_, addr), "dmce_free"); }

    void read(dmce_addr_t from, void *buffer, std::size_t bytes) const
    {
        detail::check(dmce_read(handle_, from, buffer, bytes), "dmce_read");
    }

    void write(dmce_addr_t to, const void *buffer, std::size_t bytes) const
    {
        detail::check(dmce_write(handle_, to, buffer, bytes), "dmce_write");
    }

    void copy(dmce_addr_t to, dmce_addr_t from, std::uint64_t bytes) const
    {
        detail::check(dmce_copy(handle_, to, from, bytes), "dmce_copy");
    }

    void fill(dmce_addr_t to, unsigned char byte, std::uint64_t bytes) const
    {
        detail::check(dmce_fill(handle_, to, byte, bytes), "dmce_fill");
    }

    // Brings to the memory what a cache with write-back still holds.
    void flush() const { detail::check(dmce_flush(handle_), "dmce_flush"); }

    void poll() const { detail::check(dmce_poll(handle_), "dmce_poll"); }

    dmce_stat_t stat() const
    {
        dmce_stat_t stat = {};
        stat.size = sizeof stat;
        detail::check(dmce_stat(handle_, &stat), "dmce_stat");
        return stat;
    }

    // Elements.

    // Memory for so many, which may hold older bytes of this session; free() takes it back.
    template <class T>
    ptr<T> allocate(std::uint64_t count) const
    {
        static_assert(alignof(T) <= detail::page_bytes, "no more than a page can be promised");
        if (count > ptr<T>::count_max)
            throw std::length_error("dmce::session::allocate");
        const std::uint64_t bytes = count * sizeof(T);
        if constexpr (alignof(T) <= 16)
            return ptr<T>(handle_, malloc(bytes));
        dmce_alloc_options_t options;
        dmce_alloc_options_init(&options);
        options.align = static_cast<std::uint32_t>(alignof(T));
        return ptr<T>(handle_, malloc(bytes, options));
    }

    template <class T>
    void free(ptr<T> pointer) const
    {
        free(pointer.addr());
    }

    // A pointer to what is at an address.
    template <class T>
    ptr<T> at(dmce_addr_t addr) const noexcept
    {
        return ptr<T>(handle_, addr);
    }

private:
    session(dmce_session_t *handle, bool owns) noexcept : handle_(handle), owns_(owns) {}

    dmce_session_t *handle_ = nullptr;
    bool owns_;
};

} // namespace dmce

#endif
