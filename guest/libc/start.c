/*
 * From the machine to main: the command line becomes argv, constructors run, and main's result is the
 * verdict.
 */
#include "guest/libc/start.h"

#include <stdlib.h>
#include <string.h>

#include "guest/platform/machine.h"

#define ARGUMENTS_MAX 64

int guest_argc;
char **guest_argv;

int main(int argc, char **argv);

extern void (*__init_array_start[])(void);
extern void (*__init_array_end[])(void);

void guest_start(void)
{
    static char text[2048], *words[ARGUMENTS_MAX + 1];
    strncpy(text, machine_command_line(), sizeof text - 1);
    words[guest_argc++] = (char *)guest_program;
    char *rest = NULL;
    for (char *word = strtok_r(text, " \t\n", &rest); word && guest_argc < ARGUMENTS_MAX;
         word = strtok_r(NULL, " \t\n", &rest))
        words[guest_argc++] = word;
    guest_argv = words;
    for (void (**function)(void) = __init_array_start; function < __init_array_end; function++)
        (*function)();
    exit(main(guest_argc, guest_argv));
}
