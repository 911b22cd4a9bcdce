/*
 * What a killed process has left (host/qcow2/survivor.h) and an image that somebody else has used since. Data
 * that was written in place changes no table; only the file's time tells of it. Every step is a process.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "host/aio/aio.h"
#include "host/aio/posix_file.h"
#include "host/block/inject.h"
#include "host/block/node.h"
#include "host/qcow2/qcow2_state.h"
#include "host/qcow2/survivor.h"
#include "host/runtime/loop.h"

#define CLUSTER 65536u

static char dir[] = "/tmp/survivor_test.XXXXXX";
static char image[64];
static bool survives, injects;
static uint8_t seen;

static void check(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "%s failed\n", what);
    _exit(1);
}

static struct node *co_open(void)
{
    struct open_options options = {.format = "qcow2",
                                   .survive_dir = survives ? dir : NULL,
                                   .inject = injects ? "read,skip=1000000" : NULL};
    struct node *node = NULL;
    struct error err = {""};

    check(node_co_open(image, &options, &node, &err) == 0, err.text);
    return node;
}

static void co_write_at(struct node *node, uint64_t offset, int fill)
{
    uint8_t *buffer = node_buffer(node, CLUSTER);

    memset(buffer, fill, CLUSTER);
    check(node_co_pwrite(node, offset, buffer, CLUSTER, 0) == 0, "writing");
    free(buffer);
}

static void co_write(struct node *node, int fill)
{
    co_write_at(node, 0, fill);
}

static uint8_t co_read_at(struct node *node, uint64_t offset)
{
    uint8_t *buffer = node_buffer(node, CLUSTER), first;

    check(node_co_pread(node, offset, buffer, CLUSTER) == 0, "reading");
    first = buffer[0];
    for (unsigned i = 0; i < CLUSTER; i++)
        check(buffer[i] == first, "one value in all of the cluster");
    free(buffer);
    return first;
}

static uint8_t co_read(struct node *node)
{
    return co_read_at(node, 0);
}

static void creates(void *arg)
{
    struct qcow2_create_options options = {.size = 64 * CLUSTER, .cluster_bytes = CLUSTER};
    struct error err = {""};

    check(qcow2_co_create(image, &options, &err) == 0, err.text);
}

/* A flushed write, then a discard that is not flushed. */
static void discards_and_dies(void *arg)
{
    struct node *node = co_open();

    co_write(node, 'a');
    check(node_co_flush(node) == 0, "flushing");
    check(node_co_pdiscard(node, 0, CLUSTER) == 0, "discarding");
    _exit(0);
}

static void writes_in_place(void *arg)
{
    struct node *node = co_open();

    check(co_read(node) == 'a', "the discard being lost");
    co_write(node, 'b');
    check(node_co_close(node) == 0, "closing");
}

/* An allocating write of which the refcounts are in the file already, the mapping is not. */
static void allocates_and_dies(void *arg)
{
    struct node *node = co_open();
    struct qcow2 *s;

    co_write(node, 'a');
    check(node_co_flush(node) == 0, "flushing");
    check(node_co_pdiscard(node, 0, CLUSTER) == 0 && node_co_flush(node) == 0, "discarding");
    co_write(node, 'c');
    s = qcow2_state(node);
    while (s->ref.dirty_first != TABLE_CACHE_END) {
        uint32_t slot = s->ref.dirty_first;
        uint64_t key = s->ref.keys[slot], in_block = key & ((1ull << s->ref_slices_bits) - 1);

        table_cache_write_begin(&s->ref, slot);
        check(node_co_pwrite(node->file,
                             s->reftable[key >> s->ref_slices_bits] + in_block * s->ref.slice_bytes,
                             table_cache_words(&s->ref, slot), s->ref.slice_bytes, 0) == 0,
              "writing refcounts");
        table_cache_write_end(&s->ref, slot);
    }
    survivor_touch(s); /* it was this process, and just now, however long it took */
    _exit(0);
}

