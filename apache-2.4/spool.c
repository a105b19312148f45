/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * The part of mod_lingerd that keeps what a client is slow to read, so that
 * lingerd(8) can write it.  mod_lingerd.c includes it: a module of one file is
 * built by the same command everywhere.
 *
 * An output filter sits where the bytes are those of the network, below
 * mod_ssl.  It leaves a response alone until that is larger than what a socket
 * takes at once; small ones cost nothing.  From there on it writes what the
 * socket takes, without waiting, and keeps the rest: files as they are, by
 * descriptor, offset and length; what is in memory, once that is much, in a
 * file in memory, which can be passed on.  When the connection is closed, what
 * is left goes to lingerd with the socket.
 *
 * It is only for the last response of a connection: lingerd brings nothing
 * back.  Wherever it cannot go on, it writes and waits, as Apache does.  So it
 * does while lingerd has as much as it takes, or hangs.
 *
 * What it must not know: how lingerd is reached, see can_spool() and
 * give_spool(), and which connections are to be spooled.
 */

#include "apr_mmap.h"

#include <sys/mman.h>
#include <sys/uio.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

/* Younger than memfd_create(2), and than many a header. */
#if defined(__linux__) && !defined(MFD_NOEXEC_SEAL)
#define MFD_NOEXEC_SEAL 0x0008U
#endif

/* Where off_t is too small for APR it has larger offsets of its own. */
#if APR_HAS_LARGE_FILES
#define SPOOL_PREAD pread64
#else
#define SPOOL_PREAD pread
#endif

/** So much of a response Apache may have: any socket takes it at once. */
#define SPOOL_PASS 32768

/** When what is in the worker's memory goes to the file, by bytes */
#define SPOOL_SPILL (256 * 1024)

/** The same by buckets */
#define SPOOL_BUCKETS 128

/** How many files of others are kept open at most */
#define SPOOL_FILES 64

/** What is read or written at once */
#define SPOOL_PIECE 65536
#define SPOOL_VECTORS 64

/** What is mapped at once of a file; Apache's own limit */
#define SPOOL_MAP ((apr_size_t)4 << 20)

/** How much of the file that is written is given back at once */
#define SPOOL_FREE (256 * 1024)

/** How long to let a socket that was full alone, while the response goes on, in
 *  milliseconds */
#define SPOOL_RETRY 5

/** How long a client that reads fast may take at the end, so that there is
 *  nothing to be handed over but its socket */
#define SPOOL_LAST_TRY apr_time_from_msec(2)

/** In milliseconds; 24 days */
#define SPOOL_FOR_EVER 0x7fffffff

/** What all children together keep, in kB */
typedef struct {
    apr_uint32_t total;
    /** How many workers there can be, in all and in a child, and the part of
     *  each, by the id of its connection.  What one had that was killed, the
     *  parent gives back. */
    apr_uint32_t slots, threads;
    apr_uint32_t slot[1];
} spool_account;

/** The same in every child; never NULL in one */
static spool_account *spool_kept;

static APR_OPTIONAL_FN_TYPE(ap_logio_add_bytes_out) *spool_logio;

static ap_filter_rec_t *spool_filter;

typedef enum {
    SPOOL_WATCH,    /* Apache has had all so far */
    SPOOL_KEEP,     /* what comes is ours to write */
    SPOOL_LEAVE     /* it is not, or not any more */
} spool_state;

/** A connection */
typedef struct {
    conn_rec *c;
    apr_socket_t *socket;
    spool_state state;
    /** The request, as long as there is one */
    request_rec *r;
    /** Whether there is one that may be spooled, and with how many bytes */
    int armed;
    apr_off_t max;
    /** And how many kB all children together may have */
    apr_uint32_t max_of_all;
    /** What Apache has had of this response */
    apr_off_t passed;
    /** What is to be written, and what is to be cleaned up at that point:
     *  a request is logged when its EOR bucket goes */
    apr_bucket_brigade *kept;
    /** The bytes of it; those of them in memory; the buckets since the last
     *  spill; and those of files that are not ours */
    apr_off_t bytes, in_memory;
    int buckets, files;
    /** The file in memory, its length, how much of it was given back, from
     *  its beginning on, and its face in the brigade */
    int fd;
    apr_off_t length, freed;
    apr_file_t *file;
    char *piece;
    /** Whether all of the response is there */
    int complete;
    /** Since when the socket is full, or 0 */
    apr_time_t full;
    /** What is ours in the account, in kB */
    apr_uint32_t charged;
    /** Whether the connection is reset when it is closed */
    int resets;
    /** Whether what was kept is lost */
    int is_cut;
    /** What was handed over */
    apr_off_t given;
} spool;

/** Whether there is a lingerd that spools: it may be about to let us in, and
 *  need not take a response yet.  Never waits. */
static int can_spool(void);

/**
 * Hand over; see lingerd_spool().  Never waits.
 * @param link What becomes readable when it may go, or -1: after a second
 * @param again Whether this response has been tried before
 */
static int give_spool(int sock, const lingerd_part *parts, int count,
                      unsigned long patience, int *link, int again);

/* ---- The account --------------------------------------------------------- */

static int spool_sock(const spool *s);

static apr_uint32_t *spool_slot(const spool *s)
{
    return s->c->id >= 0 && s->c->id < (long)spool_kept->slots
           ? &spool_kept->slot[s->c->id] : NULL;
}

/** The memory that is taken up */
static apr_off_t spool_held(const spool *s)
{
    return s->in_memory + s->length - s->freed;
}

/** Have the account say what is kept now.  If this child is killed between the
 *  two it is a little too low from then on, and never too high. */
static void spool_charge(spool *s)
{
    apr_uint32_t now = (apr_uint32_t)((spool_held(s) + 1023) / 1024);
    apr_uint32_t *slot = spool_slot(s);

    if (now > s->charged && slot) {
        apr_atomic_set32(slot, now);
    }
    if (now != s->charged) {
        apr_atomic_add32(&spool_kept->total, now - s->charged);
    }
    if (now < s->charged && slot) {
        apr_atomic_set32(slot, now);
    }
    s->charged = now;
}

