/*
 * shell.elf: a disk by hand, at the serial console, for a lesson or a bring-up. `help` lists the commands.
 *
 * Input that isn't a terminal works as well: one command a line, and `quit` at the end.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest/apps/common_names.h"
#include "guest/apps/shell_line.h"
#include "guest/apps/shell_queue.h"
#include "guest/driver/vblk.h"
#include "guest/libc/arguments.h"
#include "guest/libc/disk.h"
#include "guest/libc/start.h"
#include "guest/platform/machine.h"

const char guest_program[] = "shell";
const char *const guest_words[] = {"disk", NULL};

#define BUFFER_BYTES (1u << 20)

static unsigned disk_index;
static struct vblk *disk;
static struct vblk_info info;
static uint8_t *buffer, *other;
static bool failed; /* the verdict: some command failed */

static void say(int result)
{
    printf("%s\n", disk_strerror(result));
    failed |= result != 0;
}

static void complain(const char *what)
{
    printf("%s\n", what);
    failed = true;
}

/* SECTOR [COUNT] from the words; COUNT 1 block if left out. */
static bool range(int argc, char **argv, uint64_t *sector, uint64_t *count, uint64_t most)
{
    *count = info.block_size / VIRTIO_BLK_SECTOR_BYTES;
    if (argc < 2 || !number_parse(argv[1], sector) || (argc > 2 && !number_parse(argv[2], count))) {
        complain("which sectors? numbers may be decimal or 0x..., with K, M, G behind them");
        return false;
    }
    if (*count == 0 || *count > most) {
        complain("too many sectors, or none");
        return false;
    }
    return true;
}

#define BUFFER_SECTORS (BUFFER_BYTES / VIRTIO_BLK_SECTOR_BYTES)

static void cmd_info(int argc, char **argv)
{
    char size[24], text[512];
    vblk_info(disk, &info);
    size_text(info.capacity_sectors * VIRTIO_BLK_SECTOR_BYTES, size);
    printf("vd%c at %s on %s: %s, %llu sectors of 512\n", 'a' + (int)disk_index, disk_where(disk_index),
           machine_arch, size, (unsigned long long)info.capacity_sectors);
    printf("blocks         %u bytes, %u physical; best size %u\n", (unsigned)info.block_size,
           (unsigned)info.physical_block_size, (unsigned)info.opt_io_size);
    printf("limits         %u segments of %u bytes\n", (unsigned)info.seg_max, (unsigned)info.size_max);
    printf("queues         %u of %u, %u entries, %s ring\n", info.num_queues, info.device_num_queues,
           info.queue_size, info.packed_ring ? "packed" : "split");
    printf("cache          %s%s%s\n", info.write_cache ? "write-back" : "write-through",
           info.read_only ? ", read-only" : "", info.failed ? ", FAILED" : "");
    feature_list(info.features, text, sizeof text);
    printf("features      %s\n", text);
    feature_list(info.device_features & ~info.features, text, sizeof text);
    printf("not taken     %s\n", text[0] ? text : " none");
    char id[VIRTIO_BLK_ID_BYTES + 1];
    if (vblk_get_id(disk, 0, id) == 0)
        printf("identity       \"%s\"\n", id);
}

static void dump(const uint8_t *data, size_t len, uint64_t offset)
{
    bool same = false;
    for (size_t i = 0; i < len; i += 16) {
        if (i && i + 16 < len && memcmp(data + i, data + i - 16, 16) == 0) {
            if (!same)
                printf("*\n");
            same = true;
            continue;
        }
        same = false;
        printf("%010llx ", (unsigned long long)(offset + i));
        for (unsigned b = 0; b < 16; b++)
            printf(" %02x%s", data[i + b], b == 7 ? " " : "");
        printf("  |");
        for (unsigned b = 0; b < 16; b++)
            putchar(data[i + b] >= 32 && data[i + b] < 127 ? data[i + b] : '.');
        printf("|\n");
    }
}

static void cmd_read(int argc, char **argv)
{
    uint64_t sector, count;
    if (range(argc, argv, &sector, &count, BUFFER_SECTORS))
        say(vblk_read(disk, 0, sector, buffer, (size_t)count * VIRTIO_BLK_SECTOR_BYTES));
}

