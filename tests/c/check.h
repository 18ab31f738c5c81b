/*
 * Checks for the C tests: one that fails says where, what, and the library's own reason, and ends
 * the program with status 1.
 */
#ifndef DMCE_TESTS_CHECK_H
#define DMCE_TESTS_CHECK_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* Whatever failed, the text of the failure begins with the meaning of its status. */
static inline void check_status(dmce_status_t wanted, dmce_status_t got, const char *text,
                                const char *file, int line)
{
    const char *meaning = dmce_strerror(got);

    if (got == wanted) {
        if (got != DMCE_OK)
            check(strncmp(dmce_last_error(), meaning, strlen(meaning)) == 0, text, file, line);
        return;
    }
    fprintf(stderr, "%s:%d: %s: got '%s' (%s), wanted '%s'\n", file, line, text,
            meaning, dmce_last_error(), dmce_strerror(wanted));
    exit(1);
}

#endif
