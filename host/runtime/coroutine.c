/*
 * Coroutines: creation from a pool of guarded stacks, entering, yielding, waking.
 *
 * What always holds: a coroutine's struct lies at the top of its own mapping, so that making one allocates
 * nothing but the mapping. A stack whose coroutine ended keeps its bottom frame (co_main, an endless loop)
 * and takes the next entry function from there. The first frames of different stacks begin at different
 * offsets in their pages, else all of them would fight for the same few sets of the cache.
 *
 * The bound: a loop may map a new stack as long as all loops together have fewer than the limit; a loop that
 * has no living coroutine may always have one, so that "wait until one of my own ends" cannot wait for ever.
 */
#include "host/runtime/coroutine.h"

#include <assert.h>
#include <errno.h>
#include <execinfo.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "host/runtime/coroutine_internal.h"
#include "host/runtime/loop_internal.h"

#if defined(__SANITIZE_ADDRESS__)
#define CO_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CO_ASAN 1
#endif
#endif
#if defined(__SANITIZE_THREAD__)
#define CO_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define CO_TSAN 1
#endif
#endif

#ifdef CO_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef CO_TSAN
#include <sanitizer/tsan_interface.h>
#endif
#if defined(__has_include)
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#define CO_VALGRIND 1
#endif
#endif

/* Free stacks that a loop keeps; more are unmapped. */
#define POOL_FREE_MAX 1024
/* Mappings left to everything else in the process. */
#define MAPPINGS_RESERVED 8192
/* Steps of 128 bytes by which the first frames of neighbouring stacks are apart; 32 of them are a page. */
#define COLOURS 32

__thread struct coroutine *co_current;
bool co_record_creators;

/* Every mapped stack, for the bound and for debuggers. */
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static struct coroutine *all_first;
static size_t all_count, all_limit;
static unsigned all_colour;
/* Somebody was refused a stack since the last one was unmapped: pools give back instead of keeping. */
static uint32_t all_pressed;

/* ---- what sanitizers and valgrind want to know ---- */

static void tools_map(struct coroutine *co)
{
#ifdef CO_TSAN
    co->tsan_fiber = __tsan_create_fiber(0);
#endif
#ifdef CO_VALGRIND
    co->valgrind_id = VALGRIND_STACK_REGISTER(co->stack_low, (char *)co->stack_low + co->stack_bytes);
#endif
}

static void tools_unmap(struct coroutine *co)
{
#ifdef CO_TSAN
    __tsan_destroy_fiber(co->tsan_fiber);
#endif
#ifdef CO_ASAN
    __asan_unpoison_memory_region(co->map, co->map_bytes);
#endif
#ifdef CO_VALGRIND
    VALGRIND_STACK_DEREGISTER(co->valgrind_id);
#endif
}

static inline void tools_before_enter(struct coroutine *co)
{
#ifdef CO_ASAN
    __sanitizer_start_switch_fiber(&co->asan_caller_fake_stack, co->stack_low, co->stack_bytes);
#endif
#ifdef CO_TSAN
    co->tsan_caller_fiber = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(co->tsan_fiber, 0);
#endif
}

static inline void tools_after_enter(struct coroutine *co)
{
#ifdef CO_ASAN
    __sanitizer_finish_switch_fiber(co->asan_caller_fake_stack, NULL, NULL);
#endif
}

static inline void tools_before_leave(struct coroutine *co)
{
#ifdef CO_ASAN
    __sanitizer_start_switch_fiber(&co->asan_fake_stack, co->asan_caller_low, co->asan_caller_bytes);
#endif
#ifdef CO_TSAN
    __tsan_switch_to_fiber(co->tsan_caller_fiber, 0);
#endif
}

static inline void tools_after_leave(struct coroutine *co)
{
#ifdef CO_ASAN
    __sanitizer_finish_switch_fiber(co->asan_fake_stack, &co->asan_caller_low, &co->asan_caller_bytes);
#endif
}

/* ---- stacks ---- */

