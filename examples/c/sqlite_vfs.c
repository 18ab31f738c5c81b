/*
 * sqlite_vfs: SQLite databases in DMCE memory, as a loadable extension.
 *
 *     sqlite> .load ./sqlite_vfs
 *     sqlite> .open file:packages.db?vfs=dmce
 *
 * A 32-bit program so works with a database that is larger than all that it can address, and
 * programs of both widths share it. It lives as long as the daemons: it survives `kill -9` of every
 * program that uses it, and of the broker and the daemons, but not a reboot.
 *
 * What is where, in the volume DMCE_SQLITE_VOLUME ("sqlite" if that is not set):
 *
 *     NAME                    one page: the locks, and the sizes of the database and its journal
 *     .d0-NAME, .d1-NAME ..   the bytes of the database: extents of 1, 2, 4 .. 256, 256 .. MiB
 *     .j0-NAME, .j1-NAME ..   the bytes of its rollback journal
 *     .owner-NONCE            open in the program that has this nonce, as long as it lives
 *
 * In a NAME, what regions cannot have in theirs and a dot at the beginning are written as in URIs.
 * Temporary files are memory of the session, which goes with the program.
 *
 * Locks. One 64-bit word holds all locks of a database, so each step from one state to the next is
 * a single dmce_cas64, and a program may be killed between any two:
 *
 *     bit  0..39   slot n reads (SHARED)
 *     bit 40..45   1 + the slot that writes, or 0
 *     bit 46..47   how far that one is: RESERVED, PENDING, EXCLUSIVE
 *     bit 48       somebody sleeps in dmce_wait64 until the word changes
 *
 * A connection has a slot; the slot's owner word holds the nonce of its program. Who finds a lock
 * in the way asks whether its owner lives: DMCE deletes a region only if no living session has it
 * open, so the region .owner-NONCE can be deleted exactly if the owner is dead. Then its slot is
 * marked as being cleared (by whom, in case that one dies, too), its locks are taken out of the
 * word, and the slot is free. A journal that a dead writer left is rolled back by SQLite itself.
 *
 * Super-journals, NAME-mj and nine digits, hold together the journals of a transaction over several
 * databases: as long as it is there, those that name it are rolled back. SQLite deletes it with the
 * last of them; but not if its writer was killed before the first had its name, or in the middle of
 * deleting it. Programs that begin do that, if they find that
 *
 *     it does not exist, or its owner word names a dead program, or nobody: it was written to its
 *     end; and no journal that it lists names it. None will then.
 *
 * Whoever is first makes EXISTS what it is to be: 0 -> 1 who writes it, 0 or 1 -> GONE who removes
 * it. From then on it is nothing, and its regions go as soon as nobody has them open.
 *
 * There is no shared-memory index for write-ahead logs here: `PRAGMA journal_mode = wal` keeps the
 * mode as it was.
 *
 *     cc -shared -fPIC -std=gnu11 -o sqlite_vfs.so sqlite_vfs.c -ldmce -lpthread    (or with -m32)
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include <sqlite3ext.h>
SQLITE_EXTENSION_INIT1

#include "libdmce.h"

#define MIB ((uint64_t)1 << 20)
#define NAME_BYTES 128
#define SLOTS 40
#define EXTENTS 128 /* more than 30 GiB */
#define DOUBLING 8  /* extents that double: the last of them has 256 MiB */

/* How long a lock is waited for before SQLite is told that it is busy, and asks its own handler. */
#define PATIENCE_MS 20
/* How long an owner that was seen alive is believed to live. */
#define BELIEF_MS 20u

/* The control page, by offsets. All fields are 64-bit words. */
enum {
    AT_MAGIC = 0,
    AT_LOCKS = 8,
    AT_EXISTS = 16, /* of the database, of the journal */
    AT_SIZE = 32,   /* of the database, of the journal */
    AT_OWNERS = 64, /* one for each slot */
    CONTROL_BYTES = 4096
};
#define MAGIC UINT64_C(0x314c5153454d4344) /* "DCMESQL1" as bytes */

/* In place of 0 or 1 in AT_EXISTS of a super-journal: it is being removed. */
#define GONE 2

/* The two files that a control page describes. */
enum part { DATABASE, JOURNAL, PARTS };

/* The lock word. */
#define READER(slot) (UINT64_C(1) << (slot))
#define READERS (READER(SLOTS) - 1)
#define WRITER_SHIFT 40
#define WRITER_MASK (UINT64_C(63) << WRITER_SHIFT)
#define WRITER(slot) ((uint64_t)((slot) + 1) << WRITER_SHIFT)
#define LEVEL_SHIFT 46
#define LEVEL_MASK (UINT64_C(3) << LEVEL_SHIFT)
#define RESERVED (UINT64_C(1) << LEVEL_SHIFT)
#define PENDING (UINT64_C(2) << LEVEL_SHIFT)
#define EXCLUSIVE (UINT64_C(3) << LEVEL_SHIFT)
#define SLEEPERS (UINT64_C(1) << 48)

/* Set in an owner word while a slot is cleared: the rest is the nonce of who does it. */
#define CLEARING (UINT64_C(1) << 63)

/* An open extent. */
struct extent {
    dmce_region_t *region; /* NULL: memory of the session */
    dmce_addr_t addr;
};

/* A control page with its extents, shared by all connections of this program. */
struct store {
    struct store *next;
    char name[NAME_BYTES - 8]; /* with room for the number of an extent */
    unsigned users;
    dmce_region_t *region;
    dmce_addr_t control;
    _Atomic(struct extent *) extents[PARTS][EXTENTS];
    _Atomic uint32_t alive[SLOTS]; /* milliseconds: when a slot's owner was last seen alive */
};

