/*
 * production_server.h: what a module for the built-in worker is made of.
 *
 *     cc -O2 -shared -fPIC -o handler.so handler.c
 *     production_server --module ./handler.so --hot-reload=module
 *
 * A module is a shared object with the functions below. The worker loads it at its start, gives it each request, and loads
 * it again when the file has changed, without a request being lost: what is running finishes with the module that it began
 * with, and new requests get the new one. A file that cannot be loaded is reported, and the old module goes on.
 *
 * Memory
 *   - The two structures belong to the worker; the request's may not be used when ps_handle has returned.
 *   - What a request points to belongs to the worker. It may be read, not written, from the call of ps_handle until
 *     ps_release returns for the same response; so a response may point into its request.
 *   - What a response points to belongs to the module. It must stay as it is until ps_release is called for that response,
 *     which happens exactly once after each ps_handle, whatever that returned, on the same thread and before the thread's
 *     next ps_handle. The worker frees nothing, and keeps nothing afterwards. `context` is for the module's own use.
 *   - Texts have lengths and no NUL at their end. `data` of a request is never NULL; a response may have NULL for length 0.
 *
 * Threads
 *   - ps_handle and ps_release may run on several threads at once, one for each connection. A thread ends when its
 *     connection does. Each has 1 MiB of stack.
 *   - ps_start returns before the first ps_handle. ps_stop is called after the last ps_release, on any thread.
 *   - While a new version is being started, the old one is still in use; the two share nothing but the process.
 *   - The object is unloaded after ps_stop: threads that the module started must have ended by then, and nothing (atexit,
 *     signal handlers, callbacks) may point into it.
 *   - A crash, an exception that leaves ps_handle or a Rust panic ends the worker process; the server starts another and
 *     answers the request with 502.
 *
 * Files
 *   - The worker loads a private copy, so the file may be overwritten at any time; a file younger than 100 ms is left alone
 *     until then. For the same reason $ORIGIN in a run path does not lead to the file's directory.
 */
#ifndef PRODUCTION_SERVER_H
#define PRODUCTION_SERVER_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of everything in this file. It changes when an old module could not be used any more. */
#define PS_ABI 1

/* `length` bytes at `data`. */
struct ps_bytes {
    const char *data;
    size_t length;
};

/* One header field. */
struct ps_field {
    struct ps_bytes name;
    struct ps_bytes value;
};

/* A request, whole: its body was read to the end (64 MiB at most) and is not chunked any more. */
struct ps_request {
    struct ps_bytes method;         /* "GET"; names are case-sensitive */
    struct ps_bytes target;         /* as it came: "/path?query", "http://host/path", "*" */
    struct ps_bytes path;           /* the path alone, not decoded: "/path" */
    struct ps_bytes query;          /* behind the "?", not decoded; may be empty */
    const struct ps_field *fields;  /* in their order, names in the case in which they came */
    size_t field_count;
    struct ps_bytes body;
    uint32_t version;               /* 10 for HTTP/1.0, 11 for HTTP/1.1 */
};

/*
 * A response. ps_handle finds it with status 200 and the rest zero.
 *
 * The worker frames the message: it writes Content-Length, Connection and the like itself, and leaves out those of the
 * module. A HEAD request is answered like GET; the body is not sent, its length is. 204 and 304 have no body. A status
 * outside of 200 to 599, a name that is no token, a control character in a value, more than 96 fields or more than 15 KiB of
 * them: 500 in its place, and a line on stderr.
 */
struct ps_response {
    uint32_t status;
    const struct ps_field *fields;
    size_t field_count;
    struct ps_bytes body;
    void *context;                  /* the module's own */
};

/* Required. Returns PS_ABI. */
uint32_t ps_abi(void);

/* Required. Answers. 0: the response is to be sent. Otherwise it is not looked at, and the client gets 500. */
int ps_handle(const struct ps_request *request, struct ps_response *response);

/* Required. Frees what the response holds. */
void ps_release(struct ps_response *response);

/* Optional. Prepares the module. Not 0: it cannot be used; the number is reported, and ps_stop is not called. */
int ps_start(void);

/* Optional. Ends the module; called once if it was in use, also at the end of the worker, but not after a crash. */
void ps_stop(void);

#ifdef __cplusplus
}
#endif

#endif
