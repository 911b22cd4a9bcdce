/*
 * The machine's start on its first CPU, and the functions of machine.h that only pass on.
 */
#include "guest/platform/common/common.h"

#define DMA_BYTES (16ull << 20)

static uint64_t heap_start, heap_end;

_Noreturn void machine_start(uintptr_t boot_info);

/* Entered from start.S, with a stack, memory mapped and .bss zeroed. */
void machine_start(uintptr_t boot_info)
{
    arch_init(boot_info);
    uint64_t free_bytes = arch.ram_end - arch.ram_start;
    uint64_t dma = free_bytes / 4 < DMA_BYTES ? free_bytes / 4 : DMA_BYTES;
    heap_start = arch.ram_start;
    heap_end = arch.ram_end - dma;
    dma_pool_init(heap_end, arch.ram_end);
    disks_init();
    guest_start();
}

void machine_heap(char **start, char **end)
{
    *start = (char *)(uintptr_t)heap_start;
    *end = (char *)(uintptr_t)heap_end;
}

uint64_t machine_now_ns(void)
{
    return arch_now_ns();
}

uint64_t machine_start_seconds(void)
{
    return arch.start_seconds;
}

void machine_wait(uint64_t deadline_ns)
{
    arch_wait(deadline_ns);
}

void machine_relax(void)
{
#if defined(__x86_64__)
    __asm__ volatile("pause" : : : "memory");
#elif defined(__aarch64__)
    __asm__ volatile("yield" : : : "memory");
#else
    __asm__ volatile("" : : : "memory");
#endif
}

void machine_exit(int verdict)
{
    arch_exit(verdict);
}

const char *machine_command_line(void)
{
    return arch.command_line ? arch.command_line : "";
}

uint64_t machine_interrupts(void)
{
    return arch_interrupts();
}