/** What a response may have is no more than is left beside it: a few that are
 *  stuck with all they may have leave something to others.  A response that
 *  takes up nothing, as a file does, is kept however much others have. */
static int spool_is_too_much(const spool *s)
{
    apr_off_t held = spool_held(s);
    apr_off_t total = apr_atomic_read32(&spool_kept->total);

    if (total > 0x7fffffff) {
        total = 0;      /* it is less than nothing */
    }
    return held > s->max
           || (held > 0 && total + held / 1024 > s->max_of_all);
}

/* ---- The file in memory -------------------------------------------------- */

#ifdef MFD_CLOEXEC
static int spool_create_memfd(void)
{
#ifdef __linux__
    /* That it is no program; a Linux may be told to have no others, and one
     * older than 6.3 does not know it. */
    int fd = memfd_create("lingerd", MFD_CLOEXEC | MFD_NOEXEC_SEAL);

    if (fd >= 0 || errno != EINVAL) {
        return fd;
    }
#endif
    return memfd_create("lingerd", MFD_CLOEXEC);
}
#endif

/** A file that has no name and that no program inherits, or -1. */
static int spool_create_file(apr_pool_t *p)
{
    const char *directory;
    char *name;
    int fd;

#ifdef MFD_CLOEXEC
    fd = spool_create_memfd();
    if (fd >= 0) {
        return fd;
    }
#endif
    if (apr_temp_dir_get(&directory, p) != APR_SUCCESS) {
        errno = ENOENT;
        return -1;
    }
    name = apr_pstrcat(p, directory, "/lingerd.XXXXXX", NULL);
#if defined(__linux__) || defined(__FreeBSD__) || defined(__NetBSD__) \
    || defined(__OpenBSD__)
    fd = mkostemp(name, O_CLOEXEC);
#else
    fd = mkstemp(name);
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
#endif
    if (fd >= 0) {
        (void)unlink(name);
    }
    return fd;
}

static void spool_close_file(spool *s)
{
    if (s->fd >= 0) {
        close(s->fd);
    }
    s->fd = -1;
    s->file = NULL;
    s->length = s->freed = 0;
}

/** All of the file is written: begin it anew, as a connection on which much
 *  is written would have many. */
static void spool_empty_file(spool *s)
{
    if (s->length > 0) {
        if (ftruncate(s->fd, 0) == 0 && lseek(s->fd, 0, SEEK_SET) == 0) {
            s->length = s->freed = 0;
        }
        else {
            spool_close_file(s);
        }
    }
}

/** Give back what is written of the file, up to an offset.  Where that cannot
 *  be done it is taken up until all is written. */
static void spool_free(spool *s, apr_off_t end)
{
#ifdef FALLOC_FL_PUNCH_HOLE
    end -= end % SPOOL_FREE;
    if (end > s->freed
        && fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                     s->freed, end - s->freed) == 0) {
        s->freed = end;
    }
#else
    (void)s;
    (void)end;
#endif
}

/** Write all of it at the end of the file. */
static apr_status_t spool_append(spool *s, struct iovec *vector, int count)
{
    while (count > 0) {
        ssize_t n = writev(s->fd, vector, count);

        if (n < 0 && errno == EINTR) {
            continue;
        }
        if (n <= 0) {
            return n < 0 ? errno : APR_ENOSPC;
        }
        s->length += n;
        while (count > 0 && (apr_size_t)n >= vector->iov_len) {
            n -= vector->iov_len;
            vector++;
            count--;
        }
        if (count > 0) {
            vector->iov_base = (char *)vector->iov_base + n;
            vector->iov_len -= n;
        }
    }
    return APR_SUCCESS;
}

static int spool_is_file(const apr_bucket *e)
{
    return APR_BUCKET_IS_FILE(e);
}

static int spool_is_in_memory(const apr_bucket *e)
{
    return !APR_BUCKET_IS_FILE(e) && !APR_BUCKET_IS_METADATA(e);
}

static apr_file_t *spool_file_of(const apr_bucket *e)
{
    return ((const apr_bucket_file *)e->data)->fd;
}

static int spool_fd_of(const apr_bucket *e)
{
    apr_os_file_t fd;

    return apr_os_file_get(&fd, spool_file_of(e)) == APR_SUCCESS ? fd : -1;
}

static char *spool_piece(spool *s)
{
    if (!s->piece) {
        s->piece = apr_palloc(s->c->pool, SPOOL_PIECE);
    }
    return s->piece;
}

/** So much as one piece can be of a file, from an offset on. */
static ssize_t spool_read(spool *s, int fd, apr_off_t offset, apr_size_t most)
{
    ssize_t n;

    do {
        n = SPOOL_PREAD(fd, spool_piece(s),
                        most < SPOOL_PIECE ? most : SPOOL_PIECE, offset);
    } while (n < 0 && errno == EINTR);
    return n;
}

/** Whether it is a file that somebody else has opened */
static int spool_is_other_file(const spool *s, const apr_bucket *e)
{
    return spool_is_file(e) && spool_file_of(e) != s->file;
}

/** Gather what is in memory from a bucket on; the first bucket that is not
 *  among it. */
static apr_bucket *spool_gather(spool *s, apr_bucket *e, struct iovec *vector,
                                int *count, apr_size_t *bytes)
{
    const char *data;
    apr_size_t length;

    *count = 0;
    *bytes = 0;
    while (e != APR_BRIGADE_SENTINEL(s->kept) && spool_is_in_memory(e)
           && *count < SPOOL_VECTORS
           && apr_bucket_read(e, &data, &length, APR_BLOCK_READ)
              == APR_SUCCESS) {
        vector[*count].iov_base = (void *)data;
        vector[*count].iov_len = length;
        ++*count;
        *bytes += length;
        e = APR_BUCKET_NEXT(e);
    }
    return e;
}

