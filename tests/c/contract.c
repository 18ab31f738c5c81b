/*
 * The contract at the head of libdmce.h, held by a session: structures of other ages, NULLs,
 * handles that are closed or the parent's, what a failed call leaves behind.
 */
#define _DEFAULT_SOURCE

#include <dirent.h>
#include <poll.h>
#include <pthread.h>
#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static dmce_session_t *opened(void)
{
    dmce_session_t *session;
    OK(dmce_open(NULL, &session));
    return session;
}

/* ---- structures of programs that are older or newer than the library ---- */

static void options_may_be_older_or_newer(void)
{
    struct {
        dmce_options_t known;
        uint64_t unknown;
    } newer;
    struct {
        uint32_t size, abi_version;
        uint64_t reserve_bytes;
        unsigned char behind[sizeof(dmce_options_t)];
    } older;
    dmce_session_t *session = NULL;

    memset(&older, 0xff, sizeof older);
    older.size = 16;
    older.abi_version = DMCE_ABI_VERSION;
    older.reserve_bytes = 0;
    OK(dmce_open((const dmce_options_t *)&older, &session));
    OK(dmce_close(session));

    memset(&newer, 0, sizeof newer);
    newer.known.size = sizeof newer;
    newer.known.abi_version = DMCE_ABI_VERSION;
    OK(dmce_open(&newer.known, &session));
    OK(dmce_close(session));
    newer.unknown = 1;
    session = NULL;
    IS(DMCE_E_VERSION, dmce_open((const dmce_options_t *)&newer, &session));
    CHECK(session == NULL);
}

/* A program may leave it empty; what says neither that it checks nor that it does not is wrong. */
static void the_environment_is_read_or_refused(void)
{
    char before[8] = "";
    const char *const good[] = {"1", "0", "", before};
    dmce_session_t *session = NULL;
    if (getenv("DMCE_CHECK") != NULL)
        snprintf(before, sizeof before, "%s", getenv("DMCE_CHECK"));
    CHECK(setenv("DMCE_CHECK", "yes", 1) == 0);
    IS(DMCE_E_INVALID, dmce_open(NULL, &session));
    CHECK(session == NULL);
    CHECK(strstr(dmce_last_error(), "DMCE_CHECK is \"yes\", neither 0 nor 1") != NULL);
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        CHECK(setenv("DMCE_CHECK", good[i], 1) == 0);
        OK(dmce_open(NULL, &session));
        OK(dmce_close(session));
    }
}

static void only_the_stated_bytes_are_filled(dmce_session_t *session)
{
    struct {
        dmce_stat_t known;
        uint64_t unknown;
    } newer;
    dmce_stat_t older;
    memset(&older, 0x5a, sizeof older);
    older.size = 16;
    OK(dmce_stat(session, &older));
    CHECK(older.size == 16 && older.server_bits + older.block_bits + older.cell_bits == 64);
    CHECK(older.reserved_bytes == UINT64_C(0x5a5a5a5a5a5a5a5a));

    memset(&newer, 0, sizeof newer);
    newer.known.size = sizeof newer;
    OK(dmce_stat(session, &newer.known));
    CHECK(newer.known.cell_bits != 0 && newer.unknown == 0);
    newer.unknown = 1;
    IS(DMCE_E_VERSION, dmce_stat(session, (dmce_stat_t *)&newer));
    newer.known.size = 0;
    IS(DMCE_E_INVALID, dmce_stat(session, &newer.known));
}

/* ---- arguments ---- */

