/* Listeners to what is published: WebSockets, one thread, epoll. Some read all that comes, some nothing until they are told to.
 *
 *   listeners PORT TARGET [FIRST]
 *
 * Each asks for TARGET; with FIRST it says that, as a text, once it has heard something, and has its place when it is answered. A message
 * is a frame with `@NANOSECONDS NUMBER#` somewhere in its first bytes: when it was published (CLOCK_MONOTONIC), and a number one above that of
 * the message before it. Pings are answered.
 *
 * Commands on stdin, a line each, each answered by a line of JSON: `more COUNT`: so many more that read; `slow COUNT [PROTOCOL]`: so many more that
 * stop reading when they have their places, with receive buffers of 4 KiB and segments of 1,400 bytes, as over a real network; `state`; `count`: the
 * deliveries from now on are counted, and those before are forgotten; `read`: the slow ones read on; `leave`: the program ends.
 *
 * The state: of those that read how many have their place, and have ended; the deliveries to them, those that are missing, and the percentiles of
 * the time from publishing to receipt in microseconds; of the slow ones how many have their place, and what has become of them: `whole`: has every
 * message; `gap`, `code`: was told that some are missing, by a message or by a close with 4408 or 4409; `closed`, `cut`: has ended with another code, or
 * without one; `silent`: lacks messages, and was not told. A listener starts with the first message that it gets.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define ROOM 8192           /* of the bytes of a listener that are no whole frame yet; no frame may be longer */
#define MARKED 512          /* bytes of a frame in which the mark is looked for */
#define MOST 20000          /* listeners */
#define AT_ONCE 200         /* handshakes under way */
#define RECEIVE_BUFFER 4096
#define SEGMENT 1400

struct listener {
    int fd, slow, status, placed, spoke, ended, code, gap;
    long last, missing;     /* the number of its last message, 0: none yet; how many it lacks before that */
    size_t filled;
    char *bytes;            /* kept only while there is a part of a frame */
};
static struct listener listeners[MOST];
static int count, poll_fd, reads_on, port;
static const char *target, *first;
static uint32_t *latencies; /* microseconds */
static size_t deliveries, room;
static long newest, missing;
static int placed, ended;

static void fail(const char *what) { perror(what); exit(1); }

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void end(struct listener *one) {
    close(one->fd);
    one->fd = -1, one->ended = 1;
    ended += !one->slow;
}

/* A frame of a client; the mask is zero, which leaves the bytes as they are. */
static void say(struct listener *one, int opcode, const char *bytes, size_t length) {
    char frame[4096] = {(char)(0x80 | opcode)};
    size_t head = length < 126 ? 2 : 4;
    if (length + 8 > sizeof frame) length = 0;
    frame[1] = (char)(0x80 | (length < 126 ? length : 126));
    if (length >= 126) frame[2] = (char)(length >> 8), frame[3] = (char)length;
    memcpy(frame + head + 4, bytes, length);
    if (send(one->fd, frame, head + 4 + length, MSG_NOSIGNAL) != (ssize_t)(head + 4 + length)) end(one);
}

static void message(struct listener *one, const char *bytes, size_t length, int64_t at) {
    size_t looked = length < MARKED ? length : MARKED;
    const char *mark = memchr(bytes, '@', looked), *stop = mark ? memchr(mark, '#', bytes + looked - mark) : NULL;
    char *space;
    if (!stop) {
        one->gap |= memmem(bytes, length, "\"type\":\"gap\"", 12) != NULL;
        return;
    }
    int64_t published = strtoll(mark + 1, &space, 10);
    long number = strtol(space, NULL, 10);
    if (one->last && number != one->last + 1) {
        one->missing += number > one->last ? number - one->last - 1 : 1;
        missing += !one->slow;
    }
    one->last = number;
    if (number > newest) newest = number;
    if (one->slow) return;
    if (deliveries == room) {
        room = room ? room * 2 : 65536;
        latencies = realloc(latencies, room * sizeof *latencies);
        if (!latencies) fail("realloc");
    }
    latencies[deliveries++] = (at - published) / 1000;
}