/* An open file of SQLite's. */
struct file {
    sqlite3_file base;
    struct store *store; /* NULL for a temporary file */
    enum part part;
    bool owned; /* a super-journal that this file is to write */
    int slot;  /* -1: no locks */
    int level; /* SQLITE_LOCK_.. */
    uint64_t bytes;                /* of a temporary file */
    struct extent *extents[];      /* of a temporary file: EXTENTS of them */
};

/* This program. */
static struct {
    pthread_mutex_t mutex; /* over all that follows, and over opening extents */
    sqlite3_vfs *fallback; /* for time, sleep and randomness */
    dmce_session_t *session;
    dmce_region_t *owner;
    uint64_t nonce;
    pid_t pid;
    char volume[64];
    struct store *stores;
} self = {.mutex = PTHREAD_MUTEX_INITIALIZER};

/* ---- words and bytes of DMCE memory ---- */

static int code_of(dmce_status_t status, int otherwise)
{
    switch (status) {
    case DMCE_OK:
        return SQLITE_OK;
    case DMCE_E_NOSPACE:
    case DMCE_E_QUOTA:
        return SQLITE_FULL;
    case DMCE_E_NOMEM:
        return SQLITE_NOMEM;
    case DMCE_E_BUSY:
        return SQLITE_BUSY;
    default:
        break;
    }
    sqlite3_log(otherwise, "dmce: %s", dmce_last_error());
    return otherwise;
}

static dmce_status_t load(dmce_addr_t word, uint64_t *value)
{
    return dmce_read(self.session, word, value, sizeof *value);
}

static dmce_status_t store_word(dmce_addr_t word, uint64_t value)
{
    return dmce_write(self.session, word, &value, sizeof value);
}

