/* The sub-commands of `ringside`. Each returns the program's exit status. */
#ifndef RINGSIDE_HARNESS_COMMANDS_H
#define RINGSIDE_HARNESS_COMMANDS_H

#include "tests/harness/settings.h"

int command_info(const struct settings *settings);
int command_verify(const struct settings *settings);
int command_bench(const struct settings *settings);
int command_trace(const struct settings *settings);
int command_conform(const struct settings *settings);
int command_torture(const struct settings *settings);
int command_sim(const struct settings *settings);

#endif
