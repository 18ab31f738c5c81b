/*
 * libdmce: memory of other processes of the host, by a 64-bit address.
 *
 *     dmce_session_t *session;
 *     dmce_addr_t addr;
 *     if (dmce_open(NULL, &session) != DMCE_OK) { puts(dmce_last_error()); return 1; }
 *     if (dmce_malloc(session, 1 << 20, &addr) == DMCE_OK) {
 *         dmce_write(session, addr, "hello", 6);
 *         dmce_free(session, addr);
 *     }
 *     dmce_close(session);
 *
 * THE CONTRACT OF ALL CALLS
 *
 * Results. A function returns DMCE_OK, which is 0, or a positive DMCE_E_.. code; codes are never
 * reused. dmce_strerror says what a code means; dmce_last_error says it of this thread's last call
 * that failed, with the reason and its numbers. A call that fails leaves every byte, lock and
 * allocation as it was, unless its comment says otherwise.
 *
 * Arguments. The handle comes first, then what goes in, then what comes out. An output is written
 * only by a call that succeeds. NULL is DMCE_E_INVALID where the comment does not allow it; a
 * buffer of 0 bytes may be NULL. Texts are UTF-8 and end with a NUL; they are copied. Reading,
 * writing, copying, filling and comparing 0 bytes is done at every address inside an allocation or
 * a region and at its very end; elsewhere it is DMCE_E_ADDRESS, where a byte would be.
 *
 * Structures that begin with `size` let programs and libraries of different ages work together.
 * Options are initialised by the macro dmce_.._init, which also sets the size; for a structure that
 * a call fills, the program sets `size` to sizeof before the call. If the library knows more fields
 * than the program, those have their default, or are not written. If the program knows more, what
 * the library does not know must be zero, else DMCE_E_VERSION. Zero is the default of every field.
 * The layouts have no padding, on 64 bits or on 32.
 *
 * Handles are opaque: they look like pointers and are never dereferenced. One that is closed, also
 * twice, answers DMCE_E_CLOSED; anything that was never a handle is DMCE_E_INVALID. They may be
 * used by any thread, several at a time. A forked child must open its own session: a handle of its
 * parent answers DMCE_E_FORKED. No call is for signal handlers, and none may be left by longjmp or
 * by the end of its thread: others would wait for it.
 *
 * Addresses are numbers, the same in every process, and stay valid while the bytes behind them
 * move. Inside an allocation plain arithmetic is right. 0 is no address.
 *
 * What never happens. No call exits, aborts, prints, or raises a signal because of what another
 * process did: memory that is gone is DMCE_E_LOST. Only plain pointers, as dmce_map, dmce_vmalloc
 * and dmce_region_map give them, are as exposed as any mapping of a file; a forked child has what
 * they point to in common with its parent. For this the library handles SIGBUS, and unblocks it in each
 * thread at its first call; it must not be blocked again, and a handler that a program installs
 * later has to call the one that it replaces. A defect inside the library is DMCE_E_INTERNAL, and
 * closes the session.
 *
 * Not there yet. Calls that this release does not do check their handles and pointers and then
 * answer DMCE_E_UNSUPPORTED.
 */


#ifndef LIBDMCE_H
#define LIBDMCE_H

/* Generated from the source of dmce-ffi by 'make header'. Do not edit. */

#include <stddef.h>
#include <stdint.h>

/* What the opaque handles stand for is known to the library alone. */
typedef struct dmce_session dmce_session_t;
typedef struct dmce_region dmce_region_t;
typedef struct dmce_attrs dmce_attrs_t;

/* Options with their defaults, and with the size of the structure that the program knows. */
#define dmce_options_init(options) dmce_options_init_sized((options), sizeof *(options))
#define dmce_alloc_options_init(options) dmce_alloc_options_init_sized((options), sizeof *(options))
#define dmce_region_options_init(options) \
    dmce_region_options_init_sized((options), sizeof *(options))


/**
 * The version of this header: what `dmce_version` answers if the library is of the same release.
 */
#define DMCE_VERSION 256

/**
 * The version of the binary interface.
 */
#define DMCE_ABI_VERSION 1

/**
 * `flags` of `dmce_options_t`: a smaller reservation than asked for is fine.
 */
#define DMCE_ACCEPT_PARTIAL 1

/**
 * `flags` of `dmce_options_t`: start a private broker and daemons if none is found.
 */
#define DMCE_SPAWN 2

/**
 * `flags` of `dmce_options_t`: read and write by message, without any mapping.
 */
#define DMCE_MESSAGE_PATH 4

/**
 * `flags` of `dmce_options_t`: compare what was written with what was to be written.
 */
#define DMCE_VERIFY 8

/**
 * `flags` of `dmce_options_t`: no service thread; the program calls `dmce_poll`.
 */
#define DMCE_NO_THREAD 16

/**
 * `cache_mode`: no cache.
 */
#define DMCE_CACHE_NONE 0

/**
 * `cache_mode`: a write is done when the memory has it.
 */
