/* A crowd of clients of one kind: one thread, epoll. They take their places, wait, and go or read on when they are told to.
 *
 *   crowd PORT DOOR COUNT
 *
 * readers   GET /400k, and read no more than the first bytes          streams  GET /stream with 10 KB of cookies, likewise
 * listeners GET /quiet with 10 KB of cookies, and read all that comes posts    POST of 17 KB to /wait
 * poured    WebSockets to /pour that read nothing behind the 101      deaf     WebSockets to /deaf that send as they can, up to 4 MiB
 * uploads   POST of 2 MiB to /upload                                  idle     GET /server, and keep the connection
 * heads     the first 15 KB of a head of 30 KB
 *
 * Receive buffers have 4 KiB but for those who read, and segments 1,400 bytes as on a real network: over the 64 KiB segments of
 * loopback the kernel would take megabytes for each reader, and the server would hold nothing. Send buffers are small, too, so that
 * the crowd itself does not use up the kernel's memory for TCP.
 *
 * Commands on stdin, a line each, each answered by a line of JSON: `state`: how many are connected, have got their first bytes, have
 * sent all, have been ended or refused; `read`: all read to the end of their answers; `leave`: all close, and the program ends.
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
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define POST_BYTES 17000
#define UPLOAD_BYTES 2097152
#define TUNNEL_BYTES 4194304
#define RECEIVE_BUFFER 4096
#define SEND_BUFFER 32768
#define SEGMENT 1400
#define FIRST_BYTES 512

struct peer {
    int fd;
    size_t sent, got;
    long length; /* of its answer with the head; 0: not known, -1: it has no end */
    int status, ended;
};
static struct peer *peers;
static int count, poll_fd, may_read, reads_all;
static char *request;
static size_t request_length, sends; /* what each sends: the request, then bytes up to `sends` */

static void fail(const char *what) { perror(what); exit(1); }

static char *filled(size_t size) {
    char *bytes = malloc(size + 1);
    if (!bytes) fail("malloc");
    memset(bytes, 'c', size);
    bytes[size] = 0;
    return bytes;
}

/* Makes what the peers of that door send; 0: there is no such door. */
static int make_request(const char *door) {
    char *text = NULL;
    const char *upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
                          "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    int length = 0;
    size_t more = 0;
    if (!strcmp(door, "readers")) length = asprintf(&text, "GET /400k HTTP/1.1\r\nHost: a\r\n\r\n");
    if (!strcmp(door, "idle")) length = asprintf(&text, "GET /server HTTP/1.1\r\nHost: a\r\n\r\n");
    if (!strcmp(door, "streams") || !strcmp(door, "listeners"))
        length = asprintf(&text, "GET /%s HTTP/1.1\r\nHost: a\r\nCookie: a=%s\r\nCookie: b=%s\r\n\r\n",
                          door[0] == 's' ? "stream" : "quiet", filled(5000), filled(5000));
    if (!strcmp(door, "posts"))
        length = asprintf(&text, "POST /wait HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", POST_BYTES), more = POST_BYTES;
    if (!strcmp(door, "uploads"))
        length = asprintf(&text, "POST /upload HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n", UPLOAD_BYTES), more = UPLOAD_BYTES;
    if (!strcmp(door, "poured")) length = asprintf(&text, "GET /pour HTTP/1.1\r\nHost: a\r\n%s", upgrade);
    if (!strcmp(door, "deaf")) length = asprintf(&text, "GET /deaf HTTP/1.1\r\nHost: a\r\n%s", upgrade), more = TUNNEL_BYTES;
    if (!strcmp(door, "heads"))
        length = asprintf(&text, "GET /small HTTP/1.1\r\nHost: a\r\nCookie: a=%s\r\nCookie: b=%s", filled(7500), filled(7400));
    reads_all = !strcmp(door, "listeners") || !strcmp(door, "idle");
    request = text, request_length = length, sends = length + more;
    return length > 0;
}

static void end(struct peer *peer) {
    if (peer->fd >= 0) close(peer->fd);
    peer->fd = -1;
    peer->ended = 1;
}

static void send_on(struct peer *peer) {
    static char body[65536];
    if (!body[0]) memset(body, 'b', sizeof body);
    /* What belongs to a tunnel comes behind its 101. */
    while (peer->fd >= 0 && peer->sent < sends && (peer->sent < request_length || strncmp(request, "GET", 3) || peer->status)) {
        int in_request = peer->sent < request_length;
        size_t left = (in_request ? request_length : sends) - peer->sent;
        if (!in_request && left > sizeof body) left = sizeof body;
        ssize_t n = send(peer->fd, in_request ? request + peer->sent : body, left, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) end(peer);
            return;
        }
        peer->sent += n;
    }
}

