/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * Counts what a server hands over that does not count by itself: stands before
 * the C library's sendmsg(2), by LD_PRELOAD.  A letter in a file says that a
 * hand-off begins, another one that it has succeeded or failed.
 */
#define _GNU_SOURCE

#include <sys/socket.h>
#include <sys/syscall.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static void note(const char *letter)
{
    static int file = -1;
    int saved = errno;

    if (file < 0) {
        const char *path = getenv("LINGERD_SOAK_COUNT");

        file = path ? open(path, O_WRONLY | O_APPEND | O_CLOEXEC) : -1;
    }
    if (write(file, letter, 1) != 1) {
        abort();
    }
    errno = saved;
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    ssize_t sent;

    if (message->msg_controllen == 0) {
        return syscall(SYS_sendmsg, fd, message, flags);
    }
    note("b");
    sent = syscall(SYS_sendmsg, fd, message, flags);
    note(sent > 0 ? "h" : "f");
    return sent;
}
