/*
 * Words, bytes and regions of DMCE memory, in the terms of this extension.
 */
#include "sqlite_vfs.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static _Thread_local char complaint[256];

/* Says why something is not done, in SQLite's log and to who asks for the last error. */
int refuse(int code, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(complaint, sizeof complaint, format, values);
    va_end(values);
    sqlite3_log(code, "dmce: %s", complaint);
    return code;
}

/* What this thread was refused last. */
const char *last_complaint(void)
{
    return complaint;
}

int code_of(dmce_status_t status, int otherwise)
{
    switch (status) {
    case DMCE_OK:
        return SQLITE_OK;
    case DMCE_E_NOSPACE:
    case DMCE_E_QUOTA:
        return refuse(SQLITE_FULL, "%s", dmce_last_error());
    case DMCE_E_NOMEM:
        return SQLITE_NOMEM;
    case DMCE_E_BUSY:
        return SQLITE_BUSY;
    default:
        return refuse(otherwise, "%s", dmce_last_error());
    }
}

dmce_status_t load(dmce_addr_t word, uint64_t *value)
{
    return dmce_read(self.session, word, value, sizeof *value);
}

dmce_status_t store_word(dmce_addr_t word, uint64_t value)
{
    return dmce_write(self.session, word, &value, sizeof value);
}

/* Makes a word `desired` if it is `expected`; false if it was something else. */
bool exchange(dmce_addr_t word, uint64_t expected, uint64_t desired, dmce_status_t *status)
{
    uint64_t seen = 0;
    *status = dmce_cas64(self.session, word, expected, desired, &seen);
    return *status == DMCE_OK && seen == expected;
}

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The name of a region for a file; false if it is too long. */
bool region_name(char *name, size_t room, const char *file)
{
    size_t used = 0;
    for (const char *from = file; *from != '\0'; from++) {
        bool plain = *from != '/' && *from != '%' && (unsigned char)*from >= ' ' &&
                     (from != file || *from != '.');
        int wrote = snprintf(name + used, room - used, plain ? "%c" : "%%%02x",
                             (unsigned char)*from);
        used += (size_t)wrote;
        if (used >= room)
            return false;
    }
    return used > 0;
}

/* Opens a region of this program's volume, made if `bytes` is not 0 and it is not there. */
dmce_status_t region_open(const char *name, uint64_t bytes, dmce_region_t **region,
                          dmce_addr_t *addr)
{
    dmce_status_t status;
    do {
        status = dmce_region_open(self.session, self.volume, name, DMCE_READ | DMCE_WRITE, region);
        if (status != DMCE_E_NOTFOUND || bytes == 0)
            break;
        status = dmce_region_create(self.session, self.volume, name, bytes, NULL);
        /* Another program may have made it just now, and a third one may delete it. */
    } while (status == DMCE_OK || status == DMCE_E_EXISTS);
    if (status != DMCE_OK)
        return status;
    status = dmce_region_addr(*region, 0, addr);
    if (status != DMCE_OK)
        dmce_region_close(*region);
    return status;
}
