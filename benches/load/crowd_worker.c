/* The worker behind a crowd: one thread, epoll, a Unix socket; what it does is in the path of each request.
 *
 *   crowd_worker SOCKET
 *
 * /small        13 bytes
 * /400k         400,000 bytes
 * /stream       an event stream: 200 KB of events at once, then one of 1 KB every five seconds, as they are taken
 * /quiet        the same without the first 200 KB
 * /wait         reads the body and answers when /go is asked for
 * /upload       reads nothing behind the head until /go, then all of the body, and answers
 * /pour         a 101, and 4 MiB as they are taken
 * /deaf         a 101; reads nothing until /go
 * /go           lets those go that wait; /count says as JSON how many there are of each kind
 *
 * A request body is read and dropped before the answer. It trusts what the server under test sends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define HEAD_MAX 49152
#define DESCRIPTORS_MAX 65536
#define POURED 64 /* pieces of 64 KiB */
#define TICK_MS 20
#define TICKS_PER_EVENT 250 /* an event every five seconds for each stream */

enum kind { SMALL, LARGE, STREAM, QUIET, WAIT, UPLOAD, POUR, DEAF, GO, COUNT, KINDS };
static const char *const paths[KINDS] = {"/small", "/400k", "/stream", "/quiet", "/wait", "/upload", "/pour", "/deaf", "/go", "/count"};

struct answer { char *bytes; size_t length; };
static struct answer small, large, burst, hello, event, switching, poured;

struct connection {
    char *input; /* what of a head has come; none while nothing has */
    size_t filled;
    uint64_t body_left;
    int in_chunks;
    uint64_t window; /* the last bytes of a chunked body: matched against its end */
    enum kind kind;
    int asked, held, endless; /* a request is under way; it waits for /go; its answer goes on and on */
    int pieces;               /* sent through a tunnel */
    const struct answer *answer;
    size_t sent;
};
static struct connection *connections[DESCRIPTORS_MAX];
static int highest, asked[KINDS];
static struct answer counts;

static void fail(const char *what) { perror(what); exit(1); }

static struct answer join(const char *head, size_t size) {
    size_t length = strlen(head);
    char *bytes = malloc(length + size);
    if (!bytes) fail("malloc");
    memcpy(bytes, head, length);
    for (size_t i = 0; i < size; i++) bytes[length + i] = (char)((i % 251) ^ (i >> 12));
    return (struct answer){bytes, length + size};
}

static void make_answers(void) {
    small = join("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\n", 13);
    large = join("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 400000\r\n\r\n", 400000);
    /* As an app says it to an nginx in front, which would hold events back otherwise. */
    hello = join("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Accel-Buffering: no\r\n\r\n", 0);
    switching = join("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n", 0);
    poured = join("", 65536);
    event = join("", 1024);
    memset(event.bytes, 'e', event.length);
    memcpy(event.bytes, "data: ", 6);
    memcpy(event.bytes + event.length - 2, "\n\n", 2);
    burst = (struct answer){malloc(hello.length + 200 * event.length), hello.length + 200 * event.length};
    memcpy(burst.bytes, hello.bytes, hello.length);
    for (int i = 0; i < 200; i++) memcpy(burst.bytes + hello.length + i * event.length, event.bytes, event.length);
}

static void drop(int fd) {
    struct connection *c = connections[fd];
    if (c->asked) asked[c->kind]--;
    free(c->input);
    free(c);
    connections[fd] = NULL;
    close(fd);
}

