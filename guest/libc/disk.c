/*
 * Disks for programs. Each running disk has one piece of malloc'ed memory, as large as the driver says.
 */
#include "guest/libc/disk.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "guest/libc/arguments.h"
#include "guest/platform/machine.h"

#define DISKS_MAX 16

static struct {
    struct vblk *vblk;
    void *memory;
} disks[DISKS_MAX];

void disk_default_config(struct vblk_config *config)
{
    memset(config, 0, sizeof *config);
    config->num_queues = (unsigned)argument_number("queues", 1);
    config->queue_size = (unsigned)argument_number("queue-size", 0);
    config->indirect_segs = (unsigned)argument_number("indirect", 64);
    config->deadline_ns = argument_number("deadline-ms", 30000) * 1000000;
    config->poll_only = argument_is("polling", "on");
    if (!argument_is("ring", "packed"))
        config->refuse_features |= VIRTIO_BIT(VIRTIO_F_RING_PACKED);
    if (argument_is("event-idx", "off"))
        config->refuse_features |= VIRTIO_BIT(VIRTIO_F_EVENT_IDX);
}

unsigned disk_count(void)
{
    unsigned count = machine_disk_count();
    return count < DISKS_MAX ? count : DISKS_MAX;
}

const char *disk_where(unsigned index)
{
    const struct machine_disk *machine = machine_disk(index);
    return machine ? machine->where : "";
}

static void on_wake(void *opaque)
{
    vblk_interrupt(opaque);
}

void disk_stop(unsigned index)
{
    if (index >= DISKS_MAX || !disks[index].vblk)
        return;
    vblk_stop(disks[index].vblk);
    machine_on_wake(index, NULL, NULL);
    disks[index].vblk = NULL;
    free(disks[index].memory);
    disks[index].memory = NULL;
}

int disk_start(unsigned index, const struct vblk_config *config, struct vblk **disk)
{
    if (index >= disk_count())
        return -VBLK_ENODEV;
    if (config)
        disk_stop(index);
    if (!disks[index].vblk) {
        struct vblk_config defaults;
        if (!config) {
            disk_default_config(&defaults);
            config = &defaults;
        }
        const struct machine_disk *machine = machine_disk(index);
        size_t bytes = vblk_memory_bytes(config);
        void *memory = memalign(64, bytes);
        if (!memory)
            return -VBLK_ENOMEM;
        int result =
            vblk_start(&disks[index].vblk, memory, bytes, machine->transport, machine->platform, config);
        if (result != 0) {
            disks[index].vblk = NULL;
            free(memory);
            return result;
        }
        disks[index].memory = memory;
        machine_on_wake(index, on_wake, disks[index].vblk);
    }
    *disk = disks[index].vblk;
    return 0;
}

int disk_by_name(const char *name)
{
    if (strncmp(name, "/dev/", 5) == 0)
        name += 5;
    if (name[0] != 'v' || name[1] != 'd' || name[2] < 'a' || name[2] > 'z' || name[3] != '\0')
        return -1;
    unsigned index = (unsigned)(name[2] - 'a');
    return index < disk_count() ? (int)index : -1;
}

const char *disk_strerror(int result)
{
    static const struct {
        int code;
        const char *text;
    } table[] = {
        {0, "done"},
        {VBLK_EIO, "input/output error"},
        {VBLK_EAGAIN, "no room now"},
        {VBLK_ENOMEM, "not enough memory"},
        {VBLK_EBUSY, "busy"},
        {VBLK_ENODEV, "no such disk, or it has failed"},
        {VBLK_EINVAL, "invalid request"},
        {VBLK_EROFS, "the disk is read-only"},
        {VBLK_ERANGE, "beyond the disk's end"},
        {VBLK_ENOTSUP, "not supported by the device"},
        {VBLK_ETIMEDOUT, "timed out"},
        {VBLK_ENOTRECOVERABLE, "the device is stuck"},
    };
    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++) {
        if (table[i].code == -result)
            return table[i].text;
    }
    return "unknown error";
}
