/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * ap_lingerd.c: the C sender of lingerd(8).  ap_lingerd.h says how to use it.
 *
 * Version 1 of the hand-off protocol: a message is the byte 'L' with a
 * connected TCP socket in SCM_RIGHTS, on a stream that is connected once and
 * kept; there is no reply.  What this must not know: how long lingerd waits,
 * for what, and what becomes of a socket.
 */

/*
 * Solaris and illumos declare msg_control and the CMSG macros only for X/Open
 * networking, and leave much else out unless told that extensions are wanted.
 * This must come before the first header.
 */
#if defined(__sun)
#ifndef _XPG4_2
#define _XPG4_2
#endif
#ifndef __EXTENSIONS__
#define __EXTENSIONS__
#endif
#endif

#include "ap_lingerd.h"

#include <sys/uio.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>
#ifdef _POSIX_PRIORITY_SCHEDULING
#include <sched.h>
#endif

#ifdef MSG_NOSIGNAL
#define LINGERD_SEND_FLAGS MSG_NOSIGNAL
#else
#define LINGERD_SEND_FLAGS 0
#endif

/*
 * Solaris before 7, and what else is as old, passes descriptors in
 * msg_accrights, as 4.3BSD did.
 */
#if !defined(SCM_RIGHTS) && !defined(LINGERD_ACCRIGHTS)
#define LINGERD_ACCRIGHTS
#endif

#ifndef LINGERD_ACCRIGHTS
/* Of RFC 2292, and younger than SCM_RIGHTS. */
#ifndef CMSG_LEN
#define CMSG_LEN(size) (sizeof(struct cmsghdr) + (size))
#endif
#ifndef CMSG_SPACE
#define CMSG_SPACE(size) CMSG_LEN(size)
#endif
#endif

LINGERD_API int lingerd_init(lingerd_sender *s, const char *path)
{
    memset(s, 0, sizeof(*s));
    s->addr.sun_family = AF_UNIX;
    s->fd = -1;
    s->tried = (time_t)-1;
    if (*path == '\0') {
        errno = EINVAL;
        return -1;
    }
    if (strlen(path) > LINGERD_PATH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(s->addr.sun_path, path, strlen(path) + 1);
    return 0;
}

LINGERD_API void lingerd_drop(lingerd_sender *s, int error)
{
    int saved = errno;

    if (s->fd >= 0) {
        close(s->fd);
    }
    s->fd = -1;
    s->connected = 0;
    s->error = error;
    errno = saved;
}

/*
 * EAGAIN: the daemon is behind with reading, or with accept(2).
 * ETOOMANYREFS (Linux), EMFILE, ENOBUFS (BSD): too many descriptors on their
 * way; see unix(7).  EINPROGRESS, EALREADY: connect(2) is under way.
 */
LINGERD_API int lingerd_transient(int error)
{
    switch (error) {
    case EAGAIN:
#if EWOULDBLOCK != EAGAIN
    case EWOULDBLOCK:
#endif
#ifdef ETOOMANYREFS
    case ETOOMANYREFS:
#endif
    case EMFILE:
    case ENFILE:
    case ENOBUFS:
    case ENOMEM:
    case EINPROGRESS:
    case EALREADY:
    case EINTR:
        return 1;
    default:
        return 0;
    }
}

/*
 * Make a socket for the link.
 *
 * A program that the server starts must not inherit it.  Without SOCK_CLOEXEC
 * there is a moment in which another thread's fork(2) lets it slip; such a
 * system offers nothing better.
 */
static int lingerd_socket(void)
{
    int fd, flags;

#ifdef SOCK_CLOEXEC
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
#else
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
#endif
    if (fd < 0) {
        return -1;
    }
    flags = fcntl(fd, F_GETFL, 0);
    if (flags < 0
        || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0
#ifndef SOCK_CLOEXEC
        || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0
#endif
        ) {
        int saved = errno;

        close(fd);
        errno = saved;
        return -1;
    }
#if !defined(MSG_NOSIGNAL) && defined(SO_NOSIGPIPE)
    flags = 1;
    (void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &flags, sizeof(flags));
#endif
    return fd;
}

/*
 * A clock of whole seconds will do for "at most once a second", and comparing
 * for inequality means that no step of the clock can stop the attempts.
 *
 * Calling connect(2) again is how one learns what has become of a connect
 * that was under way: EALREADY, EISCONN, or the reason of its failure.
 */
LINGERD_API int lingerd_open(lingerd_sender *s)
{
    if (s->fd < 0) {
        time_t now = time(NULL);

        if (now == s->tried) {
            errno = s->error;
            return -1;
        }
        s->tried = now;
        s->fd = lingerd_socket();
        if (s->fd < 0) {
            s->error = errno;
            return -1;
        }
    }
    if (s->connected) {
        return 0;
    }
    if (connect(s->fd, (struct sockaddr *)&s->addr, sizeof(s->addr)) == 0
        || errno == EISCONN) {
        s->connected = 1;
        s->links++;
        return 0;
    }
    if (errno != EINPROGRESS && errno != EALREADY && errno != EINTR) {
        lingerd_drop(s, errno);
    }
    return -1;
}

/*
 * Send one message.
 *
 * A message with a single byte goes as a whole or not at all, so there is no
 * such thing as a descriptor sent by halves.
 * @return 0, or -1 with errno
 */
static int lingerd_send(int fd, int sock)
{
#ifndef LINGERD_ACCRIGHTS
    /* unix(7), cmsg(3): the union makes the buffer aligned. */
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control;
    struct cmsghdr *cmsg;
#endif
    struct msghdr msg;
    struct iovec iov;
    char byte = 'L';
    ssize_t rc;

    iov.iov_base = &byte;
    iov.iov_len = 1;
    memset(&msg, 0, sizeof(msg));
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
#ifndef LINGERD_ACCRIGHTS
    memset(&control, 0, sizeof(control));
    msg.msg_control = control.space;
    msg.msg_controllen = sizeof(control.space);
    cmsg = CMSG_FIRSTHDR(&msg);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(cmsg), &sock, sizeof(int));
#else
    msg.msg_accrights = (char *)&sock;
    msg.msg_accrightslen = sizeof(sock);
#endif

    do {
        rc = sendmsg(fd, &msg, LINGERD_SEND_FLAGS);
    } while (rc < 0 && errno == EINTR);
    return rc == 1 ? 0 : -1;
}

