/*
 * Block back end: what a device holds in its hands. Asynchronous calls that enter a coroutine, accounting,
 * drain, write-cache mode, and (later in the chain of calls) throttling and error policy.
 *
 * A request is submitted on the loop that wants its completion; COMPLETE runs on that same loop. The
 * struct blk_request is embedded in the caller's own request state and must stay until COMPLETE; nothing is
 * allocated for a request. If no coroutine can be had the request waits its turn on its loop and is entered
 * when another one ends.
 */
#ifndef RINGSIDE_BLOCK_BACKEND_H
#define RINGSIDE_BLOCK_BACKEND_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#include "host/block/node.h"
#include "host/block/throttle.h"
#include "host/runtime/error.h"

struct blk;

enum blk_op { BLK_READ, BLK_WRITE, BLK_FLUSH, BLK_DISCARD, BLK_WRITE_ZEROES, BLK_OP_COUNT };

struct blk_request {
    /* 0 or a negative errno. May run inside the call that submits (errors, a null disk). */
    void (*complete)(struct blk_request *request, int result);
    uint64_t trace_id; /* the caller's number for the trace; 0: none */
    /* back end's own from here on */
    struct blk *blk;
    enum blk_op op;
    unsigned flags;
    uint64_t offset, bytes;
    const struct iovec *iov;
    unsigned niov;
    uint64_t start_ns;
    struct blk_request *next;
};

/* Opens the image and makes a back end on it, in one step for programs. Not inside a loop: runs one turn
 * after another of the calling thread's loop. */
struct blk *blk_open(const char *path, const struct open_options *options, struct error *err);

/* Takes over the reference to NODE. */
struct blk *blk_new(struct node *node);

/* Drains, closes the node (flushing it), frees. 0 or the first error. Same thread as blk_open, not inside a
 * loop. Every other loop must have stopped submitting, and must have ended or had a turn (iothread_call)
 * since its last completion. */
int blk_close(struct blk *blk);

struct node *blk_node(struct blk *blk);
uint64_t blk_length(const struct blk *blk); /* bytes; any thread */
bool blk_read_only(const struct blk *blk);

/* IOV must stay until completion and cover exactly BYTES. FLAGS are NODE_IO_.... Ranges outside the device
 * are -EIO; writes to a read-only back end -EPERM. */
void blk_aio_preadv(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes,
                    const struct iovec *iov, unsigned niov);
void blk_aio_pwritev(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes,
                     const struct iovec *iov, unsigned niov, unsigned flags);
void blk_aio_pwrite_zeroes(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes,
                           unsigned flags);
void blk_aio_pdiscard(struct blk *blk, struct blk_request *request, uint64_t offset, uint64_t bytes);
void blk_aio_flush(struct blk *blk, struct blk_request *request);

/* Waits until nothing submitted through BLK, on any loop, is in flight, and writes out what caches hold. New
 * requests are parked from _begin to _end and go on after it. Coroutine. Nests. */
void coroutine_fn blk_co_drain_begin(struct blk *blk);
void blk_drain_end(struct blk *blk);

/* From _begin to _end nobody waits for the throttle: for who has to wait until some of the requests have
 * ended, while others go on. Any thread. Nests. */
void blk_hurry_begin(struct blk *blk);
void blk_hurry_end(struct blk *blk);

/* Write-back (true, default) or write-through: every write is durable before it completes. Any thread; holds
 * for requests submitted later. */
void blk_set_write_cache(struct blk *blk, bool on);
bool blk_write_cache(const struct blk *blk);

/* Migration on shared storage (node_co_inactivate, node_co_activate). While inactive, requests are parked as
 * in a drain. A back end opened with open_options.inactive begins so; blk_length may be out of date until it
 * is active. Coroutines; no effect when it is in that state already. */
int coroutine_fn blk_co_inactivate(struct blk *blk);
int coroutine_fn blk_co_activate(struct blk *blk, struct error *err);
bool blk_inactive(const struct blk *blk);

/* CALLBACK(OPAQUE) runs on the loop that called blk_co_resize, after the length changed. */
void blk_on_resize(struct blk *blk, void (*callback)(void *opaque), void *opaque);
int coroutine_fn blk_co_resize(struct blk *blk, uint64_t bytes, struct error *err);

/* Latency classes: two for each power of two of nanoseconds, from the first below 1 microsecond to the last,
 * which has no upper end. */
#define BLK_LATENCY_BUCKETS 56

struct blk_op_stats {
    uint64_t operations, bytes, failed, invalid, merged;
    uint64_t total_ns, max_ns;
    uint64_t latency[BLK_LATENCY_BUCKETS]; /* operations that took [bucket_ns(i), bucket_ns(i+1)) */
};

/* The lower end of a latency class in nanoseconds, and the class of a latency. */
uint64_t blk_latency_bucket_ns(unsigned bucket);
unsigned blk_latency_bucket(uint64_t ns);

/* Sums over all loops, since blk_new. Any thread. */
void blk_stats(struct blk *blk, struct blk_op_stats stats[BLK_OP_COUNT]);
/* The device's own events, counted with the rest: N requests were merged into others; one was malformed. */
void blk_account_merged(struct blk *blk, enum blk_op op, unsigned n);
void blk_account_invalid(struct blk *blk, enum blk_op op);

/* Requests submitted and not complete, parked ones included. Any thread; a snapshot. */
uint64_t blk_in_flight(struct blk *blk);

/* Limits the rate; replaces the limits in force. CONFIG NULL: no limits. Any thread. */
void blk_set_throttle(struct blk *blk, const struct throttle_config *config);

#endif
