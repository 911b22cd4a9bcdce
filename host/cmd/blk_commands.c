/*
 * The commands of the control socket (blk_commands.h), and the figures of `stats`.
 */
#include "host/cmd/blk_commands.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "host/aio/aio.h"
#include "host/block/inject.h"
#include "host/block/log_writes.h"
#include "host/runtime/coroutine.h"

typedef json_t *coroutine_fn command_handler(struct control_options *c, const json_t *request,
                                             struct error *err);

struct command {
    const char *name;
    const char *arguments; /* as `help` shows them */
    const char *help;
    command_handler *handle;
};

static json_t *number(uint64_t n)
{
    return json_integer((json_int_t)n);
}

/* ---- stats ---- */

static const char *const op_names[BLK_OP_COUNT] = {[BLK_READ] = "read",
                                                   [BLK_WRITE] = "write",
                                                   [BLK_FLUSH] = "flush",
                                                   [BLK_DISCARD] = "discard",
                                                   [BLK_WRITE_ZEROES] = "write_zeroes"};

static json_t *stats_operation(const struct blk_op_stats *s)
{
    json_t *latency = json_array(), *o = json_object();
    for (unsigned i = 0; i < BLK_LATENCY_BUCKETS; i++) {
        if (s->latency[i])
            json_array_append_new(latency, json_pack("[I, I]", (json_int_t)blk_latency_bucket_ns(i),
                                                     (json_int_t)s->latency[i]));
    }
    json_object_set_new(o, "operations", number(s->operations));
    json_object_set_new(o, "bytes", number(s->bytes));
    json_object_set_new(o, "failed", number(s->failed));
    json_object_set_new(o, "invalid", number(s->invalid));
    json_object_set_new(o, "merged", number(s->merged));
    json_object_set_new(o, "total_ns", number(s->total_ns));
    json_object_set_new(o, "max_ns", number(s->max_ns));
    json_object_set_new(o, "latency_ns", latency);
    return o;
}

#define QUEUE_FIGURES(X) \
    X(kicks)             \
    X(interrupts)        \
    X(popped)            \
    X(completed)         \
    X(batches) X(merges) X(merged_requests) X(errors) X(unsupported) X(invalid) X(broken) X(stalls) X(parked)

static json_t *stats_queue(struct virtio_blk *device, unsigned index)
{
    struct virtio_blk_queue_stats s;
    json_t *o = json_object();
    virtio_blk_queue_stats(device, index, &s);
#define PUT(figure) json_object_set_new(o, #figure, number(s.figure));
    QUEUE_FIGURES(PUT)
#undef PUT
    return o;
}

static json_t *stats_loop(const struct loop *loop)
{
    struct loop_stats s;
    loop_stats(loop, &s);
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "name", loop_name(loop), "turns", (json_int_t)s.turns,
                     "sleeps", (json_int_t)s.sleeps, "polls_hit", (json_int_t)s.polls_hit, "polls_missed",
                     (json_int_t)s.polls_missed, "wakeups_remote", (json_int_t)s.wakeups_remote);
}

static json_t *hex(uint64_t n)
{
    return json_sprintf("0x%" PRIx64, n);
}

