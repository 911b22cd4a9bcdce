/*
 * What the device costs: CPU time and system calls of its threads, and (in this process) heap allocations and
 * locks. The client's own threads are told apart by measure_client_thread.
 */
#ifndef RINGSIDE_HARNESS_MEASURE_H
#define RINGSIDE_HARNESS_MEASURE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define MEASURE_THREADS_MAX 160

struct measure {
    pid_t pid; /* 0: this process */
    unsigned threads;
    pid_t tid[MEASURE_THREADS_MAX];
    int counter[MEASURE_THREADS_MAX]; /* of system calls, or -1 */
};

struct measure_figures {
    uint64_t cpu_ns;
    bool has_cpu; /* the process that is measured is still there */
    bool has_syscalls, has_interposed;
    uint64_t syscalls, allocations, locks;
};

/* The calling thread is no part of the device. */
void measure_client_thread(void);

/* PID 0: our own device. Threads made later belong to the thread that made them. */
void measure_open(struct measure *measure, pid_t pid);
void measure_read(const struct measure *measure, struct measure_figures *figures);
void measure_close(struct measure *measure);

/* The process that listened at the socket that FD is connected to; 0 if that can't be found out. */
pid_t measure_peer_pid(int fd);

/* Set by interpose.c: events of threads that are not the client's, in this process. */
struct measure_interposed {
    uint64_t allocations, locks;
};
extern struct measure_interposed measure_interposed;
extern const bool measure_has_interposed;
extern __thread bool measure_is_client;

#endif
