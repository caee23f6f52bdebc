# The boot sector of kvm_probe.py. Made into bytes by (binutils):
#   as --64 -o probe.o kvm_probe.S && ld -Ttext 0x7c00 --oformat binary -o probe.bin probe.o
    .code16
    .globl _start
_start:
    cli
    xorw %ax, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    movw $0x7c00, %sp
    inb $0x92, %al
    orb $2, %al
    outb %al, $0x92
    # page tables at 0x1000: PML4, 0x2000: PDPT, 0x3000: PD (2 MiB page)
    movw $0x1000, %di
    movw $0x1800, %cx
    xorw %ax, %ax
    rep stosw
    movl $0x2003, 0x1000
    movl $0x3003, 0x2000
    movl $0x0083, 0x3000
    lgdt gdt_ptr
    movl $0x20, %eax
    movl %eax, %cr4
    movl $0x1000, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80000001, %eax
    movl %eax, %cr0
    ljmp $0x08, $long_mode
    .code64
long_mode:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %ss
    # real work: 100,000,000 loop turns through memory
    xorl %eax, %eax
    movl $100000000, %ecx
1:  addl %ecx, 0x5000
    addl 0x5000, %eax
    decl %ecx
    jnz 1b
    cpuid
    movb $0x2a, %al
    outb %al, $0xf4
2:  hlt
    jmp 2b
    .balign 8
gdt: .quad 0, 0x00209a0000000000, 0x0000920000000000
gdt_ptr: .word 23
    .long gdt
    .org 510
    .word 0xaa55
