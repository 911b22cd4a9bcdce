/* Driver and device face to face: see rig.h. */
#include "tests/harness/rig.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/harness/measure.h"

#define SERVICE_MS     100
#define SLEEP_LIMIT_NS 50000000u /* a sleeping client looks at least that often */

static void driver_log(enum vblk_log_level level, const char *text)
{
    if (level != VBLK_LOG_INFO)
        log_message("driver: %s", text);
}

static void *service_thread(void *opaque)
{
    struct rig *rig = opaque;

    measure_client_thread();
    while (!__atomic_load_n(&rig->service_stop, __ATOMIC_ACQUIRE)) {
        if (vtr_vhost_user_service(rig->transport, SERVICE_MS))
            __atomic_store_n(&rig->news, true, __ATOMIC_RELEASE);
        else if (rig->transport->gone)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    }
    return NULL;
}

int rig_open_device(struct rig *rig, const struct settings *settings, struct error *err)
{
    memset(rig, 0, sizeof(*rig));
    rig->settings = settings;
    rig->path = settings->device;
    if (!settings->device || strcmp(settings->device, "own") == 0) {
        rig->own = own_device_start(settings, err);
        if (!rig->own)
            return -EIO;
        rig->path = own_device_path(rig->own);
    }
    return 0;
}

uint64_t rig_refused(const struct settings *settings)
{
    uint64_t bits = settings->refuse_features;

    if (!settings->indirect)
        bits |= VIRTIO_BIT(VIRTIO_F_INDIRECT_DESC);
    if (!settings->event_idx)
        bits |= VIRTIO_BIT(VIRTIO_F_EVENT_IDX);
    if (!settings->in_order)
        bits |= VIRTIO_BIT(VIRTIO_F_IN_ORDER);
    if (settings->ring != RING_PACKED)
        bits |= VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    return bits;
}

static int driver_start(struct rig *rig, struct error *err)
{
    const struct settings *settings = rig->settings;
    struct vblk_config config = {
        .num_queues = (unsigned)settings->queues,
        .queue_size = (unsigned)settings->queue_size,
        .indirect_segs = settings->indirect ? (unsigned)settings->indirect_segs : 0,
        .refuse_features = rig_refused(settings),
        .deadline_ns = settings->deadline_ms * 1000000u,
        .poll_only = settings->client != CLIENT_SLEEP,
    };
    int code;

    free(rig->memory);
    rig->memory_bytes = vblk_memory_bytes(&config);
    rig->memory = aligned_alloc(64, (rig->memory_bytes + 63) / 64 * 64);
    if (!rig->memory)
        return error_set(err, -ENOMEM, "no memory for the driver (%zu bytes)", rig->memory_bytes);
    hosted_platform(rig->hosted, &rig->platform);
    code =
        vblk_start(&rig->disk, rig->memory, rig->memory_bytes, &rig->transport->vtr, &rig->platform, &config);
    if (code < 0) {
        rig->disk = NULL;
        return error_set(err, code, "%s: the driver could not start the device: %s%s%s", rig->path,
                         strerror(-code), rig->transport->front.error[0] ? ": " : "",
                         rig->transport->front.error);
    }
    vblk_info(rig->disk, &rig->info);
    if (settings->ring == RING_PACKED && !(rig->info.features & VIRTIO_BIT(VIRTIO_F_RING_PACKED)))
        return error_set(err, -ENOTSUP, "%s: the device offers no packed ring", rig->path);
    if (settings->in_order && !(rig->info.features & VIRTIO_BIT(VIRTIO_F_IN_ORDER)))
        return error_set(err, -ENOTSUP, "%s: the device does not offer IN_ORDER", rig->path);
    if (rig->info.num_queues < settings->queues)
        return error_set(err, -ENOTSUP, "%s: the device has %u queues, %u were asked for", rig->path,
                         rig->info.num_queues, (unsigned)settings->queues);
    return 0;
}

static int drive(struct rig *rig, const struct vtr_vhost_user_options *options, struct error *err)
{
    int code;

    if (rig->transport_open)
        vtr_vhost_user_close(rig->transport);
    rig->transport_open = true;
    code = vtr_vhost_user_open(rig->transport, rig->hosted, options);
    if (code < 0)
        return error_set(err, code, "%s",
                         rig->transport->front.error[0] ? rig->transport->front.error : rig->path);
    return driver_start(rig, err);
}

