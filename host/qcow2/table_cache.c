/*
 * Cache of metadata slices: see table_cache.h for what always holds.
 *
 * Set-associative, so that a reader without a lock compares at most eight keys; a clock hand for each set
 * chooses the victim. The dirty slots are on one list in the order in which they became dirty.
 */
#include "host/qcow2/table_cache.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int table_cache_init(struct table_cache *cache, uint32_t slice_bytes, uint64_t slices)
{
    memset(cache, 0, sizeof(*cache));
    uint64_t sets = 4; /* a power of two, so that finding one needs no division */
    while (sets * 2 * TABLE_CACHE_WAYS <= slices)
        sets *= 2;
    if (sets > UINT32_MAX / TABLE_CACHE_WAYS / 2)
        return -ENOMEM;
    size_t slots = (size_t)sets * TABLE_CACHE_WAYS;
    cache->slice_bytes = slice_bytes;
    cache->slice_words = slice_bytes / 8;
    cache->nb_sets = (uint32_t)sets;
    cache->dirty_first = cache->dirty_last = TABLE_CACHE_END;
    cache->keys = malloc(slots * sizeof(*cache->keys));
    cache->slots = calloc(slots, sizeof(*cache->slots));
    cache->hands = calloc(sets, sizeof(*cache->hands));
    cache->words_bytes = slots * slice_bytes;
    /* Touched, and so paid for, only as slots come into use. */
    cache->words = mmap(NULL, cache->words_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if ((void *)cache->words == MAP_FAILED)
        cache->words = NULL;
    if (!cache->keys || !cache->slots || !cache->hands || !cache->words) {
        table_cache_destroy(cache);
        return -ENOMEM;
    }
    for (size_t i = 0; i < slots; i++)
        cache->keys[i] = TABLE_CACHE_NONE;
    return 0;
}

void table_cache_destroy(struct table_cache *cache)
{
    free(cache->keys);
    free(cache->slots);
    free(cache->hands);
    if (cache->words)
        munmap(cache->words, cache->words_bytes);
    memset(cache, 0, sizeof(*cache));
}

void table_cache_share(struct table_cache *cache, struct table_cache_shadow *shadows, uint64_t *words)
{
    size_t slots = (size_t)cache->nb_sets * TABLE_CACHE_WAYS;
    for (size_t i = 0; i < slots; i++) {
        if (cache->slots[i].state != SLOT_VALID)
            continue;
        memcpy(words + i * cache->slice_words, cache->words + i * cache->slice_words, cache->slice_bytes);
        shadows[i].on_disk = table_cache_hash(words + i * cache->slice_words, cache->slice_words);
    }
    munmap(cache->words, cache->words_bytes);
    cache->words = words;
    cache->shadows = shadows;
}

uint64_t table_cache_hash(const uint64_t *words, uint32_t n)
{
    uint64_t a = 0x9e3779b97f4a7c15u, b = 0xd6e8feb86659fd93u;
    for (uint32_t i = 0; i < n; i++) {
        a = (a ^ words[i]) * 0xff51afd7ed558ccdu;
        b = (b + words[i]) * 0xc4ceb9fe1a85ec53u;
        a ^= a >> 32;
        b ^= b >> 29;
    }
    return (a ^ b) | 1;
}

/* Stores in their order, for whoever finds them after a kill. */
static void set_marks(struct table_cache *cache, uint32_t slot, uint32_t marks)
{
    __atomic_store_n(&cache->shadows[slot].marks, marks, __ATOMIC_RELEASE);
}

int64_t table_cache_find(const struct table_cache *cache, uint64_t key)
{
    uint32_t base = (uint32_t)(key & (cache->nb_sets - 1)) * TABLE_CACHE_WAYS;
    for (uint32_t i = 0; i < TABLE_CACHE_WAYS; i++) {
        if (cache->keys[base + i] == key) {
            __atomic_store_n(&cache->slots[base + i].used, 1, __ATOMIC_RELAXED);
            return base + i;
        }
    }
    return -1;
}

static void set_key(struct table_cache *cache, uint32_t slot, uint64_t key)
{
    __atomic_store_n(&cache->keys[slot], key, __ATOMIC_RELEASE);
}

void table_cache_change_begin(struct table_cache *cache, uint32_t slot)
{
    struct table_cache_slot *s = &cache->slots[slot];
    __atomic_store_n(&s->seq, s->seq + 1, __ATOMIC_RELAXED);
}

void table_cache_change_end(struct table_cache *cache, uint32_t slot)
{
    struct table_cache_slot *s = &cache->slots[slot];
    /* Pairs with the acquire in table_cache_read_begin. */
    __atomic_store_n(&s->seq, s->seq + 1, __ATOMIC_RELEASE);
}

int64_t table_cache_claim(struct table_cache *cache, uint64_t key)
{
    uint32_t set = (uint32_t)(key & (cache->nb_sets - 1)), base = set * TABLE_CACHE_WAYS;
    /* Twice round: the first time takes the `used` marks away. */
    for (uint32_t i = 0; i < 2 * TABLE_CACHE_WAYS; i++) {
        uint32_t slot = base + cache->hands[set];
        cache->hands[set] = (uint8_t)((cache->hands[set] + 1) % TABLE_CACHE_WAYS);
        struct table_cache_slot *s = &cache->slots[slot];
        if (s->state == SLOT_LOADING || s->dirty || s->writing)
            continue;
        if (s->state == SLOT_VALID && __atomic_exchange_n(&s->used, 0, __ATOMIC_RELAXED))
            continue;
        table_cache_change_begin(cache, slot);
        s->state = SLOT_LOADING;
        set_key(cache, slot, key);
        return slot;
    }
    return -1;
}

void table_cache_loaded(struct table_cache *cache, uint32_t slot, const uint64_t *words)
{
    struct table_cache_slot *s = &cache->slots[slot];
    uint64_t *to = table_cache_words(cache, slot);
    for (uint32_t i = 0; i < cache->slice_words; i++)
        table_cache_store(&to[i], words ? words[i] : 0);
    if (cache->shadows)
        cache->shadows[slot].on_disk = words ? table_cache_hash(words, cache->slice_words) : 0;
    s->state = SLOT_VALID;
    __atomic_store_n(&s->used, 1, __ATOMIC_RELAXED);
    table_cache_change_end(cache, slot);
    co_queue_wake_all(&s->waiters);
}

void table_cache_load_failed(struct table_cache *cache, uint32_t slot)
{
    struct table_cache_slot *s = &cache->slots[slot];
    set_key(cache, slot, TABLE_CACHE_NONE);
    s->state = SLOT_EMPTY;
    table_cache_change_end(cache, slot);
    co_queue_wake_all(&s->waiters);
}

void table_cache_set_dirty(struct table_cache *cache, uint32_t slot, uint64_t gen)
{
    struct table_cache_slot *s = &cache->slots[slot];
    if (s->dirty)
        return;
    if (cache->shadows) {
        cache->shadows[slot].key = cache->keys[slot];
        set_marks(cache, slot, cache->shadows[slot].marks | TABLE_CACHE_DIRTY);
    }
    s->dirty = true;
    s->dirty_gen = gen;
    s->dirty_next = TABLE_CACHE_END;
    s->dirty_prev = cache->dirty_last;
    if (cache->dirty_last == TABLE_CACHE_END)
        cache->dirty_first = slot;
    else
        cache->slots[cache->dirty_last].dirty_next = slot;
    cache->dirty_last = slot;
    cache->nb_dirty++;
}

void table_cache_clear_dirty(struct table_cache *cache, uint32_t slot)
{
    struct table_cache_slot *s = &cache->slots[slot];
    if (!s->dirty)
        return;
    if (cache->shadows)
        set_marks(cache, slot, cache->shadows[slot].marks & ~TABLE_CACHE_DIRTY);
    s->dirty = false;
    if (s->dirty_prev == TABLE_CACHE_END)
        cache->dirty_first = s->dirty_next;
    else
        cache->slots[s->dirty_prev].dirty_next = s->dirty_next;
    if (s->dirty_next == TABLE_CACHE_END)
        cache->dirty_last = s->dirty_prev;
    else
        cache->slots[s->dirty_next].dirty_prev = s->dirty_prev;
    cache->nb_dirty--;
}

void table_cache_write_begin(struct table_cache *cache, uint32_t slot)
{
    if (cache->shadows) {
        cache->shadows[slot].in_flight = table_cache_hash(table_cache_words(cache, slot), cache->slice_words);
        set_marks(cache, slot, TABLE_CACHE_DIRTY | TABLE_CACHE_WRITING);
    }
    cache->slots[slot].writing = true;
    table_cache_clear_dirty(cache, slot);
}

void table_cache_write_end(struct table_cache *cache, uint32_t slot)
{
    if (cache->shadows) {
        struct table_cache_shadow *shadow = &cache->shadows[slot];
        shadow->on_disk = shadow->in_flight;
        set_marks(cache, slot, shadow->marks & ~TABLE_CACHE_WRITING);
    }
    cache->slots[slot].writing = false;
}

void table_cache_write_failed(struct table_cache *cache, uint32_t slot, const uint64_t *words)
{
    table_cache_set_dirty(cache, slot, 0);
    if (cache->shadows && words) {
        cache->shadows[slot].on_disk = table_cache_hash(words, cache->slice_words);
        set_marks(cache, slot, cache->shadows[slot].marks & ~TABLE_CACHE_WRITING);
    } /* else it may be in the file, or what was there before: the mark stays until it has been written */
    cache->slots[slot].writing = false;
}

void table_cache_forget(struct table_cache *cache, uint64_t first, uint64_t end)
{
    size_t slots = (size_t)cache->nb_sets * TABLE_CACHE_WAYS;
    for (size_t i = 0; i < slots; i++) {
        if (cache->keys[i] == TABLE_CACHE_NONE || cache->keys[i] < first || cache->keys[i] >= end)
            continue;
        table_cache_change_begin(cache, (uint32_t)i);
        table_cache_clear_dirty(cache, (uint32_t)i);
        if (cache->shadows) /* a write that failed has left its mark */
            set_marks(cache, (uint32_t)i, 0);
        set_key(cache, (uint32_t)i, TABLE_CACHE_NONE);
        cache->slots[i].state = SLOT_EMPTY;
        table_cache_change_end(cache, (uint32_t)i);
    }
}
