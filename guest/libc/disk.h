/*
 * The guest's disks for its programs: starting a disk with a configuration, and finding it again by number or
 * by its name as a file ("/dev/vda" is disk 0). One CPU at a time may call this.
 */
#ifndef RINGSIDE_GUEST_DISK_H
#define RINGSIDE_GUEST_DISK_H

#include "guest/driver/vblk.h"

/* The configuration that the command line asks for: queues=N queue-size=N ring=split|packed indirect=N
 * event-idx=off polling. What isn't said is the driver's default. */
void disk_default_config(struct vblk_config *config);

/* Disk INDEX running with CONFIG (NULL: the default one). One that is running is stopped first if CONFIG is
 * not NULL, and its requests end with -VBLK_ENODEV. Returns 0 or the driver's error; *DISK stays valid until
 * the next disk_start or disk_stop of the same index. -VBLK_ENODEV also if there is no such disk. */
int disk_start(unsigned index, const struct vblk_config *config, struct vblk **disk);
void disk_stop(unsigned index);

unsigned disk_count(void);
const char *disk_where(unsigned index); /* "pci 00:04.0" */

/* "/dev/vdb" or "vdb" → 1; -1 if that names no disk. */
int disk_by_name(const char *name);

const char *disk_strerror(int result); /* for 0 and -VBLK_E... */

#endif
