/* What a program begins with that is made without a C library, by tcc: it calls the kernel by sys(), by the
   numbers of x86-64 (Linux, man 2 syscalls), and begins in run(), with argc, argv and so on at STACK. */

long sys(long number, ...);
void run(long *stack);

/* at the entry the stack has argc, argv; a call has its arguments elsewhere than the kernel wants them */
asm(".globl _start\n"
    "_start: mov %rsp, %rdi\n"
    "and $-16, %rsp\n"
    "call run\n"
    ".globl sys\n"
    "sys: mov %rdi, %rax\n"
    "mov %rsi, %rdi\n"
    "mov %rdx, %rsi\n"
    "mov %rcx, %rdx\n"
    "mov %r8, %r10\n"
    "mov %r9, %r8\n"
    "mov 8(%rsp), %r9\n"
    "syscall\n"
    "ret\n");

static int length(const char *text)
{
    int n = 0;
    while (text[n]) n++;
    return n;
}
