/* The simulated machine: see sim_machine.h. Nothing here waits but by letting the simulation go on. */
#include "tests/harness/sim_machine.h"

#include <string.h>

#include "common/virtio.h"
#include "common/virtio_ring.h"
#include "host/device/virtio_blk.h"
#include "host/runtime/world.h"

static const struct vtr_ops sim_ops;

static struct sim_machine *of(struct vtr *vtr)
{
    return (struct sim_machine *)vtr;
}

/* ---- the platform ---- */

static uint64_t sim_platform_now(void *ctx)
{
    return world_now_ns();
}

static struct sim_machine *running; /* one simulation at a time; the platform's ctx is the memory's */

static void sim_platform_relax(void *ctx)
{
    sim_step(running->sim);
}

static void sim_platform_wait(void *ctx, unsigned queue, uint64_t deadline_ns)
{
    while (!sim_machine_interrupt(running, queue) && world_now_ns() < deadline_ns)
        if (!sim_step(running->sim))
            return;
}

/* ---- the device's side ---- */

static void on_interrupt(void *opaque, unsigned queue)
{
    struct sim_machine *machine = opaque;

    if (!sim_chance(machine->sim, SIM_FAULTS, machine->lost_interrupt_ppm))
        machine->queues[queue].interrupted = true;
}

static void on_needs_reset(void *opaque, unsigned queue, const char *why)
{
    struct sim_machine *machine = opaque;

    machine->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
    machine->config_changed = true;
}

static void on_config_changed(void *opaque)
{
    struct sim_machine *machine = opaque;

    machine->config_changed = true;
}

static void on_kick(void *opaque)
{
    struct sim_machine_queue *queue = opaque;

    virtio_blk_queue_kick(queue->machine->device->virtio_blk, queue->index);
}

struct start {
    struct sim_machine *machine;
    int code;
};

static void co_start(void *opaque)
{
    struct start *start = opaque;
    struct sim_machine *machine = start->machine;
    bool packed = machine->features & VIRTIO_BIT(VIRTIO_F_RING_PACKED);

    for (unsigned i = 0; i < machine->num_queues && start->code == 0; i++) {
        const struct vtr_queue *q = &machine->queues[i].setup;
        size_t desc = VIRTQ_DESC_BYTES(q->size), driver = packed ? 4 : VIRTQ_AVAIL_BYTES(q->size),
               device = packed ? 4 : VIRTQ_USED_BYTES(q->size);
        struct virtio_blk_queue_setup setup = {
            .size = q->size,
            .packed = packed,
            .memory = &machine->memory,
            .desc = guest_memory_pointer(&machine->memory, (guest_addr){q->desc.value}, desc),
            .driver = guest_memory_pointer(&machine->memory, (guest_addr){q->driver.value}, driver),
            .device = guest_memory_pointer(&machine->memory, (guest_addr){q->device.value}, device),
            .last_avail_idx = packed ? 0x8000 : 0,
            .last_used_idx = packed ? 0x8000 : 0,
            .kick_fd = -1,
            .call_fd = -1,
        };

        if (!machine->queues[i].set_up)
            continue;
        start->code = virtio_blk_co_queue_start(
            machine->device->virtio_blk, i,
            machine->device->queue_loops[i % machine->device->queue_loop_count], &setup, NULL);
        machine->queues[i].started = start->code == 0;
    }
}

static void co_stop(void *opaque)
{
    struct sim_machine *machine = opaque;

    for (unsigned i = 0; i < machine->num_queues; i++) {
        if (machine->queues[i].started)
            virtio_blk_co_queue_stop(machine->device->virtio_blk, i, NULL, NULL);
        machine->queues[i].started = machine->queues[i].set_up = machine->queues[i].interrupted = false;
    }
    virtio_blk_reset(machine->device->virtio_blk);
}

/* ---- registers ---- */

static uint8_t op_get_status(struct vtr *vtr)
{
    return of(vtr)->status;
}

static void op_set_status(struct vtr *vtr, uint8_t status)
{
    struct sim_machine *machine = of(vtr);
    uint8_t rising = status & (uint8_t)~machine->status;

    if (!status) {
        iothread_call_coroutine(machine->control, co_stop, machine);
        machine->status = 0;
        return;
    }
    machine->status = status;
    if ((rising & VIRTIO_STATUS_FEATURES_OK) &&
        virtio_blk_set_features(machine->device->virtio_blk, machine->features) < 0)
        machine->status &= (uint8_t)~VIRTIO_STATUS_FEATURES_OK;
    if (rising & VIRTIO_STATUS_DRIVER_OK) {
        struct start start = {.machine = machine};

        iothread_call_coroutine(machine->control, co_start, &start);
        if (start.code < 0)
            machine->status |= VIRTIO_STATUS_DEVICE_NEEDS_RESET;
    }
}

static uint64_t op_get_features(struct vtr *vtr)
{
    return virtio_blk_device_features(of(vtr)->device->virtio_blk) & ~VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM);
}

