/*
 * SUSPEND (virtio 1.4, 3.4.2) over vhost-user's SET_STATUS and GET_STATUS. Numbers are those of the rule in
 * the project's checklist of the specification.
 */
#include "tests/unit/vhost_user_rig.h"

#define LIVE \
    (VIRTIO_STATUS_ACKNOWLEDGE | VIRTIO_STATUS_DRIVER | VIRTIO_STATUS_FEATURES_OK | VIRTIO_STATUS_DRIVER_OK)
#define SUSPENDED ((LIVE & ~VIRTIO_STATUS_DRIVER_OK) | VIRTIO_STATUS_SUSPEND)

static int running(struct client_guest *g, uint64_t more)
{
    int fd = front_end();

    guest_open(g);
    client_send_u64(fd, VHOST_USER_SET_FEATURES,
                    FEATURES_USED | more | VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
    guest_send_memory(g, fd);
    guest_send_ring(g, fd, 0, 0);
    client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g->kick);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    return fd;
}

static uint64_t status(int fd)
{
    return client_ask_u64(fd, VHOST_USER_GET_STATUS);
}

static void set_status(int fd, uint64_t value)
{
    client_send_u64(fd, VHOST_USER_SET_STATUS, value);
}

static uint64_t capacity(int fd)
{
    struct vhost_user_config want = {.size = 8};
    struct client_message reply;
    le64 sectors;

    client_send(fd, VHOST_USER_GET_CONFIG, &want, VHOST_USER_CONFIG_HEADER_BYTES + 8, NULL, 0);
    assert_int_equal(client_receive(fd, &reply), 1);
    memcpy(&sectors, reply.payload.config.region, sizeof sectors);
    return le64_get(sectors);
}

static bool readable(int fd)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};

    return poll(&wait, 1, 50) > 0;
}

static void coroutine_fn grow(void)
{
    struct error err = {0};

    assert_int_equal(blk_co_resize(rig.blk, CAPACITY + (1 << 20), &err), 0);
}

static void coroutine_fn shrink_back(void)
{
    struct error err = {0};

    assert_int_equal(blk_co_resize(rig.blk, CAPACITY, &err), 0);
}

static void checklist_153_suspend_needs_its_feature_and_a_driver_that_is_done(void **state)
{
    struct client_guest g;
    int fd = running(&g, VIRTIO_BIT(VIRTIO_F_SUSPEND));

    set_status(fd, SUSPENDED);
    assert_int_equal(status(fd), SUSPENDED & ~VIRTIO_STATUS_SUSPEND);
    set_status(fd, LIVE | VIRTIO_STATUS_SUSPEND); /* it was not live when this was written */
    assert_int_equal(status(fd), LIVE);
    read_works(&g);
    close(fd);
    guest_close(&g);
    fd = running(&g, 0);
    set_status(fd, LIVE);
    set_status(fd, LIVE | VIRTIO_STATUS_SUSPEND);
    assert_int_equal(status(fd), LIVE);
    read_works(&g);
    close(fd);
    guest_close(&g);
    server_is_well();
}

