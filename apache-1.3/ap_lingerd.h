/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * ap_lingerd.h: the C sender of lingerd(8), for Apache 1.3 and 2.4 and for any
 * other server in C.  It is C89 and needs nothing but sockets.  liblingerd, in
 * senders/c, is made of it, for servers that would link with a library: lingerd(3).
 *
 * A server that closes a connection on which the client may still send has
 * to half-close it, and to go on reading until the client closes too; else
 * the kernel answers the late bytes with a reset, and the reset destroys what
 * the client has not yet read of the response (RFC 9112 section 9.6).  Where
 * a process or a thread serves one connection at a time, all of it waits for
 * a client to which it has nothing left to say.  With this it passes the
 * socket to lingerd, and is free at once.
 *
 * A client that reads slowly keeps the server while it writes, too.  What the
 * kernel does not take of a response lingerd writes in its place, if it is in
 * files: of memory of its own (memfd_create, or a file without a name) or of
 * the disk.  That is spoken at a second socket beside the first, by a sender
 * of its own; a daemon that cannot do it does not have it.
 *
 * It says there, by a byte, when a sender may send it a response: while it has
 * as much as it takes, or hangs, it does not.  So a server whose client has no
 * room waits for two things at once: for room, to write itself, and for that
 * byte, to hand over.
 *
 * All of it, for a server that sends a file from one offset to another.  It has
 * one sender of each kind for a process, and the path is LINGERD_SOCKET unless
 * somebody says otherwise.  What lingerd takes it writes, and lingers; what it
 * does not the server does as if lingerd were not there, and would bound the
 * time of that.  Of a file that nobody else has use for, .ours is 1.
 *
 *     static lingerd_sender lingerer, spooler;
 *     static int can_spool;
 *
 *     static int start(const char *path)
 *     {
 *         can_spool = lingerd_init_spool(&spooler, path) == 0;
 *         return lingerd_init(&lingerer, path);
 *     }
 *
 *     static int spool(int sock, int fd, off_t at, off_t end)
 *     {
 *         lingerd_part part;
 *
 *         part.fd = fd;
 *         part.offset = at;
 *         part.length = end - at;
 *         part.ours = 0;
 *         return lingerd_spool(&spooler, sock, &part, 1, 300000) == 0;
 *     }
 *
 *     static void send_and_close(int sock, int fd, off_t at, off_t end)
 *     {
 *         char piece[8192];
 *         ssize_t n;
 *
 *         while (at < end) {
 *             struct pollfd either[2];
 *             int may;
 *
 *             lseek(fd, at, SEEK_SET);
 *             n = read(fd, piece, end - at < 8192 ? (size_t)(end - at) : 8192);
 *             if (n > 0) {
 *                 n = send(sock, piece, (size_t)n, MSG_DONTWAIT);
 *             }
 *             if (n > 0) {
 *                 at += n;
 *                 continue;
 *             }
 *             if (n == 0 || errno != EAGAIN) {
 *                 break;
 *             }
 *             may = can_spool ? lingerd_may_spool(&spooler) : -1;
 *             if (may > 0 && spool(sock, fd, at, end)) {
 *                 close(sock);
 *                 return;
 *             }
 *             either[0].fd = sock;
 *             either[0].events = POLLOUT;
 *             either[1].fd = spooler.fd;
 *             either[1].events = POLLIN;
 *             if (poll(either, may == 0 ? 2 : 1, 300000) == 0) {
 *                 break;
 *             }
 *         }
 *         if (at < end) {
 *             struct linger reset;
 *
 *             reset.l_onoff = 1;
 *             reset.l_linger = 0;
 *             setsockopt(sock, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
 *         }
 *         else if (!lingerd_half_close(sock)
 *                  && lingerd_give(&lingerer, sock) != 0) {
 *             shutdown(sock, 1);
 *             while (recv(sock, piece, sizeof(piece), 0) > 0) {
 *             }
 *         }
 *         close(sock);
 *     }
 *
 * A server whose workers wait for the next request of their clients has lingerd
 * wait for them: lingerd_park() hands a connection over that is to come back, at
 * the same second socket.  It does when the client says something, to whatever
 * worker accepts next at a Unix socket that the server itself has made, and
 * listens at: beside lingerd's, at the path that lingerd_way_back() says.
 * Each connection that is accepted there brings one back, which
 * lingerd_take_back() takes.  lingerd-protocol(7) has all of it.
 *
 * No function here ever waits.  They do no locking, and none of them is to be
 * interrupted by a signal handler that does not return (Apache 1.3 has such).
 * SIGPIPE is kept away where the system can do that for a single call or
 * socket; elsewhere the caller has to ignore it, as servers do.
 */

#ifndef AP_LINGERD_H
#define AP_LINGERD_H

/* Apache 1.3 where no descriptor can be passed: it lingers itself. */
#if defined(WIN32) || defined(NETWARE)
#define ap_lingerd(sock) 0
#else

#include <sys/types.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

/**
 * How the functions are linked: within the program or the module that
 * ap_lingerd.c is compiled into.  A server loads modules of many origins; one
 * that has the sender too, perhaps of another version, is not to be called by
 * mistake.
 */
#ifndef LINGERD_API
#if defined(__GNUC__) && __GNUC__ >= 4 && (defined(__ELF__) || defined(__APPLE__))
#define LINGERD_API extern __attribute__((visibility("hidden")))
#elif defined(__SUNPRO_C) && __SUNPRO_C >= 0x550
#define LINGERD_API extern __hidden
#else
#define LINGERD_API extern
#endif
#endif

/** May be set by a packager, with -DLINGERD_SOCKET=... */
#ifndef LINGERD_SOCKET
#define LINGERD_SOCKET "/var/run/lingerd/lingerd.sock"
#endif

/** The longest path that fits into a socket's address with its final NUL. */
#define LINGERD_PATH_MAX (sizeof(((struct sockaddr_un *)0)->sun_path) - 1)

/** The link to the daemon: one for a process, used by one thread at a time. */
typedef struct lingerd_sender {
    /** Where the daemon listens */
    struct sockaddr_un addr;
    /** The link, or -1.  Non-blocking and close-on-exec. */
    int fd;
    /** Whether connect(2) has succeeded; else it is still under way */
    int connected;
    /** When the link was last opened, well or not; never twice at one time(2) */
    time_t tried;
    /** Why there is no link */
    int error;
    /** How many times a link was established */
    unsigned long links;
    /** Whether the daemon has said that it takes a response, and has none yet */
    int may_spool;
    /** How many were parked on this link of which it has not said that it has
     *  them */
    int parking;
} lingerd_sender;

/** How many parked ones a daemon that hangs is given at most on a link */
#define LINGERD_WINDOW 8

/** How many bytes of the server's own go and come back with a parked one */
#define LINGERD_OWN 40

/** The longest name of a way back: a-z A-Z 0-9 _ - */
#define LINGERD_NAME_MAX 24

/** Why a connection is parked, and what brings it back */
typedef enum lingerd_kind {
    /** It is kept alive: when the client says something; when its time is up
     *  the daemon does with it as with lingerd_give() */
    LINGERD_KEPT = 'K',
    /** The head of its next request is not whole: when it is, or its time is
     *  up.  Nothing may have been read of it. */
    LINGERD_HEAD = 'H'
} lingerd_kind;

/** One that is parked, or has come back */
typedef struct lingerd_parked {
    lingerd_kind kind;
    /** Its time, in milliseconds; not 0 */
    unsigned long patience;
    /** Whether it has come back because that was up */
    int late;
    unsigned char own[LINGERD_OWN];
} lingerd_parked;

/** The most parts of a response that lingerd_spool() takes */
#define LINGERD_PARTS 4

/** What is still to be written, of one file */
typedef struct lingerd_part {
    int fd;
    off_t offset;
    off_t length;
    /** Whether nobody else has use for the file, so that the daemon may give
     *  back the room that it takes up while it is sent */
    int ours;
} lingerd_part;

/**
 * Prepare a sender.  The link is opened when it is used first.  A child of
 * fork(2) may go on with its parent's link, or lingerd_drop() it for its own;
 * one for lingerd_spool() it has to drop, as what the daemon says on a link it
 * says to one process.
 * @return 0; or -1 with EINVAL (no path) or ENAMETOOLONG, and then the sender
 *         is not to be used
 */
LINGERD_API int lingerd_init(lingerd_sender *s, const char *path);

/**
 * See to it that there is a link, or that one is on its way.  lingerd_give()
 * does it too; this is for who wants to know before anything else is done.
 * @return 0, or -1 with errno
 */
LINGERD_API int lingerd_open(lingerd_sender *s);

/**
 * Half-close a connection that is about to be handed over, and look whether
 * that is still needed.
 * @return Whether the client is done: the caller closes and nobody lingers
 */
LINGERD_API int lingerd_half_close(int sock);

/**
 * The same without that look, which takes two system calls: for who knows that
 * its clients are not done by then.
 * @return Whether the client has reset the connection, as far as that is known
 */
LINGERD_API int lingerd_shutdown(int sock);

/**
 * Whether the client has nothing more to send and nothing it sent is unread;
 * then the caller can close at once and need not hand over anything.  errno
 * is kept.
 */
LINGERD_API int lingerd_client_done(int sock);

/**
 * Hand a connection over.
 * @return 0: the daemon has it, the caller closes its own copy.
 *         -1 with errno: the caller still has it all to itself, and lingers.
 */
LINGERD_API int lingerd_give(lingerd_sender *s, int sock);

/**
 * The same of a connection that is not worth more than so many seconds, such as
 * one whose client was too slow to ask: after that the daemon ends it, whatever
 * it does.  One that is older than this lingers as ever.  SO_LINGER is set, and
 * off again when this fails.
 * @param seconds More than 0
 */
LINGERD_API int lingerd_give_for(lingerd_sender *s, int sock, int seconds);

/**
 * Prepare a sender for lingerd_spool() and lingerd_park(): with the second
 * socket of the daemon that has its first at path.  Else as lingerd_init().
 */
LINGERD_API int lingerd_init_spool(lingerd_sender *s, const char *path);

/**
 * Whether the daemon takes a response now.  Opens the link if there is none.
 * @return 1: lingerd_spool() is what comes next.
 *         0: not yet.  When s->fd is readable this is to be called again, and
 *         meanwhile the caller writes, as far as its client lets it.
 *         -1 with errno: there is no link; to be called again after a second.
 */
LINGERD_API int lingerd_may_spool(lingerd_sender *s);

/**
 * Hand a connection over whose response is not written yet.  The daemon writes
 * the parts in their order, and then does as with lingerd_give(); it resets the
 * connection if it does not get on for the time of patience, in milliseconds.
 *
 * The connection is not to be half-closed.  Its SO_LINGER is set, and off
 * again when this fails.
 * @return 0: the daemon has it, the caller closes its own copy.
 *         -1 with errno: the caller still has it all to itself, and writes.
 *         EAGAIN, too, when lingerd_may_spool() would say 0.
 */
LINGERD_API int lingerd_spool(lingerd_sender *s, int sock,
                              const lingerd_part *parts, int count,
                              unsigned long patience);

/**
 * The path of a way back, of the daemon that has its first socket at path.
 * @return 0; or -1 with EINVAL (no such name) or ENAMETOOLONG
 */
LINGERD_API int lingerd_way_back(struct sockaddr_un *back, const char *path,
                                 const char *name);

/**
 * Hand a connection over that is to come back, by the way of that name.  Not
 * half-closed, and with nothing left to be written.
 * @return 0: the daemon has it, the caller closes its own copy.
 *         -1 with errno: the caller still has it all to itself.  EAGAIN, too,
 *         when the daemon has not said of LINGERD_WINDOW that it has them.
 */
LINGERD_API int lingerd_park(lingerd_sender *s, int sock, const char *name,
                             const lingerd_parked *parked);

/**
 * Take back what the daemon brings on a connection that was accepted at a way
 * back.  The caller closes that in any case but EAGAIN.
 * @return The socket, close-on-exec and the caller's from here on; or -1 with
 *         errno.  EAGAIN: there is nothing yet.  EPIPE: nothing was to come, as
 *         the daemon only wanted to know whether anybody listens, or the
 *         connection is the daemon's still.  EINVAL: it was no message.
 */
LINGERD_API int lingerd_take_back(int link, lingerd_parked *parked);

/** In which form the daemon says its counters, see lingerd-protocol(7) */
typedef enum lingerd_form {
    /** A table for people, each line of which begins with a name and a number */
    LINGERD_TABLE = 't',
    LINGERD_JSON = 'j',
    /** Version 0.0.4 of Prometheus's text format */
    LINGERD_PROMETHEUS = 'p'
} lingerd_form;

/**
 * Ask for the counters, with a sender that lingerd_init_spool() has prepared for
 * nothing else.  lingerd_drop() is what ends it in any case.
 * @return 0: lingerd_answer() is what comes next, when s->fd is readable.
 *         -1 with errno.  EINPROGRESS, EALREADY: to be called again when s->fd
 *         is writable.
 */
LINGERD_API int lingerd_ask(lingerd_sender *s, lingerd_form form);

/**
 * The next piece of what it answers.
 * @return How many bytes, or 0: that was all.
 *         -1 with errno.  EAGAIN: to be called again when s->fd is readable.
 */
LINGERD_API long lingerd_answer(lingerd_sender *s, char *piece, size_t size);

/**
 * Whether an error of one of these functions only means "not now":
 * the link is good, or soon will be.
 */
LINGERD_API int lingerd_transient(int error);

/** Close the link and remember why; errno is kept. */
LINGERD_API void lingerd_drop(lingerd_sender *s, int error);

#ifdef __cplusplus
}
#endif

