/*
 * The system calls that newlib asks for: the console as files 0, 1 and 2, disks as files, the clock, the
 * heap.
 *
 * newlib calls them by their plain names on x86_64 and with an underscore elsewhere; both are here.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/times.h>
#include <time.h>
#include <unistd.h>

#include "guest/libc/disk_file.h"
#include "guest/platform/machine.h"

#define TRANSFER_MAX             (1u << 30) /* what fits newlib's result type on every architecture */
#define ALIAS(name, underscored) extern __typeof__(name) underscored __attribute__((alias(#name)))

static bool is_console(int fd)
{
    return fd >= 0 && fd <= 2;
}

static int fail(int error)
{
    errno = error;
    return -1;
}

void _exit(int status)
{
    machine_exit(status == 0 ? 0 : status == 2 ? 2 : 1);
}

void *sbrk(ptrdiff_t increment)
{
    static char *start, *now, *end;
    if (!now) {
        machine_heap(&start, &end);
        now = start;
    }
    if (increment > end - now || increment < start - now)
        return (void *)(intptr_t)fail(ENOMEM);
    char *before = now;
    now += increment;
    return before;
}

int open(const char *path, int flags, ...)
{
    return disk_file_open(path, flags);
}

int close(int fd)
{
    return is_console(fd) ? 0 : disk_file_close(fd);
}

/* Waits for a character, then takes what is there. */
static _ssize_t console_read(char *buf, size_t len)
{
    size_t got = 0;
    int c = -1;
    while (len && (c = machine_console_read()) < 0)
        machine_wait(machine_now_ns() + 1000000);
    for (; c >= 0; c = got < len ? machine_console_read() : -1)
        buf[got++] = c == '\r' ? '\n' : (char)c;
    return (_ssize_t)got;
}

_READ_WRITE_RETURN_TYPE read(int fd, void *buf, size_t len)
{
    len = len < TRANSFER_MAX ? len : TRANSFER_MAX;
    return (int)(is_console(fd) ? console_read(buf, len) : disk_file_read(fd, buf, len));
}

_READ_WRITE_RETURN_TYPE write(int fd, const void *buf, size_t len)
{
    if (!is_console(fd))
        return (int)disk_file_write(fd, buf, len < TRANSFER_MAX ? len : TRANSFER_MAX);
    machine_console_write(buf, len);
    return (int)len;
}

off_t lseek(int fd, off_t offset, int whence)
{
    return is_console(fd) ? fail(ESPIPE) : disk_file_seek(fd, offset, whence);
}

int fsync(int fd)
{
    return is_console(fd) ? 0 : disk_file_sync(fd);
}

int fstat(int fd, struct stat *st)
{
    memset(st, 0, sizeof *st);
    if (is_console(fd)) {
        st->st_mode = S_IFCHR | 0600;
        st->st_blksize = 1024;
        return 0;
    }
    return disk_file_stat(fd, st);
}

int stat(const char *path, struct stat *st)
{
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return -1;
    int result = fstat(fd, st);
    close(fd);
    return result;
}

int isatty(int fd)
{
    return is_console(fd) ? 1 : fail(ENOTTY);
}

int clock_gettime(clockid_t clock, struct timespec *ts)
{
    uint64_t ns = machine_now_ns();
    ts->tv_sec = (time_t)(ns / 1000000000) + (clock == CLOCK_REALTIME ? (time_t)machine_start_seconds() : 0);
    ts->tv_nsec = (long)(ns % 1000000000);
    return 0;
}

int gettimeofday(struct timeval *tv, void *zone)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    *tv = (struct timeval){.tv_sec = ts.tv_sec, .tv_usec = ts.tv_nsec / 1000};
    return 0;
}

clock_t times(struct tms *tms)
{
    clock_t now = (clock_t)(machine_now_ns() / (1000000000 / CLOCKS_PER_SEC));
    *tms = (struct tms){.tms_utime = now};
    return now;
}

/* raise() and abort() come here: there is one process, and this is its end. */
int kill(int pid, int signal)
{
    machine_print("\nstopped by signal ");
    machine_print_hex("number", (uint64_t)signal);
    machine_print("\n");
    machine_exit(3);
}

int getpid(void)
{
    return 1;
}

int unlink(const char *path)
{
    return fail(EROFS);
}

int link(const char *from, const char *to)
{
    return fail(EROFS);
}

ALIAS(sbrk, _sbrk);
ALIAS(open, _open);
ALIAS(close, _close);
ALIAS(read, _read);
ALIAS(write, _write);
ALIAS(lseek, _lseek);
ALIAS(fstat, _fstat);
ALIAS(stat, _stat);
ALIAS(isatty, _isatty);
ALIAS(gettimeofday, _gettimeofday);
ALIAS(times, _times);
ALIAS(kill, _kill);
ALIAS(getpid, _getpid);
ALIAS(unlink, _unlink);
ALIAS(link, _link);
