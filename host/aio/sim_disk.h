/*
 * A simulated disk with files on it, for simulations and crash tests: host_files in memory, with latency,
 * reordering, injected faults, and a power loss that keeps of what was not flushed whatever it likes.
 *
 * The model of a crash: each sector of 512 bytes has a durable version and any number of later ones that were
 * written (or are just being written) and not flushed. A flush that succeeds makes durable all that had been
 * completed when it began; a write with FUA makes itself durable. At a power loss each sector ends up with
 * its durable version or one of the later ones: by itself, or together with the others of its request, or in
 * order of completion, as the seed decides. A file's size behaves in the same way.
 *
 * Transfers go through the very code that continues short transfers for real files (posix_file.c).
 *
 * Thread: the simulation's. Nothing here touches the real file system, except sim_disk_load and _save.
 */
#ifndef RINGSIDE_AIO_SIM_DISK_H
#define RINGSIDE_AIO_SIM_DISK_H

#include "host/aio/host_file.h"
#include "host/runtime/sim.h"

struct sim_disk;

/* Chances are in a million, for each request; the stream is SIM_DISK for time and SIM_FAULTS for faults. */
struct sim_disk_options {
    uint64_t latency_min_ns, latency_max_ns; /* of a transfer */
    uint64_t flush_min_ns, flush_max_ns;
    uint32_t late_ppm; /* takes late_ns instead */
    uint64_t late_ns;
    uint32_t read_error_ppm, write_error_ppm,
        flush_error_ppm;        /* -EIO; a failed write may have happened in part */
    uint32_t no_space_ppm;      /* -ENOSPC, for writes that extend a file */
    uint32_t short_ppm;         /* does only some of the sectors */
    uint32_t no_zeroes_ppm;     /* write_zeroes and discard say -ENOTSUP */
    bool flush_lies;            /* flushes succeed and do nothing: who tests with this disk must notice */
    uint32_t request_alignment; /* of direct files; 0: 512 */
};

/* OPTIONS NULL: 20..200 us, no faults. NULL if memory is short. */
struct sim_disk *sim_disk_create(struct sim *sim, const struct sim_disk_options *options);

/* Every file must be closed. */
void sim_disk_destroy(struct sim_disk *disk);

/* From now on host_file_open opens files of DISK (NULL: real ones again). */
void sim_disk_install(struct sim_disk *disk);

/* What can be changed while it runs. */
struct sim_disk_options *sim_disk_options(struct sim_disk *disk);

/* The power goes: what was not durable is lost or kept by the seed; requests in flight end with -EIO, and so
 * does everything that is still asked of files opened before. Outside of loops' turns. */
void sim_disk_power_loss(struct sim_disk *disk);

/* ---- from outside of the simulation: at once, durable, without faults ---- */

/* Creates or replaces. 0 or -ENOMEM. Not while the file is open. */
int sim_disk_write_file(struct sim_disk *disk, const char *name, const void *data, uint64_t bytes);
/* What a reader would see now. -ENOENT; bytes beyond the end are zeroes. */
int sim_disk_peek(struct sim_disk *disk, const char *name, uint64_t offset, void *data, uint64_t bytes);
int64_t sim_disk_file_size(struct sim_disk *disk, const char *name);
/* From and to a file of the real world, for qemu-img. Holes stay holes. 0 or a negative errno. */
int sim_disk_load(struct sim_disk *disk, const char *name, const char *path);
int sim_disk_save(struct sim_disk *disk, const char *name, const char *path);

struct sim_disk_stats {
    uint64_t reads, writes, flushes, zeroes, discards, faults, shorts, power_losses;
    uint64_t in_flight;
    uint64_t volatile_sectors; /* with a version that is not durable */
};

void sim_disk_stats(const struct sim_disk *disk, struct sim_disk_stats *stats);

#endif
