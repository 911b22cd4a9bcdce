/* Our own device in this process: see own_device.h. The control loop has a thread of its own. */
#include "tests/harness/own_device.h"

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/block/backend.h"
#include "host/device/virtio_blk.h"
#include "host/runtime/iothread.h"
#include "host/runtime/loop.h"
#include "host/vhost_user/server.h"

#define IOTHREADS_MAX 64

struct device_config {
    const char *path;
    struct open_options open;
    struct virtio_blk_options blk;
    uint64_t iothreads, poll_max_ns;
};

struct own_device {
    struct device_config config;
    pthread_t thread;
    sem_t ready;
    struct error error;
    int code;
    char directory[64], socket[96];

    struct loop *loop;
    struct loop_bh stop;
    struct blk *backend;
    struct virtio_blk *virtio_blk;
    struct iothread *iothreads[IOTHREADS_MAX];
    struct loop *queue_loops[IOTHREADS_MAX];
    unsigned iothread_count;
    struct vhost_user_server *server;
};

/* ---- options ---- */

static bool set_on_off(bool *to, const char *value)
{
    *to = strcmp(value, "on") == 0;
    return *to || strcmp(value, "off") == 0;
}

static bool choose(const char *value, const char *const *names, unsigned *to)
{
    for (unsigned i = 0; names[i]; i++)
        if (strcmp(names[i], value) == 0) {
            *to = i;
            return true;
        }
    return false;
}

static bool set_path(struct device_config *c, const char *value)
{
    c->path = value;
    return true;
}

static bool set_format(struct device_config *c, const char *value)
{
    c->open.format = value;
    return true;
}

static bool set_size(struct device_config *c, const char *value)
{
    return settings_number(value, &c->open.null_bytes);
}

static bool set_read_only(struct device_config *c, const char *value)
{
    c->open.read_only = true;
    return true;
}

static bool set_aio(struct device_config *c, const char *value)
{
    static const char *const names[] = {"native", "io_uring", "threads", NULL};
    unsigned i;

    if (!choose(value, names, &i))
        return false;
    c->open.aio = (enum aio_kind)(AIO_NATIVE + i);
    return true;
}

static bool set_cache(struct device_config *c, const char *value)
{
    static const char *const names[] = {"none", "writeback", "unsafe", NULL};
    unsigned i;

    if (!choose(value, names, &i))
        return false;
    c->open.cache = (enum cache_mode)i;
    return true;
}

static bool set_small(unsigned *to, const char *value, uint64_t max)
{
    uint64_t number;

    if (!settings_number(value, &number) || !number || number > max)
        return false;
    *to = (unsigned)number;
    return true;
}

static bool set_num_queues(struct device_config *c, const char *value)
{
    return set_small(&c->blk.num_queues, value, VIRTIO_BLK_QUEUES_MAX);
}

static bool set_queue_size(struct device_config *c, const char *value)
{
    return set_small(&c->blk.queue_size_max, value, VIRTQUEUE_MAX_SIZE);
}

static bool set_iothreads(struct device_config *c, const char *value)
{
    return settings_number(value, &c->iothreads) && c->iothreads > 0 && c->iothreads <= IOTHREADS_MAX;
}

static bool set_poll(struct device_config *c, const char *value)
{
    return settings_number(value, &c->poll_max_ns);
}

static bool set_merging(struct device_config *c, const char *value)
{
    return set_on_off(&c->blk.request_merging, value);
}

static bool set_serial(struct device_config *c, const char *value)
{
    size_t length = strlen(value);

    if (length > VIRTIO_BLK_ID_BYTES)
        return false;
    memcpy(c->blk.serial, value, length + 1);
    return true;
}

static bool set_logical(struct device_config *c, const char *value)
{
    return set_small(&c->blk.logical_block_size, value, 1u << 20);
}

static bool set_physical(struct device_config *c, const char *value)
{
    return set_small(&c->blk.physical_block_size, value, 1u << 20);
}

