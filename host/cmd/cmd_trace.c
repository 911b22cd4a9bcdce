/*
 * Trace points into a file (cmd_trace.h).
 */
#include "host/cmd/cmd_trace.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/runtime/co_lock.h"
#include "host/runtime/loop.h"
#include "host/runtime/trace.h"

#define BUFFER_BYTES (64u * 1024u)
#define LINE_BYTES   256u

struct buffer {
    struct spinlock guard; /* its thread against whoever turns recording off: hardly ever contended */
    size_t used;
    char text[BUFFER_BYTES];
};

struct cmd_trace {
    int fd;
    int error; /* the first one of writing; atomic */
    char *name;
    bool recording;                    /* atomic */
    struct buffer *buffers[LOOPS_MAX]; /* each filled by its loop's thread alone; atomic */
    struct buffer other;               /* for threads that have no loop */
};

static void buffer_flush(struct cmd_trace *t, struct buffer *b)
{
    size_t done = 0;
    while (done < b->used) {
        ssize_t n = write(t->fd, b->text + done, b->used - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            int none = 0;
            __atomic_compare_exchange_n(&t->error, &none, -errno, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
            break;
        }
        done += (size_t)n;
    }
    b->used = 0;
}

static void buffer_add(struct cmd_trace *t, struct buffer *b, const char *thread,
                       const struct trace_record *r)
{
    if (b->used > BUFFER_BYTES - LINE_BYTES)
        buffer_flush(t, b);
    const struct trace_point_info *info = &trace_point_info[r->point];
    int n = snprintf(b->text + b->used, LINE_BYTES,
                     "%" PRIu64 " %.32s %" PRIu64 " %u %.64s %" PRIu64 " %" PRIu64 "\n", r->time_ns, thread,
                     r->request, info->step, info->name, r->offset, r->bytes);
    if (n > 0)
        b->used += (size_t)n;
}

static void trace_to_file(void *opaque, const struct trace_record *r)
{
    struct cmd_trace *t = opaque;
    struct loop *loop = loop_current();
    struct buffer *b = &t->other;
    if (!__atomic_load_n(&t->recording, __ATOMIC_RELAXED))
        return;
    if (loop) {
        struct buffer **slot = &t->buffers[loop_index(loop)];
        b = __atomic_load_n(slot, __ATOMIC_RELAXED);
        if (!b) {
            b = calloc(1, sizeof *b);
            /* Partner: the acquire in cmd_trace_record. */
            __atomic_store_n(slot, b, __ATOMIC_RELEASE);
        }
        if (!b)
            return;
    }
    spin_lock(&b->guard);
    buffer_add(t, b, loop ? loop_name(loop) : "-", r);
    spin_unlock(&b->guard);
}

static void buffer_flush_locked(struct cmd_trace *t, struct buffer *b)
{
    spin_lock(&b->guard);
    buffer_flush(t, b);
    spin_unlock(&b->guard);
}

struct cmd_trace *cmd_trace_open(const char *file, struct error *err)
{
    static const char head[] = "# ringside trace 1\n";
    struct cmd_trace *t = calloc(1, sizeof *t);
    if (!t) {
        error_set(err, -ENOMEM, "no memory for a trace");
        return NULL;
    }
    t->fd = open(file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
    t->name = strdup(file);
    if (t->fd < 0 || !t->name || write(t->fd, head, sizeof head - 1) < 0) {
        error_set(err, -errno, "%s: cannot be written: %s", file, strerror(errno));
        if (t->fd >= 0)
            close(t->fd);
        free(t->name);
        free(t);
        return NULL;
    }
    trace_listen(trace_to_file, t);
    return t;
}

void cmd_trace_record(struct cmd_trace *t, bool on)
{
    __atomic_store_n(&t->recording, on, __ATOMIC_RELAXED);
    if (on)
        return;
    for (unsigned i = 0; i < LOOPS_MAX; i++) {
        struct buffer *b = __atomic_load_n(&t->buffers[i], __ATOMIC_ACQUIRE);
        if (b)
            buffer_flush_locked(t, b);
    }
    buffer_flush_locked(t, &t->other);
}

int cmd_trace_close(struct cmd_trace *t, struct error *err)
{
    if (!t)
        return 0;
    trace_listen(NULL, NULL);
    cmd_trace_record(t, false);
    int ret = t->error;
    if (close(t->fd) < 0 && ret == 0)
        ret = -errno;
    if (ret < 0)
        error_set(err, ret, "%s: the trace is not complete: %s", t->name, strerror(-ret));
    for (unsigned i = 0; i < LOOPS_MAX; i++)
        free(t->buffers[i]);
    free(t->name);
    free(t);
    return ret;
}
