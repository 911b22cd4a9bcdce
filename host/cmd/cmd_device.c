/*
 * Options of the device, and the device made from them (cmd_device.h).
 */
#include "host/cmd/cmd_device.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/runtime/iothread.h"

static const char *const format_names[] = {"qcow2", "raw", "null", NULL};
static const char *const aio_names[] = {"default", "native", "io_uring", "threads", NULL};
static const char *const cache_names[] = {"none", "writeback", "unsafe", NULL};
static const char *const discard_names[] = {"unmap", "ignore", NULL};
static const char *const detect_zeroes_names[] = {"off", "on", "unmap", NULL};
static const char *const null_reads_names[] = {"zeroes", "nothing", NULL};
static const char *const policy_names[] = {"report", "ignore", "stop", "enospc", NULL};

static int set_format(void *values, const char *value, struct error *err)
{
    struct cmd_device_options *o = values;
    for (unsigned i = 0; format_names[i]; i++) {
        if (strcmp(format_names[i], value) == 0) {
            o->open.format = format_names[i];
            return 0;
        }
    }
    return error_set(err, -EINVAL, "--format=%s: no such format (choose one of qcow2, raw, null)", value);
}

static int set_backing(void *values, const char *value, struct error *err)
{
    struct cmd_device_options *o = values;
    struct stat st;
    o->open.backing_dir = NULL;
    if (strcmp(value, "deny") == 0) {
        o->open.backing = BACKING_DENY;
    } else if (strcmp(value, "same-dir") == 0) {
        o->open.backing = BACKING_SAME_DIR;
    } else {
        o->open.backing = BACKING_DIR;
        o->open.backing_dir = value;
        if (stat(value, &st) < 0 || !S_ISDIR(st.st_mode))
            return error_set(err, -EINVAL, "--backing=%s: neither deny nor same-dir nor a directory", value);
    }
    return 0;
}

static int set_survive(void *values, const char *value, struct error *err)
{
    struct cmd_device_options *o = values;
    struct stat st;
    o->open.survive_dir = strcmp(value, "off") == 0 ? NULL : value;
    if (o->open.survive_dir && (stat(value, &st) < 0 || !S_ISDIR(st.st_mode)))
        return error_set(err, -EINVAL, "--survive=%s: neither a directory nor off", value);
    return 0;
}

static int set_queue_size(void *values, const char *value, struct error *err)
{
    struct cmd_device_options *o = values;
    uint64_t n;
    if (cmd_parse_count(value, &n) < 0 || n < 2 || n > VIRTQUEUE_MAX_SIZE || (n & (n - 1)))
        return error_set(err, -EINVAL, "--queue-size=%s: not a power of two from 2 to %u", value,
                         VIRTQUEUE_MAX_SIZE);
    o->device.queue_size_max = (unsigned)n;
    return 0;
}

static int set_block_size(uint32_t *to, const char *name, const char *value, uint32_t max, struct error *err)
{
    uint64_t n;
    if (cmd_parse_size(value, &n) < 0 || n < 512 || n > max || (n & (n - 1)))
        return error_set(err, -EINVAL, "--%s=%s: not a power of two from 512 to %u", name, value, max);
    *to = (uint32_t)n;
    return 0;
}

#define LOGICAL_BLOCK_MAX  (64u << 10) /* what virtio_blk_create takes */
#define PHYSICAL_BLOCK_MAX (2u << 20)

static int set_logical(void *values, const char *value, struct error *err)
{
    return set_block_size(&((struct cmd_device_options *)values)->device.logical_block_size,
                          "logical-block-size", value, LOGICAL_BLOCK_MAX, err);
}

static int set_physical(void *values, const char *value, struct error *err)
{
    return set_block_size(&((struct cmd_device_options *)values)->device.physical_block_size,
                          "physical-block-size", value, PHYSICAL_BLOCK_MAX, err);
}

static int set_serial(void *values, const char *value, struct error *err)
{
    struct cmd_device_options *o = values;
    if (strlen(value) > VIRTIO_BLK_ID_BYTES)
        return error_set(err, -EINVAL, "--serial=%s: longer than %u bytes", value, VIRTIO_BLK_ID_BYTES);
    strcpy(o->device.serial, value);
    return 0;
}

/* Empty: the filter alone, for the rules that the control socket will bring. */
static int set_inject(void *values, const char *value, struct error *err)
{
    struct cmd_device_options *o = values;
    o->open.inject = value;
    return 0;
}

