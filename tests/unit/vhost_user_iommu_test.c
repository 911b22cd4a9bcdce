/*
 * The vhost-user server behind an IOMMU (ACCESS_PLATFORM): translations are asked for on the back end's
 * channel, given, and taken back (vhost-user, "IOMMU support").
 */
#include "tests/unit/vhost_user_rig.h"

#include "host/block/inject.h"

/* Memory lies at guest address 0 and I/O virtual address GUEST_PHYSICAL. */
static int64_t translate(int fd, const struct client_guest *g, uint32_t type, uint64_t iova, uint64_t size,
                         uint8_t permissions)
{
    struct client_message reply;
    struct vhost_user_iotlb iotlb = {.iova = iova,
                                     .size = size,
                                     .user_addr = guest_user(g, 0) + (iova - GUEST_PHYSICAL),
                                     .permissions = permissions,
                                     .type = type};
    client_send(fd, VHOST_USER_IOTLB_MSG, &iotlb, sizeof iotlb, NULL, 0);
    if (client_receive(fd, &reply) != 1 || reply.header.request != VHOST_USER_IOTLB_MSG)
        return -1;
    return (int64_t)reply.payload.u64;
}

/* Answers questions, a page each, until used->idx is IDX; returns how many there were. */
static unsigned answer_until_used(int fd, int channel, struct client_guest *g, uint16_t idx)
{
    unsigned answered = 0;
    for (int i = 0; i < CLIENT_WAIT_MS && !guest_wait_used(g, 0, idx, 0); i++) {
        struct pollfd p = {.fd = channel, .events = POLLIN};
        struct client_message miss;
        if (poll(&p, 1, 1) <= 0)
            continue;
        assert_int_equal(client_receive(channel, &miss), 1);
        assert_int_equal(miss.header.request, VHOST_USER_BACKEND_IOTLB_MSG);
        assert_int_equal(miss.header.size, sizeof(struct vhost_user_iotlb));
        assert_int_equal(miss.payload.iotlb.type, VHOST_USER_IOTLB_MISS);
        assert_true(miss.payload.iotlb.iova >= GUEST_PHYSICAL &&
                    miss.payload.iotlb.iova < GUEST_PHYSICAL + GUEST_BYTES);
        assert_int_equal(translate(fd, g, VHOST_USER_IOTLB_UPDATE, miss.payload.iotlb.iova & ~4095ull, 4096,
                                   miss.payload.iotlb.permissions),
                         0);
        answered++;
    }
    assert_true(guest_wait_used(g, 0, idx, 0));
    return answered;
}

/* A connection with a ring behind an IOMMU; *CHANNEL is for the device's questions. */
static int front_end_translated(struct client_guest *g, int *channel)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    int fd = front_end();
    guest_open(g);
    client_send_u64(fd, VHOST_USER_SET_FEATURES,
                    FEATURES_USED | VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM) |
                        VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    assert_int_equal(client_acked(fd, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &pair[0], 1), 0);
    close(pair[0]);
    *channel = pair[1];
    struct vhost_user_memory memory = {.num_regions = 1, .regions = {guest_region_of(g)}};
    memory.regions[0].guest_addr = 0;
    client_send(fd, VHOST_USER_SET_MEM_TABLE, &memory, 8 + sizeof memory.regions[0], &g->fd, 1);
    guest_send_ring(g, fd, 0, 0);
    struct vhost_user_vring_addr addr = guest_ring_addr(g, 0);
    addr.desc_user_addr += GUEST_PHYSICAL - guest_user(g, 0);
    addr.avail_user_addr += GUEST_PHYSICAL - guest_user(g, 0);
    addr.used_user_addr += GUEST_PHYSICAL - guest_user(g, 0);
    client_send(fd, VHOST_USER_SET_VRING_ADDR, &addr, sizeof addr, NULL, 0);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g->kick);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    return fd;
}