int rig_open(struct rig *rig, const struct settings *settings, size_t arena_bytes, struct error *err)
{
    int code = rig_open_device(rig, settings, err);

    return code < 0 ? code : rig_drive(rig, arena_bytes, err);
}

int rig_drive(struct rig *rig, size_t arena_bytes, struct error *err)
{
    const struct settings *settings = rig->settings;
    struct vblk_config sizes = {
        .num_queues = (unsigned)settings->queues,
        .queue_size = (unsigned)settings->queue_size,
        .indirect_segs = (unsigned)settings->indirect_segs,
    };
    int code;
    struct hosted_options hosted = {
        /* Some back ends can't take an indirect table that is full when one of its buffers crosses a border.
         */
        .regions = settings->regions ? (unsigned)settings->regions
                   : rig->own        ? 2
                                     : 1,
        .copy_always = settings->copy,
        .log = driver_log,
    };
    struct vtr_vhost_user_options transport = {
        .fd = -1,
        .queue_size_max = (unsigned)settings->queue_size,
        .add_mem_regions = settings->mem_slots,
        .inflight = settings->inflight,
        .reconnect = settings->reconnect,
    };

    if (settings->cpus && cmd_cpus_parse(&rig->cpus, "cpus", settings->cpus, err) < 0)
        return -EINVAL;
    if (!settings->queues || settings->queues > HOSTED_QUEUES_MAX)
        return error_set(err, -EINVAL, "--queues=%llu: 1 to %u queues are possible",
                         (unsigned long long)settings->queues, HOSTED_QUEUES_MAX);
    /* Rings and tables may not cross regions, which costs some room at each border. */
    hosted.arena_bytes = arena_bytes + 2 * vblk_dma_bytes(&sizes) + (8u << 20);
    rig->hosted = hosted_create(&hosted);
    rig->transport = calloc(1, sizeof(*rig->transport));
    if (!rig->hosted || !rig->transport)
        return error_set(err, -ENOMEM, "no memory for the driver's machine: %s", strerror(errno));
    transport.path = rig->path;
    /* A device that may go away at any moment may do so while it is being started; whatever the driver made
     * of its silence. */
    for (unsigned tries = settings->reconnect ? 10 : 1; tries; tries--) {
        code = drive(rig, &transport, err);
        if (code == 0 || (!rig->transport->gone && code != -EPIPE && code != -ENODEV && code != -ETIMEDOUT))
            break;
    }
    if (code < 0)
        return code;
    if (pthread_create(&rig->service, NULL, service_thread, rig) != 0)
        return error_set(err, -EAGAIN, "cannot start a thread");
    rig->service_started = true;
    return 0;
}

int rig_close(struct rig *rig)
{
    int code;

    if (rig->service_started) {
        __atomic_store_n(&rig->service_stop, true, __ATOMIC_RELEASE);
        pthread_join(rig->service, NULL);
    }
    if (rig->disk)
        vblk_stop(rig->disk);
    if (rig->transport_open)
        vtr_vhost_user_close(rig->transport);
    free(rig->transport);
    hosted_destroy(rig->hosted);
    free(rig->memory);
    code = own_device_stop(rig->own);
    memset(rig, 0, sizeof(*rig));
    return code;
}

void rig_client_thread(struct rig *rig, unsigned queue)
{
    struct error err;

    measure_client_thread();
    if (cmd_cpus_pin(&rig->cpus, queue, &err) < 0)
        log_message("%s", err.text);
}

void rig_attend(struct rig *rig)
{
    if (__atomic_load_n(&rig->news, __ATOMIC_RELAXED) &&
        __atomic_exchange_n(&rig->news, false, __ATOMIC_ACQUIRE))
        vblk_config_changed(rig->disk);
}

unsigned rig_poll(struct rig *rig, unsigned queue)
{
    unsigned n = vblk_poll(rig->disk, queue);

    if (n || rig->settings->client != CLIENT_SLEEP) {
        if (!n && rig->settings->client == CLIENT_YIELD)
            sched_yield();
        else if (!n)
            rig->platform.relax(rig->platform.ctx);
        return n;
    }
    if (!vblk_interrupts_on(rig->disk, queue))
        rig->platform.wait(rig->platform.ctx, queue,
                           rig->platform.now_ns(rig->platform.ctx) + SLEEP_LIMIT_NS);
    vblk_interrupts_off(rig->disk, queue);
    return vblk_poll(rig->disk, queue);
}