#define DMCE_CACHE_THROUGH 1

/**
 * `cache_mode`: a write is done when the cache has it; `dmce_flush` brings it to the memory.
 */
#define DMCE_CACHE_BACK 2

/**
 * `flags` of `dmce_alloc_options_t`: wait until there is space.
 */
#define DMCE_WAIT 1

/**
 * `prot`: the memory is read.
 */
#define DMCE_READ 1

/**
 * `prot`: the memory is written.
 */
#define DMCE_WRITE 2

/**
 * `flags` of pointers: `DMCE_E_BUSY` at once, without a place in the queue.
 */
#define DMCE_NOWAIT 1

/**
 * `flags` of pointers: `DMCE_E_BUSY` at once, with a place in the queue; `DMCE_EVENT_GRANTED`
 * announces the turn.
 */
#define DMCE_QUEUE 2

/**
 * `flags` of pointers: takes a range whose owner died while writing it, as it is.
 */
#define DMCE_TAKE_DIRTY 4

/**
 * `mirror` of a read: any half that is there.
 */
#define DMCE_PM_ANY 0

/**
 * `mirror`: the half that was created as the primary, alone.
 */
#define DMCE_PM_PRIMARY 1

/**
 * `mirror`: the half that was created as the mirror, alone.
 */
#define DMCE_PM_MIRROR 2

/**
 * `mirror` of a write: every half that exists.
 */
#define DMCE_PM_BOTH 3

/**
 * `kind` of an event: the turn of a queued pointer to `addr` has come.
 */
#define DMCE_EVENT_GRANTED 1

/**
 * `kind` of an event: a daemon, or all together, are nearly full. `bytes`: what all have left;
 * `addr` is 0.
 */
#define DMCE_EVENT_PRESSURE 2

/**
 * `kind` of an event: the block that begins at `addr` has one copy fewer; nothing is missing.
 */
#define DMCE_EVENT_COPY_LOST 3

/**
 * `kind` of an event: the block that begins at `addr` has all its copies again.
 */
#define DMCE_EVENT_COPY_RESTORED 4

/**
 * `kind` of an event: the last copy is lost, of memory of the session or of a region that it has
 * open.
 */
#define DMCE_EVENT_LOST 5

/**
 * `kind` of an event: after a refusal for want of memory there is room again. `bytes`: what the
 * session could have in one piece; `addr` is 0.
 */
#define DMCE_EVENT_AVAILABLE 6

/**
 * The outcome of a call: `DMCE_OK`, or one of `DMCE_E_..`. Codes are never reused.
 */
typedef int32_t dmce_status_t;

/**
 * How to open a session. Initialise it with `dmce_options_init`; zero is the default of each
 * field.
 */
typedef struct {
    /**
     * `sizeof` of the structure, as the program was compiled.
     */
    uint32_t size;
    /**
     * `DMCE_ABI_VERSION`.
     */
    uint32_t abi_version;
    /**
     * Bytes to reserve for this session. 0: none, all memory is asked for as it is needed.
     */
    uint64_t reserve_bytes;
    /**
     * Bytes of address space to reach memory through; 32 GiB are the most that is used. 0: whole
     * blocks are mapped in a 64-bit process, and 256 MiB are taken in a 32-bit one.
     * `DMCE_WINDOW_BUDGET` in the environment replaces the 0.
     */
    uint64_t window_budget;
    /**
     * Bytes of the cache for memory that is not mapped.
     */
    uint64_t cache_bytes;
    /**
     * Copies of each allocation. 0: as the instance is configured.
     */
    uint32_t copies;
    /**
     * How long a call waits for a broker that is away, and on the message path for a daemon. 0:
     * 10,000.
     */
    uint32_t timeout_ms;
    /**
     * `DMCE_ACCEPT_PARTIAL`, `DMCE_SPAWN`, `DMCE_MESSAGE_PATH`, `DMCE_VERIFY`, `DMCE_NO_THREAD`.
     * With `DMCE_MESSAGE_PATH` nothing is mapped: daemons are asked for bytes, over connections
     * that the broker passes, or through it where the environment says
     * `DMCE_MESSAGE_ROUTE=broker`. A write that ends with `DMCE_E_TIMEOUT` may then be done yet,
     * and a word for which a call ended with `DMCE_E_IO` may have been changed.
     */
    uint32_t flags;
    /**
     * `DMCE_CACHE_NONE`, `DMCE_CACHE_THROUGH`, `DMCE_CACHE_BACK`: for memory that is not mapped.
     */
    uint32_t cache_mode;
    /**
     * The broker's socket. NULL: `DMCE_SOCKET` of the environment, the host's, the user's own. One
     * that is named and at which nobody listens is waited for, as its broker may be starting
     * again; one that is not there is not.
     */
    const char *socket;
    /**
     * What the session is called in listings. NULL: nothing.
     */
    const char *name;
} dmce_options_t;

/**
 * How to allocate. Initialise it with `dmce_alloc_options_init`; zero is the default of each
 * field.
 */
