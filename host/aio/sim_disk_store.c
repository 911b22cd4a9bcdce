/*
 * Sectors and their versions: what a simulated file holds, and what a power loss leaves of it.
 *
 * What always holds: a sector's list of versions is newest first, those in flight before all others; when one
 * becomes durable, it and everything older leaves the list.
 */
#include "host/aio/sim_disk_store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static struct sim_chunk *chunk_at(const struct sim_store *store, uint64_t sector)
{
    uint64_t index = sector / SIM_CHUNK_SECTORS;

    return index < store->chunk_count ? store->chunks[index] : NULL;
}

static struct sim_chunk *chunk_make(struct sim_store *store, uint64_t sector)
{
    uint64_t index = sector / SIM_CHUNK_SECTORS;

    if (index >= store->chunk_count) {
        uint64_t count = index + index / 2 + 16;
        struct sim_chunk **chunks = realloc(store->chunks, count * sizeof(struct sim_chunk *));

        if (!chunks)
            return NULL;
        memset(chunks + store->chunk_count, 0, (count - store->chunk_count) * sizeof(struct sim_chunk *));
        store->chunks = chunks;
        store->chunk_count = count;
    }
    if (!store->chunks[index])
        store->chunks[index] = calloc(1, sizeof(struct sim_chunk));
    return store->chunks[index];
}

/* The version that readers see, or NULL: the durable one. */
static struct sim_version *visible(const struct sim_chunk *chunk, uint64_t sector)
{
    struct sim_version *v = chunk->newest[sector % SIM_CHUNK_SECTORS];

    while (v && !v->order)
        v = v->older;
    return v;
}

static void drop_from(struct sim_store *store, struct sim_version **link)
{
    while (*link) {
        struct sim_version *v = *link;

        *link = v->older;
        free(v);
        store->versions--;
    }
}

/* The version at LINK becomes durable, and it and all older ones leave the list. */
static void make_durable(struct sim_store *store, struct sim_chunk *chunk, unsigned index,
                         struct sim_version **link)
{
    memcpy(chunk->durable + (size_t)index * SIM_SECTOR, (*link)->data, SIM_SECTOR);
    chunk->durable_data[index] = !(*link)->hole;
    drop_from(store, link);
}

int sim_store_begin(struct sim_store *store, uint64_t offset, uint64_t sectors, const uint8_t *data,
                    bool hole, uint64_t *request)
{
    uint64_t first = offset / SIM_SECTOR;

    *request = ++store->requests;
    for (uint64_t i = 0; i < sectors; i++) {
        struct sim_chunk *chunk = hole ? chunk_at(store, first + i) : chunk_make(store, first + i);
        struct sim_version *v, **link;

        if (!chunk && hole)
            continue; /* is one already */
        v = chunk ? malloc(sizeof(*v)) : NULL;
        if (!v) {
            sim_store_complete(store, *request, offset, i, 0, false);
            return -ENOMEM;
        }
        v->request = *request;
        v->order = 0;
        v->hole = hole;
        if (data)
            memcpy(v->data, data + i * SIM_SECTOR, SIM_SECTOR);
        else
            memset(v->data, 0, SIM_SECTOR);
        link = &chunk->newest[(first + i) % SIM_CHUNK_SECTORS];
        v->older = *link;
        *link = v;
        store->versions++;
    }
    return 0;
}

void sim_store_complete(struct sim_store *store, uint64_t request, uint64_t offset, uint64_t begun,
                        uint64_t sectors, bool durable)
{
    uint64_t first = offset / SIM_SECTOR, order = ++store->order;

    for (uint64_t i = 0; i < begun; i++) {
        struct sim_chunk *chunk = chunk_at(store, first + i);
        unsigned index = (unsigned)((first + i) % SIM_CHUNK_SECTORS);
        struct sim_version **link, *v;

        if (!chunk)
            continue;
        for (link = &chunk->newest[index]; *link && (*link)->request != request; link = &(*link)->older)
            ;
        v = *link;
        if (!v)
            continue;
        *link = v->older;
        if (i >= sectors) {
            free(v);
            store->versions--;
            continue;
        }
        /* Behind those in flight, before those completed. */
        for (link = &chunk->newest[index]; *link && !(*link)->order; link = &(*link)->older)
            ;
        v->order = order;
        v->older = *link;
        *link = v;
        if (durable)
            make_durable(store, chunk, index, link);
    }
}

