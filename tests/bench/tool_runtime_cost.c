/*
 * What the runtime costs, for counting under callgrind or timing:
 *
 *   tool_runtime_cost switch N            N times: make a coroutine, enter, yield, wake, end
 *   tool_runtime_cost read N DEPTH FILE   N reads of 4 KiB at DEPTH through linux-aio, O_DIRECT
 *
 * Prints nanoseconds and, for reads, system calls for each.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/aio/aio.h"
#include "host/aio/host_file.h"
#include "host/runtime/loop.h"
#include "host/runtime/world.h"

static struct loop *loop;

static void yields(void *arg)
{
    co_yield ();
}

static void cost_of_switches(unsigned long n)
{
    for (unsigned long i = 0; i < n; i++) {
        struct coroutine *co = co_create(yields, NULL);

        co_enter(co);
        co_wake(co);
    }
}

struct reader {
    struct host_file *file;
    unsigned long left;
    uint64_t size, at;
    unsigned running;
};

static void one_read(void *arg)
{
    struct reader *r = arg;
    static char buffers[64][4096] __attribute__((aligned(4096)));
    struct iovec iov = {buffers[r->running % 64], 4096};

    r->at = (r->at + 4096 * 17) % (r->size & ~(uint64_t)4095);
    if (r->file->ops->co_preadv(r->file, &iov, 1, r->at, 4096) < 0)
        abort();
    r->running--;
}

/* A coroutine for each read, as a device does it. */
static void cost_of_reads(struct reader *r, unsigned depth)
{
    while (r->left || r->running) {
        while (r->left && r->running < depth) {
            struct coroutine *co = co_create(one_read, r);

            r->left--;
            r->running++;
            co_enter(co);
        }
        loop_turn(loop, true);
    }
}

int main(int argc, char **argv)
{
    unsigned long n = argc > 2 ? strtoul(argv[2], NULL, 10) : 0;
    struct error err = {""};
    struct aio_stats stats;
    uint64_t start;

    if (!n || (strcmp(argv[1], "switch") != 0 && (argc < 5 || strcmp(argv[1], "read") != 0))) {
        fprintf(stderr, "usage: %s switch N | read N DEPTH FILE\n", argv[0]);
        return 2;
    }
    loop = loop_create("cost", NULL);
    if (strcmp(argv[1], "switch") == 0) {
        start = world_now_ns();
        cost_of_switches(n);
        printf("%.1f ns for each\n", (double)(world_now_ns() - start) / (double)n);
    } else {
        struct reader reader = {.left = n};

        if (host_file_open(argv[4], HOST_FILE_READ_ONLY | HOST_FILE_DIRECT, AIO_NATIVE, &reader.file, &err) <
            0) {
            fprintf(stderr, "%s\n", err.text);
            return 1;
        }
        reader.size = (uint64_t)reader.file->ops->size(reader.file);
        start = world_now_ns();
        cost_of_reads(&reader, (unsigned)strtoul(argv[3], NULL, 10));
        aio_stats(&stats);
        printf("%.1f ns for each, %.3f io_submit\n", (double)(world_now_ns() - start) / (double)n,
               (double)stats.submit_syscalls / (double)n);
        host_file_close(reader.file);
    }
    loop_destroy(loop);
    return 0;
}