static int set_audit(void *values, const char *value, struct error *err)
{
    struct cmd_device_options *o = values;
    o->audit = true;
    o->audit_file = value;
    return 0;
}

static int set_throttle(void *values, const char *value, struct error *err)
{
    struct cmd_device_options *o = values;
    int ret = throttle_parse(value, &o->throttle, err);
    return ret < 0 ? error_prefix(err, -EINVAL, "--throttle=%s", value) : 0;
}

static int set_iothread_cpus(void *values, const char *value, struct error *err)
{
    return cmd_cpus_parse(&((struct cmd_device_options *)values)->iothread_cpus, "iothread-cpus", value, err);
}

/* COUNT,MICROSECONDS */
static int set_coalesce(void *values, const char *value, struct error *err)
{
    struct cmd_device_options *o = values;
    char first[24];
    uint64_t count, us;
    size_t len = strcspn(value, ",");
    snprintf(first, sizeof first, "%.*s", (int)len, value);
    if (len >= sizeof first || !value[len] || cmd_parse_count(first, &count) < 0 ||
        cmd_parse_count(value + len + 1, &us) < 0 || count > VIRTQUEUE_MAX_SIZE || us > 1000000)
        return error_set(err, -EINVAL, "--coalesce=%s: not COUNT,MICROSECONDS (8,50 say)", value);
    o->device.coalesce_count = (unsigned)count;
    o->device.coalesce_ns = us * 1000;
    return 0;
}

/* PRE_EOL,A,B: the three estimates of GET_LIFETIME (virtio 5.2.6) */
static int set_lifetime(void *values, const char *value, struct error *err)
{
    struct cmd_device_options *o = values;
    unsigned pre_eol, a, b;
    int end = 0;
    if (sscanf(value, "%2u,%2u,%2u%n", &pre_eol, &a, &b, &end) != 3 || value[end] || pre_eol > 3 || a > 11 ||
        b > 11)
        return error_set(err, -EINVAL, "--lifetime=%s: not PRE_EOL,A,B (0 to 3, and twice 0 to 11)", value);
    o->device.lifetime = true;
    o->device.lifetime_pre_eol = (uint16_t)pre_eol;
    o->device.lifetime_type_a = (uint16_t)a;
    o->device.lifetime_type_b = (uint16_t)b;
    return 0;
}

static int set_sectors(uint32_t *sectors, uint64_t bytes)
{
    if (bytes == 0 || bytes % VIRTIO_BLK_SECTOR_BYTES || bytes / VIRTIO_BLK_SECTOR_BYTES > UINT32_MAX)
        return -EINVAL;
    *sectors = (uint32_t)(bytes / VIRTIO_BLK_SECTOR_BYTES);
    return 0;
}

/* zone-size=BYTES[,conventional=N][,max-open=N][,max-active=N][,max-append=BYTES][,state=FILE] */
static int set_zoned(void *values, const char *value, struct error *err)
{
    struct cmd_device_options *o = values;
    struct virtio_blk_zoned_options *z = &o->device.zoned;
    char *keys = strdup(value), *rest = keys, *key;
    int ret = keys ? 0 : -ENOMEM;
    while (ret == 0 && (key = strsep(&rest, ",")) != NULL) {
        char *text = strchr(key, '=');
        uint64_t n = 0;
        if (!text) {
            ret = -EINVAL;
            break;
        }
        *text++ = '\0';
        bool number = strcmp(key, "state") != 0;
        if (number && cmd_parse_size(text, &n) < 0)
            ret = -EINVAL;
        else if (strcmp(key, "zone-size") == 0)
            ret = set_sectors(&z->zone_sectors, n);
        else if (strcmp(key, "max-append") == 0)
            ret = set_sectors(&z->max_append_sectors, n);
        else if (number && n > UINT32_MAX)
            ret = -EINVAL;
        else if (strcmp(key, "conventional") == 0)
            z->conventional_zones = (uint32_t)n;
        else if (strcmp(key, "max-open") == 0)
            z->max_open_zones = (uint32_t)n;
        else if (strcmp(key, "max-active") == 0)
            z->max_active_zones = (uint32_t)n;
        else if (!number && *text)
            z->state_path = value + (text - keys); /* the rest of the list: a name may have commas */
        else
            ret = -EINVAL;
        if (!number)
            break;
    }
    free(keys);
    if (ret == 0 && z->zone_sectors == 0)
        ret = -EINVAL;
    return ret < 0 ? error_set(err, -EINVAL,
                               "--zoned=%s: not zone-size=BYTES[,conventional=N][,max-open=N][,max-active=N]"
                               "[,max-append=BYTES][,state=FILE]",
                               value)
                   : 0;
}

