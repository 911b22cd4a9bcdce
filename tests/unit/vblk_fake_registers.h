/*
 * Register files that stand before the fake device and judge every access by 4.1 (PCI) and 4.2 (MMIO) of
 * virtio 1.4: width, order, which registers there are and which may be written. What the accesses mean they
 * hand to the fake.
 */
#ifndef RINGSIDE_TESTS_VBLK_FAKE_REGISTERS_H
#define RINGSIDE_TESTS_VBLK_FAKE_REGISTERS_H

#include "guest/driver/vtr_mmio.h"
#include "guest/driver/vtr_pci.h"
#include "tests/unit/vblk_fake.h"

enum { BAR_LEGACY = 0, BAR_MEM = 4, BAR_IO = 2 };
enum { AT_COMMON = 0x0, AT_ISR = 0x1000, AT_DEVICE = 0x2000, AT_NOTIFY = 0x3000 };

struct pci {
    struct fake *fake;
    struct vtr_ops real; /* the fake's */
    uint8_t config[256];
    uint64_t bar_bytes[6];
    unsigned next_cap; /* where the next capability goes */
    uint8_t *last_link;
    uint32_t device_select, driver_select;
    uint64_t driver_features;
    uint16_t queue_select, config_vector;
    unsigned notify_off_unit, multiplier;
    uint16_t notif_data; /* queue_notif_config_data is this plus the queue's index */
    bool refuse_vectors;
    bool msix; /* legacy: vector registers are there */
    unsigned window_at;
    unsigned isr_reads, kicks, kick_width;
    uint32_t last_kick;
    struct {
        uint16_t size, vector, enable, reset;
        uint64_t desc, driver, device;
        uint32_t pfn;
    } queue[FAKE_QUEUES];
    struct vtr_pci_access access;
    struct vtr_pci modern;
    struct vtr_pci_legacy legacy;
};

/* A function with DEVICE_ID and no capabilities yet; to be freed. */
struct pci *pci_new(struct fake *fake, uint16_t device_id);
void pci_put(struct pci *pci, unsigned at, unsigned width, uint32_t value); /* into configuration space */
/* Appends a capability of LEN bytes, or a virtio one; where it lies. */
unsigned pci_add_cap(struct pci *pci, uint8_t id, unsigned len);
unsigned pci_add_virtio_cap(struct pci *pci, uint8_t type, uint8_t bar, uint32_t offset, uint32_t length);
void pci_add_all_caps(struct pci *pci); /* those that a modern device has */

struct mmio {
    struct fake *fake;
    struct vtr_ops real;
    uint32_t version, magic, device_id;
    uint32_t device_select, driver_select, queue_select, isr;
    bool device_selected, driver_selected;
    uint64_t driver_features;
    unsigned accesses;
    bool page_size_set, stuck_ready;
    struct {
        uint32_t size, align, pfn;
        uint64_t desc, driver, device;
        bool ready, reset;
    } queue[FAKE_QUEUES];
    struct vtr_mmio_access access;
    struct vtr_mmio transport;
};

struct mmio *mmio_new(struct fake *fake, uint32_t version);

#endif