static void cmd_dump(int argc, char **argv)
{
    uint64_t sector, count;
    if (!range(argc, argv, &sector, &count, BUFFER_SECTORS))
        return;
    int result = vblk_read(disk, 0, sector, buffer, (size_t)count * VIRTIO_BLK_SECTOR_BYTES);
    if (result == 0)
        dump(buffer, (size_t)count * VIRTIO_BLK_SECTOR_BYTES, sector * VIRTIO_BLK_SECTOR_BYTES);
    else
        say(result);
}

static void cmd_write(int argc, char **argv)
{
    uint64_t sector;
    if (argc < 3 || !number_parse(argv[1], &sector)) {
        complain("write SECTOR TEXT");
        return;
    }
    memset(buffer, 0, info.block_size);
    size_t at = 0;
    for (int i = 2; i < argc; i++) {
        size_t len = strlen(argv[i]);
        memcpy(buffer + at, argv[i], len);
        at += len;
        if (i + 1 < argc)
            buffer[at++] = ' ';
    }
    say(vblk_write(disk, 0, sector, buffer, info.block_size));
}

static void cmd_fill(int argc, char **argv)
{
    uint64_t sector, count, byte;
    if (argc < 4 || !number_parse(argv[3], &byte) || byte > 255) {
        complain("fill SECTOR COUNT BYTE");
        return;
    }
    if (!range(argc, argv, &sector, &count, UINT64_MAX))
        return;
    memset(buffer, (int)byte, BUFFER_BYTES);
    int result = 0;
    while (count && result == 0) {
        uint64_t piece = count < BUFFER_SECTORS ? count : BUFFER_SECTORS;
        result = vblk_write(disk, 0, sector, buffer, (size_t)piece * VIRTIO_BLK_SECTOR_BYTES);
        sector += piece;
        count -= piece;
    }
    say(result);
}

static void cmd_compare(int argc, char **argv)
{
    uint64_t a, b, count = info.block_size / VIRTIO_BLK_SECTOR_BYTES;
    if (argc < 3 || !number_parse(argv[1], &a) || !number_parse(argv[2], &b) ||
        (argc > 3 && !number_parse(argv[3], &count)) || count == 0) {
        complain("compare SECTOR SECTOR [COUNT]");
        return;
    }
    for (uint64_t done = 0; done < count;) {
        uint64_t piece = count - done < BUFFER_SECTORS ? count - done : BUFFER_SECTORS;
        size_t bytes = (size_t)piece * VIRTIO_BLK_SECTOR_BYTES;
        int result = vblk_read(disk, 0, a + done, buffer, bytes);
        if (result == 0)
            result = vblk_read(disk, 0, b + done, other, bytes);
        if (result != 0) {
            say(result);
            return;
        }
        for (size_t i = 0; i < bytes; i++) {
            if (buffer[i] != other[i]) {
                printf("they differ from byte %llu on: 0x%02x and 0x%02x\n",
                       (unsigned long long)(done * VIRTIO_BLK_SECTOR_BYTES + i), buffer[i], other[i]);
                failed = true;
                return;
            }
        }
        done += piece;
    }
    printf("the same\n");
}

static void cmd_flush(int argc, char **argv)
{
    say(vblk_flush(disk, 0));
}

static void cmd_discard(int argc, char **argv)
{
    uint64_t sector, count;
    if (range(argc, argv, &sector, &count, UINT64_MAX))
        say(vblk_discard(disk, 0, sector, count));
}

static void cmd_zero(int argc, char **argv)
{
    uint64_t sector, count;
    if (range(argc, argv, &sector, &count, UINT64_MAX))
        say(vblk_write_zeroes(disk, 0, sector, count, argc > 3 && strcmp(argv[3], "unmap") == 0));
}

/* ---- trace ---- */