static void op_set_features(struct vtr *vtr, uint64_t features)
{
    of(vtr)->features = features;
}

static uint32_t op_config_read(struct vtr *vtr, unsigned offset, unsigned width)
{
    uint8_t bytes[4] = {0};

    virtio_blk_config_read(of(vtr)->device->virtio_blk, offset, bytes, width < 4 ? width : 4);
    return (uint32_t)bytes[0] | (uint32_t)bytes[1] << 8 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[3] << 24;
}

static void op_config_write(struct vtr *vtr, unsigned offset, unsigned width, uint32_t value)
{
    uint8_t bytes[4] = {(uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16),
                        (uint8_t)(value >> 24)};

    virtio_blk_config_write(of(vtr)->device->virtio_blk, offset, bytes, width < 4 ? width : 4);
}

static uint32_t op_config_generation(struct vtr *vtr)
{
    return 0;
}

static unsigned op_config_bytes(struct vtr *vtr)
{
    return sizeof(struct virtio_blk_config);
}

static unsigned op_num_queues(struct vtr *vtr)
{
    return of(vtr)->num_queues;
}

static unsigned op_queue_size_max(struct vtr *vtr, unsigned index)
{
    return index < of(vtr)->num_queues ? of(vtr)->queue_size_max : 0;
}

static int op_queue_enable(struct vtr *vtr, const struct vtr_queue *queue)
{
    struct sim_machine *machine = of(vtr);

    machine->queues[queue->index].setup = *queue;
    machine->queues[queue->index].set_up = true;
    return 0;
}

static void op_notify(struct vtr *vtr, unsigned index, uint16_t next, bool with_data)
{
    struct sim_machine *machine = of(vtr);

    if (index < machine->num_queues && machine->queues[index].started &&
        !sim_chance(machine->sim, SIM_FAULTS, machine->lost_kick_ppm))
        loop_bh_schedule(&machine->queues[index].kick);
}

static uint8_t op_interrupt_status(struct vtr *vtr)
{
    struct sim_machine *machine = of(vtr);
    uint8_t pending = VTR_INTERRUPT_QUEUES | (machine->config_changed ? VTR_INTERRUPT_CONFIG : 0);

    machine->config_changed = false;
    return pending;
}

static const struct vtr_ops sim_ops = {
    .name = "simulated",
    .get_status = op_get_status,
    .set_status = op_set_status,
    .get_features = op_get_features,
    .set_features = op_set_features,
    .config_read = op_config_read,
    .config_write = op_config_write,
    .config_generation = op_config_generation,
    .config_bytes = op_config_bytes,
    .num_queues = op_num_queues,
    .queue_size_max = op_queue_size_max,
    .queue_enable = op_queue_enable,
    .notify = op_notify,
    .interrupt_status = op_interrupt_status,
};

bool sim_machine_interrupt(struct sim_machine *machine, unsigned queue)
{
    bool interrupted = machine->queues[queue].interrupted;

    machine->queues[queue].interrupted = false;
    return interrupted;
}

void sim_machine_init(struct sim_machine *machine, struct sim *sim, struct iothread *control,
                      struct cmd_device *device, struct hosted *hosted, unsigned queues, unsigned queue_size)
{
    uint32_t lost_kick = machine->lost_kick_ppm, lost_interrupt = machine->lost_interrupt_ppm;
    struct virtio_blk_events events = {
        .config_changed = on_config_changed,
        .needs_reset = on_needs_reset,
        .interrupt = on_interrupt,
        .opaque = machine,
    };

    memset(machine, 0, sizeof(*machine));
    machine->vtr.ops = &sim_ops;
    machine->sim = sim;
    machine->control = control;
    machine->device = device;
    machine->hosted = hosted;
    machine->num_queues = queues;
    machine->queue_size_max = queue_size;
    machine->lost_kick_ppm = lost_kick;
    machine->lost_interrupt_ppm = lost_interrupt;
    for (unsigned i = 0; i < hosted->region_count; i++) {
        struct guest_region region = {
            .guest_addr = hosted->regions[i].guest_addr,
            .user_addr = (uintptr_t)hosted->regions[i].mem,
            .bytes = hosted->regions[i].bytes,
            .host = hosted->regions[i].mem,
            .fd = -1,
        };

        guest_memory_add(&machine->memory, &region);
    }
    for (unsigned i = 0; i < queues; i++) {
        machine->queues[i].index = i;
        machine->queues[i].machine = machine;
        machine->queues[i].kick = (struct loop_bh){.fn = on_kick,
                                                   .opaque = &machine->queues[i],
                                                   .loop = device->queue_loops[i % device->queue_loop_count]};
    }
    virtio_blk_set_events(device->virtio_blk, &events);
    hosted_platform(hosted, &machine->platform);
    machine->platform.now_ns = sim_platform_now;
    machine->platform.wait = sim_platform_wait;
    machine->platform.relax = sim_platform_relax;
    running = machine;
}