/** Put what was appended from offset on in the place of the buckets between. */
static void spool_replace(spool *s, apr_bucket *first, apr_bucket *end,
                          apr_off_t offset)
{
    apr_bucket *before = APR_BUCKET_PREV(first);
    apr_size_t length = (apr_size_t)(s->length - offset);

    if (before != APR_BRIGADE_SENTINEL(s->kept) && spool_is_file(before)
        && spool_file_of(before) == s->file
        && before->start + (apr_off_t)before->length == offset) {
        before->length += length;
    }
    else if (length > 0) {
        APR_BUCKET_INSERT_BEFORE(first,
            apr_bucket_file_create(s->file, offset, length, s->c->pool,
                                   s->c->bucket_alloc));
    }
    while (first != end) {
        apr_bucket *next = APR_BUCKET_NEXT(first);

        if (!APR_BUCKET_IS_METADATA(first)) {
            s->files -= spool_is_other_file(s, first);
            apr_bucket_delete(first);
        }
        first = next;
    }
}

static apr_status_t spool_open_file(spool *s)
{
    apr_os_file_t fd;

    if (s->fd < 0) {
        fd = s->fd = spool_create_file(s->c->pool);
        if (fd < 0) {
            return errno;
        }
        return apr_os_file_put(&s->file, &fd,
                               APR_FOPEN_READ | APR_FOPEN_WRITE, s->c->pool);
    }
    return APR_SUCCESS;
}

/** The first bucket that is in memory, looked for from the end on, as they came
 *  last. */
static apr_bucket *spool_first_in_memory(const spool *s)
{
    apr_bucket *e = APR_BRIGADE_SENTINEL(s->kept);
    apr_off_t left = s->in_memory;

    while (left > 0 && APR_BUCKET_PREV(e) != APR_BRIGADE_SENTINEL(s->kept)) {
        e = APR_BUCKET_PREV(e);
        left -= spool_is_in_memory(e) ? e->length : 0;
    }
    return e;
}

/**
 * Move all that is in memory to the file.  After a failure all that is kept
 * has to be written before the file can be used again.
 */
static apr_status_t spool_spill(spool *s)
{
    apr_bucket *e = spool_first_in_memory(s);
    apr_status_t rv = APR_SUCCESS;

    if (s->in_memory > 0) {
        rv = spool_open_file(s);
    }
    while (rv == APR_SUCCESS && e != APR_BRIGADE_SENTINEL(s->kept)) {
        struct iovec vector[SPOOL_VECTORS];
        apr_off_t offset = s->length;
        apr_bucket *end;
        apr_size_t bytes;
        int count;

        end = spool_gather(s, e, vector, &count, &bytes);
        if (count == 0) {
            e = APR_BUCKET_NEXT(e);
            continue;
        }
        rv = spool_append(s, vector, count);
        if (rv == APR_SUCCESS) {
            spool_replace(s, e, end, offset);
            s->in_memory -= bytes;
        }
        e = end;
    }
    s->buckets = 0;
    spool_charge(s);
    if (rv != APR_SUCCESS) {
        ap_log_cerror(APLOG_MARK, APLOG_INFO, rv, s->c,
                      "cannot keep a response for lingerd: writing it here");
    }
    return rv;
}

/* ---- Writing ------------------------------------------------------------- */

/** Whoever closes the connection last resets it, be it the system because the
 *  child was killed: a response of which something is kept must not look whole. */
static void spool_reset_at_close(spool *s, int on)
{
    struct linger linger;

    if (s->resets == on) {
        return;
    }
    s->resets = on;
    linger.l_onoff = on;
    linger.l_linger = 0;
    (void)setsockopt(spool_sock(s), SOL_SOCKET, SO_LINGER, (void *)&linger,
                     sizeof(linger));
}

/** What is left goes nowhere, and the client has to be told. */
static apr_status_t spool_cut(spool *s)
{
    s->is_cut |= s->bytes > 0;
    s->bytes = s->in_memory = 0;
    s->files = 0;
    apr_brigade_cleanup(s->kept);
    spool_close_file(s);
    spool_charge(s);
    return APR_ECONNABORTED;
}

/** There is nothing more to be done about a connection, which is to be closed.
 *  @param whole Whether that is to look like an end and not like a failure */
static void spool_let_go(spool *s, int whole)
{
    (void)spool_cut(s);
    spool_reset_at_close(s, !whole || s->is_cut);
    s->state = SPOOL_LEAVE;
}

/** As Apache does when it cannot write.  The request is logged with it. */
static apr_status_t spool_fail(spool *s, apr_status_t rv)
{
    ap_log_cerror(APLOG_MARK, APLOG_INFO, rv, s->c,
                  "cannot write a response to its client");
    s->c->aborted = 1;
    (void)spool_cut(s);
    return rv;
}

/** So many bytes of the first bucket are written. */
static void spool_wrote(spool *s, apr_size_t bytes)
{
    apr_bucket *e = APR_BRIGADE_FIRST(s->kept);

    s->bytes -= bytes;
    if (spool_is_in_memory(e)) {
        s->in_memory -= bytes;
    }
    else if (spool_file_of(e) == s->file) {
        spool_free(s, e->start + bytes);
    }
    if (bytes < e->length) {
        (void)apr_bucket_split(e, bytes);
    }
    else {
        s->files -= spool_is_other_file(s, e);
    }
    apr_bucket_delete(e);
}

#if APR_HAS_MMAP
/** Write of a file that is mapped: as much as a socket has room for that was not
 *  full goes at once.  Only the system looks at what is mapped, and says so if
 *  there is no file behind it any more. */
static apr_status_t spool_send_mapped(spool *s, const apr_bucket *e,
                                      apr_size_t *wanted, apr_size_t *sent)
{
    /* A file is mapped from a page on, of which a piece is some. */
    apr_size_t before = (apr_size_t)(e->start % SPOOL_PIECE);
    apr_size_t length = e->length < SPOOL_MAP ? e->length : SPOOL_MAP;
    apr_status_t rv;
    apr_mmap_t *map;

    rv = apr_mmap_create(&map, spool_file_of(e), e->start - before,
                         before + length, APR_MMAP_READ, s->c->pool);
    if (rv != APR_SUCCESS) {
        *sent = 0;
        return APR_ENOTIMPL;
    }
    *wanted = *sent = length;
    rv = apr_socket_send(s->socket, (const char *)map->mm + before, sent);
    (void)apr_mmap_delete(map);
    return rv;
}
#endif

