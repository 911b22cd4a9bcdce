/*
 * Generic I/O on a node (host/block/io.c, flush.c), over a disk in memory that checks what a driver may rely
 * on.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/aio/posix_file.h"
#include "host/block/fresh_stack.h"
#include "host/block/node.h"
#include "host/runtime/iothread.h"
#include "tests/unit/fake_disk.h"
#include "tests/unit/loop_rig.h"

#define DISK_BYTES (64u * 1024u)

static struct fake_disk disk;
static struct node *node;
static uint64_t seed;

static unsigned below(uint64_t n)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)((seed >> 33) % n);
}

/* ---- running pieces of tests as coroutines ---- */

static void open_entry(void *arg)
{
    assert_int_equal(fake_disk_open(&disk, &node), 0);
}

static void close_entry(void *arg)
{
    node_co_close(node);
    node = NULL;
}

static void disk_up(struct fake_disk with)
{
    disk = with;
    if (disk.length == 0)
        disk.length = DISK_BYTES;
    assert_int_equal(loop_run_coroutine(loop, open_entry, NULL), 0);
}

static void disk_down(void)
{
    memset(disk.error, 0, sizeof(disk.error));
    assert_int_equal(loop_run_coroutine(loop, close_entry, NULL), 0);
    assert_int_equal(disk.broken_promises, 0);
    assert_int_equal(disk.active, 0);
    fake_disk_free(&disk);
}

struct job {
    enum fake_op op;
    uint64_t offset, bytes;
    char fill;
    unsigned flags;
    char *buf;
    int ret;
    bool done;
};

static void job_entry(void *arg)
{
    struct job *job = arg;
    char *own = NULL;
    if (!job->buf && (job->op == FAKE_READ || job->op == FAKE_WRITE)) {
        own = job->buf = malloc(job->bytes + 1);
        memset(own, job->fill, job->bytes);
    }
    switch (job->op) {
    case FAKE_READ:
        job->ret = node_co_pread(node, job->offset, job->buf, job->bytes);
        break;
    case FAKE_WRITE:
        job->ret = node_co_pwrite(node, job->offset, job->buf, job->bytes, job->flags);
        break;
    case FAKE_ZERO:
        job->ret = node_co_pwrite_zeroes(node, job->offset, job->bytes, job->flags);
        break;
    case FAKE_DISCARD:
        job->ret = node_co_pdiscard(node, job->offset, job->bytes);
        break;
    case FAKE_FLUSH:
        job->ret = node_co_flush(node);
        break;
    default:
        job->ret = node_co_truncate(node, job->bytes, true, NULL);
        break;
    }
    if (own) {
        free(own);
        job->buf = NULL;
    }
    job->done = true;
}

static int run(enum fake_op op, uint64_t offset, uint64_t bytes, char fill, unsigned flags)
{
    struct job job = {.op = op, .offset = offset, .bytes = bytes, .fill = fill, .flags = flags};
    assert_int_equal(loop_run_coroutine(loop, job_entry, &job), 0);
    return job.ret;
}

static void begin(struct job *job)
{
    struct coroutine *co = co_create(job_entry, job);
    assert_non_null(co);
    co_enter(co);
}

static void finish(struct job *jobs, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        while (!jobs[i].done)
            loop_turn(loop, true);
    }
}

static bool all_are(uint64_t offset, uint64_t bytes, char c)
{
    for (uint64_t i = 0; i < bytes; i++) {
        if ((char)disk.data[offset + i] != c)
            return false;
    }
    return true;
}

/* ---- alignment, limits, splitting ---- */

struct product {
    uint8_t *model;
    unsigned rounds;
};

