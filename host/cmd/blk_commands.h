/*
 * The commands of the control socket: one table.
 */
#ifndef RINGSIDE_BLK_COMMANDS_H
#define RINGSIDE_BLK_COMMANDS_H

#include <jansson.h>

#include "host/cmd/blk_control.h"

/* Does what REQUEST (an object) asks for: the value of "return", new; or NULL with ERR. Coroutine on the
 * control loop. */
json_t *coroutine_fn control_co_command(struct control_options *control, const json_t *request,
                                        struct error *err);

#endif