static int set_policy(enum virtio_blk_policy *to, const char *name, const char *value, bool write,
                      struct error *err)
{
    for (unsigned i = 0; policy_names[i]; i++) {
        if (strcmp(policy_names[i], value) == 0 && (write || i != VIRTIO_BLK_ENOSPC)) {
            *to = (enum virtio_blk_policy)i;
            return 0;
        }
    }
    return error_set(err, -EINVAL, "--%s=%s: no such policy (choose one of report, ignore, stop%s)", name,
                     value, write ? ", enospc" : "");
}

static int set_rerror(void *values, const char *value, struct error *err)
{
    return set_policy(&((struct cmd_device_options *)values)->device.read_error, "rerror", value, false, err);
}

static int set_werror(void *values, const char *value, struct error *err)
{
    return set_policy(&((struct cmd_device_options *)values)->device.write_error, "werror", value, true, err);
}

#define AT(field) offsetof(struct cmd_device_options, field)

/* clang-format off */
const struct cmd_option cmd_device_option_rows[] = {
    {"blk-file", "PATH", "the image (or give it as the only argument without a name)", CMD_STRING, AT(blk_file)},
    {"format", "FORMAT", "qcow2, raw or null (default: qcow2 by its magic, else raw, safely); null needs no file: reads give zeroes",
     CMD_CALL, .set = set_format},
    {"size", "BYTES", "capacity of a null image", CMD_SIZE, AT(size), 512, 1ull << 60},
    {"null-reads", "WHAT", "zeroes (default), or nothing: reads of a null image leave the guest's buffers as they are", CMD_CHOICE, AT(null_reads), .choices = null_reads_names},
    {"read-only", NULL, "refuse writes", CMD_FLAG, AT(read_only)},
    {"aio", "KIND", "native (linux-aio), io_uring or threads (default: native where the file takes O_DIRECT, else threads)",
     CMD_CHOICE, AT(open.aio), .choices = aio_names},
    {"cache", "MODE", "none (O_DIRECT, default), writeback (host page cache) or unsafe (and flushes are dropped)",
     CMD_CHOICE, AT(open.cache), .choices = cache_names},
    {"num-queues", "N", "virtqueues, 1 to 64 (default 1)", CMD_UNSIGNED, AT(device.num_queues), 1, VIRTIO_BLK_QUEUES_MAX},
    {"queue-size", "N", "largest size of a virtqueue, a power of two, 2 to 32768 (default 256)", CMD_CALL, .set = set_queue_size},
    {"iothreads", "N", "threads, 1 to 64 (default 1); queue q is served by thread q mod N", CMD_UNSIGNED, AT(iothreads), 1, VIRTIO_BLK_QUEUES_MAX},
    {"iothread-cpus", "LIST", "hold thread i on the ith of these CPUs: 0,2,4-7 (default: where the kernel likes)", CMD_CALL, .set = set_iothread_cpus},
    {"poll-max-ns", "N", "ceiling of adaptive polling in nanoseconds (default 32768); 0 turns it off", CMD_COUNT64, AT(poll_max_ns), 0, 1000000000},
    {"request-merging", "on|off", "make one request of those that touch on disk (default on)", CMD_ON_OFF, AT(device.request_merging)},
    {"serial", "S", "the disk's serial, at most 20 bytes", CMD_CALL, .set = set_serial},
    {"logical-block-size", "B", "as the guest sees it, a power of two, 512 to 65536 (default 512)", CMD_CALL, .set = set_logical},
    {"physical-block-size", "B", "as the guest sees it, a power of two, up to 2M (default: the logical one)", CMD_CALL, .set = set_physical},
    {"discard", "MODE", "unmap (default) or ignore", CMD_CHOICE, AT(ignore_discard), .choices = discard_names},
    {"detect-zeroes", "MODE", "off (default), on (zeroes are stored as such) or unmap (and may be deallocated)", CMD_CHOICE, AT(open.detect_zeroes), .choices = detect_zeroes_names},
    {"rerror", "POLICY", "when a read fails: report (default), ignore or stop (park it until `resume` on the control socket)", CMD_CALL, .set = set_rerror},
    {"werror", "POLICY", "when a write fails: report (default), ignore, stop, or enospc (stop when space is short, else report)", CMD_CALL, .set = set_werror},
    {"secure-erase", "on|off", "offer SECURE_ERASE: zeroes are written, and no copy of the old bytes is kept by the device (default off)", CMD_ON_OFF, AT(device.secure_erase)},
    {"lifetime", "P,A,B", "offer GET_LIFETIME with these answers: pre-EOL state and two estimates", CMD_CALL, .set = set_lifetime},
    {"zoned", "LIST", "be a host-managed zoned disk: zone-size=BYTES, and if wanted conventional=N, max-open=N, max-active=N, max-append=BYTES, and last state=FILE, which keeps the zones over a restart", CMD_CALL, .set = set_zoned},
    {"throttle", "LIST", "limits: iops=N,bps=N, each also -read, -write, -max (rate of bursts) and -max-length (seconds of them); iops-size=BYTES: a larger request counts as several", CMD_CALL, .set = set_throttle},
    {"coalesce", "N,US", "put an interrupt off until N completions wait for it or US microseconds have gone by", CMD_CALL, .set = set_coalesce},
    {"backing", "POLICY", "which backing and data files an image may name: deny, same-dir (default) or a directory", CMD_CALL, .set = set_backing},
    {"secret-file", "FILE", "file with the passphrase of an encrypted image", CMD_STRING, AT(open.secret_file)},
    {"audit", "[=FILE]", "judge the driver: a line for each rule of the virtio specification that it breaks, to FILE or stderr", CMD_CALL, .set = set_audit},
    {"log-writes", "FILE", "record every write and flush of the image file, for crash tests", CMD_STRING, AT(open.log_writes)},
    {"inject", "SPEC", "make requests to the image file fail, be short or late: OP[,KEY=VALUE]...[;...], or nothing yet", CMD_CALL, .set = set_inject},
    {"survive", "DIR|off", "keep a qcow2 image's unwritten metadata in memory that outlives a killed process, a file in DIR (ringside-blk: default /dev/shm)", CMD_CALL, .set = set_survive},
    {"lock", "on|off", "lock the image as QEMU does, so that two writers exclude each other (default on)", CMD_ON_OFF, AT(lock)},
    {0}
};
/* clang-format on */

