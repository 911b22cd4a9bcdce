/*
 * Where the names that an image carries lead to, and whether the image may go there (DESIGN "Trust": names in
 * an image come from a stranger). Private to host/block. Any thread; looks at directories, opens nothing.
 */
#ifndef RINGSIDE_BLOCK_RESOLVE_H
#define RINGSIDE_BLOCK_RESOLVE_H

#include <sys/types.h>

#include "host/block/node.h"

/* A file above the one that is being opened; lies on the stack of its node_co_open. */
struct node_ancestor {
    dev_t device;
    ino_t inode;
    const struct node_ancestor *above;
};

/* The file that NAME in the image FILENAME stands for, with every symbolic link resolved, if OPTIONS->backing
 * allows it. *PATH is to be freed. -EPERM: not allowed; -EINVAL: not a plain file name; else why the name
 * leads nowhere. */
int resolve_allowed(const char *filename, const char *name, const struct open_options *options, char **path,
                    struct error *err);

#endif
