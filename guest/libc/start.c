/*
 * From the machine to main: the command line becomes argv, constructors run, and main's result is the
 * verdict.
 */
#include "guest/libc/start.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest/platform/machine.h"

#define ARGUMENTS_MAX 64

int guest_argc;
char **guest_argv;

int main(int argc, char **argv);

extern void (*__init_array_start[])(void);
extern void (*__init_array_end[])(void);

/* What disk_default_config and the platform look at, and what QEMU's microvm adds by itself */
static const char *const common_words[] = {
    "queues", "queue-size", "indirect", "deadline-ms",        "polling",
    "ring",   "event-idx",  "pci",      "virtio_mmio.device", NULL};

/* Is WORD, or what stands before its '=', among NAMES? */
static bool is_among(const char *word, const char *const *names)
{
    size_t len = strcspn(word, "=");
    for (; *names; names++) {
        if (strlen(*names) == len && memcmp(*names, word, len) == 0)
            return true;
    }
    return false;
}

static void check_words(void)
{
    for (int i = 1; i < guest_argc; i++) {
        const char *word = guest_argv[i] + (strncmp(guest_argv[i], "--", 2) == 0 ? 2 : 0);
        if (is_among(word, common_words) || is_among(word, guest_words))
            continue;
        printf("%s: %s: no such word (there are:", guest_program, word);
        for (const char *const *name = guest_words; *name; name++)
            printf(" %s", *name);
        for (const char *const *name = common_words; *name; name++)
            printf(" %s", *name);
        printf(")\n");
        exit(2);
    }
}

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
    check_words();
    exit(main(guest_argc, guest_argv));
}
