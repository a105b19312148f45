/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * ap_lingerd.h: the C sender of lingerd(8), for Apache 1.3 and 2.4 and for any
 * other server in C.  It is C89 and needs nothing but sockets.
 *
 * A server that closes a connection on which the client may still send has
 * to half-close it, and to go on reading until the client closes too; else
 * the kernel answers the late bytes with a reset, and the reset destroys what
 * the client has not yet read of the response (RFC 9112 section 9.6).  Where
 * a process or a thread serves one connection at a time, all of it waits for
 * a client to which it has nothing left to say.  With this it passes the
 * socket to lingerd, and is free at once:
 *
 *     static lingerd_sender sender;                  (one for each process)
 *
 *     lingerd_init(&sender, "/var/run/lingerd/lingerd.sock");
 *     ...
 *     if (!lingerd_half_close(sock) && lingerd_give(&sender, sock) != 0) {
 *         linger(sock);                              (as if lingerd were not there)
 *     }
 *     close(sock);
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
 * mistake.  Who makes a library of it says -DLINGERD_API=extern.
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
} lingerd_sender;

/**
 * Prepare a sender.  The link is opened when it is used first.  A child of
 * fork(2) may go on with its parent's link, or lingerd_drop() it for its own.
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
 * Whether an error of lingerd_open() or lingerd_give() only means "not now":
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
