/*
 * riscv64: from OpenSBI to C, in S-mode (RISC-V privileged architecture; SBI specification 1.0).
 *
 * a0 is our hart, a1 the device tree. Paging (Sv39) goes on with one to one pages of a GiB, the first GiB in pages
 * of 2 MiB and the first of those in small ones, so that page 0 can be missing and catch null pointers. tp holds the number of the CPU for good.
 *
 * OpenSBI (1.1, as QEMU 7.2 has it) marks a hart as started before it writes down where: one that happens to wake in
 * between comes here once more instead of to riscv64_cpu_start. So only the first that comes starts the machine.
 */
#define PTE_POINTER 0x1
#define PTE_RWXAD 0xcf
#define SATP_SV39 8
#define SSTATUS_FS_INITIAL 0x2000

    .section .text.start, "ax"
    .globl riscv64_start
riscv64_start:
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    csrw sie, zero
    la t0, machine_started
    li t1, 1
    amoswap.w.aq t1, t1, (t0)
    bnez t1, started_hart
    la sp, riscv64_stack_top
    la t0, __bss_start
    la t1, __bss_end
1:  bgeu t0, t1, 2f
    sd zero, (t0)
    addi t0, t0, 8
    j 1b
2:  la t0, riscv64_boot_hart
    sd a0, (t0)
    mv s1, a1

    la t0, root_table
    la t1, first_table
    srli t2, t1, 2
    ori t2, t2, PTE_POINTER
    sd t2, (t0)
    li t3, 1
    li t4, 256
3:  slli t2, t3, 28 /* a GiB's page number, at its place in the entry */
    ori t2, t2, PTE_RWXAD
    slli t5, t3, 3
    add t5, t5, t0
    sd t2, (t5)
    addi t3, t3, 1
    bltu t3, t4, 3b
    la t6, page_table
    srli t2, t6, 2
    ori t2, t2, PTE_POINTER
    sd t2, (t1)
    li t3, 1
    li t4, 512
4:  slli t2, t3, 19
    ori t2, t2, PTE_RWXAD
    slli t5, t3, 3
    add a2, t5, t1
    sd t2, (a2)
    slli t2, t3, 10
    ori t2, t2, PTE_RWXAD
    add a2, t5, t6
    sd t2, (a2)
    addi t3, t3, 1
    bltu t3, t4, 4b

    li tp, 0
    jal cpu_on
    mv a0, s1
    mv s0, zero
    call machine_start
5:  wfi
    j 5b

started_hart:
    la t0, riscv64_cpu_number
    ld a1, (t0)
/* A hart that SBI has started: a0 its hart, a1 the number of its CPU. */
    .globl riscv64_cpu_start
riscv64_cpu_start:
    .option push
    .option norelax
    la gp, __global_pointer$
    .option pop
    csrw sie, zero
    mv tp, a1
    la t0, riscv64_cpu_stack
    ld sp, (t0)
    jal cpu_on
    mv a0, tp
    mv s0, zero
    call riscv64_cpu_entry
6:  wfi
    j 6b

/* Traps, floating point, paging. Changes t0, t1. */
cpu_on:
    la t0, riscv64_trap_entry
    csrw stvec, t0
    li t0, SSTATUS_FS_INITIAL
    csrs sstatus, t0
    la t0, root_table
    srli t0, t0, 12
    li t1, SATP_SV39
    slli t1, t1, 60
    or t0, t0, t1
    sfence.vma
    csrw satp, t0
    sfence.vma
    ret

/* Interrupts stay masked for good, so whatever comes here is the end: riscv64_trap prints it. */
    .balign 4
riscv64_trap_entry:
    csrw sscratch, sp
    la sp, riscv64_fault_stack_top /* the interrupted stack may be what is wrong */
    addi sp, sp, -256
    .irp reg, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    sd x\reg, 8 * \reg(sp)
    .endr
    csrr t0, sscratch
    sd t0, 16(sp)
    sd zero, (sp)
    mv a0, sp
    call riscv64_trap
7:  wfi
    j 7b

    .section .data
    .balign 4
machine_started: /* not in .bss, which the first hart clears */
    .word 0

    .section .bss
    .balign 4096
root_table:
    .skip 4096
first_table:
    .skip 4096
page_table:
    .skip 4096
    .skip 16384
riscv64_fault_stack_top:
    .skip 262144
riscv64_stack_top:
    .globl riscv64_boot_hart, riscv64_cpu_stack, riscv64_cpu_number
riscv64_boot_hart:
    .skip 8
riscv64_cpu_stack: /* of the hart that is being started, and its CPU's number */
    .skip 8
riscv64_cpu_number:
    .skip 8
    .section .note.GNU-stack, "", @progbits