/* Sectors [FIRST, END) become durable zeroes, and the tail of the one that holds byte BYTES does too. */
static int cut(struct sim_store *store, uint64_t bytes)
{
    uint64_t from = (bytes + SIM_SECTOR - 1) / SIM_SECTOR * SIM_SECTOR, tail = bytes % SIM_SECTOR, request;
    uint64_t end = store->chunk_count * SIM_CHUNK_BYTES;
    uint8_t sector[SIM_SECTOR];
    int ret;

    if (tail && sim_store_is_data(store, bytes / SIM_SECTOR)) {
        sim_store_read(store, bytes - tail, 1, sector);
        memset(sector + tail, 0, SIM_SECTOR - tail);
        ret = sim_store_begin(store, bytes - tail, 1, sector, false, &request);
        if (ret < 0)
            return ret;
        sim_store_complete(store, request, bytes - tail, 1, 1, true);
    }
    if (from >= end)
        return 0;
    ret = sim_store_begin(store, from, (end - from) / SIM_SECTOR, NULL, true, &request);
    if (ret == 0)
        sim_store_complete(store, request, from, (end - from) / SIM_SECTOR, (end - from) / SIM_SECTOR, true);
    return ret;
}

int sim_store_set_size(struct sim_store *store, uint64_t bytes, bool durable)
{
    struct sim_size *size;
    int ret;

    if (bytes < store->size) {
        ret = cut(store, bytes);
        if (ret < 0)
            return ret;
        durable = true;
    }
    if (durable) {
        store->size = store->durable_size = bytes;
        while (store->sizes) {
            struct sim_size *older = store->sizes->older;

            free(store->sizes);
            store->sizes = older;
        }
        return 0;
    }
    size = malloc(sizeof(*size));
    if (!size)
        return -ENOMEM;
    store->size = bytes;
    size->bytes = bytes;
    size->order = ++store->order;
    size->older = store->sizes;
    store->sizes = size;
    return 0;
}

void sim_store_read(const struct sim_store *store, uint64_t offset, uint64_t sectors, uint8_t *data)
{
    uint64_t first = offset / SIM_SECTOR;

    for (uint64_t i = 0; i < sectors; i++, data += SIM_SECTOR) {
        const struct sim_chunk *chunk = chunk_at(store, first + i);
        const struct sim_version *v = chunk ? visible(chunk, first + i) : NULL;

        if (v)
            memcpy(data, v->data, SIM_SECTOR);
        else if (chunk)
            memcpy(data, chunk->durable + (first + i) % SIM_CHUNK_SECTORS * SIM_SECTOR, SIM_SECTOR);
        else
            memset(data, 0, SIM_SECTOR);
    }
}

bool sim_store_is_data(const struct sim_store *store, uint64_t sector)
{
    const struct sim_chunk *chunk = chunk_at(store, sector);
    const struct sim_version *v = chunk ? visible(chunk, sector) : NULL;

    return v ? !v->hole : chunk && chunk->durable_data[sector % SIM_CHUNK_SECTORS];
}

uint64_t sim_store_next_change(const struct sim_store *store, uint64_t sector, uint64_t end)
{
    bool data = sim_store_is_data(store, sector);

    while (sector < end) {
        if (!chunk_at(store, sector)) {
            if (data)
                break;
            sector = (sector / SIM_CHUNK_SECTORS + 1) * SIM_CHUNK_SECTORS;
        } else {
            if (sim_store_is_data(store, sector) != data)
                break;
            sector++;
        }
    }
    return sector < end ? sector : end;
}

/* Calls FN for every sector that has versions. */
static void for_each_volatile(struct sim_store *store,
                              void (*fn)(struct sim_store *store, struct sim_chunk *chunk, unsigned index,
                                         void *opaque),
                              void *opaque)
{
    if (!store->versions)
        return;
    for (uint64_t c = 0; c < store->chunk_count; c++) {
        for (unsigned i = 0; store->chunks[c] && i < SIM_CHUNK_SECTORS; i++) {
            if (store->chunks[c]->newest[i])
                fn(store, store->chunks[c], i, opaque);
        }
    }
}