static void has_place(struct listener *one) {
    one->placed = 1;
    placed += !one->slow;
}

/* Takes one frame, or the head of the answer; the bytes that it had, 0: it is not whole. */
static size_t take(struct listener *one, char *bytes, size_t length, int64_t at) {
    if (!one->status) {
        char *rest = memmem(bytes, length, "\r\n\r\n", 4);
        if (!rest) return 0;
        if (sscanf(bytes, "HTTP/1.1 %d", &one->status) != 1 || one->status != 101) end(one);
        else if (!first) has_place(one);
        return rest + 4 - bytes;
    }
    if (length < 2) return 0;
    size_t head = 2, size = bytes[1] & 127;
    if (size == 126) {
        if (length < 4) return 0;
        head = 4, size = (uint8_t)bytes[2] << 8 | (uint8_t)bytes[3];
    }
    if (head + size > ROOM || size == 127) {
        fprintf(stderr, "a frame is too long\n");
        exit(1);
    }
    if (length < head + size) return 0;
    int opcode = bytes[0] & 15;
    if (opcode == 8) {
        one->code = size >= 2 ? (uint8_t)bytes[head] << 8 | (uint8_t)bytes[head + 1] : 1005;
        end(one);
    } else if (opcode == 9) {
        say(one, 10, bytes + head, size);
    } else if (opcode < 3) {
        if (first && !one->spoke) one->spoke = 1, say(one, 1, first, strlen(first));
        else if (!one->placed) has_place(one);
        message(one, bytes + head, size, at);
    }
    return head + size;
}

static int reads(const struct listener *one) { return one->fd >= 0 && (!one->slow || !one->placed || reads_on); }

static void receive(struct listener *one) {
    static char bytes[65536 + ROOM];
    if (!reads(one)) return;
    size_t filled = one->filled, taken = 0, step;
    if (filled) memcpy(bytes, one->bytes, filled);
    ssize_t n = recv(one->fd, bytes + filled, one->slow ? RECEIVE_BUFFER : 65536, 0);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0) return end(one);
    filled += n;
    int64_t at = now();
    while (one->fd >= 0 && (step = take(one, bytes + taken, filled - taken, at))) taken += step;
    one->filled = filled - taken;
    if (one->filled > ROOM) exit(1);
    if (one->filled && !one->bytes && !(one->bytes = malloc(ROOM))) fail("malloc");
    if (one->filled) memcpy(one->bytes, bytes + taken, one->filled);
    else free(one->bytes), one->bytes = NULL;
}

static void watch(struct listener *one, int how) {
    struct epoll_event event = {.events = reads(one) ? EPOLLIN : 0, .data.u32 = one - listeners};
    if (one->fd >= 0 && epoll_ctl(poll_fd, how, one->fd, &event)) fail("epoll_ctl");
}

/* Handles what has happened; waits up to so many milliseconds for something. */
static void turn(int wait) {
    struct epoll_event events[256];
    int ready = epoll_wait(poll_fd, events, 256, wait);
    for (int i = 0; i < ready; i++) {
        if (events[i].data.u32 == UINT32_MAX) continue; /* stdin: the caller looks at it itself */
        struct listener *one = &listeners[events[i].data.u32];
        if (one->fd < 0) continue;
        if (events[i].events & EPOLLIN) {
            receive(one);
            if (one->fd >= 0 && !reads(one)) watch(one, EPOLL_CTL_MOD);
        } else if (!reads(one)) {
            watch(one, EPOLL_CTL_DEL); /* the other side has gone: it finds out when it reads on */
        } else {
            end(one);
        }
    }
}

static int under_way(void) {
    int waiting = 0;
    for (int i = count - AT_ONCE > 0 ? count - AT_ONCE : 0; i < count; i++) waiting += listeners[i].fd >= 0 && !listeners[i].placed;
    return waiting;
}

