// libdmce in C++17: memory of other processes of the host, with sessions that close themselves,
// pointers, vectors and guards. Header only, over libdmce.h; link with -ldmce.
//
//     dmce::session session(dmce::options().spawn());
//     dmce::vector<std::uint64_t> squares(session);
//     for (std::uint64_t i = 0; i < 1000; ++i)
//         squares.push_back(i * i);
//     std::sort(squares.begin(), squares.end(), std::greater<>());
//
//   dmce/error.hpp            dmce::error: what a call that failed throws
//   dmce/session.hpp          dmce::session, dmce::options
//   dmce/region.hpp           dmce::region: named memory that outlives sessions
//   dmce/ptr.hpp              dmce::ptr<T>: a pointer over a 64-bit address, in both widths
//   dmce/guards.hpp           dmce::mapped<T>, dmce::read_guard<T>, dmce::write_guard<T>
//   dmce/vector.hpp           dmce::vector<T>, more than a 32-bit program can address
//   dmce/memory_resource.hpp  dmce::memory_resource: std::pmr over transparent memory
//
// THE CONTRACT OF ALL OF IT
//
// Elements. T is trivially copyable: its bytes are the value, in every process. Processes of both
// widths see the same T if its layout is the same in both, so fixed-width fields and no pointers.
//
// Failures. What fails throws dmce::error, which has the status and the text of dmce_last_error;
// sizes beyond max_size() throw std::length_error, at() throws std::out_of_range, and a
// memory_resource std::bad_alloc. Destructors swallow errors: call close(), flush(), unmap() or
// release() where you want to hear of them.
//
// Memory with several copies. A store by a plain pointer is on one copy alone, until the mapping
// is given up: by mapped<T>::unmap(), by a vector's flush(), or by their destructors. If the daemon
// that holds that copy loses its memory before, the stores since are lost, and nobody is told but
// by DMCE_EVENT_COPY_LOST. A store through dmce::ptr<T> is on every copy when it is done.
//
// Lifetime. Pointers, vectors and guards know the handle of their session and do not own it. Of a
// session that is closed they throw DMCE_E_CLOSED; a plain pointer into its memory dangles.
#ifndef LIBDMCE_HPP
#define LIBDMCE_HPP

#include "libdmce.h"

#include "dmce/error.hpp"
#include "dmce/guards.hpp"
#include "dmce/memory_resource.hpp"
#include "dmce/ptr.hpp"
#include "dmce/region.hpp"
#include "dmce/session.hpp"
#include "dmce/vector.hpp"

#endif
