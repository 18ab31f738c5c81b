// dmce::region: named memory that outlives sessions.
#ifndef LIBDMCE_REGION_HPP
#define LIBDMCE_REGION_HPP

#include "error.hpp"
#include "ptr.hpp"
#include "session.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace dmce {

// An open region, closed at the end of its owner. It can be moved and not copied. Elements in it
// are reached as all others are: by ptr<T>, mapped<T> and the guards.
class region {
public:
    // `prot` is DMCE_READ, DMCE_WRITE, or both.
    region(const session &session, const std::string &volume, const std::string &name,
           std::uint32_t prot = DMCE_READ | DMCE_WRITE)
        : session_(session.handle())
    {
        detail::check(dmce_region_open(session_, volume.c_str(), name.c_str(), prot, &handle_),
                      "dmce_region_open");
    }

    region(region &&other) noexcept
        : session_(other.session_), handle_(std::exchange(other.handle_, nullptr))
    {
    }

    region &operator=(region &&other) noexcept
    {
        region moved(std::move(other));
        std::swap(session_, moved.session_);
        std::swap(handle_, moved.handle_);
        return *this;
    }

    region(const region &) = delete;
    region &operator=(const region &) = delete;

    ~region()
    {
        if (handle_ != nullptr)
            static_cast<void>(dmce_region_close(handle_));
    }

    // Makes one, all zero; it stays until it is removed.
    static void create(const session &session, const std::string &volume, const std::string &name,
                       std::uint64_t bytes, const dmce_region_options_t *options = nullptr)
    {
        detail::check(dmce_region_create(session.handle(), volume.c_str(), name.c_str(), bytes,
                                         options),
                      "dmce_region_create");
    }

    static void remove(const session &session, const std::string &volume, const std::string &name)
    {
        detail::check(dmce_region_delete(session.handle(), volume.c_str(), name.c_str()),
                      "dmce_region_delete");
    }

    // What fails by DMCE_E_BUSY has closed nothing.
    void close()
    {
        if (handle_ == nullptr)
            return;
        const dmce_status_t status = dmce_region_close(handle_);
        if (status != DMCE_E_BUSY)
            handle_ = nullptr;
        detail::check(status, "dmce_region_close");
    }

    dmce_region_t *handle() const noexcept { return handle_; }

    dmce_region_info_t info() const
    {
        dmce_region_info_t info = {};
        info.size = sizeof info;
        detail::check(dmce_region_info(handle_, &info), "dmce_region_info");
        return info;
    }

    // What lies at a pointer into the region: base_pointer is its first byte, 0 if none was chosen.
    template <class T>
    ptr<T> at(std::uint64_t pointer) const
    {
        dmce_addr_t addr = 0;
        detail::check(dmce_region_addr(handle_, pointer, &addr), "dmce_region_addr");
        return ptr<T>(session_, addr);
    }

    // `mirror` says of which half, as for dmce_region_read and dmce_region_write.
    void read(std::uint64_t pointer, void *buffer, std::size_t bytes,
              std::uint32_t mirror = DMCE_PM_ANY) const
    {
        detail::check(dmce_region_read(handle_, pointer, buffer, bytes, mirror),
                      "dmce_region_read");
    }

    void write(std::uint64_t pointer, const void *buffer, std::size_t bytes,
               std::uint32_t mirror = DMCE_PM_BOTH) const
    {
        detail::check(dmce_region_write(handle_, pointer, buffer, bytes, mirror),
                      "dmce_region_write");
    }

private:
    dmce_session_t *session_;
    dmce_region_t *handle_ = nullptr;
};

} // namespace dmce

#endif
