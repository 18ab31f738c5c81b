/* Regions: two processes on the same bytes, by a name. */
#define _DEFAULT_SOURCE

#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define BASE UINT64_C(0x100000000)
#define REGION_BYTES (300u * 1024)

static dmce_session_t *opened(void)
{
    dmce_session_t *session;
    OK(dmce_open(NULL, &session));
    return session;
}

/* Waits for a byte that the other process sends; fails if that ended instead. */
static void await(int from)
{
    char byte;
    CHECK(read(from, &byte, 1) == 1);
}

static void tell(int to)
{
    CHECK(write(to, "x", 1) == 1);
}

/* The other process: reads what the first wrote, and answers in the same place. */
static void answer(int from, int to)
{
    char text[16];
    dmce_region_t *region;
    dmce_region_info_t info;
    dmce_session_t *session;
    CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
    await(from);
    session = opened();
    OK(dmce_region_open(session, "tests", "shared", DMCE_READ | DMCE_WRITE, &region));
    info.size = sizeof info;
    OK(dmce_region_info(region, &info));
    CHECK(info.region_size == REGION_BYTES && info.base_pointer == BASE && info.copies == 1);
    CHECK(info.primary_daemon >= 1 && info.mirror_daemon == 0);
    OK(dmce_region_read(region, BASE + 5000, text, 9, DMCE_PM_ANY));
    CHECK(strcmp(text, "question") == 0);
    OK(dmce_region_write(region, BASE + 5000, "answered", 9, DMCE_PM_BOTH));
    tell(to);
    /* Closes nothing: the region has to survive that. */
    _exit(0);
}

static void create(dmce_session_t *session)
{
    dmce_region_options_t options;
    dmce_region_options_init(&options);
    options.base_pointer = BASE;
    options.copies = 1;
    OK(dmce_region_create(session, "tests", "shared", REGION_BYTES, &options));
    IS(DMCE_E_EXISTS, dmce_region_create(session, "tests", "shared", 1, &options));
    OK(dmce_region_create(session, "tests", "another", 1, NULL));
    IS(DMCE_E_INVALID, dmce_region_create(session, "tests", "empty", 0, NULL));
    options.flags = 1;
    IS(DMCE_E_INVALID, dmce_region_create(session, "tests", "flags", 1, &options));
}

static void names_are_listed_sorted_and_cut(dmce_session_t *session)
{
    char *names[3] = {NULL, NULL, NULL};
    size_t count = 99;
    OK(dmce_region_list(session, "tests", NULL, 0, &count));
    CHECK(count == 2);
    OK(dmce_region_list(session, "tests", names, 1, &count));
    CHECK(count == 2 && strcmp(names[0], "another") == 0);
    dmce_strings_free(names, 1);
    names[2] = (char *)names;
    OK(dmce_region_list(session, "tests", names, 3, &count));
    CHECK(count == 2 && strcmp(names[1], "shared") == 0 && names[2] == NULL);
    dmce_strings_free(names, 3);
    CHECK(names[0] == NULL);
}

static void pointers_are_valid_to_the_byte(dmce_region_t *region)
{
    char text[16];
    dmce_addr_t first, last;
    dmce_region_info_t info;
    info.size = sizeof info;
    OK(dmce_region_info(region, &info));
    OK(dmce_region_addr(region, BASE, &first));
    OK(dmce_region_addr(region, BASE + REGION_BYTES - 1, &last));
    CHECK(first == info.first && last == first + REGION_BYTES - 1);
    OK(dmce_region_read(region, BASE + REGION_BYTES - 1, text, 1, DMCE_PM_ANY));
    IS(DMCE_E_ADDRESS, dmce_region_read(region, BASE + REGION_BYTES - 1, text, 2, DMCE_PM_ANY));
    IS(DMCE_E_ADDRESS, dmce_region_read(region, BASE - 1, text, 1, DMCE_PM_ANY));
    IS(DMCE_E_ADDRESS, dmce_region_read(region, UINT64_MAX, text, 2, DMCE_PM_ANY));
    IS(DMCE_E_ADDRESS, dmce_region_addr(region, BASE + REGION_BYTES, &last));
    IS(DMCE_E_INVALID, dmce_region_read(region, BASE, text, 1, DMCE_PM_BOTH));
    IS(DMCE_E_INVALID, dmce_region_write(region, BASE, text, 1, DMCE_PM_ANY));
    IS(DMCE_E_NOCOPY, dmce_region_read(region, BASE, text, 1, DMCE_PM_MIRROR));
}

