/*
 * Exceptions and interrupts. An exception is the end: it is printed so that a person can find the place, and
 * the machine exits with verdict 3. An interrupt is acknowledged and counted; whoever waited looks for
 * himself.
 *
 * Compiled without SSE (guest.mk), since the entry code does not save those registers.
 */
#include "guest/platform/machine.h"
#include "guest/platform/x86_64/x86.h"

struct gate {
    uint16_t offset_low, selector;
    uint8_t ist, type;
    uint16_t offset_mid;
    uint32_t offset_high, reserved;
};

struct __attribute__((packed)) task_state {
    uint32_t reserved0;
    uint64_t rsp[3], reserved1, ist[7], reserved2;
    uint16_t reserved3, io_map;
};

struct __attribute__((packed)) table_pointer {
    uint16_t limit;
    uint64_t base;
};

#define VECTOR_DOUBLE_FAULT 8
#define VECTOR_PAGE_FAULT   14
#define GDT_FIRST_TASK      4
#define FAULT_STACK_BYTES   8192

extern const char x86_vectors[];
extern uint64_t x86_gdt[];
extern const struct table_pointer x86_gdt_pointer;

static struct gate idt[256];
static struct task_state tasks[ARCH_CPUS_MAX];
static uint8_t fault_stacks[ARCH_CPUS_MAX][FAULT_STACK_BYTES] __attribute__((aligned(16)));
static uint64_t interrupts;

static const char *const names[32] = {
    [0] = "divide error",
    [1] = "debug",
    [2] = "non-maskable interrupt",
    [3] = "breakpoint",
    [4] = "overflow",
    [5] = "bound range",
    [6] = "invalid opcode",
    [7] = "no coprocessor",
    [8] = "double fault (stack overflow?)",
    [10] = "invalid task state",
    [11] = "segment not present",
    [12] = "stack fault",
    [13] = "general protection",
    [14] = "page fault",
    [16] = "x87 error",
    [17] = "alignment check",
    [18] = "machine check",
    [19] = "SIMD error",
};

void x86_traps_init(unsigned cpu)
{
    if (cpu == 0) {
        for (unsigned vector = 0; vector < 256; vector++) {
            uint64_t entry = (uint64_t)x86_vectors + 16 * vector;
            idt[vector] = (struct gate){.offset_low = (uint16_t)entry,
                                        .selector = 8,
                                        .ist = vector == VECTOR_DOUBLE_FAULT,
                                        .type = 0x8e, /* present, interrupt gate */
                                        .offset_mid = (uint16_t)(entry >> 16),
                                        .offset_high = (uint32_t)(entry >> 32)};
        }
    }
    struct task_state *task = &tasks[cpu];
    task->ist[0] = (uint64_t)(fault_stacks[cpu] + FAULT_STACK_BYTES);
    task->io_map = sizeof *task;
    uint64_t base = (uint64_t)task;
    uint64_t *descriptor = &x86_gdt[GDT_FIRST_TASK + 2 * cpu];
    descriptor[0] = (sizeof *task - 1) | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    descriptor[1] = base >> 32;
    struct table_pointer idt_pointer = {sizeof idt - 1, (uint64_t)idt};
    __asm__ volatile("lgdt %0; lidt %1; ltr %w2"
                     :
                     : "m"(x86_gdt_pointer), "m"(idt_pointer), "r"(8 * (GDT_FIRST_TASK + 2 * cpu))
                     : "memory");
}

static void print_registers(const struct x86_trap_frame *f)
{
    machine_print_hex("rip", f->rip);
    machine_print_hex("rsp", f->rsp);
    machine_print_hex("rflags", f->rflags);
    machine_print_hex("error", f->error);
    machine_print("\n");
    const struct {
        const char *name;
        uint64_t value;
    } registers[] = {
        {"rax", f->rax}, {"rbx", f->rbx}, {"rcx", f->rcx}, {"rdx", f->rdx}, {"rsi", f->rsi},
        {"rdi", f->rdi}, {"rbp", f->rbp}, {"r8", f->r8},   {"r9", f->r9},   {"r10", f->r10},
        {"r11", f->r11}, {"r12", f->r12}, {"r13", f->r13}, {"r14", f->r14}, {"r15", f->r15},
    };
    for (unsigned i = 0; i < sizeof registers / sizeof registers[0]; i++) {
        machine_print_hex(registers[i].name, registers[i].value);
        if (i % 5 == 4)
            machine_print("\n");
    }
}

void x86_trap(struct x86_trap_frame *frame)
{
    static bool dying;
    if (frame->vector >= 32) {
        if (frame->vector == X86_VECTOR_SPURIOUS)
            return;
        if (frame->vector != X86_VECTOR_TIMER)
            __atomic_fetch_add(&interrupts, 1, __ATOMIC_RELAXED);
        x86_apic_eoi();
        return;
    }
    if (dying)
        arch_exit(3);
    dying = true;
    machine_print("\nx86_64: ");
    machine_print(names[frame->vector] ? names[frame->vector] : "exception");
    machine_print_hex("vector", frame->vector);
    if (frame->vector == VECTOR_PAGE_FAULT) {
        uint64_t address;
        __asm__ volatile("movq %%cr2, %0" : "=r"(address));
        machine_print_hex("address", address);
        machine_print(frame->error & 2 ? " (write)" : frame->error & 16 ? " (execute)" : " (read)");
    }
    machine_print("\n");
    print_registers(frame);
    machine_print("which line it is: addr2line -fe IMAGE.elf RIP\n");
    arch_exit(3);
}

uint64_t arch_interrupts(void)
{
    return __atomic_load_n(&interrupts, __ATOMIC_RELAXED);
}