/* Two mappings, of which a write that fails brings one into the file; then a third is made. */
static void fails_half_way_and_dies(void *arg)
{
    injects = true;
    struct node *node = co_open();
    struct qcow2 *s = qcow2_state(node);
    struct error err = {""};
    char rule[100];

    co_write(node, 'a');
    check(node_co_flush(node) == 0, "flushing");
    co_write_at(node, CLUSTER, 'b');
    co_write_at(node, 63 * CLUSTER, 'c');
    snprintf(rule, sizeof(rule), "write,at=%llu+65536,mode=short,bytes=256",
             (unsigned long long)(s->l1[0] & QCOW2_L1_OFFSET_MASK));
    check(inject_add(node->file, rule, &err) == 0, err.text);
    check(node_co_flush(node) == -EIO, "failing");
    co_write_at(node, 32 * CLUSTER, 'd');
    _exit(0);
}

static void looks_at_four(void *arg)
{
    struct node *node = co_open();

    seen = co_read_at(node, 0) == 'a' && co_read_at(node, CLUSTER) == 'b' &&
           co_read_at(node, 63 * CLUSTER) == 'c' && co_read_at(node, 32 * CLUSTER) == 'd';
    check(node_co_close(node) == 0, "closing");
}

static void mends_leaks(void *arg)
{
    struct qcow2_check result;
    struct error err = {""};
    struct node *node = co_open();

    check(qcow2_co_check(node, QCOW2_FIX_LEAKS, &result, NULL, NULL, &err) == 0, err.text);
    check(node_co_close(node) == 0, "closing");
}

static void checks(void *arg)
{
    struct qcow2_check result;
    struct error err = {""};
    struct node *node = co_open();

    check(qcow2_co_check(node, 0, &result, NULL, NULL, &err) == 0, err.text);
    seen = result.corruptions != 0;
    check(node_co_close(node) == 0, "closing");
}

/* More new L2 tables than the log of L1 entries has room for, and no flush. */
#define MANY       17000u
#define MANY_APART 32768u /* what an L2 table of 512 bytes maps */

static void creates_many(void *arg)
{
    /* One bit each, so that the refcount table need not grow, which writes everything back. */
    struct qcow2_create_options options = {
        .size = 4ull * MANY * MANY_APART, .cluster_bytes = 512, .refcount_bits = 1};
    struct error err = {""};

    check(qcow2_co_create(image, &options, &err) == 0, err.text);
}

static void writes_many_and_dies(void *arg)
{
    struct node *node = co_open();
    uint8_t sector[512];

    memset(sector, 'm', sizeof(sector));
    for (uint64_t i = 0; i < MANY; i++)
        check(node_co_pwrite(node, i * MANY_APART, sector, sizeof(sector), 0) == 0, "writing");
    _exit(0);
}

static void looks_at_many(void *arg)
{
    struct node *node = co_open();
    uint8_t sector[512];

    seen = 1;
    for (uint64_t i = 0; i < MANY; i++) {
        check(node_co_pread(node, i * MANY_APART, sector, sizeof(sector)) == 0, "reading");
        seen &= sector[0] == 'm';
    }
    check(node_co_close(node) == 0, "closing");
}

static void looks(void *arg)
{
    struct node *node = co_open();

    seen = co_read(node);
    check(node_co_close(node) == 0, "closing");
}

/* What was left is larger than the memory that may be used. */
static void finds_no_memory(void *arg)
{
    struct open_options options = {.format = "qcow2", .survive_dir = dir};
    struct node *node = NULL;
    struct error err = {""};
    struct rlimit limit;
    unsigned long pages = 0;
    FILE *statm = fopen("/proc/self/statm", "re");

    check(statm && fscanf(statm, "%lu", &pages) == 1, "reading the size of memory");
    fclose(statm);
    limit.rlim_cur = limit.rlim_max = pages * (rlim_t)sysconf(_SC_PAGESIZE) + (512u << 20);
    check(setrlimit(RLIMIT_AS, &limit) == 0, "limiting memory");
    check(node_co_open(image, &options, &node, &err) == -ENOMEM, "being refused");
    check(strstr(err.text, "what a killed process left in ") != NULL, err.text);
}

