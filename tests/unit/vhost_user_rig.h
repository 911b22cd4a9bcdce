/*
 * A vhost-user server on a thread of its own, with a null image behind it, for tests that are its front ends.
 * What it says goes to a file, so that "one sentence" can be counted.
 */
#ifndef RINGSIDE_TESTS_VHOST_USER_RIG_H
#define RINGSIDE_TESTS_VHOST_USER_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <sys/stat.h>

#include "host/block/backend.h"
#include "host/device/sigbus_guard.h"
#include "host/runtime/iothread.h"
#include "host/vhost_user/server.h"
#include "tests/unit/vhost_user_client.h"

#define QUEUES   4
#define CAPACITY (64ull << 20)

/* Set before the set-up: an image in a file, with these errors (inject.h), which stop writes. */
static const char *rig_inject;
/* And how long a front end may take to tell a translation that the stop of a ring needs; 0: as by default. */
static uint64_t rig_translation_wait_ns;

static struct {
    pthread_t thread;
    sem_t ready;
    struct loop *loop;
    struct loop_bh stop, call;
    void (*called)(void);
    sem_t called_done;
    struct blk *blk;
    struct virtio_blk *device;
    struct iothread *iothreads[2];
    struct vhost_user_server *server;
    char directory[64], path[96];
    int log;
    off_t log_seen;
    uint64_t offered; /* protocol features */
    struct vhost_user_server_stats stats;
} rig;

static inline void rig_stopped(void *opaque)
{
    loop_stop(rig.loop);
}

static inline void rig_stop(void *opaque)
{
    vhost_user_server_stop(rig.server);
}

static inline void coroutine_fn rig_co_call(void *opaque)
{
    rig.called();
    sem_post(&rig.called_done);
}

static inline void rig_call(void *opaque)
{
    co_enter(co_create(rig_co_call, NULL));
}

