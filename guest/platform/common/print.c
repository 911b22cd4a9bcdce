/*
 * The console's few primitives, usable before the C library is ready and inside a trap.
 */
#include "guest/platform/arch.h"
#include "guest/platform/machine.h"

#include <string.h>

void machine_console_write(const char *text, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        if (text[i] == '\n')
            arch_console_putc('\r');
        arch_console_putc(text[i]);
    }
}

int machine_console_read(void)
{
    return arch_console_getc();
}

void machine_print(const char *text)
{
    machine_console_write(text, strlen(text));
}

void machine_print_hex(const char *name, uint64_t value)
{
    machine_print(" ");
    machine_print(name);
    machine_print("=0x");
    char digits[17];
    unsigned n = 16;
    digits[n] = '\0';
    do {
        digits[--n] = "0123456789abcdef"[value & 15];
        value >>= 4;
    } while (value);
    machine_print(digits + n);
}