static void null_is_refused_where_it_is_not_allowed(dmce_session_t *session)
{
    dmce_addr_t addr = 77;
    uint64_t word;
    char byte;
    OK(dmce_malloc(session, 100, &addr));
    IS(DMCE_E_INVALID, dmce_open(NULL, NULL));
    IS(DMCE_E_INVALID, dmce_malloc(session, 100, NULL));
    IS(DMCE_E_INVALID, dmce_malloc_ex(session, 100, NULL, NULL));
    IS(DMCE_E_INVALID, dmce_calloc(session, 1, 100, NULL));
    IS(DMCE_E_INVALID, dmce_realloc(session, addr, 100, NULL));
    IS(DMCE_E_INVALID, dmce_usable_size(session, addr, NULL));
    IS(DMCE_E_INVALID, dmce_read(session, addr, NULL, 1));
    IS(DMCE_E_INVALID, dmce_write(session, addr, NULL, 1));
    IS(DMCE_E_INVALID, dmce_compare(session, addr, &byte, 1, NULL));
    IS(DMCE_E_INVALID, dmce_map(session, addr, 1, DMCE_READ, NULL));
    IS(DMCE_E_INVALID, dmce_unmap(session, NULL));
    IS(DMCE_E_INVALID, dmce_stat(session, NULL));
    IS(DMCE_E_INVALID, dmce_region_create(session, NULL, "name", 1, NULL));
    IS(DMCE_E_INVALID, dmce_region_open(session, "volume", NULL, DMCE_READ, NULL));
    IS(DMCE_E_INVALID, dmce_region_list(session, "volume", NULL, 1, (size_t *)&word));
    IS(DMCE_E_INVALID, dmce_region_list(session, "volume", NULL, 0, NULL));
    /* A buffer of no bytes may be NULL, as that of an empty C++ vector is. */
    OK(dmce_read(session, addr, NULL, 0));
    OK(dmce_write(session, addr, NULL, 0));
    OK(dmce_free(session, addr));
    IS(DMCE_E_INVALID, dmce_close(NULL));
}

static void values_that_mean_nothing_are_refused(dmce_session_t *session)
{
    dmce_addr_t addr = 77;
    void *pointer = NULL;
    dmce_region_t *region = NULL;
    dmce_alloc_options_t options;
    dmce_alloc_options_init(&options);
    options.flags = 1u << 30;
    IS(DMCE_E_INVALID, dmce_malloc_ex(session, 100, &options, &addr));
    options.flags = 0;
    options.align = 3;
    IS(DMCE_E_INVALID, dmce_malloc_ex(session, 100, &options, &addr));
    options.align = 4096;
    options.label = "aligned";
    OK(dmce_malloc_ex(session, 100, &options, &addr));
    CHECK(addr % 4096 == 0);
    IS(DMCE_E_INVALID, dmce_map(session, addr, 1, 0, &pointer));
    IS(DMCE_E_INVALID, dmce_map(session, addr, 1, 8, &pointer));
    IS(DMCE_E_INVALID, dmce_region_open(session, "volume", "name", 4, &region));
    IS(DMCE_E_INVALID, dmce_region_open(session, "volume", "\xff", DMCE_READ, &region));
    CHECK(pointer == NULL && region == NULL);
    OK(dmce_free(session, addr));
}

/* ---- addresses ---- */

static void addresses_that_are_not_legal_are_told(dmce_session_t *session)
{
    dmce_addr_t addr, untouched = 77;
    uint64_t bytes = 77;
    char buffer[16];
    OK(dmce_malloc(session, 100000, &addr));
    IS(DMCE_E_ADDRESS, dmce_free(session, addr + 16));
    IS(DMCE_E_ADDRESS, dmce_usable_size(session, addr + 16, &bytes));
    IS(DMCE_E_ADDRESS, dmce_realloc(session, addr + 16, 10, &untouched));
    IS(DMCE_E_ADDRESS, dmce_read(session, 0, buffer, 1));
    IS(DMCE_E_ADDRESS, dmce_read(session, 5, buffer, 1));
    IS(DMCE_E_ADDRESS, dmce_write(session, UINT64_MAX, buffer, 1));
    /* Server 7 is another host. */
    IS(DMCE_E_ADDRESS, dmce_read(session, addr | (UINT64_C(7) << 48), buffer, 1));
    CHECK(bytes == 77 && untouched == 77);
    OK(dmce_free(session, addr));
    IS(DMCE_E_ADDRESS, dmce_free(session, addr));
    IS(DMCE_E_ADDRESS, dmce_usable_size(session, addr, &bytes));
    OK(dmce_free(session, 0));
}

