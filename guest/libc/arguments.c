/*
 * Looking words of the command line up.
 */
#include "guest/libc/arguments.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guest/libc/start.h"

const char *argument(const char *name)
{
    const char *value = NULL;
    size_t len = strlen(name);
    for (int i = 1; i < guest_argc; i++) {
        const char *word = guest_argv[i];
        if (strncmp(word, "--", 2) == 0)
            word += 2;
        if (strncmp(word, name, len) != 0)
            continue;
        if (word[len] == '=')
            value = word + len + 1;
        else if (word[len] == '\0')
            value = "on";
    }
    return value;
}

bool argument_is(const char *name, const char *value)
{
    const char *text = argument(name);
    return text && strcmp(text, value) == 0;
}

bool number_parse(const char *text, uint64_t *value)
{
    char *end;
    if (*text < '0' || *text > '9')
        return false;
    uint64_t number = strtoull(text, &end, 0);
    unsigned shift = 0;
    switch (*end) {
    case 'T':
    case 't':
        shift += 10; /* fall through */
    case 'G':
    case 'g':
        shift += 10; /* fall through */
    case 'M':
    case 'm':
        shift += 10; /* fall through */
    case 'K':
    case 'k':
        shift += 10;
        end++;
        break;
    default:
        break;
    }
    if (*end || (shift && number >> (64 - shift)))
        return false;
    *value = number << shift;
    return true;
}

uint64_t argument_number(const char *name, uint64_t otherwise)
{
    const char *text = argument(name);
    uint64_t value;
    if (!text)
        return otherwise;
    if (!number_parse(text, &value)) {
        printf("%s: %s=%s: not a number (digits, and K, M, G or T)\n", guest_program, name, text);
        exit(2);
    }
    return value;
}
