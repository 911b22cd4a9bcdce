/*
 * Exceptions: all are the end. What is printed is meant for a person who looks for the place.
 */
#include "guest/platform/arch.h"
#include "guest/platform/machine.h"
#include "guest/platform/riscv64/riscv64.h"

_Noreturn void riscv64_trap(const uint64_t registers[32]);

void riscv64_trap(const uint64_t registers[32])
{
    static const char *const causes[16] = {
        "instruction address misaligned",
        "instruction access fault",
        "illegal instruction",
        "breakpoint",
        "load address misaligned",
        "load access fault",
        "store address misaligned",
        "store access fault",
        "environment call",
        "environment call",
        NULL,
        NULL,
        "instruction page fault",
        "load page fault",
        NULL,
        "store page fault",
    };
    static const char *const names[32] = {
        "zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "s0", "s1", "a0",  "a1",  "a2", "a3", "a4", "a5",
        "a6",   "a7", "s2", "s3", "s4", "s5", "s6", "s7", "s8", "s9", "s10", "s11", "t3", "t4", "t5", "t6"};
    static bool dying;
    if (dying)
        arch_exit(3);
    dying = true;
    uint64_t cause = READ_CSR(scause);
    machine_print("\nriscv64: ");
    machine_print(cause < 16 && causes[cause] ? causes[cause] : "trap");
    machine_print_hex("cause", cause);
    machine_print_hex("address", READ_CSR(stval));
    machine_print("\n");
    machine_print_hex("pc", READ_CSR(sepc));
    machine_print("\n");
    for (unsigned i = 1; i < 32; i++) {
        machine_print_hex(names[i], registers[i]);
        if (i % 5 == 0)
            machine_print("\n");
    }
    machine_print("\nwhich line it is: riscv64-linux-gnu-addr2line -fe IMAGE.elf PC\n");
    arch_exit(3);
}