typedef struct {
    /**
     * `sizeof` of the structure, as the program was compiled.
     */
    uint32_t size;
    /**
     * Copies. 0: as the session. Too few daemons for them is an error, never silently fewer.
     */
    uint32_t copies;
    /**
     * The page size of the memory: a power of two from 4 KiB to 2 MiB. 0: the default.
     */
    uint32_t page_size;
    /**
     * Alignment: a power of two up to 2 MiB. 0: 16, and a page from 4 KiB up.
     */
    uint32_t align;
    /**
     * How long `DMCE_WAIT` waits. 0: for ever.
     */
    uint32_t timeout_ms;
    /**
     * `DMCE_WAIT`: until there is space on the daemon of every copy, or `DMCE_E_TIMEOUT`. Other
     * calls of the session go on meanwhile. Without it the answer is immediate, unless the policy
     * waits.
     */
    uint32_t flags;
    /**
     * 0: by size from the configured table; else a number of that table, or `DMCE_E_NOTFOUND`.
     * What else is said here comes first.
     */
    uint32_t policy;
    /**
     * The node to prefer. 0: no preference.
     */
    uint32_t numa_node;
    /**
     * A name for logs and listings. NULL: none.
     */
    const char *label;
} dmce_alloc_options_t;

/**
 * What a session holds and how it reaches it. Set `size` before the call.
 */
typedef struct {
    /**
     * `sizeof` of the structure, as the program was compiled.
     */
    uint32_t size;
    /**
     * Width of the server field of an address.
     */
    uint32_t server_bits;
    /**
     * Width of the block field.
     */
    uint32_t block_bits;
    /**
     * Width of the cell field: a block has at most 1 << `cell_bits` bytes.
     */
    uint32_t cell_bits;
    /**
     * Bytes that were reserved when the session was opened.
     */
    uint64_t reserved_bytes;
    /**
     * Bytes of the session's allocations.
     */
    uint64_t allocated_bytes;
    /**
     * Bytes that the session's blocks have.
     */
    uint64_t committed_bytes;
    /**
     * Bytes that the user may hold in all; `UINT64_MAX` without a limit.
     */
    uint64_t quota_bytes;
    /**
     * The session's blocks.
     */
    uint64_t blocks;
    /**
     * Windows that are mapped now. 0 where blocks are mapped whole.
     */
    uint64_t windows;
    /**
     * Bytes of address space that the windows may take. 0 where blocks are mapped whole.
     */
    uint64_t window_bytes;
    /**
     * How often something that the session knew of its memory has changed.
     */
    uint64_t epoch;
} dmce_stat_t;

/**
 * The location of one byte of memory, in every process. 0: none. Plain arithmetic is right inside
 * an allocation.
 */
typedef uint64_t dmce_addr_t;

/**
 * How to create a region. Initialise it with `dmce_region_options_init`; zero is the default of
 * each field.
 */
typedef struct {
    /**
     * `sizeof` of the structure, as the program was compiled.
     */
    uint32_t size;
    /**
     * Nine permission bits, as of a file. 0: 0600.
     */
    uint32_t mode;
    /**
     * What a pointer to the first byte reads. 0: offsets, as in a file. Fixed for ever.
     */
    uint64_t base_pointer;
    /**
     * Copies. 0: as the instance is configured.
     */
    uint32_t copies;
    /**
     * The page size of the memory: a power of two from 4 KiB to 2 MiB. 0: the default.
     */
    uint32_t page_size;
    /**
     * No flag is defined yet.
     */
    uint32_t flags;
    /**
     * Zero.
     */
    uint32_t reserved;
} dmce_region_options_t;

/**
 * What opening a region found. Set `size` before the call.
 */
typedef struct {
    /**
     * `sizeof` of the structure, as the program was compiled.
     */
    uint32_t size;
    /**
     * Copies that were asked for. How many there are of each block, `dmce blocks` tells.
     */
    uint32_t copies;
    /**
     * Bytes.
     */
    uint64_t region_size;
    /**
     * What a pointer to the first byte reads.
     */
    uint64_t base_pointer;
    /**
     * The address of the first byte.
     */
    dmce_addr_t first;
    /**
     * The daemon that holds the primary half.
     */
    uint32_t primary_daemon;
    /**
     * The daemon that holds the mirror. 0: none.
     */
    uint32_t mirror_daemon;
} dmce_region_info_t;

/**
 * What happened, and to which range. Set `size` before the call.
 */
typedef struct {
    /**
     * `sizeof` of the structure, as the program was compiled.
     */
    uint32_t size;
    /**
     * `DMCE_EVENT_GRANTED`, `_PRESSURE`, `_COPY_LOST`, `_COPY_RESTORED`, `_LOST`, `_AVAILABLE`.
     * Take other values for events of a later release.
     */
    uint32_t kind;
    /**
     * The first byte of the range. 0 where an event speaks of no range.
     */
    dmce_addr_t addr;
    /**
     * Bytes.
     */
    uint64_t bytes;
} dmce_event_t;

