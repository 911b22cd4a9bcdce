/*
 * The rings' litmus tests (guest/apps/litmus_rings.h) with two threads of this process; under the thread
 * sanitizer every word that crosses is checked for a happens-before.
 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <cmocka.h>

#include "guest/apps/litmus_rings.c"

#if defined(__SANITIZE_THREAD__)
#define ROUNDS 10000u
#else
#define ROUNDS 50000u
#endif
#define ENOUGH_NS 10000000000u

static uint64_t clock_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

/* Spins, so that the two sides meet; now and then lets the other side run, should there be one CPU. */
static void spin_or_yield(void)
{
    static __thread unsigned spins;
    if (++spins % 512 == 0)
        sched_yield();
    else
        __asm__ volatile("" : : : "memory");
}

static void *device_thread(void *litmus)
{
    litmus_device(litmus);
    return NULL;
}

static void ring_litmus(void **state)
{
    struct litmus *litmus = aligned_alloc(4096, (sizeof *litmus + 4095) & ~(size_t)4095);
    const char *size = getenv("RINGSIDE_SIZE");
    bool all = size && size[0] == 'l';
    pthread_t thread;

    assert_non_null(litmus);
    litmus_init(litmus, *state, all ? 100 * ROUNDS : ROUNDS, clock_now_ns, spin_or_yield);
    litmus->enough_ns = all ? 0 : ENOUGH_NS;
    assert_int_equal(pthread_create(&thread, NULL, device_thread, litmus), 0);
    litmus_driver(litmus);
    pthread_join(thread, NULL);
    if (litmus_failure(litmus))
        fail_msg("%s", litmus_failure(litmus));
    if (litmus->what->sleeping)
        printf("# %llu kicks, %llu sleeps in %llu rounds\n", (unsigned long long)litmus->kicked,
               (unsigned long long)litmus->slept, (unsigned long long)litmus->rounds);
    free(litmus);
}

int main(void)
{
    struct CMUnitTest tests[sizeof litmus_cases / sizeof litmus_cases[0]] = {{0}};
    for (unsigned i = 0; i < litmus_cases_count; i++)
        tests[i] = (struct CMUnitTest){.name = litmus_cases[i].name,
                                       .test_func = ring_litmus,
                                       .initial_state = (void *)(uintptr_t)&litmus_cases[i]};
    return cmocka_run_group_tests_name("vblk_litmus", tests, NULL, NULL);
}