static void dial(int slow, const char *protocol) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct listener *one = &listeners[count++];
    int on = 1, segment = SEGMENT, buffer = RECEIVE_BUFFER;
    char request[1024];
    int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: localhost:%d\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                          "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n%s%s%s\r\n",
                          target, port, protocol ? "Sec-WebSocket-Protocol: " : "", protocol ? protocol : "", protocol ? "\r\n" : "");
    one->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one->slow = slow;
    if (one->fd < 0) fail("socket");
    if (slow) {
        setsockopt(one->fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
        setsockopt(one->fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    }
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(one->fd, (struct sockaddr *)&address, sizeof address)) fail("connect");
    if (send(one->fd, request, length, MSG_NOSIGNAL) != length) fail("send");
    watch(one, EPOLL_CTL_ADD);
}

static int by_size(const void *one, const void *other) {
    uint32_t left = *(const uint32_t *)one, right = *(const uint32_t *)other;
    return (left > right) - (left < right);
}

static unsigned percentile(double share) { return deliveries ? latencies[(size_t)((deliveries - 1) * share)] : 0; }

static void say_state(int sorted) {
    int slow = 0, whole = 0, gap = 0, code = 0, closed = 0, cut = 0, silent = 0;
    for (int i = 0; i < count; i++) {
        struct listener *one = &listeners[i];
        if (!one->slow) continue;
        slow += one->placed;
        if (one->code == 4408 || one->code == 4409) code++;
        else if (one->gap) gap++;
        else if (one->code) closed++;
        else if (one->ended) cut++;
        else if (!one->missing && one->last == newest) whole++;
        else silent++;
    }
    if (sorted) qsort(latencies, deliveries, sizeof *latencies, by_size);
    printf("{\"placed\": %d, \"ended\": %d, \"deliveries\": %zu, \"missing\": %ld, \"newest\": %ld, ", placed, ended, deliveries, missing, newest);
    if (sorted) printf("\"p50_us\": %u, \"p99_us\": %u, \"most_us\": %u, ", percentile(0.5), percentile(0.99), percentile(1));
    printf("\"slow\": %d, \"whole\": %d, \"gap\": %d, \"code\": %d, \"closed\": %d, \"cut\": %d, \"silent\": %d}\n",
           slow, whole, gap, code, closed, cut, silent);
    fflush(stdout);
}

/* Does what a line says; whether it was the last. */
static int obey(const char *line) {
    char word[16] = "", protocol[64] = "";
    int more = 0;
    sscanf(line, "%15s %d %63s", word, &more, protocol);
    if (more < 0 || more > MOST - count) more = MOST - count;
    for (int i = 0; i < more; i++) {
        dial(!strcmp(word, "slow"), protocol[0] ? protocol : NULL);
        while (i % AT_ONCE == AT_ONCE - 1 && under_way()) turn(100);
    }
    if (!strcmp(word, "count")) deliveries = 0, missing = 0;
    if (!strcmp(word, "read") && !reads_on) {
        reads_on = 1;
        for (int i = 0; i < count; i++) {
            if (!listeners[i].slow || listeners[i].fd < 0) continue;
            epoll_ctl(poll_fd, EPOLL_CTL_DEL, listeners[i].fd, NULL);
            watch(&listeners[i], EPOLL_CTL_ADD);
        }
    }
    say_state(!strcmp(word, "state"));
    return !strcmp(word, "leave");
}

int main(int arguments, char **argument) {
    if (arguments < 3 || arguments > 4 || (port = atoi(argument[1])) < 1) {
        fprintf(stderr, "usage: listeners PORT TARGET [FIRST]\n");
        return 64;
    }
    target = argument[2], first = argument[3];
    signal(SIGPIPE, SIG_IGN);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event about = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    if (poll_fd < 0 || epoll_ctl(poll_fd, EPOLL_CTL_ADD, 0, &about)) fail("epoll");
    for (char line[128];;) {
        struct pollfd input = {.fd = 0, .events = POLLIN};
        turn(1000);
        if (poll(&input, 1, 0) > 0 && (!fgets(line, sizeof line, stdin) || obey(line))) return 0;
    }
}
