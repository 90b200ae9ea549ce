# Interrupts and exceptions: one stub a vector, one way in and out, and the way into the scheduler.
#
#   stub ─▶ trap_common: save everything ─▶ trap(frame) ─▶ restore ─▶ iretq
#   trap() may turn the return of a thread into a call of preempt_entry ─▶ preempted() ─▶ iretq
#
# Frame, upwards: r15 .. rax, vector, error code, rip, cs, rflags, rsp, ss.

.macro SAVE
    push rax
    push rbx
    push rcx
    push rdx
    push rsi
    push rdi
    push rbp
    push r8
    push r9
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    cld
    mov rbp, rsp
    sub rsp, 512
    and rsp, -16
    fxsave64 [rsp]
.endm

.macro RESTORE
    fxrstor64 [rsp]
    mov rsp, rbp
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop r9
    pop r8
    pop rbp
    pop rdi
    pop rsi
    pop rdx
    pop rcx
    pop rbx
    pop rax
.endm

.macro STUB vector, has_error
.align 16
    .if \has_error == 0
    push 0
    .endif
    push \vector
    jmp trap_common
.endm

.section .text.trap, "ax", @progbits
.code64
trap_common:
    SAVE
    mov rdi, rbp
    call {trap}
    RESTORE
    add rsp, 16
    iretq

# Entered by iretq with interrupts off, on the stack of the thread, below a second frame for iretq.
.globl preempt_entry
preempt_entry:
    SAVE
    call {preempted}
    RESTORE
    iretq

# switch_stacks(save: *mut usize, to: usize)
.globl switch_stacks
switch_stacks:
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    mov [rdi], rsp
    mov rsp, rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret

# Where a new thread begins: switch_stacks returns here.
.globl thread_entry
thread_entry:
    xor ebp, ebp
    call {thread_main}
    ud2

# probe_byte(address, write) -> the byte that is there, or all ones if touching it faults (see fault.rs)
.globl probe_byte
probe_byte:
    test esi, esi
    jnz 2f
.globl probe_read
probe_read:
    movzx eax, byte ptr [rdi]
    ret
.globl probe_write
2:
probe_write:
    mov byte ptr [rdi], 0x5a
    xor eax, eax
    ret
.globl probe_failed
probe_failed:
    mov eax, 0xffffffff
    ret

# Vectors 0 to 31 are the processor's, 32 to 47 ours, each stub 16 bytes from the next.
.align 16
.globl vector_stubs
vector_stubs:
    STUB 0, 0
    STUB 1, 0
    STUB 2, 0
    STUB 3, 0
    STUB 4, 0
    STUB 5, 0
    STUB 6, 0
    STUB 7, 0
    STUB 8, 1
    STUB 9, 0
    STUB 10, 1
    STUB 11, 1
    STUB 12, 1
    STUB 13, 1
    STUB 14, 1
    STUB 15, 0
    STUB 16, 0
    STUB 17, 1
    STUB 18, 0
    STUB 19, 0
    STUB 20, 0
    STUB 21, 1
    STUB 22, 0
    STUB 23, 0
    STUB 24, 0
    STUB 25, 0
    STUB 26, 0
    STUB 27, 0
    STUB 28, 0
    STUB 29, 1
    STUB 30, 1
    STUB 31, 0
    STUB 32, 0
    STUB 33, 0
    STUB 34, 0
    STUB 35, 0

.section .text
