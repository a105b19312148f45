/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * ap_lingerd.c: the C sender of lingerd(8).  ap_lingerd.h says how to use it.
 *
 * Version 1 of the hand-off protocol: a message is the byte 'L' with a
 * connected TCP socket in SCM_RIGHTS, on a stream that is connected once and
 * kept; there is no reply.  At lingerd's second socket it may be 'S', too: a
 * head of 72 bytes, with the socket and the files that are still to be written
 * to it; one for each 'G' that lingerd has said there.  Or 'K' or 'H', with the
 * socket alone, for one that is to come back; lingerd says 'K' to each.  What
 * this must not know: how long lingerd waits, for what, and what becomes of a
 * socket.
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

/* The link is one that does not block, all the same. */
#ifdef MSG_DONTWAIT
#define LINGERD_RECV_FLAGS MSG_DONTWAIT
#else
#define LINGERD_RECV_FLAGS 0
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

/* The first bytes of a message at the second socket: of an 'S', and as many of
 * one that is parked, whose last are the server's own */
#define LINGERD_BYTES (8 + 16 * LINGERD_PARTS)
#define LINGERD_OWN_AT (LINGERD_BYTES - LINGERD_OWN)

/* On macOS SO_LINGER counts in hundredths of a second. */
#ifdef SO_LINGER_SEC
#define LINGERD_LINGER SO_LINGER_SEC
#else
#define LINGERD_LINGER SO_LINGER
#endif

/* What the daemon says when it takes an 'S', and when it has one that is parked */
#define LINGERD_GO 'G'
#define LINGERD_HAS 'K'

/* What it is told when one that it brings back has been taken */
#define LINGERD_TAKEN 'A'

/* What makes the second path of the first, and the path of a way back. */
#define LINGERD_SECOND ".2"
#define LINGERD_BACK ".back."

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

/* Append to a path, if there is room. */
static int lingerd_append(struct sockaddr_un *addr, const char *more)
{
    size_t length = strlen(addr->sun_path);

    if (length + strlen(more) > LINGERD_PATH_MAX) {
        errno = ENAMETOOLONG;
        return -1;
    }
    memcpy(addr->sun_path + length, more, strlen(more) + 1);
    return 0;
}

LINGERD_API int lingerd_init_spool(lingerd_sender *s, const char *path)
{
    if (lingerd_init(s, path) != 0) {
        return -1;
    }
    return lingerd_append(&s->addr, LINGERD_SECOND);
}

/* Without strspn(3), which takes its time with so many letters. */
static int lingerd_may_name(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')
           || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

/* The length of a name, or 0 if it is none. */
static size_t lingerd_name(const char *name)
{
    size_t length = 0;

    while (lingerd_may_name(name[length])) {
        length++;
    }
    if (name[length] != '\0' || length == 0 || length > LINGERD_NAME_MAX) {
        errno = EINVAL;
        return 0;
    }
    return length;
}

LINGERD_API int lingerd_way_back(struct sockaddr_un *back, const char *path,
                                 const char *name)
{
    lingerd_sender s;

    if (lingerd_name(name) == 0 || lingerd_init(&s, path) != 0
        || lingerd_append(&s.addr, LINGERD_BACK) != 0
        || lingerd_append(&s.addr, name) != 0) {
        return -1;
    }
    *back = s.addr;
    return 0;
}

LINGERD_API void lingerd_drop(lingerd_sender *s, int error)
{
    int saved = errno;
    int fd = s->fd;

    /* Before it is closed: what fork(2) copies then has no number of another. */
    s->fd = -1;
    if (fd >= 0) {
        close(fd);
    }
    s->connected = 0;
    s->may_spool = 0;
    s->parking = 0;
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
 * such thing as a descriptor sent by halves.  A head does so too, as there is
 * room for all of it or no room, by the low-water mark of a stream; if not,
 * the link is of no use any more, and the daemon closes what came with the
 * part that it has.
 * @return 0, or -1 with errno
 */
static int lingerd_send(int fd, const unsigned char *bytes, size_t size,
                        const int *fds, int count)
{
#ifndef LINGERD_ACCRIGHTS
    /* unix(7), cmsg(3): the union makes the buffer aligned. */
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * (1 + LINGERD_PARTS))];
    } control;
    struct cmsghdr *cmsg;
