/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * lingerd.h: for a server in C that passes its connections to lingerd(8).
 * lingerd(3) has all of it, with an example.
 *
 * No function here waits for lingerd or for a client.  Any number of threads
 * may use one lingerd at the same time, and after fork(2) the child may, too.
 */

#ifndef LINGERD_H
#define LINGERD_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/** The way to one daemon, opaque. */
typedef struct lingerd lingerd;

/** The most pieces of a response that are handed over with a connection. */
#define LINGERD_PIECES 4

/** What is still to be written: of memory, or of a regular file. */
typedef struct lingerd_piece {
    /** The bytes, which are copied; or NULL: they are in the file. */
    const void *data;
    /** Open to be read; neither closed nor moved in. */
    int fd;
    /** From which byte of the file on. */
    int64_t offset;
    /** How many bytes. */
    int64_t length;
} lingerd_piece;

/**
 * Make a way to the daemon that listens at path; NULL: where it does by default.
 * Nothing is opened yet, and the daemon need not be there.
 * @return NULL with errno: EINVAL (no path), ENAMETOOLONG, ENOMEM
 */
lingerd *lingerd_new(const char *path);

/** Close what is open.  What was handed over stays handed over. */
void lingerd_free(lingerd *l);

/**
 * End a connection on which all is written, in the place of close(2): half-close
 * it, hand it over if its client has not closed yet, and close it here.
 * @return 0: it is closed.
 *         -1 with errno: it is still the caller's and open, and is to be ended as
 *         if there were no lingerd.
 */
int lingerd_finish(lingerd *l, int sock);

/**
 * Only hand it over: the daemon half-closes it, if the caller has not, and
 * lingers.
 * @param seconds After so many the daemon ends it whatever the client does; 0:
 *                when it ends any other.
 * @return 0: the daemon has it, and the caller closes its copy.
 *         -1 with errno: as above; it is not half-closed, and with seconds
 *         SO_LINGER is off.
 */
int lingerd_linger(lingerd *l, int sock, int seconds);

/**
 * Hand a connection over with what is still to be written on it: the daemon writes
 * the pieces in their order, and lingers.
 * @param count   How many pieces, 1 to LINGERD_PIECES
 * @param patience How many milliseconds the client may take nothing until the
 *                 daemon resets the connection
 * @return 0: the daemon has it, and the caller closes its copy.
 *         -1 with errno: the caller writes.  EAGAIN: the daemon may take it when
 *         lingerd_link() is readable.
 */
int lingerd_write_rest(lingerd *l, int sock, const lingerd_piece *pieces,
                       int count, unsigned long patience);

/**
 * What to poll for reading, beside the client's socket for writing, when
 * lingerd_write_rest() has said EAGAIN; for nothing else.
 * @return -1: there is no link to the daemon.
 */
int lingerd_link(lingerd *l);

/**
 * Why there is no link to the daemon, or if there is one none for
 * lingerd_write_rest(): what is worth a line in a log when it changes.
 * @return An errno; 0: there is a link, or none was needed yet.
 */
int lingerd_error(lingerd *l);

#ifdef __cplusplus
}
#endif

#endif /* LINGERD_H */