static void every_call_works_on_a_regions_addresses(dmce_session_t *session, dmce_region_t *region)
{
    char text[16];
    dmce_addr_t addr;
    void *pointer;
    OK(dmce_region_addr(region, BASE + 5000, &addr));
    OK(dmce_read(session, addr, text, 9));
    CHECK(strcmp(text, "answered") == 0);
    OK(dmce_copy(session, addr + 100, addr, 9));
    OK(dmce_map(session, addr + 100, 9, DMCE_READ, &pointer));
    CHECK(strcmp((const char *)pointer, "answered") == 0);
    /* The last handle stays open as long as a pointer needs the region. */
    IS(DMCE_E_BUSY, dmce_region_close(region));
    OK(dmce_region_read(region, BASE + 5000, text, 9, DMCE_PM_PRIMARY));
    OK(dmce_unmap(session, pointer));
}

static void a_reader_cannot_write(dmce_session_t *session)
{
    char text[16];
    dmce_addr_t addr;
    void *pointer;
    dmce_region_t *region;
    OK(dmce_region_open(session, "tests", "shared", DMCE_READ, &region));
    OK(dmce_region_read(region, BASE, text, 1, DMCE_PM_ANY));
    IS(DMCE_E_DENIED, dmce_region_write(region, BASE, text, 1, DMCE_PM_BOTH));
    OK(dmce_region_addr(region, BASE, &addr));
    IS(DMCE_E_DENIED, dmce_write(session, addr, text, 1));
    IS(DMCE_E_DENIED, dmce_map(session, addr, 1, DMCE_READ | DMCE_WRITE, &pointer));
    OK(dmce_region_close(region));
}

static void a_deleted_region_closes_its_handles(dmce_session_t *session, dmce_region_t *region)
{
    char text[16];
    dmce_status_t status;
    /* Busy until the broker has seen that the other process, which had it open, is gone. */
    while ((status = dmce_region_delete(session, "tests", "shared")) == DMCE_E_BUSY)
        usleep(1000);
    OK(status);
    IS(DMCE_E_CLOSED, dmce_region_read(region, BASE, text, 1, DMCE_PM_ANY));
    IS(DMCE_E_NOTFOUND, dmce_region_delete(session, "tests", "shared"));
    IS(DMCE_E_NOTFOUND, dmce_region_open(session, "tests", "shared", DMCE_READ, &region));
    OK(dmce_region_delete(session, "tests", "another"));
}

int main(void)
{
    int there[2], back[2], status = 0;
    pid_t other;
    dmce_session_t *session;
    dmce_region_t *region;
    CHECK(pipe(there) == 0 && pipe(back) == 0);
    /* Before any session is open, so that the child begins with nothing of ours. */
    other = fork();
    CHECK(other >= 0);
    if (other == 0)
        answer(there[0], back[1]);

    session = opened();
    create(session);
    names_are_listed_sorted_and_cut(session);
    OK(dmce_region_open(session, "tests", "shared", DMCE_READ | DMCE_WRITE, &region));
    OK(dmce_region_write(region, BASE + 5000, "question", 9, DMCE_PM_BOTH));
    tell(there[1]);
    close(back[1]);
    await(back[0]);
    CHECK(waitpid(other, &status, 0) == other && status == 0);

    every_call_works_on_a_regions_addresses(session, region);
    pointers_are_valid_to_the_byte(region);
    OK(dmce_region_close(region));
    IS(DMCE_E_CLOSED, dmce_region_close(region));
    a_reader_cannot_write(session);
    OK(dmce_region_open(session, "tests", "shared", DMCE_READ | DMCE_WRITE, &region));
    a_deleted_region_closes_its_handles(session, region);
    OK(dmce_close(session));
    IS(DMCE_E_CLOSED, dmce_region_close(region));
    return 0;
}
