/* Our own device in this process: see own_device.h. The control loop has a thread of its own. */
#include "tests/harness/own_device.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/cmd/cmd_device.h"
#include "host/cmd/cmd_options.h"
#include "host/runtime/loop.h"
#include "host/vhost_user/server.h"

struct own_device {
    struct cmd_device_options options;
    pthread_t thread;
    sem_t ready;
    struct error error;
    int code;
    char directory[64], socket[96], scratch[96];
    bool has_scratch;

    struct loop *loop;
    struct loop_bh stop;
    struct cmd_device *device;
    struct vhost_user_server *server;
};

/* ---- options: those of ringside-blk ---- */

bool own_device_has_option(const char *name, size_t length, bool *wants_value)
{
    for (const struct cmd_option *row = cmd_device_option_rows; row->name; row++)
        if (strlen(row->name) == length && memcmp(row->name, name, length) == 0) {
            *wants_value = row->argument && row->argument[0] != '[';
            return true;
        }
    return false;
}

void own_device_help(FILE *out)
{
    struct cmd_device_options options;
    struct cmd_option_table tables[] = {{cmd_device_option_rows, &options}, {NULL, NULL}};

    cmd_options_help(out, tables);
}

static int option_set(struct cmd_device_options *options, const char *text, struct error *err)
{
    struct cmd_option_table table = {cmd_device_option_rows, options};
    const char *equals = strchr(text, '=');
    char name[64];
    int code;

    snprintf(name, sizeof(name), "%.*s", equals ? (int)(equals - text) : (int)strlen(text), text);
    code = cmd_option_set(&table, name, equals ? equals + 1 : NULL, err);
    return code <= 0 ? code : error_set(err, -EINVAL, "--%s: no such option", name);
}

int own_device_check_option(const char *text, struct error *err)
{
    struct cmd_device_options options;

    cmd_device_options_init(&options);
    return option_set(&options, text, err);
}

#define SCRATCH_BYTES (256u << 20)

/* An image unless one is named: null, or a sparse file where the content matters. As many queues, and as long
 * ones, as the driver wants. */
static int options_fill(struct cmd_device_options *options, const struct settings *settings,
                        const char *scratch, struct error *err)
{
    cmd_device_options_init(options);
    if (settings->queues)
        options->device.num_queues = (unsigned)settings->queues;
    if (settings->queue_size > options->device.queue_size_max)
        options->device.queue_size_max = (unsigned)settings->queue_size;
    strcpy(options->device.serial, "ringside");
    for (unsigned i = 0; i < settings->device_option_count; i++) {
        int code = option_set(options, settings->device_options[i], err);

        if (code < 0)
            return code;
    }
    if (!options->blk_file && !options->open.format && settings->scratch_image) {
        options->blk_file = scratch;
        options->open.format = "raw";
    } else if (!options->blk_file && !options->open.format) {
        options->open.format = "null";
    } else if (settings->only_looks && options->blk_file && access(options->blk_file, W_OK) < 0 &&
               (errno == EACCES || errno == EPERM || errno == EROFS)) {
        options->read_only = true;
    }
    if (options->open.format && strcmp(options->open.format, "null") == 0 && !options->size)
        options->size = 1ull << 30;
    return cmd_device_options_check(options, err);
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

/* Directories that are to be gone also when a signal ends the program. A handler reads them: they are filled
 * before they are marked, and never moved. */
static struct place {
    uint32_t used;
    char directory[64], socket[96], scratch[96];
} places[8];

static void on_end(int number)
{
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
        /* Pairs with the release in place_remember. */
        if (!__atomic_load_n(&places[i].used, __ATOMIC_ACQUIRE))
            continue;
        unlink(places[i].socket);
        unlink(places[i].scratch);
        rmdir(places[i].directory);
    }
    signal(number, SIG_DFL);
    raise(number);
}