static const char *op_name(enum vblk_op op)
{
    static const char *const names[] = {"read",         "write",          "flush",      "discard",
                                        "write zeroes", "secure erase",   "get id",     "get lifetime",
                                        "zone report",  "zone open",      "zone close", "zone finish",
                                        "zone reset",   "zone reset all", "zone append"};
    return (unsigned)op < sizeof names / sizeof names[0] ? names[op] : "?";
}

static void on_trace(void *opaque, enum vblk_trace_point point, unsigned queue,
                     const struct vblk_request *request)
{
    const char *what = point == VBLK_TRACE_SUBMIT ? " 1 submit"
                       : point == VBLK_TRACE_KICK ? " 2 kick"
                                                  : "12 poll";
    printf("%12.3f us  queue %u  %-9s", (double)machine_now_ns() / 1e3, queue, what);
    if (request)
        printf("  %s at sector %llu", op_name(request->op), (unsigned long long)request->sector);
    printf("\n");
}

static void cmd_trace(int argc, char **argv)
{
    if (argc < 2 || (strcmp(argv[1], "on") != 0 && strcmp(argv[1], "off") != 0)) {
        complain("trace on|off");
        return;
    }
    vblk_set_trace(disk, strcmp(argv[1], "on") == 0 ? on_trace : NULL, NULL);
}

/* ---- requests left in the ring, to be looked at ---- */

#define PENDING_MAX 32u

static struct pending {
    struct vblk_request request;
    struct vblk_seg seg;
    bool in_use;
} pending[PENDING_MAX];

static void on_pending_complete(struct vblk_request *request, int result)
{
    struct pending *p = request->opaque;
    printf("  read at sector %llu: %s\n", (unsigned long long)request->sector, disk_strerror(result));
    failed |= result != 0;
    p->in_use = false;
}

static void cmd_submit(int argc, char **argv)
{
    uint64_t sector, count;
    unsigned i = 0;
    if (!range(argc, argv, &sector, &count, BUFFER_SECTORS))
        return;
    while (i < PENDING_MAX && pending[i].in_use)
        i++;
    if (i == PENDING_MAX) {
        complain("32 reads are pending; poll first");
        return;
    }
    struct pending *p = &pending[i];
    p->seg = (struct vblk_seg){buffer, (size_t)count * VIRTIO_BLK_SECTOR_BYTES};
    p->request = (struct vblk_request){.op = VBLK_READ,
                                       .sector = sector,
                                       .segs = &p->seg,
                                       .nsegs = 1,
                                       .complete = on_pending_complete,
                                       .opaque = p};
    int result = vblk_submit(disk, 0, &p->request);
    p->in_use = result == 0;
    if (result != 0)
        say(result);
    else
        printf("in the ring; the device has not been told (kick), and nobody looks for its answer (poll)\n");
}

static void cmd_kick(int argc, char **argv)
{
    vblk_kick(disk, 0);
}

static void cmd_poll(int argc, char **argv)
{
    unsigned done = vblk_poll(disk, 0);
    printf("%u completed\n", done);
}

static void cmd_queue(int argc, char **argv)
{
    uint64_t queue = 0;
    if (argc > 1 && (!number_parse(argv[1], &queue) || queue >= info.num_queues)) {
        complain("there is no such queue");
        return;
    }
    queue_picture(disk, (unsigned)queue);
}

static void cmd_stats(int argc, char **argv)
{
    for (unsigned queue = 0; queue < info.num_queues; queue++) {
        struct vblk_queue_stats s;
        vblk_queue_stats(disk, queue, &s);
        printf("queue %u: %llu requests in %llu parts, %llu errors; %llu kicks (%llu not needed), "
               "%llu polls; %llu recoveries\n",
               queue, (unsigned long long)s.requests, (unsigned long long)s.parts,
               (unsigned long long)s.errors, (unsigned long long)s.kicks,
               (unsigned long long)s.kicks_suppressed, (unsigned long long)s.polls,
               (unsigned long long)s.recoveries);
    }
}

static void cmd_disks(int argc, char **argv)
{
    for (unsigned i = 0; i < disk_count(); i++)
        printf("%c vd%c  %s\n", i == disk_index ? '*' : ' ', 'a' + (int)i, disk_where(i));
}

