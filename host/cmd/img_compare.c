/*
 * ringside-img compare: are the contents of two images the same? Exit status 0 yes, 1 no, 2 it could not be
 * found out.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "host/cmd/img.h"

#define PIECE_BYTES (1024u * 1024u)
#define EXIT_ERROR  2

struct comparison {
    struct node *node[2];
    uint64_t length[2], end; /* END: of the longer one */
    char *buf[2];
    bool strict;
};

/* The first byte that differs in [OFFSET, OFFSET+BYTES), or UINT64_MAX; negative errno through RET. */
static uint64_t coroutine_fn first_difference(struct comparison *c, uint64_t offset, uint64_t bytes, int *ret)
{
    for (unsigned i = 0; i < 2; i++) {
        *ret = img_co_read(c->node[i], offset, c->buf[i], bytes);
        if (*ret < 0) {
            log_message("%s: reading at offset %" PRIu64 ": %s", c->node[i]->filename, offset,
                        strerror(-*ret));
            return UINT64_MAX;
        }
    }
    if (memcmp(c->buf[0], c->buf[1], bytes) == 0)
        return UINT64_MAX;
    uint64_t i = 0;
    while (c->buf[0][i] == c->buf[1][i])
        i++;
    return offset + i;
}

/* Allocation as -s compares it: is it there at all, and is it zero? */
static unsigned kind(const struct img_extent *e)
{
    return e->flags & (NODE_STATUS_ZERO | NODE_STATUS_DATA);
}

static int coroutine_fn compare(struct comparison *c, const struct img_options *options)
{
    struct img_progress progress;
    int status = CMD_EXIT_OK;
    img_progress_begin(&progress, options->progress && !options->quiet);
    for (uint64_t offset = 0; offset < c->end && status == CMD_EXIT_OK;) {
        uint64_t n = c->end - offset, at = UINT64_MAX;
        struct img_extent extent[2];
        int ret = 0;
        for (unsigned i = 0; i < 2 && ret == 0; i++) {
            ret = img_co_extent(c->node[i], NULL, !c->strict, offset, n, &extent[i]);
            if (ret == 0 && extent[i].bytes < n)
                n = extent[i].bytes;
        }
        if (ret < 0) {
            log_message("what lies at offset %" PRIu64 " cannot be found out: %s", offset, strerror(-ret));
            status = EXIT_ERROR;
        } else if (c->strict && kind(&extent[0]) != kind(&extent[1])) {
            if (!options->quiet)
                printf("The allocation differs at offset %" PRIu64 "\n", offset);
            status = CMD_EXIT_FAILED;
        } else if (!(extent[0].flags & extent[1].flags & NODE_STATUS_ZERO)) {
            if (n > PIECE_BYTES)
                n = PIECE_BYTES;
            at = first_difference(c, offset, n, &ret);
            if (ret < 0) {
                status = EXIT_ERROR;
            } else if (at != UINT64_MAX) {
                if (!options->quiet)
                    printf("The contents differ at offset %" PRIu64 "\n", at);
                status = CMD_EXIT_FAILED;
            }
        }
        offset += n;
        img_progress(&progress, offset, c->end);
    }
    img_progress_end(&progress);
    return status;
}

int coroutine_fn img_co_compare(const struct img_options *options)
{
    struct comparison c = {.strict = options->strict};
    const char *format[2] = {options->format, options->second_format};
    int status = EXIT_ERROR;
    for (unsigned i = 0; i < 2; i++) {
        if (img_co_open(options, options->names[i], format[i], IMG_SOURCE, &c.node[i]) < 0)
            goto out;
        c.length[i] = node_length(c.node[i]);
        c.buf[i] = node_buffer(c.node[i], PIECE_BYTES);
        if (!c.buf[i]) {
            log_message("out of memory");
            goto out;
        }
    }
    c.end = c.length[0] > c.length[1] ? c.length[0] : c.length[1];
    if (c.length[0] != c.length[1]) {
        if (c.strict) {
            if (!options->quiet)
                printf("The sizes differ: %" PRIu64 " and %" PRIu64 " bytes\n", c.length[0], c.length[1]);
            status = CMD_EXIT_FAILED;
            goto out;
        }
        if (!options->quiet)
            log_message("the sizes differ (%" PRIu64 " and %" PRIu64
                        " bytes): what is missing counts as zeroes",
                        c.length[0], c.length[1]);
    }
    status = compare(&c, options);
    if (status == CMD_EXIT_OK && !options->quiet)
        printf("The images are identical.\n");

out:
    for (unsigned i = 0; i < 2; i++) {
        free(c.buf[i]);
        img_co_close(c.node[i]);
    }
    return status;
}