/* 157: it always can; and 158: what was taken is finished and told before it shows. */
static void checklist_155_157_158_a_suspended_device_leaves_the_rings_alone(void **state)
{
    struct client_guest g;
    eventfd_t count;
    int fd = running(&g, VIRTIO_BIT(VIRTIO_F_SUSPEND));

    set_status(fd, LIVE);
    for (unsigned round = 0; round < 20; round++) {
        uint16_t used;

        for (unsigned i = 0; i < 4; i++)
            guest_submit_read(&g, 0, g.avail_idx % 16);
        guest_kick(&g);
        set_status(fd, LIVE | VIRTIO_STATUS_SUSPEND);
        assert_int_equal(status(fd), SUSPENDED);
        used = le16_load(&guest_used(&g, 0)->idx);
        eventfd_read(g.call, &count);
        if (used != g.avail_idx) /* taken or not: what is left comes after it */
            assert_true((uint16_t)(g.avail_idx - used) <= 4);
        guest_submit_read(&g, 0, g.avail_idx % 16);
        guest_kick(&g);
        assert_true(client_sync(fd));
        assert_false(guest_wait_used(&g, 0, (uint16_t)(used + 1), round < 2 ? 50 : 1));
        assert_int_equal(le16_load(&guest_used(&g, 0)->idx), used);
        assert_int_not_equal(eventfd_read(g.call, &count), 0);
        /* The same status again changes nothing; DRIVER_OK goes on, and needs no kick. */
        set_status(fd, SUSPENDED);
        assert_int_equal(status(fd), SUSPENDED);
        set_status(fd, SUSPENDED | VIRTIO_STATUS_DRIVER_OK);
        assert_int_equal(status(fd), LIVE);
        assert_true(guest_wait_used(&g, 0, g.avail_idx, CLIENT_WAIT_MS));
        read_works(&g);
    }
    /* A ring that is enabled meanwhile waits as well. */
    set_status(fd, LIVE | VIRTIO_STATUS_SUSPEND);
    assert_int_equal(status(fd), SUSPENDED);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 0);
    client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
    guest_submit_read(&g, 0, g.avail_idx % 16);
    guest_kick(&g);
    assert_true(client_sync(fd));
    assert_false(guest_wait_used(&g, 0, g.avail_idx, 20));
    /* A reset ends it all. */
    set_status(fd, 0);
    assert_int_equal(status(fd), 0);
    close(fd);
    guest_close(&g);
    server_is_well();
}

static void checklist_154_155_156_the_configuration_stands_still(void **state)
{
    const uint32_t at = offsetof(struct virtio_blk_config, writeback);
    struct vhost_user_config write = {.offset = at, .size = 1, .region = {0}},
                             want = {.offset = at, .size = 1};
    struct client_guest g;
    struct client_message change, reply;
    int pair[2], fd = running(&g, VIRTIO_BIT(VIRTIO_F_SUSPEND));

    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(client_acked(fd, VHOST_USER_SET_BACKEND_REQ_FD, NULL, 0, &pair[0], 1), 0);
    close(pair[0]);
    set_status(fd, LIVE);
    set_status(fd, LIVE | VIRTIO_STATUS_SUSPEND);
    assert_int_equal(status(fd), SUSPENDED);
    assert_int_equal(
        client_acked(fd, VHOST_USER_SET_CONFIG, &write, VHOST_USER_CONFIG_HEADER_BYTES + 1, NULL, 0), 0);
    on_control_loop(grow);
    assert_int_equal(capacity(fd), CAPACITY / 512);
    assert_false(readable(pair[1]));
    set_status(fd, SUSPENDED | VIRTIO_STATUS_DRIVER_OK);
    assert_int_equal(status(fd), LIVE);
    assert_int_equal(client_receive(pair[1], &change), 1);
    assert_int_equal(change.header.request, VHOST_USER_BACKEND_CONFIG_CHANGE_MSG);
    assert_int_equal(capacity(fd), (CAPACITY + (1 << 20)) / 512);
    client_send(fd, VHOST_USER_GET_CONFIG, &want, VHOST_USER_CONFIG_HEADER_BYTES + 1, NULL, 0);
    assert_int_equal(client_receive(fd, &reply), 1);
    assert_int_equal(reply.payload.config.region[0], 1); /* the write was ignored */
    read_works(&g);
    close(pair[1]);
    close(fd);
    guest_close(&g);
    on_control_loop(shrink_back);
    server_is_well();
}

/* 8: a status of 0 before anything was written, and after a reset. */
static void checklist_8_status_is_0_at_first_and_after_a_reset(void **state)
{
    struct client_guest g;
    int fd = running(&g, VIRTIO_BIT(VIRTIO_F_SUSPEND));

    assert_int_equal(status(fd), 0);
    set_status(fd, LIVE);
    assert_int_equal(status(fd), LIVE);
    set_status(fd, 0);
    assert_int_equal(status(fd), 0);
    close(fd);
    guest_close(&g);
    server_is_well();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(checklist_8_status_is_0_at_first_and_after_a_reset),
        cmocka_unit_test(checklist_153_suspend_needs_its_feature_and_a_driver_that_is_done),
        cmocka_unit_test(checklist_155_157_158_a_suspended_device_leaves_the_rings_alone),
        cmocka_unit_test(checklist_154_155_156_the_configuration_stands_still),
    };
    return cmocka_run_group_tests(tests, rig_setup, rig_teardown);
}
