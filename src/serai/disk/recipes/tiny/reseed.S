# reseed TEXT: mix TEXT into the kernel's random numbers, and have all of them seeded anew at once.
#
# For a machine that was copied while it ran: until then it gives out what its twin does. A write to
# /dev/urandom alone takes effect within a minute; RNDRESEEDCRNG (random(4), Linux 5.18) at once.
# Exit code 1 when there is no TEXT, or the kernel refuses.
#
# The whole file is made from this one, header and all; its bytes are in disk/reseed.py:
#     as reseed.S -o reseed.o && ld -Ttext=0x400000 --oformat=binary -o reseed reseed.o

        .globl _start
header: .byte 0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0
        .short 2, 62                            # an executable, for x86-64
        .long 1
        .quad _start, segment - header, 0
        .long 0
        .short 64, 56, 1, 0, 0, 0
segment:
        .long 1, 5                              # loaded, to be read and run
        .quad 0, header, header, end - header, end - header, 0x1000

_start: mov 16(%rsp), %rbx                      # TEXT
        test %rbx, %rbx
        jz failed
        mov %rbx, %rdi
        xor %eax, %eax
        or $-1, %rcx
        repne scasb
        not %rcx
        lea -1(%rcx), %r12                      # its length
        mov $2, %eax                            # open(path, O_WRONLY)
        lea path(%rip), %rdi
        mov $1, %esi
        syscall
        test %eax, %eax
        js failed
        mov %eax, %r13d
        mov $1, %eax                            # write(it, TEXT, length)
        mov %r13d, %edi
        mov %rbx, %rsi
        mov %r12, %rdx
        syscall
        test %rax, %rax
        js failed
        mov $16, %eax                           # ioctl(it, RNDRESEEDCRNG)
        mov %r13d, %edi
        mov $0x5207, %esi
        xor %edx, %edx
        syscall
        mov %eax, %edi
        test %eax, %eax
        jz leave
failed: mov $1, %edi
leave:  mov $60, %eax                           # exit(code)
        syscall

path:   .asciz "/dev/urandom"
end:
