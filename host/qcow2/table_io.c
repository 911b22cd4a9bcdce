/*
 * Tables of big-endian 64-bit words, read and written whole: L1, refcount and bitmap tables.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/qcow2_state.h"

int coroutine_fn qcow2_co_read_table(struct qcow2 *s, uint64_t offset, uint64_t entries, uint64_t room,
                                     uint64_t **table)
{
    uint64_t bytes = entries * 8;
    *table = calloc(room ? room : 1, 8);
    uint8_t *buf = qcow2_buffer_get(s);
    int ret = *table && buf ? 0 : -ENOMEM;
    for (uint64_t at = 0; ret == 0 && at < bytes; at += s->cluster_bytes) {
        uint64_t n = min_u64(bytes - at, s->cluster_bytes);
        ret = node_co_pread(s->node->file, offset + at, buf, n);
        for (uint64_t i = 0; ret == 0 && i < n / 8; i++) {
            be64 word;
            memcpy(&word, buf + i * 8, 8);
            (*table)[at / 8 + i] = be64_get(word);
        }
    }
    qcow2_buffer_put(s, buf);
    if (ret < 0) {
        free(*table);
        *table = NULL;
    }
    return ret;
}

int coroutine_fn qcow2_co_write_table(struct qcow2 *s, const uint64_t *table, uint64_t entries, uint64_t host)
{
    be64 *out = qcow2_buffer_get(s);
    uint64_t per = s->cluster_bytes / 8;
    int ret = out ? 0 : -ENOMEM;
    for (uint64_t at = 0; at < entries && ret == 0; at += per) {
        for (uint64_t i = 0; i < per; i++)
            out[i] = be64_put(at + i < entries ? table[at + i] : 0);
        ret = node_co_pwrite(s->node->file, host + at * 8, out, s->cluster_bytes, 0);
    }
    qcow2_buffer_put(s, out);
    return ret;
}
