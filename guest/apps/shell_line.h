/*
 * A line typed at the serial console, with editing and a history.
 */
#ifndef RINGSIDE_SHELL_LINE_H
#define RINGSIDE_SHELL_LINE_H

#include <stdbool.h>

#define LINE_BYTES 256

/* Prints PROMPT and reads a line. False at the end of input (control-D on an empty line). Keys: left, right,
 * home, end, backspace, delete, control-A E B F K U W, up and down for earlier lines, control-C drops the
 * line. */
bool line_read(const char *prompt, char line[LINE_BYTES]);

#endif