/*
 * A link that turns out to be dead most likely means that the daemon was
 * restarted, so the same connection is tried once more on a new link.  What
 * is queued on a link that merely is full will be read in time: it is kept.
 * EBADF speaks of the socket, not of the link, which is open.
 */
LINGERD_API int lingerd_give(lingerd_sender *s, int sock)
{
    int attempt;

    for (attempt = 0; attempt < 2; attempt++) {
        if (lingerd_open(s) != 0) {
            return -1;
        }
        if (lingerd_send(s->fd, sock) == 0) {
            return 0;
        }
        if (lingerd_transient(errno) || errno == EBADF) {
            return -1;
        }
        lingerd_drop(s, errno);
    }
    return -1;
}

/*
 * To close is safe then, even if the client still reads.  close(2) resets a
 * connection only if received data lie unread or more arrive; the first was
 * just looked at, and after the client's FIN there are no more.  What is left
 * of the response in the send buffer the kernel delivers after close(2).
 *
 * Without MSG_DONTWAIT this might block, so the answer is no.
 */
LINGERD_API int lingerd_client_done(int sock)
{
#ifdef MSG_DONTWAIT
    int saved = errno;
    int done;
    char byte;
    ssize_t rc;

    do {
        rc = recv(sock, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    } while (rc < 0 && errno == EINTR);
    done = rc == 0 || (rc < 0 && errno == ECONNRESET);
    errno = saved;
    return done;
#else
    (void)sock;
    return 0;
#endif
}

/*
 * The FIN goes out before the hand-over, so that a daemon that is slow or
 * hung never delays it: many a client reads until it sees one.  That is so on
 * Linux, where it can be done twice.  In the TCP of the BSDs a second time,
 * once the client has acknowledged the FIN, ends receiving too, and if the
 * hand-over fails the server does it once more before it lingers: there, and
 * where we do not know, it is left to lingerd.
 *
 * Then others may run, if there are any: the client among them, on the same
 * machine, or whoever has the processor while its FIN comes in.  Nothing is
 * waited for, and a hand-over that turns out to be needless is work saved for
 * two processes.
 */
LINGERD_API int lingerd_half_close(int sock)
{
#ifdef __linux__
    if (shutdown(sock, SHUT_WR) != 0 && errno == ENOTCONN) {
        return 1;
    }
#ifdef _POSIX_PRIORITY_SCHEDULING
    (void)sched_yield();
#endif
#endif
    return lingerd_client_done(sock);
}
