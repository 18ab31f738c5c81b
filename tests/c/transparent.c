/* Transparent memory: plain pointers into blocks of DMCE, and what they translate to. */
#define _DEFAULT_SOURCE

#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define BYTES ((5u << 20) + 3)
#define GRANULE ((uintptr_t)2 << 20)

/* Where the kernel puts nothing by itself. */
#if UINTPTR_MAX > UINT32_MAX
#define BASE UINT64_C(0x200000000000)
#else
#define BASE UINT64_C(0x20000000)
#endif

static void stores_and_calls_meet(dmce_session_t *session)
{
    char *memory = NULL, text[8];
    void *pointer = NULL;
    dmce_addr_t first, addr, untouched = 77;
    uint64_t bytes;
    OK(dmce_vmalloc(session, BYTES, NULL, (void **)&memory));
    CHECK((uintptr_t)memory % GRANULE == 0);
    for (size_t i = 0; i < BYTES; i += 1000)
        CHECK(memory[i] == 0);
    OK(dmce_addr_of(session, memory, &first));
    OK(dmce_addr_of(session, memory + BYTES - 1, &addr));
    CHECK(addr == first + BYTES - 1);
    OK(dmce_ptr_of(session, addr, &pointer));
    CHECK(pointer == memory + BYTES - 1);
    OK(dmce_usable_size(session, first, &bytes));
    CHECK(bytes >= BYTES);

    memcpy(memory + 4093, "pointer", 8);
    OK(dmce_read(session, first + 4093, text, 8));
    CHECK(strcmp(text, "pointer") == 0);
    OK(dmce_write(session, first + 4093, "address", 8));
    CHECK(strcmp(memory + 4093, "address") == 0);
    OK(dmce_sync(session, memory, BYTES));
    OK(dmce_sync(session, memory + BYTES, 0));

    pointer = &untouched;
    IS(DMCE_E_ADDRESS, dmce_sync(session, memory, BYTES + 1));
    IS(DMCE_E_ADDRESS, dmce_addr_of(session, memory + BYTES, &untouched));
    IS(DMCE_E_ADDRESS, dmce_addr_of(session, &untouched, &untouched));
    IS(DMCE_E_ADDRESS, dmce_ptr_of(session, first + BYTES, &pointer));
    IS(DMCE_E_ADDRESS, dmce_ptr_of(session, 0, &pointer));
    CHECK(untouched == 77 && pointer == &untouched);
    IS(DMCE_E_BUSY, dmce_free(session, first));
    IS(DMCE_E_NOTFOUND, dmce_unmap(session, memory));
    IS(DMCE_E_ADDRESS, dmce_vfree(session, memory + 4096));
    OK(dmce_vfree(session, memory));
    IS(DMCE_E_ADDRESS, dmce_vfree(session, memory));
    IS(DMCE_E_ADDRESS, dmce_addr_of(session, memory, &untouched));
    IS(DMCE_E_ADDRESS, dmce_read(session, first, text, 8));
}

static void what_cannot_be_is_refused(dmce_session_t *session)
{
    int local = 0;
    void *pointer = &local;
    dmce_addr_t addr = 77;
    dmce_alloc_options_t options;
    dmce_alloc_options_init(&options);
    IS(DMCE_E_INVALID, dmce_vmalloc(session, 1, NULL, NULL));
    IS(DMCE_E_INVALID, dmce_vmalloc(session, 0, NULL, &pointer));
    IS(DMCE_E_NOSPACE, dmce_vmalloc(session, UINT64_MAX, NULL, &pointer));
    options.copies = 1000;
    IS(DMCE_E_INVALID, dmce_vmalloc(session, 1, &options, &pointer));
    OK(dmce_vfree(session, NULL));
    IS(DMCE_E_INVALID, dmce_sync(session, NULL, 0));
    IS(DMCE_E_INVALID, dmce_addr_of(session, NULL, &addr));
    IS(DMCE_E_INVALID, dmce_addr_of(session, &local, NULL));
    IS(DMCE_E_INVALID, dmce_ptr_of(session, 1, NULL));
    CHECK(pointer == &local && addr == 77);
}