/** Write of the file that comes first what the socket takes. */
static apr_status_t spool_send_file(spool *s, apr_size_t *wanted,
                                    apr_size_t *sent)
{
    apr_bucket *e = APR_BRIGADE_FIRST(s->kept);
    ssize_t n;

#if APR_HAS_SENDFILE
    if (apr_file_flags_get(spool_file_of(e)) & APR_SENDFILE_ENABLED) {
        apr_off_t offset = e->start;
        apr_hdtr_t nothing;
        apr_status_t rv;

        memset(&nothing, 0, sizeof(nothing));
        *wanted = *sent = e->length;
        rv = apr_socket_sendfile(s->socket, spool_file_of(e), &nothing,
                                 &offset, sent, 0);
        return rv == APR_SUCCESS && *sent == 0 ? APR_EOF : rv;
    }
#endif
#if APR_HAS_MMAP
    /* As EnableMMAP has it. */
    if (!s->full && e->length > SPOOL_PIECE
        && ((const apr_bucket_file *)e->data)->can_mmap) {
        apr_status_t rv = spool_send_mapped(s, e, wanted, sent);

        if (rv != APR_ENOTIMPL) {
            return rv;
        }
    }
#endif
    *sent = 0;
    n = spool_read(s, spool_fd_of(e), e->start, e->length);
    if (n <= 0) {
        return n < 0 ? errno : APR_EOF;
    }
    *wanted = *sent = n;
    return apr_socket_send(s->socket, s->piece, sent);
}

/** The same of what is in memory. */
static apr_status_t spool_send_memory(spool *s, apr_size_t *wanted,
                                      apr_size_t *sent)
{
    struct iovec vector[SPOOL_VECTORS];
    int count;

    *sent = 0;
    (void)spool_gather(s, APR_BRIGADE_FIRST(s->kept), vector, &count, wanted);
    return count > 0 ? apr_socket_sendv(s->socket, vector, count, sent)
                     : APR_EGENERAL;
}

/** Write what the socket takes: all, or APR_EAGAIN, or an error. */
static apr_status_t spool_write_some(spool *s)
{
    apr_status_t rv = APR_SUCCESS;

    while (rv == APR_SUCCESS && !APR_BRIGADE_EMPTY(s->kept)) {
        apr_bucket *e = APR_BRIGADE_FIRST(s->kept);
        apr_size_t wanted, sent, left;

        if (APR_BUCKET_IS_METADATA(e)) {
            apr_bucket_delete(e);
            continue;
        }
        rv = spool_is_file(e) ? spool_send_file(s, &wanted, &sent)
                              : spool_send_memory(s, &wanted, &sent);
        if (sent > 0 && spool_logio) {
            spool_logio(s->c, sent);
        }
        for (left = sent; left > 0; ) {
            apr_size_t length = APR_BRIGADE_FIRST(s->kept)->length;

            if (length > left) {
                length = left;
            }
            spool_wrote(s, length);
            left -= length;
        }
        if (rv == APR_SUCCESS && sent < wanted) {
            rv = APR_EAGAIN;
        }
    }
    return rv;
}

/** The same, and take note; after an error the connection is aborted. */
static apr_status_t spool_write(spool *s)
{
    apr_interval_time_t timeout = 0;
    apr_status_t rv;

    /* The socket is one that does not block as long as it has a time-out. */
    (void)apr_socket_timeout_get(s->socket, &timeout);
    (void)apr_socket_timeout_set(s->socket, 0);
    rv = spool_write_some(s);
    (void)apr_socket_timeout_set(s->socket, timeout);

    if (rv == APR_SUCCESS) {
        spool_empty_file(s);
        s->bytes = s->in_memory = 0;
        s->buckets = s->files = 0;
    }
    else if (!APR_STATUS_IS_EAGAIN(rv) && !APR_STATUS_IS_TIMEUP(rv)) {
        return spool_fail(s, rv);
    }
    s->full = 0;
    if (rv != APR_SUCCESS) {
        s->full = apr_time_now();
        spool_reset_at_close(s, 1);
    }
    spool_charge(s);
    return APR_SUCCESS;
}

/** How long Apache waits for a client, in milliseconds; never 0. */
static int spool_patience(const spool *s)
{
    apr_interval_time_t timeout = -1;

    (void)apr_socket_timeout_get(s->socket, &timeout);
    if (timeout <= 0) {
        timeout = s->c->base_server->timeout;
    }
    if (timeout <= 0 || apr_time_as_msec(timeout) > SPOOL_FOR_EVER) {
        return SPOOL_FOR_EVER;
    }
    return apr_time_as_msec(timeout) > 0 ? (int)apr_time_as_msec(timeout) : 1;
}

static int spool_sock(const spool *s)
{
    apr_os_sock_t sock;

    return apr_os_sock_get(&sock, s->socket) == APR_SUCCESS ? sock : -1;
}

/**
 * Wait for room to write, for so many milliseconds, or for a signal.
 * @param link What else to wait for, or -1; and then whether that has come
 */
static apr_status_t spool_wait(const spool *s, int patience, int *link)
{
    struct pollfd either[2];
    int n;

    memset(either, 0, sizeof(either));
    either[0].fd = spool_sock(s);
    either[0].events = POLLOUT;
    either[1].fd = *link;
    either[1].events = POLLIN;
    n = poll(either, *link >= 0 ? 2 : 1, patience);
    *link = n > 0 && either[1].revents != 0;
    if (n < 0 && errno != EINTR) {
        return errno;
    }
    return n > 0 && either[0].revents != 0 ? APR_SUCCESS : APR_TIMEUP;
}

/**
 * Wait for room, no longer than so many milliseconds, and write.
 * @param silent For how long nothing could be written; as long as Apache waits
 *        for a client, and it is given up
 * @param link See spool_wait()
 */