static bool use_disk(const char *name)
{
    int index = disk_by_name(name);
    if (index < 0) {
        complain("there is no such disk");
        return false;
    }
    if (disk)
        vblk_drain(disk, 0); /* what was left in the ring */
    int result = disk_start((unsigned)index, NULL, &disk);
    if (result != 0) {
        say(result);
        return false;
    }
    disk_index = (unsigned)index;
    vblk_info(disk, &info);
    return true;
}

static void cmd_use(int argc, char **argv)
{
    if (argc < 2)
        complain("use vda|vdb|...");
    else
        use_disk(argv[1]);
}

static void cmd_cache(int argc, char **argv)
{
    if (argc < 2 || (strcmp(argv[1], "on") != 0 && strcmp(argv[1], "off") != 0))
        complain("cache on|off");
    else
        say(vblk_set_write_cache(disk, strcmp(argv[1], "on") == 0));
}

static void cmd_help(int argc, char **argv);

static const struct {
    const char *name, *arguments, *what;
    void (*run)(int argc, char **argv);
} commands[] = {
    {"help", "", "this list", cmd_help},
    {"disks", "", "what there is", cmd_disks},
    {"use", "DISK", "go on with another disk", cmd_use},
    {"info", "", "what the device says of itself", cmd_info},
    {"read", "SECTOR [COUNT]", "read, and show nothing", cmd_read},
    {"dump", "SECTOR [COUNT]", "read and show", cmd_dump},
    {"write", "SECTOR TEXT", "write a block that begins with the text", cmd_write},
    {"fill", "SECTOR COUNT BYTE", "write the same byte everywhere", cmd_fill},
    {"compare", "SECTOR SECTOR [COUNT]", "are they the same?", cmd_compare},
    {"zero", "SECTOR [COUNT [unmap]]", "write zeroes", cmd_zero},
    {"discard", "SECTOR [COUNT]", "give the space back", cmd_discard},
    {"flush", "", "make what was written durable", cmd_flush},
    {"cache", "on|off", "write-back or write-through", cmd_cache},
    {"submit", "SECTOR [COUNT]", "put a read into the ring, and leave it there", cmd_submit},
    {"kick", "", "tell the device of it", cmd_kick},
    {"poll", "", "take what the device has done", cmd_poll},
    {"queue", "[N]", "a picture of the ring", cmd_queue},
    {"stats", "", "what the queues have done", cmd_stats},
    {"trace", "on|off", "show each request's way through the driver", cmd_trace},
    {"quit", "", "end the machine", NULL},
};

static void cmd_help(int argc, char **argv)
{
    for (unsigned i = 0; i < sizeof commands / sizeof commands[0]; i++)
        printf("  %-8s %-22s %s\n", commands[i].name, commands[i].arguments, commands[i].what);
}

/* False for `quit`. */
static bool run(char *line)
{
    char *argv[LINE_BYTES / 2 + 1], *rest = NULL;
    int argc = 0;
    for (char *word = strtok_r(line, " \t", &rest); word; word = strtok_r(NULL, " \t", &rest))
        argv[argc++] = word;
    if (argc == 0 || argv[0][0] == '#')
        return true;
    for (unsigned i = 0; i < sizeof commands / sizeof commands[0]; i++) {
        if (strcmp(argv[0], commands[i].name) != 0)
            continue;
        if (!commands[i].run)
            return false;
        commands[i].run(argc, argv);
        return true;
    }
    complain("no such command; help lists them");
    return true;
}

int main(int argc, char **argv)
{
    char line[LINE_BYTES], prompt[] = "vda> ";
    buffer = malloc(BUFFER_BYTES);
    other = malloc(BUFFER_BYTES);
    if (!buffer || !other) {
        printf("shell: not enough memory\n");
        return 1;
    }
    if (!use_disk(argument("disk") ? argument("disk") : "vda"))
        return 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("ringside shell on %s; help lists the commands\n", machine_arch);
    do
        prompt[2] = (char)('a' + disk_index);
    while (line_read(prompt, line) && run(line));
    vblk_drain(disk, 0);
    disk_stop(disk_index);
    return failed;
}