static void random_operations(void *arg)
{
    struct product *p = arg;
    static char memory[DISK_BYTES * 2];
    static char flat[DISK_BYTES];
    for (unsigned round = 0; round < p->rounds; round++) {
        struct iovec iov[12];
        uint64_t offset = below(DISK_BYTES), most = DISK_BYTES - offset, bytes = 0;
        if (below(2))
            most = most > 9000 ? 9000 : most;
        unsigned niov = 1 + below(12);
        /* Elements of any length, with gaps between them, at aligned addresses or anywhere. */
        size_t at = below(2) ? 0 : below(600);
        for (unsigned i = 0; i < niov; i++) {
            uint64_t len = below(3) == 0 ? 512u * below(9) : below(2000);
            if (len > most - bytes)
                len = most - bytes;
            iov[i] = (struct iovec){memory + at, len};
            at += len + below(3) * 256u;
            bytes += len;
        }
        struct sg sg = sg_make(iov, niov);
        switch (below(4)) {
        case 0:
            for (uint64_t i = 0; i < bytes; i++)
                flat[i] = (char)below(256);
            sg_copy_in(sg, flat, bytes);
            assert_int_equal(node_co_pwritev(node, offset, bytes, sg, 0), 0);
            memcpy(p->model + offset, flat, bytes);
            break;
        case 1:
            assert_int_equal(node_co_pwrite_zeroes(node, offset, bytes, 0), 0);
            memset(p->model + offset, 0, bytes);
            break;
        default:
            assert_int_equal(node_co_preadv(node, offset, bytes, sg, 0), 0);
            sg_copy_out(sg, flat, bytes);
            assert_memory_equal(flat, p->model + offset, bytes);
        }
    }
}

static void every_alignment_and_limit_gives_the_same_bytes(void **state)
{
    static const uint32_t request_alignment[] = {1, 512, 4096};
    static const uint32_t memory_alignment[] = {1, 4, 512};
    static const uint32_t max_iov[] = {0, 1, 3};
    static const uint64_t max_transfer[] = {0, 4096, 20000};
    seed = 7;
    for (unsigned i = 0; i < 81; i++) {
        struct fake_disk with = {.limits = {.request_alignment = request_alignment[i % 3],
                                            .memory_alignment = memory_alignment[i / 3 % 3],
                                            .max_iov = max_iov[i / 9 % 3],
                                            .max_transfer = max_transfer[i / 27],
                                            .pwrite_zeroes_alignment = i % 2 ? 8192 : 0,
                                            .max_pwrite_zeroes = i % 5 ? 0 : 16384},
                                 .no_zeroes = i % 7 == 0};
        disk_up(with);
        struct product p = {calloc(1, DISK_BYTES), 40};
        assert_int_equal(loop_run_coroutine(loop, random_operations, &p), 0);
        assert_memory_equal(disk.data, p.model, DISK_BYTES);
        free(p.model);
        disk_down();
    }
}

static void aligned_requests_reach_the_driver_as_they_are(void **state)
{
    disk_up((struct fake_disk){.limits = {.request_alignment = 512, .memory_alignment = 1}});
    assert_int_equal(run(FAKE_WRITE, 4096, 8192, 'a', 0), 0);
    assert_int_equal(run(FAKE_READ, 512, 1024, 0, 0), 0);
    assert_int_equal(disk.records, 2);
    assert_int_equal(disk.record[0].offset, 4096);
    assert_int_equal(disk.record[0].bytes, 8192);
    assert_int_equal(disk.record[1].bytes, 1024);
    disk_down();
}

static void requests_are_split_by_max_transfer(void **state)
{
    disk_up((struct fake_disk){.limits = {.request_alignment = 512, .max_transfer = 5000}});
    assert_int_equal(run(FAKE_WRITE, 0, 16384, 'a', 0), 0);
    assert_int_equal(disk.records, 4); /* 4608 (5000 in whole blocks) three times and the rest */
    assert_int_equal(disk.record[0].bytes, 4608);
    assert_true(all_are(0, 16384, 'a'));
    disk_down();
}

/* ---- read-modify-write ---- */

