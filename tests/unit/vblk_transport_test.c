/*
 * PCI (modern, access window, legacy) and MMIO (versions 2 and 1), each over a register file that judges
 * every access by 4.1 and 4.2 (vblk_fake_registers.h). One test body runs over all of them; then come the
 * devices that describe themselves badly.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "common/virtio.h"
#include "tests/unit/vblk_fake_registers.h"

#define F(name) VIRTIO_BIT(VIRTIO_##name)

/* ---- one body over all transports ---- */

enum kind { MODERN, WINDOW, LEGACY, LEGACY_MSIX, MMIO2, MMIO1, KINDS };

struct rig {
    struct fake *fake;
    struct pci *pci;
    struct mmio *mmio;
    struct vtr *vtr;
    uint8_t *memory;
    struct vblk *disk;
};

static void rig_start(struct rig *rig, enum kind kind, uint64_t features, unsigned vectors)
{
    struct vblk_config config = {
        .num_queues = 2, .queue_size = 16, .indirect_segs = 4, .deadline_ns = 1000000};
    bool legacy = kind == LEGACY || kind == LEGACY_MSIX || kind == MMIO1;

    memset(rig, 0, sizeof(*rig));
    rig->fake = fake_new(features, 4096);
    rig->fake->config.num_queues = le16_put(2);
    rig->fake->num_queues = 2;
    rig->fake->vectors = vectors;
    if (legacy) {
        rig->fake->ops.legacy = true;
        rig->fake->offered &= 0xffffffff;
        for (unsigned i = 0; i < FAKE_QUEUES; i++)
            rig->fake->queue[i].size_max = 16;
    }
    switch (kind) {
    case MODERN:
    case WINDOW:
        rig->pci = pci_new(rig->fake, VTR_PCI_DEVICE_BLK);
        pci_add_all_caps(rig->pci);
        assert_int_equal((kind == MODERN ? vtr_pci_init : vtr_pci_window_init)(&rig->pci->modern,
                                                                               &rig->pci->access, vectors),
                         0);
        rig->vtr = &rig->pci->modern.vtr;
        break;
    case LEGACY:
    case LEGACY_MSIX:
        rig->pci = pci_new(rig->fake, VTR_PCI_DEVICE_TRANSITIONAL);
        rig->pci->msix = kind == LEGACY_MSIX;
        rig->fake->vectors = vectors = kind == LEGACY_MSIX ? 3 : 0;
        assert_int_equal(vtr_pci_init(&rig->pci->modern, &rig->pci->access, vectors),
                         -VBLK_ENODEV); /* checklist 214 */
        assert_int_equal(vtr_pci_legacy_init(&rig->pci->legacy, &rig->pci->access, vectors), 0);
        rig->vtr = &rig->pci->legacy.vtr;
        break;
    default:
        rig->mmio = mmio_new(rig->fake, kind == MMIO2 ? 2 : 1);
        assert_int_equal(vtr_mmio_init(&rig->mmio->transport, &rig->mmio->access, 0x200), 0);
        rig->vtr = &rig->mmio->transport.vtr;
    }
    rig->memory = aligned_alloc(64, (vblk_memory_bytes(&config) + 63) & ~(size_t)63);
    assert_non_null(rig->memory);
    assert_int_equal(vblk_start(&rig->disk, rig->memory, vblk_memory_bytes(&config), rig->vtr,
                                &rig->fake->platform, &config),
                     0);
    rig->fake->vblk = rig->disk;
}

static void rig_stop(struct rig *rig)
{
    fake_stop(rig->fake);
    free(rig->pci);
    free(rig->mmio);
    free(rig->memory);
}

