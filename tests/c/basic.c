/* Allocating, reading, writing, copying, mapping: what every program does. */
#include <stdint.h>
#include <string.h>

#include "check.h"

enum { KIB = 1024, MIB = 1024 * 1024 };

/* Bytes that tell where they belong. */
static void pattern(unsigned char *bytes, size_t count, uint64_t seed)
{
    for (size_t i = 0; i < count; i++)
        bytes[i] = (unsigned char)((seed + i) * 2654435761u >> 13);
}

static dmce_session_t *opened(void)
{
    dmce_session_t *session;
    dmce_options_t options;
    dmce_options_init(&options);
    options.name = "basic";
    OK(dmce_open(&options, &session));
    return session;
}

static void bytes_of_every_size_come_back(dmce_session_t *session)
{
    static const size_t sizes[] = {1, 7, 16, 64, 100, 4095, 4096, 4097, 70 * KIB, 3 * MIB + 5};
    enum { COUNT = sizeof sizes / sizeof *sizes };
    dmce_addr_t addrs[COUNT];
    unsigned char *wanted = malloc(4 * MIB), *got = malloc(4 * MIB);
    CHECK(wanted != NULL && got != NULL);
    for (size_t i = 0; i < COUNT; i++) {
        OK(dmce_malloc(session, sizes[i], &addrs[i]));
        CHECK(addrs[i] != 0 && addrs[i] % 16 == 0);
        CHECK(sizes[i] < 4096 || addrs[i] % 4096 == 0);
        pattern(wanted, sizes[i], addrs[i]);
        OK(dmce_write(session, addrs[i], wanted, sizes[i]));
    }
    for (size_t i = 0; i < COUNT; i++) {
        uint64_t usable = 0;
        int order = 9;
        OK(dmce_usable_size(session, addrs[i], &usable));
        CHECK(usable >= sizes[i]);
        pattern(wanted, sizes[i], addrs[i]);
        OK(dmce_read(session, addrs[i], got, sizes[i]));
        CHECK(memcmp(wanted, got, sizes[i]) == 0);
        OK(dmce_compare(session, addrs[i], wanted, sizes[i], &order));
        CHECK(order == 0);
    }
    for (size_t i = 0; i < COUNT; i++)
        OK(dmce_free(session, addrs[i]));
    free(wanted);
    free(got);
}

static void addresses_are_numbers_inside_an_allocation(dmce_session_t *session)
{
    dmce_addr_t addr;
    char text[8] = "";
    OK(dmce_malloc(session, 100 * KIB, &addr));
    for (unsigned i = 0; i < 100; i++)
        OK(dmce_write(session, addr + i * KIB + 1, "abc", 4));
    for (unsigned i = 0; i < 100; i++) {
        OK(dmce_read(session, addr + i * KIB + 2, text, 3));
        CHECK(strcmp(text, "bc") == 0);
    }
    OK(dmce_free(session, addr));
}

static void zeroed_memory_is_zero_also_when_it_was_used(dmce_session_t *session)
{
    static const unsigned char zeros[1000];
    for (int round = 0; round < 3; round++) {
        dmce_addr_t addr;
        int order = 9;
        OK(dmce_calloc(session, 10, 100, &addr));
        OK(dmce_compare(session, addr, zeros, sizeof zeros, &order));
        CHECK(order == 0);
        OK(dmce_fill(session, addr, 0xabcd, 1000));
        OK(dmce_free(session, addr));
    }
}

