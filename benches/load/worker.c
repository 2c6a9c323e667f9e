/* The worker behind the servers that are compared: one thread, epoll, a Unix socket, keep-alive, answers made once.
 *
 *   worker SOCKET
 *
 * GET /small 13 bytes, /64k, /1m, /chunked (4 chunks of 1 KiB), /json (64 KiB of records); anything else is answered like /small. A request body
 * (Content-Length, or chunked without trailers) is read and dropped before the answer. It is a yardstick and not a
 * server: it trusts what the servers under test send, and closes a connection that it does not understand.
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
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define HEAD_MAX 32768
#define DESCRIPTORS_MAX 20000

struct answer { char *bytes; size_t length; };
static struct answer small, large, huge, chunked, records;

struct connection {
    char *input;              /* what of a head or of a chunked body has come, HEAD_MAX bytes */
    size_t filled;
    uint64_t body_left;       /* of a body with Content-Length */
    int in_chunks;            /* reading a chunked body */
    uint64_t window;          /* the last seven bytes of it: matched against "\r\n0\r\n\r\n" */
    const struct answer *answer, *next; /* being sent; to send when the body has been read */
    size_t sent;
};
static struct connection *connections[DESCRIPTORS_MAX];

static void fail(const char *what) { perror(what); exit(1); }

static struct answer plain(size_t size) {
    struct answer made;
    char *bytes = malloc(size + 256);
    if (!bytes) fail("malloc");
    int head = sprintf(bytes, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %zu\r\n\r\n", size);
    memset(bytes + head, 'x', size);
    made.bytes = bytes;
    made.length = head + size;
    return made;
}

static struct answer in_chunks(int count, int size) {
    struct answer made;
    char *bytes = malloc((size_t)count * (size + 16) + 256), *at = bytes;
    if (!bytes) fail("malloc");
    at += sprintf(at, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < count; i++) {
        at += sprintf(at, "%x\r\n", size);
        memset(at, 'x', size);
        at += size;
        at += sprintf(at, "\r\n");
    }
    at += sprintf(at, "0\r\n\r\n");
    made.bytes = bytes;
    made.length = at - bytes;
    return made;
}

/* A list as APIs answer with: names that come again, and values that do not. */
static struct answer in_json(size_t size) {
    struct answer made;
    char *body = malloc(size), *bytes = malloc(size + 256);
    if (!body || !bytes) fail("malloc");
    size_t length = sprintf(body, "[");
    uint32_t random = 1;
    for (int id = 1; length + 256 < size; id++) {
        random = random * 1664525 + 1013904223;
        length += sprintf(body + length, "%s{\"id\":%d,\"name\":\"user %u\",\"email\":\"u%u@example.com\",\"active\":%s,\"balance\":%u.%02u}",
                          id > 1 ? "," : "", id, random >> 12, random >> 8, random >> 31 ? "true" : "false", random >> 16, random % 100);
    }
    length += sprintf(body + length, "]");
    int head = sprintf(bytes, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", length);
    memcpy(bytes + head, body, length);
    free(body);
    made.bytes = bytes;
    made.length = head + length;
    return made;
}

static void drop(int fd) {
    free(connections[fd]->input);
    free(connections[fd]);
    connections[fd] = NULL;
    close(fd);
}

static const struct answer *choose(const char *head) {
    const char *path = strchr(head, ' ');
    if (!path) return NULL;
    path++;
    if (!strncmp(path, "/64k", 4)) return &large;
    if (!strncmp(path, "/1m", 3)) return &huge;
    if (!strncmp(path, "/chunked", 8)) return &chunked;
    if (!strncmp(path, "/json", 5)) return &records;
    return &small;
}

/* Reads the framing fields of a head that ends in a NUL. */
static void framing(struct connection *c, const char *head) {
    c->body_left = 0;
    c->in_chunks = 0;
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, "content-length:", 15)) c->body_left = strtoull(line + 15, NULL, 10);
        if (!strncasecmp(line, "transfer-encoding:", 18)) c->in_chunks = 1, c->window = 0x0d0a;
    }
}