static json_t *coroutine_fn command_stats(struct control_options *c, const json_t *request, struct error *err)
{
    struct vhost_user_server_stats server;
    struct blk_op_stats ops[BLK_OP_COUNT];
    struct aio_stats aio;
    struct co_pool_stats co;
    struct blk *blk = c->device->blk;
    json_t *operations = json_object(), *queues = json_array(), *loops = json_array();

    vhost_user_server_stats(c->server, &server);
    blk_stats(blk, ops);
    aio_stats(&aio);
    co_pool_stats(&co);
    for (unsigned i = 0; i < BLK_OP_COUNT; i++)
        json_object_set_new(operations, op_names[i], stats_operation(&ops[i]));
    for (unsigned i = 0; i < c->device->options.device.num_queues; i++)
        json_array_append_new(queues, stats_queue(c->device->virtio_blk, i));
    for (unsigned i = 0; i < c->device->queue_loop_count; i++)
        json_array_append_new(loops, stats_loop(c->device->queue_loops[i]));
    uint64_t calls = aio.submit_syscalls + aio.getevents_syscalls;
    return json_pack(
        "{s:{s:I, s:b, s:b, s:I}, s:{s:b, s:I, s:I, s:I, s:I, s:i, s:o, s:o}, s:o, s:o, s:{s:I, s:I, s:I, "
        "s:I, "
        "s:f}, s:o, "
        "s:{s:I, s:I, s:I}}",
        "device", "capacity", (json_int_t)blk_length(blk), "read_only", blk_read_only(blk), "write_cache",
        blk_write_cache(blk), "in_flight", (json_int_t)blk_in_flight(blk), /* */
        "connection", "connected", server.connected, "connections", (json_int_t)server.connections,
        "broken_connections", (json_int_t)server.broken_connections, "messages", (json_int_t)server.messages,
        "translations", (json_int_t)server.translations, "rings_running", (int)server.rings_running,
        "features", hex(server.features), "protocol_features", hex(server.protocol_features), /* */
        "operations", operations, "queues", queues,                                           /* */
        "aio", "requests", (json_int_t)aio.requests, "submit_syscalls", (json_int_t)aio.submit_syscalls,
        "getevents_syscalls", (json_int_t)aio.getevents_syscalls, "eagain", (json_int_t)aio.eagain,
        "syscalls_per_request", aio.requests ? (double)calls / (double)aio.requests : 0.0, /* */
        "iothreads", loops,                                                                /* */
        "coroutines", "alive", (json_int_t)co.alive, "allocated", (json_int_t)co.allocated, "limit",
        (json_int_t)co.limit);
}

/* ---- doing something ---- */

static bool image_is_here(const struct control_options *c, struct error *err)
{
    if (blk_inactive(c->device->blk))
        error_set(err, -EBUSY,
                  "the image is handed over (--handover): it comes back when a front end starts a ring");
    return !err->text[0];
}

static json_t *coroutine_fn command_resize(struct control_options *c, const json_t *request,
                                           struct error *err)
{
    const json_t *value = json_object_get(request, "bytes");
    uint64_t bytes = 0;
    if (json_is_string(value) && cmd_parse_size(json_string_value(value), &bytes) == 0)
        ;
    else if (json_is_integer(value) && json_integer_value(value) > 0)
        bytes = (uint64_t)json_integer_value(value);
    else
        error_set(err, -EINVAL, "\"bytes\" is missing or no size (a number, or a string like \"10G\")");
    if (err->text[0])
        return NULL;
    if (bytes == 0 || bytes % c->device->options.device.logical_block_size || bytes > INT64_MAX) {
        error_set(err, -EINVAL, "%" PRIu64 " bytes are not whole blocks of %u", bytes,
                  c->device->options.device.logical_block_size);
        return NULL;
    }
    /* The zones are laid out once, and so is the file that keeps their states. */
    if (c->device->options.device.zoned.zone_sectors) {
        error_set(err, -ENOTSUP, "a zoned disk keeps its size");
        return NULL;
    }
    if (!image_is_here(c, err))
        return NULL;
    int ret = blk_co_resize(c->device->blk, bytes, err);
    if (ret < 0) {
        if (!err->text[0])
            error_set(err, ret, "the image can't be resized: %s", strerror(-ret));
        return NULL;
    }
    return json_pack("{s:I}", "capacity", (json_int_t)blk_length(c->device->blk));
}

static json_t *coroutine_fn command_drain(struct control_options *c, const json_t *request, struct error *err)
{
    blk_co_drain_begin(c->device->blk);
    blk_drain_end(c->device->blk);
    return json_object();
}

static json_t *coroutine_fn command_flush(struct control_options *c, const json_t *request, struct error *err)
{
    if (!image_is_here(c, err))
        return NULL;
    int ret = node_co_flush(blk_node(c->device->blk));
    if (ret < 0) {
        error_set(err, ret, "flush failed: %s", strerror(-ret));
        return NULL;
    }
    return json_object();
}