static void a_failed_pre_read_fails_the_write_and_writes_nothing(void **state)
{
    disk_up((struct fake_disk){.limits = {.request_alignment = 4096}});
    memset(disk.data, 'o', DISK_BYTES);
    disk.error[FAKE_READ] = -EIO;
    assert_int_equal(run(FAKE_WRITE, 100, 50, 'n', 0), -EIO);   /* one block */
    assert_int_equal(run(FAKE_WRITE, 100, 4096, 'n', 0), -EIO); /* two, read at once */
    assert_int_equal(run(FAKE_WRITE, 0, 5000, 'n', 0), -EIO);   /* only the tail needs it */
    assert_int_equal(run(FAKE_WRITE, 100, 12188, 'n', 0), -EIO);
    assert_int_equal(run(FAKE_ZERO, 100, 50, 0, 0), -EIO);
    assert_int_equal(disk.calls[FAKE_WRITE], 0);
    assert_true(all_are(0, DISK_BYTES, 'o'));
    /* The second of two pre-reads. */
    memset(disk.calls, 0, sizeof(disk.calls));
    disk.error_skip[FAKE_READ] = 1;
    assert_int_equal(run(FAKE_WRITE, 100, 12288, 'n', 0), -EIO);
    assert_int_equal(disk.calls[FAKE_READ], 2);
    assert_int_equal(disk.calls[FAKE_WRITE], 0);
    assert_true(all_are(0, DISK_BYTES, 'o'));
    disk_down();
}

static void writers_to_one_block_do_not_lose_each_others_bytes(void **state)
{
    struct job jobs[16];
    disk_up((struct fake_disk){.limits = {.request_alignment = 4096}, .delay_ns = 1000});
    for (unsigned i = 0; i < 16; i++) {
        jobs[i] = (struct job){.op = FAKE_WRITE, .offset = 256 * i, .bytes = 256, .fill = (char)('a' + i)};
        begin(&jobs[i]);
    }
    finish(jobs, 16);
    for (unsigned i = 0; i < 16; i++) {
        assert_int_equal(jobs[i].ret, 0);
        assert_true(all_are(256 * i, 256, (char)('a' + i)));
    }
    assert_int_equal(disk.overlaps, 0);
    disk_down();
}

static void a_read_modify_write_waits_for_an_aligned_write_in_flight(void **state)
{
    struct job jobs[2] = {{.op = FAKE_WRITE, .offset = 0, .bytes = 4096, .fill = 'a'},
                          {.op = FAKE_WRITE, .offset = 10, .bytes = 10, .fill = 'b'}};
    disk_up((struct fake_disk){.limits = {.request_alignment = 4096}, .hold = true});
    begin(&jobs[0]);
    begin(&jobs[1]);
    assert_int_equal(disk.calls[FAKE_READ], 0);
    fake_disk_release(&disk);
    finish(jobs, 2);
    assert_true(all_are(0, 10, 'a') && all_are(10, 10, 'b') && all_are(20, 4076, 'a'));
    assert_int_equal(disk.overlaps, 0);
    disk_down();
}

static void an_aligned_write_waits_for_a_read_modify_write_only_where_they_overlap(void **state)
{
    struct job jobs[3] = {{.op = FAKE_WRITE, .offset = 10, .bytes = 10, .fill = 'b'},
                          {.op = FAKE_WRITE, .offset = 0, .bytes = 8192, .fill = 'a'},
                          {.op = FAKE_WRITE, .offset = 8192, .bytes = 4096, .fill = 'c'}};
    disk_up((struct fake_disk){.limits = {.request_alignment = 4096}, .hold = true});
    for (unsigned i = 0; i < 3; i++)
        begin(&jobs[i]);
    assert_int_equal(disk.calls[FAKE_READ], 1);
    assert_int_equal(disk.calls[FAKE_WRITE], 1); /* the third, elsewhere */
    fake_disk_release(&disk);
    finish(jobs, 3);
    assert_true(all_are(0, 8192, 'a') && all_are(8192, 4096, 'c'));
    assert_int_equal(disk.overlaps, 0);
    disk_down();
}

static void two_serialising_requests_that_cross_do_not_wait_for_each_other_for_ever(void **state)
{
    struct job jobs[24];
    disk_up((struct fake_disk){.limits = {.request_alignment = 512}, .delay_ns = 1000});
    seed = 3;
    for (unsigned round = 0; round < 20; round++) {
        for (unsigned i = 0; i < 24; i++) {
            jobs[i] = (struct job){
                .op = below(3) ? FAKE_WRITE : FAKE_READ, .offset = below(6000), .bytes = 1 + below(4000)};
            if (below(3) == 0)
                jobs[i].offset &= ~511ull, jobs[i].bytes = 512ull + 512ull * below(8);
            begin(&jobs[i]);
        }
        finish(jobs, 24);
    }
    disk_down();
}

