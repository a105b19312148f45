/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * lingerd.c: what liblingerd has over ap_lingerd.c, which it wraps: a handle for
 * all threads of a process and for its children, and responses in memory.  What
 * this must not know: what a message looks like, and when a link is made anew.
 */

#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE 1   /* memfd_create(2), mkostemp(3) */
#endif

#include "lingerd.h"
#include "../../apache-1.3/ap_lingerd.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#if LINGERD_PIECES != LINGERD_PARTS
#error "as many pieces as parts"
#endif

/* Younger than memfd_create(2), and than many a header. */
#if defined(__linux__) && !defined(MFD_NOEXEC_SEAL)
#define MFD_NOEXEC_SEAL 0x0008U
#endif

/* INT64_MAX, which may be of a type that C89 has not. */
#define MOST ((int64_t)((uint64_t)-1 / 2))

/* A link, and whose it is. */
typedef struct way {
    pthread_mutex_t lock;
    pid_t pid;
    lingerd_sender sender;
    /* When, by time(2), the system had no room for a response that the lingerd
     * takes; for as long as that is now it is not asked again. */
    time_t full;
} way;

/* Also read in a child that was made while another thread, or the one that a
 * signal has interrupted, was just changing it: hence volatile. */
struct lingerd {
    way first, second;
    lingerd *volatile next;
};

/* ---- Threads, fork(2), and who is cancelled ------------------------------- */

/* All there are, for the child of a fork(2). */
static pthread_mutex_t all_lock = PTHREAD_MUTEX_INITIALIZER;
static lingerd *volatile all;

/*
 * Part with the link of a parent, of which nobody here has done anything else
 * yet: what is open by that number is still the link.  A lock that a thread held
 * which is not here is made anew.
 */
static void leave(way *w)
{
    (void)pthread_mutex_init(&w->lock, NULL);
    lingerd_drop(&w->sender, 0);
    w->sender.tried = w->full = (time_t)-1;
    w->pid = getpid();
}

/*
 * In the child, before fork(2) returns there.  Nothing is done before it: who
 * waited for a lock then could wait for itself, as fork(2) may be called by the
 * handler of a signal.
 */
static void after_fork(void)
{
    lingerd *each;

    (void)pthread_mutex_init(&all_lock, NULL);
    for (each = all; each != NULL; each = each->next) {
        leave(&each->first);
        leave(&each->second);
    }
}

static int watch_error;

static void watch_forks(void)
{
    watch_error = pthread_atfork(NULL, NULL, after_fork);
}

/* A thread that is cancelled in a system call would hold a lock, or a
 * descriptor, for ever.  Android has no such thing. */
static int defer_cancel(void)
{
    int state = 0;

#ifdef PTHREAD_CANCEL_DISABLE
    (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &state);
#endif
    return state;
}

static void allow_cancel(int state)
{
#ifdef PTHREAD_CANCEL_DISABLE
    (void)pthread_setcancelstate(state, &state);
#else
    (void)state;
#endif
}

static lingerd_sender *enter(way *w, int *cancel)
{
    pid_t pid = getpid();

    *cancel = defer_cancel();
    (void)pthread_mutex_lock(&w->lock);
    if (w->pid != pid) {
        /* A copy that was made past after_fork(), by _Fork(3) or clone(2): what
         * is open by that number by now may be anything, and stays. */
        w->sender.fd = -1;
        lingerd_drop(&w->sender, 0);
        w->sender.tried = w->full = (time_t)-1;
        w->pid = pid;
    }
    return &w->sender;
}

/* errno is kept, here and in what follows that has no result. */
static void go(way *w, int cancel)
{
    (void)pthread_mutex_unlock(&w->lock);
    allow_cancel(cancel);
}

static void make(way *w)
{
    (void)pthread_mutex_init(&w->lock, NULL);
    w->full = (time_t)-1;
    w->pid = getpid();
}

static void unmake(way *w)
{
    int cancel;

    lingerd_drop(enter(w, &cancel), 0);
    go(w, cancel);
    (void)pthread_mutex_destroy(&w->lock);
}

