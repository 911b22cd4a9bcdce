/* Malformed vhost-user messages: every type in every wrong size, and what is wrong with rings' numbers. */
#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "tests/harness/torture.h"

/* Payload bytes of each message, and whether it carries a descriptor ("Front-end message types"). */
static const struct {
    const char *name;
    uint32_t request, bytes;
    bool fd;
} messages[] = {
    {"GET_FEATURES", VHOST_USER_GET_FEATURES, 0, false},
    {"SET_FEATURES", VHOST_USER_SET_FEATURES, 8, false},
    {"SET_OWNER", VHOST_USER_SET_OWNER, 0, false},
    {"RESET_OWNER", VHOST_USER_RESET_OWNER, 0, false},
    {"SET_MEM_TABLE", VHOST_USER_SET_MEM_TABLE, 40, true},
    {"SET_LOG_BASE", VHOST_USER_SET_LOG_BASE, 16, true},
    {"SET_LOG_FD", VHOST_USER_SET_LOG_FD, 8, true},
    {"SET_VRING_NUM", VHOST_USER_SET_VRING_NUM, 8, false},
    {"SET_VRING_ADDR", VHOST_USER_SET_VRING_ADDR, 40, false},
    {"SET_VRING_BASE", VHOST_USER_SET_VRING_BASE, 8, false},
    {"GET_VRING_BASE", VHOST_USER_GET_VRING_BASE, 8, false},
    {"SET_VRING_KICK", VHOST_USER_SET_VRING_KICK, 8, true},
    {"SET_VRING_CALL", VHOST_USER_SET_VRING_CALL, 8, true},
    {"SET_VRING_ERR", VHOST_USER_SET_VRING_ERR, 8, true},
    {"GET_PROTOCOL_FEATURES", VHOST_USER_GET_PROTOCOL_FEATURES, 0, false},
    {"SET_PROTOCOL_FEATURES", VHOST_USER_SET_PROTOCOL_FEATURES, 8, false},
    {"GET_QUEUE_NUM", VHOST_USER_GET_QUEUE_NUM, 0, false},
    {"SET_VRING_ENABLE", VHOST_USER_SET_VRING_ENABLE, 8, false},
    {"SET_BACKEND_REQ_FD", VHOST_USER_SET_BACKEND_REQ_FD, 0, true},
    {"IOTLB_MSG", VHOST_USER_IOTLB_MSG, 32, false},
    {"GET_CONFIG", VHOST_USER_GET_CONFIG, 72, false},
    {"SET_CONFIG", VHOST_USER_SET_CONFIG, 13, false},
    {"GET_INFLIGHT_FD", VHOST_USER_GET_INFLIGHT_FD, 24, false},
    {"SET_INFLIGHT_FD", VHOST_USER_SET_INFLIGHT_FD, 24, true},
    {"RESET_DEVICE", VHOST_USER_RESET_DEVICE, 0, false},
    {"VRING_KICK", VHOST_USER_VRING_KICK, 8, false},
    {"GET_MAX_MEM_SLOTS", VHOST_USER_GET_MAX_MEM_SLOTS, 0, false},
    {"ADD_MEM_REG", VHOST_USER_ADD_MEM_REG, 40, true},
    {"REM_MEM_REG", VHOST_USER_REM_MEM_REG, 40, false},
    {"SET_STATUS", VHOST_USER_SET_STATUS, 8, false},
    {"GET_STATUS", VHOST_USER_GET_STATUS, 0, false},
};

#define MESSAGES (sizeof(messages) / sizeof(messages[0]))

enum shape {
    SHAPE_SHORT,   /* one byte less */
    SHAPE_LONG,    /* eight bytes more */
    SHAPE_EMPTY,   /* no payload */
    SHAPE_HUGE,    /* a size of 4 GiB in the header */
    SHAPE_LARGE,   /* more than any payload */
    SHAPE_ONES,    /* all bits set */
    SHAPE_ZEROES,  /* all bits clear, no descriptor */
    SHAPE_FDS,     /* eight descriptors */
    SHAPE_VERSION, /* version 2 */
    SHAPE_REPLY,   /* the reply flag */
    SHAPE_CUT,     /* the header promises more than comes */
    SHAPE_RUNNING, /* all bits set, while a ring is running */
    SHAPES
};

static const char *const shapes[SHAPES] = {
    "one byte short", "eight bytes long",  "without payload", "size 0xffffffff",
    "size 4097",      "all ones",          "all zeroes",      "eight descriptors",
    "version 2",      "marked as a reply", "cut off",         "all ones, ring running",
};

static enum outcome one_message(struct torture *t, const struct torture_case *c)
{
    struct bed_options options = {.no_memory = c->b != SHAPE_RUNNING};
    struct vhost_user_header header = {messages[c->a].request, VHOST_USER_VERSION, messages[c->a].bytes};
    uint8_t payload[4200];
    uint32_t send = header.size;
    int fds[8], nfds = messages[c->a].fd ? 1 : 0;