/**
 * Done.
 */
#define DMCE_OK 0

/**
 * An argument that no state of the system would make right.
 */
#define DMCE_E_INVALID 1

/**
 * Not a legal address: not allocated, freed, or across the end of an allocation.
 */
#define DMCE_E_ADDRESS 2

/**
 * The daemons have no room, or a text does not fit where it should go.
 */
#define DMCE_E_NOSPACE 3

/**
 * The user's limit is reached.
 */
#define DMCE_E_QUOTA 4

/**
 * The caller lacks the right.
 */
#define DMCE_E_DENIED 5

/**
 * There is no such thing.
 */
#define DMCE_E_NOTFOUND 6

/**
 * There is one already.
 */
#define DMCE_E_EXISTS 7

/**
 * Locked and not waiting, open elsewhere, or pinned.
 */
#define DMCE_E_BUSY 8

/**
 * Not within the time that the caller allowed.
 */
#define DMCE_E_TIMEOUT 9

/**
 * No copy of the memory is left, until it is restored; or of one page nothing but a write that
 * never ended, until all of that page is written.
 */
#define DMCE_E_LOST 10

/**
 * The half that was asked for is away.
 */
#define DMCE_E_NOCOPY 11

/**
 * The owner of a pointer died, and its range could not be rolled back.
 */
#define DMCE_E_OWNER_DIED 12

/**
 * No broker answers, and the call needs one.
 */
#define DMCE_E_UNAVAILABLE 13

/**
 * Two parts of different versions met; the text names both.
 */
#define DMCE_E_VERSION 14

/**
 * What was read is damaged.
 */
#define DMCE_E_CORRUPT 15

/**
 * The handle is the parent process's: a forked child opens its own.
 */
#define DMCE_E_FORKED 16

/**
 * The handle, or the session that it belongs to, is closed.
 */
#define DMCE_E_CLOSED 17

/**
 * This process has no memory or no address space left.
 */
#define DMCE_E_NOMEM 18

/**
 * Input or output failed. From a write: the content of the range is undefined.
 */
#define DMCE_E_IO 19

/**
 * This release cannot do it.
 */
#define DMCE_E_UNSUPPORTED 20

/**
 * A defect of DMCE. The session is closed.
 */
#define DMCE_E_INTERNAL 21

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * What a status means, in a few words. Static text; never NULL, whatever the number.
 */
const char *dmce_strerror(dmce_status_t status);

/**
 * This thread's last failure, with its numbers; "" if there was none.
 *
 * It begins with what `dmce_strerror` says of the status; then, where there is more to say, follow
 * a colon and the reason: "invalid argument: 0 bytes".
 *
 * A call that succeeds leaves it as it is. The text is valid until a call of this thread fails
 * again or the thread ends.
 */
const char *dmce_last_error(void);

/**
 * The version of the library that runs: major << 16 | minor << 8 | patch.
 */
uint32_t dmce_version(void);

/**
 * `dmce_options_init(options)` for a structure of `size` bytes. NULL is ignored.
 */
void dmce_options_init_sized(dmce_options_t *options, size_t size);

/**
 * `dmce_alloc_options_init(options)` for a structure of `size` bytes. NULL is ignored.
 */
void dmce_alloc_options_init_sized(dmce_alloc_options_t *options, size_t size);

/**
 * Opens a session with a broker. `options` may be NULL.
 *
 * Fails without a session where less than `reserve_bytes` can be reserved, unless
 * `DMCE_ACCEPT_PARTIAL` is set and there is something; `dmce_stat` tells how much it is.
 */
dmce_status_t dmce_open(const dmce_options_t *options, dmce_session_t **session);

/**
 * Closes a session: frees what it allocated, closes its regions. Regions themselves stay.
 *
 * The handle is closed in any case but `DMCE_E_FORKED`. Calls of other threads that are under way
 * end first.
 */
dmce_status_t dmce_close(dmce_session_t *session);

/**
 * Does what the service thread would do now, for sessions with `DMCE_NO_THREAD`.
 */
dmce_status_t dmce_poll(dmce_session_t *session);

/**
 * Brings to the memory what write-back still holds.
 */
dmce_status_t dmce_flush(dmce_session_t *session);

/**
 * What the session holds. `stat->size` must be set; no more than that is written.
 */
dmce_status_t dmce_stat(dmce_session_t *session, dmce_stat_t *stat);

/**
 * Allocates. Memory of a new block reads as zero; reused memory may hold older bytes of this
 * session. Aligned to 16, and to a page from 4 KiB up.
 */
dmce_status_t dmce_malloc(dmce_session_t *session, uint64_t bytes, dmce_addr_t *addr);

/**
 * Allocates as the options say; NULL means the defaults.
 */
dmce_status_t dmce_malloc_ex(dmce_session_t *session,
                             uint64_t bytes,
                             const dmce_alloc_options_t *options,
                             dmce_addr_t *addr);

/**
 * Allocates `count` times `bytes`, which read as zero.
 */