static void translations_are_asked_for_given_and_taken_back(void **state)
{
    struct client_guest g;
    int channel;
    int fd = front_end_translated(&g, &channel);
    struct vhost_user_memory memory = {.num_regions = 1, .regions = {guest_region_of(&g)}};
    memory.regions[0].guest_addr = 0;
    guest_submit_read(&g, 0, 0);
    /* The ring's three parts, and the request's page for reading, then for writing. */
    assert_int_equal(answer_until_used(fd, channel, &g, 1), 5);
    assert_int_equal(guest_status(&g, 0), VIRTIO_BLK_S_OK);
    /* Known now: nothing is asked. */
    guest_submit_read(&g, 0, 0);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, channel, &g, 2), 0);
    /* One page taken back, then one that may only be read, then all of it. */
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_INVALIDATE, GUEST_PHYSICAL + GUEST_DATA, 4096, 0), 0);
    guest_submit_read(&g, 0, 0);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, channel, &g, 3), 2);
    assert_int_equal(
        translate(fd, &g, VHOST_USER_IOTLB_UPDATE, GUEST_PHYSICAL + GUEST_DATA, 8192, VHOST_USER_IOTLB_READ),
        0);
    guest_submit_read(&g, 0, 1);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, channel, &g, 4), 1);
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_INVALIDATE, 0, 0, 0), 0); /* all 2^64 */
    guest_submit_read(&g, 0, 2);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, channel, &g, 5), 5);
    for (unsigned slot = 0; slot < 3; slot++)
        assert_int_equal(guest_status(&g, slot), VIRTIO_BLK_S_OK);
    /* Nonsense is refused, and the connection goes on. */
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_UPDATE, GUEST_PHYSICAL + GUEST_BYTES, 4096, 3), 1);
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_UPDATE, GUEST_PHYSICAL, 0, 3), 1);
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_UPDATE, ~0ull - 100, 4096, 3), 1);
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_UPDATE, GUEST_PHYSICAL, 4096, 0), 1);
    guest_submit_read(&g, 0, 2);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, channel, &g, 6), 0);
    /* Other memory: nothing is known any more. */
    client_send(fd, VHOST_USER_SET_MEM_TABLE, &memory, 8 + sizeof memory.regions[0], &g.fd, 1);
    assert_true(client_sync(fd));
    guest_submit_read(&g, 0, 3);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, channel, &g, 7), 5);
    assert_int_equal(get_vring_base(fd, 0), 7);
    log_lines();
    assert_int_equal(translate(fd, &g, 7, GUEST_PHYSICAL, 4096, 3), -1);
    close(fd);
    close(channel);
    guest_close(&g);
    assert_int_equal(log_lines(), 1);
    server_is_well();
}

/* An answer that does not help is no reason to ask the same again: both ends would do nothing else. */
static void a_translation_that_is_not_good_enough_is_not_asked_for_again(void **state)
{
    struct client_guest g;
    int channel;
    int fd = front_end_translated(&g, &channel);
    guest_submit_read(&g, 0, 0);
    assert_int_equal(answer_until_used(fd, channel, &g, 1), 5);
    assert_int_equal(
        translate(fd, &g, VHOST_USER_IOTLB_UPDATE, GUEST_PHYSICAL + GUEST_DATA, 8192, VHOST_USER_IOTLB_READ),
        0);
    guest_submit_read(&g, 0, 0);
    guest_kick(&g);
    struct client_message miss;
    assert_int_equal(client_receive(channel, &miss), 1);
    assert_int_equal(miss.payload.iotlb.permissions, VHOST_USER_IOTLB_READ | VHOST_USER_IOTLB_WRITE);
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_UPDATE, GUEST_PHYSICAL + GUEST_DATA, 4096,
                                   VHOST_USER_IOTLB_READ),
                         0);
    struct pollfd p = {.fd = channel, .events = POLLIN};
    assert_int_equal(poll(&p, 1, 50), 0);
    assert_true(guest_wait_used(&g, 0, 1, 0));
    /* Taken back and given for writing: it goes on. */
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_INVALIDATE, GUEST_PHYSICAL + GUEST_DATA, 4096, 0), 0);
    assert_true(answer_until_used(fd, channel, &g, 2) >= 1);
    assert_int_equal(guest_status(&g, 0), VIRTIO_BLK_S_OK);
    close(fd);
    close(channel);
    guest_close(&g);
    server_is_well();
}

/* A pause is nobody's death: the driver was told of everything, and is not told again with each translation.
 */
static void translations_bring_no_interrupts(void **state)
{
    struct client_guest g;
    uint64_t count;
    int channel;
    int fd = front_end_translated(&g, &channel);
    guest_submit_read(&g, 0, 0);
    assert_int_equal(answer_until_used(fd, channel, &g, 1), 5);
    assert_int_equal(get_vring_base(fd, 0), 1); /* whatever interrupt was under way has come */
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
    assert_true(client_sync(fd));
    assert_int_equal(read(g.call, &count, sizeof count), sizeof count);
    for (unsigned i = 1; i < 5; i++)
        assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_UPDATE, (uint64_t)i << 40, 4096, 3), 1);
    assert_int_equal(read(g.call, &count, sizeof count), -1);
    close(fd);
    close(channel);
    guest_close(&g);
    server_is_well();
    log_lines();
}

