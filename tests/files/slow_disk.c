/* A slow disk, put before a server by LD_PRELOAD: nothing of a file whose name ends with .slow is in memory, and its bytes come only once
   the file GATE is there; and what there is to know of one that ends with .dead comes only then. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int ends_with(int descriptor, const char *end) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path);
    return length > 5 && memcmp(path + length - 5, end, 5) == 0;
}

static void await_gate(void) {
    while (access(GATE, F_OK) != 0)
        usleep(1000);
}

ssize_t preadv2(int descriptor, const struct iovec *vectors, int count, off_t at, int flags) {
    if (ends_with(descriptor, ".slow")) {
        errno = EAGAIN;
        return -1;
    }
    ssize_t (*next)(int, const struct iovec *, int, off_t, int) = dlsym(RTLD_NEXT, "preadv2");
    return next(descriptor, vectors, count, at, flags);
}

ssize_t pread64(int descriptor, void *room, size_t size, off64_t at) {
    if (ends_with(descriptor, ".slow"))
        await_gate();
    ssize_t (*next)(int, void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pread64");
    return next(descriptor, room, size, at);
}

int statx(int descriptor, const char *restrict path, int flags, unsigned mask, struct statx *restrict found) {
    if ((flags & AT_EMPTY_PATH) && ends_with(descriptor, ".dead"))
        await_gate();
    int (*next)(int, const char *, int, unsigned, struct statx *) = dlsym(RTLD_NEXT, "statx");
    return next(descriptor, path, flags, mask, found);
}