#endif
    struct msghdr msg;
    struct iovec iov;
    ssize_t rc;

    iov.iov_base = (void *)bytes;
    iov.iov_len = size;
    memset(&msg, 0, sizeof(msg));
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
#ifndef LINGERD_ACCRIGHTS
    memset(&control, 0, sizeof(control));
    msg.msg_control = control.space;
    msg.msg_controllen = CMSG_SPACE(sizeof(int) * count);
    cmsg = CMSG_FIRSTHDR(&msg);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(sizeof(int) * count);
    memcpy(CMSG_DATA(cmsg), fds, sizeof(int) * count);
#else
    msg.msg_accrights = (char *)fds;
    msg.msg_accrightslen = (int)sizeof(int) * count;
#endif

    do {
        rc = sendmsg(fd, &msg, LINGERD_SEND_FLAGS);
    } while (rc < 0 && errno == EINTR);
    if (rc >= 0 && rc < (ssize_t)size) {
        errno = EPIPE;
        rc = -1;
    }
    return rc < 0 ? -1 : 0;
}

/*
 * A link that turns out to be dead most likely means that the daemon was
 * restarted, so the same connection is tried once more on a new link.  What
 * is queued on a link that merely is full will be read in time: it is kept.
 * EBADF speaks of what is passed, not of the link, which is open.
 */
static int lingerd_failed(lingerd_sender *s)
{
    if (lingerd_transient(errno) || errno == EBADF) {
        return 1;
    }
    lingerd_drop(s, errno);
    return 0;
}

/* errno is kept. */
static void lingerd_set_linger(int sock, int on, int seconds)
{
    struct linger linger;
    int saved = errno;

    linger.l_onoff = on;
    linger.l_linger = seconds;
    (void)setsockopt(sock, SOL_SOCKET, LINGERD_LINGER, (void *)&linger,
                     sizeof(linger));
    errno = saved;
}

LINGERD_API int lingerd_give(lingerd_sender *s, int sock)
{
    static const unsigned char linger = 'L';
    int attempt;

    for (attempt = 0; attempt < 2; attempt++) {
        if (lingerd_open(s) != 0) {
            return -1;
        }
        if (lingerd_send(s->fd, &linger, 1, &sock, 1) == 0) {
            return 0;
        }
        if (lingerd_failed(s)) {
            return -1;
        }
    }
    return -1;
}

/*
 * The option is of the connection, which both copies are of.  A daemon that
 * does not ask for it lingers as ever; none has close(2) wait for it.
 */
LINGERD_API int lingerd_give_for(lingerd_sender *s, int sock, int seconds)
{
    int rc;

    lingerd_set_linger(sock, 1, seconds);
    rc = lingerd_give(s, sock);
    if (rc != 0) {
        lingerd_set_linger(sock, 0, 0);
    }
    return rc;
}

/*
 * Take note of what the daemon has said so far.  What has no meaning yet is
 * left aside.
 * @return 0, or -1 with errno if there is no link any more
 */
static int lingerd_hear(lingerd_sender *s)
{
    unsigned char said[LINGERD_WINDOW + 1];
    ssize_t rc, n;

    for (;;) {
        do {
            rc = recv(s->fd, (void *)said, sizeof(said), LINGERD_RECV_FLAGS);
        } while (rc < 0 && errno == EINTR);
        if (rc <= 0) {
            break;
        }
        for (n = 0; n < rc; n++) {
            if (said[n] == LINGERD_GO) {
                s->may_spool = 1;
            }
            else if (said[n] == LINGERD_HAS && s->parking > 0) {
                s->parking--;
            }
        }
        if (rc < (ssize_t)sizeof(said)) {
            return 0;
        }
    }
    if (rc < 0 && lingerd_transient(errno)) {
        return 0;
    }
    lingerd_drop(s, rc == 0 ? EPIPE : errno);
    errno = s->error;
    return -1;
}

/*
 * A connect that is under way is waited for as the daemon's word is: before the
 * one has ended nothing is readable.  Not so where the daemon has no room for
 * one more (EAGAIN): of that no system tells the end.
 */
LINGERD_API int lingerd_may_spool(lingerd_sender *s)
{
    int attempt;

    for (attempt = 0; attempt < 2; attempt++) {
        if (lingerd_open(s) != 0) {
            return errno == EINPROGRESS || errno == EALREADY ? 0 : -1;
        }
        if (s->may_spool || lingerd_hear(s) == 0) {
            return s->may_spool;
        }
    }
    return -1;
}

/* An unsigned number of so many bytes, the most significant first. */
static void lingerd_number(unsigned char *at, int bytes, off_t number)
{
    while (bytes > 0) {
        at[--bytes] = (unsigned char)(number % 256);
        number /= 256;
    }
}

