/*
 * This program: its session, the region that says that it lives, and what killed ones have left.
 *
 * DMCE deletes a region only if no living session has it open, so the region .owner-NONCE can be
 * deleted exactly if the program that has this nonce is dead.
 */
#include "sqlite_vfs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

struct program self = {.mutex = PTHREAD_MUTEX_INITIALIZER};

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
    bool is_set = volume != NULL && volume[0] != '\0';
    snprintf(self.volume, sizeof self.volume, "%s", is_set ? volume : "sqlite");
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

/* Begins a session if there is none, and tidies up then. */
dmce_status_t ensure_begun(void)
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
bool is_alive(uint64_t nonce)
{
    if ((nonce & ~CLEARING) == self.nonce)
        return true;
    char name[NAME_BYTES];
    owner_name(name, nonce);
    dmce_status_t status = dmce_region_delete(self.session, self.volume, name);
    return status != DMCE_OK && status != DMCE_E_NOTFOUND;
}