/* As many pages as the requests of a few queues can need are known at once. */
static void thousands_of_translations_are_kept(void **state)
{
    struct client_guest g;
    int channel;
    int fd = front_end_translated(&g, &channel);
    guest_submit_read(&g, 0, 0);
    assert_int_equal(answer_until_used(fd, channel, &g, 1), 5);
    for (unsigned i = 0; i < 4000; i++) {
        /* Every other page of addresses: no two can be joined. */
        struct client_message reply;
        struct vhost_user_iotlb iotlb = {.iova = (2ull * i + 1) << 40,
                                         .size = 4096,
                                         .user_addr = guest_user(&g, 0),
                                         .permissions = 3,
                                         .type = VHOST_USER_IOTLB_UPDATE};
        client_send(fd, VHOST_USER_IOTLB_MSG, &iotlb, sizeof iotlb, NULL, 0);
        assert_int_equal(client_receive(fd, &reply), 1);
        assert_int_equal(reply.payload.u64, 0);
    }
    guest_submit_read(&g, 0, 0);
    guest_kick(&g);
    assert_int_equal(answer_until_used(fd, channel, &g, 2), 0);
    close(fd);
    close(channel);
    guest_close(&g);
    server_is_well();
}

/* A write that the error policy has parked, on a ring that has lost its translations since: the ring's stop
 * has to fail it, and asks where it is while the front end waits for the answer (as QEMU can). */
static void end_with_parked_requests(bool silent)
{
    struct client_guest g;
    struct error err = {0};
    struct vhost_user_vring_state base = {.index = 0};
    struct client_message reply;
    int channel, fd = front_end_translated(&g, &channel);

    for (unsigned slot = 0; slot < 3; slot++) {
        guest_submit_read(&g, 0, slot);
        guest_kick(&g);
        answer_until_used(fd, channel, &g, (uint16_t)(slot + 1));
    }
    assert_int_equal(inject_add(blk_node(rig.blk), "write,error=ENOSPC,times=always", &err), 0);
    uint64_t hits = inject_hits(blk_node(rig.blk));
    guest_submit(&g, 0, 1, VIRTIO_BLK_T_OUT);
    guest_submit(&g, 0, 2, VIRTIO_BLK_T_OUT);
    guest_kick(&g);
    for (int i = 0; i < CLIENT_WAIT_MS && inject_hits(blk_node(rig.blk)) < hits + 2; i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_INVALIDATE, 0, 0, 0), 0);
    log_lines();
    client_send(fd, VHOST_USER_GET_VRING_BASE, &base, sizeof base, NULL, 0);
    if (!silent) {
        struct pollfd p[2] = {{.fd = fd, .events = POLLIN}, {.fd = channel, .events = POLLIN}};

        while (poll(p, 2, CLIENT_WAIT_MS) > 0 && !p[0].revents) {
            struct client_message miss;

            assert_int_equal(client_receive(channel, &miss), 1);
            assert_int_equal(translate(fd, &g, VHOST_USER_IOTLB_UPDATE, miss.payload.iotlb.iova & ~4095ull,
                                       4096, miss.payload.iotlb.permissions),
                             0);
        }
    }
    assert_int_equal(client_receive(fd, &reply), 1);
    assert_int_equal(reply.header.request, VHOST_USER_GET_VRING_BASE);
    assert_int_equal(reply.payload.state.num, 5);
    assert_true(guest_wait_used(&g, 0, silent ? 3 : 5, 0));
    for (unsigned slot = 1; slot < 3; slot++)
        assert_int_equal(guest_status(&g, slot), silent ? 0xff : VIRTIO_BLK_S_IOERR);
    assert_true(log_lines() >= silent);
    inject_clear(blk_node(rig.blk));
    close(fd);
    close(channel);
    guest_close(&g);
    server_is_well();
}

static void a_parked_request_is_failed_at_the_end_of_a_ring_that_waits_for_translations(void **state)
{
    end_with_parked_requests(false);
}

static void a_parked_request_does_not_hold_up_the_end_of_a_ring_whose_translations_nobody_tells(void **state)
{
    end_with_parked_requests(true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(translations_are_asked_for_given_and_taken_back),
        cmocka_unit_test(a_translation_that_is_not_good_enough_is_not_asked_for_again),
        cmocka_unit_test(translations_bring_no_interrupts),
        cmocka_unit_test(thousands_of_translations_are_kept),
        cmocka_unit_test(a_parked_request_is_failed_at_the_end_of_a_ring_that_waits_for_translations),
    };
    const struct CMUnitTest without_answers[] = {
        cmocka_unit_test(a_parked_request_does_not_hold_up_the_end_of_a_ring_whose_translations_nobody_tells),
    };
    rig_inject = "read,times=0";
    /* This front end answers, however long it takes. */
    rig_translation_wait_ns = CLIENT_WAIT_MS * 1000000ull;
    int failed = cmocka_run_group_tests_name("vhost-user server, translated addresses", tests, rig_setup,
                                             rig_teardown);
    rig_translation_wait_ns = 0;
    return failed + cmocka_run_group_tests_name("vhost-user server, translations that nobody tells",
                                                without_answers, rig_setup, rig_teardown);
}
