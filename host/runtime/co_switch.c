/*
 * A new stack, made to look as if it had been switched away from just before its function is called.
 */
#include "host/runtime/co_switch.h"

#include <stdlib.h>
#include <string.h>

#ifdef RINGSIDE_CO_UCONTEXT

/* makecontext passes ints only: a pointer goes as two halves. */
static void context_start(unsigned fn_high, unsigned fn_low, unsigned arg_high, unsigned arg_low)
{
    uintptr_t fn = (uintptr_t)(((uint64_t)fn_high << 32) | fn_low);
    uintptr_t arg = (uintptr_t)(((uint64_t)arg_high << 32) | arg_low);

    ((void (*)(void *))fn)((void *)arg);
    abort();
}

void co_context_init(struct co_context *context, void *stack, size_t bytes, void (*fn)(void *), void *arg)
{
    uint64_t fn_word = (uintptr_t)fn, arg_word = (uintptr_t)arg;

    getcontext(&context->uc);
    context->uc.uc_stack.ss_sp = stack;
    context->uc.uc_stack.ss_size = bytes;
    context->uc.uc_link = NULL;
    makecontext(&context->uc, (void (*)(void))context_start, 4, (unsigned)(fn_word >> 32), (unsigned)fn_word,
                (unsigned)(arg_word >> 32), (unsigned)arg_word);
}

#else

void co_context_init(struct co_context *context, void *stack, size_t bytes, void (*fn)(void *), void *arg)
{
    uintptr_t top = ((uintptr_t)stack + bytes) & ~(uintptr_t)15;
    uintptr_t *frame;

#if defined(__x86_64__)
    /* r15 r14 r13 r12 rbx rbp, return address; the stack is 16-byte aligned when the return address is gone.
     */
    frame = (uintptr_t *)(top - 16 - 7 * 8);
    memset(frame, 0, 7 * 8);
    frame[2] = (uintptr_t)arg;
    frame[3] = (uintptr_t)fn;
    frame[6] = (uintptr_t)ringside_co_start;
#elif defined(__aarch64__)
    /* x29 x30 x19 x20 x21... d15 */
    frame = (uintptr_t *)(top - 160);
    memset(frame, 0, 160);
    frame[1] = (uintptr_t)ringside_co_start;
    frame[2] = (uintptr_t)fn;
    frame[3] = (uintptr_t)arg;
#endif
    context->sp = frame;
}

#endif
