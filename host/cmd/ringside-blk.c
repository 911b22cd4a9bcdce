/*
 * ringside-blk: a virtio-blk device served over vhost-user ("Backend program conventions" of the vhost-user
 * document: foreground, --print-capabilities, SIGTERM ends it cleanly).
 *
 * The main thread's loop is the control loop: socket, messages, signals. Requests run on the iothreads.
 * Exit status: 0 after SIGTERM, SIGINT, `quit` or the end of --once; 1 if something failed; 2 for a command
 * line that makes no sense.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "host/aio/aio.h"
#include "host/cmd/blk_control.h"
#include "host/cmd/blk_sandbox.h"
#include "host/cmd/cmd_device.h"
#include "host/cmd/cmd_trace.h"
#include "host/vhost_user/server.h"

struct program_options {
    const char *socket_path;
    unsigned fd;
    bool fd_given, once, sandbox, handover, iommu;
    const char *trace, *control;
    bool print_capabilities, help, version;
};

struct program {
    struct program_options options;
    struct cmd_device_options device_options;
    struct loop *loop;
    struct loop_fd signals;
    struct cmd_device *device;
    struct cmd_trace *trace;
    struct control *control;
    struct vhost_user_server *server;
};

static int set_fd(void *values, const char *value, struct error *err)
{
    struct program_options *o = values;
    uint64_t n;
    if (cmd_parse_count(value, &n) < 0 || n > 1u << 20)
        return error_set(err, -EINVAL, "--fd=%s: not a descriptor's number", value);
    o->fd = (unsigned)n;
    o->fd_given = true;
    return 0;
}

#define AT(field) offsetof(struct program_options, field)

/* clang-format off */
static const struct cmd_option program_option_rows[] = {
    {"socket-path", "PATH", "where front ends connect: a Unix socket, made here", CMD_STRING, AT(socket_path)},
    {"fd", "N", "or: an open socket, listening or connected", CMD_CALL, .set = set_fd},
    {"once", NULL, "end when the first front end has left (default: wait for the next)", CMD_FLAG, AT(once)},
    {"handover", NULL, "for live migration on shared storage: the image is written out and unlocked while no ring is served, and locked and read anew before one is", CMD_FLAG, AT(handover)},
    {"iommu", NULL, "offer ACCESS_PLATFORM: the guest's addresses are translated by the front end's IOMMU", CMD_FLAG, AT(iommu)},
    {"control", "PATH", "a control socket, made here: JSON, a line a command ({\"command\": \"help\"} lists them)", CMD_STRING, AT(control)},
    {"trace", "FILE", "record what happens to every request, a line a step", CMD_STRING, AT(trace)},
    {"sandbox", "on|off", "give up what is not needed before the first byte of a front end is read (default on)", CMD_ON_OFF, AT(sandbox)},
    {"print-capabilities", NULL, "say in JSON what this back end can do", CMD_FLAG, AT(print_capabilities)},
    {"help", NULL, "say this", CMD_FLAG, AT(help)},
    {"version", NULL, "say the version", CMD_FLAG, AT(version)},
    {0}
};
/* clang-format on */

static int usage_error(const struct error *err)
{
    log_message("%s", err->text);
    return CMD_EXIT_USAGE;
}

static void print_help(const struct cmd_option_table *tables)
{
    printf("Usage: ringside-blk --socket-path=PATH [OPTION]... IMAGE\n"
           "Serves IMAGE as a virtio-blk device to QEMU or any other vhost-user front end.\n\n");
    cmd_options_help(stdout, tables);
}

static const char survive_default[] = "/dev/shm";

