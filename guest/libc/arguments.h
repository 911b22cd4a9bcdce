/*
 * The command line that QEMU's -append gave: words, parted by blanks, of the form NAME=VALUE or NAME. main
 * gets them as argv; anything may look one up by name here. A leading "--" of a name is not looked at.
 */
#ifndef RINGSIDE_GUEST_ARGUMENTS_H
#define RINGSIDE_GUEST_ARGUMENTS_H

#include <stdbool.h>
#include <stdint.h>

/* The value of the last NAME=VALUE; "on" for a NAME alone; NULL if it isn't there. */
const char *argument(const char *name);
bool argument_is(const char *name, const char *value);
/* A number with an optional K, M, G or T (of 1024); OTHERWISE if it isn't there. One that
 * is none ends the program with status 2. */
uint64_t argument_number(const char *name, uint64_t otherwise);
/* The same for a piece of text. False if TEXT is no number. */
bool number_parse(const char *text, uint64_t *value);

#endif