static void creates_with_data_file(void *arg)
{
    struct qcow2_create_options options = {
        .size = 64 * CLUSTER, .cluster_bytes = CLUSTER, .data_file = "data"};
    struct error err = {""};

    check(qcow2_co_create(image, &options, &err) == 0, err.text);
}

/* What is done to the files: W a write to the image, S an fdatasync of it; w, s: the same of its data file.
 */
static char did[64];
static int data_fd = -1;
static int64_t (*really_submit)(struct aio_request *request);

static int64_t coroutine_fn notes_and_submits(struct aio_request *request)
{
    static const char letters[2][3] = {{[AIO_OP_READ] = 'R', [AIO_OP_WRITE] = 'W', [AIO_OP_FDATASYNC] = 'S'},
                                       {[AIO_OP_READ] = 'r', [AIO_OP_WRITE] = 'w', [AIO_OP_FDATASYNC] = 's'}};
    size_t n = strlen(did);

    if (request->op != AIO_OP_READ && n < sizeof(did) - 1)
        did[n] = letters[request->fd == data_fd][request->op];
    return really_submit(request);
}

static int opens_noting(const char *path, unsigned flags, enum aio_kind aio, struct host_file **file,
                        struct error *err)
{
    struct posix_file *posix;
    int ret;

    host_file_set_opener(NULL);
    ret = host_file_open(path, flags, aio, file, err);
    host_file_set_opener(opens_noting);
    if (ret < 0)
        return ret;
    posix = (struct posix_file *)*file;
    really_submit = posix->co_submit;
    posix->co_submit = notes_and_submits;
    if (strcmp(path, image) != 0)
        data_fd = posix->fd;
    return 0;
}

/* Before the first L2 entry is written, is what it names on the disk? */
static void looks_at_the_order(void *arg)
{
    struct node *node;
    const char *written, *synced, *data_synced;

    host_file_set_opener(opens_noting);
    node = co_open();
    written = strchr(did, 'W');
    synced = strchr(did, 'S');
    data_synced = strchr(did, 's');
    check(co_read(node) == 'c', "writing back");
    seen = written && synced && synced < written && (data_fd < 0 || (data_synced && data_synced < written));
    check(node_co_close(node) == 0, "closing");
}

/* It was open while somebody else wrote, who was killed. */
static void flushes_when_it_becomes_active(void *arg)
{
    struct open_options options = {.format = "qcow2", .inactive = true};
    struct node *node = NULL;
    struct error err = {""};

    host_file_set_opener(opens_noting);
    check(node_co_open(image, &options, &node, &err) == 0, err.text);
    check(node_co_activate(node, &err) == 0, err.text);
    memset(did, 0, sizeof(did));
    check(node_co_flush(node) == 0, "flushing");
    seen = strchr(did, 'S') != NULL;
    check(node_co_inactivate(node) == 0, "giving it away");
    check(node_co_activate(node, &err) == 0, err.text);
    memset(did, 0, sizeof(did));
    check(node_co_flush(node) == 0, "flushing again");
    seen += strchr(did, 'S') != NULL;
    check(node_co_close(node) == 0, "closing");
}

/* STEP in a process of its own; returns what it has seen. */
static uint8_t run(void (*step)(void *), bool with_survivor)
{
    int status, ends[2];
    uint8_t result = 0;
    pid_t pid;

    assert_int_equal(pipe(ends), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct loop *loop = loop_create("step", NULL);

        survives = with_survivor;
        check(loop && loop_run_coroutine(loop, step, NULL) == 0, "a coroutine");
        check(write(ends[1], &seen, 1) == 1, "telling");
        _exit(0);
    }
    close(ends[1]);
    if (read(ends[0], &result, 1) < 0)
        result = 0xff;
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    return result;
}

/* As if all that was done to the image until now had been done that much later. */
static void make_newer(time_t seconds)
{
    struct timespec times[2];
    struct stat st;

    assert_int_equal(stat(image, &st), 0);
    times[0] = times[1] = st.st_mtim;
    times[1].tv_sec += seconds;
    assert_int_equal(utimensat(AT_FDCWD, image, times, 0), 0);
}