/* Sends what is due. 1: all of it; 0: the peer is slow; -1: it has gone. */
static int flush(int fd, struct connection *c) {
    while (c->answer) {
        ssize_t n = send(fd, c->answer->bytes + c->sent, c->answer->length - c->sent, MSG_NOSIGNAL);
        if (n < 0) return errno == EAGAIN ? 0 : -1;
        c->sent += n;
        if (c->sent == c->answer->length) c->answer = NULL;
    }
    return 1;
}

/* Works through the input: bodies away, heads answered. -1: close. */
static int advance(int fd, struct connection *c) {
    size_t at = 0;
    while (!c->answer) {
        if (c->next && c->body_left) {
            uint64_t take = c->filled - at < c->body_left ? c->filled - at : c->body_left;
            at += take;
            c->body_left -= take;
            if (c->body_left) break;
        } else if (c->next && c->in_chunks) {
            while (at < c->filled && c->in_chunks) {
                c->window = (c->window << 8 | (unsigned char)c->input[at++]) & 0xffffffffffffffULL;
                if (c->window == 0x0d0a300d0a0d0aULL) c->in_chunks = 0;
            }
            if (c->in_chunks) break;
        }
        if (c->next) {
            c->answer = c->next;
            c->next = NULL;
            c->sent = 0;
            if (flush(fd, c) < 0) return -1;
            continue;
        }
        char *end = memmem(c->input + at, c->filled - at, "\r\n\r\n", 4);
        if (!end) break;
        end[2] = 0; /* the blank line, which nobody reads again */
        c->next = choose(c->input + at);
        if (!c->next) return -1;
        framing(c, c->input + at);
        at = end + 4 - c->input;
    }
    memmove(c->input, c->input + at, c->filled - at);
    c->filled -= at;
    return c->filled == HEAD_MAX && !c->answer ? -1 : 0;
}

static int serve(int fd, struct connection *c, int ended) {
    for (;;) {
        int flushed = flush(fd, c);
        if (flushed <= 0) return flushed;
        if (advance(fd, c) < 0) return -1;
        if (c->answer) return 0;
        ssize_t n = recv(fd, c->input + c->filled, HEAD_MAX - c->filled, 0);
        if (n == 0) return -1;
        if (n < 0) return errno == EAGAIN ? 0 : -1;
        int short_read = (size_t)n < HEAD_MAX - c->filled;
        c->filled += n;
        if (advance(fd, c) < 0) return -1;
        if (short_read && !ended) return 0; /* edge-triggered: a short read has emptied the socket */
    }
}

static void accept_all(int listener, int poll) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) return;
        if (fd >= DESCRIPTORS_MAX) { close(fd); continue; }
        struct connection *c = calloc(1, sizeof *c);
        if (!c || !(c->input = malloc(HEAD_MAX))) fail("malloc");
        connections[fd] = c;
        struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.fd = fd};
        if (epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
    }
}

int main(int count, char **arguments) {
    if (count != 2) { fprintf(stderr, "usage: worker SOCKET\n"); return 64; }
    signal(SIGPIPE, SIG_IGN);
    small = plain(13), large = plain(65536), huge = plain(1048576), chunked = in_chunks(4, 1024), records = in_json(65536);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(arguments[1]) >= sizeof address.sun_path) { fprintf(stderr, "the socket's path is too long\n"); return 64; }
    strcpy(address.sun_path, arguments[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) fail("listen");
    int poll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[256];
    if (poll < 0 || epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event)) fail("epoll");
    for (;;) {
        int ready = epoll_wait(poll, events, 256, -1);
        for (int i = 0; i < ready; i++) {
            int fd = events[i].data.fd;
            if (fd == listener) accept_all(listener, poll);
            else if (connections[fd] && serve(fd, connections[fd], events[i].events & EPOLLRDHUP) < 0) drop(fd);
        }
    }
}
