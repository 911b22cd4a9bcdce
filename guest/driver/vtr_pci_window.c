/*
 * virtio over PCI with nothing but configuration cycles: the access window (virtio 1.4, 4.1.4.9). Slow, and
 * enough to boot from before anybody has mapped a BAR.
 *
 * What always holds: the window is aimed only into other virtio structures, at a multiple of the width
 * (4.1.4.9.2); both follow from vtr_pci.c, which bounds every structure and accesses fields by their natural
 * width.
 */
#include "guest/driver/vtr_pci.h"

#include "guest/driver/vtr_pci_internal.h"

#define WINDOW_BAR    4u
#define WINDOW_OFFSET 8u
#define WINDOW_LENGTH 12u
#define WINDOW_DATA   16u

static void aim(struct vtr_pci *pci, unsigned bar, uint64_t offset, unsigned width)
{
    const struct vtr_pci_access *access = pci->config_space;
    unsigned at = pci->pci_cfg_at;

    access->config_write(access->ctx, at + WINDOW_BAR, 1, bar);
    access->config_write(access->ctx, at + WINDOW_OFFSET, 4, (uint32_t)offset);
    access->config_write(access->ctx, at + WINDOW_LENGTH, 4, width);
}

static uint32_t window_read(void *ctx, unsigned bar, uint64_t offset, unsigned width)
{
    struct vtr_pci *pci = ctx;

    aim(pci, bar, offset, width);
    return pci->config_space->config_read(pci->config_space->ctx, pci->pci_cfg_at + WINDOW_DATA, width);
}

static void window_write(void *ctx, unsigned bar, uint64_t offset, unsigned width, uint32_t value)
{
    struct vtr_pci *pci = ctx;

    aim(pci, bar, offset, width);
    pci->config_space->config_write(pci->config_space->ctx, pci->pci_cfg_at + WINDOW_DATA, width, value);
}

/* Whoever has no BARs mapped may not know their sizes either; the capabilities' lengths are then all there
 * is. */
static uint64_t window_bar_bytes(void *ctx, unsigned bar)
{
    struct vtr_pci *pci = ctx;
    const struct vtr_pci_access *access = pci->config_space;

    return access->bar_bytes ? access->bar_bytes(access->ctx, bar) : (uint64_t)1 << 32;
}

int vtr_pci_window_init(struct vtr_pci *pci, const struct vtr_pci_access *access, unsigned msix_vectors)
{
    int result;

    pci->window = (struct vtr_pci_access){
        .ctx = pci, .bar_bytes = window_bar_bytes, .bar_read = window_read, .bar_write = window_write};
    result = vtr_pci_discover(pci, access, &pci->window, msix_vectors);
    if (result == 0 && !pci->pci_cfg_at)
        return -VBLK_ENOTSUP;
    return result;
}
