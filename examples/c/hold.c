/*
 * hold: keeps more bytes of real files in DMCE memory than this process could address, and proves
 * that every one of them is still right.
 *
 *     hold [--gib N] [--seed N] [--then COMMAND] PATH...
 *
 * It walks the files below each PATH and stores their bytes, piece by piece, until N GiB are held
 * (1 if not said); with fewer bytes in the files it stores them again. Then it runs COMMAND, if
 * there is one, so that somebody else can look at the memory while it is held. Then it reads all
 * pieces back in random order and compares each with the file that it came from.
 *
 * Written against libdmce.h alone. Build it as a 32-bit program, where it means most:
 *
 *     cc -m32 -std=c99 -o hold hold.c -ldmce
 *
 * Exit status: 0 all is right, 1 a byte was wrong or a call failed, 2 usage.
 */
#define _FILE_OFFSET_BITS 64
#define _XOPEN_SOURCE 700

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "libdmce.h"

#define MIB ((uint64_t)1 << 20)
#define GIB ((uint64_t)1 << 30)
#define PIECE_BYTES MIB

/* A file whose bytes are held, as it was when it was first read. */
struct file {
    char *path;
    off_t bytes;
    struct timespec changed_at;
};

/* Where a piece of a file is held. The bytes themselves are in DMCE memory alone. */
struct piece {
    dmce_addr_t addr;
    uint64_t offset;
    uint32_t file;
    uint32_t bytes;
};

/* How far one of the two phases is. */
struct progress {
    const char *verb;
    uint64_t done, total;
    double began_s;
    double calls_s; /* of that, in dmce_write or dmce_read */
    double shown_s;
    int shown_tenth;
};

/* All that this process keeps. nftw() hands nothing on to its callback, so it has to be global. */
static struct {
    dmce_session_t *session;
    struct file *files;
    struct piece *pieces;
    size_t file_count, file_room, piece_count, piece_room, index_bytes;
    uint64_t unreadable, changed, wrong;
    struct progress storing, checking;
    unsigned char *ours, *theirs; /* one piece each */
} hold;

static void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("hold: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(EXIT_FAILURE);
}

static void must(dmce_status_t status, const char *call)
{
    if (status != DMCE_OK)
        fail("%s: %s", call, dmce_last_error());
}

/* Room for one more entry in an array that doubles. */
static void *grown(void *array, size_t count, size_t *room, size_t entry_bytes)
{
    if (count < *room)
        return array;
    size_t wanted = *room == 0 ? 1024 : *room * 2;
    void *moved = realloc(array, wanted * entry_bytes);
    if (moved == NULL)
        fail("no memory for an index of %zu entries", wanted);
    hold.index_bytes += (wanted - *room) * entry_bytes;
    *room = wanted;
    return moved;
}

static double now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* ---- progress: a bar on a terminal, a line for each tenth elsewhere ---- */

static void progress_begin(struct progress *progress, const char *verb, uint64_t total)
{
    memset(progress, 0, sizeof *progress);
    progress->verb = verb;
    progress->total = total;
    progress->began_s = now_s();
}

static void progress_bar(const struct progress *progress, double seconds)
{
    enum { WIDTH = 40 };
    char bar[WIDTH + 1];
    size_t filled = (size_t)(progress->done * WIDTH / progress->total);
    memset(bar, '.', WIDTH);
    memset(bar, '#', filled);
    bar[WIDTH] = '\0';
    fprintf(stderr, "\r%s [%s] %6.2f of %.2f GiB, %4.0f MB/s ", progress->verb, bar,
            (double)progress->done / (double)GIB, (double)progress->total / (double)GIB,
            seconds > 0 ? (double)progress->done / seconds / 1e6 : 0);
}

static void progress_add(struct progress *progress, uint64_t bytes)
{
    double now = now_s();
    progress->done += bytes;
    bool complete = progress->done == progress->total;
    if (isatty(STDERR_FILENO)) {
        if (complete || now - progress->shown_s >= 0.1) {
            progress->shown_s = now;
            progress_bar(progress, now - progress->began_s);
        }
        if (complete)
            fputc('\n', stderr);
        return;
    }
    int tenth = (int)(progress->done * 10 / progress->total);
    if (tenth > progress->shown_tenth) {
        progress->shown_tenth = tenth;
        fprintf(stderr, "%s: %3d %%, %.2f GiB\n", progress->verb, tenth * 10,
                (double)progress->done / (double)GIB);
    }
}

/* ---- storing ---- */

static bool is_unchanged(const struct file *file, const struct stat *now)
{
    return now->st_size == file->bytes && now->st_mtim.tv_sec == file->changed_at.tv_sec &&
           now->st_mtim.tv_nsec == file->changed_at.tv_nsec;
}