dmce_status_t dmce_calloc(dmce_session_t *session,
                          uint64_t count,
                          uint64_t bytes,
                          dmce_addr_t *addr);

/**
 * Changes the size of an allocation, which may move. If it fails, `old` stays as it was. An `old`
 * of 0 allocates.
 *
 * One that moves is aligned as by `dmce_malloc`: a larger alignment that was asked for with
 * `dmce_malloc_ex` is kept only as long as the address stays the same.
 */
dmce_status_t dmce_realloc(dmce_session_t *session,
                           dmce_addr_t old,
                           uint64_t bytes,
                           dmce_addr_t *addr);

/**
 * Frees an allocation. 0 is fine; freeing twice is `DMCE_E_ADDRESS`, freeing what is mapped
 * `DMCE_E_BUSY`.
 *
 * The session can allocate from it again at once. To the daemon go back whole blocks: those of an
 * allocation that has blocks of its own at once, one that several share when nothing in it has
 * been allocated for `broker.idle_s` of the configuration. No block shrinks before.
 */
dmce_status_t dmce_free(dmce_session_t *session, dmce_addr_t addr);

/**
 * How many bytes an allocation really has, at least those that were asked for.
 */
dmce_status_t dmce_usable_size(dmce_session_t *session, dmce_addr_t addr, uint64_t *bytes);

/**
 * Reads `bytes` bytes into `buffer`.
 */
dmce_status_t dmce_read(dmce_session_t *session, dmce_addr_t from, void *buffer, size_t bytes);

/**
 * Writes `bytes` bytes from `buffer`. When it returns, every copy has them, unless write-back was
 * chosen. `DMCE_E_IO` says that the content of the range is undefined: also where a part was
 * written before something was in the way of the rest, which `dmce_last_error` names. A call that
 * fails otherwise has changed no byte that is not lost, but where `DMCE_MESSAGE_PATH` says so, and
 * where the session itself has ended meanwhile (`DMCE_E_CLOSED`, also of a larger write).
 */
dmce_status_t dmce_write(dmce_session_t *session, dmce_addr_t to, const void *buffer, size_t bytes);

/**
 * Copies inside the memory of the session. The two ranges may overlap, as with `memmove`.
 */
dmce_status_t dmce_copy(dmce_session_t *session, dmce_addr_t to, dmce_addr_t from, uint64_t bytes);

/**
 * Sets every byte of a range to `byte`, of which the lowest eight bits count.
 */
dmce_status_t dmce_fill(dmce_session_t *session, dmce_addr_t to, int byte, uint64_t bytes);

/**
 * Compares a range with `buffer`. `order` gets -1, 0 or 1: the range is less, equal or greater, as
 * with `memcmp`.
 */
dmce_status_t dmce_compare(dmce_session_t *session,
                           dmce_addr_t a,
                           const void *buffer,
                           size_t bytes,
                           int *order);

/**
 * Makes the word at `at` `desired` if it is `expected`, on every copy, atomically among all
 * processes. `seen` gets what it was: `expected`, if it was changed. The address is a multiple of
 * 8, else `DMCE_E_INVALID`.
 *
 * With `DMCE_MESSAGE_PATH` a daemon or the broker may die, or stop, between the change and its
 * answer, and nobody can know then whether the word was changed: `DMCE_E_IO` says that it may have
 * been; `DMCE_E_TIMEOUT`, where `dmce_last_error` says so, that it may be yet, when the daemon
 * goes on. After any other error, and on mapped memory after any error, it was not; but of a
 * session that ended between two copies (`DMCE_E_CLOSED`) that is decided after its end.
 */
dmce_status_t dmce_cas64(dmce_session_t *session,
                         dmce_addr_t at,
                         uint64_t expected,
                         uint64_t desired,
                         uint64_t *seen);

/**
 * Adds to the word at `at`, wrapping around, on every copy, atomically among all processes.
 * `before` gets what it was. The address is a multiple of 8, else `DMCE_E_INVALID`.
 *
 * With `DMCE_MESSAGE_PATH`, what `dmce_cas64` says of `DMCE_E_IO` and `DMCE_E_TIMEOUT` holds.
 */
dmce_status_t dmce_add64(dmce_session_t *session, dmce_addr_t at, uint64_t add, uint64_t *before);

/**
 * Waits while the word at `at`, a multiple of 8, is `while_equal`: until it changes and
 * `dmce_wake` is called, at most `timeout_ms`; 0 is for ever. `DMCE_OK` says that it was something
 * else when it was looked at; a word that changed and changed back in the meantime counts as not
 * changed. The session's own time limit does not end it, not even while the broker or a daemon
 * that has to be asked does not answer.
 */
dmce_status_t dmce_wait64(dmce_session_t *session,
                          dmce_addr_t at,
                          uint64_t while_equal,
                          uint32_t timeout_ms);

/**
 * Wakes at most `count` of those who wait for a word, of all processes. Whoever may read it may
 * call this.
 */
dmce_status_t dmce_wake(dmce_session_t *session, dmce_addr_t at, uint32_t count);

