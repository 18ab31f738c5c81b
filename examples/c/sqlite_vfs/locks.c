/*
 * Locks. One 64-bit word holds all locks of a database, so each step from one state to the next is
 * a single dmce_cas64, and a program may be killed between any two:
 *
 *     bit  0..39   slot n reads (SHARED)
 *     bit 40..45   1 + the slot that writes, or 0
 *     bit 46..47   how far that one is: RESERVED, PENDING, EXCLUSIVE
 *     bit 48       somebody sleeps in dmce_wait64 until the word changes
 *
 * A connection has a slot; the slot's owner word holds the nonce of its program. Who finds a lock
 * in the way asks whether its owner lives. If not, the slot is marked as being cleared (by whom, in
 * case that one dies, too), its locks are taken out of the word, and the slot is free. A journal
 * that a dead writer left is rolled back by SQLite itself.
 */
#include "sqlite_vfs.h"

/* How long a lock is waited for before SQLite is told that it is busy, and asks its own handler. */
#define PATIENCE_MS 20
/* How long an owner that was seen alive is believed to live. */
#define BELIEF_MS 20u

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
int reach_level(struct file *file, int level, unsigned patience_ms)
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

int file_lock(sqlite3_file *base, int level)
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

int file_unlock(sqlite3_file *base, int level)
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

int file_check_reserved_lock(sqlite3_file *base, int *reserved)
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
int slot_take(struct store *store, int *taken)
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
    return refuse(SQLITE_CANTOPEN, "%s has %d connections, limit %d", store->name, SLOTS, SLOTS);
}

void slot_give(struct store *store, int slot)
{
    dmce_status_t status;
    if (release_locks(store, slot) == DMCE_OK)
        exchange(store->control + AT_OWNERS + 8 * (uint64_t)slot, self.nonce, 0, &status);
}
