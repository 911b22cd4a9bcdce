/*
 * Secondary CPUs, one started at a time. QEMU numbers the local APICs 0, 1, 2, ... without gaps.
 */
#include "guest/platform/machine.h"
#include "guest/platform/x86_64/x86.h"

#include <string.h>

#define COMMAND_INIT    0x4500u
#define COMMAND_START   0x4600u
#define TRAMPOLINE      0x8000u /* a page below 1 MiB; page 8 of memory */
#define CPU_STACK_BYTES 32768

extern const char x86_trampoline[], x86_trampoline_end[];
extern uint64_t x86_cpu_stack, x86_cpu_starting;
_Noreturn void x86_cpu_entry(unsigned cpu);

static uint8_t cpu_stacks[ARCH_CPUS_MAX - 1][CPU_STACK_BYTES] __attribute__((aligned(16)));
static unsigned cpus_up = 1;

_Noreturn void x86_cpu_entry(unsigned cpu)
{
    x86_traps_init(cpu);
    x86_apic_init_cpu();
    __atomic_store_n(&cpus_up, cpu + 1, __ATOMIC_RELEASE); /* seen by arch_cpu_start */
    cpu_main(cpu);
}

unsigned arch_this_cpu(void)
{
    unsigned id = x86_apic_id();
    return id < ARCH_CPUS_MAX ? id : 0;
}

static void pause_ns(uint64_t ns)
{
    for (uint64_t end = arch_now_ns() + ns; arch_now_ns() < end;)
        x86_pause();
}

int arch_cpu_start(unsigned cpu)
{
    static const uint64_t waits_ns[] = {500000000, ARCH_CPU_START_NS}; /* after each start message */
    if (cpu == 0 || cpu >= arch_num_cpus() || cpu != __atomic_load_n(&cpus_up, __ATOMIC_ACQUIRE))
        return -1;
    memcpy((void *)(uintptr_t)TRAMPOLINE, x86_trampoline, (size_t)(x86_trampoline_end - x86_trampoline));
    x86_cpu_stack = (uint64_t)(cpu_stacks[cpu - 1] + CPU_STACK_BYTES);
    x86_cpu_starting = cpu;
    __atomic_thread_fence(__ATOMIC_SEQ_CST); /* all of that before the CPU that the messages start reads it */
    x86_apic_send(cpu, COMMAND_INIT);
    pause_ns(10000000);
    for (size_t attempt = 0; attempt < sizeof waits_ns / sizeof waits_ns[0]; attempt++) {
        x86_apic_send(cpu, COMMAND_START | TRAMPOLINE >> 12);
        for (uint64_t end = arch_now_ns() + waits_ns[attempt]; arch_now_ns() < end; x86_pause()) {
            if (__atomic_load_n(&cpus_up, __ATOMIC_ACQUIRE) == cpu + 1) /* pairs with x86_cpu_entry */
                return 0;
        }
    }
    return -1;
}
