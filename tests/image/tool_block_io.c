/*
 * Does things to an image through the block layer, one after another, for scripts:
 *
 *   tool_block_io [KEY=VALUE]... FILE COMMAND...
 *
 * KEYs are fields of struct open_options: format= (file: only the file, which grows) read_only=1
 * force_share=1 no_lock=1 cache=none|writeback|unsafe aio=native|io_uring|threads backing=deny|same-dir|DIR
 * detect_zeroes=on|unmap ignore_discard=1 inject=SPEC log_writes=FILE null_bytes=N. A COMMAND is one argument
 * of several words:
 *
 *   write OFF LEN BYTE [fua]   read OFF LEN BYTE (compares)   zero OFF LEN [unmap]   discard OFF LEN
 *   text OFF STRING            flush    resize LEN    length    sleep MS    status    clear (injected errors)
 *   inactivate    activate     wait FILE (until it is there)
 *
 * Prints a line for each command: the command, and "ok", or what was read otherwise, or the error's name.
 * Exit status 0 if all were ok, 1 if not, 2 if the image could not be opened.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/block/inject.h"
#include "host/block/node.h"
#include "host/block/parse.h"
#include "host/runtime/loop.h"

static struct open_options options = {.cache = CACHE_WRITEBACK};
static int arg_count, status;
static char **args;

static void bad(const char *text)
{
    fprintf(stderr, "tool_block_io: '%s'?\n", text);
    exit(2);
}

static int set_option(const char *key, const char *value)
{
    struct {
        const char *name;
        bool *flag;
    } flags[] = {{"read_only", &options.read_only},
                 {"force_share", &options.force_share},
                 {"no_lock", &options.no_lock},
                 {"inactive", &options.inactive},
                 {"ignore_discard", &options.ignore_discard}};
    for (size_t i = 0; i < sizeof(flags) / sizeof(flags[0]); i++) {
        if (strcmp(key, flags[i].name) == 0) {
            *flags[i].flag = value[0] == '1';
            return 0;
        }
    }
    if (strcmp(key, "format") == 0) {
        options.format = value;
    } else if (strcmp(key, "inject") == 0) {
        options.inject = value;
    } else if (strcmp(key, "log_writes") == 0) {
        options.log_writes = value;
    } else if (strcmp(key, "null_bytes") == 0) {
        return parse_size(value, &options.null_bytes);
    } else if (strcmp(key, "cache") == 0) {
        options.cache = value[0] == 'n' ? CACHE_NONE : value[0] == 'u' ? CACHE_UNSAFE : CACHE_WRITEBACK;
    } else if (strcmp(key, "aio") == 0) {
        options.aio = value[0] == 'n' ? AIO_NATIVE : value[0] == 'i' ? AIO_IO_URING : AIO_THREADS;
    } else if (strcmp(key, "detect_zeroes") == 0) {
        options.detect_zeroes = value[0] == 'u' ? DETECT_ZEROES_UNMAP : DETECT_ZEROES_ON;
    } else if (strcmp(key, "backing") == 0) {
        options.backing = strcmp(value, "deny") == 0       ? BACKING_DENY
                          : strcmp(value, "same-dir") == 0 ? BACKING_SAME_DIR
                                                           : BACKING_DIR;
        options.backing_dir = value;
    } else {
        return -EINVAL;
    }
    return 0;
}

static uint64_t number(const char *text)
{
    uint64_t n;
    if (!text || parse_size(text, &n) < 0)
        bad(text ? text : "number");
    return n;
}

static int coroutine_fn compare(struct node *node, uint64_t offset, uint64_t bytes, int byte)
{
    char *buf = node_buffer(node, bytes);
    int ret = node_co_pread(node, offset, buf, bytes);
    for (uint64_t i = 0; ret == 0 && i < bytes; i++) {
        if (buf[i] != (char)byte) {
            printf("0x%02x at %" PRIu64 ": ", (unsigned char)buf[i], offset + i);
            ret = -EILSEQ;
        }
    }
    free(buf);
    return ret;
}

static int coroutine_fn print_status(struct node *node)
{
    uint64_t length = node_length(node);
    for (uint64_t at = 0; at < length;) {
        uint64_t n, host;
        unsigned flags;
        int ret = node_co_block_status(node, at, length - at, &n, &flags, &host);
        if (ret < 0)
            return ret;
        printf("%" PRIu64 "+%" PRIu64 ":%s%s%s ", at, n, flags & NODE_STATUS_DATA ? "data" : "",
               flags & NODE_STATUS_ZERO ? "zero" : "", flags & NODE_STATUS_ALLOCATED ? "" : "-");
        at += n;
    }
    return 0;
}

static int coroutine_fn do_command(struct node *node, char **words)
{
    struct error err = {""};
    const char *name = words[0];
    if (strcmp(name, "flush") == 0)
        return node_co_flush(node);
    if (strcmp(name, "status") == 0)
        return print_status(node);
    if (strcmp(name, "inactivate") == 0)
        return node_co_inactivate(node);
    if (strcmp(name, "activate") == 0) {
        int ret = node_co_activate(node, &err);
        if (ret < 0)
            printf("%s: ", err.text);
        return ret;
    }
    if (strcmp(name, "wait") == 0) {
        for (unsigned i = 0; i < 12000 && access(words[1], F_OK) < 0; i++)
            co_sleep_ns(10000000);
        return access(words[1], F_OK) < 0 ? -ETIMEDOUT : 0;
    }
    if (strcmp(name, "clear") == 0) {
        inject_clear(node);
        return 0;
    }
    if (strcmp(name, "length") == 0) {
        printf("%" PRIu64 " ", node_length(node));
        return 0;
    }
    uint64_t first = number(words[1]);
    if (strcmp(name, "sleep") == 0) {
        co_sleep_ns(first * 1000000);
        return 0;
    }
    if (strcmp(name, "resize") == 0)
        return node_co_truncate(node, first, true, &err);
    if (strcmp(name, "text") == 0)
        return node_co_pwrite(node, first, words[2], strlen(words[2]), 0);
    uint64_t bytes = number(words[2]);
    if (strcmp(name, "discard") == 0)
        return node_co_pdiscard(node, first, bytes);
    if (strcmp(name, "zero") == 0)
        return node_co_pwrite_zeroes(node, first, bytes, words[3] ? NODE_IO_MAY_UNMAP : 0);
    int byte = (int)number(words[3]);
    if (strcmp(name, "read") == 0)
        return compare(node, first, bytes, byte);
    if (strcmp(name, "write") != 0)
        bad(name);
    char *buf = node_buffer(node, bytes);
    memset(buf, byte, bytes);
    int ret = node_co_pwrite(node, first, buf, bytes, words[4] ? NODE_IO_FUA : 0);
    free(buf);
    return ret;
}

static void coroutine_fn run(void *opaque)
{
    struct error err = {""};
    struct node *node;
    bool protocol = options.format && strcmp(options.format, "file") == 0;
    int ret = protocol ? node_co_open_protocol(args[0], &options, &node, &err)
                       : node_co_open(args[0], &options, &node, &err);
    if (ret < 0) {
        fprintf(stderr, "%s\n", err.text);
        status = 2;
        return;
    }
    for (int i = 1; i < arg_count; i++) {
        char *words[8] = {NULL}, *save = NULL, *copy = strdup(args[i]);
        unsigned n = 0;
        for (char *word = strtok_r(copy, " ", &save); word && n < 7; word = strtok_r(NULL, " ", &save))
            words[n++] = word;
        printf("%s: ", args[i]);
        ret = n ? do_command(node, words) : -EINVAL;
        printf("%s\n", ret == 0 ? "ok" : strerrorname_np(-ret));
        fflush(stdout);
        if (ret < 0)
            status = 1;
        free(copy);
    }
    ret = node_co_close(node);
    if (ret < 0) {
        printf("close: %s\n", strerrorname_np(-ret));
        status = 1;
    }
}

int main(int argc, char **argv)
{
    int first = 1;
    for (; first < argc; first++) {
        char *equals = strchr(argv[first], '=');
        if (!equals)
            break;
        *equals = '\0';
        if (set_option(argv[first], equals + 1) < 0)
            bad(argv[first]);
    }
    if (first >= argc)
        bad("FILE");
    args = argv + first;
    arg_count = argc - first;
    struct loop *loop = loop_create("io", NULL);
    if (!loop || loop_run_coroutine(loop, run, NULL) < 0)
        return 2;
    loop_destroy(loop);
    return status;
}