/*
 * Whoever closes the connection last resets it from here on: so does a system
 * that closes for a daemon which is killed before it has looked at what is in
 * its queue.  Else the client might take for the end what is none.
 */
static void lingerd_reset_at_close(int sock, int on)
{
    lingerd_set_linger(sock, on, 0);
}

LINGERD_API int lingerd_spool(lingerd_sender *s, int sock,
                              const lingerd_part *parts, int count,
                              unsigned long patience)
{
    unsigned char head[LINGERD_BYTES];
    int fds[1 + LINGERD_PARTS];
    int n, attempt;

    if (count < 1 || count > LINGERD_PARTS || patience == 0) {
        errno = EINVAL;
        return -1;
    }
    if (patience > 0x7fffffff) {
        patience = 0x7fffffff;
    }
    memset(head, 0, sizeof(head));
    head[0] = 'S';
    head[1] = (unsigned char)count;
    lingerd_number(head + 4, 4, (off_t)patience);
    fds[0] = sock;
    for (n = 0; n < count; n++) {
        fds[1 + n] = parts[n].fd;
        if (parts[n].offset < 0 || parts[n].length < 0) {
            errno = EINVAL;
            return -1;
        }
        lingerd_number(head + 8 + 16 * n, 8, parts[n].offset);
        lingerd_number(head + 16 + 16 * n, 8, parts[n].length);
        if (parts[n].ours) {
            head[3] |= (unsigned char)(1 << n);
        }
    }

    for (attempt = 0; attempt < 2; attempt++) {
        int may = lingerd_may_spool(s);

        if (may <= 0) {
            if (may == 0) {
                errno = EAGAIN;
            }
            return -1;
        }
        lingerd_reset_at_close(sock, 1);
        if (lingerd_send(s->fd, head, sizeof(head), fds, 1 + count) == 0) {
            s->may_spool = 0;
            return 0;
        }
        lingerd_reset_at_close(sock, 0);
        if (lingerd_failed(s)) {
            return -1;
        }
    }
    return -1;
}

/*
 * What the daemon has said is read only when the window is full: for every
 * eighth or so.
 */
LINGERD_API int lingerd_park(lingerd_sender *s, int sock, const char *name,
                             const lingerd_parked *parked)
{
    unsigned char head[LINGERD_BYTES];
    unsigned long patience = parked->patience;
    size_t length = lingerd_name(name);
    int attempt;

    if (length == 0 || patience == 0) {
        errno = EINVAL;
        return -1;
    }
    if (patience > 0x7fffffff) {
        patience = 0x7fffffff;
    }
    memset(head, 0, sizeof(head));
    head[0] = (unsigned char)parked->kind;
    head[1] = (unsigned char)length;
    lingerd_number(head + 4, 4, (off_t)patience);
    memcpy(head + 8, name, length);
    memcpy(head + LINGERD_OWN_AT, parked->own, LINGERD_OWN);

    for (attempt = 0; attempt < 2; attempt++) {
        if (lingerd_open(s) != 0) {
            return -1;
        }
        if (s->parking >= LINGERD_WINDOW) {
            if (lingerd_hear(s) != 0) {
                continue;
            }
            if (s->parking >= LINGERD_WINDOW) {
                errno = EAGAIN;
                return -1;
            }
        }
        if (lingerd_send(s->fd, head, sizeof(head), &sock, 1) == 0) {
            s->parking++;
            return 0;
        }
        if (lingerd_failed(s)) {
            return -1;
        }
    }
    return -1;
}

/*
 * Receive so many bytes, and the descriptor that came with them; others that
 * did are closed.
 */
static ssize_t lingerd_receive(int link, unsigned char *bytes, size_t size,
                               int *sock)
{
#ifndef LINGERD_ACCRIGHTS
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int) * (1 + LINGERD_PARTS))];
    } control;
    struct cmsghdr *cmsg;
#endif
    struct msghdr msg;
    struct iovec iov;
    int flags = LINGERD_RECV_FLAGS;
    ssize_t rc;

    *sock = -1;
    iov.iov_base = (void *)bytes;
    iov.iov_len = size;
    memset(&msg, 0, sizeof(msg));
    msg.msg_iov = &iov;
    msg.msg_iovlen = 1;
#ifndef LINGERD_ACCRIGHTS
    memset(&control, 0, sizeof(control));
    msg.msg_control = control.space;
    msg.msg_controllen = sizeof(control.space);
#else
    msg.msg_accrights = (char *)sock;
    msg.msg_accrightslen = (int)sizeof(int);
#endif
#ifdef MSG_CMSG_CLOEXEC
    flags |= MSG_CMSG_CLOEXEC;