lingerd *lingerd_new(const char *path)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    lingerd *l;

    (void)pthread_once(&once, watch_forks);
    if (watch_error != 0) {
        errno = watch_error;
        return NULL;
    }
    l = (lingerd *)malloc(sizeof(*l));
    if (l == NULL) {
        errno = ENOMEM;
        return NULL;
    }
    if (path == NULL) {
        path = LINGERD_SOCKET;
    }
    if (lingerd_init(&l->first.sender, path) != 0
        || lingerd_init_spool(&l->second.sender, path) != 0) {
        int saved = errno;

        free(l);
        errno = saved;
        return NULL;
    }
    make(&l->first);
    make(&l->second);
    (void)pthread_mutex_lock(&all_lock);
    l->next = all;
    all = l;
    (void)pthread_mutex_unlock(&all_lock);
    return l;
}

void lingerd_free(lingerd *l)
{
    lingerd *volatile *each = &all;

    if (l == NULL) {
        return;
    }
    (void)pthread_mutex_lock(&all_lock);
    while (*each != l) {
        each = &(*each)->next;
    }
    *each = l->next;
    (void)pthread_mutex_unlock(&all_lock);
    unmake(&l->first);
    unmake(&l->second);
    free(l);
}

/* ---- To linger ----------------------------------------------------------- */

/* Whether a socket is of a kind that the daemon takes: else errno says why not. */
static int is_taken(int sock)
{
    union {
        struct sockaddr any;
        struct sockaddr_un room;
    } name;
    socklen_t size = sizeof(name), type_size = sizeof(int);
    int type = 0, listens = 0;

    if (getsockname(sock, &name.any, &size) != 0
        || getsockopt(sock, SOL_SOCKET, SO_TYPE, (void *)&type, &type_size) != 0) {
        return 0;
    }
    type_size = sizeof(int);
    (void)getsockopt(sock, SOL_SOCKET, SO_ACCEPTCONN, (void *)&listens, &type_size);
    if ((name.any.sa_family != AF_INET
#ifdef AF_INET6
         && name.any.sa_family != AF_INET6
#endif
         ) || type != SOCK_STREAM || listens) {
        errno = EAFNOSUPPORT;
        return 0;
    }
    return 1;
}

int lingerd_linger(lingerd *l, int sock, int seconds)
{
    lingerd_sender *s;
    int rc, cancel;

    if (seconds < 0) {
        errno = EINVAL;
        return -1;
    }
    if (!is_taken(sock)) {
        return -1;
    }
    s = enter(&l->first, &cancel);
    rc = seconds > 0 ? lingerd_give_for(s, sock, seconds) : lingerd_give(s, sock);
    go(&l->first, cancel);
    return rc;
}

int lingerd_finish(lingerd *l, int sock)
{
    int rc = -1, cancel = defer_cancel();

    if (is_taken(sock)
        && (lingerd_half_close(sock) || lingerd_linger(l, sock, 0) == 0)) {
        (void)close(sock);
        rc = 0;
    }
    allow_cancel(cancel);
    return rc;
}

/* ---- To write ------------------------------------------------------------ */

/* A file that has no name and that no program inherits, or -1. */
#ifdef MFD_CLOEXEC
static int unnamed_file(void)
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
#else
static int unnamed_file(void)
{
    char name[] = "/tmp/lingerd.XXXXXX";
#if defined(__NetBSD__) || defined(__OpenBSD__)
    int fd = mkostemp(name, O_CLOEXEC);
#else
    int fd = mkstemp(name);

    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
#endif
    if (fd >= 0) {
        (void)unlink(name);
    }
    return fd;
}
#endif

static int write_all(int fd, const char *data, size_t length)
{
    while (length > 0) {
        ssize_t written = write(fd, data, length);

        if (written < 0 && errno != EINTR) {
            return -1;
        }
        if (written > 0) {
            data += written;
            length -= (size_t)written;
        }
    }
    return 0;
}

/* Whether a file may have as many bytes as are in memory: else errno says so.  A
 * write(2) beyond what setrlimit(2) lets this process is a signal that ends it. */
static int has_room(const lingerd_piece *pieces, int count)
{
    struct rlimit limit;
    int64_t all = 0;
    int n;

    for (n = 0; n < count; n++) {
        all += pieces[n].data != NULL ? pieces[n].length : 0;
    }
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY
        && (uint64_t)all > (uint64_t)limit.rlim_cur) {
        errno = EFBIG;
        return 0;
    }
    return 1;
}