static void sizes_that_cannot_be_are_told(dmce_session_t *session)
{
    dmce_addr_t addr, untouched = 77;
    char text[8];
    IS(DMCE_E_INVALID, dmce_malloc(session, 0, &untouched));
    IS(DMCE_E_INVALID, dmce_calloc(session, 0, 8, &untouched));
    IS(DMCE_E_NOSPACE, dmce_malloc(session, UINT64_MAX, &untouched));
    IS(DMCE_E_NOSPACE, dmce_malloc(session, UINT64_C(1) << 62, &untouched));
    IS(DMCE_E_NOSPACE, dmce_calloc(session, UINT64_C(1) << 40, UINT64_C(1) << 40, &untouched));
    OK(dmce_malloc(session, 8, &addr));
    OK(dmce_write(session, addr, "kept", 5));
    IS(DMCE_E_NOSPACE, dmce_realloc(session, addr, UINT64_MAX, &untouched));
    CHECK(untouched == 77);
    OK(dmce_read(session, addr, text, 5));
    CHECK(strcmp(text, "kept") == 0);
    OK(dmce_free(session, addr));
}

static void words_are_changed_atomically(dmce_session_t *session)
{
    dmce_addr_t addr = 0;
    uint64_t word = 77;
    OK(dmce_calloc(session, 4, sizeof word, &addr));
    OK(dmce_cas64(session, addr + 8, 0, UINT64_C(1) << 40, &word));
    CHECK(word == 0);
    OK(dmce_cas64(session, addr + 8, 0, 5, &word));
    CHECK(word == UINT64_C(1) << 40);
    OK(dmce_add64(session, addr + 8, UINT64_MAX, &word));
    CHECK(word == UINT64_C(1) << 40);
    OK(dmce_read(session, addr + 8, &word, sizeof word));
    CHECK(word == (UINT64_C(1) << 40) - 1);
    OK(dmce_wait64(session, addr + 8, 0, 0));
    IS(DMCE_E_TIMEOUT, dmce_wait64(session, addr, 0, 1));
    OK(dmce_wake(session, addr, 1));
    OK(dmce_wake(session, addr, UINT32_MAX));
    word = 77;
    IS(DMCE_E_INVALID, dmce_cas64(session, addr, 0, 1, NULL));
    IS(DMCE_E_INVALID, dmce_add64(session, addr, 1, NULL));
    IS(DMCE_E_INVALID, dmce_cas64(session, addr + 4, 0, 1, &word));
    IS(DMCE_E_INVALID, dmce_add64(session, addr + 1, 1, &word));
    IS(DMCE_E_INVALID, dmce_wait64(session, addr + 7, 1, 0));
    IS(DMCE_E_INVALID, dmce_wake(session, addr + 2, 1));
    OK(dmce_free(session, addr));
    IS(DMCE_E_ADDRESS, dmce_cas64(session, 0, 0, 1, &word));
    IS(DMCE_E_ADDRESS, dmce_add64(session, 0, 1, &word));
    IS(DMCE_E_ADDRESS, dmce_wait64(session, 0, 1, 0));
    IS(DMCE_E_ADDRESS, dmce_wake(session, 0, 1));
    CHECK(word == 77);
}

/* ---- waiting, policies and events ---- */

static void waits_policies_and_events_are_there(dmce_session_t *session)
{
    dmce_alloc_options_t options;
    dmce_event_t event;
    dmce_addr_t addr = 77;
    int fd = 77;
    dmce_alloc_options_init(&options);
    options.policy = 65;
    IS(DMCE_E_NOTFOUND, dmce_malloc_ex(session, 64, &options, &addr));
    CHECK(addr == 77);
    options.policy = 0;
    options.flags = DMCE_WAIT;
    options.timeout_ms = 1;
    IS(DMCE_E_NOSPACE, dmce_malloc_ex(session, UINT64_MAX, &options, &addr));
    OK(dmce_malloc_ex(session, 64, &options, &addr));
    OK(dmce_free(session, addr));

    event.size = sizeof event;
    IS(DMCE_E_INVALID, dmce_event_fd(session, NULL));
    OK(dmce_event_fd(session, &fd));
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    CHECK(fd != 77 && poll(&readable, 1, 0) == 0);
    IS(DMCE_E_NOTFOUND, dmce_event_next(session, &event));
    event.size = 1;
    IS(DMCE_E_INVALID, dmce_event_next(session, &event));
    IS(DMCE_E_INVALID, dmce_event_next(session, NULL));
}

/* ---- what this release does not do ---- */

