/*
 * The real transports on registers that are the fuzzer's: PCI (capability list included), PCI through the
 * access window, PCI legacy, MMIO of both versions. Part of vblk_fuzz.h.
 *
 * What must hold: every access is aligned, of 1, 2 or 4 bytes, and inside its BAR, whatever the capabilities
 * say; every ring address that the driver programs is the driver's own memory.
 */
#include "guest/driver/vtr_mmio.h"
#include "guest/driver/vtr_pci.h"

#define FUZZ_BAR_BYTES 4096u
#define FUZZ_MMIO      0x200u

static struct {
    struct vtr_pci pci;
    struct vtr_pci_legacy legacy;
    struct vtr_mmio mmio;
    uint32_t mmio_version;
    unsigned vectors;
    uint8_t config_space[256];
    uint8_t regs[FUZZ_BAR_BYTES]; /* as last written */
    uint32_t window_offset, window_bar;
} fuzz_hw;

static uint32_t fuzz_bytes(const uint8_t *at, unsigned width)
{
    uint32_t value = 0;

    for (unsigned i = 0; i < width; i++)
        value |= (uint32_t)at[i] << (8 * i);
    return value;
}

static void fuzz_put_bytes(uint8_t *at, unsigned width, uint32_t value)
{
    for (unsigned i = 0; i < width; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static void fuzz_judge_access(uint64_t offset, unsigned width, uint64_t bytes)
{
    if ((width != 1 && width != 2 && width != 4) || offset % width || offset > bytes ||
        width > bytes - offset)
        abort();
}

static uint64_t fuzz_reg64(unsigned at)
{
    return fuzz_bytes(fuzz_hw.regs + at, 4) | (uint64_t)fuzz_bytes(fuzz_hw.regs + at + 4, 4) << 32;
}

static void fuzz_program(unsigned index, unsigned size, uint64_t desc, uint64_t driver, uint64_t device)
{
    struct vtr_queue queue = {
        .index = index, .size = size, .desc = {desc}, .driver = {driver}, .device = {device}};

    if (index >= FUZZ_QUEUES || !fuzz_at(desc) || !fuzz_at(driver) || !fuzz_at(device))
        abort();
    (void)fuzz_queue_enabled(&queue);
}

static void fuzz_program_legacy(unsigned index, uint32_t page)
{
    uint64_t desc = (uint64_t)page << 12, driver = desc + 16 * FUZZ_SIZE;

    fuzz_program(index, FUZZ_SIZE, desc, driver, (driver + 6 + 2 * FUZZ_SIZE + 4095) & ~(uint64_t)4095);
}

/* ---- PCI, modern: common at 0, ISR at 0x100, device at 0x200, notify at 0x400, unless the list says
 * otherwise ---- */

static uint32_t fuzz_bar_read(void *ctx, unsigned bar, uint64_t offset, unsigned width)
{
    uint32_t roll, select = fuzz_bytes(fuzz_hw.regs + 22, 2);

    fuzz_judge_access(offset, width, bar == 0 ? FUZZ_BAR_BYTES : 0);
    if (offset >= 0x200 && offset < 0x260)
        return fuzz_config_read(NULL, (unsigned)offset - 0x200, width);
    if (offset == 20)
        return fuzz_get_status(NULL);
    if (offset == 0x100)
        return fuzz_take(1);
    roll = fuzz_take(1);
    if (roll >= 0xf4)
        return fuzz_take(width);
    switch (offset) {
    case 4:
        return (uint32_t)(fuzz_get_features(NULL) >> (fuzz_bytes(fuzz_hw.regs, 4) ? 32 : 0));
    case 18:
        return FUZZ_QUEUES;
    case 21:
        return 0;
    case 24:
        return FUZZ_SIZE;
    case 28:
        return select < FUZZ_QUEUES && fuzz.queue[select].size;
    case 30:
        return select;
    case 58:
        return 0;
    default:
        return fuzz_bytes(fuzz_hw.regs + offset, width);
    }
}

static void fuzz_bar_write(void *ctx, unsigned bar, uint64_t offset, unsigned width, uint32_t value)
{
    fuzz_judge_access(offset, width, bar == 0 ? FUZZ_BAR_BYTES : 0);
    fuzz_put_bytes(fuzz_hw.regs + offset, width, value);
    if (offset == 20 && width == 1)
        fuzz_set_status(NULL, (uint8_t)value);
    else if (offset == 28 && width == 2 && value)
        fuzz_program(fuzz_bytes(fuzz_hw.regs + 22, 2), fuzz_bytes(fuzz_hw.regs + 24, 2), fuzz_reg64(32),
                     fuzz_reg64(40), fuzz_reg64(48));
}

/* ---- PCI, legacy ---- */

static uint32_t fuzz_legacy_read(void *ctx, unsigned bar, uint64_t offset, unsigned width)
{
    unsigned config = fuzz_hw.vectors ? 24 : 20, select = fuzz_bytes(fuzz_hw.regs + 14, 2);
    uint32_t roll;

    fuzz_judge_access(offset, width, bar == 0 ? FUZZ_BAR_BYTES : 0);
    if (offset >= config)
        return fuzz_config_read(NULL, (unsigned)offset - config, width);
    if (offset == 18)
        return fuzz_get_status(NULL);
    roll = fuzz_take(1);
    if (roll >= 0xf4)
        return fuzz_take(width);
    switch (offset) {
    case 0:
        return (uint32_t)fuzz_get_features(NULL);
    case 8:
        return select < FUZZ_QUEUES && fuzz.queue[select].size;
    case 12:
        return FUZZ_SIZE;
    case 19:
        return roll & 3;
    default:
        return fuzz_bytes(fuzz_hw.regs + offset, width);
    }
}

static void fuzz_legacy_write(void *ctx, unsigned bar, uint64_t offset, unsigned width, uint32_t value)
{
    fuzz_judge_access(offset, width, bar == 0 ? FUZZ_BAR_BYTES : 0);
    fuzz_put_bytes(fuzz_hw.regs + offset, width, value);
    if (offset == 18)
        fuzz_set_status(NULL, (uint8_t)value);
    else if (offset == 8 && value)
        fuzz_program_legacy(fuzz_bytes(fuzz_hw.regs + 14, 2), value);
}

/* ---- configuration space, and the window in it ---- */

static uint32_t fuzz_space_read(void *ctx, unsigned offset, unsigned width)
{
    fuzz_judge_access(offset, width, sizeof(fuzz_hw.config_space));
    if (offset == 0xb0 + 16u && fuzz_hw.window_bar == 0 && fuzz_hw.window_offset < FUZZ_BAR_BYTES - 4)
        return fuzz_bar_read(NULL, 0, fuzz_hw.window_offset, width);
    return fuzz_bytes(fuzz_hw.config_space + offset, width);
}

static void fuzz_space_write(void *ctx, unsigned offset, unsigned width, uint32_t value)
{
    fuzz_judge_access(offset, width, sizeof(fuzz_hw.config_space));
    if (offset == 0xb0 + 4u)
        fuzz_hw.window_bar = value;
    else if (offset == 0xb0 + 8u)
        fuzz_hw.window_offset = value;
    else if (offset == 0xb0 + 16u && fuzz_hw.window_bar == 0 && fuzz_hw.window_offset < FUZZ_BAR_BYTES - 4)
        fuzz_bar_write(NULL, 0, fuzz_hw.window_offset, width, value);
    else if (offset == 4 && width == 2)
        fuzz_put_bytes(fuzz_hw.config_space + offset, width, value);
}

static uint64_t fuzz_bar_bytes(void *ctx, unsigned bar)
{
    return bar == 0 ? FUZZ_BAR_BYTES : 0;
}

static const struct vtr_pci_access fuzz_pci = {.config_read = fuzz_space_read,
                                               .config_write = fuzz_space_write,
                                               .bar_bytes = fuzz_bar_bytes,
                                               .bar_read = fuzz_bar_read,
                                               .bar_write = fuzz_bar_write};
static const struct vtr_pci_access fuzz_pci_legacy = {.config_read = fuzz_space_read,
                                                      .config_write = fuzz_space_write,
                                                      .bar_bytes = fuzz_bar_bytes,
                                                      .bar_read = fuzz_legacy_read,
                                                      .bar_write = fuzz_legacy_write};

static void fuzz_capability(unsigned at, unsigned next, unsigned type, uint32_t offset, uint32_t bytes)
{
    uint8_t *cap = fuzz_hw.config_space + at;

    fuzz_put_bytes(cap, 4, 9 | next << 8 | 20u << 16 | type << 24);
    fuzz_put_bytes(cap + 8, 4, offset);
    fuzz_put_bytes(cap + 12, 4, bytes);
    fuzz_put_bytes(cap + 16, 4, type == 2 ? 4 : 0);
}

/* A function that describes itself well, but for as many bytes as the fuzzer likes. */
static void fuzz_describe(unsigned device)
{
    unsigned changes = fuzz_take(1);

    fuzz_put_bytes(fuzz_hw.config_space, 4, 0x1af4 | device << 16);
    fuzz_put_bytes(fuzz_hw.config_space + 4, 4, 0x100000 | 6);
    fuzz_hw.config_space[0x34] = 0x40;
    fuzz_put_bytes(fuzz_hw.config_space + 0x40, 4, 0x11 | 0x54 << 8 | 3 << 16);
    fuzz_capability(0x54, 0x68, 1, 0, 60);
    fuzz_capability(0x68, 0x7c, 3, 0x100, 1);
    fuzz_capability(0x7c, 0x90, 4, 0x200, 96);
    fuzz_capability(0x90, 0xb0, 2, 0x400, 64);
    fuzz_capability(0xb0, 0, 5, 0, 0);
    for (changes = changes >= 0x80 ? changes % 8 : 0; changes; changes--) {
        unsigned at = fuzz_take(1);
        fuzz_hw.config_space[at] = (uint8_t)fuzz_take(1);
    }
}

/* ---- MMIO ---- */

static uint32_t fuzz_mmio_read(void *ctx, unsigned offset, unsigned width)
{
    uint32_t roll, select = fuzz_bytes(fuzz_hw.regs + 0x30, 4);

    fuzz_judge_access(offset, width, FUZZ_MMIO);
    if (offset >= 0x100)
        return fuzz_config_read(NULL, offset - 0x100, width);
    if (offset == 0x70)
        return fuzz_get_status(NULL);
    roll = fuzz_take(1);
    if (roll >= 0xf8)
        return fuzz_take(width);
    switch (offset) {
    case 0:
        return 0x74726976;
    case 4:
        return fuzz_hw.mmio_version;
    case 8:
        return 2;
    case 0x10:
        return (uint32_t)(fuzz_get_features(NULL) >> (fuzz_bytes(fuzz_hw.regs + 0x14, 4) ? 32 : 0));
    case 0x34:
        return FUZZ_SIZE;
    case 0x40:
    case 0x44:
        return select < FUZZ_QUEUES && fuzz.queue[select].size;
    case 0x60:
        return roll & 3;
    default:
        return 0;
    }
}

static void fuzz_mmio_write(void *ctx, unsigned offset, unsigned width, uint32_t value)
{
    fuzz_judge_access(offset, width, FUZZ_MMIO);
    fuzz_put_bytes(fuzz_hw.regs + offset, width, value);
    if (offset == 0x70)
        fuzz_set_status(NULL, (uint8_t)value);
    else if (offset == 0x44 && value)
        fuzz_program(fuzz_bytes(fuzz_hw.regs + 0x30, 4), fuzz_bytes(fuzz_hw.regs + 0x38, 4), fuzz_reg64(0x80),
                     fuzz_reg64(0x90), fuzz_reg64(0xa0));
    else if (offset == 0x40 && value)
        fuzz_program_legacy(fuzz_bytes(fuzz_hw.regs + 0x30, 4), value);
}

static const struct vtr_mmio_access fuzz_mmio = {.read = fuzz_mmio_read, .write = fuzz_mmio_write};

/* The transport that ROLL stands for; NULL if it would not have such a device. */
static struct vtr *fuzz_transport(unsigned roll)
{
    memset(&fuzz_hw, 0, sizeof(fuzz_hw));
    fuzz_hw.vectors = roll / 8 % 3;
    switch (roll % 8) {
    case 4:
        fuzz_describe(roll & 0x40 ? 0x1001 : 0x1042);
        return vtr_pci_init(&fuzz_hw.pci, &fuzz_pci, fuzz_hw.vectors) == 0 ? &fuzz_hw.pci.vtr : NULL;
    case 5:
        fuzz_describe(0x1042);
        return vtr_pci_window_init(&fuzz_hw.pci, &fuzz_pci, fuzz_hw.vectors) == 0 ? &fuzz_hw.pci.vtr : NULL;
    case 6:
        fuzz_hw.mmio_version = roll & 0x40 ? 1 : 2;
        return vtr_mmio_init(&fuzz_hw.mmio, &fuzz_mmio, FUZZ_MMIO) == 0 ? &fuzz_hw.mmio.vtr : NULL;
    case 7:
        fuzz_describe(0x1001);
        return vtr_pci_legacy_init(&fuzz_hw.legacy, &fuzz_pci_legacy, fuzz_hw.vectors) == 0
                   ? &fuzz_hw.legacy.vtr
                   : NULL;
    default:
        return &fuzz.vtr;
    }
}
