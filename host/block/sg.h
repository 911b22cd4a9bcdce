/*
 * A view into a scatter-gather list: "from byte SKIP of this iovec array on". It lets a request be split
 * without building new arrays. It owns nothing; the array must outlive it. The number of bytes meant stands
 * beside it in every call. Pure functions, any thread.
 */
#ifndef RINGSIDE_BLOCK_SG_H
#define RINGSIDE_BLOCK_SG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct sg {
    const struct iovec *iov;
    unsigned niov;
    size_t skip; /* always less than iov[0].iov_len, unless niov is 0 */
};

/* The whole of an array. Elements of length 0 are allowed. */
struct sg sg_make(const struct iovec *iov, unsigned niov);

/* The view N bytes further on. N must not exceed what is there. */
struct sg sg_advance(struct sg sg, size_t n);

size_t sg_bytes(struct sg sg); /* bytes to the end of the array */

/* Elements needed for the first BYTES. */
unsigned sg_count(struct sg sg, size_t bytes);

/* Writes plain iovecs for the first BYTES to OUT (room for MAX). Returns their number, or -ENOBUFS. */
int sg_flatten(struct sg sg, size_t bytes, struct iovec *out, unsigned max);

/* How many of the first BYTES lie in the first MAX elements. */
size_t sg_bytes_in(struct sg sg, size_t bytes, unsigned max);

void sg_copy_out(struct sg sg, void *to, size_t bytes);        /* list -> buffer */
void sg_copy_in(struct sg sg, const void *from, size_t bytes); /* buffer -> list */
void sg_zero(struct sg sg, size_t bytes);
bool sg_is_zero(struct sg sg, size_t bytes);

/* Address and length of every element in the first BYTES a multiple of ALIGN (a power of two)? */
bool sg_is_aligned(struct sg sg, size_t bytes, size_t align);

bool buffer_is_zero(const void *buf, size_t bytes);

#endif
