/*
 * The runtime on a machine for which there is no cmocka: a small program that prints TAP, built by a cross
 * compiler and run under an emulator by tests/unit/test-coroutine-aarch64.sh.
 */
#include <stdio.h>
#include <string.h>

#include "host/runtime/co_lock.h"
#include "host/runtime/coroutine.h"
#include "host/runtime/iothread.h"
#include "host/runtime/loop.h"

static struct loop *loop;
static unsigned cases, failed;

static void check(const char *what, bool good)
{
    cases++;
    failed += !good;
    printf("%s %u - %s\n", good ? "ok" : "not ok", cases, what);
}

/* ---- registers ---- */

struct sums {
    double seed, result;
    uint64_t integers;
};

static void sleep_a_turn(void)
{
    co_wake(co_self());
    co_yield ();
}

/* More values alive over the switch than there are registers that a call may change: the kept ones are used.
 */
static void computes(void *arg)
{
    struct sums *s = arg;
    double a = s->seed, b = a + 1, c = a + 2, d = a + 3, e = a + 4, f = a + 5, g = a + 6, h = a + 7;
    uint64_t k = 1, l = 2, m = 3, n = 4, o = 5, p = 6, q = 7, r = 8, t = 9, u = 10;

    for (unsigned i = 0; i < 200; i++) {
        a += b * 0.5, b += c * 0.25, c += d * 0.125, d += 1, e -= a * 0.001, f += e, g += f * 0.01, h += g;
        k += l, l ^= m << 1, m += n, n ^= o >> 1, o += p, p ^= q, q += r * 3, r ^= t, t += u, u ^= k;
        if (s->integers)
            sleep_a_turn();
    }
    s->result = a + b + c + d + e + f + g + h;
    s->integers = k ^ l ^ m ^ n ^ o ^ p ^ q ^ r ^ t ^ u;
}

static void registers(void)
{
    struct sums sums[16], alone[16];
    bool good = true;

    for (unsigned i = 0; i < 16; i++) {
        sums[i] = (struct sums){.seed = i, .integers = 1};
        alone[i] = (struct sums){.seed = i, .integers = 0};
        co_enter(co_create(computes, &sums[i]));
    }
    while (loop_turn(loop, false))
        ;
    for (unsigned i = 0; i < 16; i++) {
        computes(&alone[i]);
        good &= sums[i].result == alone[i].result && sums[i].integers == alone[i].integers;
    }
    check("registers survive switches, of both kinds", good);
}

/* ---- stack ---- */

static __attribute__((noinline)) unsigned deep(unsigned depth)
{
    volatile char frame[1024];

    frame[depth % 1024] = (char)depth;
    if (depth % 10 == 0)
        sleep_a_turn();
    return depth ? deep(depth - 1) + (frame[depth % 1024] == (char)depth) : 0;
}

static void goes_deep(void *arg)
{
    *(unsigned *)arg = deep(80);
}

static void stack(void)
{
    unsigned results[8] = {0}, good = 0;

    for (unsigned i = 0; i < 8; i++)
        co_enter(co_create(goes_deep, &results[i]));
    while (loop_turn(loop, false))
        ;
    for (unsigned i = 0; i < 8; i++)
        good += results[i] == 80;
    check("80 KiB of stack can be used", good == 8);
}

static void notes_alignment(void *arg)
{
    char aligned[64] __attribute__((aligned(16)));

    __asm__ volatile("" ::"r"(aligned) : "memory");
    *(bool *)arg = (uintptr_t)aligned % 16 == 0 && (uintptr_t)__builtin_frame_address(0) % 16 == 0;
}

/* ---- pool, nesting ---- */

static void yields_once(void *arg)
{
    co_yield ();
    ++*(unsigned *)arg;
}

static void many(void)
{
    static struct coroutine *co[500];
    unsigned ended = 0, made = 0;

    for (unsigned round = 0; round < 5; round++) {
        for (unsigned i = 0; i < 500; i++) {
            co[i] = co_create(yields_once, &ended);
            made += co[i] != NULL;
            co_enter(co[i]);
        }
        for (unsigned i = 0; i < 500; i++)
            co_wake(co[(i * 7) % 500]);
    }
    check("2500 coroutines were made, slept and ended", made == 2500 && ended == 2500);
}

static void inner(void *arg)
{
    strcat(arg, "i");
    co_yield ();
    strcat(arg, "I");
}

static void outer(void *arg)
{
    struct coroutine *co = co_create(inner, arg);

    strcat(arg, "o");
    co_enter(co);
    strcat(arg, "p");
    co_wake(co);
    strcat(arg, "q");
}

/* ---- threads ---- */

static struct co_mutex mutex;
static unsigned counter;

static void counts(void *arg)
{
    for (unsigned i = 0; i < 300; i++) {
        co_mutex_lock(&mutex);
        counter++;
        if (i % 10 == 0)
            sleep_a_turn();
        co_mutex_unlock(&mutex);
    }
    co_sleep_ns(1000);
    ++*(unsigned *)arg;
}

static void start_counting(void *arg)
{
    for (unsigned i = 0; i < 4; i++)
        co_enter(co_create(counts, arg));
}

static void wait_for_four(void *arg)
{
    while (*(unsigned *)arg < 4)
        co_sleep_ns(100000);
}

static void threads(void)
{
    struct iothread *thread[2];
    unsigned ended[2] = {0};

    for (unsigned i = 0; i < 2; i++)
        thread[i] = iothread_start("count", 10000, NULL);
    if (thread[0] && thread[1]) {
        for (unsigned i = 0; i < 2; i++)
            iothread_call(thread[i], start_counting, &ended[i]);
        for (unsigned i = 0; i < 2; i++)
            iothread_call_coroutine(thread[i], wait_for_four, &ended[i]);
    }
    check("a mutex excludes coroutines of two threads", counter == 2 * 4 * 300 && !mutex.held);
    for (unsigned i = 0; i < 2; i++) {
        if (thread[i])
            iothread_stop(thread[i]);
    }
}

int main(void)
{
    char order[16] = "";
    bool aligned = false;

    loop = loop_create("main", NULL);
    if (!loop)
        return 1;
    registers();
    stack();
    co_enter(co_create(notes_alignment, &aligned));
    check("a fresh stack is aligned to 16 bytes", aligned);
    many();
    co_enter(co_create(outer, order));
    while (loop_turn(loop, false))
        ;
    check("coroutines nest", strcmp(order, "oipqI") == 0);
    threads();
    loop_destroy(loop);
    printf("1..%u\n", cases);
    return failed != 0;
}