static void the_serialising_flag_keeps_overlapping_requests_apart(void **state)
{
    struct job jobs[3] = {
        {.op = FAKE_READ, .offset = 0, .bytes = 4096},
        {.op = FAKE_WRITE, .offset = 0, .bytes = 512, .fill = 'x', .flags = NODE_IO_SERIALISING},
        {.op = FAKE_READ, .offset = 0, .bytes = 512}};
    disk_up((struct fake_disk){.limits = {.request_alignment = 512}, .hold = true});
    for (unsigned i = 0; i < 3; i++)
        begin(&jobs[i]);
    assert_int_equal(disk.active, 1);
    fake_disk_release(&disk);
    finish(jobs, 3);
    assert_int_equal(disk.overlaps, 0);
    disk_down();
}

/* ---- flushes ---- */

static void a_flush_with_nothing_to_flush_costs_nothing(void **state)
{
    disk_up((struct fake_disk){0});
    assert_int_equal(run(FAKE_WRITE, 0, 512, 'a', 0), 0);
    assert_int_equal(run(FAKE_FLUSH, 0, 0, 0, 0), 0);
    assert_int_equal(run(FAKE_FLUSH, 0, 0, 0, 0), 0);
    assert_int_equal(disk.calls[FAKE_FLUSH], 1);
    disk_down();
}

static void the_first_flush_is_for_what_a_killed_process_wrote(void **state)
{
    disk_up((struct fake_disk){0});
    disk.error[FAKE_FLUSH] = -EIO;
    assert_int_equal(run(FAKE_FLUSH, 0, 0, 0, 0), -EIO);
    disk_down();
    disk_up((struct fake_disk){0});
    assert_int_equal(run(FAKE_FLUSH, 0, 0, 0, 0), 0);
    assert_int_equal(run(FAKE_FLUSH, 0, 0, 0, 0), 0);
    assert_int_equal(disk.calls[FAKE_FLUSH], 1);
    disk_down();
}

static void flushes_that_come_together_share(void **state)
{
    struct job jobs[10];
    disk_up((struct fake_disk){0});
    assert_int_equal(run(FAKE_WRITE, 0, 512, 'a', 0), 0);
    disk.hold = true;
    for (unsigned i = 0; i < 10; i++) {
        jobs[i] = (struct job){.op = FAKE_FLUSH};
        begin(&jobs[i]);
    }
    fake_disk_release(&disk);
    finish(jobs, 10);
    assert_int_equal(disk.calls[FAKE_FLUSH], 1);
    disk_down();
}

static void a_flush_does_not_share_one_that_began_before_its_write_ended(void **state)
{
    struct job first = {.op = FAKE_FLUSH},
               second[3] = {{.op = FAKE_FLUSH}, {.op = FAKE_FLUSH}, {.op = FAKE_FLUSH}};
    struct job late = {.op = FAKE_WRITE, .offset = 512, .bytes = 512, .fill = 'b'};
    disk_up((struct fake_disk){0});
    assert_int_equal(run(FAKE_WRITE, 0, 512, 'a', 0), 0);
    disk.hold = true;
    begin(&first);
    disk.hold = false;
    begin(&late);
    assert_true(late.done);
    for (unsigned i = 0; i < 3; i++)
        begin(&second[i]);
    assert_int_equal(disk.calls[FAKE_FLUSH], 1);
    fake_disk_release(&disk);
    finish(&first, 1);
    finish(second, 3);
    assert_int_equal(disk.calls[FAKE_FLUSH], 2);
    disk_down();
}