/* Makes a word `desired` if it is `expected`; false if it was something else. */
static bool exchange(dmce_addr_t word, uint64_t expected, uint64_t desired, dmce_status_t *status)
{
    uint64_t seen = 0;
    *status = dmce_cas64(self.session, word, expected, desired, &seen);
    return *status == DMCE_OK && seen == expected;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- regions ---- */

/* The name of a region for a file; false if it is too long. */
static bool region_name(char *name, size_t room, const char *file)
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
static dmce_status_t region_open(const char *name, uint64_t bytes, dmce_region_t **region,
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

/* ---- this program: its session, and the region that says that it lives ---- */

static void owner_name(char name[NAME_BYTES], uint64_t nonce)
{
    snprintf(name, NAME_BYTES, ".owner-%016llx", (unsigned long long)(nonce & ~CLEARING));
}

/* Begins a session if there is none. The mutex is held. */
static dmce_status_t begin(void)
{
    /* What a parent opened is the parent's. */
    if (self.session != NULL && self.pid == getpid())
        return DMCE_OK;
    const char *volume = getenv("DMCE_SQLITE_VOLUME");
    snprintf(self.volume, sizeof self.volume, "%s", volume != NULL ? volume : "sqlite");
    self.session = NULL;
    self.stores = NULL;
    self.pid = getpid();
    dmce_options_t options;
    dmce_options_init(&options);
    options.name = "sqlite";
    dmce_session_t *session;
    dmce_status_t status = dmce_open(&options, &session);
    if (status != DMCE_OK)
        return status;
    do {
        if (getrandom(&self.nonce, sizeof self.nonce, 0) != (ssize_t)sizeof self.nonce)
            self.nonce = now_ns() << 20 ^ (uint64_t)self.pid;
        self.nonce &= ~CLEARING;
    } while (self.nonce == 0);
    char name[NAME_BYTES];
    owner_name(name, self.nonce);
    dmce_addr_t addr;
    self.session = session;
    status = region_open(name, CONTROL_BYTES, &self.owner, &addr);
    if (status != DMCE_OK) {
        dmce_close(session);
        self.session = NULL;
    }
    return status;
}

/* At the end of this program, if it has one of its own choice. */
static void __attribute__((destructor)) end(void)
{
    if (self.session == NULL || self.pid != getpid())
        return;
    char name[NAME_BYTES];
    owner_name(name, self.nonce);
    dmce_region_close(self.owner);
    dmce_region_delete(self.session, self.volume, name);
    dmce_close(self.session);
    self.session = NULL;
}

static void sweep(void);

/* Begins a session if there is none, and tidies up then. */
static dmce_status_t ensure_begun(void)
{
    pthread_mutex_lock(&self.mutex);
    dmce_session_t *before = self.session;
    dmce_status_t status = begin();
    bool begun = status == DMCE_OK && self.session != before;
    pthread_mutex_unlock(&self.mutex);
    if (begun)
        sweep();
    return status;
}

/* Whether the program with a nonce may live. */
static bool is_alive(uint64_t nonce)
{
    if ((nonce & ~CLEARING) == self.nonce)
        return true;
    char name[NAME_BYTES];
    owner_name(name, nonce);
    dmce_status_t status = dmce_region_delete(self.session, self.volume, name);
    return status != DMCE_OK && status != DMCE_E_NOTFOUND;
}

/* ---- stores ---- */

/* Whether a name is one that SQLite gives a super-journal: BASE-mj and six digits, 9, two more. */
static bool is_super(const char *name)
{
    size_t length = strlen(name);
    const char *tail = length > 12 ? name + length - 12 : "";
    return strncmp(tail, "-mj", 3) == 0 && tail[9] == '9' &&
           strspn(tail + 3, "0123456789ABCDEF") == 9;
}

static int open_control(struct store *store, bool create)
{
    uint64_t bytes = create ? CONTROL_BYTES : 0, magic = 0;
    dmce_status_t status = region_open(store->name, bytes, &store->region, &store->control);
    if (status == DMCE_E_NOTFOUND)
        return SQLITE_CANTOPEN;
    if (status != DMCE_OK)
        return code_of(status, SQLITE_CANTOPEN);
    status = load(store->control + AT_MAGIC, &magic);
    /* Fresh regions are zero: whoever comes first says what it is. */
    if (status == DMCE_OK && magic == 0 && (create || is_super(store->name)))
        exchange(store->control + AT_MAGIC, 0, magic = MAGIC, &status);
    if (status == DMCE_OK && magic == MAGIC)
        return SQLITE_OK;
    dmce_region_close(store->region);
    return status == DMCE_OK ? SQLITE_NOTADB : code_of(status, SQLITE_CANTOPEN);
}

/* The store of a region's name, with one user more; made if `create` says so. */
static int store_open(const char *name, bool create, struct store **found)
{
    int code = SQLITE_OK;
    pthread_mutex_lock(&self.mutex);
    struct store *store = self.stores;
    while (store != NULL && strcmp(store->name, name) != 0)
        store = store->next;
    if (store == NULL) {
        store = calloc(1, sizeof *store);
        code = store == NULL ? SQLITE_NOMEM : SQLITE_OK;
        if (code == SQLITE_OK) {
            strcpy(store->name, name);
            code = open_control(store, create);
        }
        if (code == SQLITE_OK) {
            store->next = self.stores;
            self.stores = store;
        } else {
            free(store);
        }
    }
    if (code == SQLITE_OK) {
        store->users++;
        *found = store;
    }
    pthread_mutex_unlock(&self.mutex);
    return code;
}

/* The same of a file's name, of which the first `length` bytes count. */
static int store_get(const char *file, size_t length, bool create, struct store **found)
{
    char plain[NAME_BYTES], name[sizeof ((struct store *)0)->name];
    if (length >= sizeof plain)
        return SQLITE_CANTOPEN;
    memcpy(plain, file, length);
    plain[length] = '\0';
    if (!region_name(name, sizeof name, plain))
        return SQLITE_CANTOPEN;
    int code = code_of(ensure_begun(), SQLITE_CANTOPEN);
    return code == SQLITE_OK ? store_open(name, create, found) : code;
}

static void extent_close(struct extent *extent)
{
    if (extent == NULL)
        return;
    if (extent->region != NULL)
        dmce_region_close(extent->region);
    else
        dmce_free(self.session, extent->addr);
    free(extent);
}

static void store_put(struct store *store)
{
    pthread_mutex_lock(&self.mutex);
    if (--store->users == 0) {
        struct store **link = &self.stores;
        while (*link != NULL && *link != store)
            link = &(*link)->next;
        if (*link != NULL)
            *link = store->next;
        for (int part = 0; part < PARTS; part++)
            for (int place = 0; place < EXTENTS; place++)
                extent_close(store->extents[part][place]);
        dmce_region_close(store->region);
        free(store);
    }
    pthread_mutex_unlock(&self.mutex);
}

static bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length > tail && strcmp(text + length - tail, end) == 0;
}

/* Splits the name of a file into that of its store and the part that it is. */
static enum part part_of(const char *file, size_t *length)
{
    *length = strlen(file);
    if (!ends_with(file, "-journal"))
        return DATABASE;
    *length -= strlen("-journal");
    return JOURNAL;
}

/* ---- extents ---- */

static uint64_t extent_bytes(int place)
{
    return MIB << (place < DOUBLING ? place : DOUBLING);
}

/* The extent that has an offset, and the offset in it; EXTENTS if there can be none. */
static int extent_at(uint64_t offset, uint64_t *inside)
{
    uint64_t doubling = (MIB << DOUBLING) - MIB; /* bytes of those that double */
    if (offset >= doubling) {
        uint64_t place = DOUBLING + (offset - doubling) / (MIB << DOUBLING);
        *inside = (offset - doubling) % (MIB << DOUBLING);
        return place < EXTENTS ? (int)place : EXTENTS;
    }
    int place = 0;
    while (offset >= extent_bytes(place))
        offset -= extent_bytes(place++);
    *inside = offset;
    return place;
}

static void extent_name(char *name, const struct store *store, enum part part, int place)
{
    snprintf(name, NAME_BYTES, ".%c%u-%s", part == JOURNAL ? 'j' : 'd',
             (unsigned)place % EXTENTS, store->name);
}

static int extent_open(struct store *store, enum part part, int place, bool create,
                       struct extent **found)
{
    int code = SQLITE_OK;
    pthread_mutex_lock(&self.mutex);
    struct extent *extent = store->extents[part][place];
    if (extent == NULL) {
        char name[NAME_BYTES];
        extent_name(name, store, part, place);
        extent = calloc(1, sizeof *extent);
        code = extent == NULL ? SQLITE_NOMEM : SQLITE_OK;
        if (code == SQLITE_OK) {
            uint64_t bytes = create ? extent_bytes(place) : 0;
            dmce_status_t status = region_open(name, bytes, &extent->region, &extent->addr);
            code = code_of(status, create ? SQLITE_IOERR_WRITE : SQLITE_IOERR_READ);
        }
        if (code == SQLITE_OK) {
            store->extents[part][place] = extent;
        } else {
            free(extent);
            extent = NULL;
        }
    }
    pthread_mutex_unlock(&self.mutex);
    *found = extent;
    return code;
}

/*
 * Deletes the extents from one on, as far as no other program has them open: those are used again.
 * The caller has a lock that keeps everybody from reading and writing them.
 */
static void extents_delete(struct store *store, enum part part, int place)
{
    pthread_mutex_lock(&self.mutex);
    for (bool found = true; found && place < EXTENTS; place++) {
        char name[NAME_BYTES];
        extent_name(name, store, part, place);
        extent_close(atomic_exchange(&store->extents[part][place], NULL));
        found = dmce_region_delete(self.session, self.volume, name) != DMCE_E_NOTFOUND;
    }
    pthread_mutex_unlock(&self.mutex);
}

/*
 * Removes a store of which nothing exists. Its page goes first: extents of a super-journal without
 * one are nobody's. Who has it open finds that nothing exists, and who begins later removes it.
 */
static dmce_status_t store_remove(struct store *store)
{
    dmce_status_t status = dmce_region_delete(self.session, self.volume, store->name);
    for (int part = 0; part < PARTS && status == DMCE_OK; part++)
        extents_delete(store, (enum part)part, 0);
    return status == DMCE_E_BUSY ? DMCE_OK : status;
}

/* ---- locks ---- */

/* The slot of the writer, or -1. */
static int writer_of(uint64_t locks)
{
    return (int)((locks & WRITER_MASK) >> WRITER_SHIFT) - 1;
}

static uint64_t without_slot(uint64_t locks, int slot)
{
    locks &= ~READER(slot);
    return writer_of(locks) == slot ? locks & ~(WRITER_MASK | LEVEL_MASK) : locks;
}

/* Changes the lock word once; true if it was `seen`. Who sleeps is woken. */
static bool change_locks(struct store *store, uint64_t seen, uint64_t wanted, dmce_status_t *status)
{
    dmce_addr_t word = store->control + AT_LOCKS;
    if (!exchange(word, seen, wanted & ~SLEEPERS, status))
        return false;
    if ((seen & SLEEPERS) != 0)
        dmce_wake(self.session, word, UINT32_MAX);
    return true;
}

/* Takes everything that a slot holds out of the lock word. */
static dmce_status_t release_locks(struct store *store, int slot)
{
    uint64_t seen;
    dmce_status_t status;
    do {
        status = load(store->control + AT_LOCKS, &seen);
    } while (status == DMCE_OK && without_slot(seen, slot) != seen &&
             !change_locks(store, seen, without_slot(seen, slot), &status) && status == DMCE_OK);
    return status;
}

/* Clears a slot whose owner is dead. False if that one may live. */
static bool clear_if_dead(struct store *store, int slot)
{
    dmce_addr_t word = store->control + AT_OWNERS + 8 * (uint64_t)slot;
    uint64_t owner, mine = self.nonce | CLEARING;
    dmce_status_t status;
    if (load(word, &owner) != DMCE_OK)
        return false;
    if (owner == 0)
        return true;
    uint32_t now = (uint32_t)(now_ns() / 1000000u);
    if (now - atomic_load(&store->alive[slot]) < BELIEF_MS)
        return false;
    if (is_alive(owner)) {
        atomic_store(&store->alive[slot], now);
        return false;
    }
    /* From here on nobody else clears it, unless this program dies. */
    if (!exchange(word, owner, mine, &status))
        return false;
    return release_locks(store, slot) == DMCE_OK && exchange(word, mine, 0, &status);
}

/* Clears the slots of `slots` whose owners are dead; true if there was one. */
static bool clear_dead(struct store *store, uint64_t slots)
{
    bool cleared = false;
    for (int slot = 0; slot < SLOTS; slot++)
        if ((slots & READER(slot)) != 0)
            cleared |= clear_if_dead(store, slot);
    return cleared;
}

/* The slots that keep one from reaching a level of SQLite's. */
static uint64_t in_the_way(uint64_t locks, int slot, int level)
{
    int writer = writer_of(locks);
    uint64_t others = locks & READERS & ~READER(slot);
    uint64_t writing = writer >= 0 && writer != slot ? READER(writer) : 0;
    if (level == SQLITE_LOCK_SHARED)
        return (locks & LEVEL_MASK) >= PENDING ? writing : 0;
    return level < SQLITE_LOCK_EXCLUSIVE || writing != 0 ? writing : others;
}

/* What the lock word becomes with a level, if nothing is in the way. */
static uint64_t with_level(uint64_t locks, int slot, int level)
{
    uint64_t mine = (locks & ~(WRITER_MASK | LEVEL_MASK)) | WRITER(slot);
    switch (level) {
    case SQLITE_LOCK_SHARED:
        return locks | READER(slot);
    case SQLITE_LOCK_RESERVED:
        return mine | RESERVED;
    case SQLITE_LOCK_PENDING:
        return mine | PENDING;
    default:
        return mine | EXCLUSIVE;
    }
}

/* Sleeps until the lock word is not what was seen, or for too long: then false. */
static bool sleep_on_locks(struct store *store, uint64_t seen, uint64_t until_ns)
{
    dmce_addr_t word = store->control + AT_LOCKS;
    dmce_status_t status;
    uint64_t now = now_ns();
    if (now >= until_ns)
        return false;
    if ((seen & SLEEPERS) == 0 && !exchange(word, seen, seen | SLEEPERS, &status))
        return status == DMCE_OK;
    uint32_t left_ms = (uint32_t)((until_ns - now) / 1000000u) + 1;
    status = dmce_wait64(self.session, word, seen | SLEEPERS, left_ms);
    return status == DMCE_OK || status == DMCE_E_TIMEOUT;
}

/* Reaches a level, if nobody is in the way for longer than `patience_ms`. */
static int reach_level(struct file *file, int level, unsigned patience_ms)
{
    struct store *store = file->store;
    uint64_t until_ns = now_ns() + (uint64_t)patience_ms * 1000000u;
    for (bool asked = false;;) {
        uint64_t seen;
        dmce_status_t status = load(store->control + AT_LOCKS, &seen);
        if (status != DMCE_OK)
            return code_of(status, SQLITE_IOERR_LOCK);
        uint64_t slots = in_the_way(seen, file->slot, level);
        if (slots == 0) {
            if (change_locks(store, seen, with_level(seen, file->slot, level), &status))
                return SQLITE_OK;
            if (status != DMCE_OK)
                return code_of(status, SQLITE_IOERR_LOCK);
        } else if (!sleep_on_locks(store, seen, until_ns)) {
            /* Nobody is asked whether he lives before he has had some time. */
            if (asked || !clear_dead(store, slots))
                return SQLITE_BUSY;
            asked = true;
        }
    }
}

static int file_lock(sqlite3_file *base, int level)
{
    struct file *file = (struct file *)base;
    if (file->slot < 0 || file->level >= level)
        return SQLITE_OK;
    int code = SQLITE_OK;
    if (level == SQLITE_LOCK_EXCLUSIVE && file->level < SQLITE_LOCK_PENDING) {
        /* New readers are kept out first; those that are there may finish. */
        code = reach_level(file, SQLITE_LOCK_PENDING, 0);
        if (code == SQLITE_OK)
            file->level = SQLITE_LOCK_PENDING;
    }
    /* Two who read and want to write would wait for each other: one is told at once. */
    unsigned patience_ms = level == SQLITE_LOCK_RESERVED ? 0 : PATIENCE_MS;
    if (code == SQLITE_OK)
        code = reach_level(file, level, patience_ms);
    if (code == SQLITE_OK)
        file->level = level;
    return code;
}

static int file_unlock(sqlite3_file *base, int level)
{
    struct file *file = (struct file *)base;
    if (file->slot < 0 || file->level <= level)
        return SQLITE_OK;
    struct store *store = file->store;
    uint64_t seen, wanted;
    dmce_status_t status;
    do {
        status = load(store->control + AT_LOCKS, &seen);
        wanted = without_slot(seen, file->slot);
        if (level == SQLITE_LOCK_SHARED)
            wanted |= READER(file->slot);
    } while (status == DMCE_OK && !change_locks(store, seen, wanted, &status) &&
             status == DMCE_OK);
    if (status != DMCE_OK)
        return code_of(status, SQLITE_IOERR_UNLOCK);
    file->level = level;
    return SQLITE_OK;
}

static int file_check_reserved_lock(sqlite3_file *base, int *reserved)
{
    struct file *file = (struct file *)base;
    uint64_t locks = 0;
    dmce_status_t status = DMCE_OK;
    if (file->slot >= 0)
        status = load(file->store->control + AT_LOCKS, &locks);
    if (status != DMCE_OK)
        return code_of(status, SQLITE_IOERR_CHECKRESERVEDLOCK);
    int writer = writer_of(locks);
    *reserved = writer >= 0 && !(writer != file->slot && clear_if_dead(file->store, writer));
    return SQLITE_OK;
}

/* Takes a slot for a connection. */
static int slot_take(struct store *store, int *taken)
{
    for (int tries = 0; tries < 2; tries++) {
        for (int slot = 0; slot < SLOTS; slot++) {
            dmce_addr_t word = store->control + AT_OWNERS + 8 * (uint64_t)slot;
            dmce_status_t status;
            if (exchange(word, 0, self.nonce, &status)) {
                *taken = slot;
                return SQLITE_OK;
            }
            if (status != DMCE_OK)
                return code_of(status, SQLITE_CANTOPEN);
        }
        if (!clear_dead(store, READERS))
            break;
    }
    sqlite3_log(SQLITE_CANTOPEN, "dmce: %s has %d connections", store->name, SLOTS);
    return SQLITE_CANTOPEN;
}

static void slot_give(struct store *store, int slot)
{
    dmce_status_t status;
    if (release_locks(store, slot) == DMCE_OK)
        exchange(store->control + AT_OWNERS + 8 * (uint64_t)slot, self.nonce, 0, &status);
}

/* ---- reading and writing ---- */

/* Whether a file exists. */
static dmce_status_t exists_in(const struct store *store, enum part part, bool *exists)
{
    uint64_t word = 0;
    dmce_status_t status = load(store->control + AT_EXISTS + 8 * (uint64_t)part, &word);
    *exists = status == DMCE_OK && word == 1;
    return status;
}

/* The size of a file. */
static dmce_status_t bytes_of(const struct file *file, uint64_t *bytes)
{
    *bytes = file->bytes;
    if (file->store == NULL)
        return DMCE_OK;
    return load(file->store->control + AT_SIZE + 8 * (uint64_t)file->part, bytes);
}

static dmce_status_t set_bytes(struct file *file, uint64_t bytes)
{
    file->bytes = bytes;
    if (file->store == NULL)
        return DMCE_OK;
    return store_word(file->store->control + AT_SIZE + 8 * (uint64_t)file->part, bytes);
}

/* An extent of a file, made if `create` says so. */
static int extent_of(struct file *file, int place, bool create, struct extent **found)
{
    if (place >= EXTENTS)
        return SQLITE_FULL;
    *found = file->store == NULL ? file->extents[place]
                                 : atomic_load(&file->store->extents[file->part][place]);
    if (*found != NULL)
        return SQLITE_OK;
    if (file->store != NULL)
        return extent_open(file->store, file->part, place, create, found);
    struct extent *extent = calloc(1, sizeof *extent);
    if (extent == NULL)
        return SQLITE_NOMEM;
    dmce_status_t status = dmce_malloc(self.session, extent_bytes(place), &extent->addr);
    if (status != DMCE_OK) {
        free(extent);
        return code_of(status, SQLITE_IOERR_WRITE);
    }
    *found = file->extents[place] = extent;
    return SQLITE_OK;
}

/* Where a range begins, and how many of its bytes are in one extent. */
static int locate(struct file *file, uint64_t offset, uint64_t bytes, bool create,
                  dmce_addr_t *addr, uint64_t *part)
{
    uint64_t inside;
    struct extent *extent;
    int place = extent_at(offset, &inside);
    int code = extent_of(file, place, create, &extent);
    if (code != SQLITE_OK)
        return code;
    uint64_t room = extent_bytes(place) - inside;
    *addr = extent->addr + inside;
    *part = bytes < room ? bytes : room;
    return SQLITE_OK;
}

static int file_read(sqlite3_file *base, void *buffer, int amount, sqlite3_int64 offset)
{
    struct file *file = (struct file *)base;
    uint64_t bytes, at = (uint64_t)offset, wanted = (uint64_t)amount;
    dmce_status_t status = bytes_of(file, &bytes);
    if (status != DMCE_OK)
        return code_of(status, SQLITE_IOERR_READ);
    uint64_t there = at >= bytes ? 0 : bytes - at < wanted ? bytes - at : wanted;
    for (uint64_t done = 0; done < there;) {
        dmce_addr_t addr;
        uint64_t part;
        int code = locate(file, at + done, there - done, false, &addr, &part);
        if (code != SQLITE_OK)
            return code;
        status = dmce_read(self.session, addr, (char *)buffer + done, (size_t)part);
        if (status != DMCE_OK)
            return code_of(status, SQLITE_IOERR_READ);
        done += part;
    }
    if (there == wanted)
        return SQLITE_OK;
    memset((char *)buffer + there, 0, (size_t)(wanted - there));
    return SQLITE_IOERR_SHORT_READ;
}

/* Writes bytes, or zeros if there is no buffer. */
static int put(struct file *file, const void *buffer, uint64_t amount, uint64_t offset)
{
    for (uint64_t done = 0; done < amount;) {
        dmce_addr_t addr;
        uint64_t part;
        int code = locate(file, offset + done, amount - done, true, &addr, &part);
        if (code != SQLITE_OK)
            return code;
        const char *from = buffer == NULL ? NULL : (const char *)buffer + done;
        dmce_status_t status = from == NULL
                                   ? dmce_fill(self.session, addr, 0, part)
                                   : dmce_write(self.session, addr, from, (size_t)part);
        if (status != DMCE_OK)
            return code_of(status, SQLITE_IOERR_WRITE);
        done += part;
    }
    return SQLITE_OK;
}

static int file_write(sqlite3_file *base, const void *buffer, int amount, sqlite3_int64 offset)
{
    struct file *file = (struct file *)base;
    uint64_t bytes, at = (uint64_t)offset, end = at + (uint64_t)amount;
    dmce_status_t status = bytes_of(file, &bytes);
    int code = code_of(status, SQLITE_IOERR_WRITE);
    /* What an extent held when it was longer is not to be seen again. */
    if (code == SQLITE_OK && at > bytes)
        code = put(file, NULL, at - bytes, bytes);
    if (code == SQLITE_OK)
        code = put(file, buffer, (uint64_t)amount, at);
    /* The size last: who is killed before has written nothing that anybody reads. */
    if (code == SQLITE_OK && end > bytes)
        code = code_of(set_bytes(file, end), SQLITE_IOERR_WRITE);
    return code;
}

static int file_truncate(sqlite3_file *base, sqlite3_int64 size)
{
    struct file *file = (struct file *)base;
    uint64_t bytes, inside, wanted = (uint64_t)size;
    dmce_status_t status = bytes_of(file, &bytes);
    if (status == DMCE_OK && wanted < bytes)
        status = set_bytes(file, wanted);
    if (status != DMCE_OK)
        return code_of(status, SQLITE_IOERR_TRUNCATE);
    /* Nobody else reads or writes a database that is made shorter. */
    if (file->slot >= 0 && file->level == SQLITE_LOCK_EXCLUSIVE && wanted < bytes) {
        int place = extent_at(wanted, &inside);
        extents_delete(file->store, file->part, inside == 0 ? place : place + 1);
    }
    return SQLITE_OK;
}

/* What is written is in the blocks, on every copy: there is nothing to wait for. */
static int file_sync(sqlite3_file *base, int flags)
{
    (void)base;
    (void)flags;
    return SQLITE_OK;
}

static int file_size(sqlite3_file *base, sqlite3_int64 *size)
{
    uint64_t bytes;
    dmce_status_t status = bytes_of((struct file *)base, &bytes);
    if (status != DMCE_OK)
        return code_of(status, SQLITE_IOERR_FSTAT);
    *size = (sqlite3_int64)bytes;
    return SQLITE_OK;
}

static int file_control(sqlite3_file *base, int operation, void *argument)
{
    struct file *file = (struct file *)base;
    if (operation != SQLITE_FCNTL_LOCKSTATE)
        return SQLITE_NOTFOUND;
    *(int *)argument = file->level;
    return SQLITE_OK;
}

static int file_sector_size(sqlite3_file *base)
{
    (void)base;
    return 4096;
}

/* As a program that is killed leaves it: stores in order, and the size after the bytes. */
static int file_characteristics(sqlite3_file *base)
{
    (void)base;
    return SQLITE_IOCAP_SAFE_APPEND | SQLITE_IOCAP_SEQUENTIAL | SQLITE_IOCAP_POWERSAFE_OVERWRITE |
           SQLITE_IOCAP_UNDELETABLE_WHEN_OPEN;
}

/* ---- super-journals ---- */

/* The end of a journal that names a super-journal: the name, its length, a sum, and this. */
static const unsigned char journal_magic[8] = {0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7};

/* Bytes of a super-journal that are looked at: the names of more databases than can be attached. */
#define SUPER_BYTES (64 * 1024)

/* Makes a super-journal exist, for this program to write. */
static int super_own(struct file *file)
{
    dmce_addr_t control = file->store->control;
    dmce_status_t status;
    file->owned = exchange(control + AT_OWNERS, 0, self.nonce, &status) &&
                  exchange(control + AT_EXISTS, 0, 1, &status);
    /* Somebody was killed here, or takes it for left by such a one: another gets another name. */
    return status != DMCE_OK ? code_of(status, SQLITE_CANTOPEN)
           : file->owned     ? SQLITE_OK
                             : SQLITE_BUSY;
}

/* It is written: every journal that it lists names it. */
static void super_disown(struct store *store)
{
    dmce_status_t status;
    exchange(store->control + AT_OWNERS, self.nonce, 0, &status);
}

/* Whether a journal may name a super-journal, which is the region `super`. */
static bool journal_names(const char *journal, const char *super)
{
    struct file file = {.part = JOURNAL, .slot = -1};
    unsigned char end[16]; /* the length, big-endian; the sum; the magic number */
    char name[NAME_BYTES] = "", region[NAME_BYTES] = "";
    sqlite3_int64 size = 0;
    size_t length;
    bool exists = true;
    part_of(journal, &length);
    int code = store_get(journal, length, false, &file.store);
    if (code != SQLITE_OK)
        return code != SQLITE_CANTOPEN;
    if (exists_in(file.store, JOURNAL, &exists) == DMCE_OK && exists)
        code = file_size(&file.base, &size);
    size -= (sqlite3_int64)sizeof end;
    if (exists && code == SQLITE_OK && size > 0) {
        code = file_read(&file.base, end, sizeof end, size);
        uint32_t bytes = (uint32_t)end[0] << 24 | (uint32_t)end[1] << 16 |
                         (uint32_t)end[2] << 8 | end[3];
        if (code == SQLITE_OK && memcmp(end + 8, journal_magic, 8) == 0 &&
            bytes < sizeof name && bytes <= size)
            code = file_read(&file.base, name, (int)bytes, size - (sqlite3_int64)bytes);
    }
    store_put(file.store);
    region_name(region, sizeof region, name);
    return code != SQLITE_OK || strcmp(region, super) == 0;
}

/* Whether a journal may name a super-journal that lists it. What lists something else is none. */
static bool super_is_named(struct store *store, const char *super)
{
    struct file file = {.store = store, .part = DATABASE, .slot = -1};
    sqlite3_int64 size = 0;
    bool named = true;
    char *list = calloc(1, SUPER_BYTES + 1);
    if (list != NULL && file_size(&file.base, &size) == SQLITE_OK && size <= SUPER_BYTES &&
        file_read(&file.base, list, (int)size, 0) == SQLITE_OK) {
        named = false;
        for (const char *at = list; at < list + size && !named; at += strlen(at) + 1)
            named = !ends_with(at, "-journal") || journal_names(at, super);
    }
    free(list);
    return named;
}

/* Makes a super-journal be nothing, if nobody needs it and nobody will. */
static bool super_give_up(struct store *store, const char *super)
{
    uint64_t exists, owner;
    dmce_status_t status;
    if (load(store->control + AT_EXISTS, &exists) != DMCE_OK ||
        load(store->control + AT_OWNERS, &owner) != DMCE_OK)
        return false;
    if (exists == 1 && ((owner != 0 && is_alive(owner)) || super_is_named(store, super)))
        return false;
    return exists == GONE || exchange(store->control + AT_EXISTS, exists, GONE, &status);
}

/* Removes what was a super-journal, if a region is one, or an extent of one. */
static void super_sweep(const char *region)
{
    struct store *store;
    if (!is_super(region))
        return;
    const char *super = strncmp(region, ".d0-", 4) == 0 ? region + 4 : region;
    int code = store_open(super, false, &store);
    if (code == SQLITE_OK) {
        if (super_give_up(store, super))
            store_remove(store);
        store_put(store);
    } else if (code == SQLITE_CANTOPEN && super != region) {
        dmce_region_delete(self.session, self.volume, region);
    }
}

/* Deletes what programs left that were killed. */
static void sweep(void)
{
    char **names, own[NAME_BYTES];
    size_t count = 0;
    if (dmce_region_list(self.session, self.volume, NULL, 0, &count) != DMCE_OK || count == 0)
        return;
    owner_name(own, self.nonce);
    size_t room = count;
    names = calloc(room, sizeof *names);
    if (names == NULL)
        return;
    if (dmce_region_list(self.session, self.volume, names, room, &count) == DMCE_OK) {
        for (size_t place = 0; place < room && names[place] != NULL; place++)
            if (strncmp(names[place], ".owner-", strlen(".owner-")) != 0)
                super_sweep(names[place]);
            else if (strcmp(names[place], own) != 0)
                dmce_region_delete(self.session, self.volume, names[place]);
        dmce_strings_free(names, room);
    }
    free(names);
}

/* ---- files ---- */

/* The extents of a journal that nobody needs go, if nobody is at work. */
static void journal_shrink(struct file *file)
{
    bool exists;
    if (reach_level(file, SQLITE_LOCK_RESERVED, 0) != SQLITE_OK)
        return;
    if (exists_in(file->store, JOURNAL, &exists) == DMCE_OK && !exists)
        extents_delete(file->store, JOURNAL, 1);
}

static int file_close(sqlite3_file *base)
{
    struct file *file = (struct file *)base;
    if (file->store == NULL) {
        for (int place = 0; place < EXTENTS; place++)
            extent_close(file->extents[place]);
        return SQLITE_OK;
    }
    if (file->slot >= 0) {
        if (file->level == SQLITE_LOCK_NONE)
            journal_shrink(file);
        slot_give(file->store, file->slot);
    }
    if (file->owned)
        super_disown(file->store);
    store_put(file->store);
    return SQLITE_OK;
}

static const sqlite3_io_methods file_methods = {
    .iVersion = 1, /* no shared memory of SQLite's, so no write-ahead log */
    .xClose = file_close,
    .xRead = file_read,
    .xWrite = file_write,
    .xTruncate = file_truncate,
    .xSync = file_sync,
    .xFileSize = file_size,
    .xLock = file_lock,
    .xUnlock = file_unlock,
    .xCheckReservedLock = file_check_reserved_lock,
    .xFileControl = file_control,
    .xSectorSize = file_sector_size,
    .xDeviceCharacteristics = file_characteristics,
};

/* ---- the file system ---- */

static int vfs_open_temporary(struct file *file)
{
    memset(file->extents, 0, EXTENTS * sizeof file->extents[0]);
    return code_of(ensure_begun(), SQLITE_CANTOPEN);
}

/* Opens a file whose store is there. */
static int vfs_open_named(struct file *file, bool create, int flags)
{
    dmce_addr_t word = file->store->control + AT_EXISTS + 8 * (uint64_t)file->part;
    bool exists = false;
    if (create && (flags & SQLITE_OPEN_SUPER_JOURNAL) != 0)
        return super_own(file);
    dmce_status_t status = exists_in(file->store, file->part, &exists);
    if (status == DMCE_OK && !exists && create) {
        status = store_word(word, 1);
        exists = true;
    }
    if (status != DMCE_OK)
        return code_of(status, SQLITE_CANTOPEN);
    if (!exists)
        return SQLITE_CANTOPEN;
    return (flags & SQLITE_OPEN_MAIN_DB) != 0 ? slot_take(file->store, &file->slot) : SQLITE_OK;
}

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *base, int flags, int *out)
{
    (void)vfs;
    struct file *file = (struct file *)base;
    memset(file, 0, sizeof *file);
    file->slot = -1;
    int code;
    if (name == NULL || (flags & SQLITE_OPEN_DELETEONCLOSE) != 0) {
        code = vfs_open_temporary(file);
    } else {
        size_t length;
        bool create = (flags & SQLITE_OPEN_CREATE) != 0;
        file->part = part_of(name, &length);
        code = store_get(name, length, create, &file->store);
        if (code == SQLITE_OK) {
            code = vfs_open_named(file, create, flags);
            if (code != SQLITE_OK)
                store_put(file->store);
        }
    }
    if (code != SQLITE_OK)
        return code;
    if (out != NULL)
        *out = flags;
    file->base.pMethods = &file_methods;
    return SQLITE_OK;
}

