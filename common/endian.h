/*
 * Integers whose byte order is part of their type.
 *
 * virtio is little-endian (virtio 1.4, 1.4 "Structure Specifications"), qcow2 is big-endian. A wire integer
 * is a struct of its own, so that it can neither be used in arithmetic nor assigned from a plain number
 * without saying so. Freestanding: usable by driver and device, on any thread, on hosts of either order.
 *
 * The plain get/put functions are for private memory. Memory that a stranger may be writing to is read with
 * the _load_ functions and written with the _store_ functions, which are single atomic accesses.
 */
#ifndef RINGSIDE_COMMON_ENDIAN_H
#define RINGSIDE_COMMON_ENDIAN_H

#include <stdint.h>

typedef struct {
    uint16_t wire;
} le16;
typedef struct {
    uint32_t wire;
} le32;
typedef struct {
    uint64_t wire;
} le64;
typedef struct {
    uint16_t wire;
} be16;
typedef struct {
    uint32_t wire;
} be32;
typedef struct {
    uint64_t wire;
} be64;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define WIRE_LE16(x) ((uint16_t)(x))
#define WIRE_LE32(x) ((uint32_t)(x))
#define WIRE_LE64(x) ((uint64_t)(x))
#define WIRE_BE16(x) __builtin_bswap16(x)
#define WIRE_BE32(x) __builtin_bswap32(x)
#define WIRE_BE64(x) __builtin_bswap64(x)
#else
#define WIRE_LE16(x) __builtin_bswap16(x)
#define WIRE_LE32(x) __builtin_bswap32(x)
#define WIRE_LE64(x) __builtin_bswap64(x)
#define WIRE_BE16(x) ((uint16_t)(x))
#define WIRE_BE32(x) ((uint32_t)(x))
#define WIRE_BE64(x) ((uint64_t)(x))
#endif

#define WIRE_TYPE(order, ORDER, bits)                                                \
    static inline uint##bits##_t order##bits##_get(order##bits v)                    \
    {                                                                                \
        return WIRE_##ORDER##bits(v.wire);                                           \
    }                                                                                \
    static inline order##bits order##bits##_put(uint##bits##_t v)                    \
    {                                                                                \
        return (order##bits){WIRE_##ORDER##bits(v)};                                 \
    }                                                                                \
    static inline uint##bits##_t order##bits##_load(const order##bits *p)            \
    {                                                                                \
        return WIRE_##ORDER##bits(__atomic_load_n(&p->wire, __ATOMIC_RELAXED));      \
    }                                                                                \
    static inline uint##bits##_t order##bits##_load_acquire(const order##bits *p)    \
    {                                                                                \
        return WIRE_##ORDER##bits(__atomic_load_n(&p->wire, __ATOMIC_ACQUIRE));      \
    }                                                                                \
    static inline void order##bits##_store(order##bits *p, uint##bits##_t v)         \
    {                                                                                \
        __atomic_store_n(&p->wire, WIRE_##ORDER##bits(v), __ATOMIC_RELAXED);         \
    }                                                                                \
    static inline void order##bits##_store_release(order##bits *p, uint##bits##_t v) \
    {                                                                                \
        __atomic_store_n(&p->wire, WIRE_##ORDER##bits(v), __ATOMIC_RELEASE);         \
    }

/* A 64-bit ring field is never accessed atomically by either side; 32-bit machines could not. */
#define WIRE_TYPE64(order, ORDER)                     \
    static inline uint64_t order##64_get(order##64 v) \
    {                                                 \
        return WIRE_##ORDER##64(v.wire);              \
    }                                                 \
    static inline order##64 order##64_put(uint64_t v) \
    {                                                 \
        return (order##64){WIRE_##ORDER##64(v)};      \
    }

WIRE_TYPE(le, LE, 16)
WIRE_TYPE(le, LE, 32)
WIRE_TYPE64(le, LE)
WIRE_TYPE(be, BE, 16)
WIRE_TYPE(be, BE, 32)
WIRE_TYPE64(be, BE)

#endif
