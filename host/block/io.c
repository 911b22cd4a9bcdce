/*
 * Generic I/O on a node: what stands between a caller and a driver. Checks of range and permission, tracking
 * and serialising, padding to the driver's alignment, bounce buffers, splitting by its limits, zeroes and
 * discards. (Flushes that share are in flush.c, in-flight accounting in inflight.h.)
 *
 * Tracking, on nodes that have blocks. Two requests conflict only if they overlap and at least one of them is
 * serialising. Only a read-modify-write and NODE_IO_SERIALISING make one, so as a rule there is none: then a
 * request is counted in node->inflight, and that is all, without a lock. A serialising request closes that
 * gate, waits until all that was counted is over, and from then on until it ends every request goes on the
 * list node->tracked. The list is in order of arrival and one waits only for older ones: there is no cycle.
 *
 * What always holds: a driver sees ranges that are aligned to its request_alignment, memory aligned to its
 * memory_alignment, and no more than its limits. Offsets and sums are checked against NODE_BYTES_MAX before
 * anything is added to them.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/fresh_stack.h"
#include "host/block/node.h"
#include "host/runtime/trace.h"

#define BOUNCE_BYTES_MAX (1024u * 1024u)
#define NODE_BYTES_MAX   ((uint64_t)INT64_MAX & ~(uint64_t)(2 * 1024 * 1024 - 1))

/* ---- tracking ---- */

struct tracked_request {
    uint64_t start, end;
    bool serialising, counted;
    struct inflight_slot *slot;
    struct tracked_request *next; /* younger */
    struct co_queue waiters;
};

/* Only blocks make read-modify-write necessary; a node without them leaves tracking to the one below it. */
static inline bool node_has_blocks(const struct node *node)
{
    return node->limits.request_alignment > 1;
}

/* The oldest request before SELF in the list that conflicts with it. Under the guard. */
static struct tracked_request *tracked_conflict(struct node *node, const struct tracked_request *self)
{
    for (struct tracked_request *other = node->tracked; other != self; other = other->next) {
        if ((self->serialising || other->serialising) && other->start < self->end && self->start < other->end)
            return other;
    }
    return NULL;
}

static void coroutine_fn tracked_begin_slow(struct node *node, struct tracked_request *self)
{
    self->counted = false;
    self->next = NULL;
    self->waiters = (struct co_queue){0};
    if (self->serialising)
        inflight_close_begin(&node->inflight);
    spin_lock(&node->inflight.guard);
    if (!node->tracked)
        node->tracked_end = &node->tracked;
    *node->tracked_end = self;
    node->tracked_end = &self->next;
    for (struct tracked_request *other; (other = tracked_conflict(node, self));)
        co_queue_wait_spin(&other->waiters, &node->inflight.guard);
    spin_unlock(&node->inflight.guard);
    if (self->serialising)
        inflight_wait(&node->inflight);
}

static inline void coroutine_fn tracked_begin(struct node *node, struct tracked_request *self, uint64_t start,
                                              uint64_t end, bool serialising)
{
    self->start = start;
    self->end = end;
    self->serialising = serialising;
    self->slot = inflight_slot(&node->inflight);
    self->counted = false;
    if (!node_has_blocks(node))
        return;
    if (!serialising && inflight_enter(&node->inflight, self->slot)) {
        self->counted = true;
        return;
    }
    tracked_begin_slow(node, self);
}

static void tracked_end_slow(struct node *node, struct tracked_request *self)
{
    spin_lock(&node->inflight.guard);
    struct tracked_request **link = &node->tracked;
    while (*link != self)
        link = &(*link)->next;
    *link = self->next;
    if (!self->next)
        node->tracked_end = link;
    spin_unlock(&node->inflight.guard);
    co_queue_wake_all(&self->waiters); /* out of the list: nobody joins them any more */
    if (self->serialising)
        inflight_open(&node->inflight);
}

