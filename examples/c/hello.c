/*
 * hello: memory of other processes, and a region with a name.
 *
 *     cc -std=c99 hello.c $(pkg-config --cflags --libs libdmce) -o hello
 */
#include <libdmce.h>
#include <stdio.h>

static int failed(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, dmce_last_error());
    return 1;
}

int main(void)
{
    dmce_session_t *session;
    dmce_region_t *region;
    dmce_options_t options;
    dmce_addr_t addr;
    char text[16];

    dmce_options_init(&options);
    options.flags = DMCE_SPAWN; /* start a private instance if there is no broker */
    if (dmce_open(&options, &session) != DMCE_OK)
        return failed("no session");

    /* Memory of this session: it goes when the session ends. */
    if (dmce_malloc(session, 1 << 20, &addr) != DMCE_OK ||
        dmce_write(session, addr + 4096, "not my memory", 14) != DMCE_OK ||
        dmce_read(session, addr + 4096, text, 14) != DMCE_OK)
        return failed("no memory");
    puts(text);

    /* A region has a name, outlives its sessions, and is shared with whoever may open it. */
    if (dmce_region_create(session, "demo", "greeting", 1 << 16, NULL) != DMCE_OK ||
        dmce_region_open(session, "demo", "greeting", DMCE_READ | DMCE_WRITE, &region) != DMCE_OK ||
        dmce_region_write(region, 0, "hello", 6, DMCE_PM_BOTH) != DMCE_OK ||
        dmce_region_read(region, 0, text, 6, DMCE_PM_ANY) != DMCE_OK ||
        dmce_region_delete(session, "demo", "greeting") != DMCE_OK)
        return failed("no region");
    puts(text);
    return dmce_close(session) == DMCE_OK ? 0 : failed("not closed");
}