static size_t default_limit(void)
{
    unsigned long mappings = 65530;
    FILE *f = fopen("/proc/sys/vm/max_map_count", "re");

    if (f) {
        if (fscanf(f, "%lu", &mappings) != 1)
            mappings = 65530;
        fclose(f);
    }
    if (mappings > (1ul << 26))
        mappings = 1ul << 26;
    return mappings > 2 * MAPPINGS_RESERVED ? (mappings - MAPPINGS_RESERVED) / 2 : mappings / 4 + 1;
}

static __attribute__((noreturn)) void co_main(void *arg);

static struct coroutine *stack_map(bool beyond_limit)
{
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK;
    size_t page = (size_t)sysconf(_SC_PAGESIZE), colour, total;
    struct coroutine *co;
    char *map, *top;

    pthread_mutex_lock(&all_lock);
    if (!all_limit)
        all_limit = default_limit();
    if (all_count >= all_limit && !beyond_limit) {
        __atomic_store_n(&all_pressed, 1, __ATOMIC_RELAXED);
        pthread_mutex_unlock(&all_lock);
        return NULL;
    }
    all_count++;
    colour = (size_t)(all_colour++ % COLOURS) * 128;
    pthread_mutex_unlock(&all_lock);

    total = CO_STACK_BYTES + page;
    /* cppcheck-suppress invalidFunctionArg ; -1 is what MAP_ANONYMOUS wants */
    map = mmap(NULL, total, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (map == MAP_FAILED)
        goto fail;
    if (mprotect(map, page, PROT_NONE) < 0) {
        munmap(map, total);
        goto fail;
    }
    top = map + total - colour - sizeof(struct coroutine);
    co = (struct coroutine *)((uintptr_t)top & ~(uintptr_t)63);
    co->map = map;
    co->map_bytes = total;
    co->stack_low = map + page;
    co->stack_bytes = (size_t)((char *)co - (map + page));
    tools_map(co);
    co_context_init(&co->context, co->stack_low, co->stack_bytes, co_main, co);

    pthread_mutex_lock(&all_lock);
    co->all_next = all_first;
    if (all_first)
        all_first->all_prev = co;
    all_first = co;
    pthread_mutex_unlock(&all_lock);
    return co;

fail:
    pthread_mutex_lock(&all_lock);
    all_count--;
    pthread_mutex_unlock(&all_lock);
    return NULL;
}

static void stack_unmap(struct coroutine *co)
{
    tools_unmap(co);
    pthread_mutex_lock(&all_lock);
    if (co->all_prev)
        co->all_prev->all_next = co->all_next;
    else
        all_first = co->all_next;
    if (co->all_next)
        co->all_next->all_prev = co->all_prev;
    munmap(co->map, co->map_bytes);
    all_count--;
    __atomic_store_n(&all_pressed, 0, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&all_lock);
}

/* ---- the life of a coroutine ---- */

static __attribute__((noinline)) void record_creators(struct coroutine *co)
{
    int n = backtrace(co->creator, CO_CREATOR_FRAMES);

    co->creator_count = n > 0 ? (uint32_t)n : 0;
}

struct coroutine *co_create(co_entry *entry, void *arg)
{
    struct loop *loop = loop_current_thread;
    struct coroutine *co, *parent = co_current;