static void filling_and_copying_do_what_memset_and_memmove_do(dmce_session_t *session)
{
    unsigned char wanted[200], got[200];
    dmce_addr_t addr;
    int order;
    pattern(wanted, sizeof wanted, 5);
    OK(dmce_malloc(session, sizeof wanted, &addr));
    OK(dmce_write(session, addr, wanted, sizeof wanted));
    memmove(wanted + 10, wanted, 150);
    OK(dmce_copy(session, addr + 10, addr, 150));
    memmove(wanted, wanted + 7, 150);
    OK(dmce_copy(session, addr, addr + 7, 150));
    memset(wanted + 90, 0xcd, 20);
    OK(dmce_fill(session, addr + 90, 0xcd, 20));
    OK(dmce_read(session, addr, got, sizeof got));
    CHECK(memcmp(wanted, got, sizeof got) == 0);
    wanted[50]++;
    OK(dmce_compare(session, addr, wanted, sizeof wanted, &order));
    CHECK(order == (got[50] < wanted[50] ? -1 : 1));
    OK(dmce_free(session, addr));
}

static void growing_keeps_the_bytes(dmce_session_t *session)
{
    unsigned char wanted[5000], got[5000];
    dmce_addr_t addr;
    pattern(wanted, sizeof wanted, 9);
    OK(dmce_realloc(session, 0, 10, &addr));
    for (size_t bytes = 10; bytes < sizeof wanted; bytes *= 3) {
        OK(dmce_write(session, addr, wanted, bytes));
        OK(dmce_realloc(session, addr, bytes * 3, &addr));
        OK(dmce_read(session, addr, got, bytes));
        CHECK(memcmp(wanted, got, bytes) == 0);
    }
    OK(dmce_realloc(session, addr, 20, &addr));
    OK(dmce_read(session, addr, got, 20));
    CHECK(memcmp(wanted, got, 20) == 0);
    OK(dmce_free(session, addr));
}

static void a_mapping_and_the_calls_see_the_same_bytes(dmce_session_t *session)
{
    dmce_addr_t addr;
    void *pointer, *again;
    char text[8];
    OK(dmce_malloc(session, 64 * KIB, &addr));
    OK(dmce_map(session, addr + 100, 10000, DMCE_READ | DMCE_WRITE, &pointer));
    strcpy((char *)pointer, "mapped");
    OK(dmce_read(session, addr + 100, text, 7));
    CHECK(strcmp(text, "mapped") == 0);
    OK(dmce_write(session, addr + 100, "called", 7));
    CHECK(strcmp((const char *)pointer, "called") == 0);
    OK(dmce_map(session, addr, 200, DMCE_READ, &again));
    CHECK(strcmp((const char *)again + 100, "called") == 0);
    IS(DMCE_E_BUSY, dmce_free(session, addr));
    OK(dmce_unmap(session, again));
    OK(dmce_unmap(session, pointer));
    /* No processor maps memory for writing alone. */
    pointer = NULL;
    IS(DMCE_E_INVALID, dmce_map(session, addr, 200, DMCE_WRITE, &pointer));
    CHECK(pointer == NULL);
    OK(dmce_free(session, addr));
}

static void the_session_counts_what_it_holds(dmce_session_t *session)
{
    dmce_stat_t before, after;
    dmce_addr_t addr;
    before.size = after.size = sizeof before;
    OK(dmce_stat(session, &before));
    CHECK(before.server_bits + before.block_bits + before.cell_bits == 64);
    OK(dmce_malloc(session, MIB, &addr));
    OK(dmce_stat(session, &after));
    CHECK(after.allocated_bytes >= before.allocated_bytes + MIB);
    CHECK(after.committed_bytes >= after.allocated_bytes && after.blocks >= 1);
    OK(dmce_free(session, addr));
    OK(dmce_stat(session, &after));
    CHECK(after.allocated_bytes == before.allocated_bytes);
}

int main(void)
{
    dmce_session_t *session = opened();
    bytes_of_every_size_come_back(session);
    addresses_are_numbers_inside_an_allocation(session);
    zeroed_memory_is_zero_also_when_it_was_used(session);
    filling_and_copying_do_what_memset_and_memmove_do(session);
    growing_keeps_the_bytes(session);
    a_mapping_and_the_calls_see_the_same_bytes(session);
    the_session_counts_what_it_holds(session);
    OK(dmce_flush(session));
    OK(dmce_close(session));
    return 0;
}
