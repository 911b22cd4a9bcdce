/*
 * What ringside-blk gives up before it reads the first byte of a peer: new privileges, the file system, and
 * every system call that serving a disk does not need.
 *
 * The agreed rule for files: none is opened after this. What is open stays usable; sockets named here may be
 * made and removed.
 */
#ifndef RINGSIDE_BLK_SANDBOX_H
#define RINGSIDE_BLK_SANDBOX_H

#include <stdbool.h>

#include "host/runtime/error.h"

/* No new privileges, and landlock where the kernel has it: of the file system only the directories of
 * DIRECTORIES (NULL-terminated) are left, to make sockets and remove files in. Holds for the calling thread
 * and those that it starts. Before the iothreads are made. 0 or a negative errno with ERR. */
int sandbox_files(const char *const *directories, struct error *err);

/* The filter of system calls, for all threads; those of IO_URING are left if the image needs them. When
 * everything is set up. 0 or a negative errno with ERR. */
int sandbox_calls(bool io_uring, struct error *err);

#endif
