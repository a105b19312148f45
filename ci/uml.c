/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Preloaded into user-mode Linux by ci/uml, on processors whose registers take more room than it has: those with AMX.
 * It keeps the registers of its processes between ptrace(2)'s PTRACE_GETREGSET and PTRACE_SETREGSET, in 2,696 bytes
 * of the XSAVE format. The first fills what room there is; the second refuses less than all (EFAULT). Here it gets all:
 * what is missing are AMX's tiles, which no process has used that was not given leave to by arch_prctl(2).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>

/* Where the format says which components are not in their first state, and which of them may: those before AMX's. */
#define XSTATE_BV 512
#define BEFORE_AMX ((UINT64_C(1) << 17) - 1)

long ptrace(enum __ptrace_request request, ...)
{
    static long (*next)(int, int, void *, void *);
    static char whole[1 << 16];
    static size_t size; /* of all, as this kernel has it */
    const struct iovec *given;
    struct iovec all;
    uint64_t in_use;
    va_list arguments;
    void *address, *data;
    int pid;

    va_start(arguments, request);
    pid = va_arg(arguments, int);
    address = va_arg(arguments, void *);
    data = va_arg(arguments, void *);
    va_end(arguments);
    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "ptrace");
    if (request == PTRACE_SETREGSET && (uintptr_t)address == NT_X86_XSTATE) {
        given = data;
        all.iov_base = whole;
        all.iov_len = sizeof whole;
        if (!size) {
            if (next(PTRACE_GETREGSET, pid, address, &all))
                return -1;
            size = all.iov_len;
            memset(whole, 0, size);
        }
        if (given->iov_len > XSTATE_BV + sizeof in_use && given->iov_len < size) {
            memcpy(whole, given->iov_base, given->iov_len);
            memcpy(&in_use, whole + XSTATE_BV, sizeof in_use);
            in_use &= BEFORE_AMX;
            memcpy(whole + XSTATE_BV, &in_use, sizeof in_use);
            all.iov_len = size;
            data = &all;
        }
    }
    return next(request, pid, address, data);
}
