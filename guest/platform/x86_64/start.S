/*
 * x86_64: from QEMU's -kernel to C.
 *
 * QEMU finds the PVH note and has the CPU here in 32-bit protected mode, paging off, %ebx pointing to the start
 * info (Xen's "x86/HVM direct boot ABI"). We map the first 4 GiB one to one with 2 MiB pages (the first 2 MiB
 * with small ones, so that C can take page 0 out), device space above 3 GiB uncached, switch to long mode with
 * caches and SSE on, and call C. Secondary CPUs come in through the real-mode trampoline at the end.
 *
 * The tables are filled by CPU 0 only; x86_map_device adds to them later, the CPUs never remove anything.
 */
#define CR0_PE 0x1
#define CR0_MP 0x2
#define CR0_EM 0x4
#define CR0_NE 0x20
#define CR0_WP 0x10000
#define CR0_NW 0x20000000
#define CR0_CD 0x40000000
#define CR0_PG 0x80000000
#define CR4_PAE 0x20
#define CR4_OSFXSR 0x200
#define CR4_OSXMMEXCPT 0x400
#define MSR_EFER 0xc0000080
#define EFER_LME 0x100

#define PAGE_PRESENT_WRITE 0x3
#define PAGE_UNCACHED 0x18
#define PAGE_LARGE 0x80

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 8, 18 /* name and description sizes; XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .quad x86_start32

    .section .text.start, "ax"
    .code32
    .globl x86_start32
x86_start32:
    cli
    cld
    movl $x86_stack_top, %esp
    movl $__bss_start, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl

    movl $(x86_pdpt + PAGE_PRESENT_WRITE), x86_pml4
    movl $4, %ecx /* four directories, a GiB each */
    movl $(x86_pd + PAGE_PRESENT_WRITE), %eax
    movl $x86_pdpt, %edi
1:  movl %eax, (%edi)
    addl $0x1000, %eax
    addl $8, %edi
    loop 1b

    movl $2048, %ecx
    movl $(PAGE_PRESENT_WRITE | PAGE_LARGE), %eax
    movl $x86_pd, %edi
2:  cmpl $0xc0000000, %eax
    jb 3f
    orl $PAGE_UNCACHED, %eax
3:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 2b

    movl $512, %ecx
    movl $PAGE_PRESENT_WRITE, %eax
    movl $x86_pt_low, %edi
4:  movl %eax, (%edi)
    addl $0x1000, %eax
    addl $8, %edi
    loop 4b
    movl $(x86_pt_low + PAGE_PRESENT_WRITE), x86_pd

    call x86_long_mode
    lgdt x86_gdt_pointer
    ljmp $8, $x86_start64

/* Turns long mode on in the CPU that calls it. Changes eax, ecx, edx. */
x86_long_mode:
    movl %cr4, %eax
    orl $(CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT), %eax
    movl %eax, %cr4
    movl $x86_pml4, %eax
    movl %eax, %cr3
    movl $MSR_EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl %cr0, %eax
    andl $~(CR0_EM | CR0_NW | CR0_CD), %eax
    orl $(CR0_PG | CR0_WP | CR0_NE | CR0_MP | CR0_PE), %eax
    movl %eax, %cr0
    ret

    .code64
x86_start64:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    leaq x86_stack_top, %rsp
    movl %ebx, %edi
    xorl %ebp, %ebp
    call machine_start
    hlt

/*
 * Secondary CPUs: INIT-SIPI starts them in real mode at a page below 1 MiB, where CPU 0 has copied what stands
 * between x86_trampoline and x86_trampoline_end. x86_cpu_starting says which CPU it is; one is started at a time.
 */
    .code16
    .balign 16
    .globl x86_trampoline, x86_trampoline_end
x86_trampoline:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %cs, %ax
    movw %ax, %ds
    lgdtl (x86_trampoline_gdt - x86_trampoline)
    movl %cr0, %eax
    orb $CR0_PE, %al
    movl %eax, %cr0
    ljmpl $24, $x86_cpu_start32
    .balign 4
x86_trampoline_gdt:
    .word x86_gdt_end - x86_gdt - 1
    .long x86_gdt
x86_trampoline_end:

    .code32
x86_cpu_start32:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl x86_cpu_stack, %esp
    call x86_long_mode
    ljmp $8, $x86_cpu_start64
    .code64
x86_cpu_start64:
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movq x86_cpu_stack, %rsp
    movl x86_cpu_starting, %edi
    xorl %ebp, %ebp
    call x86_cpu_entry
    hlt

/*
 * Traps: 256 entries of 16 bytes, each making the stack look alike (vector, error code) before it goes to the
 * common part. The general registers are saved, the SSE registers are not: x86_trap is compiled without them.
 */
    .balign 16
    .globl x86_vectors
x86_vectors:
    .set vector, 0
    .rept 256
    .balign 16
    .if (vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30)
    .else
    pushq $0
    .endif
    pushq $vector
    jmp x86_trap_common
    .set vector, vector + 1
    .endr

x86_trap_common:
    cld
    pushq %rax
    pushq %rbx
    pushq %rcx
    pushq %rdx
    pushq %rsi
    pushq %rdi
    pushq %rbp
    pushq %r8
    pushq %r9
    pushq %r10
    pushq %r11
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, %rdi
    call x86_trap
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %r11
    popq %r10
    popq %r9
    popq %r8
    popq %rbp
    popq %rdi
    popq %rsi
    popq %rdx
    popq %rcx
    popq %rbx
    popq %rax
    addq $16, %rsp
    iretq

    .section .data
    .balign 16
    .globl x86_gdt
x86_gdt: /* 8: 64-bit code, 16: data, 24: 32-bit code for the trampoline, 32: a task state a CPU, filled by C */
    .quad 0
    .quad 0x00af9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00cf9b000000ffff
    .fill 2 * 8, 8, 0
x86_gdt_end:
    .globl x86_gdt_pointer
x86_gdt_pointer:
    .word x86_gdt_end - x86_gdt - 1
    .quad x86_gdt
    .balign 8
    .globl x86_cpu_stack, x86_cpu_starting
x86_cpu_stack:
    .quad 0
x86_cpu_starting:
    .quad 0

    .section .bss
    .balign 4096
    .globl x86_pml4, x86_pt_low
x86_pml4:
    .skip 4096
x86_pdpt:
    .skip 4096
x86_pd:
    .skip 4 * 4096
x86_pt_low:
    .skip 4096
    .skip 262144
    .globl x86_stack_top
x86_stack_top:

    .section .note.GNU-stack, "", @progbits