static bool set_discard(struct device_config *c, const char *value)
{
    static const char *const names[] = {"ignore", "unmap", NULL};
    unsigned i;

    if (!choose(value, names, &i))
        return false;
    c->blk.discard = i == 1;
    c->open.ignore_discard = i == 0;
    return true;
}

static const struct {
    const char *name;
    bool (*set)(struct device_config *c, const char *value);
    const char *argument, *meaning;
} rows[] = {
    {"blk-file", set_path, "PATH", "the image"},
    {"format", set_format, "qcow2|raw|null", "its format [null without --blk-file, else probed]"},
    {"size", set_size, "SIZE", "capacity of a null image [1g]"},
    {"read-only", set_read_only, NULL, "refuse writes"},
    {"aio", set_aio, "native|io_uring|threads", "how to reach the file"},
    {"cache", set_cache, "none|writeback|unsafe", "host page cache [none]"},
    {"num-queues", set_num_queues, "N", "queues that the device has [as --queues]"},
    {"queue-size", set_queue_size, "N", "largest queue [as --driver-queue-size]"},
    {"iothreads", set_iothreads, "N", "threads that serve them [1]"},
    {"poll-max-ns", set_poll, "N", "ceiling of adaptive polling [0]"},
    {"request-merging", set_merging, "on|off", "requests that touch on disk become one [on]"},
    {"serial", set_serial, "TEXT", "identity [ringside]"},
    {"logical-block-size", set_logical, "N", "[512]"},
    {"physical-block-size", set_physical, "N", "[512]"},
    {"discard", set_discard, "unmap|ignore", "[unmap]"},
};

#define ROWS (sizeof(rows) / sizeof(rows[0]))

bool own_device_has_option(const char *name, size_t length, bool *wants_value)
{
    for (size_t i = 0; i < ROWS; i++)
        if (strlen(rows[i].name) == length && memcmp(rows[i].name, name, length) == 0) {
            *wants_value = rows[i].argument != NULL;
            return true;
        }
    return false;
}

void own_device_help(FILE *out)
{
    for (size_t i = 0; i < ROWS; i++) {
        char left[64];

        snprintf(left, sizeof(left), "--%s%s%s", rows[i].name, rows[i].argument ? "=" : "",
                 rows[i].argument ? rows[i].argument : "");
        fprintf(out, "  %-28s %s\n", left, rows[i].meaning);
    }
}

static int config_fill(struct device_config *config, const struct settings *settings, struct error *err)
{
    *config = (struct device_config){
        .blk = {.num_queues = (unsigned)settings->queues ? (unsigned)settings->queues : 1,
                .queue_size_max = (unsigned)settings->queue_size ? (unsigned)settings->queue_size : 256,
                .logical_block_size = 512,
                .physical_block_size = 512,
                .serial = "ringside",
                .request_merging = true,
                .discard = true},
        .iothreads = 1,
    };
    for (unsigned i = 0; i < settings->device_option_count; i++) {
        const char *text = settings->device_options[i], *equals = strchr(text, '=');
        size_t length = equals ? (size_t)(equals - text) : strlen(text);

        for (size_t row = 0; row < ROWS; row++)
            if (strlen(rows[row].name) == length && memcmp(rows[row].name, text, length) == 0 &&
                !rows[row].set(config, equals ? equals + 1 : ""))
                return error_set(err, -EINVAL, "--%s: not a valid value (%s)", text, rows[row].meaning);
    }
    if (!config->path && !config->open.format)
        config->open.format = "null";
    if (!config->open.null_bytes)
        config->open.null_bytes = 1ull << 30;
    return 0;
}

/* ---- the device's life; all of it on its own thread ---- */

static void device_stopped(void *opaque)
{
    struct own_device *device = opaque;

    loop_stop(device->loop);
}

static void device_stop(void *opaque)
{
    struct own_device *device = opaque;

    vhost_user_server_stop(device->server);
}