static void first_bytes(struct peer *peer, const char *bytes) {
    if (sscanf(bytes, "HTTP/1.1 %d", &peer->status) != 1) peer->status = -1;
    const char *length = strcasestr(bytes, "\r\ncontent-length:"), *head = strstr(bytes, "\r\n\r\n");
    peer->length = length && head ? atol(length + 17) + (head + 4 - bytes) : -1;
}

static void receive(struct peer *peer) {
    static char bytes[65536];
    while (peer->fd >= 0 && (!peer->got || may_read || reads_all)) {
        ssize_t n = recv(peer->fd, bytes, peer->got ? sizeof bytes - 1 : FIRST_BYTES, 0);
        if (n < 0 && errno == EAGAIN) return;
        if (n <= 0) return end(peer);
        bytes[n] = 0;
        if (!peer->got) first_bytes(peer, bytes);
        peer->got += n;
    }
}

static void dial(struct peer *peer, int port, int index) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, segment = SEGMENT, buffer = RECEIVE_BUFFER, output = SEND_BUFFER;
    peer->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (peer->fd < 0) fail("socket");
    setsockopt(peer->fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
    if (!reads_all) setsockopt(peer->fd, SOL_SOCKET, SO_RCVBUF, &buffer, sizeof buffer);
    setsockopt(peer->fd, SOL_SOCKET, SO_SNDBUF, &output, sizeof output);
    setsockopt(peer->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (connect(peer->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS) return end(peer);
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = index};
    if (epoll_ctl(poll_fd, EPOLL_CTL_ADD, peer->fd, &event)) fail("epoll_ctl");
}

/* Handles what has happened; waits up to so many milliseconds for something. */
static void turn(int wait) {
    struct epoll_event events[256];
    int ready = epoll_wait(poll_fd, events, 256, wait);
    for (int i = 0; i < ready; i++) {
        if (events[i].data.u32 == UINT32_MAX) continue; /* stdin: the caller looks at it itself */
        struct peer *peer = &peers[events[i].data.u32];
        if (peer->fd >= 0 && events[i].events & EPOLLIN) receive(peer);
        if (peer->fd >= 0 && events[i].events & (EPOLLOUT | EPOLLIN)) send_on(peer);
        if (peer->fd >= 0 && events[i].events & (EPOLLERR | EPOLLHUP)) receive(peer);
        if (peer->fd >= 0 && events[i].events & EPOLLERR) end(peer);
    }
}

static void say_state(void) {
    int open = 0, begun = 0, good = 0, sent = 0, whole = 0, ended = 0;
    long long got = 0, gave = 0;
    for (int i = 0; i < count; i++) {
        struct peer *peer = &peers[i];
        open += peer->fd >= 0;
        begun += peer->got > 0;
        good += peer->status == 200 || peer->status == 101;
        sent += peer->sent == sends;
        whole += peer->length > 0 && peer->got == (size_t)peer->length;
        ended += peer->ended;
        got += peer->got;
        gave += peer->sent;
    }
    printf("{\"open\": %d, \"begun\": %d, \"good\": %d, \"sent\": %d, \"whole\": %d, \"ended\": %d, "
           "\"bytes_got\": %lld, \"bytes_sent\": %lld}\n", open, begun, good, sent, whole, ended, got, gave);
    fflush(stdout);
}

/* Does what a line says; whether it was the last. */
static int obey(const char *line) {
    if (!strncmp(line, "leave", 5)) {
        for (int i = 0; i < count; i++) if (peers[i].fd >= 0) end(&peers[i]);
        say_state();
        return 1;
    }
    if (!strncmp(line, "read", 4)) {
        may_read = 1;
        for (int i = 0; i < count; i++) receive(&peers[i]);
    }
    say_state();
    return 0;
}

int main(int arguments, char **argument) {
    if (arguments != 4 || (count = atoi(argument[3])) < 1 || !make_request(argument[2])) {
        fprintf(stderr, "usage: crowd PORT readers|streams|listeners|posts|poured|deaf|uploads|idle|heads COUNT\n");
        return 64;
    }
    signal(SIGPIPE, SIG_IGN);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    peers = calloc(count, sizeof *peers);
    poll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event about = {.events = EPOLLIN, .data.u32 = UINT32_MAX};
    if (!peers || poll_fd < 0 || epoll_ctl(poll_fd, EPOLL_CTL_ADD, 0, &about)) fail("epoll");
    for (int i = 0; i < count; i++) {
        dial(&peers[i], atoi(argument[1]), i);
        if (i % 32 == 31) turn(0);
    }
    for (char line[64];;) {
        struct pollfd input = {.fd = 0, .events = POLLIN};
        turn(1000);
        if (poll(&input, 1, 0) > 0 && (!fgets(line, sizeof line, stdin) || obey(line))) return 0;
    }
}