    if (!torture_open(t, options))
        return OUTCOME_ENDED;
    memset(payload, c->b == SHAPE_ONES || c->b == SHAPE_RUNNING ? 0xff : 0, sizeof(payload));
    switch ((enum shape)c->b) {
    case SHAPE_SHORT:
        send = header.size ? header.size - 1 : 0;
        header.size = send;
        break;
    case SHAPE_LONG:
        send = header.size += 8;
        break;
    case SHAPE_EMPTY:
        send = header.size = 0;
        break;
    case SHAPE_HUGE:
        header.size = UINT32_MAX;
        send = 512;
        break;
    case SHAPE_LARGE:
        send = header.size = 4097;
        break;
    case SHAPE_ZEROES:
        nfds = 0;
        break;
    case SHAPE_FDS:
        nfds = 8;
        break;
    case SHAPE_VERSION:
        header.flags = 2;
        break;
    case SHAPE_REPLY:
        header.flags |= VHOST_USER_REPLY_MASK;
        break;
    case SHAPE_CUT:
        send = header.size / 2;
        break;
    default:
        break;
    }
    for (int i = 0; i < nfds; i++)
        fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    bed_send_raw(&t->bed, &header, payload, send, fds, (unsigned)nfds);
    for (int i = 0; i < nfds; i++)
        close(fds[i]);
    if (c->b == SHAPE_CUT || c->b == SHAPE_HUGE) {
        bed_sleep_ms(2);
        return OUTCOME_SILENCE; /* it may wait for the rest for as long as we stay; we leave */
    }
    /* A reply to it, if any, is read over. */
    return torture_look_over(t);
}

static enum outcome unknown_message(struct torture *t, const struct torture_case *c)
{
    struct vhost_user_header header = {(uint32_t)c->a, VHOST_USER_VERSION, 8};
    uint8_t payload[8] = {0};

    if (!torture_open(t, (struct bed_options){.no_memory = true}))
        return OUTCOME_ENDED;
    bed_send_raw(&t->bed, &header, payload, sizeof(payload), NULL, 0);
    return torture_look_over(t);
}

/* ---- numbers of rings ---- */

static enum outcome ring_index(struct torture *t, const struct torture_case *c)
{
    struct vhost_user_vring_addr addr = {.index = (uint32_t)c->b};
    struct vhost_user_vring_state state = {(uint32_t)c->b, 1};
    uint64_t word = c->b;
    const void *payload = &state;
    uint32_t bytes = sizeof(state), request = messages[c->a].request;
    int fd = -1, code;

    if (!torture_open(t, (struct bed_options){.no_start = true}))
        return OUTCOME_ENDED;
    if (request == VHOST_USER_SET_VRING_ADDR) {
        payload = &addr;
        bytes = sizeof(addr);
    } else if (messages[c->a].fd) {
        payload = &word;
        bytes = sizeof(word);
        fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    }
    if (request == VHOST_USER_GET_VRING_BASE) {
        struct vhost_user_vring_state reply;

        code = vhost_user_front_call(&t->bed.front, request, payload, bytes, &reply, sizeof(reply), NULL);
    } else {
        code = vhost_user_front_set(&t->bed.front, request, payload, bytes, &fd, fd >= 0 ? 1 : 0);
    }
    if (fd >= 0)
        close(fd);
    if (code == -EIO)
        return OUTCOME_REFUSED;
    return code < 0 ? OUTCOME_ENDED : torture_look(t);
}

static enum outcome ring_size(struct torture *t, const struct torture_case *c)
{
    struct vhost_user_vring_state state = {0, (uint32_t)c->a};

    if (!torture_open(t, (struct bed_options){.no_start = true}))
        return OUTCOME_ENDED;
    if (vhost_user_front_set(&t->bed.front, VHOST_USER_SET_VRING_NUM, &state, sizeof(state), NULL, 0) == -EIO)
        return OUTCOME_REFUSED;
    if (!bed_alive(&t->bed))
        return OUTCOME_ENDED;
    t->bed.queues[0].size = (unsigned)c->a; /* and go on as if it had been fine */
    if (bed_queue_messages(&t->bed, 0, 0) < 0 || bed_queue_enable(&t->bed, 0, true) < 0)
        return bed_alive(&t->bed) ? OUTCOME_REFUSED : OUTCOME_ENDED;
    bed_kick(&t->bed, 0);
    return torture_ring_look(t, 0, NULL);
}

static enum outcome ring_base(struct torture *t, const struct torture_case *c)
{
    if (!torture_open(t, (struct bed_options){.no_start = true, .packed = c->b}))
        return OUTCOME_ENDED;
    if (c->b && !(t->bed.accepted & VIRTIO_BIT(VIRTIO_F_RING_PACKED)))
        return OUTCOME_SKIPPED;
    if (bed_queue_messages(&t->bed, 0, (uint32_t)c->a) < 0 || bed_queue_enable(&t->bed, 0, true) < 0)
        return bed_alive(&t->bed) ? OUTCOME_REFUSED : OUTCOME_ENDED;
    bed_kick(&t->bed, 0);
    return torture_ring_look(t, 0, NULL);
}