static int socket_directory(struct own_device *device, struct error *err)
{
    const char *base = getenv("TMPDIR");

    if (!base || strlen(base) > 32)
        base = "/tmp";
    snprintf(device->directory, sizeof(device->directory), "%s/ringside.XXXXXX", base);
    if (!mkdtemp(device->directory))
        return error_set(err, -errno, "%s: cannot make a directory for the socket: %s", base,
                         strerror(errno));
    snprintf(device->socket, sizeof(device->socket), "%s/device", device->directory);
    return 0;
}

static int device_open(struct own_device *device, struct error *err)
{
    struct vhost_user_server_options server;

    device->loop = loop_create("device", err);
    if (!device->loop)
        return -ENOMEM;
    device->backend = blk_open(device->config.path, &device->config.open, err);
    if (!device->backend)
        return -EIO;
    device->virtio_blk = virtio_blk_create(device->backend, &device->config.blk, err);
    if (!device->virtio_blk)
        return -EIO;
    for (unsigned i = 0; i < device->config.iothreads; i++) {
        char name[16];

        snprintf(name, sizeof(name), "iothread%u", i);
        device->iothreads[i] = iothread_start(name, device->config.poll_max_ns, err);
        if (!device->iothreads[i])
            return -ENOMEM;
        device->queue_loops[i] = iothread_loop(device->iothreads[i]);
        device->iothread_count = i + 1;
    }
    if (socket_directory(device, err) < 0)
        return -EIO;
    server = (struct vhost_user_server_options){
        .device = device->virtio_blk,
        .queue_loops = device->queue_loops,
        .queue_loop_count = device->iothread_count,
        .stopped = device_stopped,
        .opaque = device,
    };
    device->server = vhost_user_server_listen(device->socket, &server, err);
    if (!device->server)
        return -EIO;
    device->stop = (struct loop_bh){.fn = device_stop, .opaque = device, .loop = device->loop};
    return 0;
}

static void device_close(struct own_device *device)
{
    int code;

    if (device->server)
        vhost_user_server_destroy(device->server);
    for (unsigned i = 0; i < device->iothread_count; i++)
        iothread_stop(device->iothreads[i]);
    if (device->virtio_blk)
        virtio_blk_destroy(device->virtio_blk);
    if (device->backend) {
        code = blk_close(device->backend);
        if (!device->code)
            device->code = code;
    }
    if (device->loop)
        loop_destroy(device->loop);
    if (device->directory[0]) {
        unlink(device->socket);
        rmdir(device->directory);
    }
}

static void *device_thread(void *opaque)
{
    struct own_device *device = opaque;
    bool up;

    pthread_setname_np(pthread_self(), "device");
    device->code = device_open(device, &device->error);
    up = device->code == 0;
    sem_post(&device->ready);
    if (up)
        loop_run(device->loop);
    device_close(device);
    return NULL;
}

struct own_device *own_device_start(const struct settings *settings, struct error *err)
{
    struct own_device *device = calloc(1, sizeof(*device));

    if (!device)
        return NULL;
    if (config_fill(&device->config, settings, err) < 0) {
        free(device);
        return NULL;
    }
    sem_init(&device->ready, 0, 0);
    if (pthread_create(&device->thread, NULL, device_thread, device) != 0) {
        error_set(err, -EAGAIN, "cannot start the device's thread");
        sem_destroy(&device->ready);
        free(device);
        return NULL;
    }
    while (sem_wait(&device->ready) < 0)
        ;
    if (device->code < 0) {
        *err = device->error;
        pthread_join(device->thread, NULL);
        sem_destroy(&device->ready);
        free(device);
        return NULL;
    }
    return device;
}

const char *own_device_path(const struct own_device *device)
{
    return device->socket;
}

struct virtio_blk *own_device_virtio_blk(struct own_device *device)
{
    return device->virtio_blk;
}

struct blk *own_device_blk(struct own_device *device)
{
    return device->backend;
}

int own_device_stop(struct own_device *device)
{
    int code;

    if (!device)
        return 0;
    loop_bh_schedule(&device->stop);
    pthread_join(device->thread, NULL);
    code = device->code;
    sem_destroy(&device->ready);
    free(device);
    return code;
}