static void place_remember(const struct own_device *device)
{
    static const int numbers[] = {SIGHUP, SIGINT, SIGTERM};
    struct place *place = NULL;

    for (size_t i = 0; i < sizeof(places) / sizeof(*places) && !place; i++)
        if (!__atomic_load_n(&places[i].used, __ATOMIC_RELAXED))
            place = &places[i];
    if (!place)
        return;
    strcpy(place->directory, device->directory);
    strcpy(place->socket, device->socket);
    strcpy(place->scratch, device->scratch);
    __atomic_store_n(&place->used, 1, __ATOMIC_RELEASE);
    for (size_t i = 0; i < sizeof(numbers) / sizeof(*numbers); i++)
        if (signal(numbers[i], on_end) == SIG_IGN) /* whoever started us wants it ignored */
            signal(numbers[i], SIG_IGN);
}

static void place_forget(const struct own_device *device)
{
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++)
        if (places[i].used && strcmp(places[i].directory, device->directory) == 0)
            __atomic_store_n(&places[i].used, 0, __ATOMIC_RELEASE);
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
    snprintf(device->scratch, sizeof(device->scratch), "%s/disk", device->directory);
    place_remember(device);
    return 0;
}

static int device_open(struct own_device *device, struct error *err)
{
    struct vhost_user_server_options server;

    device->loop = loop_create("device", err);
    if (!device->loop)
        return -ENOMEM;
    device->device = cmd_device_start(&device->options, err);
    if (!device->device)
        return -EIO;
    server = (struct vhost_user_server_options){
        .device = device->device->virtio_blk,
        .num_queues = device->options.device.num_queues,
        .queue_size_max = device->options.device.queue_size_max,
        .queue_loops = device->device->queue_loops,
        .queue_loop_count = device->device->queue_loop_count,
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
    if (device->device) {
        code = cmd_device_stop(device->device, &device->error);
        if (!device->code)
            device->code = code;
    }
    if (device->loop)
        loop_destroy(device->loop);
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

static void directory_remove(struct own_device *device)
{
    if (!device->directory[0])
        return;
    unlink(device->socket);
    if (device->has_scratch)
        unlink(device->scratch);
    rmdir(device->directory);
    place_forget(device);
}

static int scratch_make(struct own_device *device, struct error *err)
{
    int fd, code = 0;

    if (device->options.blk_file != device->scratch)
        return 0;
    fd = open(device->scratch, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, SCRATCH_BYTES) < 0)
        code = error_set(err, -errno, "%s: cannot make an image: %s", device->scratch, strerror(errno));
    device->has_scratch = fd >= 0;
    if (fd >= 0)
        close(fd);
    return code;
}

static void device_free(struct own_device *device)
{
    directory_remove(device);
    sem_destroy(&device->ready);
    free(device);
}

struct own_device *own_device_start(const struct settings *settings, struct error *err)
{
    struct own_device *device = calloc(1, sizeof(*device));

    if (!device)
        return NULL;
    sem_init(&device->ready, 0, 0);
    if (socket_directory(device, err) < 0 ||
        options_fill(&device->options, settings, device->scratch, err) < 0 || scratch_make(device, err) < 0) {
        device_free(device);
        return NULL;
    }
    if (pthread_create(&device->thread, NULL, device_thread, device) != 0) {
        error_set(err, -EAGAIN, "cannot start the device's thread");
        device_free(device);
        return NULL;
    }
    while (sem_wait(&device->ready) < 0)
        ;
    if (device->code < 0) {
        *err = device->error;
        pthread_join(device->thread, NULL);
        device_free(device);
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
    return device->device->virtio_blk;
}

struct blk *own_device_blk(struct own_device *device)
{
    return device->device->blk;
}

int own_device_stop(struct own_device *device)
{
    int code;

    if (!device)
        return 0;
    loop_bh_schedule(&device->stop);
    pthread_join(device->thread, NULL);
    code = device->code;
    if (code < 0)
        log_message("%s", device->error.text);
    device_free(device);
    return code;
}
