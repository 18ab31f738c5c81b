/*
 * In a forked child every call on a handle of the parent is DMCE_E_FORKED, whatever else is wrong
 * with it, and changes nothing.
 */
#define _DEFAULT_SOURCE

#include <stdint.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static dmce_session_t *session;
static dmce_region_t *region;
static dmce_addr_t addr;
static void *mapped;

static char text[8];
static uint64_t word = 77;
static size_t count = 77;
static int number = 77;
static void *pointer;
static const void *read_pointer;
static dmce_region_t *other_region;
static dmce_attrs_t *attrs;
static dmce_stat_t stat_of;
static dmce_region_info_t info;
static dmce_event_t event;
static dmce_alloc_options_t of_a_later_time;
static dmce_region_options_t odd;

/* Each function on a handle: a call that is right, and one that is wrong in every other way. */
#define CALLS(each)                                                                                \
    each(dmce_poll(session), dmce_poll(session))                                                   \
    each(dmce_flush(session), dmce_flush(session))                                                 \
    each(dmce_stat(session, &stat_of), dmce_stat(session, NULL))                                   \
    each(dmce_event_fd(session, &number), dmce_event_fd(session, NULL))                            \
    each(dmce_event_next(session, &event), dmce_event_next(session, NULL))                         \
    each(dmce_malloc(session, 8, &word), dmce_malloc(session, 0, NULL))                            \
    each(dmce_malloc_ex(session, 8, NULL, &word),                                                  \
         dmce_malloc_ex(session, 0, &of_a_later_time, NULL))                                       \
    each(dmce_calloc(session, 1, 8, &word), dmce_calloc(session, UINT64_MAX, UINT64_MAX, &word))   \
    each(dmce_realloc(session, addr, 100, &word), dmce_realloc(session, 5, 0, &word))              \
    each(dmce_free(session, addr), dmce_free(session, 5))                                          \
    each(dmce_free(session, 0), dmce_free(session, UINT64_MAX))                                    \
    each(dmce_usable_size(session, addr, &word), dmce_usable_size(session, 5, NULL))               \
    each(dmce_read(session, addr, text, 7), dmce_read(session, 5, NULL, 7))                        \
    each(dmce_read(session, addr, NULL, 0), dmce_read(session, UINT64_MAX, text, SIZE_MAX))        \
    each(dmce_write(session, addr, "child!", 7), dmce_write(session, 5, NULL, 7))                  \
    each(dmce_write(session, addr, NULL, 0), dmce_write(session, UINT64_MAX, text, SIZE_MAX))      \
    each(dmce_copy(session, addr, addr + 4, 4), dmce_copy(session, 5, UINT64_MAX, UINT64_MAX))     \
    each(dmce_copy(session, addr, addr, 0), dmce_copy(session, addr, 5, 0))                        \
    each(dmce_fill(session, addr, 0, 8), dmce_fill(session, 5, 0, UINT64_MAX))                     \
    each(dmce_compare(session, addr, "parent", 7, &number),                                        \
         dmce_compare(session, 5, NULL, 7, NULL))                                                  \
    each(dmce_cas64(session, addr, 0, 1, &word), dmce_cas64(session, 5, 0, 1, NULL))               \
    each(dmce_add64(session, addr, 1, &word), dmce_add64(session, 5, 1, NULL))                     \
    each(dmce_wait64(session, addr, 1, 1), dmce_wait64(session, 5, 1, 1))                          \
    each(dmce_wake(session, addr, 1), dmce_wake(session, 5, 0))                                    \
    each(dmce_map(session, addr, 8, DMCE_READ, &pointer), dmce_map(session, 5, 0, 99, NULL))       \
    each(dmce_map(session, addr, 8, DMCE_READ | DMCE_WRITE, &pointer),                             \
         dmce_map(session, addr, 0, DMCE_READ, &pointer))                                          \
    each(dmce_unmap(session, mapped), dmce_unmap(session, NULL))                                   \
    each(dmce_read_ptr(session, addr, 8, 0, &read_pointer),                                        \
         dmce_read_ptr(session, 5, 0, UINT32_MAX, NULL))                                           \
    each(dmce_write_ptr(session, addr, 8, 0, &pointer),                                            \
         dmce_write_ptr(session, 5, 0, UINT32_MAX, NULL))                                          \
    each(dmce_release_ptr(session, mapped), dmce_release_ptr(session, NULL))                       \
    each(dmce_abort_ptr(session, mapped), dmce_abort_ptr(session, NULL))                           \
    each(dmce_cancel_ptr(session, addr, 8), dmce_cancel_ptr(session, 5, 0))                        \
    each(dmce_vmalloc(session, 8, NULL, &pointer), dmce_vmalloc(session, 0, NULL, NULL))           \
    each(dmce_vfree(session, mapped), dmce_vfree(session, NULL))                                   \
    each(dmce_sync(session, mapped, 8), dmce_sync(session, NULL, 0))                               \
    each(dmce_addr_of(session, mapped, &word), dmce_addr_of(session, NULL, NULL))                  \
    each(dmce_ptr_of(session, addr, &pointer), dmce_ptr_of(session, 5, NULL))                      \
    each(dmce_region_create(session, "tests", "child", 4096, NULL),                                \
         dmce_region_create(session, "/", NULL, 0, &odd))                                          \
    each(dmce_region_delete(session, "tests", "forked"), dmce_region_delete(session, "/", NULL))   \
    each(dmce_region_open(session, "tests", "forked", DMCE_READ, &other_region),                   \
         dmce_region_open(session, "/", NULL, 99, NULL))                                           \
    each(dmce_region_resize(session, "tests", "forked", 8192),                                     \
         dmce_region_resize(session, NULL, NULL, 0))                                               \
    each(dmce_region_rename(session, "tests", "forked", "child"),                                  \
         dmce_region_rename(session, NULL, NULL, NULL))                                            \
    each(dmce_region_list(session, "tests", NULL, 0, &count),                                      \
         dmce_region_list(session, NULL, NULL, 1, NULL))                                           \
    each(dmce_region_attrs(session, "tests", "forked", &attrs),                                    \
         dmce_region_attrs(session, NULL, NULL, NULL))                                             \
    each(dmce_region_root_set(region, "root", 0), dmce_region_root_set(region, NULL, 0))           \
    each(dmce_region_root_get(region, "root", &word), dmce_region_root_get(region, NULL, NULL))    \
    each(dmce_region_read(region, 0, text, 8, DMCE_PM_ANY),                                        \
         dmce_region_read(region, UINT64_MAX, NULL, 8, 99))                                        \
    each(dmce_region_read(region, 0, NULL, 0, DMCE_PM_ANY),                                        \
         dmce_region_read(region, 0, text, 8, DMCE_PM_MIRROR))                                     \
    each(dmce_region_read(region, 0, text, 8, DMCE_PM_PRIMARY),                                    \
         dmce_region_read(region, 0, text, 8, DMCE_PM_BOTH))                                       \
    each(dmce_region_write(region, 0, "child!", 7, DMCE_PM_BOTH),                                  \
         dmce_region_write(region, 0, NULL, 7, 99))                                                \
    each(dmce_region_write(region, 0, "child!", 7, DMCE_PM_PRIMARY),                               \
         dmce_region_write(region, UINT64_MAX, text, 8, DMCE_PM_BOTH))                             \
    each(dmce_region_info(region, &info), dmce_region_info(region, NULL))                          \
    each(dmce_region_map(region, DMCE_READ, &pointer), dmce_region_map(region, 99, NULL))          \
    each(dmce_region_addr(region, 0, &word), dmce_region_addr(region, UINT64_MAX, NULL))           \
    each(dmce_region_flush(region), dmce_region_flush(region))                                     \
    each(dmce_context_save(session, "name", text, 8), dmce_context_save(session, NULL, NULL, 8))   \
    each(dmce_context_restore(session, "name", text, 8, &count),                                   \
         dmce_context_restore(session, NULL, NULL, 8, NULL))                                       \
    each(dmce_context_delete(session, "name"), dmce_context_delete(session, NULL))                 \
    each(dmce_region_close(region), dmce_region_close(region))                                     \
    each(dmce_close(session), dmce_close(session))

