/*
 * From the machine to main.
 */
#ifndef RINGSIDE_GUEST_START_H
#define RINGSIDE_GUEST_START_H

extern int guest_argc;
extern char **guest_argv;

/* The program's name, as argv[0]; each program defines it. */
extern const char guest_program[];

/* The names that its command line may have beside those of guest/libc/disk.c, ended by NULL; each program
 * defines them. Another one ends the program with a sentence and status 2. */
extern const char *const guest_words[];

#endif
