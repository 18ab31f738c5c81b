/*
 * Stores: the control page of a database and its journal, and the extents that hold their bytes.
 */
#include "sqlite_vfs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int open_control(struct store *store, bool create)
{
    uint64_t bytes = create ? CONTROL_BYTES : 0, magic = 0;
    dmce_status_t status = region_open(store->name, bytes, &store->region, &store->control);
    if (status == DMCE_E_NOTFOUND)
        return SQLITE_CANTOPEN;
    if (status == DMCE_E_DENIED)
        return refuse(SQLITE_PERM, "%s: this user may not write it, and who reads writes its locks",
                      store->name);
    if (status != DMCE_OK)
        return code_of(status, SQLITE_CANTOPEN);
    status = load(store->control + AT_MAGIC, &magic);
    /* Fresh regions are zero: whoever comes first says what it is. */
    if (status == DMCE_OK && magic == 0 && (create || is_super(store->name)))
        exchange(store->control + AT_MAGIC, 0, magic = MAGIC, &status);
    if (status == DMCE_OK && magic == MAGIC)
        return SQLITE_OK;
    dmce_region_close(store->region);
    return status == DMCE_OK ? refuse(SQLITE_NOTADB, "region %s is no database", store->name)
                             : code_of(status, SQLITE_CANTOPEN);
}

/* The store of a region's name, with one user more; made if `create` says so. */
int store_open(const char *name, bool create, struct store **found)
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
int store_get(const char *file, size_t length, bool create, struct store **found)
{
    char plain[NAME_BYTES], name[sizeof ((struct store *)0)->name];
    snprintf(plain, sizeof plain, "%.*s", (int)length, file);
    if (length >= sizeof plain || !region_name(name, sizeof name, plain))
        return refuse(SQLITE_CANTOPEN, "%s.. is no name of 1 to %u bytes", plain,
                      (unsigned)sizeof name - 1);
    int code = code_of(ensure_begun(), SQLITE_CANTOPEN);
    return code == SQLITE_OK ? store_open(name, create, found) : code;
}

void extent_close(struct extent *extent)
{
    if (extent == NULL)
        return;
    if (extent->region != NULL)
        dmce_region_close(extent->region);
    else
        dmce_free(self.session, extent->addr);
    free(extent);
}

void store_put(struct store *store)
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

bool ends_with(const char *text, const char *end)
{
    size_t length = strlen(text), tail = strlen(end);
    return length > tail && strcmp(text + length - tail, end) == 0;
}

/* Splits the name of a file into that of its store and the part that it is. */
enum part part_of(const char *file, size_t *length)
{
    *length = strlen(file);
    if (!ends_with(file, "-journal"))
        return DATABASE;
    *length -= strlen("-journal");
    return JOURNAL;
}

uint64_t extent_bytes(int place)
{
    return MIB << (place < DOUBLING ? place : DOUBLING);
}

/* The extent that has an offset, and the offset in it; EXTENTS if there can be none. */
int extent_at(uint64_t offset, uint64_t *inside)
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

int extent_open(struct store *store, enum part part, int place, bool create,
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
void extents_delete(struct store *store, enum part part, int place)
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
dmce_status_t store_remove(struct store *store)
{
    dmce_status_t status = dmce_region_delete(self.session, self.volume, store->name);
    for (int part = 0; part < PARTS && status == DMCE_OK; part++)
        extents_delete(store, (enum part)part, 0);
    return status == DMCE_E_BUSY ? DMCE_OK : status;
}

/* Whether a file exists. */
dmce_status_t exists_in(const struct store *store, enum part part, bool *exists)
{
    uint64_t word = 0;
    dmce_status_t status = load(store->control + AT_EXISTS + 8 * (uint64_t)part, &word);
    *exists = status == DMCE_OK && word == 1;
    return status;
}
