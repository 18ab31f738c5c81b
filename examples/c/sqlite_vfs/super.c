/*
 * Super-journals, NAME-mj and nine digits, hold together the journals of a transaction over several
 * databases: as long as one is there, the journals that name it are rolled back. SQLite deletes it
 * with the last of them; but not if its writer was killed before the first had its name, or in the
 * middle of deleting it. Programs that begin do that, if they find that
 *
 *     it does not exist, or its owner word names a dead program, or nobody: it was written to its
 *     end; and no journal that it lists names it. None will then.
 *
 * Whoever is first makes EXISTS what it is to be: 0 -> 1 who writes it, 0 or 1 -> GONE who removes
 * it. From then on it is nothing, and its regions go as soon as nobody has them open.
 */
#include "sqlite_vfs.h"

#include <stdlib.h>
#include <string.h>

/* In place of 0 or 1 in AT_EXISTS of a super-journal: it is being removed. */
#define GONE 2

/* The end of a journal that names a super-journal: the name, its length, a sum, and this. */
static const unsigned char journal_magic[8] = {0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7};

/* Bytes of a super-journal that are looked at: the names of more databases than can be attached. */
#define SUPER_BYTES (64 * 1024)

/* Whether a name is one that SQLite gives a super-journal: BASE-mj and six digits, 9, two more. */
bool is_super(const char *name)
{
    size_t length = strlen(name);
    const char *tail = length > 12 ? name + length - 12 : "";
    return strncmp(tail, "-mj", 3) == 0 && tail[9] == '9' &&
           strspn(tail + 3, "0123456789ABCDEF") == 9;
}

/* Makes a super-journal exist, for this program to write. */
int super_own(struct file *file)
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
void super_disown(struct store *store)
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
    bool exists;
    part_of(journal, &length);
    int code = store_get(journal, length, false, &file.store);
    if (code != SQLITE_OK)
        return code != SQLITE_CANTOPEN;
    code = code_of(exists_in(file.store, JOURNAL, &exists), SQLITE_IOERR);
    if (exists && code == SQLITE_OK)
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
void super_sweep(const char *region)
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