#define IS_FORKED(right, wrong)                                                                    \
    IS(DMCE_E_FORKED, right);                                                                      \
    CHECK(strstr(dmce_last_error(), "parent") != NULL);                                              \
    IS(DMCE_E_FORKED, wrong);

static void every_call_is_refused_and_gives_nothing(void)
{
    CALLS(IS_FORKED)
    CHECK(word == 77 && count == 77 && number == 77 && text[0] == '\0');
    CHECK(pointer == NULL && read_pointer == NULL && other_region == NULL && attrs == NULL);
}

int main(void)
{
    int status = 0;
    pid_t child;
    stat_of.size = sizeof stat_of;
    info.size = sizeof info;
    event.size = sizeof event;
    dmce_alloc_options_init(&of_a_later_time);
    of_a_later_time.flags = UINT32_MAX;
    dmce_region_options_init(&odd);
    odd.flags = UINT32_MAX;

    OK(dmce_open(NULL, &session));
    OK(dmce_malloc(session, 8, &addr));
    OK(dmce_write(session, addr, "parent", 7));
    OK(dmce_map(session, addr, 8, DMCE_READ, &mapped));
    OK(dmce_region_create(session, "tests", "forked", 4096, NULL));
    /* For reading alone, so that writing would be denied as well. */
    OK(dmce_region_open(session, "tests", "forked", DMCE_READ, &region));

    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        dmce_session_t *own;
        every_call_is_refused_and_gives_nothing();
        OK(dmce_open(NULL, &own));
        every_call_is_refused_and_gives_nothing();
        OK(dmce_close(own));
        _exit(0);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 0);

    OK(dmce_read(session, addr, text, 7));
    CHECK(strcmp(text, "parent") == 0);
    OK(dmce_unmap(session, mapped));
    OK(dmce_free(session, addr));
    OK(dmce_region_close(region));
    OK(dmce_region_delete(session, "tests", "forked"));
    OK(dmce_close(session));
    return 0;
}
