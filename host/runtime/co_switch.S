/*
 * Stack switches: what the ABI wants a function to keep is pushed, the stack pointer is changed, and the same
 * is popped again. The layouts are known to coroutine-gdb.py too.
 */
#ifndef RINGSIDE_CO_UCONTEXT

#if defined(__x86_64__)

/*
 * void ringside_co_switch(void **save, void *load)
 * Saved, from the stack pointer up: r15 r14 r13 r12 rbx rbp, return address. The floating-point control words
 * are not switched: nobody changes them. The return is a jump, as the processor's return predictor could only
 * be wrong here.
 */
    .text
    .globl  ringside_co_switch
    .type   ringside_co_switch, @function
    .p2align 4
ringside_co_switch:
    .cfi_startproc
    pushq   %rbp
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbp, 0
    pushq   %rbx
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %rbx, 0
    pushq   %r12
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r12, 0
    pushq   %r13
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r13, 0
    pushq   %r14
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r14, 0
    pushq   %r15
    .cfi_adjust_cfa_offset 8
    .cfi_rel_offset %r15, 0
    movq    %rsp, (%rdi)
    movq    %rsi, %rsp
    popq    %r15
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r15
    popq    %r14
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r14
    popq    %r13
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r13
    popq    %r12
    .cfi_adjust_cfa_offset -8
    .cfi_restore %r12
    popq    %rbx
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbx
    popq    %rbp
    .cfi_adjust_cfa_offset -8
    .cfi_restore %rbp
    popq    %rcx
    .cfi_adjust_cfa_offset -8
    .cfi_register %rip, %rcx
    jmp     *%rcx
    .cfi_endproc
    .size   ringside_co_switch, . - ringside_co_switch

/* The bottom of a stack: r12 is the function, r13 its argument. The return address is marked unknown, so that
 * debuggers stop here. */
    .globl  ringside_co_start
    .type   ringside_co_start, @function
    .p2align 4
ringside_co_start:
    .cfi_startproc
    .cfi_undefined %rip
    movq    %r13, %rdi
    callq   *%r12
    ud2
    .cfi_endproc
    .size   ringside_co_start, . - ringside_co_start

#elif defined(__aarch64__)

/*
 * void ringside_co_switch(void **save, void *load)
 * Saved, from the stack pointer up: x29 x30 x19..x28 d8..d15.
 */
    .text
    .globl  ringside_co_switch
    .type   ringside_co_switch, %function
    .p2align 4
ringside_co_switch:
    .cfi_startproc
    stp     x29, x30, [sp, #-160]!
    .cfi_def_cfa_offset 160
    .cfi_offset x29, -160
    .cfi_offset x30, -152
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    stp     d8, d9, [sp, #96]
    stp     d10, d11, [sp, #112]
    stp     d12, d13, [sp, #128]
    stp     d14, d15, [sp, #144]
    .cfi_offset x19, -144
    .cfi_offset x20, -136
    .cfi_offset x21, -128
    .cfi_offset x22, -120
    .cfi_offset x23, -112
    .cfi_offset x24, -104
    .cfi_offset x25, -96
    .cfi_offset x26, -88
    .cfi_offset x27, -80
    .cfi_offset x28, -72
    mov     x9, sp
    str     x9, [x0]
    mov     sp, x1
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     d8, d9, [sp, #96]
    ldp     d10, d11, [sp, #112]
    ldp     d12, d13, [sp, #128]
    ldp     d14, d15, [sp, #144]
    ldp     x29, x30, [sp], #160
    .cfi_def_cfa_offset 0
    ret
    .cfi_endproc
    .size   ringside_co_switch, . - ringside_co_switch

/* The bottom of a stack: x19 is the function, x20 its argument. */
    .globl  ringside_co_start
    .type   ringside_co_start, %function
    .p2align 4
ringside_co_start:
    .cfi_startproc
    .cfi_undefined x30
    mov     x0, x20
    blr     x19
    brk     #1
    .cfi_endproc
    .size   ringside_co_start, . - ringside_co_start

#endif
#endif

    .section .note.GNU-stack, "", %progbits
