/* Counts the system calls by which a process changes files in CRASH_FOLDER, and kills it at the one that is meant.

   Preloaded (LD_PRELOAD) into the flow, so that the writes of Bytewax's recovery store are met as well, which no
   wrapper in Python sees. CRASH_NTH is the call's number, 0 for none; CRASH_PHASE is before, half or after. */

#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static const char *folder;
static long nth;
static const char *phase = "after";
static atomic_long calls;

__attribute__((constructor)) static void begin(void) {
    folder = getenv("CRASH_FOLDER");
    if (getenv("CRASH_NTH"))
        nth = atol(getenv("CRASH_NTH"));
    if (getenv("CRASH_PHASE"))
        phase = getenv("CRASH_PHASE");
}

static void put(const char *name, int how, const char *text) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | how, 0666);
    syscall(SYS_write, fd, text, strlen(text));
    syscall(SYS_close, fd);
}

__attribute__((destructor)) static void end(void) {
    char text[32];
    if (!folder)
        return;
    snprintf(text, sizeof text, "%ld", atomic_load(&calls));
    put("calls", O_TRUNC, text);
}

static void die(const char *call, const char *path) {
    char text[4400];
    const char *name = strrchr(path, '/');
    snprintf(text, sizeof text, "{\"kind\":\"call %s %s\",\"nth\":%ld,\"phase\":\"%s\"}\n", call,
             name ? name + 1 : path, nth, phase);
    put("kills.ndjson", O_APPEND, text);
    kill(getpid(), SIGKILL);
}

static int met(const char *call, const char *path) {
    if (!folder || (path[0] == '/' && strncmp(path, folder, strlen(folder))) || strstr(path, "/said-") ||
        strstr(path, "kills.ndjson") || strstr(path, "met.json"))
        return 0;
    if (atomic_fetch_add(&calls, 1) + 1 != nth)
        return 0;
    if (phase[0] == 'b')
        die(call, path);
    return 1;
}

static const char *path_of(int fd, char *room, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, room, size - 1);
    room[length < 0 ? 0 : length] = 0;
    return room[0] == '/' ? room : "/";
}

#define ON_FD(call, half, act)                                                                     \
    char room[4096];                                                                               \
    const char *path = folder ? path_of(fd, room, sizeof room) : "/";                              \
    int meant = met(call, path);                                                                   \
    if (meant && phase[0] == 'h') {                                                                \
        half;                                                                                      \
        die(call, path);                                                                           \
    }                                                                                              \
    long done = act;                                                                               \
    if (meant)                                                                                     \
        die(call, path);                                                                           \
    return done;

ssize_t write(int fd, const void *block, size_t size) {
    ON_FD("write", syscall(SYS_write, fd, block, size / 2), syscall(SYS_write, fd, block, size))
}

ssize_t pwrite64(int fd, const void *block, size_t size, off_t at) {
    ON_FD("pwrite", syscall(SYS_pwrite64, fd, block, size / 2, at), syscall(SYS_pwrite64, fd, block, size, at))
}

ssize_t pwrite(int fd, const void *block, size_t size, off_t at) { return pwrite64(fd, block, size, at); }

int ftruncate64(int fd, off_t size) { ON_FD("ftruncate", (void)0, syscall(SYS_ftruncate, fd, size)) }

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int fsync(int fd) { ON_FD("fsync", (void)0, syscall(SYS_fsync, fd)) }

int fdatasync(int fd) { ON_FD("fdatasync", (void)0, syscall(SYS_fdatasync, fd)) }

#define ON_PATH(call, act)                                                                         \
    int meant = met(call, path);                                                                   \
    long done = act;                                                                               \
    if (meant)                                                                                     \
        die(call, path);                                                                           \
    return done;

int unlink(const char *path) { ON_PATH("unlink", syscall(SYS_unlinkat, AT_FDCWD, path, 0)) }

int truncate64(const char *path, off_t size) { ON_PATH("truncate", syscall(SYS_truncate, path, size)) }

int truncate(const char *path, off_t size) { return truncate64(path, size); }

int rename(const char *from, const char *path) {
    ON_PATH("rename", syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, path, 0))
}

int link(const char *from, const char *path) {
    ON_PATH("link", syscall(SYS_linkat, AT_FDCWD, from, AT_FDCWD, path, 0))
}
