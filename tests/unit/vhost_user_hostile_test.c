/*
 * A front end that means harm: 500 seeded cases of messages, rings and files made to break a back end, each
 * on a connection of its own, from every state that a connection can be in. After each the server answers the
 * next front end and has let go of every descriptor. A failing seed is a whole report: run with
 * VHOST_HOSTILE_SEED=N to see that one alone.
 */
#include "tests/unit/vhost_user_rig.h"

static uint64_t random_state;

static uint64_t rnd(void)
{
    random_state += 0x9e3779b97f4a7c15;
    uint64_t z = random_state;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static uint64_t hostile_draw(unsigned bytes)
{
    return bytes == 8 ? rnd() : rnd() >> (64 - 8 * bytes);
}

#define HOSTILE_FEATURES FEATURES_USED
#define HOSTILE_PROTOCOL (PROTOCOL_USED & rig.offered)
#include "tests/unit/vhost_user_hostile.h"

static void hostile_case(uint64_t seed)
{
    struct client_guest g;
    int fd;
    random_state = seed;
    unsigned stage = below(4);
    if (stage == 0) {
        fd = client_connect(rig.path);
        guest_open(&g);
    } else if (stage == 1) {
        fd = front_end_with_ring(&g);
    } else {
        fd = front_end_running(&g);
        if (below(2))
            read_works(&g);
        if (below(4) == 0) {
            /* The same with translated addresses. */
            client_send_u64(fd, VHOST_USER_SET_STATUS, 0);
            client_send_u64(fd, VHOST_USER_SET_FEATURES,
                            FEATURES_USED | VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM) |
                                VIRTIO_BIT(VHOST_USER_F_PROTOCOL_FEATURES));
            guest_send_ring(&g, fd, 0, g.avail_idx);
            client_send_event(fd, VHOST_USER_SET_VRING_KICK, 0, g.kick);
            client_send_state(fd, VHOST_USER_SET_VRING_ENABLE, 0, 1);
        }
    }
    unsigned steps = 1 + below(25);
    for (unsigned i = 0; i < steps && swallow(fd, NULL); i++) {
        switch (below(12)) {
        case 0:
        case 1:
            spoil_ring(&g);
            break;
        case 2:
            if (below(6) == 0) {
                /* Nobody here touches the memory from now on. */
                assert_int_equal(ftruncate(g.fd, below(2) ? 0 : 4096 * below(200)), 0);
                guest_kick(&g);
                i = steps;
            }
            break;
        case 3:
            if (below(8) == 0) {
                uint64_t junk[64];
                for (unsigned j = 0; j < 64; j++)
                    junk[j] = rnd();
                send(fd, junk, 1 + below(sizeof junk), MSG_NOSIGNAL | MSG_DONTWAIT);
            }
            break;
        default:
            send_hostile_message(fd, &g);
        }
    }
    if (below(3))
        client_send(fd, VHOST_USER_GET_FEATURES, NULL, 0, NULL, 0);
    close(fd);
    guest_close(&g);
}

static void of_500_hostile_front_ends_none_hurts_the_next(void **state)
{
    const char *only = getenv("VHOST_HOSTILE_SEED"), *size = getenv("RINGSIDE_SIZE");
    uint64_t first = only ? strtoull(only, NULL, 0) : 1;
    uint64_t last = only ? first : size && strcmp(size, "long") == 0 ? 100000 : 500;
    assert_int_equal(sigbus_guard_install(), 0); /* cmocka has put its own handler there */
    server_is_well();
    unsigned before = open_descriptors();
    for (uint64_t seed = first; seed <= last; seed++) {
        printf("# seed %llu\n", (unsigned long long)seed);
        fflush(stdout);
        hostile_case(seed);
        server_is_well();
        unsigned now = open_descriptors();
        if (now != before)
            fail_msg("seed %llu: %u descriptors, %u before", (unsigned long long)seed, now, before);
        log_lines();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_500_hostile_front_ends_none_hurts_the_next),
    };
    return cmocka_run_group_tests_name("hostile front ends", tests, rig_setup, rig_teardown);
}