static int begin(void **state)
{
    strcpy(dir, "/tmp/survivor_test.XXXXXX");
    if (!mkdtemp(dir))
        return -1;
    snprintf(image, sizeof(image), "%s/image", dir);
    run(creates, false);
    return 0;
}

static int end(void **state)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf '%s'", dir);
    return system(command);
}

static void a_discard_outlives_its_process(void **state)
{
    run(discards_and_dies, true);
    assert_int_equal(run(looks, true), 0);
}

static void it_does_not_take_what_somebody_wrote_since(void **state)
{
    run(discards_and_dies, true);
    run(writes_in_place, false);
    make_newer(60);
    assert_int_equal(run(looks, true), 'b');
}

static void nor_what_a_backup_brought_back(void **state)
{
    run(discards_and_dies, true);
    make_newer(60);
    assert_int_equal(run(looks, true), 'a');
    run(discards_and_dies, true);
    make_newer(-3600); /* with the time that it was made at */
    assert_int_equal(run(looks, true), 'a');
}

static void an_allocation_outlives_its_process(void **state)
{
    run(allocates_and_dies, true);
    assert_int_equal(run(looks, true), 'c');
    assert_int_equal(run(checks, false), 0);
}

static void its_data_is_durable_before_a_table_names_it(void **state)
{
    run(allocates_and_dies, true);
    assert_int_equal(run(looks_at_the_order, true), 1);
    unlink(image);
    run(creates_with_data_file, false);
    run(allocates_and_dies, true);
    assert_int_equal(run(looks_at_the_order, true), 1);
}

static void the_first_flush_of_a_node_that_becomes_active_reaches_the_disk(void **state)
{
    assert_int_equal(run(flushes_when_it_becomes_active, false), 2);
}

static void a_write_that_failed_half_way_costs_nothing(void **state)
{
    run(fails_half_way_and_dies, true);
    assert_int_equal(run(looks_at_four, true), 1);
    assert_int_equal(run(checks, false), 0);
}

static void nothing_is_lost_when_the_log_is_full(void **state)
{
    unlink(image);
    run(creates_many, false);
    run(writes_many_and_dies, true);
    assert_int_equal(run(looks_at_many, true), 1);
}

static void what_cannot_be_read_is_not_written_over(void **state)
{
    char command[160];

    run(discards_and_dies, true);
    snprintf(command, sizeof(command), "truncate -s +1G '%s'/ringside-*", dir);
    assert_int_equal(system(command), 0);
    run(finds_no_memory, true);
    snprintf(command, sizeof(command), "truncate -s -1G '%s'/ringside-*", dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(run(looks, true), 0);
}

/* Within the seconds in which the file's time proves nothing. */
static void it_does_not_refer_to_what_was_mended_as_a_leak(void **state)
{
    run(allocates_and_dies, true);
    run(mends_leaks, false);
    run(looks, true);
    assert_int_equal(run(checks, false), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_discard_outlives_its_process, begin, end),
        cmocka_unit_test_setup_teardown(it_does_not_take_what_somebody_wrote_since, begin, end),
        cmocka_unit_test_setup_teardown(nor_what_a_backup_brought_back, begin, end),
        cmocka_unit_test_setup_teardown(an_allocation_outlives_its_process, begin, end),
        cmocka_unit_test_setup_teardown(its_data_is_durable_before_a_table_names_it, begin, end),
        cmocka_unit_test_setup_teardown(the_first_flush_of_a_node_that_becomes_active_reaches_the_disk, begin,
                                        end),
        cmocka_unit_test_setup_teardown(a_write_that_failed_half_way_costs_nothing, begin, end),
        cmocka_unit_test_setup_teardown(nothing_is_lost_when_the_log_is_full, begin, end),
        cmocka_unit_test_setup_teardown(what_cannot_be_read_is_not_written_over, begin, end),
        cmocka_unit_test_setup_teardown(it_does_not_refer_to_what_was_mended_as_a_leak, begin, end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
