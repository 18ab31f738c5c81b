/*
 * Kills the program that it is loaded into at one of its calls that change DMCE memory:
 *
 *     DMCE_TEST_KILL_AT=N LD_PRELOAD=./kill_at.so PROGRAM
 *
 * The Nth is meant, counted from the one that creates the region of a super-journal; it is not
 * made.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "libdmce.h"

/* ISO C has no cast between pointers to data and to functions. */
#define NEXT(function, name) (*(void **)&(function) = dlsym(RTLD_NEXT, name))

static bool counting;

/* One call more. */
static void step(void)
{
    static long done;
    const char *at = getenv("DMCE_TEST_KILL_AT");
    if (counting && at != NULL && ++done == atol(at))
        raise(SIGKILL);
}

dmce_status_t dmce_region_create(dmce_session_t *session, const char *volume, const char *name,
                                 uint64_t region_size, const dmce_region_options_t *options)
{
    dmce_status_t (*next)(dmce_session_t *, const char *, const char *, uint64_t,
                          const dmce_region_options_t *);
    counting |= strstr(name, "-mj") != NULL;
    step();
    NEXT(next, "dmce_region_create");
    return next(session, volume, name, region_size, options);
}

dmce_status_t dmce_region_delete(dmce_session_t *session, const char *volume, const char *name)
{
    dmce_status_t (*next)(dmce_session_t *, const char *, const char *);
    step();
    NEXT(next, "dmce_region_delete");
    return next(session, volume, name);
}

dmce_status_t dmce_write(dmce_session_t *session, dmce_addr_t to, const void *buffer, size_t bytes)
{
    dmce_status_t (*next)(dmce_session_t *, dmce_addr_t, const void *, size_t);
    step();
    NEXT(next, "dmce_write");
    return next(session, to, buffer, bytes);
}

dmce_status_t dmce_cas64(dmce_session_t *session, dmce_addr_t at, uint64_t expected,
                         uint64_t desired, uint64_t *seen)
{
    dmce_status_t (*next)(dmce_session_t *, dmce_addr_t, uint64_t, uint64_t, uint64_t *);
    step();
    NEXT(next, "dmce_cas64");
    return next(session, at, expected, desired, seen);
}
