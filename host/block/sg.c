/*
 * Views into scatter-gather lists (sg.h). Pure functions over memory that the caller owns.
 *
 * What always holds: a view that comes out of here has SKIP less than the length of its first element, or no
 * elements at all, so that a loop over it always moves on.
 */
#include "host/block/sg.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/* Steps over elements that SKIP has used up, empty ones included. */
static struct sg sg_normalise(struct sg sg)
{
    while (sg.niov > 0 && sg.skip >= sg.iov->iov_len) {
        sg.skip -= sg.iov->iov_len;
        sg.iov++;
        sg.niov--;
    }
    return sg;
}

struct sg sg_make(const struct iovec *iov, unsigned niov)
{
    return sg_normalise((struct sg){iov, niov, 0});
}

struct sg sg_advance(struct sg sg, size_t n)
{
    sg.skip += n;
    sg = sg_normalise(sg);
    assert(sg.niov > 0 || sg.skip == 0);
    return sg;
}

size_t sg_bytes(struct sg sg)
{
    size_t total = 0;
    for (unsigned i = 0; i < sg.niov; i++)
        total += sg.iov[i].iov_len;
    return total - sg.skip;
}

/* The element that SG begins with, cut to BYTES; moves SG and BYTES on. False when BYTES is used up. */
static bool sg_next(struct sg *sg, size_t *bytes, struct iovec *part)
{
    while (*bytes > 0 && sg->niov > 0) {
        size_t n = sg->iov->iov_len - sg->skip;
        part->iov_base = (char *)sg->iov->iov_base + sg->skip;
        part->iov_len = n < *bytes ? n : *bytes;
        sg->iov++;
        sg->niov--;
        sg->skip = 0;
        if (part->iov_len > 0) {
            *bytes -= part->iov_len;
            return true;
        }
    }
    assert(*bytes == 0);
    return false;
}

unsigned sg_count(struct sg sg, size_t bytes)
{
    struct iovec part;
    unsigned count = 0;
    while (sg_next(&sg, &bytes, &part))
        count++;
    return count;
}

int sg_flatten(struct sg sg, size_t bytes, struct iovec *out, unsigned max)
{
    struct iovec part;
    unsigned count = 0;
    while (sg_next(&sg, &bytes, &part)) {
        if (count == max)
            return -ENOBUFS;
        out[count++] = part;
    }
    return (int)count;
}

size_t sg_bytes_in(struct sg sg, size_t bytes, unsigned max)
{
    struct iovec part;
    size_t total = 0;
    for (unsigned count = 0; count < max && sg_next(&sg, &bytes, &part); count++)
        total += part.iov_len;
    return total;
}

void sg_copy_out(struct sg sg, void *to, size_t bytes)
{
    struct iovec part;
    char *at = to;
    while (sg_next(&sg, &bytes, &part)) {
        memcpy(at, part.iov_base, part.iov_len);
        at += part.iov_len;
    }
}

void sg_copy_in(struct sg sg, const void *from, size_t bytes)
{
    struct iovec part;
    const char *at = from;
    while (sg_next(&sg, &bytes, &part)) {
        memcpy(part.iov_base, at, part.iov_len);
        at += part.iov_len;
    }
}

void sg_zero(struct sg sg, size_t bytes)
{
    struct iovec part;
    while (sg_next(&sg, &bytes, &part))
        memset(part.iov_base, 0, part.iov_len);
}

bool sg_is_zero(struct sg sg, size_t bytes)
{
    struct iovec part;
    while (sg_next(&sg, &bytes, &part)) {
        if (!buffer_is_zero(part.iov_base, part.iov_len))
            return false;
    }
    return true;
}

bool sg_is_aligned(struct sg sg, size_t bytes, size_t align)
{
    struct iovec part;
    uintptr_t bits = 0;
    while (sg_next(&sg, &bytes, &part))
        bits |= (uintptr_t)part.iov_base | part.iov_len;
    return (bits & (align - 1)) == 0;
}

bool buffer_is_zero(const void *buf, size_t bytes)
{
    const unsigned char *p = buf;
    /* Most data shows itself at the ends or in the middle. */
    if (bytes == 0)
        return true;
    if (p[0] || p[bytes / 2] || p[bytes - 1])
        return false;
    size_t head = bytes < 16 ? bytes : 16;
    for (size_t i = 0; i < head; i++) {
        if (p[i])
            return false;
    }
    /* The rest equals itself moved by 16 bytes, so it is as zero as its beginning. */
    return bytes <= 16 || memcmp(p, p + 16, bytes - 16) == 0;
}