static void flush_sector(struct sim_store *store, struct sim_chunk *chunk, unsigned index, void *opaque)
{
    uint64_t order = *(uint64_t *)opaque;
    struct sim_version **link = &chunk->newest[index];

    while (*link && (!(*link)->order || (*link)->order > order))
        link = &(*link)->older;
    if (*link)
        make_durable(store, chunk, index, link);
}

void sim_store_flush(struct sim_store *store, uint64_t order)
{
    struct sim_size **link = &store->sizes;

    for_each_volatile(store, flush_sector, &order);
    while (*link && (*link)->order > order)
        link = &(*link)->older;
    if (*link)
        store->durable_size = (*link)->bytes;
    while (*link) {
        struct sim_size *size = *link;

        *link = size->older;
        free(size);
    }
}

struct loss {
    struct sim *sim;
    enum sim_loss how;
    uint64_t prefix; /* completions up to here are kept */
    uint64_t salt;
};

/* One answer for all sectors of a request. */
static bool request_kept(const struct loss *loss, const struct sim_version *v)
{
    uint64_t x = (v->request + loss->salt) * 0x9e3779b97f4a7c15u;

    return (x ^ (x >> 29)) & (1u << 20);
}

static void lose_sector(struct sim_store *store, struct sim_chunk *chunk, unsigned index, void *opaque)
{
    struct loss *loss = opaque;
    struct sim_version **link = &chunk->newest[index];
    uint64_t n = 0, chosen;

    switch (loss->how) {
    case SIM_KEEP_ALL:
        break;
    case SIM_KEEP_PREFIX:
        while (*link && (!(*link)->order || (*link)->order > loss->prefix))
            link = &(*link)->older;
        break;
    case SIM_BY_REQUEST:
        while (*link && !request_kept(loss, *link))
            link = &(*link)->older;
        break;
    case SIM_BY_SECTOR:
        for (struct sim_version *v = *link; v; v = v->older)
            n++;
        for (chosen = sim_below(loss->sim, SIM_FAULTS, n + 1); chosen && *link; chosen--)
            link = &(*link)->older;
        break;
    default:
        while (*link)
            link = &(*link)->older;
        break;
    }
    if (*link)
        make_durable(store, chunk, index, link);
    drop_from(store, &chunk->newest[index]);
}

int sim_store_lose(struct sim_store *store, struct sim *sim, enum sim_loss how)
{
    struct loss loss = {.sim = sim, .how = how};
    struct sim_size **link = &store->sizes;
    uint64_t n = 0, chosen, size;

    loss.prefix = sim_below(sim, SIM_FAULTS, store->order + 1);
    loss.salt = sim_random(sim, SIM_FAULTS);
    for_each_volatile(store, lose_sector, &loss);

    for (struct sim_size *s = *link; s; s = s->older)
        n++;
    chosen = how == SIM_LOSE_ALL ? n : how == SIM_KEEP_ALL ? 0 : sim_below(sim, SIM_FAULTS, n + 1);
    if (how == SIM_KEEP_PREFIX) {
        while (*link && (*link)->order > loss.prefix)
            link = &(*link)->older;
    } else {
        while (chosen-- && *link)
            link = &(*link)->older;
    }
    size = *link ? (*link)->bytes : store->durable_size;
    /* What lies beyond it went with the size: made up to be cut. */
    store->size = store->chunk_count * SIM_CHUNK_BYTES > size ? store->chunk_count * SIM_CHUNK_BYTES : size;
    return sim_store_set_size(store, size, true);
}

void sim_store_clear(struct sim_store *store)
{
    for (uint64_t c = 0; c < store->chunk_count; c++) {
        for (unsigned i = 0; store->chunks[c] && i < SIM_CHUNK_SECTORS; i++)
            drop_from(store, &store->chunks[c]->newest[i]);
        free(store->chunks[c]);
    }
    free(store->chunks);
    while (store->sizes) {
        struct sim_size *older = store->sizes->older;

        free(store->sizes);
        store->sizes = older;
    }
    memset(store, 0, sizeof(*store));
}
