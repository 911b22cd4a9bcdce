/*
 * The barriers of a virtqueue's driver side (virtio 1.4, 2.7.13, 2.7.14, 2.8.21, 2.8.22), and the one before
 * a kick.
 *
 * Two strengths. A device that is another CPU's program needs what CPUs need among themselves: C11's
 * ordering. With VIRTIO_F_ORDER_PLATFORM the device may be real hardware (6.1), and the barriers must reach
 * the outer shareable domain (Arm) or order device accesses too (RISC-V). On x86 write-back memory both are
 * the same.
 *
 * Ring memory must be mapped cacheable and coherent with the device; no barrier repairs a mapping that is
 * not.
 */
#ifndef RINGSIDE_VBLK_BARRIER_H
#define RINGSIDE_VBLK_BARRIER_H

#include <stdbool.h>
#include <stdint.h>

#if defined(__SANITIZE_THREAD__)
#define VBLK_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define VBLK_TSAN 1
#endif
#endif

#ifdef VBLK_COUNT_BARRIERS /* a test counts which kind is used */
extern unsigned vblk_barriers_cpu, vblk_barriers_platform;
#define VBLK_COUNT_BARRIER(platform) ((platform) ? vblk_barriers_platform++ : vblk_barriers_cpu++)
#else
#define VBLK_COUNT_BARRIER(platform) ((void)0)
#endif

/* Everything before is seen by the device before anything written after (store-store). */
static inline void vblk_barrier_write(bool platform)
{
    VBLK_COUNT_BARRIER(platform);
#if defined(VBLK_TSAN)
    (void)platform; /* the release store that follows says it; sanitizers don't know fences */
#else
#if defined(__aarch64__)
    if (platform)
        __asm__ volatile("dmb oshst" ::: "memory");
#elif defined(__riscv)
    if (platform)
        __asm__ volatile("fence ow,ow" ::: "memory");
#endif
    (void)platform;
#endif
}

/* Nothing after is read before what was read before (load-load). */
static inline void vblk_barrier_read(bool platform)
{
    VBLK_COUNT_BARRIER(platform);
#if defined(VBLK_TSAN)
    (void)platform; /* the acquire load before it says it */
#else
#if defined(__aarch64__)
    if (platform)
        __asm__ volatile("dmb oshld" ::: "memory");
#elif defined(__riscv)
    if (platform)
        __asm__ volatile("fence ir,ir" ::: "memory");
#endif
    (void)platform;
#endif
}

/* What was written before is seen by the device before anything after is read (store-load): the only order
 * that no acquire or release gives, and the one whose lack loses kicks and interrupts. */
static inline void vblk_barrier_full(bool platform)
{
    VBLK_COUNT_BARRIER(platform);
#if defined(VBLK_TSAN)
    uint32_t word = 0;
    (void)platform;
    (void)__atomic_exchange_n(&word, 1, __ATOMIC_SEQ_CST);
    __asm__ volatile("" ::: "memory");
#if defined(__x86_64__)
    __asm__ volatile("mfence" ::: "memory");
#elif defined(__aarch64__)
    __asm__ volatile("dmb ish" ::: "memory");
#endif
#else
#if defined(__aarch64__)
    if (platform) {
        __asm__ volatile("dmb osh" ::: "memory");
        return;
    }
#elif defined(__riscv)
    if (platform) {
        __asm__ volatile("fence iorw,iorw" ::: "memory");
        return;
    }
#endif
    (void)platform;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

/* Ring writes reach memory before the notification, a device access, is made. On x86 an uncached store is
 * ordered after earlier stores; elsewhere memory and device accesses need a barrier of their own. */
static inline void vblk_barrier_kick(void)
{
#if defined(__aarch64__)
    __asm__ volatile("dmb oshst" ::: "memory");
#elif defined(__riscv)
    __asm__ volatile("fence w,o" ::: "memory");
#elif defined(__x86_64__) || defined(__i386__)
    __asm__ volatile("" ::: "memory");
#elif !defined(VBLK_TSAN)
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

#endif