/* Exit status, or -1 to go on. */
static int parse_command_line(struct program *p, int argc, char **argv)
{
    struct error err = {0};
    struct cmd_option_table tables[] = {
        {program_option_rows, &p->options}, {cmd_device_option_rows, &p->device_options}, {NULL, NULL}};
    int first;

    /* "Other options and arguments should be ignored" */
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--print-capabilities") == 0) {
            puts(
                "{\n  \"type\": \"block\",\n  \"features\": [\n    \"read-only\",\n    \"blk-file\"\n  ]\n}");
            return CMD_EXIT_OK;
        }
    }
    p->options.sandbox = true;
    cmd_device_options_init(&p->device_options);
    p->device_options.open.survive_dir = survive_default;
    if (cmd_options_parse(argc, argv, tables, &first, &err) < 0)
        return usage_error(&err);
    if (p->options.help) {
        print_help(tables);
        return CMD_EXIT_OK;
    }
    if (p->options.version) {
        puts("ringside-blk " RINGSIDE_VERSION);
        return CMD_EXIT_OK;
    }
    if (first < argc && p->device_options.blk_file) {
        error_set(&err, -EINVAL, "%s: there is an image already (give one, by --blk-file or without a name)",
                  argv[first]);
        return usage_error(&err);
    }
    if (first < argc)
        p->device_options.blk_file = argv[first++];
    if (first < argc) {
        error_set(&err, -EINVAL, "%s: one image too many", argv[first]);
        return usage_error(&err);
    }
    if (!p->options.socket_path == !p->options.fd_given) {
        error_set(&err, -EINVAL, "%s",
                  p->options.socket_path ? "--socket-path and --fd exclude each other (leave one out)"
                                         : "where is the front end? (add --socket-path=PATH or --fd=N)");
        return usage_error(&err);
    }
    if (p->options.socket_path && p->options.control &&
        strcmp(p->options.socket_path, p->options.control) == 0) {
        error_set(&err, -EINVAL, "--control=%s: is the front ends' socket, too (choose another path for one)",
                  p->options.control);
        return usage_error(&err);
    }
    if (cmd_device_options_check(&p->device_options, &err) < 0 ||
        cmd_device_not_image(&p->device_options, "trace", p->options.trace, &err) < 0)
        return usage_error(&err);
    /* An image that is taken over later finds no file there: none is opened after the start. */
    const char **survive_dir = &p->device_options.open.survive_dir;
    if (p->options.handover && *survive_dir == survive_default)
        *survive_dir = NULL;
    if (p->options.handover && *survive_dir) {
        error_set(&err, -EINVAL, "--handover and --survive=%s exclude each other (leave one out)",
                  *survive_dir);
        return usage_error(&err);
    }
    if (p->options.handover && p->device_options.device.zoned.zone_sectors) {
        error_set(&err, -EINVAL,
                  "--handover and --zoned exclude each other (the states of zones stay behind)");
        return usage_error(&err);
    }
    return -1;
}

static void on_signal(void *opaque)
{
    struct program *p = opaque;
    struct signalfd_siginfo info;
    if (read(p->signals.fd, &info, sizeof info) == (ssize_t)sizeof info)
        vhost_user_server_stop(p->server);
}

static void on_all_stopped(void *opaque)
{
    struct program *p = opaque;
    loop_stop(p->loop);
}

static void on_server_stopped(void *opaque)
{
    struct program *p = opaque;
    if (p->control)
        control_stop(p->control, on_all_stopped, p);
    else
        on_all_stopped(p);
}

static void on_parked(void *opaque, unsigned queue, int error)
{
    struct program *p = opaque;
    if (p->control)
        control_event_parked(p->control, queue, error);
}

/* --handover: before the first ring is served, and after the last. */
static int coroutine_fn take_image(void *opaque, struct error *err)
{
    struct program *p = opaque;
    int ret = blk_co_activate(p->device->blk, err);
    return ret < 0 ? error_prefix(err, ret, "the image can't be taken over") : 0;
}

static void coroutine_fn hand_image_on(void *opaque)
{
    struct program *p = opaque;
    int ret = blk_co_inactivate(p->device->blk);
    if (ret < 0)
        log_message("%s: not everything could be written out: %s", p->device_options.blk_file,
                    strerror(-ret));
}

/* A front end, or a guest behind one, that does the same wrong thing over and over fills no log. */
#define LOG_LINES       100u
#define LOG_INTERVAL_NS 500000000u

/* Without --handover: what the guest has written is in the file when it is no longer served. */
static void coroutine_fn write_image_out(void *opaque)
{
    struct program *p = opaque;
    blk_co_drain_begin(p->device->blk);
    blk_drain_end(p->device->blk);
}

static void on_quit(void *opaque)
{
    struct program *p = opaque;
    vhost_user_server_stop(p->server);
}

/* SIGTERM and SIGINT arrive on the control loop; blocked before any thread is made. */
static int catch_signals(struct program *p, struct error *err)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (fd < 0)
        return error_set(err, -errno, "cannot catch signals: %s", strerror(errno));
    p->signals = (struct loop_fd){.fd = fd, .on_readable = on_signal, .opaque = p};
    return 0;
}

#define PATH_BYTES 256 /* a socket's path has at most 107 */

static const char *directory_of(const char *path, char directory[PATH_BYTES])
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return ".";
    snprintf(directory, PATH_BYTES, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    return directory;
}

