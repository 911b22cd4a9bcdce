/*
 * Where the names that an image carries lead to, and whether the image may go there (DESIGN "Trust": names in
 * an image come from a stranger). For host/block, and for who opens a chain that a file must not be in. Any
 * thread; looks at directories, opens nothing.
 */
#ifndef RINGSIDE_BLOCK_RESOLVE_H
#define RINGSIDE_BLOCK_RESOLVE_H

#include <sys/types.h>

#include "host/block/node.h"

/* A file above the one that is being opened, or that must not come below it for another reason; lies on the
 * stack of who opens. */
struct node_ancestor {
    dev_t device;
    ino_t inode;
    const struct node_ancestor *above;
};

#endif
