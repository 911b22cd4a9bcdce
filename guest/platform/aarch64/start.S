/*
 * aarch64: from QEMU's -kernel to C (Arm Architecture Reference Manual, D5 and D13).
 *
 * We come in with the MMU off, at EL1, or at EL2 when the machine has virtualization=on. Caches and the MMU go on
 * before C runs, with one to one tables that C code cannot get wrong: the first 2 MiB missing (null pointers), the
 * rest of the first GiB device memory, 1 to 4 GiB ordinary memory, all above device memory up to 512 GiB.
 */
#define SCTLR_ON 0x30d0180d     /* reserved ones, and I, SA, C, M */
#define TCR_VALUE 0x200803519   /* 40-bit physical, no TTBR1, inner shareable, write-back tables, 39-bit virtual */
#define MAIR_VALUE 0xff00       /* 0: device nGnRnE; 1: ordinary, write-back */
#define BLOCK_DEVICE 0x60000000000401 /* never executed, access flag, attribute 0 */
#define BLOCK_MEMORY 0x705      /* access flag, inner shareable, attribute 1 */

    .section .text.start, "ax"
    .globl aarch64_start
aarch64_start:
    bl to_el1
    adrp x0, aarch64_stack_top
    mov sp, x0
    adrp x0, __bss_start
    add x0, x0, :lo12:__bss_start
    adrp x1, __bss_end
    add x1, x1, :lo12:__bss_end
1:  cmp x0, x1
    b.hs 2f
    stp xzr, xzr, [x0], #16
    b 1b

    /* The tables: one level-1 page of 512 GiB-entries, one level-2 page for the first GiB. */
2:  adrp x0, level1
    adrp x1, level2
    orr x2, x1, #3
    str x2, [x0]
    ldr x3, =BLOCK_DEVICE
    mov x4, #1
3:  lsl x2, x4, #21
    orr x2, x2, x3
    str x2, [x1, x4, lsl #3]
    add x4, x4, #1
    cmp x4, #512
    b.lo 3b
    mov x4, #1
4:  lsl x2, x4, #30
    mov x5, #BLOCK_MEMORY
    cmp x4, #4
    csel x5, x5, x3, lo
    orr x2, x2, x5
    str x2, [x0, x4, lsl #3]
    add x4, x4, #1
    cmp x4, #512
    b.lo 4b
    dsb ish /* the tables before the walker that mmu_on starts */

    bl mmu_on
    movz x0, #0x4000, lsl #16 /* the device tree, at the start of RAM */
    mov x29, xzr
    bl machine_start
5:  wfi
    b 5b

/* A CPU that PSCI has started, its number in x0. Its stack was chosen by the CPU that started it. */
    .globl aarch64_cpu_start
aarch64_cpu_start:
    mov x19, x0
    bl to_el1
    adrp x1, aarch64_cpu_stack
    ldr x1, [x1, :lo12:aarch64_cpu_stack]
    mov sp, x1
    bl mmu_on
    mov x0, x19
    mov x29, xzr
    bl aarch64_cpu_entry
6:  wfi
    b 6b

/* Leaves EL2, if that is where we are. Changes x9. */
to_el1:
    mrs x9, CurrentEL
    cmp x9, #8
    b.ne 7f
    mov x9, #0x80000000 /* EL1 is AArch64 */
    msr hcr_el2, x9
    mrs x9, cnthctl_el2
    orr x9, x9, #3
    msr cnthctl_el2, x9
    msr cntvoff_el2, xzr
    mov x9, #0x33ff
    msr cptr_el2, x9
    mov x9, #0x3c5 /* EL1 with its own stack, all interrupts masked */
    msr spsr_el2, x9
    msr elr_el2, x30
    eret
7:  ret

/* Floating point, vectors, MMU and caches. Changes x9. */
mmu_on:
    mov x9, #(3 << 20)
    msr cpacr_el1, x9
    adr x9, aarch64_vectors
    msr vbar_el1, x9
    ldr x9, =MAIR_VALUE
    msr mair_el1, x9
    ldr x9, =TCR_VALUE
    msr tcr_el1, x9
    adrp x9, level1
    msr ttbr0_el1, x9
    tlbi vmalle1
    dsb nsh
    isb
    ldr x9, =SCTLR_ON
    msr sctlr_el1, x9
    isb
    ret

/* Sixteen entries of 128 bytes. Interrupts stay masked for good, so whatever comes is the end: its registers are
 * saved for aarch64_trap to print. */
    .balign 2048
aarch64_vectors:
    .set entry, 0
    .rept 16
    .balign 128
    sub sp, sp, #272
    stp x0, x1, [sp]
    mov x1, #entry
    b trap_common
    .set entry, entry + 1
    .endr

trap_common:
    stp x2, x3, [sp, #16]
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp x8, x9, [sp, #64]
    stp x10, x11, [sp, #80]
    stp x12, x13, [sp, #96]
    stp x14, x15, [sp, #112]
    stp x16, x17, [sp, #128]
    stp x18, x19, [sp, #144]
    stp x20, x21, [sp, #160]
    stp x22, x23, [sp, #176]
    stp x24, x25, [sp, #192]
    stp x26, x27, [sp, #208]
    stp x28, x29, [sp, #224]
    add x2, sp, #272
    stp x30, x2, [sp, #240]
    mov x0, sp
    adrp x2, aarch64_fault_stack_top /* the interrupted stack may be what is wrong */
    mov sp, x2
    bl aarch64_trap
8:  wfi
    b 8b

    .section .bss
    .balign 4096
level1:
    .skip 4096
level2:
    .skip 4096
    .skip 16384
aarch64_fault_stack_top:
    .skip 262144
aarch64_stack_top:
    .skip 16
    .section .data
    .balign 8
    .globl aarch64_cpu_stack
aarch64_cpu_stack:
    .quad 0
    .section .note.GNU-stack, "", @progbits
