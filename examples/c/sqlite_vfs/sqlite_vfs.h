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
 * What it cannot do, and what it says then. SQLite itself says only that it is "unable to open
 * database file" or has a "disk I/O error"; the reason is in its log (`.log stderr` in the shell)
 * and in xGetLastError.
 *
 *     40 connections to one database at a time, of all programs together
 *     names of 119 bytes, in which `/`, `%` and control characters count as three
 *     databases of 30,975 MiB, which is more than 30 GiB
 *     no write-ahead log, since there is no shared memory for its index: `PRAGMA journal_mode = wal`
 *         keeps the mode as it was, in exclusive locking mode too, and without a schema's name in
 *         front of it for attached databases on a disk as well if the main one is here. What would
 *         make a database here one with such a log (copying one, or that PRAGMA while the main one
 *         is on a disk and locks exclusively) is a "disk I/O error", and changes nothing
 *     no reading for users who may only read the region, not with `mode=ro` either: readers write
 *         the word that locks the database ("access permission denied")
 *
 * A connection to a database here takes all names for names of databases here, so `VACUUM INTO
 * '/tmp/x.db'` makes one that is called so. To and from a disk lead:
 *
 *     sqlite> .backup /tmp/x.db
 *     sqlite> .restore /tmp/x.db
 *     sqlite> vacuum into 'file:/tmp/x.db?vfs=unix';
 *     sqlite> attach 'file:/tmp/x.db?vfs=unix' as disk;
 *
 *     memory.c    words, bytes and regions        super.c   super-journals
 *     program.c   this program, and dead ones     file.c    reading and writing
 *     store.c     control pages and extents       vfs.c     the file system
 *     locks.c     locks, and whose they are
 *
 *     cc -shared -fPIC -std=gnu11 -o sqlite_vfs.so *.c -ldmce -lpthread    (or with -m32)
 */
#ifndef SQLITE_VFS_H
#define SQLITE_VFS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include <sqlite3ext.h>

#include "libdmce.h"

/* Nothing of it is seen by other libraries, but for where SQLite begins. */
#pragma GCC visibility push(hidden)

SQLITE_EXTENSION_INIT3

#define MIB ((uint64_t)1 << 20)
#define NAME_BYTES 128
#define SLOTS 40
#define EXTENTS 128
#define DOUBLING 8  /* extents that double: the last of them has 128 MiB */
#define FILE_MIB ((1u << DOUBLING) - 1 + (EXTENTS - DOUBLING) * (1u << DOUBLING))

/* In the header of a database: 1 is a rollback journal and 2 a write-ahead log, for who writes it
 * and for who reads it. */
#define AT_FORMATS 18
#define FORMATS 2

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

/* The two files that a control page describes. */
enum part { DATABASE, JOURNAL, PARTS };

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
struct program {
    pthread_mutex_t mutex; /* over all that follows, and over opening extents */
    sqlite3_vfs *fallback; /* for time, sleep and randomness */
    dmce_session_t *session;
    dmce_region_t *owner;
    uint64_t nonce;
    pid_t pid;
    char volume[64];
    struct store *stores;
};
extern struct program self;

/* memory.c */
int refuse(int code, const char *format, ...) __attribute__((format(printf, 2, 3)));
const char *last_complaint(void);
int code_of(dmce_status_t status, int otherwise);
dmce_status_t load(dmce_addr_t word, uint64_t *value);
dmce_status_t store_word(dmce_addr_t word, uint64_t value);
bool exchange(dmce_addr_t word, uint64_t expected, uint64_t desired, dmce_status_t *status);
uint64_t now_ns(void);
bool region_name(char *name, size_t room, const char *file);
dmce_status_t region_open(const char *name, uint64_t bytes, dmce_region_t **region,
                          dmce_addr_t *addr);

/* program.c */
dmce_status_t ensure_begun(void);
bool is_alive(uint64_t nonce);

/* store.c */
int store_open(const char *name, bool create, struct store **found);
int store_get(const char *file, size_t length, bool create, struct store **found);
void store_put(struct store *store);
dmce_status_t store_remove(struct store *store);
dmce_status_t exists_in(const struct store *store, enum part part, bool *exists);
enum part part_of(const char *file, size_t *length);
bool ends_with(const char *text, const char *end);
int extent_at(uint64_t offset, uint64_t *inside);
uint64_t extent_bytes(int place);
int extent_open(struct store *store, enum part part, int place, bool create, struct extent **found);
void extent_close(struct extent *extent);
void extents_delete(struct store *store, enum part part, int place);

/* locks.c */
int slot_take(struct store *store, int *taken);
void slot_give(struct store *store, int slot);
int reach_level(struct file *file, int level, unsigned patience_ms);
int file_lock(sqlite3_file *base, int level);
int file_unlock(sqlite3_file *base, int level);
int file_check_reserved_lock(sqlite3_file *base, int *reserved);

/* file.c */
extern const sqlite3_io_methods file_methods;
bool has_wal(const unsigned char formats[FORMATS]);
int file_read(sqlite3_file *base, void *buffer, int amount, sqlite3_int64 offset);
int file_size(sqlite3_file *base, sqlite3_int64 *size);

/* super.c */
bool is_super(const char *name);
int super_own(struct file *file);
void super_disown(struct store *store);
void super_sweep(const char *region);

#pragma GCC visibility pop
#endif
