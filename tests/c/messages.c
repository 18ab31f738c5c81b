/* A session that maps nothing (DMCE_MESSAGE_PATH): the same calls, the same answers. */
#include <string.h>

#include "check.h"

#define BYTES 300000 /* several messages */

static unsigned char ours[BYTES], theirs[BYTES];

int main(void)
{
    dmce_options_t options;
    dmce_session_t *session, *other;
    dmce_region_t *region, *same;
    dmce_addr_t addr = 0, copy = 0, word = 0;
    uint64_t seen = 77;
    int order = 77;
    void *pointer = &order;

    dmce_options_init(&options);
    options.flags = DMCE_MESSAGE_PATH;
    OK(dmce_open(&options, &session));
    for (int place = 0; place < BYTES; place++)
        ours[place] = (unsigned char)(place * 7 >> 3);

    OK(dmce_malloc(session, BYTES, &addr));
    OK(dmce_calloc(session, 1, BYTES, &copy));
    OK(dmce_write(session, addr, ours, BYTES));
    OK(dmce_read(session, addr, theirs, BYTES));
    CHECK(memcmp(ours, theirs, BYTES) == 0);
    OK(dmce_copy(session, copy + 1, addr, BYTES - 1));
    OK(dmce_compare(session, copy + 1, ours, BYTES - 1, &order));
    CHECK(order == 0);
    OK(dmce_fill(session, copy, 0xff, BYTES));
    OK(dmce_compare(session, copy, ours, BYTES, &order));
    CHECK(order > 0);
    IS(DMCE_E_UNSUPPORTED, dmce_map(session, addr, 4096, DMCE_READ, &pointer));
    CHECK(pointer == &order);

    OK(dmce_calloc(session, 2, 8, &word));
    OK(dmce_cas64(session, word, 0, 5, &seen));
    CHECK(seen == 0);
    OK(dmce_cas64(session, word, 0, 6, &seen));
    CHECK(seen == 5);
    OK(dmce_add64(session, word, UINT64_MAX, &seen));
    CHECK(seen == 5);
    OK(dmce_wait64(session, word, 5, 0));
    IS(DMCE_E_TIMEOUT, dmce_wait64(session, word, 4, 20));
    OK(dmce_wake(session, word, 1));
    IS(DMCE_E_INVALID, dmce_cas64(session, word + 4, 0, 1, &seen));

    OK(dmce_free(session, addr));
    IS(DMCE_E_ADDRESS, dmce_free(session, addr));
    IS(DMCE_E_ADDRESS, dmce_read(session, 8, theirs, 1));

    /* What is written by message is there for a session that maps it, and the other way round. */
    OK(dmce_region_create(session, "vol", "both", BYTES, NULL));
    OK(dmce_region_open(session, "vol", "both", DMCE_READ | DMCE_WRITE, &region));
    OK(dmce_region_write(region, 100, ours, BYTES - 100, DMCE_PM_BOTH));
    IS(DMCE_E_ADDRESS, dmce_region_write(region, 101, ours, BYTES - 100, DMCE_PM_BOTH));
    OK(dmce_open(NULL, &other));
    OK(dmce_region_open(other, "vol", "both", DMCE_READ | DMCE_WRITE, &same));
    OK(dmce_region_read(same, 100, theirs, BYTES - 100, DMCE_PM_ANY));
    CHECK(memcmp(ours, theirs, BYTES - 100) == 0);
    OK(dmce_region_write(same, 0, "mapped", 6, DMCE_PM_BOTH));
    OK(dmce_region_read(region, 0, theirs, 6, DMCE_PM_ANY));
    CHECK(memcmp(theirs, "mapped", 6) == 0);
    OK(dmce_region_close(same));
    OK(dmce_close(other));
    OK(dmce_region_close(region));
    OK(dmce_region_open(session, "vol", "both", DMCE_READ, &region));
    IS(DMCE_E_DENIED, dmce_region_write(region, 0, "no", 2, DMCE_PM_BOTH));
    OK(dmce_region_close(region));
    OK(dmce_region_delete(session, "vol", "both"));
    OK(dmce_close(session));
    return 0;
}