/* Out of order: what a message needs has not come yet, or it comes twice */
static enum outcome out_of_order(struct torture *t, const struct torture_case *c)
{
    uint64_t own = VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES);
    bool fine;

    if (!torture_open(t, (struct bed_options){.no_memory = c->a < 3, .no_start = true}))
        return OUTCOME_ENDED;
    switch (c->a) {
    case 0: /* rings before memory */
        bed_queue_messages(&t->bed, 0, 0);
        bed_queue_enable(&t->bed, 0, true);
        break;
    case 1: /* enabled before anything else */
        bed_queue_enable(&t->bed, 0, true);
        bed_queue_enable(&t->bed, 0, true);
        break;
    case 2: /* stopped, never started */
        for (unsigned i = 0; i < 3; i++)
            bed_queue_stop(&t->bed, 0, NULL);
        break;
    case 3: /* features once more while a ring runs */
        fine = bed_queue_messages(&t->bed, 0, 0) == 0 && bed_queue_enable(&t->bed, 0, true) == 0;
        if (fine)
            vhost_user_front_set_u64(&t->bed.front, VHOST_USER_SET_FEATURES,
                                     own | VIRTIO_BIT(VIRTIO_F_VERSION_1), -1);
        break;
    case 4: /* the memory table once more while a ring runs */
        fine = bed_queue_messages(&t->bed, 0, 0) == 0 && bed_queue_enable(&t->bed, 0, true) == 0;
        for (unsigned i = 0; fine && i < 20; i++)
            bed_set_memory(&t->bed);
        break;
    case 5: /* rings set up twice, started twice */
        for (unsigned i = 0; i < 5; i++)
            if (bed_queue_messages(&t->bed, 0, 0) == 0)
                bed_queue_enable(&t->bed, 0, true);
        break;
    case 6: /* owner, reset owner, owner */
        vhost_user_front_set(&t->bed.front, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0);
        vhost_user_front_set(&t->bed.front, VHOST_USER_RESET_OWNER, NULL, 0, NULL, 0);
        vhost_user_front_set(&t->bed.front, VHOST_USER_SET_OWNER, NULL, 0, NULL, 0);
        break;
    default: /* enabled and disabled a hundred times */
        fine = bed_queue_messages(&t->bed, 0, 0) == 0;
        for (unsigned i = 0; fine && i < 100; i++)
            fine = bed_queue_enable(&t->bed, 0, i & 1) == 0;
        break;
    }
    return torture_look(t);
}

void torture_messages(struct torture_list *list)
{
    static const uint32_t indexes[] = {2, 63, 64, 255, 256, 0x7fffffff, 0xffffffff};
    static const uint32_t sizes[] = {0, 1, 3, 100, 32769, 65535, 65536, 0x80000000, 0xffffffff};
    static const uint32_t bases[] = {1, 63, 32768, 65535, 65536, 0x7fffffff, 0xffffffff};
    static const uint32_t unknown[] = {0, 26, 30, 33, 41, 42, 100, 0x7fffffff, 0xffffffff};
    static const char *const orders[] = {"rings before memory",
                                         "enabled before anything else",
                                         "stopped, never started",
                                         "features again while a ring runs",
                                         "memory again while a ring runs",
                                         "a ring started twice",
                                         "owner, reset, owner",
                                         "enabled and disabled a hundred times"};

    for (unsigned m = 0; m < MESSAGES; m++)
        for (unsigned s = 0; s < SHAPES; s++)
            if (messages[m].bytes ||
                (s != SHAPE_SHORT && s != SHAPE_EMPTY && s != SHAPE_CUT && s != SHAPE_ONES))
                torture_add(list, one_message, m, s, "%s: %s", messages[m].name, shapes[s]);
    for (unsigned i = 0; i < sizeof(unknown) / sizeof(unknown[0]); i++)
        torture_add(list, unknown_message, unknown[i], 0, "message %u", unknown[i]);
    for (unsigned m = 0; m < MESSAGES; m++) {
        uint32_t r = messages[m].request;

        if (r < VHOST_USER_SET_VRING_NUM ||
            (r > VHOST_USER_SET_VRING_ERR && r != VHOST_USER_SET_VRING_ENABLE))
            continue;
        for (unsigned i = 0; i < sizeof(indexes) / sizeof(indexes[0]); i++)
            torture_add(list, ring_index, m, indexes[i], "%s: ring %u", messages[m].name, indexes[i]);
    }
    for (unsigned i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        torture_add(list, ring_size, sizes[i], 0, "SET_VRING_NUM: %u entries", sizes[i]);
    for (unsigned i = 0; i < sizeof(bases) / sizeof(bases[0]); i++)
        for (unsigned packed = 0; packed < 2; packed++)
            torture_add(list, ring_base, bases[i], packed, "SET_VRING_BASE: %u%s", bases[i],
                        packed ? ", packed" : "");
    for (unsigned i = 0; i < sizeof(orders) / sizeof(orders[0]); i++)
        torture_add(list, out_of_order, i, 0, "out of order: %s", orders[i]);
}