/* Sends what is due. 1: all of it; 0: the peer is slow; -1: it has gone. */
static int flush(int fd, struct connection *c) {
    while (c->answer) {
        ssize_t n = send(fd, c->answer->bytes + c->sent, c->answer->length - c->sent, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN ? 0 : -1;
        c->sent += n;
        if (c->sent < c->answer->length) continue;
        c->sent = 0;
        c->answer = c->kind == POUR && c->pieces++ < POURED ? &poured : NULL;
        if (c->answer) continue;
        if (!c->endless) { asked[c->kind]--; c->asked = 0; }
    }
    return 1;
}

static void count_all(void) {
    static char text[1024], body[512];
    int at = sprintf(body, "{");
    for (int kind = 0; kind < GO; kind++) at += sprintf(body + at, "%s\"%s\": %d", kind ? ", " : "", paths[kind] + 1, asked[kind]);
    sprintf(body + at, "}");
    sprintf(text, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
    counts = (struct answer){text, strlen(text)};
}

static int serve(int fd, struct connection *c);

static void let_go(void) {
    for (int fd = 0; fd <= highest; fd++) {
        struct connection *c = connections[fd];
        if (!c || !c->held) continue;
        c->held = 0;
        if (c->kind == WAIT) c->answer = &small;
        if (serve(fd, c) < 0) drop(fd);
    }
}

/* A request whose head and, where it is wanted, body have come. */
static void begin_answer(struct connection *c) {
    switch (c->kind) {
    case LARGE: c->answer = &large; break;
    case STREAM: c->answer = &burst, c->endless = 1; break;
    case QUIET: c->answer = &hello, c->endless = 1; break;
    case POUR: case DEAF: c->answer = &switching, c->endless = 1, c->held = c->kind == DEAF; break;
    case WAIT: c->held = 1; break;
    case GO: let_go(); c->answer = &small; break;
    case COUNT: count_all(); c->answer = &counts; break;
    default: c->answer = &small;
    }
}

/* Takes a head from the input. 1: there was one; 0: not yet; -1: it is none. */
static int take_head(struct connection *c) {
    char *end = memmem(c->input, c->filled, "\r\n\r\n", 4);
    if (!end) return c->filled == HEAD_MAX ? -1 : 0;
    end[2] = 0;
    char *path = strchr(c->input, ' ');
    if (!path) return -1;
    c->kind = SMALL;
    for (int kind = 0; kind < KINDS; kind++)
        if (!strncmp(path + 1, paths[kind], strlen(paths[kind]))) c->kind = kind;
    c->body_left = 0, c->in_chunks = 0;
    for (const char *line = strstr(c->input, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15)) c->body_left = strtoull(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding:", 18)) c->in_chunks = 1, c->window = 0x0d0a;
    }
    size_t used = end + 4 - c->input;
    memmove(c->input, c->input + used, c->filled - used);
    c->filled -= used;
    c->asked = 1, c->endless = 0, c->pieces = 0, c->held = c->kind == UPLOAD;
    asked[c->kind]++;
    return 1;
}

/* Takes body bytes from the input. 1: the body is over. */
static int take_body(struct connection *c) {
    size_t at = 0;
    if (c->in_chunks) {
        while (at < c->filled && c->in_chunks) {
            c->window = (c->window << 8 | (unsigned char)c->input[at++]) & 0xffffffffffffffULL;
            if (c->window == 0x0d0a300d0a0d0aULL) c->in_chunks = 0;
        }
    } else {
        at = c->filled < c->body_left ? c->filled : c->body_left;
        c->body_left -= at;
    }
    memmove(c->input, c->input + at, c->filled - at);
    c->filled -= at;
    return !c->in_chunks && !c->body_left;
}

/* Goes on with a connection as far as it can. -1: it is over. */
static int serve(int fd, struct connection *c) {
    for (;;) {
        int flushed = flush(fd, c);
        if (flushed <= 0) return flushed;
        if (c->held) return 0;
        if (c->asked && c->endless) {
            char bytes[65536]; /* nobody wants them, but their end shows that the client has left */
            ssize_t n = recv(fd, bytes, sizeof bytes, 0);
            if (n > 0) continue;
            return n < 0 && errno == EAGAIN ? 0 : -1;
        }
        if (c->filled) {
            int ready = c->asked ? 1 : take_head(c);
            if (ready < 0) return -1;
            if (c->held) continue;
            if (ready && take_body(c)) { begin_answer(c); continue; }
            if (!ready && c->filled == HEAD_MAX) return -1;
        }
        if (!c->input && !(c->input = malloc(HEAD_MAX))) fail("malloc");
        ssize_t n = recv(fd, c->input + c->filled, HEAD_MAX - c->filled, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) return -1;
        if (n < 0) {
            if (!c->filled) { free(c->input); c->input = NULL; }
            return 0;
        }
        c->filled += n;
    }
}

static void accept_all(int listener, int poll) {
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        if (fd >= DESCRIPTORS_MAX) { close(fd); continue; }
        if (!(connections[fd] = calloc(1, sizeof(struct connection)))) fail("calloc");
        if (fd > highest) highest = fd;
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    }
}

/* The next event for one slice of the streams, so that the load is even. One that has not taken its last gets none. */
static void tick(void) {
    static int slice;
    slice = (slice + 1) % TICKS_PER_EVENT;
    for (int fd = slice; fd <= highest; fd += TICKS_PER_EVENT) {
        struct connection *c = connections[fd];
        if (!c || !c->asked || (c->kind != STREAM && c->kind != QUIET) || c->answer) continue;
        c->answer = &event;
        if (flush(fd, c) < 0) drop(fd);
    }
}

static int64_t milliseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000LL + time.tv_nsec / 1000000;
}

int main(int count, char **arguments) {
    if (count != 2) { fprintf(stderr, "usage: crowd_worker SOCKET\n"); return 64; }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    make_answers();
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(arguments[1]) >= sizeof address.sun_path) { fprintf(stderr, "the socket's path is too long\n"); return 64; }
    strcpy(address.sun_path, arguments[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) fail("listen");
    int poll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event about = {.events = EPOLLIN, .data.fd = listener}, events[256];
    if (poll < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, listener, &about)) fail("epoll");
    for (int64_t next = milliseconds();;) {
        int streams = asked[STREAM] + asked[QUIET] > 0;
        int64_t now = milliseconds();
        if (!streams || now > next + 1000) next = now;
        if (streams && now >= next) tick(), next += TICK_MS;
        int ready = epoll_wait(poll, events, 256, streams ? (next > now ? (int)(next - now) : 0) : -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) accept_all(listener, poll);
            /* Those that wait do not read, and see the server's close by its event alone. */
            else if (connections[fd] && (events[i].events & (EPOLLHUP | EPOLLERR) || serve(fd, connections[fd]) < 0)) drop(fd);
        }
    }
}
