/*
 * The guard of shared memory (sigbus_guard.h). The table is read in the signal handler: a slot is filled
 * before its base is published, and emptied by taking the base away.
 */
#include "host/device/sigbus_guard.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>

#define SLOTS 4096

static struct slot {
    uintptr_t base; /* 0: free; 1: being filled */
    size_t bytes;
    uint32_t *broken;
} slots[SLOTS];

static uint32_t slots_used; /* slots from here on were never used; grows only */

/* Async-signal-safe: loads, stores, and mmap, which is a bare system call on Linux. */
static void on_sigbus(int signal_number, siginfo_t *info, void *context)
{
    (void)context;
    uintptr_t addr = (uintptr_t)info->si_addr;
    int saved_errno = errno;
    /* Partner of both acquires: the release in sigbus_guard_add. */
    uint32_t used = __atomic_load_n(&slots_used, __ATOMIC_ACQUIRE);
    for (uint32_t i = 0; i < used; i++) {
        struct slot *s = &slots[i];
        uintptr_t base = __atomic_load_n(&s->base, __ATOMIC_ACQUIRE);
        if (base <= 1 || addr < base || addr - base >= s->bytes)
            continue;
        /* All of it, not the page alone: huge pages can't be replaced in part. */
        if (mmap((void *)base, s->bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
            break;
        /* Partner: whoever looks at the flag before believing what it read. */
        __atomic_store_n(s->broken, 1, __ATOMIC_RELEASE);
        errno = saved_errno;
        return;
    }
    /* Not ours: the access is repeated, and this time it kills. */
    signal(signal_number, SIG_DFL);
    errno = saved_errno;
}

int sigbus_guard_install(void)
{
    struct sigaction action = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, NULL) < 0 ? -errno : 0;
}

int sigbus_guard_add(void *base, size_t bytes, uint32_t *broken)
{
    for (uint32_t i = 0; i < SLOTS; i++) {
        struct slot *s = &slots[i];
        uintptr_t empty = 0;
        if (!__atomic_compare_exchange_n(&s->base, &empty, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            continue;
        s->bytes = bytes;
        s->broken = broken;
        /* Partner: the acquire in on_sigbus. */
        __atomic_store_n(&s->base, (uintptr_t)base, __ATOMIC_RELEASE);
        uint32_t used = __atomic_load_n(&slots_used, __ATOMIC_RELAXED);
        while (used < i + 1 && !__atomic_compare_exchange_n(&slots_used, &used, i + 1, true, __ATOMIC_RELEASE,
                                                            __ATOMIC_RELAXED)) {
        }
        return 0;
    }
    return -ENOSPC;
}

void sigbus_guard_remove(void *base)
{
    for (uint32_t i = 0; i < SLOTS; i++) {
        if (__atomic_load_n(&slots[i].base, __ATOMIC_RELAXED) == (uintptr_t)base) {
            __atomic_store_n(&slots[i].base, 0, __ATOMIC_RELEASE);
            return;
        }
    }
}