static apr_status_t spool_step(spool *s, apr_interval_time_t *silent, int most,
                               int *link)
{
    int patience = spool_patience(s) - (int)apr_time_as_msec(*silent);
    apr_time_t begin = apr_time_now();
    apr_interval_time_t gone, limit;
    apr_off_t bytes = s->bytes;
    apr_status_t rv;

    if (patience <= 0) {
        return spool_fail(s, APR_TIMEUP);
    }
    if (most > patience) {
        most = patience;
    }
    rv = spool_wait(s, most, link);
    if (rv == APR_SUCCESS) {
        rv = spool_write(s);
        if (rv == APR_SUCCESS && s->bytes == bytes) {
            /* Room that is none: it is not to be asked for all the time. */
            (void)poll(NULL, 0, SPOOL_RETRY);
        }
    }
    else if (APR_STATUS_IS_TIMEUP(rv)) {
        rv = APR_SUCCESS;
    }
    else {
        rv = spool_fail(s, rv);
    }
    if (s->bytes < bytes) {
        *silent = 0;
    }
    else {
        /* The clock may have been set meanwhile. */
        gone = apr_time_now() - begin;
        limit = apr_time_from_msec(most) + apr_time_from_msec(SPOOL_RETRY);
        *silent += gone < 0 ? 0 : gone > limit ? limit : gone;
    }
    return rv;
}

/** Write all, as long as it takes. */
static apr_status_t spool_drain(spool *s)
{
    apr_status_t rv = spool_write(s);
    apr_interval_time_t silent = 0;
    int none = -1;

    while (rv == APR_SUCCESS && s->bytes > 0) {
        rv = spool_step(s, &silent, SPOOL_FOR_EVER, &none);
        none = -1;
    }
    return rv;
}

/** Write as much as it takes for the rest to be no more than may be kept. */
static apr_status_t spool_make_room(spool *s)
{
    apr_status_t rv = APR_SUCCESS;
    apr_interval_time_t silent = 0;
    int none = -1;

    while (rv == APR_SUCCESS && s->bytes > 0 && spool_is_too_much(s)) {
        rv = spool_step(s, &silent, SPOOL_FOR_EVER, &none);
        none = -1;
    }
    return rv;
}

/* ---- What a message has room for ---------------------------------------- */

/**
 * What is kept as parts of files: how many, and where the last one of those
 * that fit begins.  There may be one more than that.
 */
static int spool_parts(spool *s, lingerd_part *parts, apr_bucket **last)
{
    apr_bucket *e;
    int count = 0;

    for (e = APR_BRIGADE_FIRST(s->kept); e != APR_BRIGADE_SENTINEL(s->kept);
         e = APR_BUCKET_NEXT(e)) {
        lingerd_part *part = parts + count;
        int fd;

        if (APR_BUCKET_IS_METADATA(e)) {
            continue;
        }
        fd = spool_fd_of(e);
        if (count > 0 && part[-1].fd == fd
            && part[-1].offset + part[-1].length == e->start) {
            part[-1].length += e->length;
            continue;
        }
        if (count == LINGERD_PARTS) {
            return count + 1;
        }
        part->fd = fd;
        part->offset = e->start;
        part->length = e->length;
        part->ours = spool_file_of(e) == s->file;
        *last = e;
        count++;
    }
    return count;
}

static apr_status_t spool_merge_parts(spool *s, apr_bucket *first)
{
    apr_bucket *e;
    apr_status_t rv = spool_open_file(s);
    apr_off_t offset = s->length;

    for (e = first; rv == APR_SUCCESS && e != APR_BRIGADE_SENTINEL(s->kept);
         e = APR_BUCKET_NEXT(e)) {
        apr_off_t at = e->start;
        apr_off_t end = at + e->length;

        while (!APR_BUCKET_IS_METADATA(e) && rv == APR_SUCCESS && at < end) {
            struct iovec vector;
            ssize_t n = spool_read(s, spool_fd_of(e), at,
                                   (apr_size_t)(end - at));

            if (n <= 0) {
                return n < 0 ? errno : APR_EOF;
            }
            vector.iov_base = s->piece;
            vector.iov_len = n;
            rv = spool_append(s, &vector, 1);
            at += n;
        }
    }
    if (rv == APR_SUCCESS) {
        spool_replace(s, first, APR_BRIGADE_SENTINEL(s->kept), offset);
    }
    return rv;
}

/** Copy what there is from a bucket on to the end of the file, for there are
 *  too many parts. */
static apr_status_t spool_merge(spool *s, apr_bucket *first)
{
    apr_off_t bytes = 0;
    apr_bucket *e;
    apr_status_t rv;

    for (e = first; e != APR_BRIGADE_SENTINEL(s->kept);
         e = APR_BUCKET_NEXT(e)) {
        bytes += APR_BUCKET_IS_METADATA(e) ? 0 : e->length;
    }
    s->in_memory += bytes;      /* the room is taken before it is filled */
    spool_charge(s);
    rv = spool_is_too_much(s) ? APR_ENOSPC : spool_merge_parts(s, first);
    s->in_memory -= bytes;
    return rv;
}

/** Whether all offsets are ones that the sender has room for; only a system
 *  of 32 bits may have others, beyond 2 GB. */
static int spool_has_small_offsets(const spool *s)
{
    const apr_bucket *e;

    for (e = APR_BRIGADE_FIRST(s->kept); e != APR_BRIGADE_SENTINEL(s->kept);
         e = APR_BUCKET_NEXT(e)) {
        apr_off_t end = e->start + (apr_off_t)e->length;

        if (spool_is_file(e) && (apr_off_t)(off_t)end != end) {
            return 0;
        }
    }
    return 1;
}

/** Have all that is kept in files, as few as a message has room for. */
static apr_status_t spool_pack(spool *s)
{
    lingerd_part parts[LINGERD_PARTS];
    apr_bucket *last = NULL;
    apr_status_t rv = spool_spill(s);

    if (rv == APR_SUCCESS
        && (s->in_memory > 0 || !spool_has_small_offsets(s))) {
        rv = APR_EGENERAL;
    }
    if (rv == APR_SUCCESS && spool_parts(s, parts, &last) > LINGERD_PARTS) {
        rv = spool_merge(s, last);
        spool_charge(s);
    }
    return rv;
}