static void a_failed_flush_of_a_file_stays_an_error(void **state)
{
    struct job jobs[3] = {{.op = FAKE_FLUSH}, {.op = FAKE_FLUSH}, {.op = FAKE_FLUSH}};
    disk_up((struct fake_disk){.hold = false});
    assert_int_equal(run(FAKE_WRITE, 0, 512, 'a', 0), 0);
    disk.error[FAKE_FLUSH] = -EIO;
    disk.hold = true;
    for (unsigned i = 0; i < 3; i++)
        begin(&jobs[i]);
    fake_disk_release(&disk);
    finish(jobs, 3);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(jobs[i].ret, -EIO);
    disk.error[FAKE_FLUSH] = 0;
    assert_int_equal(run(FAKE_FLUSH, 0, 0, 0, 0), -EIO);
    assert_int_equal(run(FAKE_WRITE, 0, 512, 'b', 0), 0);
    assert_int_equal(run(FAKE_FLUSH, 0, 0, 0, 0), -EIO);
    assert_int_equal(run(FAKE_WRITE, 0, 512, 'b', NODE_IO_FUA), -EIO);
    disk_down();
}

static void a_failed_flush_of_a_format_can_be_tried_again(void **state)
{
    disk_up((struct fake_disk){.as_format = true});
    assert_int_equal(run(FAKE_WRITE, 0, 512, 'a', 0), 0);
    disk.error[FAKE_FLUSH] = -ENOSPC;
    assert_int_equal(run(FAKE_FLUSH, 0, 0, 0, 0), -ENOSPC);
    disk.error[FAKE_FLUSH] = 0;
    assert_int_equal(run(FAKE_FLUSH, 0, 0, 0, 0), 0);
    disk_down();
}

static void fua_is_the_drivers_or_a_flush_after_the_write(void **state)
{
    disk_up((struct fake_disk){.fua = true});
    assert_int_equal(run(FAKE_WRITE, 0, 512, 'a', NODE_IO_FUA), 0);
    assert_int_equal(disk.record[0].flags, NODE_IO_FUA);
    assert_int_equal(disk.calls[FAKE_FLUSH], 0);
    disk_down();
    disk_up((struct fake_disk){.fua = false});
    assert_int_equal(run(FAKE_WRITE, 0, 512, 'a', NODE_IO_FUA), 0);
    assert_int_equal(disk.record[0].flags, 0);
    assert_int_equal(disk.calls[FAKE_FLUSH], 1);
    assert_int_equal(run(FAKE_ZERO, 0, 512, 0, NODE_IO_FUA), 0);
    assert_int_equal(disk.calls[FAKE_FLUSH], 2);
    disk_down();
}

/* The page cache lost something. The kernel says so once, to the first who wants anything to be durable. */
static int64_t page_cache_submit(struct aio_request *request)
{
    static bool said;
    bool asks = request->op == AIO_OP_FDATASYNC || request->fua;
    if (asks && !said) {
        said = true;
        return -EIO;
    }
    return request->op == AIO_OP_FDATASYNC ? 0 : (int64_t)request->iov[0].iov_len;
}

static void lose_in_the_page_cache(void *arg)
{
    static char block[4096];
    struct open_options options = {.cache = CACHE_WRITEBACK, .aio = AIO_THREADS, .no_lock = true};
    struct error err = {""};
    struct node *file;
    assert_int_equal(node_co_open_protocol(arg, &options, &file, &err), 0);
    ((struct posix_file *)file->host)->co_submit = page_cache_submit;
    assert_int_equal(node_co_pwrite(file, 0, block, sizeof block, 0), 0);
    assert_int_equal(node_co_pwrite(file, 4096, block, sizeof block, NODE_IO_FUA), -EIO);
    assert_int_equal(node_co_flush(file), -EIO);
    assert_int_equal(node_co_pwrite(file, 8192, block, sizeof block, NODE_IO_FUA), -EIO);
    node_co_close(file);
}

static void what_a_durable_write_hears_of_lost_data_every_later_flush_hears(void **state)
{
    const char *tmp = getenv("TMPDIR");
    char path[256];
    snprintf(path, sizeof path, "%s/ringside-flush.XXXXXX", tmp ? tmp : "/tmp");
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(loop_run_coroutine(loop, lose_in_the_page_cache, path), 0);
    unlink(path);
}

/* ---- zeroes and discards ---- */