/**
 * Maps a range at consecutive OS addresses. It is pinned until it is unmapped: it can neither be
 * freed nor moved. `prot` is `DMCE_READ`, or `DMCE_READ | DMCE_WRITE`. A session on the message
 * path maps nothing: `DMCE_E_UNSUPPORTED`.
 */
dmce_status_t dmce_map(dmce_session_t *session,
                       dmce_addr_t addr,
                       size_t bytes,
                       uint32_t prot,
                       void **pointer);

/**
 * Ends a mapping, by the pointer that `dmce_map` or `dmce_region_map` gave. What was written by it
 * reaches every copy: until then it is on one of them alone, and goes with that, if its daemon
 * loses it. Another copy is beneath the pointer from then on, without what was written by it
 * before, and nobody is told but by `DMCE_EVENT_COPY_LOST`.
 */
dmce_status_t dmce_unmap(dmce_session_t *session, void *pointer);

/**
 * Allocates memory at consecutive OS addresses, over as many blocks of as many daemons as it
 * takes. Plain loads and stores use it, and every other call by the address that `dmce_addr_of`
 * gives. It is zero at first, begins at a multiple of 2 MiB, and ends with `dmce_vfree`, or with
 * the session. `options` may be NULL.
 *
 * Stores by the pointer are in the memory at once. With several copies they are on one of them
 * alone until `dmce_sync`; if that one is lost, the pointer goes on with another, without what was
 * stored since.
 *
 * `DMCE_E_NOMEM`: this process has not so much address space left in a row, or the session has 512
 * pointers of this and of `dmce_map`. Address space, and pages in tables, are all that it costs: a
 * window budget does not count it. `DMCE_E_NOSPACE`, `DMCE_E_QUOTA` as from `dmce_malloc_ex`. A
 * session on the message path maps nothing: `DMCE_E_UNSUPPORTED`.
 */
dmce_status_t dmce_vmalloc(dmce_session_t *session,
                           uint64_t bytes,
                           const dmce_alloc_options_t *options,
                           void **pointer);

/**
 * Frees what `dmce_vmalloc` gave. NULL is fine. `DMCE_E_ADDRESS` for any other pointer, and for
 * one that was freed; `DMCE_E_BUSY` while a pointer of `dmce_map` is into the memory. `dmce_free`
 * of its address is `DMCE_E_BUSY`: this is the call.
 */
dmce_status_t dmce_vfree(dmce_session_t *session, void *pointer);

/**
 * Brings stores that were made by plain pointer to every copy. The range is in what one call of
 * `dmce_vmalloc` or `dmce_region_map` gave, else `DMCE_E_ADDRESS`; 0 bytes are nothing to do,
 * where a byte may be and at the very end. What is stored meanwhile may be brought or not.
 *
 * Where the kernel notes them (`dmce doctor`), the pages alone are brought that were stored to by
 * this pointer, in this process: not what a forked child stores, nor what a device still writes.
 * `DMCE_E_LOST`: the copy that was stored to has gone meanwhile, and what was stored with it.
 */
dmce_status_t dmce_sync(dmce_session_t *session, void *pointer, uint64_t bytes);

/**
 * The DMCE address of a byte of transparent memory: of what `dmce_vmalloc` or `dmce_region_map`
 * gave, to the byte; else `DMCE_E_ADDRESS`. May be called while other threads allocate and free:
 * of memory that is freed meanwhile it is the address that it had, or `DMCE_E_ADDRESS`.
 */
dmce_status_t dmce_addr_of(dmce_session_t *session, const void *pointer, dmce_addr_t *addr);

/**
 * The pointer to a byte of transparent memory, by its DMCE address; `DMCE_E_ADDRESS` if that is
 * not in what `dmce_vmalloc` or `dmce_region_map` gave this session.
 */
dmce_status_t dmce_ptr_of(dmce_session_t *session, dmce_addr_t addr, void **pointer);

/**
 * A pointer to read a range by, shared with other readers. The range is exact to the byte, and
 * stays where it is until the pointer is released.
 *
 * Without flags it waits its turn behind all who asked before, at most the `timeout_ms` of the
 * session's options, for ever if that is 0. Calls of the same session nest only read in read.
 * `dmce_write` and its like do not wait for it.
 *
 * With `DMCE_QUEUE` the next call for the same range takes the turn; one that nobody takes lapses
 * after the session's timeout. A call that waits for a queued range in vain has given up its
 * place. Of several pointers that begin at one byte a release ends that to the fewest bytes.
 * `DMCE_E_NOMEM`: the session has 1024 pointers, or 512 pins.
 * `DMCE_E_UNSUPPORTED` for a region in this release, and on the message path.
 */
dmce_status_t dmce_read_ptr(dmce_session_t *session,
                            dmce_addr_t addr,
                            size_t bytes,
                            uint32_t flags,
                            const void **pointer);

