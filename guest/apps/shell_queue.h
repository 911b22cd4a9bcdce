/*
 * A queue's ring, drawn in text.
 */
#ifndef RINGSIDE_SHELL_QUEUE_H
#define RINGSIDE_SHELL_QUEUE_H

#include "guest/driver/vblk.h"

void queue_picture(const struct vblk *disk, unsigned queue);

#endif