static void zeroes_are_asked_for_in_pieces_by_the_drivers_alignment(void **state)
{
    disk_up((struct fake_disk){
        .limits = {.request_alignment = 512, .pwrite_zeroes_alignment = 4096, .max_pwrite_zeroes = 8192}});
    memset(disk.data, 'o', DISK_BYTES);
    assert_int_equal(run(FAKE_ZERO, 1024, 20000, 0, NODE_IO_MAY_UNMAP), 0);
    assert_true(all_are(0, 1024, 'o') && all_are(1024, 20000, 0) && all_are(21024, 1000, 'o'));
    /* 1024..4096, 4096..12288, 12288..20480, 20480..20992 by the driver, the last 32 bytes as data. */
    assert_int_equal(disk.calls[FAKE_ZERO], 4);
    assert_int_equal(disk.record[1].bytes, 8192);
    assert_int_equal(disk.record[1].flags, NODE_IO_MAY_UNMAP);
    assert_int_equal(disk.calls[FAKE_WRITE], 1);
    disk_down();
}

static void zeroes_that_the_driver_cannot_do_are_written(void **state)
{
    disk_up(
        (struct fake_disk){.limits = {.request_alignment = 512, .max_transfer = 4096}, .no_zeroes = true});
    memset(disk.data, 'o', DISK_BYTES);
    assert_int_equal(run(FAKE_ZERO, 512, 8192, 0, NODE_IO_NO_FALLBACK), -ENOTSUP);
    assert_int_equal(disk.calls[FAKE_WRITE], 0);
    assert_int_equal(run(FAKE_ZERO, 512, 8192, 0, NODE_IO_MAY_UNMAP), 0);
    assert_int_equal(disk.calls[FAKE_WRITE], 2);
    assert_int_equal(disk.record[0].flags, 0);
    assert_true(all_are(0, 512, 'o') && all_are(512, 8192, 0) && all_are(8704, 512, 'o'));
    disk_down();
}

static void discards_leave_out_what_is_not_aligned(void **state)
{
    disk_up((struct fake_disk){
        .limits = {.request_alignment = 512, .pdiscard_alignment = 4096, .max_pdiscard = 10000}});
    assert_int_equal(run(FAKE_DISCARD, 100, 20000, 0, 0), 0);
    assert_int_equal(disk.calls[FAKE_DISCARD], 2);
    assert_int_equal(disk.record[0].offset, 4096);
    assert_int_equal(disk.record[0].bytes, 8192);
    assert_int_equal(disk.record[1].offset, 12288);
    assert_int_equal(disk.record[1].bytes, 4096);
    assert_int_equal(run(FAKE_DISCARD, 100, 3000, 0, 0), 0);
    assert_int_equal(disk.calls[FAKE_DISCARD], 2);
    disk_down();
    disk_up((struct fake_disk){.no_discard = true});
    assert_int_equal(run(FAKE_DISCARD, 0, 4096, 0, 0), 0);
    disk_down();
}

static void writes_of_zeroes_are_detected(void **state)
{
    for (unsigned unmap = 0; unmap < 2; unmap++) {
        disk_up((struct fake_disk){.detect_zeroes = true, .detect_zeroes_unmap = unmap});
        assert_int_equal(run(FAKE_WRITE, 0, 4096, 0, 0), 0);
        assert_int_equal(disk.calls[FAKE_WRITE], 0);
        assert_int_equal(disk.calls[FAKE_ZERO], 1);
        assert_int_equal(disk.record[0].flags, unmap ? NODE_IO_MAY_UNMAP : 0);
        assert_int_equal(run(FAKE_WRITE, 0, 4096, 1, 0), 0);
        assert_int_equal(disk.calls[FAKE_WRITE], 1);
        disk_down();
    }
}

/* ---- ranges ---- */

