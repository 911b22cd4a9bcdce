/*
 * The local APIC (timer, messages) and the I/O APIC (interrupt lines).
 *
 * Interrupts stay masked on every CPU except between `sti` and `cli` of arch_wait, so an interrupt that came
 * earlier is still pending in the APIC and ends the wait at once: there is no window to lose one in.
 */
#include "guest/platform/x86_64/x86.h"

#define LAPIC_BASE          0xfee00000ull
#define LAPIC_ID            0x20
#define LAPIC_TASK_PRIORITY 0x80
#define LAPIC_EOI           0xb0
#define LAPIC_SPURIOUS      0xf0
#define LAPIC_COMMAND_LOW   0x300
#define LAPIC_COMMAND_HIGH  0x310
#define LAPIC_TIMER         0x320
#define LAPIC_LINT0         0x350
#define LAPIC_LINT1         0x360
#define LAPIC_ERROR         0x370
#define LAPIC_TIMER_INITIAL 0x380
#define LAPIC_TIMER_CURRENT 0x390
#define LAPIC_TIMER_DIVIDE  0x3e0
#define LVT_MASKED          0x10000u
#define COMMAND_BUSY        0x1000u

#define MSR_APIC_BASE   0x1b
#define APIC_BASE_ON    0x800u
#define APIC_BASE_X2    0x400u
#define IOAPIC_BASE     0xfec00000ull
#define IOAPIC_VERSION  1
#define IOAPIC_ENTRY(n) (0x10 + 2 * (n))
#define ENTRY_MASKED    0x10000u
#define ENTRY_LEVEL     0x8000u
#define IOAPIC_LINES    64

static uint64_t timer_hz;
static unsigned ioapic_lines;

static uint32_t lapic_read(unsigned reg)
{
    return *(volatile uint32_t *)(uintptr_t)(LAPIC_BASE + reg);
}

static void lapic_write(unsigned reg, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)(LAPIC_BASE + reg) = value;
}

static uint32_t ioapic_read(unsigned reg)
{
    *(volatile uint32_t *)(uintptr_t)IOAPIC_BASE = reg;
    return *(volatile uint32_t *)(uintptr_t)(IOAPIC_BASE + 0x10);
}

static void ioapic_write(unsigned reg, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)IOAPIC_BASE = reg;
    *(volatile uint32_t *)(uintptr_t)(IOAPIC_BASE + 0x10) = value;
}

void x86_apic_init_cpu(void)
{
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(MSR_APIC_BASE));
    low = (low | APIC_BASE_ON) & ~APIC_BASE_X2;
    __asm__ volatile("wrmsr" : : "a"(low), "d"(high), "c"(MSR_APIC_BASE));
    lapic_write(LAPIC_TASK_PRIORITY, 0);
    lapic_write(LAPIC_LINT0, LVT_MASKED);
    lapic_write(LAPIC_LINT1, LVT_MASKED);
    lapic_write(LAPIC_ERROR, LVT_MASKED);
    lapic_write(LAPIC_TIMER_DIVIDE, 0xb); /* by 1 */
    lapic_write(LAPIC_TIMER, X86_VECTOR_TIMER);
    lapic_write(LAPIC_TIMER_INITIAL, 0);
    lapic_write(LAPIC_SPURIOUS, 0x100 | X86_VECTOR_SPURIOUS);
}

void x86_apic_init(void)
{
    outb(0x21, 0xff); /* the old interrupt controllers stay silent */
    outb(0xa1, 0xff);
    x86_apic_init_cpu();
    uint32_t version = ioapic_read(IOAPIC_VERSION);
    ioapic_lines = version == 0xffffffff ? 0 : (version >> 16 & 0xff) + 1;
    if (ioapic_lines > IOAPIC_LINES)
        ioapic_lines = IOAPIC_LINES;
    for (unsigned line = 0; line < ioapic_lines; line++)
        ioapic_write(IOAPIC_ENTRY(line), ENTRY_MASKED);
}

void x86_apic_eoi(void)
{
    lapic_write(LAPIC_EOI, 0);
}

unsigned x86_apic_id(void)
{
    return lapic_read(LAPIC_ID) >> 24;
}

void x86_apic_send(unsigned cpu, uint32_t command)
{
    lapic_write(LAPIC_COMMAND_HIGH, cpu << 24);
    lapic_write(LAPIC_COMMAND_LOW, command);
    for (unsigned tries = 0; lapic_read(LAPIC_COMMAND_LOW) & COMMAND_BUSY && tries < 100000; tries++)
        x86_pause();
}

void x86_apic_timer_start(uint32_t ticks)
{
    lapic_write(LAPIC_TIMER_INITIAL, ticks);
}

uint32_t x86_apic_timer_left(void)
{
    return lapic_read(LAPIC_TIMER_CURRENT);
}

void x86_apic_set_timer_hz(uint64_t hz)
{
    timer_hz = hz;
}

void arch_wait(uint64_t deadline_ns)
{
    uint64_t now = arch_now_ns();
    if (deadline_ns <= now)
        return;
    uint64_t ns = deadline_ns - now;
    if (ns > 1000000000)
        ns = 1000000000;
    uint64_t ticks = ns * (timer_hz / 1000) / 1000000;
    if (ticks > UINT32_MAX)
        ticks = UINT32_MAX;
    x86_apic_timer_start(ticks ? (uint32_t)ticks : 1);
    __asm__ volatile("sti; hlt; cli" : : : "memory");
    x86_apic_timer_start(0);
}

int arch_msi_message(unsigned bdf, unsigned cpu, uint64_t *addr, uint32_t *data)
{
    static unsigned next = X86_VECTOR_MSI;
    if (next == X86_VECTOR_MSI_END)
        next = X86_VECTOR_MSI; /* shared then: nobody dispatches by vector */
    *addr = LAPIC_BASE | (uint64_t)(cpu < arch_num_cpus() ? cpu : 0) << 12;
    *data = next++;
    return 0;
}

int arch_irq_enable(unsigned irq)
{
    if (irq >= ioapic_lines)
        return -1;
    ioapic_write(IOAPIC_ENTRY(irq) + 1, x86_apic_id() << 24);
    ioapic_write(IOAPIC_ENTRY(irq), ENTRY_LEVEL | (X86_VECTOR_LINE + irq));
    return 0;
}