/* Deletes a file that has a store of its own: nobody of this program uses it but the caller. */
static int store_delete(struct store *store)
{
    dmce_status_t status = DMCE_OK;
    for (int part = 0; part < PARTS && status == DMCE_OK; part++)
        status = store_word(store->control + AT_EXISTS + 8 * (uint64_t)part, 0);
    if (status == DMCE_OK)
        status = store_remove(store);
    return code_of(status, SQLITE_IOERR_DELETE);
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync_folder)
{
    (void)vfs;
    (void)sync_folder;
    size_t length;
    struct store *store;
    enum part part = part_of(name, &length);
    int code = store_get(name, length, false, &store);
    if (code != SQLITE_OK)
        return code == SQLITE_CANTOPEN ? SQLITE_IOERR_DELETE_NOENT : code;
    if (part == DATABASE) {
        code = store->users > 1 ? SQLITE_BUSY : store_delete(store);
    } else {
        /* The size first: a journal without bytes is none. The extents are for the next one. */
        dmce_status_t status = store_word(store->control + AT_SIZE + 8 * JOURNAL, 0);
        if (status == DMCE_OK)
            status = store_word(store->control + AT_EXISTS + 8 * JOURNAL, 0);
        code = code_of(status, SQLITE_IOERR_DELETE);
    }
    store_put(store);
    return code;
}