/* checklist 133-137, 165, 187-193, 211, 232-242, 248: everything over every transport */
static void every_transport_carries_requests(void **state)
{
    static const uint64_t extra[] = {0, F(F_NOTIFICATION_DATA), F(F_NOTIF_CONFIG_DATA),
                                     F(F_NOTIFICATION_DATA) | F(F_NOTIF_CONFIG_DATA) | F(F_RING_RESET) |
                                         F(F_RING_PACKED)};
    static uint8_t out[16384], in[16384];

    for (unsigned kind = 0; kind < KINDS; kind++)
        for (unsigned i = 0; i < 4; i++) {
            struct rig rig;
            struct vblk_info info;
            rig_start(&rig, kind, extra[i] | F(BLK_F_MQ) | F(F_EVENT_IDX) | F(F_INDIRECT_DESC), i ? 0 : 3);
            vblk_info(rig.disk, &info);
            assert_int_equal(info.num_queues, 2);
            assert_int_equal(info.capacity_sectors, 4096);
            for (unsigned q = 0; q < 2; q++) {
                memset(out, (int)(kind * 16 + i + q), sizeof(out));
                assert_int_equal(vblk_write(rig.disk, q, 5, out, sizeof(out)), 0);
                memset(in, 0, sizeof(in));
                assert_int_equal(vblk_read(rig.disk, q, 5, in, sizeof(in)), 0);
                assert_memory_equal(in, out, sizeof(in));
            }
            rig.fake->isr = VTR_INTERRUPT_QUEUES | VTR_INTERRUPT_CONFIG; /* checklist 225, 247 */
            rig.fake->config.capacity = le64_put(2048);
            rig.fake->generation++;
            assert_true(vblk_interrupt(rig.disk));
            assert_int_equal(rig.fake->isr, 0);
            vblk_info(rig.disk, &info);
            assert_int_equal(info.capacity_sectors, 2048);
            if (rig.pci && !i && kind == MODERN) {
                assert_int_equal(rig.fake->queue[0].setup.vector, 1);
                assert_int_equal(rig.fake->queue[1].setup.vector, 2);
                assert_int_equal(rig.pci->config_vector, 0);
                assert_int_equal(rig.pci->isr_reads, 1); /* by vblk_interrupt alone: checklist 203 */
            }
            rig_stop(&rig);
        }
}

/* Recovery over every transport: queue reset where it is carried (checklist 192, 243: done when the register
 * says so), device reset elsewhere */
static void every_transport_recovers(void **state)
{
    for (unsigned kind = 0; kind < KINDS; kind++)
        for (unsigned ring_reset = 0; ring_reset < 2; ring_reset++) {
            struct rig rig;
            uint8_t buf[512];
            bool modern = kind == MODERN || kind == WINDOW || kind == MMIO2;
            rig_start(&rig, kind, F(BLK_F_MQ) | (ring_reset ? F(F_RING_RESET) : 0), 0);
            assert_int_equal(vblk_read(rig.disk, 0, 0, buf, 512), 0);
            fake_use_raw(rig.fake, 0, 77, 1, 1);
            rig.fake->queue_reset_delay = 7;
            vblk_poll(rig.disk, 0);
            if (modern && ring_reset) {
                assert_int_equal(rig.fake->queue_reset_delay, 0);
                assert_int_equal(fake_count(rig.fake, EV_QUEUE_IS_RESET), 8);
            }
            assert_int_equal(rig.fake->resets, modern && ring_reset ? 1 : 2);
            assert_int_equal(vblk_read(rig.disk, 0, 0, buf, 512), 0);
            assert_int_equal(vblk_read(rig.disk, 1, 0, buf, 512), 0);
            rig_stop(&rig);
        }
}

/* ---- PCI functions that describe themselves in odd ways ---- */

static int modern_init(struct pci *pci)
{
    return vtr_pci_init(&pci->modern, &pci->access, 0);
}

static void pci_done(struct pci *pci)
{
    fake_stop(pci->fake);
    free(pci);
}

