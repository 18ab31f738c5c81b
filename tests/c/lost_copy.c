/*
 * A plain pointer while the copy beneath it goes: fills memory of two copies, says so, and goes on
 * by the pointer when it is told that a daemon is gone with its memory.
 */
#include <stdio.h>
#include <string.h>

#include "check.h"

#define BYTES (40u << 20)

static unsigned char byte_at(size_t place, unsigned round)
{
    return (unsigned char)(place * 7 + place / 4096 + round);
}

static void fill(unsigned char *memory, unsigned round)
{
    for (size_t place = 0; place < BYTES; place += 509)
        memory[place] = byte_at(place, round);
}

static void verify(const unsigned char *memory, unsigned round)
{
    for (size_t place = 0; place < BYTES; place += 509)
        CHECK(memory[place] == byte_at(place, round));
}

int main(void)
{
    dmce_session_t *session;
    dmce_alloc_options_t options;
    dmce_addr_t addr;
    unsigned char *memory, byte;
    OK(dmce_open(NULL, &session));
    dmce_alloc_options_init(&options);
    options.copies = 2;
    OK(dmce_vmalloc(session, BYTES, &options, (void **)&memory));
    fill(memory, 1);
    OK(dmce_sync(session, memory, BYTES));
    CHECK(puts("ready") >= 0 && fflush(stdout) == 0);
    CHECK(getchar() == 'x');

    /* The first access to each block meets what is gone, or the other copy at once. */
    verify(memory, 1);
    fill(memory, 2);
    verify(memory, 2);
    OK(dmce_sync(session, memory, BYTES));
    OK(dmce_addr_of(session, memory, &addr));
    for (size_t place = 0; place < BYTES; place += 509 * 509) {
        OK(dmce_read(session, addr + place, &byte, 1));
        CHECK(byte == byte_at(place, 2));
    }
    verify(memory, 2);
    OK(dmce_vfree(session, memory));
    OK(dmce_close(session));
    return 0;
}