void cmd_device_options_init(struct cmd_device_options *o)
{
    *o = (struct cmd_device_options){
        .lock = true,
        .iothreads = 1,
        .poll_max_ns = 32768,
        .device = {.num_queues = 1,
                   .queue_size_max = 256,
                   .logical_block_size = 512,
                   .request_merging = true},
    };
}

/* One that is there, qcow2 by its magic. A pipe is not waited for. */
static bool is_qcow2(const char *path)
{
    struct stat st;
    char magic[4];
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return false;
    bool is = fstat(fd, &st) == 0 && S_ISREG(st.st_mode) &&
              pread(fd, magic, sizeof magic, 0) == (ssize_t)sizeof magic && memcmp(magic, "QFI\xfb", 4) == 0;
    close(fd);
    return is;
}

int cmd_device_not_image(const struct cmd_device_options *o, const char *option, const char *path,
                         struct error *err)
{
    if (path && o->blk_file && host_file_same(o->blk_file, path))
        return error_set(err, -EINVAL,
                         "--%s=%s: is the image, which would be overwritten (name another file)", option,
                         path);
    /* A backing file, or the image of another disk. */
    if (path && is_qcow2(path))
        return error_set(err, -EINVAL,
                         "--%s=%s: is a qcow2 image, which would be overwritten (name another file)", option,
                         path);
    return 0;
}

int cmd_device_options_check(struct cmd_device_options *o, struct error *err)
{
    bool null = o->open.format && strcmp(o->open.format, "null") == 0;
    if (null && o->blk_file)
        return error_set(err, -EINVAL, "%s: --format=null needs no file (leave one of the two out)",
                         o->blk_file);
    if (null && !o->size)
        return error_set(err, -EINVAL, "--format=null: its capacity is missing (add --size=BYTES)");
    if (!null && o->size)
        return error_set(err, -EINVAL, "--size: only a null image takes it (an image file has its own)");
    if (!null && o->null_reads)
        return error_set(err, -EINVAL, "--null-reads: only a null image takes it (add --format=null)");
    if (!null && !o->blk_file)
        return error_set(err, -EINVAL, "no image given (add --blk-file=PATH, or --format=null --size=BYTES)");
    if (cmd_device_not_image(o, "audit", o->audit_file, err) < 0 ||
        cmd_device_not_image(o, "log-writes", o->open.log_writes, err) < 0)
        return -EINVAL;
    if (!o->device.physical_block_size)
        o->device.physical_block_size = o->device.logical_block_size;
    if (o->device.physical_block_size < o->device.logical_block_size)
        return error_set(err, -EINVAL, "--physical-block-size=%u: smaller than the logical one, %u",
                         o->device.physical_block_size, o->device.logical_block_size);
    o->open.read_only = o->read_only;
    o->open.no_lock = !o->lock;
    o->open.null_bytes = o->size;
    o->open.null_no_zeroes = o->null_reads == 1;
    o->open.ignore_discard = o->ignore_discard;
    o->device.discard = !o->ignore_discard;
    return 0;
}

