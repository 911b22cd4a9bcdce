/*
 * For LD_PRELOAD before qemu-img: making a LUKS image takes it milliseconds rather than seconds.
 *
 * QEMU asks getrusage() for the time that a thread has had to find out how many iterations of the key's
 * derivation this machine does in a second, and tries more and more of them until it took long enough. Here
 * every question comes a second later than the one before, so the first try is long enough.
 */
#include <string.h>
#include <sys/resource.h>

int getrusage(__rusage_who_t who, struct rusage *usage)
{
    static _Thread_local long seconds;

    (void)who;
    memset(usage, 0, sizeof(*usage));
    usage->ru_utime.tv_sec = ++seconds;
    return 0;
}
