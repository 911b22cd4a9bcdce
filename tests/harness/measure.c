/*
 * What the device costs: see measure.h. CPU time by the kernel's clocks for threads and processes, system
 * calls by the raw_syscalls tracepoint where the kernel lets us count it.
 */
#include "tests/harness/measure.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define CLIENTS_MAX 512

static pid_t clients[CLIENTS_MAX];
static unsigned client_count;

void measure_client_thread(void)
{
    unsigned at = __atomic_fetch_add(&client_count, 1, __ATOMIC_ACQ_REL);

    measure_is_client = true;
    if (at < CLIENTS_MAX)
        __atomic_store_n(&clients[at], (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
}

static bool is_client(pid_t tid)
{
    unsigned count = __atomic_load_n(&client_count, __ATOMIC_ACQUIRE);

    for (unsigned i = 0; i < count && i < CLIENTS_MAX; i++)
        if (__atomic_load_n(&clients[i], __ATOMIC_ACQUIRE) == tid)
            return true;
    return false;
}

/* The tracepoint's number, or -1. */
static int64_t tracepoint_id(void)
{
    static const char *const paths[] = {"/sys/kernel/tracing/events/raw_syscalls/sys_enter/id",
                                        "/sys/kernel/debug/tracing/events/raw_syscalls/sys_enter/id"};
    int64_t id = -1;

    for (unsigned i = 0; i < 2 && id < 0; i++) {
        char text[32] = "";
        int fd = open(paths[i], O_RDONLY | O_CLOEXEC);

        if (fd < 0)
            continue;
        if (read(fd, text, sizeof(text) - 1) > 0)
            id = strtol(text, NULL, 10);
        close(fd);
    }
    return id;
}

static int counter_open(pid_t tid, int64_t id)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_TRACEPOINT,
        .size = sizeof(attr),
        .config = (uint64_t)id,
        .inherit = 1,
    };

    if (id < 0)
        return -1;
    return (int)syscall(SYS_perf_event_open, &attr, tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
}

void measure_open(struct measure *measure, pid_t pid)
{
    int64_t id = tracepoint_id();
    char path[64];
    DIR *dir;
    struct dirent *entry;

    memset(measure, 0, sizeof(*measure));
    measure->pid = pid == getpid() ? 0 : pid;
    if (measure->pid)
        snprintf(path, sizeof(path), "/proc/%d/task", (int)measure->pid);
    else
        snprintf(path, sizeof(path), "/proc/self/task");
    dir = opendir(path);
    if (!dir)
        return;
    while ((entry = readdir(dir)) && measure->threads < MEASURE_THREADS_MAX) {
        pid_t tid = (pid_t)strtol(entry->d_name, NULL, 10);

        if (tid <= 0 || (!measure->pid && is_client(tid)))
            continue;
        measure->tid[measure->threads] = tid;
        measure->counter[measure->threads++] = counter_open(tid, id);
    }
    closedir(dir);
}

/* The kernel's numbering of CPU clocks: of another process, or of a thread of this one. */
static uint64_t cpu_clock_ns(pid_t id, bool thread)
{
    clockid_t clock = (clockid_t)((~(unsigned)id << 3) | (thread ? 4u : 0u) | 2u);
    struct timespec time;

    if (clock_gettime(clock, &time) < 0)
        return 0;
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

void measure_read(const struct measure *measure, struct measure_figures *figures)
{
    memset(figures, 0, sizeof(*figures));
    figures->has_cpu = true;
    figures->has_syscalls = measure->threads > 0;
    if (measure->pid) {
        figures->cpu_ns = cpu_clock_ns(measure->pid, false);
        figures->has_cpu = figures->cpu_ns > 0;
        figures->has_syscalls = figures->has_syscalls && figures->has_cpu;
    }
    for (unsigned i = 0; i < measure->threads; i++) {
        uint64_t count = 0;

        if (!measure->pid)
            figures->cpu_ns += cpu_clock_ns(measure->tid[i], true);
        if (measure->counter[i] < 0 || read(measure->counter[i], &count, sizeof(count)) != sizeof(count))
            figures->has_syscalls = false;
        figures->syscalls += count;
    }
    if (!measure->pid && measure_has_interposed) {
        figures->has_interposed = true;
        figures->allocations = __atomic_load_n(&measure_interposed.allocations, __ATOMIC_RELAXED);
        figures->locks = __atomic_load_n(&measure_interposed.locks, __ATOMIC_RELAXED);
    }
}

void measure_close(struct measure *measure)
{
    for (unsigned i = 0; i < measure->threads; i++)
        if (measure->counter[i] >= 0)
            close(measure->counter[i]);
    measure->threads = 0;
}

pid_t measure_peer_pid(int fd)
{
    struct ucred peer = {0};
    socklen_t length = sizeof(peer);

    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0 ? 0 : peer.pid;
}