/* On a queue's loop. One write for a line, so that threads do not mix. */
static void audit_line(void *opaque, const char *line)
{
    const struct cmd_device *d = opaque;
    char text[1024];
    if (d->audit_fd < 0) {
        log_message("audit: %s", line);
        return;
    }
    int n = snprintf(text, sizeof text, "%s\n", line);
    if (n >= (int)sizeof text)
        n = sizeof text - 1;
    if (write(d->audit_fd, text, (size_t)n) < 0)
        log_message("audit: %s", line);
}

struct pin {
    const struct cmd_cpus *cpus;
    unsigned index;
    int result;
    struct error *err;
};

static void pin_iothread(void *opaque)
{
    struct pin *pin = opaque;

    pin->result = cmd_cpus_pin(pin->cpus, pin->index, pin->err);
}

struct cmd_device *cmd_device_start(const struct cmd_device_options *options, struct error *err)
{
    struct cmd_device *d = calloc(1, sizeof *d);
    if (!d) {
        error_set(err, -ENOMEM, "no memory for a device");
        return NULL;
    }
    d->options = *options;
    d->audit_fd = -1;
    if (options->audit && options->audit_file) {
        d->audit_fd = open(options->audit_file, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0666);
        if (d->audit_fd < 0) {
            error_set(err, -errno, "%s: cannot be written: %s", options->audit_file, strerror(errno));
            goto fail;
        }
    }
    d->blk = blk_open(options->blk_file ? options->blk_file : "", &d->options.open, err);
    if (!d->blk)
        goto fail;
    blk_set_throttle(d->blk, &options->throttle);
    if (options->audit) {
        d->options.device.audit = audit_line;
        d->options.device.audit_opaque = d;
    }
    d->virtio_blk = virtio_blk_create(d->blk, &d->options.device, err);
    if (!d->virtio_blk)
        goto fail;
    if (options->device.zoned.zone_sectors &&
        !(virtio_blk_device_features(d->virtio_blk) & VIRTIO_BIT(VIRTIO_BLK_F_ZONED))) {
        error_set(err, -ENOTSUP, "--zoned: this device can't be a zoned one");
        goto fail;
    }
    if (options->confine && options->confine(options->confine_opaque, err) < 0)
        goto fail;
    for (; d->queue_loop_count < options->iothreads; d->queue_loop_count++) {
        char name[24];
        unsigned i = d->queue_loop_count;
        snprintf(name, sizeof name, "iothread%u", i);
        d->iothreads[i] = iothread_start(name, options->poll_max_ns, err);
        if (!d->iothreads[i])
            goto fail;
        d->queue_loops[i] = iothread_loop(d->iothreads[i]);
        if (options->iothread_cpus.count) {
            struct pin pin = {.cpus = &options->iothread_cpus, .index = i, .err = err};

            iothread_call(d->iothreads[i], pin_iothread, &pin);
            if (pin.result < 0) {
                d->queue_loop_count++;
                goto fail;
            }
        }
    }
    return d;
fail:
    cmd_device_stop(d, NULL);
    return NULL;
}

int cmd_device_stop(struct cmd_device *d, struct error *err)
{
    int ret = 0;
    if (!d)
        return 0;
    for (unsigned i = 0; i < d->queue_loop_count; i++)
        iothread_stop(d->iothreads[i]);
    if (d->virtio_blk)
        virtio_blk_destroy(d->virtio_blk);
    if (d->blk)
        ret = blk_close(d->blk);
    if (ret < 0)
        error_set(err, ret, "%s: not everything could be written: %s",
                  d->options.blk_file ? d->options.blk_file : "image", strerror(-ret));
    if (d->audit_fd >= 0)
        close(d->audit_fd);
    free(d);
    return ret;
}
