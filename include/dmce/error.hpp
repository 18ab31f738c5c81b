// dmce::error: what is thrown when a call of libdmce.h fails.
#ifndef LIBDMCE_ERROR_HPP
#define LIBDMCE_ERROR_HPP

#include "../libdmce.h"

#include <stdexcept>
#include <string>

namespace dmce {

// A call that failed. what() names the call, and then says what dmce_last_error said:
// "dmce_malloc: no space left: ...".
class error : public std::runtime_error {
public:
    // The last call of this thread, which failed.
    error(dmce_status_t status, const char *call) : error(status, call, dmce_last_error()) {}

    error(dmce_status_t status, const char *call, const std::string &reason)
        : std::runtime_error(std::string(call) + ": " + reason), status_(status)
    {
    }

    // DMCE_E_..
    dmce_status_t status() const noexcept { return status_; }

private:
    dmce_status_t status_;
};

namespace detail {

inline void check(dmce_status_t status, const char *call)
{
    if (status != DMCE_OK)
        throw error(status, call);
}

} // namespace detail
} // namespace dmce

#endif
