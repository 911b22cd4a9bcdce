/*
 * Finds the virtio block devices and makes a transport for each: modern PCI, transitional PCI through its
 * legacy registers, MMIO. Supplies the driver's platform functions; all disks share them but for their
 * context, which says how the disk's interrupts arrive.
 */
#include "guest/driver/vtr_mmio.h"
#include "guest/platform/common/common.h"

#include <string.h>

#define DISKS_MAX 16

struct disk {
    struct machine_disk machine;
    struct vblk_platform platform;
    union {
        struct vtr_pci pci;
        struct vtr_pci_legacy pci_legacy;
        struct {
            struct vtr_mmio mmio;
            struct vtr_mmio_access mmio_access;
        };
    };
    unsigned vectors; /* MSI-X messages: nothing to acknowledge. 0: a line */
    void (*on_wake)(void *opaque);
    void *on_wake_opaque;
};

static struct disk disks[DISKS_MAX];
static unsigned num_disks;

/* ---- the driver's platform ---- */

static void *dma_alloc(void *ctx, size_t bytes, size_t align, vblk_dma_addr *addr)
{
    void *mem = align <= 4096 ? dma_pool_alloc(bytes) : NULL;
    addr->value = (uint64_t)(uintptr_t)mem;
    return mem;
}

static void dma_free(void *ctx, void *mem, size_t bytes)
{
    dma_pool_free(mem, bytes);
}

static int share(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr *addr,
                 size_t *contiguous)
{
    addr->value = (uint64_t)(uintptr_t)mem;
    *contiguous = len;
    return 0;
}

static void unshare(void *ctx, void *mem, size_t len, enum vblk_direction direction, vblk_dma_addr addr)
{
}

static uint64_t now_ns(void *ctx)
{
    return arch_now_ns();
}

/* Where the queue's interrupt arrives: lines at CPU 0, messages as pci_enable_msix has sent them. */
static unsigned interrupted_cpu(const struct disk *disk, unsigned queue)
{
    return disk->vectors < 2 ? 0 : queue % (disk->vectors - 1) % arch_num_cpus();
}

static void wait(void *ctx, unsigned queue, uint64_t deadline_ns)
{
    struct disk *disk = ctx;
    if (!disk->machine.has_interrupt) {
        machine_relax();
        return;
    }
    if (interrupted_cpu(disk, queue) != arch_this_cpu()) {
        uint64_t soon = arch_now_ns() + 100000; /* it won't wake us: look again */
        deadline_ns = soon < deadline_ns ? soon : deadline_ns;
    }
    arch_wait(deadline_ns);
    if (!disk->vectors && disk->on_wake)
        disk->on_wake(disk->on_wake_opaque); /* acknowledges, or the line would stay up */
}

static void relax(void *ctx)
{
    machine_relax();
}

static void log_line(void *ctx, enum vblk_log_level level, const char *text)
{
    const struct disk *disk = ctx;
    if (level == VBLK_LOG_INFO)
        return;
    machine_print(level == VBLK_LOG_ERROR ? "# error: " : "# warning: ");
    machine_print(disk->machine.where);
    machine_print(": ");
    machine_print(text);
    machine_print("\n");
}

static struct disk *disk_new(const char *kind)
{
    if (num_disks == DISKS_MAX)
        return NULL;
    struct disk *disk = &disks[num_disks];
    memset(disk, 0, sizeof *disk);
    disk->platform = (struct vblk_platform){.ctx = disk,
                                            .dma_alloc = dma_alloc,
                                            .dma_free = dma_free,
                                            .share = share,
                                            .unshare = unshare,
                                            .now_ns = now_ns,
                                            .wait = wait,
                                            .relax = relax,
                                            .log = log_line};
    disk->machine.platform = &disk->platform;
    strcpy(disk->machine.where, kind);
    return disk;
}

static void append_hex(char *where, const char *before, uint64_t value, unsigned digits)
{
    strcat(where, before);
    size_t len = strlen(where);
    for (unsigned i = 0; i < digits; i++)
        where[len + i] = "0123456789abcdef"[value >> 4 * (digits - 1 - i) & 15];
    where[len + digits] = '\0';
}

/* ---- PCI ---- */

static void found_pci(struct pci_function *f)
{
    struct disk *disk = disk_new("pci ");
    if (!disk)
        return;
    char *where = disk->machine.where;
    append_hex(where, "", f->bdf >> 8, 2);
    append_hex(where, ":", f->bdf >> 3 & 31, 2);
    append_hex(where, ".", f->bdf & 7, 1);
    unsigned vectors = disk->vectors = pci_enable_msix(f, 1 + VTR_PCI_QUEUES_MAX);
    disk->machine.has_interrupt = vectors > 0;
    if (!vectors) {
        int irq = arch_pci_irq(f->bdf);
        disk->machine.has_interrupt = irq >= 0 && arch_irq_enable((unsigned)irq) == 0;
    }
    if (strstr(arch.command_line, "pci=window") &&
        vtr_pci_window_init(&disk->pci, &f->access, vectors) == 0) {
        disk->machine.transport = &disk->pci.vtr;
        strcat(where, " window");
    } else if (vtr_pci_init(&disk->pci, &f->access, vectors) == 0) {
        disk->machine.transport = &disk->pci.vtr;
    } else if (vtr_pci_legacy_init(&disk->pci_legacy, &f->access, vectors) == 0) {
        disk->machine.transport = &disk->pci_legacy.vtr;
        strcat(where, " legacy");
    } else {
        machine_print("# ");
        machine_print(where);
        machine_print(": a virtio block device that offers no way to its registers\n");
        return;
    }
    num_disks++;
}

/* ---- MMIO ---- */

static void probe_mmio(const struct arch_mmio *m)
{
    struct disk *disk = disk_new("mmio ");
    void *registers = disk ? arch_map_device(m->addr, m->size) : NULL;
    if (!registers)
        return;
    append_hex(disk->machine.where, "0x", m->addr, m->addr >> 32 ? 16 : 8);
    disk->mmio_access = (struct vtr_mmio_access){registers, vtr_mmio_direct_read, vtr_mmio_direct_write};
    if (vtr_mmio_init(&disk->mmio, &disk->mmio_access, m->size) != 0)
        return; /* an empty slot, or another kind of device */
    disk->machine.transport = &disk->mmio.vtr;
    disk->machine.has_interrupt = arch_irq_enable(m->irq) == 0;
    if (disk->mmio.version == 1)
        strcat(disk->machine.where, " legacy");
    num_disks++;
}

void disks_init(void)
{
    if (arch.has_pci)
        pci_scan(vtr_pci_is_blk, found_pci);
    for (unsigned i = 0; i < arch.num_mmio; i++)
        probe_mmio(&arch.mmio[i]);
}

unsigned machine_disk_count(void)
{
    return num_disks;
}

const struct machine_disk *machine_disk(unsigned index)
{
    return index < num_disks ? &disks[index].machine : NULL;
}

void machine_on_wake(unsigned index, void (*function)(void *opaque), void *opaque)
{
    if (index < num_disks) {
        disks[index].on_wake_opaque = opaque;
        disks[index].on_wake = function;
    }
}