/* checklist 162, 163, 168, 169, 167, 170: what must be ignored, and what must not */
static void odd_but_legal_capability_lists(void **state)
{
    struct pci *pci;
    unsigned at;

    for (unsigned revision = 0; revision < 256; revision += 51) {
        pci = pci_new(fake_new(0, 100), revision & 1 ? VTR_PCI_DEVICE_BLK : VTR_PCI_DEVICE_TRANSITIONAL);
        pci_put(pci, 8, 1, revision);
        pci_add_virtio_cap(pci, 0, BAR_MEM, 0, 64); /* reserved types */
        pci_add_virtio_cap(pci, 6, BAR_MEM, 0, 64);
        pci_add_virtio_cap(pci, 255, BAR_MEM, 0, 64);
        pci_add_virtio_cap(pci, 9, BAR_MEM, 0, 64); /* vendor data: nothing of ours (checklist 207) */
        pci_add_virtio_cap(pci, 1, 6, 0, 64);       /* reserved bars */
        pci_add_virtio_cap(pci, 2, 255, 0, 64);
        pci_add_all_caps(pci);
        assert_int_equal(modern_init(pci), 0);
        assert_int_equal(pci->modern.region[VTR_PCI_COMMON].bar, BAR_MEM);
        pci_done(pci);
    }
    pci = pci_new(fake_new(0, 100),
                  VTR_PCI_DEVICE_BLK); /* a BAR that is not there first, then the usable one; twice */
    pci_add_virtio_cap(pci, 2, 1, 0, 0x1000);
    pci_add_all_caps(pci);
    pci_add_virtio_cap(pci, 1, BAR_MEM, 0x100, 60);
    assert_int_equal(modern_init(pci), 0);
    assert_int_equal(pci->modern.region[VTR_PCI_NOTIFY].bar, BAR_MEM);
    assert_int_equal(pci->modern.region[VTR_PCI_COMMON].offset, AT_COMMON);
    pci_done(pci);

    pci = pci_new(fake_new(0, 100), VTR_PCI_DEVICE_BLK); /* longer capabilities than known */
    pci_add_all_caps(pci);
    for (at = pci->config[0x34]; at; at = pci->config[at + 1])
        pci->config[at + 2] += 16;
    assert_int_equal(modern_init(pci), 0);
    pci_done(pci);
}

/* checklist 171, 173, 197: lengths, offsets and links that lead out, or round and round */
static void hostile_capability_lists(void **state)
{
    static const uint32_t offsets[] = {0, 0x3fff, 0x4000, 0x4001, 0xfffffff0, 0xffffffff};
    static const uint32_t lengths[] = {0, 1, 55, 56, 0x4000, 0xffffffff};
    struct pci *pci;

    for (unsigned type = 1; type <= 4; type++)
        for (unsigned i = 0; i < 6; i++)
            for (unsigned k = 0; k < 6; k++) {
                pci = pci_new(fake_new(0, 100), VTR_PCI_DEVICE_BLK);
                for (unsigned t = 1; t <= 4; t++)
                    pci_add_virtio_cap(pci, (uint8_t)t, BAR_MEM, t == type ? offsets[i] : 0,
                                       t == type ? lengths[k] : 0x1000);
                (void)modern_init(pci);
                if (pci->modern.region[VTR_PCI_COMMON].bytes)
                    assert_true(pci->modern.region[VTR_PCI_COMMON].offset +
                                    pci->modern.region[VTR_PCI_COMMON].bytes <=
                                0x4000);
                if (pci->modern.region[VTR_PCI_NOTIFY].bytes)
                    assert_true(pci->modern.region[VTR_PCI_NOTIFY].offset +
                                    pci->modern.region[VTR_PCI_NOTIFY].bytes <=
                                0x4000);
                pci_done(pci);
            }
    for (unsigned link = 0; link < 256; link++) { /* the last capability points anywhere */
        pci = pci_new(fake_new(0, 100), VTR_PCI_DEVICE_BLK);
        pci_add_all_caps(pci);
        *pci->last_link = (uint8_t)link;
        pci->window_at = 0; /* its data register is among the places that a link may lead to */
        assert_int_equal(modern_init(pci), 0);
        pci_done(pci);
    }
    pci = pci_new(fake_new(0, 100), VTR_PCI_DEVICE_BLK); /* all ones: gone */
    memset(pci->config + 4, 0xff, 252);
    assert_true(modern_init(pci) < 0);
    pci_done(pci);
    for (unsigned missing = 1; missing <= 4; missing++) {
        pci = pci_new(fake_new(0, 100), VTR_PCI_DEVICE_BLK);
        for (unsigned t = 1; t <= 4; t++)
            if (t != missing)
                pci_add_virtio_cap(pci, (uint8_t)t, BAR_MEM, (t - 1) * 0x1000, 0x1000);
        assert_int_equal(modern_init(pci), -VBLK_ENOTSUP);
        pci_done(pci);
    }
    pci = pci_new(fake_new(0, 100), 0x1041); /* a network card */
    pci_add_all_caps(pci);
    assert_int_equal(modern_init(pci), -VBLK_ENODEV);
    pci_done(pci);
}

