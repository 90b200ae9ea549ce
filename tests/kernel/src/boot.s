# From the loader to Rust: the processor that boots, and those that it starts.
#
#   pvh_start   32-bit, paging off ─▶ long mode ─▶ bsp_long ─▶ kmain(start_info)
#   tramp_start 16-bit, at 0x8000  ─▶ tramp32 ─▶ long mode ─▶ ap_long ─▶ ap_main()
#
# The page tables map 4 GiB one to one and are filled in by the assembler.

.section .note.pvh, "a", @note
.align 4
    .long 4, 4, 18              # name size, descriptor size, XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .long pvh_start

.section .boot, "ax", @progbits
.code32
.globl pvh_start
pvh_start:                      # 32-bit protected mode, paging off, EBX = start info
    cli
    cld
    mov edi, ebx
    mov esp, offset boot_stack_top
    call enter_long_prep
    push 0x08
    mov eax, offset bsp_long
    push eax
    retf

enter_long_prep:
    mov eax, cr4
    or eax, 0x620               # PAE, OSFXSR, OSXMMEXCPT: SSE is on before any Rust runs
    mov cr4, eax
    mov eax, offset boot_pml4
    mov cr3, eax
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x900               # LME, NXE
    wrmsr
    mov eax, cr0
    and eax, 0xfffffffb         # EM off
    or eax, 0x80010023          # PG, WP, NE, MP, PE
    mov cr0, eax
    lgdt [gdt64_ptr]
    ret

.code64
bsp_long:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov edi, edi
    mov esp, offset boot_stack_top
    xor ebp, ebp
    call {kmain}
    ud2

ap_long:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov rsp, [rip + {ap_stack}]
    xor ebp, ebp
    call {ap_main}
    ud2

.section .rodata.tramp, "a", @progbits
.globl tramp_start
.globl tramp_end
.align 16
.code16
tramp_start:
    cli
    cld
    jmp 1f
.org tramp_start + 8            # a fixed offset: memory operands take one symbol only
    .word gdt64_end - gdt64 - 1
    .long gdt64
1:  xor ax, ax
    mov ds, ax
    lgdt [0x8008]
    mov eax, cr0
    or eax, 1
    mov cr0, eax
    .byte 0x66, 0xea            # far jump to 0x18:tramp32
    .long tramp32 - tramp_start + 0x8000
    .word 0x18
.code32
tramp32:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov esp, offset tramp_stack_top
    mov eax, offset enter_long_prep
    call eax
    push 0x08
    mov eax, offset ap_long
    push eax
    retf
tramp_end:

.section .rodata.gdt, "a", @progbits
.align 16
gdt64:
    .quad 0
    .quad 0x00AF9A000000FFFF    # 0x08: code, 64 bits
    .quad 0x00CF92000000FFFF    # 0x10: data
    .quad 0x00CF9A000000FFFF    # 0x18: code, 32 bits
gdt64_end:
gdt64_ptr:
    .word gdt64_end - gdt64 - 1
    .long gdt64
    .long 0

.section .data.boot, "aw", @progbits
.align 4096
.globl boot_pml4
boot_pml4:
    .quad boot_pdpt + 3
    .fill 511, 8, 0
.globl boot_pdpt
boot_pdpt:
    .quad boot_pd + 3, boot_pd + 0x1003, boot_pd + 0x2003, boot_pd + 0x3003
    .fill 508, 8, 0
boot_pd:
    .set i, 0
    .rept 2048
    .quad (i << 21) + 0x83
    .set i, i + 1
    .endr

.section .bss.boot, "aw", @nobits
.align 4096
.globl boot_stack
boot_stack:
    .skip 65536
.globl boot_stack_top
boot_stack_top:
    .skip 256
tramp_stack_top:

.section .text
.code64