#endif
    do {
        rc = recvmsg(link, &msg, flags);
    } while (rc < 0 && errno == EINTR);
#ifndef LINGERD_ACCRIGHTS
    for (cmsg = rc > 0 ? CMSG_FIRSTHDR(&msg) : NULL; cmsg != NULL;
         cmsg = CMSG_NXTHDR(&msg, cmsg)) {
        size_t at = 0, end = cmsg->cmsg_len - CMSG_LEN(0);

        if (cmsg->cmsg_level != SOL_SOCKET || cmsg->cmsg_type != SCM_RIGHTS) {
            continue;
        }
        for (; at + sizeof(int) <= end; at += sizeof(int)) {
            if (*sock >= 0) {
                close(*sock);
            }
            memcpy(sock, CMSG_DATA(cmsg) + at, sizeof(int));
        }
    }
#endif
#ifndef MSG_CMSG_CLOEXEC
    if (*sock >= 0) {
        (void)fcntl(*sock, F_SETFD, FD_CLOEXEC);
    }
#endif
    return rc;
}

/*
 * That it has been taken the daemon is told before anything else is done with
 * it: what cannot be told to it, it has still.
 */
LINGERD_API int lingerd_take_back(int link, lingerd_parked *parked)
{
    static const unsigned char taken = LINGERD_TAKEN;
    unsigned char head[LINGERD_BYTES];
    int sock, error = 0;
    ssize_t rc = lingerd_receive(link, head, sizeof(head), &sock);

    if (rc <= 0) {
        if (rc == 0) {
            errno = EPIPE;
        }
        return -1;
    }
    if (rc != (ssize_t)sizeof(head) || sock < 0
        || (head[0] != LINGERD_KEPT && head[0] != LINGERD_HEAD)) {
        error = EINVAL;
    }
    else {
        do {
            rc = send(link, (const void *)&taken, 1,
                      LINGERD_SEND_FLAGS | LINGERD_RECV_FLAGS);
        } while (rc < 0 && errno == EINTR);
        error = rc == 1 ? 0 : EPIPE;
    }
    if (error != 0) {
        if (sock >= 0) {
            close(sock);
        }
        errno = error;
        return -1;
    }
    parked->kind = (lingerd_kind)head[0];
    parked->patience = (unsigned long)head[4] << 24 | head[5] << 16
                       | head[6] << 8 | head[7];
    parked->late = head[2] != 0;
    memcpy(parked->own, head + LINGERD_OWN_AT, LINGERD_OWN);
    return sock;
}

LINGERD_API int lingerd_ask(lingerd_sender *s, lingerd_form form)
{
    const unsigned char byte = (unsigned char)form;
    ssize_t rc;

    if (lingerd_open(s) != 0) {
        return -1;
    }
    do {
        rc = send(s->fd, (const void *)&byte, 1,
                  LINGERD_SEND_FLAGS | LINGERD_RECV_FLAGS);
    } while (rc < 0 && errno == EINTR);
    return rc == 1 ? 0 : -1;
}

/* It may have said that it takes a response before it was asked. */
LINGERD_API long lingerd_answer(lingerd_sender *s, char *piece, size_t size)
{
    ssize_t rc;

    for (;;) {
        rc = recv(s->fd, piece, size, LINGERD_RECV_FLAGS);
        if (rc < 0 && errno == EINTR) {
            continue;
        }
        if (rc <= 0 || piece[0] != LINGERD_GO || s->may_spool) {
            break;
        }
        s->may_spool = 1;
        if (rc > 1) {
            rc--;
            memmove(piece, piece + 1, (size_t)rc);
            break;
        }
    }
    if (rc > 0) {
        s->may_spool = 1;   /* a second one would be the answer's */
    }
    return (long)rc;
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
 */
LINGERD_API int lingerd_shutdown(int sock)
{
#ifdef __linux__
    return shutdown(sock, SHUT_WR) != 0 && errno == ENOTCONN;
#else
    (void)sock;
    return 0;
#endif
}

/*
 * Then others may run, if there are any: the client among them, on the same
 * machine, or whoever has the processor while its FIN comes in.  Nothing is
 * waited for, and a hand-over that turns out to be needless is work saved for
 * two processes.
 */
LINGERD_API int lingerd_half_close(int sock)
{
    if (lingerd_shutdown(sock)) {
        return 1;
    }
#if defined(__linux__) && defined(_POSIX_PRIORITY_SCHEDULING)
    (void)sched_yield();
#endif
    return lingerd_client_done(sock);
}