static json_t *coroutine_fn command_trace(struct control_options *c, const json_t *request, struct error *err)
{
    const json_t *on = json_object_get(request, "on");
    if (!c->trace) {
        error_set(err, -EINVAL, "no trace file is open (start with --trace=FILE; none is opened later)");
        return NULL;
    }
    if (!json_is_boolean(on)) {
        error_set(err, -EINVAL, "\"on\" is missing (true or false)");
        return NULL;
    }
    cmd_trace_record(c->trace, json_is_true(on));
    return json_object();
}

static json_t *coroutine_fn command_throttle(struct control_options *c, const json_t *request,
                                             struct error *err)
{
    const char *limits = json_string_value(json_object_get(request, "limits"));
    struct throttle_config config = {0};
    if (!limits) {
        error_set(err, -EINVAL, "\"limits\" is missing (a string like \"iops=1000,bps=10M\"; \"\" for none)");
        return NULL;
    }
    if (*limits && throttle_parse(limits, &config, err) < 0)
        return NULL;
    blk_set_throttle(c->device->blk, *limits ? &config : NULL);
    return json_object();
}

static json_t *coroutine_fn command_inject(struct control_options *c, const json_t *request,
                                           struct error *err)
{
    const char *rules = json_string_value(json_object_get(request, "rules"));
    if (!rules) {
        error_set(err, -EINVAL,
                  "\"rules\" is missing (a string like \"write,times=1\"; \"\" takes all away)");
        return NULL;
    }
    if (!*rules) {
        inject_clear(blk_node(c->device->blk));
        return json_object();
    }
    int ret = inject_add(blk_node(c->device->blk), rules, err);
    if (ret == -ENOENT)
        error_set(err, ret, "there is no inject filter (start with --inject=SPEC; --inject= alone will do)");
    else if (ret < 0 && !err->text[0])
        error_set(err, ret, "%s", strerror(-ret));
    return ret < 0 ? NULL : json_object();
}

static json_t *coroutine_fn command_mark(struct control_options *c, const json_t *request, struct error *err)
{
    const char *text = json_string_value(json_object_get(request, "text"));
    struct node *filter = log_writes_find(blk_node(c->device->blk));
    if (!text || !filter) {
        error_set(err, -EINVAL,
                  text ? "nothing is logged (start with --log-writes=FILE)" : "\"text\" is missing");
        return NULL;
    }
    log_writes_mark(filter, text, strlen(text));
    return json_object();
}

static json_t *coroutine_fn command_resume(struct control_options *c, const json_t *request,
                                           struct error *err)
{
    virtio_blk_resume(c->device->virtio_blk);
    return json_object();
}

static json_t *coroutine_fn command_quit(struct control_options *c, const json_t *request, struct error *err)
{
    c->quit(c->opaque);
    return json_object();
}

static command_handler command_help;

static const struct command commands[] = {
    {"help", "", "the commands", command_help},
    {"stats", "", "figures of device, connection, queues, operations (with latency histograms), threads",
     command_stats},
    {"resize", "\"bytes\": N", "a new capacity; the guest is told", command_resize},
    {"drain", "", "answers when all that was in flight is done", command_drain},
    {"flush", "", "answers when all that was written is durable", command_flush},
    {"throttle", "\"limits\": LIST", "new limits, as in --throttle; \"\" for none", command_throttle},
    {"resume", "", "tries the requests again that rerror or werror parked", command_resume},
    {"trace", "\"on\": true|false", "recording into the file of --trace goes on or stops", command_trace},
    {"inject", "\"rules\": SPEC", "more rules for the filter of --inject; \"\" takes all away",
     command_inject},
    {"mark", "\"text\": TEXT", "a mark in the file of --log-writes", command_mark},
    {"quit", "", "finishes what is in flight and ends", command_quit},
};

static json_t *coroutine_fn command_help(struct control_options *c, const json_t *request, struct error *err)
{
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "command", commands[i].name, "arguments",
                                              commands[i].arguments, "help", commands[i].help));
    return list;
}

json_t *coroutine_fn control_co_command(struct control_options *c, const json_t *request, struct error *err)
{
    const char *name = json_string_value(json_object_get(request, "command"));
    for (size_t i = 0; name && i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(commands[i].name, name) == 0)
            return commands[i].handle(c, request, err);
    }
    error_set(err, -EINVAL, "%s: no such command ({\"command\": \"help\"} lists them)",
              name ? name : "(none)");
    return NULL;
}
