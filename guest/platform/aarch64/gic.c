/*
 * The interrupt controller: GICv2 with its v2m message frame, GICv3 with its redistributors (messages:
 * its.c).
 *
 * The CPU keeps interrupts masked; `wfi` wakes for one that is pending all the same, and arch_wait then takes
 * it here by reading the acknowledge register. So nothing is lost between looking at a ring and sleeping.
 */
#include "guest/platform/aarch64/aarch64.h"

#include <string.h>

#define GICD_CTLR          0x000
#define GICD_IGROUPR(n)    (0x080 + 4 * (n))
#define GICD_ISENABLER(n)  (0x100 + 4 * (n))
#define GICD_ICENABLER(n)  (0x180 + 4 * (n))
#define GICD_IPRIORITYR(n) (0x400 + (n))
#define GICD_ITARGETSR(n)  (0x800 + (n))
#define GICD_ICFGR(n)      (0xc00 + 4 * (n))
#define GICD_IROUTER(n)    (0x6000 + 8 * (uint64_t)(n))
#define GICD_CTLR_RWP      (1u << 31)
#define GICC_CTLR          0x00
#define GICC_PMR           0x04
#define GICC_IAR           0x0c
#define GICC_EOIR          0x10
#define GICR_BYTES         0x20000
#define GICR_WAKER         0x14
#define GICR_SGI           0x10000
#define SPURIOUS           1020 /* and up to 1023 */
#define LPI_FIRST          8192

static struct gic_places gic;
static bool have_its;
static uint32_t v2m_first, v2m_count;

static uint64_t private_registers(void)
{
    return gic.version == 3 ? gic.redistributors + arch_this_cpu() * (uint64_t)GICR_BYTES + GICR_SGI
                            : gic.distributor;
}

void gic_init_cpu(unsigned cpu)
{
    if (gic.version == 3) {
        uint64_t redistributor = gic.redistributors + cpu * (uint64_t)GICR_BYTES;
        write32(redistributor + GICR_WAKER, read32(redistributor + GICR_WAKER) & ~2u);
        for (unsigned tries = 0; read32(redistributor + GICR_WAKER) & 4 && tries < 1000000; tries++)
            continue;
        write32(redistributor + GICR_SGI + GICD_IGROUPR(0), 0xffffffff);
        WRITE_REGISTER("S3_0_C12_C12_5", READ_REGISTER("S3_0_C12_C12_5") | 1); /* ICC_SRE_EL1 */
        __asm__ volatile("isb");
        WRITE_REGISTER("S3_0_C4_C6_0", 0xff); /* ICC_PMR_EL1 */
        WRITE_REGISTER("S3_0_C12_C12_7", 1);  /* ICC_IGRPEN1_EL1 */
        __asm__ volatile("isb");
    } else if (gic.version == 2) {
        write32(gic.cpu_interface + GICC_PMR, 0xff);
        write32(gic.cpu_interface + GICC_CTLR, 1);
    }
    gic_enable(AARCH64_TIMER_IRQ, false);
}

void gic_init(const struct gic_places *places)
{
    gic = *places;
    if (gic.version == 3)
        write32(gic.distributor + GICD_CTLR, 0x12); /* affinity routing, group 1 */
    else if (gic.version == 2)
        write32(gic.distributor + GICD_CTLR, 1);
    gic_init_cpu(0);
    if (gic.version == 3 && gic.its)
        have_its = its_init(gic.its, gic.redistributors, arch_num_cpus());
    if (gic.version == 2 && gic.v2m) {
        uint32_t typer = read32(gic.v2m + 8);
        v2m_first = typer >> 16 & 0x3ff;
        v2m_count = typer & 0x3ff;
    }
}

int gic_enable(unsigned irq, bool edge)
{
    if (gic.version == 0 || irq < 16 || irq >= 1020)
        return -1;
    uint64_t base = irq < 32 ? private_registers() : gic.distributor;
    uint32_t bit = 1u << irq % 32, config = read32(base + GICD_ICFGR(irq / 16));
    write32(base + GICD_ICENABLER(irq / 32), bit);
    if (irq >= 32) {
        uint32_t edge_bit = 2u << 2 * (irq % 16);
        write32(base + GICD_ICFGR(irq / 16), edge ? config | edge_bit : config & ~edge_bit);
        if (gic.version == 3)
            write64(base + GICD_IROUTER(irq), 0); /* CPU 0 */
        else
            *(volatile uint8_t *)(base + GICD_ITARGETSR(irq)) = 1;
    }
    *(volatile uint8_t *)(base + GICD_IPRIORITYR(irq)) = 0x80;
    if (gic.version == 3)
        write32(base + GICD_IGROUPR(irq / 32), read32(base + GICD_IGROUPR(irq / 32)) | bit);
    write32(base + GICD_ISENABLER(irq / 32), bit);
    return 0;
}

unsigned gic_take_all(void)
{
    unsigned others = 0;
    for (unsigned taken = 0; taken < 64; taken++) { /* a line that stays up would go on for ever */
        uint32_t id;
        if (gic.version == 3)
            id = (uint32_t)READ_REGISTER("S3_0_C12_C12_0"); /* ICC_IAR1_EL1 */
        else if (gic.version == 2)
            id = read32(gic.cpu_interface + GICC_IAR);
        else
            return 0;
        uint32_t number = id & (gic.version == 3 ? 0xffffff : 0x3ff);
        if (number >= SPURIOUS && number < LPI_FIRST)
            break;
        if (gic.version == 3)
            WRITE_REGISTER("S3_0_C12_C12_1", id); /* ICC_EOIR1_EL1 */
        else
            write32(gic.cpu_interface + GICC_EOIR, id);
        others += number != AARCH64_TIMER_IRQ;
    }
    return others;
}

int gic_msi_message(unsigned bdf, unsigned cpu, uint64_t *addr, uint32_t *data)
{
    static uint32_t next;
    if (have_its)
        return its_message(bdf, cpu, addr, data);
    if (v2m_count == 0)
        return -1;
    uint32_t irq = v2m_first + next++ % v2m_count; /* shared when they run out: nobody dispatches by number */
    if (gic_enable(irq, true) != 0)
        return -1;
    *(volatile uint8_t *)(gic.distributor + GICD_ITARGETSR(irq)) = (uint8_t)(1u << cpu);
    *addr = gic.v2m + 0x40;
    *data = irq;
    return 0;
}