static inline void *rig_main(void *arg)
{
    struct error err = {0};
    struct loop *queue_loops[2];
    rig.loop = loop_create("control", &err);
    assert_non_null(rig.loop);
    char image[112];
    snprintf(image, sizeof image, "%s/image", rig.directory);
    int file = open(image, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    assert_int_equal(ftruncate(file, CAPACITY), 0);
    close(file);
    struct open_options open = {.format = "null", .null_bytes = CAPACITY};
    if (rig_inject)
        open = (struct open_options){.format = "raw", .inject = rig_inject};
    rig.blk = blk_open(rig_inject ? image : "", &open, &err);
    assert_non_null(rig.blk);
    unlink(image);
    struct virtio_blk_options device = {.num_queues = QUEUES,
                                        .queue_size_max = 256,
                                        .logical_block_size = 512,
                                        .physical_block_size = 512,
                                        .request_merging = true,
                                        .discard = true,
                                        .write_error = rig_inject ? VIRTIO_BLK_STOP : VIRTIO_BLK_REPORT,
                                        .serial = "a serial"};
    rig.device = virtio_blk_create(rig.blk, &device, &err);
    assert_non_null(rig.device);
    for (unsigned i = 0; i < 2; i++) {
        rig.iothreads[i] = iothread_start("io", 32768, &err);
        assert_non_null(rig.iothreads[i]);
        queue_loops[i] = iothread_loop(rig.iothreads[i]);
    }
    struct vhost_user_server_options options = {.device = rig.device,
                                                .num_queues = QUEUES,
                                                .queue_size_max = 256,
                                                .queue_loops = queue_loops,
                                                .queue_loop_count = 2,
                                                .iommu = true,
                                                .translation_wait_ns = rig_translation_wait_ns,
                                                .stopped = rig_stopped};
    rig.server = vhost_user_server_listen(rig.path, &options, &err);
    assert_non_null(rig.server);
    rig.stop = (struct loop_bh){.fn = rig_stop, .loop = rig.loop};
    rig.call = (struct loop_bh){.fn = rig_call, .loop = rig.loop};
    sem_post(&rig.ready);
    loop_run(rig.loop);
    vhost_user_server_destroy(rig.server);
    for (unsigned i = 0; i < 2; i++)
        iothread_stop(rig.iothreads[i]);
    virtio_blk_destroy(rig.device);
    blk_close(rig.blk);
    loop_destroy(rig.loop);
    return NULL;
}

/* Runs FN in a coroutine on the control loop and returns when it has ended. */
static inline void on_control_loop(void (*fn)(void))
{
    rig.called = fn;
    loop_bh_schedule(&rig.call);
    sem_wait(&rig.called_done);
}

static inline int rig_setup(void **state)
{
    strcpy(rig.directory, "/tmp/vhost-user-test.XXXXXX");
    assert_non_null(mkdtemp(rig.directory));
    snprintf(rig.path, sizeof rig.path, "%s/socket", rig.directory);
    rig.log = memfd_create("log", MFD_CLOEXEC);
    rig.log_seen = 0;
    dup2(rig.log, STDERR_FILENO);
    sem_init(&rig.ready, 0, 0);
    sem_init(&rig.called_done, 0, 0);
    pthread_create(&rig.thread, NULL, rig_main, NULL);
    sem_wait(&rig.ready);
    return 0;
}

static inline int rig_teardown(void **state)
{
    struct stat st;
    loop_bh_schedule(&rig.stop);
    pthread_join(rig.thread, NULL);
    assert_int_not_equal(stat(rig.path, &st), 0);
    rmdir(rig.directory);
    close(rig.log);
    return 0;
}

/* Lines that the server wrote since the last call. */
static inline unsigned log_lines(void)
{
    char text[4096];
    unsigned lines = 0;
    ssize_t n;
    while ((n = pread(rig.log, text, sizeof text, rig.log_seen)) > 0) {
        for (ssize_t i = 0; i < n; i++)
            lines += text[i] == '\n';
        rig.log_seen += n;
    }
    return lines;
}

static inline unsigned open_descriptors(void)
{
    unsigned n = 0;
    DIR *dir = opendir("/proc/self/fd");
    while (readdir(dir))
        n++;
    closedir(dir);
    return n;
}

static inline void read_stats(void)
{
    vhost_user_server_stats(rig.server, &rig.stats);
}

/* The server has let go of every former connection, and is well. */
static inline void server_is_well(void)
{
    int fd = client_connect(rig.path);
    assert_true(fd >= 0);
    assert_true(client_ask_u64(fd, VHOST_USER_GET_FEATURES) & VIRTIO_BIT(VIRTIO_F_VERSION_1));
    close(fd);
    for (int i = 0; i < CLIENT_WAIT_MS; i++) {
        on_control_loop(read_stats);
        if (!rig.stats.connected)
            return;
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    fail_msg("the server keeps a connection whose front end has left");
}

#define PROTOCOL_USED                                                                                   \
    (1ull << VHOST_USER_PROTOCOL_F_MQ | 1ull << VHOST_USER_PROTOCOL_F_REPLY_ACK |                       \
     1ull << VHOST_USER_PROTOCOL_F_CONFIG | 1ull << VHOST_USER_PROTOCOL_F_BACKEND_REQ |                 \
     1ull << VHOST_USER_PROTOCOL_F_INFLIGHT_SHMFD | 1ull << VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS | \
     1ull << VHOST_USER_PROTOCOL_F_STATUS | 1ull << VHOST_USER_PROTOCOL_F_RESET_DEVICE |                \
     1ull << VHOST_USER_PROTOCOL_F_LOG_SHMFD)

#define FEATURES_USED                                                                                        \
    (VIRTIO_BIT(VIRTIO_F_VERSION_1) | VIRTIO_BIT(VIRTIO_BLK_F_FLUSH) | VIRTIO_BIT(VIRTIO_BLK_F_CONFIG_WCE) | \
     VIRTIO_BIT(VIRTIO_BLK_F_MQ))

/* A connection with protocol features negotiated. */
static inline int front_end(void)
{
    int fd = client_connect(rig.path);
    assert_true(fd >= 0);
    assert_true(client_ask_u64(fd, VHOST_USER_GET_FEATURES) & VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    rig.offered = client_ask_u64(fd, VHOST_USER_GET_PROTOCOL_FEATURES);
    client_send_u64(fd, VHOST_USER_SET_PROTOCOL_FEATURES, PROTOCOL_USED & rig.offered);
    client_send(fd, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0);
    return fd;
}

/* And with memory, features, and ring 0 ready but for KICK and ENABLE. */
static inline int front_end_with_ring(struct client_guest *g)
{
    int fd = front_end();
    guest_open(g);
    client_send_u64(fd, VHOST_USER_SET_FEATURES, FEATURES_USED | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    guest_send_memory(g, fd);
    guest_send_ring(g, fd, 0, 0);
    return fd;
}

static inline int front_end_running(struct client_guest *g)
{
    int fd = front_end_with_ring(g);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g->kick);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    return fd;
}

static inline void read_works(struct client_guest *g)
{
    unsigned slot = g->avail_idx % 16;
    guest_submit_read(g, 0, slot);
    guest_kick(g);
    assert_true(guest_wait_used(g, 0, g->avail_idx, CLIENT_WAIT_MS));
    assert_int_equal(guest_status(g, slot), VIRTIO_BLK_S_OK);
}

static inline uint32_t get_vring_base(int fd, uint32_t index)
{
    struct client_message reply;
    client_send_state(fd, VHOST_USER_GET_VRING_BASE, index, 0);
    assert_int_equal(client_receive(fd, &reply), 1);
    assert_int_equal(reply.header.request, VHOST_USER_GET_VRING_BASE);
    assert_int_equal(reply.header.flags, VHOST_USER_VERSION | VHOST_USER_REPLY_MASK);
    assert_int_equal(reply.header.size, sizeof reply.payload.state);
    assert_int_equal(reply.payload.state.index, index);
    return reply.payload.state.num;
}

#endif