/* ---- The filter ---------------------------------------------------------- */

/**
 * A connection that was aborted while there was more to be written is to end
 * with a reset: a response that was cut short must not look whole.
 */
static void spool_abort(spool *s)
{
    if (s->state == SPOOL_KEEP) {
        spool_let_go(s, s->complete);
    }
}

static apr_status_t spool_cleanup(void *data)
{
    /* There is something left if a child is ended in the midst of a response.
     * The socket is closed after this. */
    spool_abort(data);
    return APR_SUCCESS;
}

/** What is kept of a bucket has to last when this call is over. */
static apr_status_t spool_set_bucket_aside(spool *s, apr_bucket *e)
{
    apr_status_t rv = APR_SUCCESS;

    if (!APR_BUCKET_IS_METADATA(e) && !APR_BUCKET_IS_HEAP(e)
        && !(spool_is_file(e) && spool_file_of(e) == s->file)) {
        rv = apr_bucket_setaside(e, s->c->pool);
        if (rv == APR_ENOTIMPL) {
            const char *data;
            apr_size_t length;

            /* Read, it is a bucket of a kind that can, or is ours. */
            rv = apr_bucket_read(e, &data, &length, APR_BLOCK_READ);
            if (rv == APR_SUCCESS) {
                rv = apr_bucket_setaside(e, s->c->pool);
            }
        }
    }
    return rv == APR_SUCCESS || rv == APR_ENOTIMPL ? APR_SUCCESS
                                                   : spool_fail(s, rv);
}

/** The same from a bucket on. */
static apr_status_t spool_set_aside(spool *s, apr_bucket *e)
{
    apr_status_t rv = APR_SUCCESS;

    while (rv == APR_SUCCESS && e != APR_BRIGADE_SENTINEL(s->kept)) {
        rv = spool_set_bucket_aside(s, e);
        e = APR_BUCKET_NEXT(e);
    }
    return rv;
}

/** Have a small file in memory, if it is as long as it was: open it would take
 *  up a descriptor, and a part of the message. */
static apr_bucket *spool_read_file(spool *s, apr_bucket *e)
{
    apr_bucket *copy = e;

    if (e->length <= SPOOL_PIECE
        && spool_read(s, spool_fd_of(e), e->start, e->length)
           == (ssize_t)e->length) {
        copy = apr_bucket_heap_create(s->piece, e->length, NULL,
                                      s->c->bucket_alloc);
        APR_BUCKET_INSERT_BEFORE(e, copy);
        apr_bucket_delete(e);
    }
    return copy;
}

/** Whether so much has come that it is to be written, or to go to the file */
static int spool_is_much(const spool *s)
{
    return s->in_memory >= SPOOL_SPILL || s->buckets >= SPOOL_BUCKETS
           || s->files >= SPOOL_FILES;
}

/** Read what is still to come of a bucket, and may take its time: what is kept
 *  is written by then. */
static apr_status_t spool_read_bucket(spool *s, apr_bucket *e)
{
    const char *data;
    apr_size_t length;
    apr_status_t rv = apr_bucket_read(e, &data, &length, APR_NONBLOCK_READ);

    if (APR_STATUS_IS_EAGAIN(rv)) {
        rv = spool_drain(s);
        if (rv != APR_SUCCESS) {
            return rv;
        }
        rv = apr_bucket_read(e, &data, &length, APR_BLOCK_READ);
    }
    return rv == APR_SUCCESS || APR_STATUS_IS_EOF(rv) ? APR_SUCCESS
                                                      : spool_fail(s, rv);
}

/**
 * Take over the buckets of a brigade, as they are, until all are taken or that
 * is much.
 * @param set_aside Whether they have to last when this call is over
 * @param flush Set if one of them is to be flushed
 */
static apr_status_t spool_take(spool *s, apr_bucket_brigade *bb, int set_aside,
                               int *flush)
{
    apr_status_t rv = APR_SUCCESS;

    while (rv == APR_SUCCESS && !APR_BRIGADE_EMPTY(bb) && !spool_is_much(s)) {
        apr_bucket *e = APR_BRIGADE_FIRST(bb);

        if (APR_BUCKET_IS_METADATA(e)) {
            *flush |= APR_BUCKET_IS_FLUSH(e);
            s->complete |= AP_BUCKET_IS_EOR(e);
            if (APR_BUCKET_IS_FLUSH(e) || APR_BUCKET_IS_EOS(e)) {
                apr_bucket_delete(e);
                continue;
            }
        }
        else {
            if (e->length == (apr_size_t)-1) {
                rv = spool_read_bucket(s, e);
                if (rv != APR_SUCCESS) {
                    return rv;
                }
            }
            if (e->length == 0 || e->length == (apr_size_t)-1) {
                apr_bucket_delete(e);
                continue;
            }
            s->bytes += e->length;
            if (set_aside && spool_is_file(e)) {
                e = spool_read_file(s, e);
            }
            if (spool_is_file(e)) {
                s->files++;
            }
            else {
                s->in_memory += e->length;
                s->buckets++;
            }
        }
        APR_BUCKET_REMOVE(e);
        APR_BRIGADE_INSERT_TAIL(s->kept, e);
        if (set_aside) {
            rv = spool_set_aside(s, e);
        }
    }
    return rv;
}

/** Whether a response is one of those that keep their worker anyway, as most of
 *  it cannot be kept: others have more of the memory then. */
static int spool_is_too_large(const spool *s, apr_bucket_brigade *bb)
{
    const request_rec *r = s->r;
    const char *length;
    const apr_bucket *e;
    apr_off_t bytes;

    while (r->next) {
        r = r->next;    /* it was redirected */
    }
    length = apr_table_get(r->headers_out, "Content-Length");
    if (!length || apr_strtoff(&bytes, length, NULL, 10) != APR_SUCCESS
        || bytes / 2 <= s->max) {
        return 0;
    }
    for (e = APR_BRIGADE_FIRST(bb); e != APR_BRIGADE_SENTINEL(bb);
         e = APR_BUCKET_NEXT(e)) {
        if (spool_is_file(e)) {
            return 0;
        }
    }
    return 1;
}