/* ==== Apache 1.3 ======================================================= */

/* Its httpd.h has been included: this is http_main.c with aplinger.diff. */
#ifdef APACHE_RELEASE

#include <errno.h>
#include <stdlib.h>

/**
 * Hand over a connection that lingering_close() has half-closed.
 *
 * The alarm that bounds its time is armed by then, and the handler jumps out
 * of whatever it interrupts: it has to wait for a moment.  What it does after
 * that is close the connection, of which the daemon has its own copy.
 *
 * The environment variable LINGERD_SOCKET, if it is set when the server is
 * started, says where the daemon listens.
 * @return Whether lingering_close() may close the connection now
 */
static int ap_lingerd(int sock)
{
    static lingerd_sender sender;
    static enum { AP_LINGERD_NEW, AP_LINGERD_ON, AP_LINGERD_OFF } state;
    int saved = errno;
    int done;

    ap_block_alarms();
    if (state == AP_LINGERD_NEW) {
        const char *path = getenv("LINGERD_SOCKET");

        if (path == NULL || *path == '\0') {
            path = LINGERD_SOCKET;
        }
        state = lingerd_init(&sender, path) == 0 ? AP_LINGERD_ON : AP_LINGERD_OFF;
    }
    done = lingerd_client_done(sock);
    if (!done && state == AP_LINGERD_ON && lingerd_give(&sender, sock) == 0) {
        done = 1;
#ifdef LINGERD_COUNT
        LINGERD_COUNT; /* apstatus.diff */
#endif
    }
    ap_unblock_alarms();
    errno = saved;
    return done;
}

#endif /* APACHE_RELEASE */

#endif /* not WIN32, not NETWARE */

#endif /* AP_LINGERD_H */