static void ranges_outside_are_refused_however_large(void **state)
{
    static char byte[1];
    disk_up((struct fake_disk){0});
    static const struct {
        uint64_t offset, bytes;
    } bad[] = {{DISK_BYTES, 1},         {DISK_BYTES - 1, 2},      {0, DISK_BYTES + 1},
               {UINT64_MAX, 1},         {UINT64_MAX, UINT64_MAX}, {1, UINT64_MAX},
               {INT64_MAX, 1},          {INT64_MAX, INT64_MAX},   {0, INT64_MAX},
               {UINT64_MAX - 511, 512}, {DISK_BYTES, UINT64_MAX}};
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        for (enum fake_op op = FAKE_READ; op <= FAKE_DISCARD; op++) {
            struct job job = {.op = op, .offset = bad[i].offset, .bytes = bad[i].bytes, .buf = byte};
            assert_int_equal(loop_run_coroutine(loop, job_entry, &job), 0);
            assert_int_equal(job.ret, -EIO);
        }
    }
    assert_int_equal(disk.records, 0);
    assert_int_equal(run(FAKE_READ, DISK_BYTES, 0, 0, 0), 0);
    assert_int_equal(run(FAKE_WRITE, DISK_BYTES - 1, 1, 'z', 0), 0);
    disk_down();
}

static void a_growing_node_reads_zeroes_beyond_its_end_and_grows_by_writes(void **state)
{
    char buf[1024];
    disk_up((struct fake_disk){.grows = true, .length = 1000, .limits = {.request_alignment = 512}});
    struct job job = {.op = FAKE_READ, .offset = 900, .bytes = 1024, .buf = buf};
    memset(disk.data, 'o', 1000);
    assert_int_equal(loop_run_coroutine(loop, job_entry, &job), 0);
    assert_int_equal(job.ret, 0);
    assert_true(buf[99] == 'o' && buf[100] == 0 && buf[1023] == 0);
    assert_int_equal(run(FAKE_WRITE, 5000, 10, 'n', 0), 0);
    assert_int_equal(node_length(node), 5120);
    assert_true(all_are(5000, 10, 'n') && all_are(1000, 4000, 0));
    assert_int_equal(run(FAKE_READ, UINT64_MAX - 4, 2, 0, 0), -EIO);
    disk_down();
}

static void a_read_only_node_is_not_changed(void **state)
{
    disk_up((struct fake_disk){.read_only = true});
    assert_int_equal(run(FAKE_WRITE, 0, 512, 'a', 0), -EPERM);
    assert_int_equal(run(FAKE_ZERO, 0, 512, 0, 0), -EPERM);
    assert_int_equal(run(FAKE_DISCARD, 0, 512, 0, 0), -EPERM);
    assert_int_equal(run(FAKE_TRUNCATE, 0, 512, 0, 0), -EPERM);
    assert_int_equal(run(FAKE_FLUSH, 0, 0, 0, 0), 0);
    assert_int_equal(disk.records, 0);
    disk_down();
}

static void errors_of_the_driver_come_back_unchanged(void **state)
{
    disk_up((struct fake_disk){.limits = {.request_alignment = 512, .max_transfer = 1024}});
    for (enum fake_op op = FAKE_READ; op <= FAKE_DISCARD; op++) {
        disk.error[op] = -ENOSPC;
        disk.error_skip[op] = disk.calls[op];
        assert_int_equal(run(op, 0, 4096, 'a', 0), -ENOSPC);
        disk.error[op] = 0;
    }
    disk_down();
}

/* ---- several loops ---- */

#define THREADS 3

struct worker {
    struct iothread *thread;
    unsigned number, flushes;
};

/* Each worker owns every third piece of 256 bytes in blocks that all share. */
static void worker_entry(void *arg)
{
    struct worker *worker = arg;
    uint64_t random = worker->number + 1;
    char buf[256], back[256];
    for (unsigned i = 0; i < 400; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        uint64_t offset = ((random >> 33) % 20 * THREADS + worker->number) * 256;
        memset(buf, (int)(random >> 50), sizeof(buf));
        assert_int_equal(node_co_pwrite(node, offset, buf, sizeof(buf), 0), 0);
        assert_int_equal(node_co_pread(node, offset, back, sizeof(back)), 0);
        assert_memory_equal(buf, back, sizeof(buf));
        /* Aligned requests on a part of the disk of one's own, which are only counted. */
        assert_int_equal(node_co_pwrite(node, 32768 + worker->number * 512, buf, 512 - 256, 0), 0);
        if (i % 16 == 0) {
            assert_int_equal(node_co_flush(node), 0);
            worker->flushes++;
        }
    }
}

