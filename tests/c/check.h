/*
 * Checks for the C tests: one that fails says where, what, and the library's own reason, and ends
 * the program with status 1.
 */
#ifndef DMCE_TESTS_CHECK_H
#define DMCE_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#include "libdmce.h"

#define CHECK(condition) check((condition) != 0, #condition, __FILE__, __LINE__)
#define IS(wanted, call) check_status((wanted), (call), #call, __FILE__, __LINE__)
#define OK(call) IS(DMCE_OK, call)

static inline void check(int holds, const char *text, const char *file, int line)
{
    if (holds)
        return;
    fprintf(stderr, "%s:%d: does not hold: %s (last error: %s)\n", file, line, text,
            dmce_last_error());
    exit(1);
}

static inline void check_status(dmce_status_t wanted, dmce_status_t got, const char *text,
                                const char *file, int line)
{
    if (got == wanted)
        return;
    fprintf(stderr, "%s:%d: %s: got '%s' (%s), wanted '%s'\n", file, line, text,
            dmce_strerror(got), dmce_last_error(), dmce_strerror(wanted));
    exit(1);
}

#endif
