/*
 * A module that shows what it is given and answers wrongly on demand. Made of flags:
 *   NAME "v1"       what it calls itself         JOURNAL "path"  where it writes when it starts and stops
 *   GATE "path"     what /wait waits for         ABI 7, NO_HANDLE, UNDEFINED, START_FAILS  ways to be unusable
 */
#define _DEFAULT_SOURCE
#include "../../examples/module/production_server.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifndef ABI
#define ABI PS_ABI
#endif

static atomic_ulong handled, released;

static void note(const char *what)
{
    FILE *journal = fopen(JOURNAL, "a");
    if (journal != NULL) {
        fprintf(journal, "%s %s\n", what, NAME);
        fclose(journal);
    }
}

static struct ps_bytes text(const char *characters)
{
    struct ps_bytes bytes = { characters, strlen(characters) };
    return bytes;
}

static void field(struct ps_response *response, const char *name, struct ps_bytes value)
{
    struct ps_field *fields = realloc((void *)response->fields, sizeof *fields * (response->field_count + 1));
    fields[response->field_count].name = text(name);
    fields[response->field_count].value = value;
    response->fields = fields;
    response->field_count++;
}

/* Puts everything of the request into the body. */
static void show(const struct ps_request *request, struct ps_response *response)
{
    size_t length = 0;
    char *out = malloc(request->body.length + 65536);
#define ADD(bytes) (memcpy(out + length, (bytes).data, (bytes).length), length += (bytes).length)
#define LINE(bytes) (ADD(bytes), out[length++] = '\n')
    LINE(request->method);
    LINE(request->target);
    LINE(request->path);
    LINE(request->query);
    length += (size_t)sprintf(out + length, "%u\n", request->version);
    for (size_t index = 0; index < request->field_count; index++) {
        ADD(request->fields[index].name);
        out[length++] = '=';
        LINE(request->fields[index].value);
    }
    out[length++] = '\n';
    ADD(request->body);
    response->context = out;
    response->body.data = out;
    response->body.length = length;
}

static int is(const struct ps_request *request, const char *path)
{
    return request->path.length == strlen(path) && memcmp(request->path.data, path, strlen(path)) == 0;
}

static int answer(const struct ps_request *request, struct ps_response *response)
{
    if (is(request, "/show")) {
        show(request, response);
    } else if (is(request, "/wait")) {
        note("wait");
        for (int turn = 0; turn < 20000 && access(GATE, F_OK) != 0; turn++)
            usleep(1000);
        response->body = text(NAME);
    } else if (is(request, "/counts")) {
        char *out = malloc(64);
        sprintf(out, "%lu %lu", atomic_load(&handled), atomic_load(&released));
        response->context = out;
        response->body = text(out);
    } else if (is(request, "/large")) {
        response->body.length = 1 << 20;
        response->context = calloc(1, 1 << 20);
        response->body.data = response->context;
    } else if (is(request, "/nothing")) {
        response->status = 204;
        response->body = text("not to be sent");
    } else if (is(request, "/framing")) {
        field(response, "Content-Length", text("1"));
        field(response, "transfer-encoding", text("chunked"));
        field(response, "Connection", text("close"));
        field(response, "X-Kept", text("a\tb"));
        response->body = text("framed");
    } else if (is(request, "/refuse")) {
        response->body = text("must not be sent");
        return 7;
    } else if (is(request, "/bad-status")) {
        response->status = 199;
    } else if (is(request, "/bad-name")) {
        field(response, "X Y", text("1"));
    } else if (is(request, "/no-name")) {
        field(response, "", text("1"));
    } else if (is(request, "/bad-value")) {
        field(response, "X-A", text("1\r\nX-B: 2"));
    } else if (is(request, "/nul-value")) {
        struct ps_bytes value = { "1\0", 2 };
        field(response, "X-A", value);
    } else if (is(request, "/many")) {
        for (int count = 0; count < 97; count++)
            field(response, "X-A", text("1"));
    } else if (is(request, "/wide")) {
        struct ps_bytes value = { malloc(16384), 16384 };
        response->context = memset((void *)value.data, 'a', value.length);
        field(response, "X-A", value);
    } else if (is(request, "/null-fields")) {
        response->field_count = 1;
    } else if (is(request, "/null-body")) {
        response->body.length = 1;
    } else if (is(request, "/endless-body")) {
        response->body = text("x");
        response->body.length = (size_t)-1;
    } else {
        response->body = text(NAME);
    }
    return 0;
}

uint32_t ps_abi(void)
{
    return ABI;
}

#ifndef NO_HANDLE
int ps_handle(const struct ps_request *request, struct ps_response *response)
{
    int code = answer(request, response);
    atomic_fetch_add(&handled, 1);
    return code;
}
#endif

void ps_release(struct ps_response *response)
{
    free((void *)response->fields);
    free(response->context);
    atomic_fetch_add(&released, 1);
}

#ifdef UNDEFINED
int a_function_that_nobody_has(void);
#endif

int ps_start(void)
{
#ifdef START_FAILS
    return 3;
#endif
#ifdef UNDEFINED
    return a_function_that_nobody_has();
#endif
    note("start");
    (void)answer;
    return 0;
}

void ps_stop(void)
{
    note("stop");
}
