/* Makes the n-th call that changes files below a folder fail, stop half-way, or kill the process: loaded before libc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FAIL, FAIL_ON, SHORT, KILL_BEFORE, KILL_AFTER, KILL_HALF };

static char folder[PATH_MAX];
static int armed, mode, code;
static long target;
static atomic_long calls;
static const char *names[100000];

void fault_arm(const char *below, long number, int how, int error) {
    snprintf(folder, sizeof folder, "%s", below);
    atomic_store(&calls, 0);
    target = number, mode = how, code = error, armed = 1;
}
long fault_calls(void) { return atomic_load(&calls); }
const char *fault_name(long number) { return names[number]; }

static int below(const char *path) {
    char here[PATH_MAX];
    if (path == NULL) return 0;
    if (path[0] == '/') return strncmp(path, folder, strlen(folder)) == 0;
    return getcwd(here, sizeof here) && strncmp(here, folder, strlen(folder)) == 0;
}
static int fd_below(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t got = readlink(link, path, sizeof path - 1);
    if (got < 0) return 0;
    path[got] = 0;
    return below(path);
}
/* 0: nothing; 1: fail with errno; 2: write half; 3: die after; 4: die half-way */
static int strikes(const char *name, int relevant, int writes) {
    if (!armed || !relevant) return 0;
    long number = atomic_fetch_add(&calls, 1) + 1;
    if (number < 100000) names[number] = name;
    if (number != target && !(mode == FAIL_ON && number > target && target > 0)) return 0;
    if (mode == KILL_BEFORE) kill(getpid(), SIGKILL);
    if (mode == SHORT) return writes ? 2 : 0;
    if (mode == KILL_HALF) return writes ? 4 : 0;
    if (mode == KILL_AFTER) return 3;
    /* a full disk takes no more, and gives back */
    if (code == ENOSPC && mode == FAIL_ON && (!strcmp(name, "unlink") || !strcmp(name, "rmdir"))) return 0;
    /* not every call can be interrupted */
    if (code == EINTR && !writes && strcmp(name, "open") && strcmp(name, "fsync")) return 0;
    errno = code;
    return 1;
}
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

#define REAL(type, name, parameters) \
    static type (*real) parameters; \
    if (!real) real = (type (*) parameters)dlsym(RTLD_NEXT, name)

#define CALL(type, name, symbol, parameters, arguments, relevant) \
    type symbol parameters { \
        REAL(type, #symbol, parameters); \
        int how = strikes(name, relevant, 0); \
        if (how == 1) return -1; \
        type result = real arguments; \
        if (how == 3) die(); \
        return result; \
    }

#define WRITE(symbol, parameters, half, arguments) \
    ssize_t symbol parameters { \
        REAL(ssize_t, #symbol, parameters); \
        int how = armed ? strikes("write", fd_below(fd), size > 1) : 0; \
        if (how == 1) return -1; \
        ssize_t result = how == 2 || how == 4 ? real half : real arguments; \
        if (how >= 3) die(); \
        return result; \
    }

WRITE(write, (int fd, const void *from, size_t size), (fd, from, size / 2), (fd, from, size))
WRITE(pwrite, (int fd, const void *from, size_t size, off_t at), (fd, from, size / 2, at), (fd, from, size, at))
WRITE(pwrite64, (int fd, const void *from, size_t size, off64_t at), (fd, from, size / 2, at), (fd, from, size, at))
ssize_t writev(int fd, const struct iovec *parts, int size) {
    REAL(ssize_t, "writev", (int, const struct iovec *, int));
    int how = armed ? strikes("write", fd_below(fd), 1) : 0;
    if (how == 1) return -1;
    ssize_t result = how == 2 || how == 4 ? real(fd, parts, 1) : real(fd, parts, size);
    if (how >= 3) die();
    return result;
}
#define FLUSH(symbol) \
    int symbol(int fd) { \
        REAL(int, #symbol, (int)); \
        int relevant = armed && fd_below(fd); \
        int how = strikes("fsync", relevant, 0); \
        if (how == 1) return -1; \
        if (how == 3) die(); \
        return relevant ? 0 : real(fd); /* no test can cut the power, and waiting takes most of the time */ \
    }
FLUSH(fsync)
FLUSH(fdatasync)
CALL(int, "truncate", ftruncate, (int fd, off_t size), (fd, size), armed && fd_below(fd))
CALL(int, "truncate", ftruncate64, (int fd, off64_t size), (fd, size), armed && fd_below(fd))
CALL(int, "chmod", fchmod, (int fd, mode_t bits), (fd, bits), armed && fd_below(fd))
CALL(int, "chmod", chmod, (const char *path, mode_t bits), (path, bits), below(path))
CALL(int, "chmod", fchmodat, (int at, const char *path, mode_t bits, int flags), (at, path, bits, flags), below(path))
CALL(int, "rename", rename, (const char *from, const char *to), (from, to), below(to))
CALL(int, "rename", renameat, (int a, const char *from, int b, const char *to), (a, from, b, to), below(to))
CALL(int, "link", link, (const char *from, const char *to), (from, to), below(to))
CALL(int, "link", linkat, (int a, const char *from, int b, const char *to, int f), (a, from, b, to, f), below(to))
CALL(int, "unlink", unlink, (const char *path), (path), below(path))
CALL(int, "unlink", unlinkat, (int at, const char *path, int flags), (at, path, flags), below(path))
CALL(int, "mkdir", mkdir, (const char *path, mode_t bits), (path, bits), below(path))
CALL(int, "mkdir", mkdirat, (int at, const char *path, mode_t bits), (at, path, bits), below(path))
CALL(int, "rmdir", rmdir, (const char *path), (path), below(path))

#define OPEN(symbol, parameters, first, arguments) \
    int symbol parameters { \
        REAL(int, #symbol, parameters); \
        mode_t bits = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            bits = va_arg(rest, mode_t); \
            va_end(rest); \
        } \
        int how = strikes("open", (flags & (O_WRONLY | O_RDWR)) && below(path), 0); \
        if (how == 1) return -1; \
        int result = real arguments; \
        if (how == 3) die(); \
        return result; \
    }
OPEN(open, (const char *path, int flags, ...), 0, (path, flags, bits))
OPEN(open64, (const char *path, int flags, ...), 0, (path, flags, bits))
OPEN(openat, (int at, const char *path, int flags, ...), 0, (at, path, flags, bits))
OPEN(openat64, (int at, const char *path, int flags, ...), 0, (at, path, flags, bits))
