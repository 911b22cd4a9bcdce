/*
 * From the machine to main.
 */
#ifndef RINGSIDE_GUEST_START_H
#define RINGSIDE_GUEST_START_H

extern int guest_argc;
extern char **guest_argv;

/* The program's name, as argv[0]; each program defines it. */
extern const char guest_program[];

#endif