/** What becomes a tunnel is left alone. */
static int spool_is_tunnel(const spool *s)
{
    return s->r->method_number == M_CONNECT
           || apr_table_get(s->r->headers_in, "Upgrade");
}

/** Whether a response that has come to this brigade is one to be kept from
 *  here on */
static int spool_begins(spool *s, ap_filter_t *f, apr_bucket_brigade *bb)
{
    int ends = 0;
    apr_bucket *e;

    /* It is known from the head of a response on whether it is the last. */
    if (!s->armed || s->c->keepalive != AP_CONN_CLOSE) {
        return 0;
    }
    for (e = APR_BRIGADE_FIRST(bb); e != APR_BRIGADE_SENTINEL(bb);
         e = APR_BUCKET_NEXT(e)) {
        if (APR_BUCKET_IS_METADATA(e)) {
            ends |= AP_BUCKET_IS_EOR(e) || AP_BUCKET_IS_EOC(e);
        }
        else if (e->length == (apr_size_t)-1) {
            s->state = SPOOL_LEAVE;     /* nobody knows how long it is */
            return 0;
        }
        else {
            s->passed += e->length;
        }
    }
    if (s->passed <= SPOOL_PASS) {
        if (ends) {
            s->armed = 0;   /* what follows is mod_ssl's goodbye */
        }
        return 0;
    }
    /* What another module would do to the bytes, below, we would not. */
    if (f->next->next || spool_is_tunnel(s) || spool_is_too_large(s, bb)
        || !can_spool()) {
        s->state = SPOOL_LEAVE;
        return 0;
    }
    return 1;
}

/** Whether all there is to come of a response is there: in memory, as a file may
 *  be slow to come. */
static int spool_has_end(apr_bucket_brigade *bb)
{
    const apr_bucket *e;

    for (e = APR_BRIGADE_FIRST(bb); e != APR_BRIGADE_SENTINEL(bb);
         e = APR_BUCKET_NEXT(e)) {
        if (APR_BUCKET_IS_FILE(e) && e->length > SPOOL_PIECE) {
            return 0;
        }
    }
    e = APR_BRIGADE_LAST(bb);

    while (e != APR_BRIGADE_SENTINEL(bb) && APR_BUCKET_IS_METADATA(e)
           && !APR_BUCKET_IS_EOS(e)) {
        e = APR_BUCKET_PREV(e);
    }
    return e != APR_BRIGADE_SENTINEL(bb) && APR_BUCKET_IS_EOS(e);
}

/** From here on what comes is ours to write.  A response that is there as a
 *  whole may be with the socket in a moment. */
static apr_status_t spool_begin(spool *s, ap_filter_t *f,
                                apr_bucket_brigade *bb)
{
    conn_rec *c = s->c;
    apr_status_t rv = APR_SUCCESS;

    if (c->data_in_output_filters) {
        /* Apache has some, for want of a whole packet. */
        apr_bucket_brigade *rest = apr_brigade_create(c->pool,
                                                      c->bucket_alloc);

        APR_BRIGADE_INSERT_TAIL(rest,
                                apr_bucket_flush_create(c->bucket_alloc));
        rv = ap_pass_brigade(f->next, rest);
    }
    if (rv == APR_SUCCESS) {
        s->kept = apr_brigade_create(c->pool, c->bucket_alloc);
        s->state = SPOOL_KEEP;
        apr_pool_cleanup_register(c->pool, s, spool_cleanup,
                                  apr_pool_cleanup_null);
        if (!spool_has_end(bb)) {
            spool_reset_at_close(s, 1);
        }
    }
    return rv;
}

/** Take over as much as is to be dealt with at once, write of it what the
 *  socket takes, and keep the rest. */
static apr_status_t spool_keep(spool *s, apr_bucket_brigade *bb, int *flush)
{
    /* What is not written at once has to last; where something waits already
     * that will be all. */
    int waits = !APR_BRIGADE_EMPTY(s->kept);
    apr_status_t rv = spool_take(s, bb, waits, flush);

    if (rv == APR_SUCCESS) {
        if (!s->full
            || apr_time_now() - s->full >= apr_time_from_msec(SPOOL_RETRY)) {
            rv = spool_write(s);
        }
        else {
            spool_charge(s);
        }
    }
    if (rv == APR_SUCCESS && s->bytes > 0) {
        rv = spool_make_room(s);
    }
    if (rv != APR_SUCCESS || s->bytes == 0) {
        return rv;
    }
    if (spool_is_much(s)
        && (s->files >= SPOOL_FILES || spool_spill(s) != APR_SUCCESS
            || spool_is_much(s))) {
        return spool_drain(s);
    }
    return waits ? APR_SUCCESS : spool_set_aside(s, APR_BRIGADE_FIRST(s->kept));
}

static apr_status_t spool_out(ap_filter_t *f, apr_bucket_brigade *bb)
{
    spool *s = f->ctx;
    apr_status_t rv = APR_SUCCESS;
    int flush = 0;

    if (s->state == SPOOL_WATCH && spool_begins(s, f, bb)) {
        rv = spool_begin(s, f, bb);
    }
    if (rv == APR_SUCCESS && s->state != SPOOL_KEEP) {
        return ap_pass_brigade(f->next, bb);
    }
    if (rv == APR_SUCCESS && s->c->aborted) {
        rv = spool_cut(s);
    }
    while (rv == APR_SUCCESS && !APR_BRIGADE_EMPTY(bb)) {
        rv = spool_keep(s, bb, &flush);
    }
    if (rv == APR_SUCCESS && flush && !s->complete) {
        rv = spool_drain(s);
    }
    if (rv != APR_SUCCESS) {
        apr_brigade_cleanup(bb);
    }
    return rv;
}