/* Between opening the image and starting the iothreads. */
static int confine(void *opaque, struct error *err)
{
    struct program *p = opaque;
    const char *directories[4] = {NULL}, **end = directories;
    char socket_directory[PATH_BYTES], control_directory[PATH_BYTES];
    if (p->options.socket_path)
        *end++ = directory_of(p->options.socket_path, socket_directory);
    if (p->options.control)
        *end++ = directory_of(p->options.control, control_directory);
    if (p->device_options.open.survive_dir)
        *end++ = p->device_options.open.survive_dir;
    return p->options.sandbox ? sandbox_files(directories, err) : 0;
}

static int serve(struct program *p, struct error *err)
{
    int ret = catch_signals(p, err);
    if (ret < 0)
        return ret;
    if (p->options.trace) {
        p->trace = cmd_trace_open(p->options.trace, err);
        if (!p->trace)
            return -EIO;
    }
    p->device_options.open.inactive = p->options.handover;
    p->device_options.confine = confine;
    p->device_options.confine_opaque = p;
    p->device = cmd_device_start(&p->device_options, err);
    if (!p->device)
        return -EIO;
    if (p->trace)
        cmd_trace_record(p->trace, true);
    struct vhost_user_server_options options = {
        .device = p->device->virtio_blk,
        .num_queues = p->device_options.device.num_queues,
        .queue_size_max = p->device_options.device.queue_size_max,
        .queue_loops = p->device->queue_loops,
        .queue_loop_count = p->device->queue_loop_count,
        .iommu = p->options.iommu,
        .once = p->options.once,
        .co_take = p->options.handover ? take_image : NULL,
        .co_hand_on = p->options.handover ? hand_image_on : write_image_out,
        .parked = on_parked,
        .stopped = on_server_stopped,
        .opaque = p,
    };
    p->server = p->options.fd_given ? vhost_user_server_fd((int)p->options.fd, &options, err)
                                    : vhost_user_server_listen(p->options.socket_path, &options, err);
    if (!p->server)
        return -EIO;
    if (p->options.control) {
        struct control_options control = {
            .device = p->device, .server = p->server, .trace = p->trace, .quit = on_quit, .opaque = p};
        p->control = control_listen(p->options.control, err);
        if (!p->control)
            return -EIO;
        ret = control_start(p->control, &control, err);
        if (ret < 0)
            return ret;
    }
    ret = loop_fd_add(p->loop, &p->signals);
    if (ret < 0)
        return error_set(err, ret, "cannot wait for signals: %s", strerror(-ret));
    /* The server reads nothing before the loop runs. */
    if (p->options.sandbox) {
        ret = sandbox_calls(p->device_options.open.aio == AIO_IO_URING, err);
        if (ret < 0)
            return ret;
    }
    log_limit(LOG_LINES, LOG_INTERVAL_NS);
    loop_run(p->loop);
    log_unlimit();
    return 0;
}

/* Before anything is opened here, which would get the number of a descriptor that the starter did not hand
 * over. */
static int check_fd(const struct program_options *options, struct error *err)
{
    if (options->fd_given && fcntl((int)options->fd, F_GETFD) < 0)
        return error_set(err, -EBADF,
                         "descriptor %u: is not open (hand over a listening or connected socket)",
                         options->fd);
    return 0;
}

int main(int argc, char **argv)
{
    static struct program program;
    struct program *p = &program;
    struct error err = {0};

    log_set_program("ringside-blk");
    p->signals.fd = -1;
    int status = parse_command_line(p, argc, argv);
    if (status >= 0)
        return cmd_output_end(status);
    int ret = check_fd(&p->options, &err);
    if (ret == 0) {
        p->loop = loop_create("control", &err);
        ret = p->loop ? serve(p, &err) : -ENOMEM;
    }
    if (ret < 0)
        log_message("%s", err.text);
    laio_process_ends();
    loop_fd_remove(&p->signals);
    control_destroy(p->control);
    vhost_user_server_destroy(p->server);
    int closed = cmd_device_stop(p->device, &err);
    if (closed < 0)
        log_message("%s", err.text);
    int traced = cmd_trace_close(p->trace, &err);
    if (traced < 0)
        log_message("%s", err.text);
    if (p->signals.fd >= 0)
        close(p->signals.fd);
    if (p->loop)
        loop_destroy(p->loop);
    return ret < 0 || closed < 0 || traced < 0 ? CMD_EXIT_FAILED : CMD_EXIT_OK;
}