/* Reads exactly `bytes`; false if the file has fewer now, or cannot be read. */
static bool read_exactly(int fd, unsigned char *buffer, size_t bytes, uint64_t offset)
{
    size_t done = 0;
    while (done < bytes) {
        ssize_t got = pread(fd, buffer + done, bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        done += (size_t)got;
    }
    return true;
}

static void store_piece(uint32_t file, uint64_t offset, size_t bytes)
{
    struct piece piece = {0, offset, file, (uint32_t)bytes};
    double before = now_s();
    must(dmce_malloc(hold.session, bytes, &piece.addr), "dmce_malloc");
    must(dmce_write(hold.session, piece.addr, hold.theirs, bytes), "dmce_write");
    hold.storing.calls_s += now_s() - before;
    hold.pieces = grown(hold.pieces, hold.piece_count, &hold.piece_room, sizeof *hold.pieces);
    hold.pieces[hold.piece_count++] = piece;
    progress_add(&hold.storing, bytes);
}

static bool is_full(void)
{
    return hold.storing.done == hold.storing.total;
}

/* Stores as much of a file as there is left to hold. What changes meanwhile is left out. */
static void store_file(uint32_t index)
{
    const struct file *file = &hold.files[index];
    struct stat now;
    int fd = open(file->path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) {
        hold.unreadable++;
        return;
    }
    uint64_t size = (uint64_t)file->bytes, offset = 0;
    bool whole = fstat(fd, &now) == 0 && is_unchanged(file, &now);
    while (whole && offset < size && !is_full()) {
        uint64_t left = size - offset, room = hold.storing.total - hold.storing.done;
        uint64_t bytes = left < PIECE_BYTES ? left : PIECE_BYTES;
        bytes = bytes < room ? bytes : room;
        whole = read_exactly(fd, hold.theirs, (size_t)bytes, offset);
        if (whole)
            store_piece(index, offset, (size_t)bytes);
        offset += bytes;
    }
    if (!whole)
        hold.changed++;
    close(fd);
}

/* Called by nftw() for everything it finds. Not 0 ends the walk. */
static int visit(const char *path, const struct stat *found, int kind, struct FTW *where)
{
    (void)where;
    if (kind == FTW_DNR || kind == FTW_NS)
        hold.unreadable++;
    if (kind != FTW_F || !S_ISREG(found->st_mode) || found->st_size == 0)
        return 0;
    struct file file = {strdup(path), found->st_size, found->st_mtim};
    if (file.path == NULL)
        fail("no memory for the path %s", path);
    hold.index_bytes += strlen(path) + 1;
    hold.files = grown(hold.files, hold.file_count, &hold.file_room, sizeof *hold.files);
    hold.files[hold.file_count++] = file;
    store_file((uint32_t)(hold.file_count - 1));
    return is_full() ? 1 : 0;
}

static void store_all(char **paths, int path_count)
{
    enum { OPEN_FOLDERS = 32 };
    for (int i = 0; i < path_count && !is_full(); i++) {
        if (nftw(paths[i], visit, OPEN_FOLDERS, FTW_PHYS) < 0)
            fail("%s: %s", paths[i], strerror(errno));
    }
    while (!is_full()) {
        size_t before = hold.piece_count;
        for (size_t i = 0; i < hold.file_count && !is_full(); i++)
            store_file((uint32_t)i);
        if (hold.piece_count == before)
            fail("there are no bytes to hold in what was given");
    }
}

/* ---- checking ---- */

/* splitmix64: small, and the same on every width, so that a seed repeats a run. */
static uint64_t next_random(uint64_t *state)
{
    uint64_t mixed = *state += UINT64_C(0x9e3779b97f4a7c15);
    mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
    return mixed ^ (mixed >> 31);
}

static void shuffle_pieces(uint64_t seed)
{
    for (size_t left = hold.piece_count; left > 1; left--) {
        size_t other = (size_t)(next_random(&seed) % left);
        struct piece moved = hold.pieces[other];
        hold.pieces[other] = hold.pieces[left - 1];
        hold.pieces[left - 1] = moved;
    }
}

static void report_difference(const struct piece *piece)
{
    size_t at = 0;
    while (hold.ours[at] == hold.theirs[at])
        at++;
    hold.wrong++;
    fprintf(stderr, "\nhold: WRONG: %s, byte %" PRIu64 ": held %02x at %#" PRIx64 ", file %02x\n",
            hold.files[piece->file].path, piece->offset + at, hold.ours[at], piece->addr + at,
            hold.theirs[at]);
}

static void check_piece(const struct piece *piece)
{
    const struct file *file = &hold.files[piece->file];
    struct stat now;
    double before = now_s();
    must(dmce_read(hold.session, piece->addr, hold.ours, piece->bytes), "dmce_read");
    hold.checking.calls_s += now_s() - before;
    int fd = open(file->path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    bool there = fd >= 0 && read_exactly(fd, hold.theirs, piece->bytes, piece->offset);
    /* Looked at after it was read: a file that changes in between must not count as wrong. */
    if (!there || fstat(fd, &now) != 0 || !is_unchanged(file, &now))
        hold.changed++;
    else if (memcmp(hold.ours, hold.theirs, piece->bytes) != 0)
        report_difference(piece);
    if (fd >= 0)
        close(fd);
    progress_add(&hold.checking, piece->bytes);
}

/* ---- the report ---- */

/* A line of /proc/self/status in bytes; 0 if there is none of that name. */
static uint64_t status_bytes(const char *name)
{
    char line[256];
    uint64_t kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    while (status != NULL && fgets(line, sizeof line, status) != NULL) {
        size_t length = strlen(name);
        if (strncmp(line, name, length) == 0 && line[length] == ':')
            kib = strtoull(line + length + 1, NULL, 10);
    }
    if (status != NULL)
        fclose(status);
    return kib * 1024;
}

static void report_speed(const char *call, const struct progress *progress, double ended_s)
{
    printf("  %-24s %.0f MB/s inside the calls, %.0f MB/s with the files' own input\n", call,
           (double)progress->done / progress->calls_s / 1e6,
           (double)progress->done / (ended_s - progress->began_s) / 1e6);
}

static void report(double stored_s, double checked_s)
{
    dmce_stat_t stat;
    memset(&stat, 0, sizeof stat);
    stat.size = sizeof stat;
    must(dmce_stat(hold.session, &stat), "dmce_stat");
    uint64_t held = hold.storing.done, peak = status_bytes("VmPeak");
    printf("\nhold, a %zu-bit process:\n", sizeof(void *) * 8);
    printf("  held                     %.2f GiB in %zu pieces of %zu files\n",
           (double)held / (double)GIB, hold.piece_count, hold.file_count);
    printf("  blocks of the daemons    %" PRIu64 ", %.2f GiB committed\n", stat.blocks,
           (double)stat.committed_bytes / (double)GIB);
    if (stat.window_bytes != 0)
        printf("  windows                  %" PRIu64 ", at most %.0f MiB of address space\n",
               stat.windows, (double)stat.window_bytes / (double)MIB);
    else
        printf("  windows                  none: blocks are mapped whole\n");
    report_speed("dmce_write", &hold.storing, stored_s);
    report_speed("dmce_read", &hold.checking, checked_s);
    printf("  peak address space       %.0f MiB, %.1f %% of what is held\n",
           (double)peak / (double)MIB, (double)peak * 100 / (double)held);
    printf("  peak resident            %.0f MiB, the daemons' pages that were mapped included\n",
           (double)status_bytes("VmHWM") / (double)MIB);
    printf("  index in this process    %.1f MiB\n", (double)hold.index_bytes / (double)MIB);
    printf("  files left out           %" PRIu64 " unreadable\n", hold.unreadable);
    printf("  changed meanwhile        %" PRIu64 " times, not compared\n", hold.changed);
    printf("  WRONG                    %" PRIu64 " pieces\n", hold.wrong);
}

/* ---- the program ---- */

struct arguments {
    uint64_t bytes;
    uint64_t seed;
    const char *then;
    char **paths;
    int path_count;
};

static void usage(void)
{
    fputs("usage: hold [--gib N] [--seed N] [--then COMMAND] PATH...\n", stderr);
    exit(2);
}

static struct arguments parse(int argc, char **argv)
{
    struct arguments parsed = {GIB, 1, NULL, NULL, 0};
    int at = 1;
    for (; at + 1 < argc && strncmp(argv[at], "--", 2) == 0; at += 2) {
        const char *value = argv[at + 1];
        char *end = NULL;
        if (strcmp(argv[at], "--gib") == 0) {
            double gib = strtod(value, &end);
            if (!(gib > 0 && gib < 1e6))
                usage();
            parsed.bytes = (uint64_t)(gib * (double)GIB);
        } else if (strcmp(argv[at], "--seed") == 0) {
            parsed.seed = strtoull(value, &end, 10);
        } else if (strcmp(argv[at], "--then") == 0) {
            parsed.then = value;
        } else {
            usage();
        }
        if (end != NULL && (end == value || *end != '\0'))
            usage();
    }
    parsed.paths = argv + at;
    parsed.path_count = argc - at;
    if (parsed.path_count == 0 || parsed.bytes == 0)
        usage();
    return parsed;
}

int main(int argc, char **argv)
{
    struct arguments arguments = parse(argc, argv);
    dmce_options_t options;
    dmce_options_init(&options);
    options.flags = DMCE_SPAWN;
    options.name = "hold";
    must(dmce_open(&options, &hold.session), "dmce_open");
    hold.ours = malloc(PIECE_BYTES);
    hold.theirs = malloc(PIECE_BYTES);
    if (hold.ours == NULL || hold.theirs == NULL)
        fail("no memory for two pieces");

    progress_begin(&hold.storing, "storing", arguments.bytes);
    store_all(arguments.paths, arguments.path_count);
    double stored_s = now_s();

    fflush(NULL);
    if (arguments.then != NULL && system(arguments.then) != 0)
        fail("'%s' failed", arguments.then);

    shuffle_pieces(arguments.seed);
    progress_begin(&hold.checking, "checking", hold.storing.done);
    for (size_t i = 0; i < hold.piece_count; i++)
        check_piece(&hold.pieces[i]);
    report(stored_s, now_s());

    must(dmce_close(hold.session), "dmce_close");
    return hold.wrong == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
