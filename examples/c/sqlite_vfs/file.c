/*
 * Files: what SQLite reads, writes, cuts and closes.
 */
#include "sqlite_vfs.h"

#include <stdlib.h>
#include <string.h>

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
        return refuse(SQLITE_FULL, "a file ends at its limit of %u MiB", FILE_MIB);
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

int file_read(sqlite3_file *base, void *buffer, int amount, sqlite3_int64 offset)
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

/* Whether the bytes of a header that say how the file is written and read speak of a WAL. */
bool has_wal(const unsigned char formats[FORMATS])
{
    return formats[0] > 1 || formats[1] > 1;
}

static int file_write(sqlite3_file *base, const void *buffer, int amount, sqlite3_int64 offset)
{
    struct file *file = (struct file *)base;
    uint64_t bytes, at = (uint64_t)offset, end = at + (uint64_t)amount;
    /* Nobody could open it again. It stays as it is: the transaction is rolled back. */
    if (file->slot >= 0 && at == 0 && end >= AT_FORMATS + FORMATS &&
        has_wal((const unsigned char *)buffer + AT_FORMATS))
        return refuse(SQLITE_IOERR_WRITE, "%s cannot have a WAL", file->store->name);
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

int file_size(sqlite3_file *base, sqlite3_int64 *size)
{
    uint64_t bytes;
    dmce_status_t status = bytes_of((struct file *)base, &bytes);
    if (status != DMCE_OK)
        return code_of(status, SQLITE_IOERR_FSTAT);
    *size = (sqlite3_int64)bytes;
    return SQLITE_OK;
}

/*
 * A PRAGMA, before SQLite does it. In exclusive locking mode it would begin a write-ahead log even
 * here, where nobody else could read it. Asked for a mode that there is not, it answers with the
 * one that it has, as it does for `wal` in normal locking mode.
 */
static void keep_journal_mode(const char *name, char *value)
{
    if (value != NULL && value[0] != '\0' && sqlite3_stricmp(name, "journal_mode") == 0 &&
        sqlite3_strnicmp(value, "wal", (int)strlen(value)) == 0)
        value[0] = '?';
}

static int file_control(sqlite3_file *base, int operation, void *argument)
{
    struct file *file = (struct file *)base;
    char **words = argument; /* of a PRAGMA: its answer, its name, its value or NULL */
    if (operation == SQLITE_FCNTL_PRAGMA)
        keep_journal_mode(words[1], words[2]);
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

const sqlite3_io_methods file_methods = {
    .iVersion = 1, /* no shared memory of SQLite's, which a write-ahead log is to have */
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
