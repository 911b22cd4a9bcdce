/*
 * Which barriers the rings use, and of which kind: with ORDER_PLATFORM those that reach hardware devices,
 * without it those among CPUs (virtio 1.4, 6.1; checklist 254). The rings' sources are compiled into this
 * test with counters in the barriers' place.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#define VBLK_COUNT_BARRIERS
unsigned vblk_barriers_cpu, vblk_barriers_platform;

#include "guest/driver/vq_split.c"
#define put_desc put_desc_packed
#include "guest/driver/vq_packed.c"

#define SIZE 8u

static _Alignas(4096) uint8_t ring[8192];
static struct vq_chain chains[SIZE];

static void expect(bool platform, unsigned barriers)
{
    assert_int_equal(platform ? vblk_barriers_platform : vblk_barriers_cpu, barriers);
    assert_int_equal(platform ? vblk_barriers_cpu : vblk_barriers_platform, 0);
    vblk_barriers_cpu = vblk_barriers_platform = 0;
}

/* An honest device's answer to the only chain there is */
static void use(struct vq *vq)
{
    if (vq->ops == &vq_split_ops) {
        vq->u.split.used->ring[0] = (struct virtq_used_elem){le32_put(0), le32_put(1)};
        le16_store(&vq->u.split.used->idx, 1);
    } else {
        vq->u.packed.desc[0].len = le32_put(1);
        le16_store(&vq->u.packed.desc[0].flags, VIRTQ_DESC_F_AVAIL | VIRTQ_DESC_F_USED | VIRTQ_DESC_F_WRITE);
    }
}

static void run(bool packed, bool platform)
{
    struct vq vq = {.order_platform = platform, .event_idx = true};
    uint16_t token;
    uint32_t len;

    memset(ring, 0, sizeof(ring));
    if (packed)
        vq_setup_packed(&vq, SIZE, chains, ring, (vblk_dma_addr){0x1000});
    else
        vq_setup_split(&vq, SIZE, chains, ring, (vblk_dma_addr){0x1000}, false);
    vblk_barriers_cpu = vblk_barriers_platform = 0;
    assert_true(vq_put(&vq, 0, NULL, 0, 0, 1));
    expect(platform, 1); /* 2.7.13.3.1, 2.8.21.1.1 */
    (void)vq_want_notify(&vq);
    expect(platform, 1); /* 2.7.13.4.1, 2.8.21.3.1 */
    assert_false(vq_interrupts_on(&vq));
    expect(platform, 1); /* 2.7.14, 2.8.22 */
    assert_int_equal(vq_pop(&vq, &token, &len), 0);
    expect(platform, 0);
    use(&vq);
    assert_int_equal(vq_pop(&vq, &token, &len), 1);
    expect(platform, 1); /* 2.7.14, 2.8.22 */
}

static void barriers_among_cpus(void **state)
{
    run(false, false);
    run(true, false);
}

static void barriers_for_hardware(void **state)
{
    run(false, true);
    run(true, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(barriers_among_cpus),
        cmocka_unit_test(barriers_for_hardware),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
