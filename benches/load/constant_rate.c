/* Requests at a constant rate, timed from the moment each was due and not from the moment it was sent.
 *
 *   constant_rate PORT PATH RATE SECONDS CONNECTIONS
 *
 * One thread, keep-alive connections to 127.0.0.1, one request at a time on each. Request i is due at start + i/RATE. When every
 * connection is busy it waits, and its wait counts (no coordinated omission). The first half second warms up and is
 * not counted. Prints one line of JSON: counts, and p50, p90, p99, p99.9 and the maximum in microseconds. Exits with 1
 * when a request failed, or could not be answered within 5 s of the end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define WARM_UP (SECOND / 2)
#define GRACE (5 * SECOND)
#define CONNECTIONS_MAX 4096

struct connection {
    int fd;
    long number;     /* of the request in flight, -1: free */
    char head[4096]; /* of its answer, until it is whole */
    size_t filled;
    long body_left;  /* -1: still in the head */
};

static struct connection *connections;
static int *idle, idle_count; /* a stack of free connections */
static int64_t start, interval;
static uint32_t *latencies;   /* microseconds, by request; only counted ones are kept */
static long kept, failed, done, dead, first_counted;

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * SECOND + time.tv_nsec;
}

static void fail(const char *what) { perror(what); exit(1); }

static int64_t due(long number) { return start + number * interval; }

static int dial(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* A connection that failed is not used again. */
static void lose(struct connection *c) {
    close(c->fd);
    c->fd = -1;
    dead++;
    failed++;
}

static void finish(struct connection *c, int index) {
    if (strncmp(c->head + 8, " 200", 4)) failed++;
    else done++;
    if (c->number >= first_counted) {
        int64_t taken = (now() - due(c->number)) / 1000;
        latencies[kept++] = taken > UINT32_MAX ? UINT32_MAX : (uint32_t)taken;
    }
    c->number = -1;
    idle[idle_count++] = index;
}

/* Takes what has come of an answer; only those with a Content-Length are understood. */
static void answer(struct connection *c, int index) {
    char bytes[65536];
    ssize_t n = recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0 || c->number < 0) { lose(c); return; }
    if (c->body_left >= 0) c->body_left -= n;
    else {
        size_t room = sizeof c->head - 1 - c->filled, take = (size_t)n < room ? (size_t)n : room;
        memcpy(c->head + c->filled, bytes, take);
        c->filled += take;
        c->head[c->filled] = 0;
        char *end = strstr(c->head, "\r\n\r\n");
        if (!end) { if (c->filled == sizeof c->head - 1) lose(c); return; }
        char *length = strcasestr(c->head, "\r\ncontent-length:");
        if (!length || length > end) { lose(c); return; }
        long behind = (long)(c->filled - (end + 4 - c->head)) + (long)((size_t)n - take);
        c->body_left = atol(length + 17) - behind;
    }
    if (c->body_left == 0) finish(c, index);
    else if (c->body_left < 0) lose(c);
}

static int compare(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static uint32_t at(double share) {
    return kept ? latencies[(long)(share * (double)(kept - 1) + 0.5)] : 0;
}

int main(int count, char **arguments) {
    if (count != 6) { fprintf(stderr, "usage: constant_rate PORT PATH RATE SECONDS CONNECTIONS\n"); return 64; }
    int port = atoi(arguments[1]), size = atoi(arguments[5]);
    long rate = atol(arguments[3]);
    double seconds = atof(arguments[4]);
    if (port < 1 || rate < 1 || rate > 1000000 || seconds <= 0 || seconds > 600 || size < 1 || size > CONNECTIONS_MAX) {
        fprintf(stderr, "constant_rate: an argument is out of range\n");
        return 64;
    }
    long total = (long)((seconds * (double)SECOND + WARM_UP) / ((double)SECOND / (double)rate));
    char request[1024];
    int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", arguments[2]);
    if (length >= (int)sizeof request) { fprintf(stderr, "constant_rate: the path is too long\n"); return 64; }
    connections = calloc(size, sizeof *connections);
    idle = calloc(size, sizeof *idle);
    latencies = calloc(total, sizeof *latencies);
    if (!connections || !idle || !latencies) fail("calloc");
    prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0); /* wake when asked, and not up to 50 us later */
    int poll = epoll_create1(EPOLL_CLOEXEC);
    if (poll < 0) fail("epoll_create1");
    for (int i = 0; i < size; i++) {
        connections[i] = (struct connection){.fd = dial(port), .number = -1};
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = i};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, connections[i].fd, &event)) fail("epoll_ctl");
        idle[idle_count++] = i;
    }
    interval = SECOND / rate;
    first_counted = WARM_UP / interval;
    start = now() + SECOND / 100;
    long next = 0;
    while (done + failed < total && dead < size && now() < due(total) + GRACE) {
        int64_t time = now();
        while (next < total && idle_count && due(next) <= time) {
            int index = idle[--idle_count];
            struct connection *c = &connections[index];
            if (c->fd < 0) continue;
            c->number = next++;
            c->filled = 0;
            c->body_left = -1;
            if (send(c->fd, request, length, MSG_NOSIGNAL) != length) lose(c);
        }
        int64_t wait = next < total && idle_count ? due(next) - now() : SECOND / 10;
        struct timespec timeout = {.tv_sec = 0, .tv_nsec = wait < 0 ? 0 : wait};
        if (timeout.tv_nsec >= SECOND) timeout.tv_sec = timeout.tv_nsec / SECOND, timeout.tv_nsec %= SECOND;
        struct epoll_event events[256];
        int ready = epoll_pwait2(poll, events, 256, &timeout, NULL);
        for (int i = 0; i < ready; i++) {
            int index = (int)events[i].data.u32;
            if (connections[index].fd >= 0) answer(&connections[index], index);
        }
    }
    int64_t taken = now() - start;
    failed += total - done - failed > 0 ? total - done - failed : 0;
    qsort(latencies, kept, sizeof *latencies, compare);
    printf("{\"requests\": %ld, \"failed\": %ld, \"rate\": %.0f, \"p50_us\": %u, \"p90_us\": %u, \"p99_us\": %u, "
           "\"p999_us\": %u, \"max_us\": %u}\n",
           done, failed, (double)done * (double)SECOND / (double)taken, at(0.5), at(0.9), at(0.99), at(0.999), at(1.0));
    return failed ? 1 : 0;
}
