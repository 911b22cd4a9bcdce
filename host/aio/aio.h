/*
 * Ways to do asynchronous I/O. Each is one file here and fills one `struct aio_engine`; each loop has at most
 * one state of each engine, made on first use and destroyed with the loop. Private to host/aio: the block
 * layer sees host_file.h only.
 */
#ifndef RINGSIDE_AIO_AIO_H
#define RINGSIDE_AIO_AIO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "host/runtime/coroutine.h"
#include "host/runtime/loop.h"

enum aio_op { AIO_OP_READ, AIO_OP_WRITE, AIO_OP_FDATASYNC };

/* One transfer; lies on the stack of the coroutine that waits for it. */
struct aio_request {
    enum aio_op op;
    bool fua;
    int fd;
    const struct iovec *iov;
    unsigned niov;
    uint64_t offset;
    /* Of the file: set when it turns out not to know RWF_NOWAIT. NULL: not to be tried. */
    uint32_t *no_nowait;
    /* engine's own */
    struct coroutine *co;
    int64_t result; /* bytes, or a negative errno */
    uint64_t trace_id;
    struct aio_request *next;
    uint64_t engine_words[10]; /* struct iocb and the like */
};

struct aio_engine {
    const char *name;
    /* Does the whole of it once: queues it for the batch of this turn, yields, and returns the bytes
     * transferred (may be short) or a negative errno. */
    int64_t (*co_submit)(struct aio_request *request);
};

int64_t coroutine_fn laio_co_submit(struct aio_request *request);
int64_t coroutine_fn uring_co_submit(struct aio_request *request);
int64_t coroutine_fn threads_co_submit(struct aio_request *request);

/* Runs FN(OPAQUE) on a thread of the pool; the coroutine yields meanwhile. For fallocate, ftruncate, ... */
int coroutine_fn threads_co_call(int (*fn)(void *opaque), void *opaque);

/* Can the engine be had in this process? 0 or a negative errno. */
int laio_probe(void);
/* Loops that are destroyed from now on leave what they have of the kernel's linux-aio to the end of the
 * process, which gives it all back at once: one after the other takes some 30 ms each. */
void laio_process_ends(void);
int uring_probe(void);

/* Figures, summed over all loops: for `stats` and for the tests' cost per request. */
struct aio_stats {
    uint64_t requests, submit_syscalls, getevents_syscalls, eagain;
};
void aio_stats(struct aio_stats *stats);

#endif