static inline void tracked_end(struct node *node, struct tracked_request *self, bool wrote)
{
    if (wrote)
        inflight_wrote(self->slot);
    if (!node_has_blocks(node))
        return;
    if (self->counted)
        inflight_leave(&node->inflight, self->slot);
    else
        tracked_end_slow(node, self);
}

/* ---- checks ---- */

void node_set_length(struct node *node, uint64_t bytes)
{
    __atomic_store_n(&node->length, bytes, __ATOMIC_RELEASE);
}

void node_grow_length(struct node *node, uint64_t bytes)
{
    uint64_t length = node_length(node);
    while (length < bytes && !__atomic_compare_exchange_n(&node->length, &length, bytes, true,
                                                          __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
    }
}

static int check_range(const struct node *node, uint64_t offset, uint64_t bytes)
{
    if (bytes > NODE_BYTES_MAX || offset > NODE_BYTES_MAX - bytes)
        return -EIO;
    if (!node->grows && offset + bytes > node_length(node))
        return -EIO;
    return 0;
}

static inline uint64_t align_down(uint64_t n, uint64_t align)
{
    return n & ~(align - 1);
}

static inline uint64_t align_up(uint64_t n, uint64_t align)
{
    return (n + align - 1) & ~(align - 1);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Bytes up to the next multiple of ALIGN (any number), from inside a block; 0 on a boundary. */
static inline uint64_t to_boundary(uint64_t n, uint64_t align)
{
    return n % align ? align - n % align : 0;
}

void *node_buffer(const struct node *node, size_t bytes)
{
    size_t align = 4096;
    for (; node; node = node->file) {
        if (node->limits.memory_alignment > align)
            align = node->limits.memory_alignment;
    }
    /* A whole number of blocks, so that whatever the length is rounded up to belongs to the buffer. */
    size_t size = align_up(bytes ? bytes : 1, align);
    void *buf;
    return size >= bytes && posix_memalign(&buf, align, size) == 0 ? buf : NULL;
}

/* ---- transfers that the driver can take, in pieces that it can take ---- */

typedef int coroutine_fn transfer_fn(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                     unsigned flags);

static inline bool within_limits(const struct node_limits *limits, uint64_t bytes, struct sg sg)
{
    return (limits->max_transfer == 0 || bytes <= limits->max_transfer) &&
           (limits->max_iov == 0 || sg.niov <= limits->max_iov);
}

/* The largest piece from the start that the driver takes; a multiple of the request alignment, unless it is
 * all. 0 if not even one block can be had without a bounce buffer. */
static uint64_t piece_bytes(const struct node_limits *limits, uint64_t bytes, struct sg sg)
{
    uint64_t piece = bytes;
    if (limits->max_transfer)
        piece = min_u64(piece, limits->max_transfer);
    if (limits->max_iov && sg.niov > limits->max_iov)
        piece = sg_bytes_in(sg, piece, limits->max_iov);
    return piece == bytes ? piece : align_down(piece, limits->request_alignment);
}

/* Through a buffer of the right alignment; for memory that isn't, and for lists finer than a block. */
static int coroutine_fn bounce(struct node *node, transfer_fn *transfer, bool is_write, uint64_t offset,
                               uint64_t bytes, struct sg sg, unsigned flags)
{
    const struct node_limits *limits = &node->limits;
    uint64_t most = min_u64(bytes, BOUNCE_BYTES_MAX);
    if (most < limits->request_alignment)
        most = limits->request_alignment;
    if (limits->max_transfer)
        most = min_u64(most, limits->max_transfer);
    struct iovec iov = {node_buffer(node, most), most};
    int ret = iov.iov_base ? 0 : -ENOMEM;
    while (bytes > 0 && ret == 0) {
        uint64_t n = min_u64(bytes, most);
        if (is_write)
            sg_copy_out(sg, iov.iov_base, n);
        ret = transfer(node, offset, n, sg_make(&iov, 1), flags);
        if (!is_write && ret == 0)
            sg_copy_in(sg, iov.iov_base, n);
        offset += n;
        bytes -= n;
        sg = sg_advance(sg, n);
    }
    free(iov.iov_base);
    return ret;
}

/* OFFSET and BYTES are aligned to the driver's request alignment; memory and limits may be anything. */
static int coroutine_fn transfer_aligned(struct node *node, transfer_fn *transfer, bool is_write,
                                         uint64_t offset, uint64_t bytes, struct sg sg, unsigned flags)
{
    const struct node_limits *limits = &node->limits;
    bool memory_fits = limits->memory_alignment <= 1 || sg_is_aligned(sg, bytes, limits->memory_alignment);
    if (memory_fits && within_limits(limits, bytes, sg))
        return transfer(node, offset, bytes, sg, flags);
    if (!memory_fits)
        return bounce(node, transfer, is_write, offset, bytes, sg, flags);
    while (bytes > 0) {
        uint64_t n = piece_bytes(limits, bytes, sg);
        int ret;
        if (n > 0) {
            ret = transfer(node, offset, n, sg, flags);
        } else {
            n = min_u64(bytes, limits->request_alignment);
            ret = bounce(node, transfer, is_write, offset, n, sg, flags);
        }
        if (ret < 0)
            return ret;
        offset += n;
        bytes -= n;
        sg = sg_advance(sg, n);
    }
    return 0;
}

/* ---- reading ---- */

/* A range that is not aligned to blocks: reads the blocks around it. */
static int coroutine_fn read_unaligned(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                       unsigned flags)
{
    uint64_t align = node->limits.request_alignment;
    uint64_t most = align_up(BOUNCE_BYTES_MAX, align);
    uint64_t all = align_up(offset + bytes, align) - align_down(offset, align);
    struct iovec iov = {node_buffer(node, min_u64(all, most)), 0};
    int ret = iov.iov_base ? 0 : -ENOMEM;
    while (bytes > 0 && ret == 0) {
        uint64_t start = align_down(offset, align);
        uint64_t skip = offset - start;
        iov.iov_len = min_u64(most, align_up(offset + bytes, align) - start);
        uint64_t n = min_u64(bytes, iov.iov_len - skip);
        ret = transfer_aligned(node, node->driver->co_preadv, false, start, iov.iov_len, sg_make(&iov, 1),
                               flags);
        if (ret == 0)
            sg_copy_in(sg, (char *)iov.iov_base + skip, n);
        offset += n;
        bytes -= n;
        sg = sg_advance(sg, n);
    }
    free(iov.iov_base);
    return ret;
}

/* One level of a chain calls the next one on the same stack. At every so many levels a fresh one is taken, so
 * that a chain may be as long as it likes. */
#define LEVELS_PER_STACK 24u

static int coroutine_fn read_here(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                  unsigned flags)
{
    struct tracked_request request;
    uint64_t mask = node->limits.request_alignment - 1;
    int ret;
    tracked_begin(node, &request, offset & ~mask, align_up(offset + bytes, mask + 1),
                  flags & NODE_IO_SERIALISING);
    if (((offset | bytes) & mask) == 0)
        ret = transfer_aligned(node, node->driver->co_preadv, false, offset, bytes, sg, flags);
    else
        ret = read_unaligned(node, offset, bytes, sg, flags);
    tracked_end(node, &request, false);
    return ret;
}

struct deep_read {
    struct node *node;
    uint64_t offset, bytes;
    struct sg sg;
    unsigned flags;
};

static int coroutine_fn deep_read(void *arg)
{
    struct deep_read *read = arg;
    return read_here(read->node, read->offset, read->bytes, read->sg, read->flags);
}

int coroutine_fn node_co_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                unsigned flags)
{
    if (!node->grows)
        trace(TRACE_NODE_CO_PREADV, co_trace_id(), offset, bytes);
    int ret = check_range(node, offset, bytes);
    if (ret < 0 || bytes == 0)
        return ret;
    if (node->depth % LEVELS_PER_STACK == LEVELS_PER_STACK - 1 && !node->grows)
        return fresh_stack_call(deep_read, &(struct deep_read){node, offset, bytes, sg, flags});
    return read_here(node, offset, bytes, sg, flags);
}

/* ---- writing ---- */

/* Is a durable write of this node one with a flush after it? */
static bool flushes_after(const struct node *node, unsigned flags)
{
    return (flags & NODE_IO_FUA) && (!node->driver->supports_fua || node->fua_is_flush);
}

/* Fills the first and last block of BUF, which covers [START, START+LEN), where the data
 * [OFFSET, OFFSET+BYTES) leaves part of them as it was. */
static int coroutine_fn read_edges(struct node *node, uint64_t start, char *buf, uint64_t len,
                                   uint64_t offset, uint64_t bytes)
{
    uint64_t align = node->limits.request_alignment;
    bool head = offset != start, tail = offset + bytes != start + len;
    struct iovec iov;
    int ret = 0;
    if (head || (tail && len == align)) {
        iov = (struct iovec){buf, head && tail && len == 2 * align ? len : align};
        ret = transfer_aligned(node, node->driver->co_preadv, false, start, iov.iov_len, sg_make(&iov, 1), 0);
        tail = tail && iov.iov_len < len;
    }
    if (ret == 0 && tail) {
        iov = (struct iovec){buf + len - align, align};
        ret = transfer_aligned(node, node->driver->co_preadv, false, start + len - align, align,
                               sg_make(&iov, 1), 0);
    }
    return ret;
}

/* Read-modify-write. The caller has made itself serialising over the blocks that are touched. */
static int coroutine_fn write_unaligned(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                        unsigned flags)
{
    uint64_t align = node->limits.request_alignment;
    uint64_t most = align_up(BOUNCE_BYTES_MAX, align);
    uint64_t all = align_up(offset + bytes, align) - align_down(offset, align);
    struct iovec iov = {node_buffer(node, min_u64(all, most)), 0};
    int ret = iov.iov_base ? 0 : -ENOMEM;
    while (bytes > 0 && ret == 0) {
        uint64_t start = align_down(offset, align);
        iov.iov_len = min_u64(most, align_up(offset + bytes, align) - start);
        uint64_t n = min_u64(bytes, iov.iov_len - (offset - start));
        ret = read_edges(node, start, iov.iov_base, iov.iov_len, offset, n);
        if (ret == 0) {
            sg_copy_out(sg, (char *)iov.iov_base + (offset - start), n);
            ret = transfer_aligned(node, node->driver->co_pwritev, true, start, iov.iov_len, sg_make(&iov, 1),
                                   flags);
        }
        offset += n;
        bytes -= n;
        sg = sg_advance(sg, n);
    }
    free(iov.iov_base);
    return ret;
}

/* Whatever a write needs before it and after it; the body is one of the two above, or zeroes. */
static int coroutine_fn write_here(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                   unsigned flags)
{
    struct tracked_request request;
    uint64_t mask = node->limits.request_alignment - 1;
    bool unaligned = ((offset | bytes) & mask) != 0;
    bool flush_after = flushes_after(node, flags);
    unsigned driver_flags = flush_after || node->unsafe ? flags & ~NODE_IO_FUA : flags;
    int ret;
    tracked_begin(node, &request, offset & ~mask, align_up(offset + bytes, mask + 1),
                  unaligned || (flags & NODE_IO_SERIALISING));
    if (unaligned)
        ret = write_unaligned(node, offset, bytes, sg, driver_flags);
    else
        ret = transfer_aligned(node, node->driver->co_pwritev, true, offset, bytes, sg, driver_flags);
    /* Also one that failed may have written something. */
    tracked_end(node, &request, true);
    if (ret == 0 && flush_after)
        ret = node_co_flush(node);
    return ret;
}

static int check_write(const struct node *node, uint64_t offset, uint64_t bytes)
{
    if (node->read_only)
        return -EPERM;
    return check_range(node, offset, bytes);
}

int coroutine_fn node_co_pwritev(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                 unsigned flags)
{
    if (!node->grows)
        trace(TRACE_NODE_CO_PWRITEV, co_trace_id(), offset, bytes);
    int ret = check_write(node, offset, bytes);
    if (ret < 0 || bytes == 0)
        return ret;
    if (node->detect_zeroes && !(flags & NODE_IO_COMPRESSED) && sg_is_zero(sg, bytes))
        return node_co_pwrite_zeroes(node, offset, bytes,
                                     flags | (node->detect_zeroes_unmap ? NODE_IO_MAY_UNMAP : 0));
    return write_here(node, offset, bytes, sg, flags);
}

/* ---- zeroes ---- */

static const char zero_page[64 * 1024] __attribute__((aligned(4096)));

/* Writes zeroes as data, any alignment, without taking memory: one page stands for all. */
static int coroutine_fn write_zero_data(struct node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    struct iovec iov[16];
    for (unsigned i = 0; i < 16; i++)
        iov[i] = (struct iovec){(void *)(uintptr_t)zero_page, sizeof(zero_page)};
    flags &= ~(NODE_IO_MAY_UNMAP | NODE_IO_NO_FALLBACK);
    while (bytes > 0) {
        uint64_t n = min_u64(bytes, sizeof(zero_page) * 16);
        int ret = write_here(node, offset, n, sg_make(iov, 16), flags);
        if (ret < 0)
            return ret;
        offset += n;
        bytes -= n;
    }
    return 0;
}

/* One piece that does not cross the driver's alignment for zeroes, unless it is aligned to it. */
static int coroutine_fn zero_piece(struct node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    uint64_t align = node->limits.request_alignment;
    int ret = -ENOTSUP;
    if (node->driver->co_pwrite_zeroes && (offset | bytes) % align == 0) {
        struct tracked_request request;
        bool flush_after = flushes_after(node, flags);
        unsigned driver_flags = flush_after || node->unsafe ? flags & ~NODE_IO_FUA : flags;
        tracked_begin(node, &request, offset, offset + bytes, flags & NODE_IO_SERIALISING);
        ret = node->driver->co_pwrite_zeroes(node, offset, bytes, driver_flags);
        tracked_end(node, &request, ret != -ENOTSUP);
        if (ret == 0 && flush_after)
            ret = node_co_flush(node);
    }
    if (ret == -ENOTSUP && !(flags & NODE_IO_NO_FALLBACK))
        ret = write_zero_data(node, offset, bytes, flags);
    return ret;
}

int coroutine_fn node_co_pwrite_zeroes(struct node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    const struct node_limits *limits = &node->limits;
    if (!node->grows)
        trace(TRACE_NODE_CO_PWRITE_ZEROES, co_trace_id(), offset, bytes);
    int ret = check_write(node, offset, bytes);
    if (node->ignore_discard)
        flags &= ~NODE_IO_MAY_UNMAP;
    uint64_t align = limits->pwrite_zeroes_alignment;
    if (align < limits->request_alignment)
        align = limits->request_alignment;
    uint64_t most = limits->max_pwrite_zeroes ? limits->max_pwrite_zeroes : NODE_BYTES_MAX;
    most = most > align ? most - most % align : align;
    while (ret == 0 && bytes > 0) {
        uint64_t n = to_boundary(offset, align);
        if (n == 0)
            n = bytes >= align ? bytes - bytes % align : bytes;
        n = min_u64(n, min_u64(bytes, most));
        /* What is not even aligned to blocks stands alone, so that the aligned rest needs no data written. */
        uint64_t head = to_boundary(offset, limits->request_alignment);
        if (head)
            n = min_u64(n, head);
        else if (n > limits->request_alignment)
            n = align_down(n, limits->request_alignment);
        ret = zero_piece(node, offset, n, flags);
        offset += n;
        bytes -= n;
    }
    return ret;
}

/* ---- discard, truncate, status ---- */

int coroutine_fn node_co_pdiscard(struct node *node, uint64_t offset, uint64_t bytes)
{
    const struct node_limits *limits = &node->limits;
    if (!node->grows)
        trace(TRACE_NODE_CO_PDISCARD, co_trace_id(), offset, bytes);
    int ret = check_write(node, offset, bytes);
    if (ret < 0 || bytes == 0 || node->ignore_discard || !node->driver->co_pdiscard)
        return ret;
    uint64_t align = limits->pdiscard_alignment;
    if (align < limits->request_alignment)
        align = limits->request_alignment;
    uint64_t skip = min_u64(to_boundary(offset, align), bytes);
    offset += skip;
    bytes -= skip;
    /* The last piece may end where the node ends; a driver knows that nothing comes after it. */
    if (node->grows || offset + bytes != node_length(node) || bytes % limits->request_alignment)
        bytes -= bytes % align;
    uint64_t most = limits->max_pdiscard ? limits->max_pdiscard : NODE_BYTES_MAX;
    most = most > align ? most - most % align : align;
    while (bytes > 0 && ret == 0) {
        struct tracked_request request;
        uint64_t n = min_u64(bytes, most);
        tracked_begin(node, &request, offset, offset + n, false);
        ret = node->driver->co_pdiscard(node, offset, n);
        tracked_end(node, &request, true);
        offset += n;
        bytes -= n;
    }
    return ret == -ENOTSUP ? 0 : ret;
}

int coroutine_fn node_co_truncate(struct node *node, uint64_t bytes, bool exact, struct error *err)
{
    if (node->read_only)
        return error_set(err, -EPERM, "%s: is open read-only: its size cannot be changed", node->filename);
    if (bytes > NODE_BYTES_MAX)
        return error_set(err, -EFBIG, "%llu bytes are more than an image can have",
                         (unsigned long long)bytes);
    if (!node->driver->co_truncate)
        return error_set(err, -ENOTSUP, "images of format %s cannot be resized", node->driver->format_name);
    struct tracked_request request;
    uint64_t length = node_length(node);
    uint64_t from = align_down(min_u64(bytes, length), node->limits.request_alignment);
    tracked_begin(node, &request, from, INT64_MAX, true);
    int ret = node->driver->co_truncate(node, bytes, exact, err);
    tracked_end(node, &request, true);
    return ret;
}

int coroutine_fn node_co_block_status(struct node *node, uint64_t offset, uint64_t bytes, uint64_t *pnum,
                                      unsigned *flags, uint64_t *host_offset)
{
    uint64_t length = node_length(node), at = 0;
    *pnum = 0;
    *flags = NODE_STATUS_EOF;
    if (host_offset)
        *host_offset = 0;
    if (offset >= length)
        return 0;
    bytes = min_u64(bytes, length - offset);
    *pnum = bytes;
    *flags = NODE_STATUS_DATA | NODE_STATUS_ALLOCATED;
    if (bytes == 0)
        return 0;
    if (node->driver->co_block_status) {
        int ret = node->driver->co_block_status(node, offset, bytes, pnum, flags, &at);
        if (ret < 0)
            return ret;
        if (*pnum == 0 || *pnum > bytes)
            return -EIO;
    }
    *flags &= ~NODE_STATUS_EOF;
    if (offset + *pnum == length)
        *flags |= NODE_STATUS_EOF;
    if (host_offset)
        *host_offset = at;
    return 0;
}

/* ---- plain buffers ---- */

int coroutine_fn node_co_pread(struct node *node, uint64_t offset, void *buf, uint64_t bytes)
{
    struct iovec iov = {buf, bytes};
    return node_co_preadv(node, offset, bytes, sg_make(&iov, 1), 0);
}

int coroutine_fn node_co_pwrite(struct node *node, uint64_t offset, const void *buf, uint64_t bytes,
                                unsigned flags)
{
    struct iovec iov = {(void *)(uintptr_t)buf, bytes};
    return node_co_pwritev(node, offset, bytes, sg_make(&iov, 1), flags);
}
