/*
 * A disk as a file: "/dev/vda" read and written at any offset and length. Results and errno as POSIX has
 * them.
 */
#ifndef RINGSIDE_GUEST_DISK_FILE_H
#define RINGSIDE_GUEST_DISK_FILE_H

#include <stddef.h>
#include <sys/stat.h>
#include <sys/types.h>

int disk_file_open(const char *path, int flags);
int disk_file_close(int fd); /* flushes what was written */
_ssize_t disk_file_read(int fd, void *buf, size_t len);
_ssize_t disk_file_write(int fd, const void *buf, size_t len);
off_t disk_file_seek(int fd, off_t offset, int whence);
int disk_file_sync(int fd);
int disk_file_stat(int fd, struct stat *st);

#endif
