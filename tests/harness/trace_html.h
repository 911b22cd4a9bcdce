/* A trace as a page for the browser: one picture a request, nothing loaded from elsewhere. */
#ifndef RINGSIDE_HARNESS_TRACE_HTML_H
#define RINGSIDE_HARNESS_TRACE_HTML_H

#include <jansson.h>
#include <stdio.h>

#define TRACE_STEPS 12u

/* ALL as `ringside trace --format=json` prints it. */
void trace_html(FILE *out, const json_t *all);

#endif
