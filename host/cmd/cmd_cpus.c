/* Lists of CPUs: see cmd_cpus.h. */
#include "host/cmd/cmd_cpus.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

static int wrong(const char *option, const char *text, struct error *err)
{
    return error_set(err, -EINVAL, "--%s=%s: not a list of CPUs below %u (0,2,4-7 say)", option, text,
                     (unsigned)CPU_SETSIZE);
}

int cmd_cpus_parse(struct cmd_cpus *cpus, const char *option, const char *text, struct error *err)
{
    const char *at = text;

    cpus->count = 0;
    do {
        unsigned first, last;
        int end = 0;

        if (sscanf(at, "%4u%n", &first, &end) != 1 || strspn(at, "0123456789") != (size_t)end)
            return wrong(option, text, err);
        at += end;
        last = first;
        if (*at == '-') {
            at++;
            if (sscanf(at, "%4u%n", &last, &end) != 1 || strspn(at, "0123456789") != (size_t)end)
                return wrong(option, text, err);
            at += end;
        }
        if (last < first || last >= CPU_SETSIZE || last - first >= CMD_CPUS_MAX - cpus->count)
            return wrong(option, text, err);
        for (unsigned cpu = first; cpu <= last; cpu++)
            cpus->cpu[cpus->count++] = (unsigned short)cpu;
    } while (*at++ == ',');
    return at[-1] ? wrong(option, text, err) : 0;
}

int cmd_cpus_pin(const struct cmd_cpus *cpus, unsigned index, struct error *err)
{
    cpu_set_t set;

    if (cpus->count == 0)
        return 0;
    CPU_ZERO(&set);
    CPU_SET(cpus->cpu[index % cpus->count], &set);
    if (sched_setaffinity(0, sizeof(set), &set) < 0)
        return error_set(err, -errno, "CPU %u cannot be had: %s", cpus->cpu[index % cpus->count],
                         strerror(errno));
    return 0;
}
