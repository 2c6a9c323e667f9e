/*
 * A module for the built-in worker, in C.
 *
 *     cc -O2 -Wall -Wextra -shared -fPIC -o handler.so examples/module/handler.c
 *     production_server --module ./handler.so --hot-reload=module
 *
 * Change the greeting, compile again, and the next request gets it: no restart, no request lost. A compiler writes its
 * output in pieces; `-o handler.so.new && mv handler.so.new handler.so` puts it there in one go.
 *
 * GET /       a greeting, with the number of this module's answers
 * POST /echo  the request's body
 */
#include "production_server.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef GREETING
#define GREETING "Hello from C"
#endif

#define TEXT(literal) { literal, sizeof literal - 1 }

static const struct ps_field TEXT_PLAIN[] = { { TEXT("Content-Type"), TEXT("text/plain; charset=utf-8") } };
static const struct ps_field BINARY[] = { { TEXT("Content-Type"), TEXT("application/octet-stream") } };

/* Several threads answer at once. */
static atomic_ulong answers;

static int is(struct ps_bytes bytes, const char *text)
{
    return bytes.length == strlen(text) && memcmp(bytes.data, text, bytes.length) == 0;
}

uint32_t ps_abi(void)
{
    return PS_ABI;
}

int ps_handle(const struct ps_request *request, struct ps_response *response)
{
    if (is(request->path, "/echo")) {
        /* The request stays until ps_release, so its body needs no copy. */
        response->fields = BINARY;
        response->field_count = 1;
        response->body = request->body;
        return 0;
    }
    response->fields = TEXT_PLAIN;
    response->field_count = 1;
    if (!is(request->path, "/")) {
        static const struct ps_bytes missing = TEXT("there is no such page\n");
        response->status = 404;
        response->body = missing;
        return 0;
    }
    char *text = malloc(128);
    if (text == NULL)
        return -1;
    unsigned long count = atomic_fetch_add(&answers, 1) + 1;
    response->context = text;
    response->body.data = text;
    response->body.length = (size_t)snprintf(text, 128, "%s (%lu)\n", GREETING, count);
    return 0;
}

void ps_release(struct ps_response *response)
{
    free(response->context);
}
