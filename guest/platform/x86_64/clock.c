/*
 * Time: the TSC, and the local APIC's timer, both measured once against the interval timer (8254), which
 * every PC has at a known rate. The real-time clock says what day it is.
 */
#include "guest/platform/machine.h"
#include "guest/platform/x86_64/x86.h"

#define PIT_HZ        1193182ull
#define PIT_CHANNEL0  0x40
#define PIT_COMMAND   0x43
#define PIT_RATE_MODE 0x34 /* channel 0, low then high byte, mode 2 */
#define PIT_LATCH     0x00
#define MEASURE_TICKS (PIT_HZ / 50) /* 20 ms, well within the counter's 55 ms */

static uint64_t tsc_start, tsc_to_ns; /* ns = tsc * tsc_to_ns >> 32 */

/* One reading of both clocks; of several tries the one whose readings lie closest together. */
struct reading {
    uint64_t tsc;
    uint32_t pit, apic;
};

static struct reading read_clocks(void)
{
    struct reading best = {0};
    uint64_t best_span = UINT64_MAX;
    for (int i = 0; i < 8; i++) {
        struct reading r;
        uint64_t before = x86_rdtsc();
        outb(PIT_COMMAND, PIT_LATCH);
        r.apic = x86_apic_timer_left();
        r.tsc = x86_rdtsc();
        r.pit = inb(PIT_CHANNEL0);
        r.pit |= (uint32_t)inb(PIT_CHANNEL0) << 8;
        if (r.tsc - before < best_span) {
            best_span = r.tsc - before;
            best = r;
        }
    }
    return best;
}

static unsigned rtc_read(unsigned reg)
{
    outb(0x70, (uint8_t)reg);
    return inb(0x71);
}

static uint64_t rtc_seconds(void)
{
    for (unsigned tries = 0; rtc_read(10) & 0x80 && tries < 100000; tries++)
        x86_pause();
    unsigned v[6];
    static const uint8_t regs[6] = {0, 2, 4, 7, 8, 9};
    bool binary = rtc_read(11) & 4;
    for (unsigned i = 0; i < 6; i++) {
        v[i] = rtc_read(regs[i]);
        if (!binary)
            v[i] = (v[i] & 15) + 10 * (v[i] >> 4);
    }
    if (v[4] < 1 || v[4] > 12 || v[3] < 1 || v[3] > 31)
        return 0;
    /* Days since 1970, counting years from March so that the leap day is a year's last. */
    uint64_t year = 2000 + v[5] - (v[4] <= 2), month = (v[4] + 9) % 12;
    uint64_t days =
        365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + v[3] - 1 - 719468;
    return ((days * 24 + v[2]) * 60 + v[1]) * 60 + v[0];
}

struct rates {
    uint64_t tsc_hz, apic_hz;
};

/* False: the interval timer stands still. */
static bool measure_once(struct rates *rates)
{
    x86_apic_timer_start(UINT32_MAX);
    struct reading first = read_clocks(), last;
    uint64_t ticks = 0;
    uint64_t patience = x86_rdtsc() + 20000000000ull;
    do {
        last = read_clocks();
        ticks = (first.pit - last.pit) & 0xffff;
    } while (ticks < MEASURE_TICKS && x86_rdtsc() < patience);
    x86_apic_timer_start(0);
    if (ticks < MEASURE_TICKS)
        return false;
    rates->tsc_hz = (last.tsc - first.tsc) * PIT_HZ / ticks;
    rates->apic_hz = (uint64_t)(first.apic - last.apic) * PIT_HZ / ticks;
    return true;
}

/*
 * A CPU that does not run for a while (a virtual one) misses the counter's going round, and finds its clocks
 * too fast, by any factor. So the smaller of two measurements counts, and they have to agree.
 */
static struct rates measure(void)
{
    struct rates rates, again;
    if (!measure_once(&rates)) {
        machine_print("x86_64: no interval timer; the clock is a guess\n");
        return (struct rates){1000000000, 1000000000};
    }
    for (unsigned tries = 0; tries < 20 && measure_once(&again); tries++) {
        struct rates less = again.tsc_hz < rates.tsc_hz ? again : rates;
        uint64_t more = again.tsc_hz < rates.tsc_hz ? rates.tsc_hz : again.tsc_hz;
        rates = less;
        if (more - less.tsc_hz <= less.tsc_hz / 16)
            break;
    }
    return rates;
}

void x86_clock_init(void)
{
    outb(PIT_COMMAND, PIT_RATE_MODE);
    outb(PIT_CHANNEL0, 0);
    outb(PIT_CHANNEL0, 0);
    struct rates rates = measure();
    if (rates.tsc_hz < 1000000)
        rates.tsc_hz = 1000000;
    tsc_to_ns = (uint64_t)(((unsigned __int128)1000000000 << 32) / rates.tsc_hz);
    tsc_start = x86_rdtsc();
    x86_apic_set_timer_hz(rates.apic_hz < 1000 ? 1000 : rates.apic_hz);
    arch.start_seconds = rtc_seconds();
}

uint64_t arch_now_ns(void)
{
    return (uint64_t)(((unsigned __int128)(x86_rdtsc() - tsc_start) * tsc_to_ns) >> 32);
}
