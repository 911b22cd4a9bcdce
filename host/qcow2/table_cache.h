/*
 * A cache of slices of metadata tables: L2 tables, refcount blocks. A slice is found by its key, its place in
 * the order of its kind (not in the file), so that a table may move without its slices going away.
 *
 * Readers without a lock: table_cache_read_begin finds a slice, the reader loads words from it (each one
 * atomically), table_cache_read_valid says whether what it saw was one consistent state. Everything else
 * happens under the image's metadata lock, which is never held across file I/O: a slot that is being loaded
 * is in a state of its own, with its waiters, and no other slot is affected.
 *
 * What always holds, for a slot: `seq` is odd while its key or words are changing or being loaded. Words are
 * changed only between table_cache_change_begin and _end. A dirty slot, or one whose copy is on its way to
 * the file, is not evicted. Nothing is allocated after table_cache_init.
 */
#ifndef RINGSIDE_QCOW2_TABLE_CACHE_H
#define RINGSIDE_QCOW2_TABLE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "host/runtime/co_lock.h"

#define TABLE_CACHE_WAYS 8u
#define TABLE_CACHE_NONE UINT64_MAX /* no key */
#define TABLE_CACHE_END  UINT32_MAX /* end of the dirty list */

enum table_cache_state { SLOT_EMPTY, SLOT_LOADING, SLOT_VALID };

struct table_cache_slot {
    uint32_t seq;
    uint8_t state;      /* enum table_cache_state */
    uint8_t used;       /* seen since the clock's hand went by */
    bool dirty;         /* newer than the file */
    bool writing;       /* a copy is being written */
    uint64_t dirty_gen; /* the cache owner's generation when it became dirty */
    uint32_t dirty_next, dirty_prev;
    struct co_queue waiters; /* for LOADING to end */
};

#define TABLE_CACHE_DIRTY   1u
#define TABLE_CACHE_WRITING 2u

/* What survivor.c keeps of a slot beside its words, in the same shared memory. */
struct table_cache_shadow {
    uint64_t key;
    uint64_t on_disk;   /* hash of the words as they are in the file; 0: not known, and ours alone */
    uint64_t in_flight; /* with TABLE_CACHE_WRITING: hash of what is being written */
    uint32_t marks;     /* TABLE_CACHE_... */
    uint32_t reserved;
};

struct table_cache {
    struct table_cache_shadow *shadows; /* NULL: the words are private, nothing survives */
    uint32_t slice_bytes, slice_words;
    uint32_t nb_sets; /* a power of two */
    uint64_t *keys;   /* nb_sets * TABLE_CACHE_WAYS */
    struct table_cache_slot *slots;
    uint64_t *words;
    size_t words_bytes;
    uint8_t *hands; /* one a set */
    uint32_t dirty_first, dirty_last, nb_dirty;
};

/* Room for SLICES slices of SLICE_BYTES, rounded down to a power of two, at least 32. 0 or -ENOMEM. */
int table_cache_init(struct table_cache *cache, uint32_t slice_bytes, uint64_t slices);
void table_cache_destroy(struct table_cache *cache);

/* From now on the words lie at WORDS, and SHADOWS, all zero, say which of them are newer than the file. Both
 * belong to the caller, who takes cache->words away before table_cache_destroy. No slot is dirty or loading,
 * and nobody else looks at the cache yet. */
void table_cache_share(struct table_cache *cache, struct table_cache_shadow *shadows, uint64_t *words);
/* Never 0. */
uint64_t table_cache_hash(const uint64_t *words, uint32_t n);

static inline uint64_t *table_cache_words(const struct table_cache *cache, uint32_t slot)
{
    return cache->words + (size_t)slot * cache->slice_words;
}

/* ---- without the lock; any thread ---- */

struct table_cache_read {
    const uint64_t *words;
    uint32_t slot, seq;
};

/* True: read->words are the words of slice KEY, to be read with table_cache_word and believed only if _valid.
 */
static inline bool table_cache_read_begin(const struct table_cache *cache, uint64_t key,
                                          struct table_cache_read *read)
{
    uint32_t base = (uint32_t)(key & (cache->nb_sets - 1)) * TABLE_CACHE_WAYS;
    for (uint32_t i = 0; i < TABLE_CACHE_WAYS; i++) {
        if (__atomic_load_n(&cache->keys[base + i], __ATOMIC_RELAXED) != key)
            continue;
        struct table_cache_slot *slot = &cache->slots[base + i];
        /* Pairs with the releases in table_cache_change_end. */
        uint32_t seq = __atomic_load_n(&slot->seq, __ATOMIC_ACQUIRE);
        if ((seq & 1u) || __atomic_load_n(&cache->keys[base + i], __ATOMIC_ACQUIRE) != key)
            return false;
        if (!__atomic_load_n(&slot->used, __ATOMIC_RELAXED))
            __atomic_store_n(&slot->used, 1, __ATOMIC_RELAXED);
        read->words = table_cache_words(cache, base + i);
        read->slot = base + i;
        read->seq = seq;
        return true;
    }
    return false;
}

/* Acquire, so that the check of seq in _valid cannot be moved before it. */
static inline uint64_t table_cache_word(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline bool table_cache_read_valid(const struct table_cache *cache,
                                          const struct table_cache_read *read)
{
    return __atomic_load_n(&cache->slots[read->slot].seq, __ATOMIC_RELAXED) == read->seq;
}

/* ---- under the metadata lock ---- */

/* The slot of slice KEY, valid or being loaded; -1: none. */
int64_t table_cache_find(const struct table_cache *cache, uint64_t key);

/* Takes a slot for slice KEY, which must not have one: it comes back LOADING. -1: all that could be evicted
 * are dirty or busy (write back, then try again). */
int64_t table_cache_claim(struct table_cache *cache, uint64_t key);

/* Ends LOADING: with WORDS (slice_words of them, in host order or raw as the owner likes; NULL: zeroes) the
 * slot becomes valid. Wakes its waiters. */
void table_cache_loaded(struct table_cache *cache, uint32_t slot, const uint64_t *words);
/* Ends LOADING without success: the slot is empty again. */
void table_cache_load_failed(struct table_cache *cache, uint32_t slot);

/* Brackets changes of a slot's words; stores in between with table_cache_store. */
void table_cache_change_begin(struct table_cache *cache, uint32_t slot);
void table_cache_change_end(struct table_cache *cache, uint32_t slot);
static inline void table_cache_store(uint64_t *word, uint64_t value)
{
    /* Release: no reader sees this without the odd seq that was stored before it. */
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

void table_cache_set_dirty(struct table_cache *cache, uint32_t slot, uint64_t gen);
void table_cache_clear_dirty(struct table_cache *cache, uint32_t slot);
/* The slot's words, dirty until now, were copied and are being written; and have been. */
void table_cache_write_begin(struct table_cache *cache, uint32_t slot);
void table_cache_write_end(struct table_cache *cache, uint32_t slot);
/* Or not: they are dirty again. WORDS: what is in the file now, as far as that can be read; else NULL. */
void table_cache_write_failed(struct table_cache *cache, uint32_t slot, const uint64_t *words);

/* Forgets slices with FIRST <= key < END, dirty or not; none of them may be loading or being written. */
void table_cache_forget(struct table_cache *cache, uint64_t first, uint64_t end);

#endif