/* checklist 197: the notify position is the device's choice; out of bounds, it is no device */
static void notify_positions_are_checked(void **state)
{
    static const struct {
        unsigned unit, multiplier;
        bool works;
    } cases[] = {{0, 0, true},  {1, 2, true},  {1, 4096, false}, {0xffff, 0xffffffff, false},
                 {1, 1, false}, {512, 4, true}};

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct vblk_config config = {.num_queues = 2, .queue_size = 16, .deadline_ns = 1000000};
        struct fake *fake = fake_new(F(BLK_F_MQ), 4096);
        struct pci *pci = pci_new(fake, VTR_PCI_DEVICE_BLK);
        uint8_t *memory = aligned_alloc(64, (vblk_memory_bytes(&config) + 63) & ~(size_t)63), buf[512];
        int result;

        fake->num_queues = 2;
        fake->config.num_queues = le16_put(2);
        pci->notify_off_unit = cases[i].unit;
        pci->multiplier = cases[i].multiplier;
        pci_add_all_caps(pci);
        assert_int_equal(modern_init(pci), 0);
        result = vblk_start(&fake->vblk, memory, vblk_memory_bytes(&config), &pci->modern.vtr,
                            &fake->platform, &config);
        assert_int_equal(result == 0, cases[i].works);
        if (result == 0) {
            assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), 0);
            assert_int_equal(vblk_read(fake->vblk, 1, 0, buf, 512), 0);
        }
        pci_done(pci);
        free(memory);
    }
}

/* checklist 221: the device takes no vector: the driver polls, and says so. 220: never more than the table
 * has */
static void refused_vectors_mean_polling(void **state)
{
    for (unsigned table = 0; table < 2; table++) {
        struct vblk_config config = {.queue_size = 16, .deadline_ns = 1000000};
        struct fake *fake = fake_new(0, 4096);
        struct pci *pci = pci_new(fake, VTR_PCI_DEVICE_BLK);
        uint8_t *memory = aligned_alloc(64, (vblk_memory_bytes(&config) + 63) & ~(size_t)63), buf[512];
        struct vblk_info info;

        if (table)
            pci_put(pci, pci_add_cap(pci, 0x11, 12) + 2, 2, 0); /* a table of one */
        pci_add_all_caps(pci);
        fake->vectors = table ? 1 : 3;
        pci->refuse_vectors = !table;
        assert_int_equal(vtr_pci_init(&pci->modern, &pci->access, 3), 0);
        assert_int_equal(vblk_start(&fake->vblk, memory, vblk_memory_bytes(&config), &pci->modern.vtr,
                                    &fake->platform, &config),
                         0);
        vblk_info(fake->vblk, &info);
        assert_int_equal(info.polling, !table);
        assert_int_equal(vblk_read(fake->vblk, 0, 0, buf, 512), 0);
        pci_done(pci);
        free(memory);
    }
}

/* H6: the device ignores a reset: bus mastering is taken from it, and the buffers are safe */
static void bus_mastering_is_the_last_resort(void **state)
{
    struct rig rig;
    struct fake_request r = {0};
    uint8_t buf[512];

    rig_start(&rig, MODERN, 0, 0);
    rig.fake->run_on_notify = false;
    assert_int_equal(fake_submit(rig.fake, 0, &r, VBLK_READ, 0, buf, 512), 0);
    vblk_kick(rig.disk, 0);
    rig.fake->stuck_status = true;
    fake_finish(rig.fake, 0, &r);
    assert_int_equal(r.result, -VBLK_ENODEV);
    assert_int_equal(rig.pci->config[4], 2); /* memory decoding stays */
    rig_stop(&rig);
}

