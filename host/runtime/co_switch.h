/*
 * The switch between two stacks. Private to the runtime.
 *
 * Two ways, chosen at build time and tested by the same tests: our own assembly (co_switch.S; x86_64,
 * aarch64) and ucontext (-DRINGSIDE_CO_UCONTEXT, and every other machine). Each side of a switch has one
 * co_context that holds it while it sleeps.
 */
#ifndef RINGSIDE_RUNTIME_CO_SWITCH_H
#define RINGSIDE_RUNTIME_CO_SWITCH_H

#if !defined(RINGSIDE_CO_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define RINGSIDE_CO_UCONTEXT
#endif

#include <stddef.h>
#include <stdint.h>

#ifdef RINGSIDE_CO_UCONTEXT

#include <ucontext.h>

struct co_context {
    ucontext_t uc;
};

static inline void co_context_switch(struct co_context *save, struct co_context *load)
{
    swapcontext(&save->uc, &load->uc);
}

#else

struct co_context {
    void *sp; /* the registers that the ABI wants kept lie there: see co_switch.S */
};

/* Saves the caller's registers on its stack and its stack pointer in *SAVE, goes on where LOAD was saved. */
void ringside_co_switch(void **save, void *load);

/* Where a new stack starts: calls the function in one saved register with the argument in another. */
void ringside_co_start(void);

static inline void co_context_switch(struct co_context *save, struct co_context *load)
{
    ringside_co_switch(&save->sp, load->sp);
}

#endif

/* Prepares CONTEXT so that the first switch to it calls FN(ARG) on the stack [STACK, STACK + BYTES). FN must
 * not return. */
void co_context_init(struct co_context *context, void *stack, size_t bytes, void (*fn)(void *), void *arg);

#endif