static void a_region_is_where_its_base_pointer_says(dmce_session_t *session)
{
    dmce_region_options_t options;
    dmce_region_t *region;
    dmce_addr_t addr, same;
    char *memory = NULL, text[8];
    void *again = NULL;
    dmce_region_options_init(&options);
    options.base_pointer = BASE;
    options.copies = 1;
    OK(dmce_region_create(session, "tests", "whole", BYTES, &options));
    OK(dmce_region_open(session, "tests", "whole", DMCE_READ | DMCE_WRITE, &region));
    IS(DMCE_E_INVALID, dmce_region_map(region, DMCE_READ, NULL));
    IS(DMCE_E_INVALID, dmce_region_map(region, DMCE_WRITE, &again));
    IS(DMCE_E_INVALID, dmce_region_map(region, 8, &again));
    OK(dmce_region_map(region, DMCE_READ | DMCE_WRITE, (void **)&memory));
    CHECK((uintptr_t)memory == BASE);
    strcpy(memory + BYTES - 8, "mapped!");
    OK(dmce_region_read(region, BASE + BYTES - 8, text, 8, DMCE_PM_ANY));
    CHECK(strcmp(text, "mapped!") == 0);
    OK(dmce_region_addr(region, BASE + BYTES - 1, &addr));
    OK(dmce_addr_of(session, memory + BYTES - 1, &same));
    CHECK(addr == same);
    OK(dmce_sync(session, memory, BYTES));
    OK(dmce_region_map(region, DMCE_READ | DMCE_WRITE, &again));
    CHECK(again == memory);
    OK(dmce_unmap(session, memory));
    IS(DMCE_E_BUSY, dmce_region_close(region));
    IS(DMCE_E_ADDRESS, dmce_vfree(session, memory));
    OK(dmce_unmap(session, memory));
    IS(DMCE_E_NOTFOUND, dmce_unmap(session, memory));

    /* Somebody else is there. */
    again = mmap(memory + 4096, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(again == memory + 4096);
    IS(DMCE_E_NOMEM, dmce_region_map(region, DMCE_READ, &again));
    CHECK(munmap(again, 4096) == 0);
    OK(dmce_region_map(region, DMCE_READ, (void **)&memory));
    CHECK((uintptr_t)memory == BASE && strcmp(memory + BYTES - 8, "mapped!") == 0);
    OK(dmce_unmap(session, memory));
    OK(dmce_region_close(region));
    OK(dmce_region_delete(session, "tests", "whole"));
}

static void a_child_reads_what_is_mapped_and_makes_no_call(dmce_session_t *session)
{
    int status = 0;
    char *memory = NULL;
    dmce_addr_t addr = 77;
    OK(dmce_vmalloc(session, BYTES, NULL, (void **)&memory));
    strcpy(memory, "parent");
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(strcmp(memory, "parent") == 0);
        IS(DMCE_E_FORKED, dmce_addr_of(session, memory, &addr));
        IS(DMCE_E_FORKED, dmce_sync(session, memory, 1));
        IS(DMCE_E_FORKED, dmce_vfree(session, memory));
        IS(DMCE_E_FORKED, dmce_vfree(session, NULL));
        _exit(addr == 77 ? 0 : 1);
    }
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(strcmp(memory, "parent") == 0);
    OK(dmce_addr_of(session, memory, &addr));
    /* It goes with the session. */
}

int main(void)
{
    dmce_session_t *session;
    OK(dmce_open(NULL, &session));
    stores_and_calls_meet(session);
    what_cannot_be_is_refused(session);
    a_region_is_where_its_base_pointer_says(session);
    a_child_reads_what_is_mapped_and_makes_no_call(session);
    OK(dmce_close(session));
    return 0;
}
