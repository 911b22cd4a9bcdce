/*
 * The first serial port (16550, COM1), polled. Writing waits for room in the transmitter, but not for ever: a
 * machine without the port must not hang on its first message. The FIFO is left as it is, since switching it
 * would drop what was typed (or piped in) before we came.
 */
#include "guest/platform/x86_64/x86.h"

#define COM1              0x3f8
#define UART_DATA         0
#define UART_INTERRUPTS   1
#define UART_LINE_CONTROL 3
#define UART_MODEM        4
#define UART_LINE_STATUS  5
#define LINE_8N1          0x03
#define LINE_DIVISOR      0x80
#define STATUS_DATA       0x01
#define STATUS_EMPTY      0x20

static bool absent;

void x86_serial_init(void)
{
    outb(COM1 + UART_INTERRUPTS, 0);
    outb(COM1 + UART_LINE_CONTROL, LINE_DIVISOR);
    outb(COM1 + UART_DATA, 1); /* 115200 baud */
    outb(COM1 + UART_INTERRUPTS, 0);
    outb(COM1 + UART_LINE_CONTROL, LINE_8N1);
    outb(COM1 + UART_MODEM, 0x03);
    absent = inb(COM1 + UART_LINE_STATUS) == 0xff;
}

void arch_console_putc(char c)
{
    if (absent)
        return;
    for (unsigned tries = 0; !(inb(COM1 + UART_LINE_STATUS) & STATUS_EMPTY) && tries < 1000000; tries++)
        x86_pause();
    outb(COM1 + UART_DATA, (uint8_t)c);
}

int arch_console_getc(void)
{
    if (absent || !(inb(COM1 + UART_LINE_STATUS) & STATUS_DATA))
        return -1;
    return inb(COM1 + UART_DATA);
}
