/*
 * Threads on CPUs of the administrator's choice: a list of CPUs, of which a program's Nth thread gets the Nth
 * (and begins anew when there are more threads than CPUs).
 */
#ifndef RINGSIDE_CMD_CPUS_H
#define RINGSIDE_CMD_CPUS_H

#include "host/runtime/error.h"

#define CMD_CPUS_MAX 1024u

struct cmd_cpus {
    unsigned count; /* 0: threads run where the kernel likes */
    unsigned short cpu[CMD_CPUS_MAX];
};

/* "0,2,4-7". 0, or -EINVAL with a sentence that begins with --OPTION. */
int cmd_cpus_parse(struct cmd_cpus *cpus, const char *option, const char *text, struct error *err);

/* Holds the calling thread, the INDEXth, on its CPU. 0, or -errno with ERR: there is no such CPU, or it is
 * not ours. */
int cmd_cpus_pin(const struct cmd_cpus *cpus, unsigned index, struct error *err);

#endif
