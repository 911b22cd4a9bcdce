/*
 * Counts heap allocations and locks of all threads but the client's, by standing in front of the C library's
 * functions: that is how "no allocation and no lock for a request" is tested. Not under a sanitizer, which
 * stands there itself.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stddef.h>

#include "tests/harness/measure.h"

struct measure_interposed measure_interposed;
__thread bool measure_is_client;

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif

#if defined(SANITIZED) || !defined(__GLIBC__)

const bool measure_has_interposed = false;

#else

const bool measure_has_interposed = true;

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *mem, size_t bytes);
void *__libc_memalign(size_t align, size_t bytes);
void *malloc(size_t bytes);
void *calloc(size_t count, size_t bytes);
void *realloc(void *mem, size_t bytes);
void *aligned_alloc(size_t align, size_t bytes);
int posix_memalign(void **mem, size_t align, size_t bytes);

static void count(uint64_t *counter)
{
    if (!measure_is_client)
        __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
}

void *malloc(size_t bytes)
{
    count(&measure_interposed.allocations);
    return __libc_malloc(bytes);
}

void *calloc(size_t number, size_t bytes)
{
    count(&measure_interposed.allocations);
    return __libc_calloc(number, bytes);
}

void *realloc(void *mem, size_t bytes)
{
    count(&measure_interposed.allocations);
    return __libc_realloc(mem, bytes);
}

void *aligned_alloc(size_t align, size_t bytes)
{
    count(&measure_interposed.allocations);
    return __libc_memalign(align, bytes);
}

int posix_memalign(void **mem, size_t align, size_t bytes)
{
    count(&measure_interposed.allocations);
    *mem = __libc_memalign(align, bytes);
    return *mem || !bytes ? 0 : 12; /* ENOMEM */
}

#define LOCKS(X)                           \
    X(pthread_mutex_lock, pthread_mutex_t) \
    X(pthread_rwlock_rdlock, pthread_rwlock_t) X(pthread_rwlock_wrlock, pthread_rwlock_t)

#define LOCK_STANDS_IN(name, type)                                           \
    int name(type *lock)                                                     \
    {                                                                        \
        static int (*next)(type * lock);                                     \
        int (*call)(type * lock) = __atomic_load_n(&next, __ATOMIC_ACQUIRE); \
                                                                             \
        if (!call) {                                                         \
            call = (int (*)(type *))dlsym(RTLD_NEXT, #name);                 \
            __atomic_store_n(&next, call, __ATOMIC_RELEASE);                 \
        }                                                                    \
        count(&measure_interposed.locks);                                    \
        return call(lock);                                                   \
    }
LOCKS(LOCK_STANDS_IN)

#endif