static int vfs_access(sqlite3_vfs *vfs, const char *name, int flags, int *found)
{
    (void)vfs;
    (void)flags;
    size_t length;
    struct store *store;
    enum part part = part_of(name, &length);
    bool exists = false;
    *found = 0;
    /* Asked for before each transaction, and never there. */
    if (ends_with(name, "-wal"))
        return SQLITE_OK;
    int code = store_get(name, length, false, &store);
    if (code == SQLITE_OK) {
        code = code_of(exists_in(store, part, &exists), SQLITE_IOERR_ACCESS);
        store_put(store);
    } else if (code == SQLITE_CANTOPEN) {
        code = SQLITE_OK;
    }
    *found = exists;
    return code;
}

/* Names are those of regions: there are no folders that one could be relative to. */
static int vfs_full_pathname(sqlite3_vfs *vfs, const char *name, int room, char *full)
{
    (void)vfs;
    int wrote = snprintf(full, (size_t)room, "%s", name);
    return wrote < room ? SQLITE_OK : SQLITE_CANTOPEN;
}

static int vfs_randomness(sqlite3_vfs *vfs, int bytes, char *buffer)
{
    (void)vfs;
    return self.fallback->xRandomness(self.fallback, bytes, buffer);
}

static int vfs_sleep(sqlite3_vfs *vfs, int microseconds)
{
    (void)vfs;
    return self.fallback->xSleep(self.fallback, microseconds);
}