/**
 * A pointer to write a range by, exclusive. It waits as `dmce_read_ptr` does.
 *
 * What is stored by it is on one copy until it is released, and stays the caller's if that copy is
 * lost meanwhile.
 *
 * After an owner died without a copy to roll back from: `DMCE_E_OWNER_DIED`, without the lock,
 * until somebody passes `DMCE_TAKE_DIRTY`.
 */
dmce_status_t dmce_write_ptr(dmce_session_t *session,
                             dmce_addr_t addr,
                             size_t bytes,
                             uint32_t flags,
                             void **pointer);

/**
 * Ends a pointer. What was written by it reaches every copy. `DMCE_E_LOST`: a part of that is gone
 * with the copy that it was on, whose object somebody cut; the pointer has ended all the same.
 * After any other error it has not. `DMCE_E_NOTFOUND` if it is no such pointer.
 */
dmce_status_t dmce_release_ptr(dmce_session_t *session, const void *pointer);

/**
 * Ends a write pointer and leaves the range as it was before, but for what `dmce_write` and its
 * like have written there since. Without a second copy, or if the copies have changed since, so
 * that none says what was there, `DMCE_E_UNSUPPORTED`, and the pointer has not ended.
 */
dmce_status_t dmce_abort_ptr(dmce_session_t *session, void *pointer);

/**
 * Gives up a place in the queue for a range. `DMCE_E_NOTFOUND` if it has none.
 */
dmce_status_t dmce_cancel_ptr(dmce_session_t *session, dmce_addr_t addr, size_t bytes);

/**
 * `dmce_region_options_init(options)` for a structure of `size` bytes. NULL is ignored.
 */
void dmce_region_options_init_sized(dmce_region_options_t *options, size_t size);

/**
 * Makes a region of `region_size` bytes, all zero. `options` may be NULL. A volume that does not
 * exist is made.
 */
dmce_status_t dmce_region_create(dmce_session_t *session,
                                 const char *volume,
                                 const char *name,
                                 uint64_t region_size,
                                 const dmce_region_options_t *options);

/**
 * Deletes a region. A handle of this session answers `DMCE_E_CLOSED` afterwards. `DMCE_E_BUSY`
 * while another session has it open, or if the daemon that holds its beginning stays away: then
 * nothing is deleted. After `DMCE_E_UNAVAILABLE` it may go yet, and the handles are closed even if
 * it stays.
 */
dmce_status_t dmce_region_delete(dmce_session_t *session, const char *volume, const char *name);

/**
 * Opens a region. `prot` is `DMCE_READ`, `DMCE_WRITE`, or both; what the region's mode does not
 * grant is `DMCE_E_DENIED`. A region that the caller neither owns nor has any right to is
 * `DMCE_E_NOTFOUND`, as it is for `dmce_region_delete`; `dmce_region_list` leaves it out. Memory
 * that may be written can be read: with `DMCE_WRITE` alone only `dmce_region_read` refuses.
 */
dmce_status_t dmce_region_open(dmce_session_t *session,
                               const char *volume,
                               const char *name,
                               uint32_t prot,
                               dmce_region_t **region);

/**
 * Closes a region.
 *
 * The handle is closed in any case but two: `DMCE_E_FORKED`, and `DMCE_E_BUSY` while a pointer of
 * `dmce_map` or `dmce_region_map` is into the region and this is its last handle.
 */
dmce_status_t dmce_region_close(dmce_region_t *region);

/**
 * Reads `bytes` bytes from `read_pointer` on. `mirror` is `DMCE_PM_ANY`, `DMCE_PM_PRIMARY` or
 * `DMCE_PM_MIRROR`: any copy that is there, or the half that was created as that, and
 * `DMCE_E_NOCOPY` if that one is away.
 */
dmce_status_t dmce_region_read(dmce_region_t *region,
                               uint64_t read_pointer,
                               void *buffer,
                               size_t bytes,
                               uint32_t mirror);

/**
 * Writes `bytes` bytes from `write_pointer` on. `mirror` is `DMCE_PM_BOTH`, `DMCE_PM_PRIMARY` or
 * `DMCE_PM_MIRROR`: all copies that there are, or one half alone, and `DMCE_E_NOCOPY` if that one
 * is away. After a write to one half the copies differ, as it was wanted, until all of the range
 * is written with `DMCE_PM_BOTH`, or `dmce region resync` is called.
 */
dmce_status_t dmce_region_write(dmce_region_t *region,
                                uint64_t write_pointer,
                                const void *buffer,
                                size_t bytes,
                                uint32_t mirror);

/**
 * What opening the region found. `info->size` must be set; no more than that is written.
 */
dmce_status_t dmce_region_info(dmce_region_t *region, dmce_region_info_t *info);

/**
 * The DMCE address of a pointer into the region, so that every other call works on it too.
 */
dmce_status_t dmce_region_addr(dmce_region_t *region, uint64_t pointer, dmce_addr_t *addr);

/**
 * The names of a volume's regions, sorted.
 *
 * `names` is an array of `list_size` entries, which get texts for `dmce_strings_free`; entries
 * without a text get NULL. `region_cnt` gets how many regions there are, which may be more. (NULL,
 * 0) only counts.
 */
