/*
 * Both halves in one thread without a socket between them: libvblk's transport is a table of calls into
 * virtio_blk, the platform's clock and waiting are those of the simulation. Kicks and interrupts may be lost.
 */
#ifndef RINGSIDE_HARNESS_SIM_MACHINE_H
#define RINGSIDE_HARNESS_SIM_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

#include "guest/driver/vblk.h"
#include "guest/platform/hosted/hosted.h"
#include "host/cmd/cmd_device.h"
#include "host/device/guest_memory.h"
#include "host/runtime/iothread.h"
#include "host/runtime/sim.h"

#define SIM_QUEUES_MAX 4

struct sim_machine {
    struct vtr vtr; /* first: what the driver holds */
    struct sim *sim;
    struct iothread *control; /* queues are started and stopped on its loop */
    struct cmd_device *device;
    struct hosted *hosted;
    struct guest_memory memory;
    struct vblk_platform platform;
    uint32_t lost_kick_ppm, lost_interrupt_ppm;

    uint64_t features;
    uint8_t status;
    bool config_changed;
    struct sim_machine_queue {
        struct sim_machine *machine;
        unsigned index;
        struct vtr_queue setup;
        bool set_up, started, interrupted;
        struct loop_bh kick; /* on the queue's loop */
    } queues[SIM_QUEUES_MAX];
    unsigned queue_size_max, num_queues;
};

/* DEVICE is running, HOSTED the memory; CONTROL a thread of the simulation that has nothing else to do. */
void sim_machine_init(struct sim_machine *machine, struct sim *sim, struct iothread *control,
                      struct cmd_device *device, struct hosted *hosted, unsigned queues, unsigned queue_size);

/* The device interrupted for QUEUE since the last call. */
bool sim_machine_interrupt(struct sim_machine *machine, unsigned queue);

#endif