    assert(loop);
    co = loop->pool.free;
    if (__builtin_expect(co != NULL, 1)) {
        loop->pool.free = co->next;
        loop->pool.free_count--;
    } else {
        co = stack_map(loop->pool.alive == 0);
        if (!co)
            return NULL;
    }
    __atomic_store_n(&loop->pool.alive, loop->pool.alive + 1, __ATOMIC_RELAXED);
    co->entry = entry;
    co->arg = arg;
    co->loop = loop;
    co->trace_id = parent ? parent->trace_id : 0;
    co->state = CO_FRESH;
    co->created_at = __builtin_return_address(0);
    co->parent = parent;
    co->parent_serial = parent ? parent->serial : 0;
    co->serial++;
    if (__builtin_expect(co_record_creators, 0))
        record_creators(co);
    return co;
}

static inline void run(struct coroutine *co)
{
    struct coroutine *caller = co_current;

    co->caller = caller;
    co->state = CO_RUNNING;
    co_current = co;
    tools_before_enter(co);
    co_context_switch(&co->caller_context, &co->context);
    tools_after_enter(co);
    co_current = caller;

    if (co->state == CO_ENDED) {
        struct co_pool *pool = &co->loop->pool;

        co->state = CO_POOLED;
        co->creator_count = 0;
        __atomic_store_n(&pool->alive, pool->alive - 1, __ATOMIC_RELAXED);
        if (pool->free_count >= POOL_FREE_MAX || __atomic_load_n(&all_pressed, __ATOMIC_RELAXED)) {
            stack_unmap(co);
        } else {
            co->next = pool->free;
            pool->free = co;
            pool->free_count++;
        }
    }
}

void co_enter(struct coroutine *co)
{
    assert(co->state == CO_FRESH && co->loop == loop_current_thread);
    run(co);
}

void co_resume(struct coroutine *co)
{
    assert(co->state == CO_SLEEPING);
    __atomic_store_n(&co->woken, 0, __ATOMIC_RELAXED);
    run(co);
}

static inline void leave(struct coroutine *co)
{
    tools_before_leave(co);
    co_context_switch(&co->context, &co->caller_context);
    tools_after_leave(co);
}

static void co_main(void *arg)
{
    struct coroutine *co = arg;

    tools_after_leave(co);
    for (;;) {
        co->entry(co->arg);
        co->state = CO_ENDED;
        leave(co);
    }
}

void co_yield (void)
{
    struct coroutine *co = co_current;

    assert(co);
    co->state = CO_SLEEPING;
    leave(co);
}

static __attribute__((noreturn, noinline)) void woken_twice(const struct coroutine *co)
{
    fprintf(stderr, "coroutine %p was woken twice for one yield\n", (const void *)co);
    abort();
}

void co_wake(struct coroutine *co)
{
    struct loop *loop = co->loop;

    if (__builtin_expect(loop != loop_current_thread, 0)) {
        if (__atomic_exchange_n(&co->woken, 1, __ATOMIC_RELAXED))
            woken_twice(co);
        loop_push_remote(loop, co);
        return;
    }
    if (__builtin_expect(__atomic_load_n(&co->woken, __ATOMIC_RELAXED), 0))
        woken_twice(co);
    if (co_current) {
        __atomic_store_n(&co->woken, 1, __ATOMIC_RELAXED);
        loop_push_ready(loop, co);
    } else {
        co_resume(co);
    }
}

struct coroutine *co_self(void)
{
    return co_current;
}

struct loop *co_loop(const struct coroutine *co)
{
    return co->loop;
}

uint64_t co_trace_id(void)
{
    return co_current ? co_current->trace_id : 0;
}

void co_set_trace_id(uint64_t id)
{
    if (co_current)
        co_current->trace_id = id;
}

/* ---- the pool ---- */

static void add_alive(struct loop *loop, void *opaque)
{
    *(size_t *)opaque += __atomic_load_n(&loop->pool.alive, __ATOMIC_RELAXED);
}

void co_pool_stats(struct co_pool_stats *stats)
{
    memset(stats, 0, sizeof(*stats));
    loop_for_each(add_alive, &stats->alive);
    pthread_mutex_lock(&all_lock);
    if (!all_limit)
        all_limit = default_limit();
    stats->allocated = all_count;
    stats->limit = all_limit;
    pthread_mutex_unlock(&all_lock);
}

void co_pool_set_limit(size_t stacks)
{
    pthread_mutex_lock(&all_lock);
    all_limit = stacks ? stacks : default_limit();
    pthread_mutex_unlock(&all_lock);
}

void co_pool_drain(struct loop *loop)
{
    while (loop->pool.free) {
        struct coroutine *co = loop->pool.free;

        loop->pool.free = co->next;
        stack_unmap(co);
    }
    loop->pool.free_count = 0;
}

void co_pool_drain_thread(void)
{
    if (loop_current_thread)
        co_pool_drain(loop_current_thread);
}
