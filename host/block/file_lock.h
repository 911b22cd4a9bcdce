/*
 * Image locks in the form that QEMU uses on files, so that a program of ours and one of QEMU's keep out of
 * each other's way. Private to host/block. May block for a moment; any thread.
 */
#ifndef RINGSIDE_BLOCK_FILE_LOCK_H
#define RINGSIDE_BLOCK_FILE_LOCK_H

#include <stdbool.h>

#include "host/aio/host_file.h"

/* Locks HOST for reading, or for writing too; nobody else may write or resize meanwhile, unless FORCE_SHARE,
 * which is for readers. Held until the file is closed. -EAGAIN with ERR: somebody else uses it in a way that
 * does not go with this. A file system without locks is used without. */
int file_lock(struct host_file *host, bool read_only, bool force_share, struct error *err);

/* Gives all of them up. */
void file_unlock(struct host_file *host);

#endif
