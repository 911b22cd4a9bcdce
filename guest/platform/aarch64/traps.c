/*
 * Exceptions: all are the end. What is printed is meant for a person who looks for the place.
 */
#include "guest/platform/aarch64/aarch64.h"
#include "guest/platform/machine.h"

struct aarch64_trap_frame {
    uint64_t x[31], sp;
};

_Noreturn void aarch64_trap(const struct aarch64_trap_frame *frame, unsigned entry);

static const char *class_name(unsigned class)
{
    switch (class) {
    case 0x00:
        return "undefined instruction";
    case 0x07:
        return "floating point is off";
    case 0x15:
        return "supervisor call";
    case 0x20:
    case 0x21:
        return "instruction abort";
    case 0x22:
        return "PC alignment";
    case 0x24:
    case 0x25:
        return "data abort";
    case 0x26:
        return "SP alignment";
    case 0x2f:
        return "SError";
    case 0x3c:
        return "breakpoint";
    default:
        return "exception";
    }
}

void aarch64_trap(const struct aarch64_trap_frame *frame, unsigned entry)
{
    static bool dying;
    if (dying)
        arch_exit(3);
    dying = true;
    uint64_t esr = READ_REGISTER("esr_el1");
    machine_print("\naarch64: ");
    machine_print(class_name(esr >> 26 & 63));
    machine_print_hex("vector", entry);
    machine_print_hex("esr", esr);
    machine_print_hex("address", READ_REGISTER("far_el1"));
    machine_print("\n");
    machine_print_hex("pc", READ_REGISTER("elr_el1"));
    machine_print_hex("sp", frame->sp);
    machine_print_hex("spsr", READ_REGISTER("spsr_el1"));
    machine_print("\n");
    for (unsigned i = 0; i < 31; i++) {
        char name[4] = {'x', (char)(i < 10 ? '0' + i : '0' + i / 10), (char)(i < 10 ? '\0' : '0' + i % 10),
                        '\0'};
        machine_print_hex(name, frame->x[i]);
        if (i % 5 == 4)
            machine_print("\n");
    }
    machine_print("\nwhich line it is: aarch64-linux-gnu-addr2line -fe IMAGE.elf PC\n");
    arch_exit(3);
}