static void later_calls_are_there_and_say_so(dmce_session_t *session)
{
    int word = 77;
    void *pointer = &word;
    const void *read_pointer = &word;
    dmce_attrs_t *attrs = NULL;
    IS(DMCE_E_ADDRESS, dmce_read_ptr(session, 1, 1, 0, &read_pointer));
    IS(DMCE_E_ADDRESS, dmce_write_ptr(session, 1, 1, 0, &pointer));
    IS(DMCE_E_UNSUPPORTED, dmce_region_attrs(session, "volume", "name", &attrs));
    IS(DMCE_E_INVALID, dmce_region_attrs(session, "volume", NULL, &attrs));
    IS(DMCE_E_UNSUPPORTED, dmce_context_save(session, "name", NULL, 0));
    CHECK(word == 77 && pointer == &word && read_pointer == &word && attrs == NULL);
    dmce_attrs_free(attrs);
}

/* ---- handles ---- */

static void closed_handles_say_so(void)
{
    char byte = 0;
    dmce_addr_t addr;
    dmce_stat_t stat;
    dmce_region_t *region, *garbage = (dmce_region_t *)(void *)&byte;
    dmce_session_t *session = opened(), *other;
    stat.size = sizeof stat;
    OK(dmce_malloc(session, 10, &addr));
    OK(dmce_region_create(session, "tests", "closing", 4096, NULL));
    OK(dmce_region_open(session, "tests", "closing", DMCE_READ | DMCE_WRITE, &region));
    IS(DMCE_E_INVALID, dmce_close((dmce_session_t *)(void *)region));
    IS(DMCE_E_INVALID, dmce_region_close((dmce_region_t *)(void *)session));
    IS(DMCE_E_INVALID, dmce_region_close(garbage));
    OK(dmce_close(session));

    IS(DMCE_E_CLOSED, dmce_close(session));
    IS(DMCE_E_CLOSED, dmce_read(session, addr, &byte, 1));
    IS(DMCE_E_CLOSED, dmce_free(session, 0));
    IS(DMCE_E_CLOSED, dmce_malloc(session, 10, &addr));
    IS(DMCE_E_CLOSED, dmce_stat(session, &stat));
    IS(DMCE_E_CLOSED, dmce_wake(session, addr, 1));
    IS(DMCE_E_CLOSED, dmce_region_read(region, 0, &byte, 1, DMCE_PM_ANY));
    IS(DMCE_E_CLOSED, dmce_region_close(region));

    /* Another session may take the place in the table; the old handle does not become it. */
    other = opened();
    CHECK(other != session);
    IS(DMCE_E_CLOSED, dmce_poll(session));
    OK(dmce_region_delete(other, "tests", "closing"));
    OK(dmce_close(other));
}