/* ---- The hand-over ------------------------------------------------------- */

/** Have lingerd write what is left; see give_spool(). */
static int spool_give(spool *s, int *link, int again)
{
    lingerd_part parts[LINGERD_PARTS];
    apr_bucket *last = NULL;
    int count = spool_parts(s, parts, &last);

    if (!give_spool(spool_sock(s), parts, count, spool_patience(s), link,
                    again)) {
        s->resets = 0;      /* the sender lets go of that */
        spool_reset_at_close(s, 1);
        return 0;
    }
    s->given = s->bytes;
    if (spool_logio) {
        spool_logio(s->c, s->bytes);
    }
    s->bytes = s->in_memory = 0;
    (void)spool_cut(s);     /* with it the request is logged */
    return 1;
}

/**
 * Write, and hand over as soon as lingerd takes it.  It is asked when it has
 * said something, to us or to another thread, and else once a second: the link
 * may have been lost, or be another one by now.
 * @return As spool_end()
 */
static int spool_write_or_give(spool *s)
{
    apr_interval_time_t silent = 0;
    apr_time_t asked = -1, now;
    int link = -1, says = 0;

    while (s->bytes > 0) {
        now = apr_time_sec(apr_time_now());
        if (says || now != asked) {
            if (spool_give(s, &link, asked != -1)) {
                return 1;
            }
            asked = now;
        }
        says = link;
        if (spool_step(s, &silent, 1000, &says) != APR_SUCCESS) {
            break;
        }
    }
    return 0;
}

/**
 * The connection is closed and all was flushed: see to what is kept.
 * @param may_go Whether lingerd may have it; else it is written here
 * @return Whether lingerd has the connection.  If not, all is written, or the
 *         connection is aborted.
 */
static int spool_end(spool *s, int may_go)
{
    apr_time_t until;
    int none = -1;

    if (s->state != SPOOL_KEEP) {
        return 0;
    }
    until = apr_time_now() + SPOOL_LAST_TRY;
    while (s->bytes > 0 && apr_time_now() < until
           && (!s->full || spool_wait(s, 1, &none) == APR_SUCCESS)
           && spool_write(s) == APR_SUCCESS) {
        none = -1;
    }
    if (s->bytes > 0 && (!may_go || spool_pack(s) != APR_SUCCESS)) {
        (void)spool_drain(s);
    }
    if (spool_write_or_give(s)) {
        s->state = SPOOL_LEAVE;     /* the socket is lingerd's */
        return 1;
    }
    spool_let_go(s, 1);
    return 0;
}

/* ---- Its life ------------------------------------------------------------ */

/** Watch a connection. */
static spool *spool_watch(conn_rec *c, apr_socket_t *socket)
{
    spool *s = apr_pcalloc(c->pool, sizeof(*s));

    s->c = c;
    s->socket = socket;
    s->fd = -1;
    ap_add_output_filter_handle(spool_filter, s, NULL, c);
    return s;
}

/** A request begins that may be spooled, or may not. */
static void spool_request(spool *s, request_rec *r, int may, apr_off_t max,
                          apr_off_t max_of_all)
{
    s->r = r;
    s->armed = may;
    s->max = max;
    s->max_of_all = max_of_all / 1024 > 0x7fffffff
                    ? 0x7fffffff : (apr_uint32_t)(max_of_all / 1024);
    s->passed = 0;
}

/** It ends, and what follows is no response of it; unless the next one has begun
 *  by then. */
static void spool_forget_request(spool *s, const request_rec *r)
{
    if (s->r == r) {
        s->r = NULL;
        s->armed = 0;
    }
}

/** A child has ended, which may have been killed.  One of before a graceful
 *  restart has another account. */
static void spool_child_status(server_rec *server, pid_t pid,
                               ap_generation_t generation, int child,
                               mpm_child_status state)
{
    apr_uint32_t i, first, kept;
    int now;

    (void)server;
    (void)pid;
    if (state != MPM_CHILD_EXITED || child < 0 || !spool_kept
        || ap_mpm_query(AP_MPMQ_GENERATION, &now) != APR_SUCCESS
        || generation != now) {
        return;
    }
    first = (apr_uint32_t)child * spool_kept->threads;
    for (i = first; i < first + spool_kept->threads && i < spool_kept->slots;
         i++) {
        kept = apr_atomic_xchg32(&spool_kept->slot[i], 0);
        apr_atomic_sub32(&spool_kept->total, kept);
    }
}

/** Set up the account.  Without shared memory each child has its own. */
static void spool_post_config(apr_pool_t *p)
{
    apr_shm_t *shm;
    apr_size_t size;
    int children = 1, threads = 1;

    (void)ap_mpm_query(AP_MPMQ_HARD_LIMIT_DAEMONS, &children);
    (void)ap_mpm_query(AP_MPMQ_HARD_LIMIT_THREADS, &threads);
    if (children < 1) {
        children = 1;
    }
    if (threads < 1) {
        threads = 1;
    }
    size = sizeof(*spool_kept)
           + (apr_size_t)children * threads * sizeof(apr_uint32_t);
    if (apr_shm_create(&shm, size, NULL, p) == APR_SUCCESS) {
        spool_kept = apr_shm_baseaddr_get(shm);
        memset(spool_kept, 0, size);
    }
    else {
        spool_kept = apr_pcalloc(p, size);
    }
    spool_kept->slots = children * threads;
    spool_kept->threads = threads;
}

static void spool_find_logio(void)
{
    spool_logio = APR_RETRIEVE_OPTIONAL_FN(ap_logio_add_bytes_out);
}

static void spool_register_hooks(void)
{
    /* Below mod_ssl, whose bytes are of AP_FTYPE_CONNECTION and 5 */
    spool_filter = ap_register_output_filter("LINGERD_SPOOL", spool_out, NULL,
                                             AP_FTYPE_NETWORK - 1);
    ap_hook_child_status(spool_child_status, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_optional_fn_retrieve(spool_find_logio, NULL, NULL,
                                 APR_HOOK_MIDDLE);
}