/* checklist 226 in the driver's view, 235, 236, 244: what is no block device is left alone, silently */
static void mmio_devices_that_are_not_ours(void **state)
{
    static const struct {
        uint32_t magic, version, device_id;
        unsigned accesses; /* at most */
    } cases[] = {{0x12345678, 2, 2, 1}, {0x74726976, 0, 2, 2}, {0x74726976, 3, 2, 2},
                 {0x74726976, 2, 0, 3}, {0x74726976, 2, 1, 3}, {0xffffffff, 0xffffffff, 0xffffffff, 1}};

    for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct fake *fake = fake_new(0, 100);
        struct mmio *mmio = mmio_new(fake, cases[i].version);
        mmio->magic = cases[i].magic;
        mmio->device_id = cases[i].device_id;
        assert_int_equal(vtr_mmio_init(&mmio->transport, &mmio->access, 0x200), -VBLK_ENODEV);
        assert_int_equal(mmio->accesses, cases[i].accesses);
        assert_int_equal(fake->log_lines, 0);
        fake_stop(fake);
        free(mmio);
    }
}

/* checklist 246: a queue that is ready already is somebody else's; one of size 0 is not there */
static void mmio_queues_that_can_not_be_had(void **state)
{
    for (unsigned absent = 0; absent < 2; absent++) {
        struct vblk_config config = {.queue_size = 16, .deadline_ns = 1000000};
        struct fake *fake = fake_new(0, 100);
        struct mmio *mmio = mmio_new(fake, 2);
        uint8_t *memory = aligned_alloc(64, (vblk_memory_bytes(&config) + 63) & ~(size_t)63);

        mmio->stuck_ready = !absent;
        if (absent)
            fake->queue[0].size_max = 0;
        assert_int_equal(vtr_mmio_init(&mmio->transport, &mmio->access, 0x200), 0);
        assert_int_equal(vblk_start(&fake->vblk, memory, vblk_memory_bytes(&config), &mmio->transport.vtr,
                                    &fake->platform, &config),
                         absent ? -VBLK_ENODEV : -VBLK_EBUSY);
        assert_int_equal(fake_count(fake, EV_QUEUE_ENABLE), 0);
        fake_stop(fake);
        free(mmio);
        free(memory);
    }
}

/* checklist 241: bits that mean nothing are not acknowledged, and mean nothing */
static void undefined_mmio_interrupts(void **state)
{
    struct rig rig;

    rig_start(&rig, MMIO2, 0, 0);
    rig.mmio->isr = 0xfffffffc;
    assert_false(vblk_interrupt(rig.disk));
    rig.fake->isr = 1;
    assert_true(vblk_interrupt(rig.disk));
    rig_stop(&rig);
}

/* Registers at a pointer: one access of the right width, little-endian */
static void direct_access(void **state)
{
    uint32_t words[4] = {0, 0, 0, 0};
    uint8_t *bytes = (uint8_t *)words;

    vtr_mmio_direct_write(words, 4, 4, 0x11223344);
    assert_int_equal(bytes[4], 0x44);
    vtr_mmio_direct_write(words, 2, 2, 0x5566);
    assert_int_equal(bytes[2], 0x66);
    vtr_mmio_direct_write(words, 1, 1, 0x77);
    assert_int_equal(vtr_mmio_direct_read(words, 0, 4), 0x55667700);
    assert_int_equal(vtr_mmio_direct_read(words, 6, 2), 0x1122);
    assert_int_equal(vtr_mmio_direct_read(words, 7, 1), 0x11);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_transport_carries_requests),
        cmocka_unit_test(every_transport_recovers),
        cmocka_unit_test(odd_but_legal_capability_lists),
        cmocka_unit_test(hostile_capability_lists),
        cmocka_unit_test(notify_positions_are_checked),
        cmocka_unit_test(refused_vectors_mean_polling),
        cmocka_unit_test(bus_mastering_is_the_last_resort),
        cmocka_unit_test(mmio_devices_that_are_not_ours),
        cmocka_unit_test(mmio_queues_that_can_not_be_had),
        cmocka_unit_test(undefined_mmio_interrupts),
        cmocka_unit_test(direct_access),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