static void *start_worker(void *arg)
{
    struct worker *worker = arg;
    iothread_call_coroutine(worker->thread, worker_entry, worker);
    return NULL;
}

static void loops_share_a_node_without_losing_bytes(void **state)
{
    struct worker workers[THREADS];
    pthread_t threads[THREADS];
    disk_up((struct fake_disk){.limits = {.request_alignment = 512}});
    for (unsigned i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){iothread_start("worker", 0, NULL), i, 0};
        assert_non_null(workers[i].thread);
    }
    for (unsigned i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, start_worker, &workers[i]), 0);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    for (unsigned i = 0; i < THREADS; i++)
        iothread_stop(workers[i].thread);
    assert_int_equal(disk.overlaps, 0);
    disk_down();
}

/* ---- calls on a stack of their own ---- */

static void coroutine_fn short_sleep(void *asleep)
{
    ++*(unsigned *)asleep;
    co_sleep_ns(20000000);
    --*(unsigned *)asleep;
}

static int coroutine_fn answer(void *arg)
{
    return 42;
}

static void coroutine_fn calls_without_a_stack(void *asleep)
{
    struct co_pool_stats stats;
    struct coroutine *co;
    co_pool_drain_thread();
    co_pool_stats(&stats);
    co_pool_set_limit(stats.allocated + 2);
    while ((co = co_create(short_sleep, asleep)))
        co_enter(co);
    assert_int_equal(fresh_stack_call(answer, NULL), 42);
    co_pool_set_limit(stats.limit);
}

static void a_call_waits_until_there_is_a_stack_for_it(void **state)
{
    unsigned asleep = 0;
    assert_int_equal(loop_run_coroutine(loop, calls_without_a_stack, &asleep), 0);
    while (asleep) /* the stack of one was enough; the others need not have ended yet */
        loop_turn(loop, true);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(every_alignment_and_limit_gives_the_same_bytes),
        CASE(aligned_requests_reach_the_driver_as_they_are),
        CASE(requests_are_split_by_max_transfer),
        CASE(a_failed_pre_read_fails_the_write_and_writes_nothing),
        CASE(writers_to_one_block_do_not_lose_each_others_bytes),
        CASE(a_read_modify_write_waits_for_an_aligned_write_in_flight),
        CASE(an_aligned_write_waits_for_a_read_modify_write_only_where_they_overlap),
        CASE(two_serialising_requests_that_cross_do_not_wait_for_each_other_for_ever),
        CASE(the_serialising_flag_keeps_overlapping_requests_apart),
        CASE(a_flush_with_nothing_to_flush_costs_nothing),
        CASE(the_first_flush_is_for_what_a_killed_process_wrote),
        CASE(flushes_that_come_together_share),
        CASE(a_flush_does_not_share_one_that_began_before_its_write_ended),
        CASE(a_failed_flush_of_a_file_stays_an_error),
        CASE(a_failed_flush_of_a_format_can_be_tried_again),
        CASE(fua_is_the_drivers_or_a_flush_after_the_write),
        CASE(what_a_durable_write_hears_of_lost_data_every_later_flush_hears),
        CASE(zeroes_are_asked_for_in_pieces_by_the_drivers_alignment),
        CASE(zeroes_that_the_driver_cannot_do_are_written),
        CASE(discards_leave_out_what_is_not_aligned),
        CASE(writes_of_zeroes_are_detected),
        CASE(ranges_outside_are_refused_however_large),
        CASE(a_growing_node_reads_zeroes_beyond_its_end_and_grows_by_writes),
        CASE(a_read_only_node_is_not_changed),
        CASE(errors_of_the_driver_come_back_unchanged),
        CASE(loops_share_a_node_without_losing_bytes),
        CASE(a_call_waits_until_there_is_a_stack_for_it),
    };
    return cmocka_run_group_tests_name("generic I/O on a node", tests, NULL, NULL);
}