static size_t open_descriptors(void)
{
    size_t count = 0;
    DIR *folder = opendir("/proc/self/fd");
    CHECK(folder != NULL);
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

static void a_closed_session_leaves_nothing_behind(void)
{
    size_t before;
    OK(dmce_close(opened()));
    before = open_descriptors();
    for (int i = 0; i < 20; i++) {
        dmce_addr_t addr;
        dmce_session_t *session = opened();
        OK(dmce_malloc(session, 100000, &addr));
        OK(dmce_write(session, addr, "x", 1));
        OK(dmce_close(session));
    }
    CHECK(open_descriptors() == before);
}

/* ---- fork ---- */

static void a_child_is_told_and_opens_its_own(dmce_session_t *session)
{
    int status = 0;
    char text[8];
    dmce_addr_t addr, freed;
    dmce_region_t *region;
    pid_t child;
    OK(dmce_malloc(session, 8, &addr));
    OK(dmce_write(session, addr, "parent", 7));
    /* So that the parent's next ones need nothing but what the thread knows. */
    OK(dmce_malloc(session, 8, &freed));
    OK(dmce_free(session, freed));
    OK(dmce_region_create(session, "tests", "forking", 4096, NULL));
    OK(dmce_region_open(session, "tests", "forking", DMCE_READ | DMCE_WRITE, &region));
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        dmce_session_t *own;
        dmce_addr_t mine;
        IS(DMCE_E_FORKED, dmce_read(session, addr, text, 7));
        IS(DMCE_E_FORKED, dmce_read(session, 0, text, 7));
        IS(DMCE_E_FORKED, dmce_write(session, addr, "child!", 7));
        IS(DMCE_E_FORKED, dmce_malloc(session, 8, &mine));
        IS(DMCE_E_FORKED, dmce_free(session, addr));
        IS(DMCE_E_FORKED, dmce_free(session, 0));
        IS(DMCE_E_FORKED, dmce_poll(session));
        IS(DMCE_E_FORKED, dmce_wake(session, addr, 1));
        IS(DMCE_E_FORKED, dmce_region_read(region, 0, text, 1, DMCE_PM_ANY));
        IS(DMCE_E_FORKED, dmce_region_flush(region));
        IS(DMCE_E_FORKED, dmce_region_close(region));
        IS(DMCE_E_FORKED, dmce_close(session));
        own = opened();
        CHECK(own != session);
        OK(dmce_malloc(own, 8, &mine));
        OK(dmce_write(own, mine, "child", 6));
        IS(DMCE_E_FORKED, dmce_read(session, addr, text, 7));
        OK(dmce_close(own));
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    OK(dmce_read(session, addr, text, 7));
    CHECK(strcmp(text, "parent") == 0);
    OK(dmce_region_close(region));
    OK(dmce_region_delete(session, "tests", "forking"));
    OK(dmce_free(session, addr));
}

/* ---- threads ---- */

static void *work(void *argument)
{
    dmce_session_t *session = argument;
    CHECK(strcmp(dmce_last_error(), "") == 0);
    for (uint64_t i = 1; i < 300; i++) {
        uint64_t back = 0;
        dmce_addr_t addr;
        OK(dmce_malloc(session, i * 8, &addr));
        OK(dmce_write(session, addr + (i - 1) * 8, &i, sizeof i));
        OK(dmce_read(session, addr + (i - 1) * 8, &back, sizeof back));
        CHECK(back == i);
        OK(dmce_free(session, addr));
    }
    IS(DMCE_E_INVALID, dmce_malloc(session, 0, NULL));
    CHECK(strcmp(dmce_last_error(), "") != 0);
    return NULL;
}

static void threads_share_a_handle_but_not_their_errors(dmce_session_t *session)
{
    enum { THREADS = 8 };
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, work, session) == 0);
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

/* Reads until another thread closes the session under it. */
static void *read_until_closed(void *argument)
{
    dmce_session_t *session = argument;
    char buffer[64];
    dmce_addr_t addr;
    dmce_status_t status = dmce_malloc(session, sizeof buffer, &addr);
    while (status == DMCE_OK)
        status = dmce_read(session, addr, buffer, sizeof buffer);
    IS(DMCE_E_CLOSED, status);
    return NULL;
}

static void a_session_may_be_closed_under_its_callers(void)
{
    enum { THREADS = 4, ROUNDS = 20 };
    for (int round = 0; round < ROUNDS; round++) {
        pthread_t threads[THREADS];
        dmce_session_t *session = opened();
        for (int i = 0; i < THREADS; i++)
            CHECK(pthread_create(&threads[i], NULL, read_until_closed, session) == 0);
        OK(dmce_close(session));
        for (int i = 0; i < THREADS; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
    }
}

int main(void)
{
    dmce_session_t *session;
    CHECK(strcmp(dmce_last_error(), "") == 0);
    CHECK(strcmp(dmce_strerror(DMCE_E_QUOTA), "quota reached") == 0);
    options_may_be_older_or_newer();
    the_environment_is_read_or_refused();
    session = opened();
    only_the_stated_bytes_are_filled(session);
    null_is_refused_where_it_is_not_allowed(session);
    values_that_mean_nothing_are_refused(session);
    addresses_that_are_not_legal_are_told(session);
    sizes_that_cannot_be_are_told(session);
    words_are_changed_atomically(session);
    waits_policies_and_events_are_there(session);
    later_calls_are_there_and_say_so(session);
    a_child_is_told_and_opens_its_own(session);
    threads_share_a_handle_but_not_their_errors(session);
    OK(dmce_close(session));
    closed_handles_say_so();
    a_closed_session_leaves_nothing_behind();
    a_session_may_be_closed_under_its_callers();
    return 0;
}
