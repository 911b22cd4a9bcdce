/*
 * endure.elf: a disk that may lie, hang or die, and what must hold all the same: every request is answered,
 * once, in bounded time; what succeeded is right; nothing here crashes. TAP. requests=N (200), deadline-ms=
 * (the driver's).
 *
 * Blocks are written and then read back, eight requests in flight. A block whose write failed may hold its
 * old data or its new, so its next read is only looked at if it comes after a write that succeeded.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest/driver/vblk.h"
#include "guest/libc/arguments.h"
#include "guest/libc/disk.h"
#include "guest/libc/start.h"
#include "guest/platform/machine.h"

const char guest_program[] = "endure";
const char *const guest_words[] = {"requests", "expect", NULL};

#define IN_FLIGHT 8u

struct slot {
    struct vblk_request request;
    struct vblk_seg seg;
    uint8_t *buf;
    unsigned answers;
    int result;
    bool known; /* the last write of this block succeeded, with `value` */
    uint8_t value;
};

static struct {
    unsigned succeeded, failed, not_once, wrong, refused;
    uint64_t longest_ns;
} totals;

static void on_complete(struct vblk_request *request, int result)
{
    struct slot *slot = request->opaque;
    slot->answers++;
    slot->result = result;
}

static void submit(struct vblk *disk, struct slot *slot, unsigned index, bool write, uint32_t bytes)
{
    if (write)
        memset(slot->buf, ++slot->value, bytes);
    else
        memset(slot->buf, 0xee, bytes);
    slot->seg = (struct vblk_seg){slot->buf, bytes};
    slot->request = (struct vblk_request){.op = write ? VBLK_WRITE : VBLK_READ,
                                          .sector = (uint64_t)index * (bytes / VIRTIO_BLK_SECTOR_BYTES),
                                          .segs = &slot->seg,
                                          .nsegs = 1,
                                          .complete = on_complete,
                                          .opaque = slot};
    slot->answers = 0;
    slot->result = vblk_submit(disk, 0, &slot->request);
    if (slot->result != 0) { /* a disk that has failed says so at once */
        slot->answers = 1;
        totals.refused++;
    }
}

static void settle(struct slot *slot, bool write, uint32_t bytes)
{
    totals.not_once += slot->answers != 1;
    totals.succeeded += slot->result == 0;
    totals.failed += slot->result != 0;
    if (write)
        slot->known = slot->result == 0;
    for (uint32_t i = 0; !write && slot->result == 0 && slot->known && i < bytes; i++) {
        if (slot->buf[i] != slot->value) {
            totals.wrong++;
            break;
        }
    }
}

static void batch(struct vblk *disk, struct slot *slots, bool write, uint32_t bytes)
{
    uint64_t start = machine_now_ns();
    for (unsigned i = 0; i < IN_FLIGHT; i++)
        submit(disk, &slots[i], i, write, bytes);
    vblk_kick(disk, 0);
    vblk_drain(disk, 0);
    uint64_t took = machine_now_ns() - start;
    totals.longest_ns = took > totals.longest_ns ? took : totals.longest_ns;
    for (unsigned i = 0; i < IN_FLIGHT; i++)
        settle(&slots[i], write, bytes);
}

static unsigned number, failures;

static void say(bool holds, const char *what)
{
    printf("%sok %u - %s\n", holds ? "" : "not ", ++number, what);
    failures += !holds;
}

int main(int argc, char **argv)
{
    struct vblk_config config;
    struct vblk *disk;
    struct vblk_info info;
    struct slot slots[IN_FLIGHT];
    disk_default_config(&config);
    int result = disk_start(0, &config, &disk);
    if (result != 0) {
        printf("# the disk does not start: %s\n0 passed, 1 failed\n", disk_strerror(result));
        return 1;
    }
    vblk_info(disk, &info);
    memset(slots, 0, sizeof slots);
    for (unsigned i = 0; i < IN_FLIGHT; i++) {
        slots[i].buf = malloc(info.block_size);
        if (!slots[i].buf)
            return 1;
    }
    uint64_t requests = argument_number("requests", 200);
    for (uint64_t done = 0; done < requests; done += 2 * IN_FLIGHT) {
        batch(disk, slots, true, info.block_size);
        batch(disk, slots, false, info.block_size);
    }
    vblk_info(disk, &info);
    printf(
        "# %u succeeded, %u failed, %u refused; %u recoveries; the slowest batch took %u ms; the disk %s\n",
        totals.succeeded, totals.failed, totals.refused, (unsigned)info.recoveries,
        (unsigned)(totals.longest_ns / 1000000), info.failed ? "has failed" : "lives");
    say(totals.not_once == 0, "every request was answered, once");
    say(totals.wrong == 0, "what was read is what was written");
    /* A part may be tried three times, and each time the ring's oldest has its deadline first. A busy host
     * may stop the machine for seconds meanwhile. */
    say(totals.longest_ns < 16 * config.deadline_ns + 20000000000, "in bounded time");
    if (argument_is("expect", "alive")) {
        say(!info.failed, "the disk lives");
        batch(disk, slots, true, info.block_size);
        unsigned failed = totals.failed;
        batch(disk, slots, false, info.block_size);
        say(totals.failed == failed && totals.wrong == 0, "and works, now that it tells the truth");
    }
    disk_stop(0);
    printf("1..%u\n%u passed, %u failed\n", number, number - failures, failures);
    return failures != 0;
}
