/* A slow disk, put before a server by LD_PRELOAD: nothing of a file whose name ends with .slow is in memory, and its bytes come only once
   the file GATE is there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int is_slow(int descriptor) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path);
    return length > 5 && memcmp(path + length - 5, ".slow", 5) == 0;
}

ssize_t preadv2(int descriptor, const struct iovec *vectors, int count, off_t at, int flags) {
    if (is_slow(descriptor)) {
        errno = EAGAIN;
        return -1;
    }
    ssize_t (*next)(int, const struct iovec *, int, off_t, int) = dlsym(RTLD_NEXT, "preadv2");
    return next(descriptor, vectors, count, at, flags);
}

ssize_t pread64(int descriptor, void *room, size_t size, off64_t at) {
    while (is_slow(descriptor) && access(GATE, F_OK) != 0)
        usleep(1000);
    ssize_t (*next)(int, void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pread64");
    return next(descriptor, room, size, at);
}
