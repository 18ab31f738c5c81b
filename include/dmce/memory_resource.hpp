// dmce::memory_resource: std::pmr over transparent memory, so that the containers of the standard
// library live in the memory of daemons.
#ifndef LIBDMCE_MEMORY_RESOURCE_HPP
#define LIBDMCE_MEMORY_RESOURCE_HPP

// Some standard libraries have no <memory_resource> yet; all else is there without.
#if __has_include(<memory_resource>)

#include "session.hpp"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory_resource>
#include <mutex>
#include <new>
#include <set>

namespace dmce {
namespace detail {

// Memory by dmce_vmalloc, each a round trip to the broker and a block of its own: for few and
// large ones. What is not freed goes with this.
class transparent_memory : public std::pmr::memory_resource {
public:
    explicit transparent_memory(dmce_session_t *session) noexcept : session_(session) {}
    transparent_memory(const transparent_memory &) = delete;
    transparent_memory &operator=(const transparent_memory &) = delete;

    ~transparent_memory() override
    {
        for (void *pointer : held_)
            static_cast<void>(dmce_vfree(session_, pointer));
    }

    dmce_session_t *session() const noexcept { return session_; }

private:
    void *do_allocate(std::size_t bytes, std::size_t align) override
    {
        void *pointer = nullptr;
        if (dmce_vmalloc(session_, std::max<std::size_t>(bytes, 1), nullptr, &pointer) != DMCE_OK)
            throw std::bad_alloc();
        try {
            if (reinterpret_cast<std::uintptr_t>(pointer) % align != 0)
                throw std::bad_alloc();
            const std::lock_guard<std::mutex> guard(mutex_);
            held_.insert(pointer);
        } catch (...) {
            static_cast<void>(dmce_vfree(session_, pointer));
            throw;
        }
        return pointer;
    }

    void do_deallocate(void *pointer, std::size_t, std::size_t) override
    {
        const std::lock_guard<std::mutex> guard(mutex_);
        // What something is mapped into goes with this.
        if (dmce_vfree(session_, pointer) == DMCE_OK)
            held_.erase(pointer);
    }

    bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override
    {
        return this == &other;
    }

    dmce_session_t *session_;
    std::mutex mutex_;
    std::set<void *> held_;
};

// Cuts small pieces off chunks that grow. Pieces are not taken back one by one: pools above it use
// them again.
class chunked_memory : public std::pmr::memory_resource {
public:
    static constexpr std::size_t chunk_bytes_min = std::size_t{1} << 20;
    static constexpr std::size_t chunk_bytes_max = std::size_t{64} << 20;

    explicit chunked_memory(std::pmr::memory_resource &source) noexcept : source_(source) {}

private:
    void *do_allocate(std::size_t bytes, std::size_t align) override
    {
        const std::lock_guard<std::mutex> guard(mutex_);
        if (void *piece = cut(bytes, align))
            return piece;
        // A chunk begins at a page; pools want large blocks aligned by more, and then some is lost.
        const std::size_t lost = align > page_bytes ? align - page_bytes : 0;
        if (bytes > std::numeric_limits<std::size_t>::max() - lost)
            throw std::bad_alloc();
        const std::size_t chunk = std::max(bytes + lost, next_bytes_);
        next_ = static_cast<unsigned char *>(source_.allocate(chunk, page_bytes));
        left_ = chunk;
        next_bytes_ = std::min(next_bytes_ * 2, chunk_bytes_max);
        return cut(bytes, align);
    }

    void *cut(std::size_t bytes, std::size_t align) noexcept
    {
        const std::size_t skip = (align - reinterpret_cast<std::uintptr_t>(next_) % align) % align;
        if (next_ == nullptr || left_ < skip || left_ - skip < bytes)
            return nullptr;
        void *piece = next_ + skip;
        next_ += skip + bytes;
        left_ -= skip + bytes;
        return piece;
    }

    void do_deallocate(void *, std::size_t, std::size_t) override {}

    bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override
    {
        return this == &other;
    }

    std::pmr::memory_resource &source_;
    std::mutex mutex_;
    unsigned char *next_ = nullptr;
    std::size_t left_ = 0;
    std::size_t next_bytes_ = chunk_bytes_min;
};

} // namespace detail

// A resource for std::pmr containers, for several threads. Throws std::bad_alloc where dmce_vmalloc
// refuses, also when it is made, as pools may allocate then; dmce_last_error says why.
//
// Up to 256 KiB it allocates from pools, over chunks of transparent memory that grow from 1 MiB to
// 64 MiB each; larger ones are transparent memory of their own, and go back when they are freed. Of
// those, chunks and pointers of dmce_map a session has 512, and each begins at a multiple of 2 MiB.
// The chunks go back when this is destroyed, with all that lies in them: it must outlive its
// containers, and the session it. The containers' own pointers are plain ones, so a 32-bit program
// holds no more by it than it can address.
//
// Stores by plain pointers reach the other copies of the memory when it is synced: sync() does that
// for a range, and nothing else does it for you.
class memory_resource : public std::pmr::memory_resource {
public:
    static constexpr std::size_t pooled_bytes_max = std::size_t{256} << 10;

    explicit memory_resource(const session &session)
        : transparent_(session.handle()), chunks_(transparent_), pools_(limits(), &chunks_)
    {
    }

    memory_resource(const memory_resource &) = delete;
    memory_resource &operator=(const memory_resource &) = delete;

    // Brings what was stored in a range of this memory to every copy.
    void sync(void *pointer, std::uint64_t bytes) const
    {
        detail::check(dmce_sync(transparent_.session(), pointer, bytes), "dmce_sync");
    }

private:
    static std::pmr::pool_options limits()
    {
        std::pmr::pool_options limits;
        limits.largest_required_pool_block = pooled_bytes_max;
        return limits;
    }

    // Pools may be limited to less than they were asked for; what they would not use again has to
    // be freed by itself.
    bool is_pooled(std::size_t bytes, std::size_t align) const
    {
        const std::size_t pooled = pools_.options().largest_required_pool_block;
        return bytes <= std::min(pooled, pooled_bytes_max) && align <= detail::page_bytes;
    }

    void *do_allocate(std::size_t bytes, std::size_t align) override
    {
        if (is_pooled(bytes, align))
            return pools_.allocate(bytes, align);
        return transparent_.allocate(bytes, align);
    }

    void do_deallocate(void *pointer, std::size_t bytes, std::size_t align) override
    {
        if (is_pooled(bytes, align))
            pools_.deallocate(pointer, bytes, align);
        else
            transparent_.deallocate(pointer, bytes, align);
    }

    bool do_is_equal(const std::pmr::memory_resource &other) const noexcept override
    {
        return this == &other;
    }

    detail::transparent_memory transparent_;
    detail::chunked_memory chunks_;
    std::pmr::synchronized_pool_resource pools_;
};

} // namespace dmce

#endif
#endif