static int vfs_current_time(sqlite3_vfs *vfs, double *day)
{
    (void)vfs;
    return self.fallback->xCurrentTime(self.fallback, day);
}

static int vfs_current_time_int64(sqlite3_vfs *vfs, sqlite3_int64 *milliseconds)
{
    (void)vfs;
    return self.fallback->xCurrentTimeInt64(self.fallback, milliseconds);
}

static int vfs_last_error(sqlite3_vfs *vfs, int room, char *text)
{
    (void)vfs;
    snprintf(text, (size_t)room, "%s", dmce_last_error());
    return SQLITE_OK;
}

static sqlite3_vfs dmce_vfs = {
    .iVersion = 2,
    .szOsFile = sizeof(struct file) + EXTENTS * sizeof(struct extent *),
    .mxPathname = 512,
    .zName = "dmce",
    .xOpen = vfs_open,
    .xDelete = vfs_delete,
    .xAccess = vfs_access,
    .xFullPathname = vfs_full_pathname,
    .xRandomness = vfs_randomness,
    .xSleep = vfs_sleep,
    .xCurrentTime = vfs_current_time,
    .xGetLastError = vfs_last_error,
    .xCurrentTimeInt64 = vfs_current_time_int64,
};

int sqlite3_extension_init(sqlite3 *db, char **error, const sqlite3_api_routines *api)
{
    (void)db;
    SQLITE_EXTENSION_INIT2(api);
    self.fallback = sqlite3_vfs_find(NULL);
    if (self.fallback == NULL || self.fallback->iVersion < 2) {
        *error = sqlite3_mprintf("there is no file system to take the time from");
        return SQLITE_ERROR;
    }
    int code = sqlite3_vfs_register(&dmce_vfs, 0);
    /* A registered file system must not go with the connection that loaded it. */
    return code == SQLITE_OK ? SQLITE_OK_LOAD_PERMANENTLY : code;
}
