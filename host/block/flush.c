/*
 * Flushes that share. Every loop counts the writes that ended on it (inflight.h); the sum is the node's write
 * generation. A flush covers the generation that it saw when it began; one at a time runs on a node, and who
 * finds, when it is over, that it covered all of one's own writes is done without another.
 *
 * What was there when the node was opened is a generation of its own: a process that was killed may have
 * written it, and answered, and the guest's flush comes to its successor.
 *
 * What always holds: generations are summed under flush_guard, so a later sum is a sum of later counts. A
 * flush of a protocol node that failed is an error to all later ones until the node is closed: the kernel
 * reports lost data once and may have dropped it, so a later fdatasync that succeeds proves nothing. Durable
 * writes into the page cache flush here too (node->fua_is_flush): else the one that is told would be any of
 * those in flight, and the one whose data was lost would succeed.
 */
#include "host/block/node.h"
#include "host/runtime/trace.h"

/* Under flush_guard. */
static uint64_t write_generation(const struct node *node)
{
    return 1 + inflight_write_gen(&node->inflight);
}

int coroutine_fn node_co_flush(struct node *node)
{
    if (!node->grows)
        trace(TRACE_NODE_CO_FLUSH, co_trace_id(), 0, 0);
    if (node->read_only || node->unsafe)
        return 0;
    spin_lock(&node->flush_guard);
    uint64_t mine = write_generation(node);
    while (node->flush_active && node->flushed_gen < mine && !node->flush_error)
        co_queue_wait_spin(&node->flush_waiters, &node->flush_guard);
    if (node->flush_error || node->flushed_gen >= mine) {
        int error = node->flush_error;
        spin_unlock(&node->flush_guard);
        return error;
    }
    node->flush_active = true;
    uint64_t covered = write_generation(node);
    spin_unlock(&node->flush_guard);

    int ret = node->driver->co_flush ? node->driver->co_flush(node) : 0;

    spin_lock(&node->flush_guard);
    node->flush_active = false;
    if (ret == 0)
        node->flushed_gen = covered;
    else if (node->driver->is_protocol)
        node->flush_error = ret;
    spin_unlock(&node->flush_guard);
    co_queue_wake_all(&node->flush_waiters);
    return ret;
}