/* What the pieces are as parts of files; those in memory are put into one, which is
 * -1 as long as there is none. */
static int gather(lingerd_part *parts, const lingerd_piece *pieces, int count,
                  int *memory)
{
    off_t at = 0;
    int n;

    if (!has_room(pieces, count)) {
        return -1;
    }
    for (n = 0; n < count; n++) {
        parts[n].fd = pieces[n].fd;
        parts[n].offset = (off_t)pieces[n].offset;
        parts[n].length = (off_t)pieces[n].length;
        parts[n].ours = 0;
        if (pieces[n].data == NULL) {
            continue;
        }
        if (*memory < 0) {
            *memory = unnamed_file();
        }
        if (*memory < 0
            || write_all(*memory, (const char *)pieces[n].data,
                         (size_t)pieces[n].length) != 0) {
            return -1;
        }
        parts[n].fd = *memory;
        parts[n].offset = at;
        parts[n].ours = 1;
        at += parts[n].length;
    }
    return 0;
}

/* Whether there can be such pieces here: else errno says why not. */
static int are_sound(const lingerd_piece *pieces, int count)
{
    int64_t all = 0;
    int n;

    if (count < 1 || count > LINGERD_PIECES) {
        errno = EINVAL;
        return 0;
    }
    for (n = 0; n < count; n++) {
        int64_t offset = pieces[n].data == NULL ? pieces[n].offset : 0;
        int64_t length = pieces[n].length;

        if (offset < 0 || length < 0) {
            errno = EINVAL;
            return 0;
        }
        /* Also where the compiler was not told to make files large. */
        if (length > MOST - all || offset > MOST - length
            || (off_t)(offset + length) != offset + length) {
            errno = EOVERFLOW;
            return 0;
        }
        all += length;
    }
    return 1;
}

int lingerd_write_rest(lingerd *l, int sock, const lingerd_piece *pieces,
                       int count, unsigned long patience)
{
    lingerd_part parts[LINGERD_PARTS];
    lingerd_sender *s;
    unsigned long link;
    int may, rc = -1, memory = -1, saved, cancel, inner;

    if (!are_sound(pieces, count) || !is_taken(sock)) {
        return -1;
    }
    if (patience == 0) {
        errno = EINVAL;
        return -1;
    }
    s = enter(&l->second, &cancel);
    may = lingerd_may_spool(s);
    if (may > 0 && l->second.full == time(NULL)) {
        may = 0;    /* or what is in memory is copied in vain, again and again */
    }
    if (may <= 0) {
        if (may == 0) {
            errno = EAGAIN;
        }
        go(&l->second, cancel);
        return -1;
    }
    /* Nobody is to wait while this copies: it goes on without the lock, and the
     * lingerd's word, which is for one response, is not there for others. */
    link = s->links;
    s->may_spool = 0;
    (void)pthread_mutex_unlock(&l->second.lock);
    rc = gather(parts, pieces, count, &memory);
    saved = errno;
    s = enter(&l->second, &inner);
    if (s->fd >= 0 && s->links == link) {
        s->may_spool = 1;
    }
    errno = saved;
    if (rc == 0) {
        rc = lingerd_spool(s, sock, parts, count, patience);
    }
    saved = errno;
    if (rc != 0 && s->may_spool && lingerd_transient(saved)) {
        l->second.full = time(NULL);
    }
    go(&l->second, inner);
    if (memory >= 0) {
        (void)close(memory);
    }
    allow_cancel(cancel);
    errno = saved;
    return rc;
}

int lingerd_link(lingerd *l)
{
    int cancel;
    lingerd_sender *s = enter(&l->second, &cancel);
    int fd = s->connected ? s->fd : -1;

    go(&l->second, cancel);
    return fd;
}

static int error_of(way *w)
{
    int cancel;
    lingerd_sender *s = enter(w, &cancel);
    int error = s->fd < 0 ? s->error : s->connected ? 0 : EAGAIN;

    go(w, cancel);
    return error;
}

int lingerd_error(lingerd *l)
{
    int error = error_of(&l->first);

    return error != 0 ? error : error_of(&l->second);
}