dmce_status_t dmce_region_list(dmce_session_t *session,
                               const char *volume,
                               char **names,
                               size_t list_size,
                               size_t *region_cnt);

/**
 * Changes the size of a region.
 */
dmce_status_t dmce_region_resize(dmce_session_t *session,
                                 const char *volume,
                                 const char *name,
                                 uint64_t region_size);

/**
 * Renames a region.
 */
dmce_status_t dmce_region_rename(dmce_session_t *session,
                                 const char *volume,
                                 const char *name,
                                 const char *new_name);

/**
 * Names a place inside the region, or moves the name, atomically.
 */
dmce_status_t dmce_region_root_set(dmce_region_t *region, const char *root, uint64_t pointer);

/**
 * The place that a name stands for.
 */
dmce_status_t dmce_region_root_get(dmce_region_t *region, const char *root, uint64_t *pointer);

/**
 * Maps the whole region, at `base_pointer` where that is free in this process, else
 * `DMCE_E_NOMEM`; anywhere if `base_pointer` is 0. `prot` is `DMCE_READ`, or
 * `DMCE_READ | DMCE_WRITE`.
 *
 * It is mapped until `dmce_unmap`, which brings what was stored to every copy, as `dmce_sync` does
 * before; until then the region's last handle cannot be closed: `DMCE_E_BUSY`. The page that the
 * last byte is in is mapped to its end; `dmce_addr_of` ends with the byte. Mapped again by the
 * same session, with the same rights, it is the same pointer, which ends with as many calls of
 * `dmce_unmap`; with other rights, `DMCE_E_BUSY`. A `base_pointer` that is no multiple of 4 KiB
 * cannot be mapped.
 */
dmce_status_t dmce_region_map(dmce_region_t *region, uint32_t prot, void **pointer);

/**
 * Brings the region to the file behind it.
 */
dmce_status_t dmce_region_flush(dmce_region_t *region);

/**
 * The attributes of a region as they are now, to be freed with `dmce_attrs_free`.
 */
dmce_status_t dmce_region_attrs(dmce_session_t *session,
                                const char *volume,
                                const char *name,
                                dmce_attrs_t **attrs);

/**
 * An attribute of 64 bits. Another type is `DMCE_E_INVALID`, an unknown name `DMCE_E_NOTFOUND`.
 */
dmce_status_t dmce_attr_u64(const dmce_attrs_t *attrs, const char *attr_name, uint64_t *value);

/**
 * An attribute of 32 bits, as `dmce_attr_u64`.
 */
dmce_status_t dmce_attr_u32(const dmce_attrs_t *attrs, const char *attr_name, uint32_t *value);

/**
 * An attribute of 16 bits, as `dmce_attr_u64`.
 */
dmce_status_t dmce_attr_u16(const dmce_attrs_t *attrs, const char *attr_name, uint16_t *value);

/**
 * A text attribute. `max_string_len` includes the NUL; what does not fit is cut, and the answer is
 * `DMCE_E_NOSPACE`.
 */
dmce_status_t dmce_attr_str(const dmce_attrs_t *attrs,
                            const char *attr_name,
                            char *value,
                            size_t max_string_len);

/**
 * Frees the attributes. NULL is fine.
 */
void dmce_attrs_free(dmce_attrs_t *attrs);

/**
 * Saves the session's allocations, its transparent mappings and `bytes` bytes at `root` under a
 * name. The session goes on.
 */
dmce_status_t dmce_context_save(dmce_session_t *session,
                                const char *name,
                                const void *root,
                                size_t bytes);

/**
 * Brings back what was saved into a session without allocations. `root` gets at most `max_bytes`
 * of the blob, `bytes` its size.
 */
dmce_status_t dmce_context_restore(dmce_session_t *session,
                                   const char *name,
                                   void *root,
                                   size_t max_bytes,
                                   size_t *bytes);

/**
 * Removes what was saved under a name.
 */
dmce_status_t dmce_context_delete(dmce_session_t *session, const char *name);

/**
 * A descriptor that is readable while an event waits: fits `poll` and `epoll`. It belongs to the
 * session; do not close it, and do not use it after `dmce_close`.
 *
 * Events are told from the first call of this or of `dmce_event_next` on. A session with
 * `DMCE_NO_THREAD` takes them in by `dmce_poll`.
 */
dmce_status_t dmce_event_fd(dmce_session_t *session, int *fd);

/**
 * Takes the oldest event; `DMCE_E_NOTFOUND` when none waits. `event->size` must be set. Of more
 * than 256 that wait the oldest are forgotten.
 */
dmce_status_t dmce_event_next(dmce_session_t *session, dmce_event_t *event);

/**
 * Frees the texts in an array of `count` and makes them NULL. The array itself is the caller's.
 * NULL is fine, for the array and for a text.
 */
void dmce_strings_free(char **names, size_t count);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* LIBDMCE_H */
