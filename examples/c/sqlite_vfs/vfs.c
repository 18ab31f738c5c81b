/*
 * The file system that SQLite is told of: opening, deleting and finding files by their names.
 */
#include "sqlite_vfs.h"

#include <stdio.h>
#include <string.h>

SQLITE_EXTENSION_INIT1

static int vfs_open_temporary(struct file *file)
{
    memset(file->extents, 0, EXTENTS * sizeof file->extents[0]);
    return code_of(ensure_begun(), SQLITE_CANTOPEN);
}

/* Refuses a database whose header says that it has a write-ahead log. */
static int refuse_wal(struct file *file)
{
    unsigned char formats[FORMATS];
    int code = file_read(&file->base, formats, sizeof formats, AT_FORMATS);
    if (code == SQLITE_OK && has_wal(formats))
        return refuse(SQLITE_CANTOPEN, "%s is in WAL mode, which cannot be here",
                      file->store->name);
    return code == SQLITE_IOERR_SHORT_READ ? SQLITE_OK : code;
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
    if ((flags & SQLITE_OPEN_MAIN_DB) == 0)
        return SQLITE_OK;
    int code = refuse_wal(file);
    return code == SQLITE_OK ? slot_take(file->store, &file->slot) : code;
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
    snprintf(text, (size_t)room, "%s", last_complaint());
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

__attribute__((visibility("default")))
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
