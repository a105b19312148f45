/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * mod_lingerd: lets lingerd(8) do Apache's lingering close.
 *
 * A server that closes a connection on which the client may still send has
 * to half-close it, and to go on reading until the client closes too; else
 * the kernel answers the late bytes with a reset, and the reset destroys what
 * the client has not yet read of the response (RFC 9112 section 9.6).  Where
 * a process or a thread serves one connection at a time, all of it waits for
 * a client to which it has nothing left to say.  This module passes the
 * socket to lingerd instead and the worker is free at once.  With it goes what
 * a client has been too slow to read of its response, see spool.c; and where
 * that is wanted lingerd waits for the next request, see park.c.
 *
 *     LoadModule lingerd_module modules/mod_lingerd.so
 *
 *     LingerdSocket /var/run/lingerd/lingerd.sock
 *         Where lingerd listens.  Server-wide, for each child keeps a single
 *         connection to it; not allowed in <VirtualHost>.  A relative path
 *         is taken from DefaultRuntimeDir.  The path above is the default.
 *
 *     Lingerd On|Off
 *         Whether connections are handed over.  Server-wide or in a
 *         <VirtualHost>, where it goes by the address on which the
 *         connection came in.  On by default: loading the module is enough.
 *
 *     LingerdSpool On|Off
 *         Whether what a client is slow to read of its last response is
 *         handed over, too.  Server-wide or in a <VirtualHost>.  On by default.
 *
 *     LingerdSpoolMax bytes [bytes]
 *         How much to keep of a response, and of all in all children.
 *
 *     LingerdPark On|Off
 *         Whether a connection that is kept alive waits for its next request
 *         in lingerd.  Server-wide or in a <VirtualHost>.  Off by default.
 *
 *     LingerdHead On|Off
 *         Whether it does so until the head of a request is whole, too.
 *         Server-wide or in a <VirtualHost>, as Lingerd.  Off by default.
 *
 *     LingerdExec program [option ...]
 *         Apache starts this lingerd itself, watches it and ends it, so that
 *         there is no service to set up; see "LingerdExec" below.  Server-
 *         wide.  A relative path is taken from ServerRoot.  Unless it is
 *         given, lingerd is somebody else's to start.
 *
 * It can only help: whatever goes wrong with lingerd, the worker writes and
 * lingers by itself as if the module were not there.  Only what lingerd has
 * been given to write it cuts off when it is killed, with a reset.
 *
 * What the module must not know: how long lingerd waits, for what, and what
 * becomes of a socket, unless it was parked.
 *
 * It is for the MPMs prefork and worker.  The event MPM lingers by itself
 * without tying up a thread, so there it stands aside.
 *
 *     apxs -c -I../apache-1.3 mod_lingerd.c ../apache-1.3/ap_lingerd.c
 */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE 1   /* memfd_create(2), for spool.c */
#endif

/* The sender, which is the same for all servers: ../apache-1.3/ap_lingerd.c */
#include "ap_lingerd.h"

#include "httpd.h"
#include "http_config.h"
#include "http_connection.h"
#include "http_core.h"
#include "http_log.h"
#include "http_main.h"
#include "http_protocol.h"
#include "http_request.h"
#include "ap_mpm.h"
#include "util_filter.h"
#include "mpm_common.h"
#include "scoreboard.h"
#include "unixd.h"
#include "apr_atomic.h"
#include "apr_buckets.h"
#include "apr_lib.h"
#include "apr_optional.h"
#include "apr_portable.h"
#include "apr_shm.h"
#include "apr_strings.h"
#include "apr_thread_mutex.h"
#include "apr_thread_proc.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#if !AP_MODULE_MAGIC_AT_LEAST(20120211, 55)
#error "mod_lingerd needs Apache 2.4.19 or newer (hook pre_close_connection)"
#endif

/* A default that does not fit does not compile. */
typedef char lingerd_default_fits[
    sizeof(LINGERD_SOCKET) <= LINGERD_PATH_MAX + 1 ? 1 : -1];

/** When to complain about a link on which nothing moves; for a moment that
 *  is part of a busy day. */
#define HUNG_AFTER apr_time_from_sec(10)

/** The children together complain at most once in that many seconds. */
#define COMPLAIN_EVERY 60

/** LingerdSpoolMax: of a response, and how many such of all children */
#define SPOOL_MAX ((apr_off_t)8 << 20)
#define SPOOL_MAX_OF_ALL 8

/** What Apache's modules ask for where a client is not to be waited for, and for
 *  how many seconds Apache then waits at most */
#define BRIEF_NOTE "short-lingering-close"
#define BRIEF_SECONDS 2

/** The name under which something outlives a restart */
#define RETAINED_KEY "mod_lingerd"

module AP_MODULE_DECLARE_DATA lingerd_module;
APLOG_USE_MODULE(lingerd);

typedef struct {
    /** Lingerd On|Off, or -1 for not given */
    int enabled;
    /** LingerdSpool, LingerdPark and LingerdHead; likewise */
    int spool, park, head;
    /** How long a head may take that comes in at this address */
    const struct park_patience *head_patience;
    /** LingerdSpoolMax and LingerdSocket; of the main server only */
    apr_off_t spool_max, spool_max_of_all;
    const char *path;
    /** LingerdExec, or NULL: the program and its options; likewise */
    apr_array_header_t *command;
} lingerd_config;

/** What the last hand-over told about the link */
typedef enum {
    LINK_NEW,   /* there was none yet */
    LINK_UP,    /* it went well */
    LINK_BUSY,  /* not now; see lingerd_transient() */
    LINK_DOWN   /* there is no daemon to be reached */
} link_state;

/** What is worth a line in the log */
typedef enum {
    NEWS_NONE,
    NEWS_CONNECTED,
    NEWS_RECONNECTED,
    NEWS_BACK,
    NEWS_BUSY,
    NEWS_HUNG,
    NEWS_LOST,
    NEWS_DOWN
} link_news;

static const lingerd_config *config_of(const server_rec *s);

/** When it is worth it to look whether a client has done something by now: after
 *  how many in vain it is not any more, how many one that was not makes up for,
 *  and how often to look then all the same */
#define LUCK_MOST 16
#define LUCK_WON 4
#define LUCK_TRY 16

/** How that went with the last ones */
typedef struct {
    int score;
    int passed;
} luck;

/** Whether to look this time. */
static int luck_looks(luck *l)
{
    if (l->score == 0 && ++l->passed < LUCK_TRY) {
        return 0;
    }
    l->passed = 0;
    return 1;
}

static void luck_note(luck *l, int won)
{
    if (won) {
        l->score += LUCK_WON;
        if (l->score > LUCK_MOST) {
            l->score = LUCK_MOST;
        }
    }
    else if (l->score > 0) {
        l->score--;
    }
}

static void let_go(conn_rec *c);

#include "status.c"
#include "spool.c"
#include "park.c"

/** What the children have in common: how they share one voice, and what they
 *  have done */
typedef struct {
    /** When one of them complained last, in seconds */
    apr_uint32_t when;
    /** Whether that outage goes on, as far as they know */
    apr_uint32_t outage;
    /** What has been said, and is to be said once; see park_told */
    apr_uint32_t told;
    status_counts counts;
} link_complaint;

/** All there is to a child.  The parent only sets what they have in common. */
static struct {
    int active;
    server_rec *server;
#if APR_HAS_THREADS
    /** Guards the senders and what follows; NULL without threads */
    apr_thread_mutex_t *mutex;
#endif
    lingerd_sender sender;
    link_state state;
    /** When LINK_BUSY was entered */
    apr_time_t since;
    /** sender.links as of the last good hand-over */
    unsigned long links;
    /** Whether clients are done when their connection is half-closed */
    luck ends;
    /** What has a path of its own, unless that would be too long */
    int spools;
    /** Whether it may be somebody else when a connection ends, see strangers */
    int is_strange;
    lingerd_sender spooler;
    /** In memory shared by all children */
    link_complaint *complaint;
} child;

static status_counts *shared_counts(void)
{
    return child.active ? &child.complaint->counts : NULL;
}

/**
 * Whether to complain.  When lingerd goes away every child notices, and with
 * MaxConnectionsPerChild there always are new ones to notice again: a single
 * line for an outage is enough, and not too many if lingerd comes and goes.
 * A clock set back wraps the difference, which at worst allows another line.
 */
static int complain(void)
{
    apr_uint32_t now = (apr_uint32_t)apr_time_sec(apr_time_now());
    apr_uint32_t when = apr_atomic_read32(&child.complaint->when);

    if (apr_atomic_read32(&child.complaint->outage)
        || now - when < COMPLAIN_EVERY
        || apr_atomic_cas32(&child.complaint->when, now, when) != when) {
        return 0;
    }
    apr_atomic_set32(&child.complaint->outage, 1);
    return 1;
}

/** Whether an outage is over that the log knows of: whoever did complain,
 *  the first child to get through says so. */
static int all_clear(void)
{
    return apr_atomic_read32(&child.complaint->outage)
           && apr_atomic_cas32(&child.complaint->outage, 0, 1) == 1;
}

static int tell_once(apr_uint32_t bit)
{
    apr_uint32_t told;

    do {
        told = apr_atomic_read32(&child.complaint->told);
        if (told & bit) {
            return 0;
        }
    } while (apr_atomic_cas32(&child.complaint->told, told | bit, told)
             != told);
    return 1;
}

/**
 * Take note of how a hand-over went.  The mutex is held.
 * @param error 0 or the errno of the failure
 * @param level The level at which to log the news
 */
static link_news note_outcome(int error, int *level)
{
    link_state old = child.state;
    link_news news = NEWS_NONE;

    *level = APLOG_INFO;
    if (!error) {
        child.state = LINK_UP;
        if (old != LINK_UP || child.links != child.sender.links) {
            if (all_clear()) {
                news = NEWS_BACK;
                *level = APLOG_NOTICE;
            }
            else if (child.links != child.sender.links) {
                news = child.links ? NEWS_RECONNECTED : NEWS_CONNECTED;
            }
            child.links = child.sender.links;
        }
    }
    else if (lingerd_transient(error)) {
        child.state = LINK_BUSY;
        if (old != LINK_BUSY) {
            child.since = apr_time_now();
            news = NEWS_BUSY;
            *level = APLOG_DEBUG;
        }
        else if (apr_time_now() - child.since >= HUNG_AFTER && complain()) {
            news = NEWS_HUNG;
            *level = APLOG_WARNING;
        }
    }
    else {
        child.state = LINK_DOWN;
        if (error == EPIPE || error == ECONNRESET) {
            /* The link was good a moment ago; it is too early to complain. */
            news = old != LINK_DOWN ? NEWS_LOST : NEWS_NONE;
        }
        else if (complain()) {
            news = NEWS_DOWN;
            *level = APLOG_WARNING;
        }
        else if (old != LINK_DOWN) {
            news = NEWS_DOWN;
        }
    }
    return news;
}

static void log_news(link_news news, int level, int error)
{
    server_rec *s = child.server;
    const char *path = child.sender.addr.sun_path;

    switch (news) {
    case NEWS_NONE:
        break;
    case NEWS_CONNECTED:
        ap_log_error(APLOG_MARK, level, 0, s,
                     "connected to lingerd at %s", path);
        break;
    case NEWS_RECONNECTED:
        ap_log_error(APLOG_MARK, level, 0, s,
                     "the link to lingerd at %s was lost and is "
                     "re-established", path);
        break;
    case NEWS_BACK:
        ap_log_error(APLOG_MARK, level, 0, s,
                     "lingerd at %s takes connections again", path);
        break;
    case NEWS_BUSY:
        ap_log_error(APLOG_MARK, level, error, s,
                     "lingerd at %s is busy: lingering here for the moment",
                     path);
        break;
    case NEWS_HUNG:
        ap_log_error(APLOG_MARK, level, error, s,
                     "lingerd at %s has not taken a connection for %d seconds:"
                     " workers linger themselves until it does.  "
                     "Is it hung, or overloaded?",
                     path, (int)apr_time_sec(HUNG_AFTER));
        break;
    case NEWS_LOST:
        ap_log_error(APLOG_MARK, level, error, s,
                     "the link to lingerd at %s was lost: lingering here for "
                     "the moment", path);
        break;
    case NEWS_DOWN:
        ap_log_error(APLOG_MARK, level, error, s,
                     "cannot reach lingerd at %s: workers linger themselves "
                     "until it is there.  Is it running, and may this "
                     "server's User connect to its socket?", path);
        break;
    }
}

static void lock_senders(void)
{
#if APR_HAS_THREADS
    if (child.mutex) {
        apr_thread_mutex_lock(child.mutex);
    }
#endif
}

static void unlock_senders(void)
{
#if APR_HAS_THREADS
    if (child.mutex) {
        apr_thread_mutex_unlock(child.mutex);
    }
#endif
}

/** What to do with the sender, see lingerd_open(), lingerd_give() and
 *  lingerd_give_for() */
typedef enum {
    LINK_OPEN,
    LINK_GIVE,
    LINK_GIVE_BRIEFLY
} link_use;

/**
 * Use the sender, and log what is new about the link.
 *
 * Nothing waits while the mutex is held: no call of the sender does, and the
 * log is written after it is released.
 * @return Whether it went well
 */
static int use_link(link_use use, int sock)
{
    link_news news = NEWS_NONE;
    int rc, error, level = APLOG_DEBUG;

    lock_senders();
    rc = use == LINK_OPEN ? lingerd_open(&child.sender)
         : use == LINK_GIVE ? lingerd_give(&child.sender, sock)
         : lingerd_give_for(&child.sender, sock, BRIEF_SECONDS);
    error = rc < 0 ? errno : 0;
    if (error || use != LINK_OPEN) {
        news = note_outcome(error, &level);
    }
    unlock_senders();
    log_news(news, level, error);
    if (error) {
        status_note(lingerd_transient(error) ? STATUS_BUSY : STATUS_AWAY);
    }
    else if (use != LINK_OPEN) {
        status_note(STATUS_LINGERED);
    }
    return rc == 0;
}

/**
 * Half-close a connection, and look whether nobody need linger on it.  To look
 * takes two system calls, and a hand-over that it spares is more work for two
 * processes; clients that are a network away mostly are not done.
 */
static int is_done(int sock, int looks)
{
    int done;

    if (!looks) {
        return lingerd_shutdown(sock);
    }
    done = lingerd_half_close(sock);
    lock_senders();
    luck_note(&child.ends, done);
    unlock_senders();
    return done;
}

/**
 * Hand a connection over, if its client is not done.  While there is no link
 * the connection stays untouched.
 * @return Whether our copy is to be closed now
 */
static int hand_over(int sock, link_use how)
{
    int has_link, looks;

    lock_senders();
    has_link = child.sender.connected;
    looks = luck_looks(&child.ends);
    unlock_senders();
    return (has_link || use_link(LINK_OPEN, -1))
           && (is_done(sock, looks) || use_link(how, sock));
}

/** That there is no such link is no news: the other sender tells, and a lingerd
 *  that does not spool is none the worse. */
static void log_not_spooled(int error)
{
    ap_log_error(APLOG_MARK, APLOG_DEBUG, error, child.server,
                 "lingerd at %s does not take a response now: writing it here",
                 child.spooler.addr.sun_path);
}

/** What lingerd says is left unread: whichever thread needs it first takes it. */
static int can_spool(void)
{
    int rc, error;

    if (!child.spools) {
        return 0;
    }
    lock_senders();
    rc = lingerd_open(&child.spooler);
    error = errno;
    unlock_senders();
    if (rc != 0 && !lingerd_transient(error)) {
        log_not_spooled(error);
        return 0;
    }
    return 1;
}

static int give_spool(int sock, const lingerd_part *parts, int count,
                      unsigned long patience, int *link, int again)
{
    lingerd_sender *s = &child.spooler;
    int may, rc, error;

    lock_senders();
    do {
        may = lingerd_may_spool(s);
        error = may == 0 ? EAGAIN : errno;
        rc = -1;
        if (may > 0) {
            rc = lingerd_spool(s, sock, parts, count, patience);
            error = errno;
        }
        /* It may have been the word of one that has ended since. */
    } while (rc != 0 && may > 0 && !s->may_spool);
    *link = may == 0 ? s->fd : -1;
    unlock_senders();
    if (rc == 0) {
        status_note(STATUS_SPOOLED);
    }
    else if (!again) {
        log_not_spooled(error);
    }
    return rc == 0;
}

static int give_parked(int sock, const char *name, const lingerd_parked *parked)
{
    int rc, error;

    lock_senders();
    rc = lingerd_park(&child.spooler, sock, name, parked);
    error = errno;
    unlock_senders();
    if (rc == 0) {
        status_note(STATUS_PARKED);
    }
    else {
        ap_log_error(APLOG_MARK, APLOG_DEBUG, error, child.server,
                     "lingerd at %s does not park a connection now: waiting "
                     "here", child.spooler.addr.sun_path);
    }
    return rc == 0;
}

/** What else lingerd says nobody takes note of, and it stays there. */
static int parking_link(void)
{
    return child.spooler.parking < LINGERD_WINDOW ? -1 : child.spooler.fd;
}

/**
 * The descriptor of a connection if it is one to hand over, or -1.
 *
 * The family is the socket's own: mod_remoteip may have set the address in
 * the conn_rec to what a proxy told it.
 */
static int tcp_socket(conn_rec *c)
{
    apr_socket_t *csd = ap_get_conn_socket(c);
    apr_sockaddr_t *peer;
    apr_os_sock_t sock;

    if (!csd
        || apr_socket_addr_get(&peer, APR_REMOTE, csd) != APR_SUCCESS
        || !peer
        || apr_os_sock_get(&sock, csd) != APR_SUCCESS) {
        return -1;
    }
#if APR_HAVE_IPV6
    if (peer->family == APR_INET6) {
        return sock;
    }
#endif
    return peer->family == APR_INET ? sock : -1;
}

static apr_status_t tell_the_truth(void *data)
{
    ((conn_rec *)data)->aborted = 0;
    return APR_SUCCESS;
}

/** Has Apache close our copy of a connection that lingerd has, and do nothing
 *  else with it, as with one that was aborted.  Who looks at it when it goes is
 *  told the truth about its client. */
static void let_go(conn_rec *c)
{
    c->aborted = 1;
    apr_pool_pre_cleanup_register(c->pool, c, tell_the_truth);
}

/** Whether anything of what was written for a connection may still be here: not
 *  if there are no filters but ours and Apache's own, which keep nothing back. */
static int has_output(const conn_rec *c, const spool *s)
{
    const ap_filter_t *f = c->output_filters;

    return s->state == SPOOL_KEEP || c->data_in_output_filters
           || !f || f->frec != spool_filter || !f->next
           || f->next->frec != ap_core_output_filter_handle;
}

static const lingerd_config *config_of(const server_rec *s)
{
    return ap_get_module_config(s->module_config, &lingerd_module);
}

/** What was kept for a connection, if any may be */
static spool *spool_of(const conn_rec *c)
{
    return ap_get_module_config(c->conn_config, &lingerd_module);
}

/** Modules with which a process becomes a site's user, or has a site's root
 *  directory, for a request: it may not be let in any more when the connection
 *  ends, which it is as it begins.  mpm-itk makes a process for each. */
static const char *const strangers[] = {
    "mpm_itk.c", "mod_ruid2.c", "mod_privileges.c", NULL
};

static int has_strangers(void)
{
    const char *const *name = strangers;

    while (*name && !ap_find_linked_module(*name)) {
        name++;
    }
    return *name != NULL;
}

/** Connects while it is let in.  Where that fails it is tried again, and told,
 *  when there is something to hand over. */
static void connect_early(void)
{
    lock_senders();
    (void)lingerd_open(&child.sender);
    if (child.spools) {
        (void)lingerd_open(&child.spooler);
    }
    unlock_senders();
}

/** Connections of clients come here, and those of mod_proxy do not. */
static int lingerd_process_connection(conn_rec *c)
{
    if (child.active && !c->master && config_of(c->base_server)->enabled
        && tcp_socket(c) >= 0) {
        ap_set_module_config(c->conn_config, &lingerd_module,
                             spool_watch(c, ap_get_conn_socket(c)));
        if (child.is_strange) {
            connect_early();
        }
    }
    return DECLINED;
}

static int lingerd_post_read_request(request_rec *r)
{
    const lingerd_config *conf = config_of(r->server);
    spool *s = spool_of(r->connection);

    /* One that a subrequest is redirected to goes with that, unlogged. */
    if (s && !r->main) {
        spool_request(s, r, conf->spool, conf->spool_max,
                      conf->spool_max_of_all);
    }
    return DECLINED;
}

/** For the access log, which looks at the request that it was redirected to:
 *  what lingerd was given to write */
static int lingerd_log_transaction(request_rec *r)
{
    spool *s = spool_of(r->connection);

    if (!s) {
        return DECLINED;
    }
    spool_forget_request(s, r);
    while (r->next) {
        r = r->next;
        spool_forget_request(s, r);
    }
    if (s->given > 0) {
        apr_table_setn(r->notes, "lingerd-spooled",
                       apr_off_t_toa(r->pool, s->given));
    }
    return DECLINED;
}

/**
 * Runs when Apache is about to start its lingering close, as the last of its
 * kind: the other modules have said goodbye by then.
 *
 * All output is flushed here, as Apache would do next, mod_ssl's close_notify
 * at the end of it.  It may take its time with a slow client; of a response
 * that is spooled all is here then, and goes to lingerd with the connection.
 * Requests whose log lines had to wait for their last byte are logged now.
 *
 * What lingerd has Apache closes without another word.  With any other outcome
 * Apache goes on, finds nothing left to flush, and lingers.
 *
 * mod_http2 lets no one run after it has said its own goodbye, so that Apache
 * lingers itself after HTTP/2 on the MPM worker.
 */
static int lingerd_pre_close(conn_rec *c)
{
    spool *s = spool_of(c);
    int sock, is_brief;

    if (!s) {
        return DECLINED;
    }
    if (c->aborted) {
        spool_abort(s);
        return DECLINED;
    }
    /* mod_proxy_fdpass has given the socket to somebody else, and left another
     * one in its place. */
    sock = spool_sock(s);
    if (!child.active || sock < 0 || ap_get_conn_socket(c) != s->socket) {
        return DECLINED;
    }

    if (has_output(c, s)) {
        ap_flush_conn(c);
    }
    is_brief = apr_table_get(c->notes, BRIEF_NOTE) != NULL;
    if (!c->aborted && spool_end(s, !is_brief)) {
        let_go(c);
        return OK;
    }
    if (c->aborted) {
        spool_abort(s);
        return DECLINED;
    }
    if (hand_over(sock, is_brief ? LINK_GIVE_BRIEFLY : LINK_GIVE)) {
        let_go(c);
    }
    return OK;
}

/** An asynchronous MPM lingers in its listener, at no cost to a thread. */
static int mpm_is_async(void)
{
    int async = 0;

    return ap_mpm_query(AP_MPMQ_IS_ASYNC, &async) == APR_SUCCESS && async;
}

/* ---- LingerdExec -------------------------------------------------------
 *
 * Apache's parent is to lingerd what a service manager is: it starts it in
 * the foreground, starts it again when it dies, and ends it when Apache ends.
 * lingerd's log is Apache's error log, as it has its standard error.
 *
 * The module gives it -f, -s and, when it takes over, -r; and of Apache's
 * User and Group, when Apache is root, what it is not told otherwise: -u, or
 * beside another -u the group of the socket, -g.  So it is Apache's children
 * who may hand over.
 *
 * A restart of Apache, graceful or not, leaves lingerd alone.  If what it was
 * started with is another thing by then - the options, the program (by an
 * upgrade), the error log (by a rotation) - a new one takes over from it,
 * with all that lingers; where that one fails the old one serves on.
 *
 * When Apache stops it waits for lingerd, which has its -W to let what
 * lingers end: in a container, and in a service's control group, all others
 * are killed the moment Apache's parent has gone.
 *
 * What lives from one reading of the configuration to the next is in the pool
 * of the process.  No code of ours may be called by that: the module has been
 * unloaded in between.
 */

/** The pid of a process that there is not; waitpid(2) knows no such child */
#define NOBODY INT_MAX

/** A lingerd that lived for so long was well */
#define STEADY apr_time_from_sec(60)

/** How long to look whether one has been told to end by somebody else */
#define TOLD_WITHIN apr_time_from_sec(1)
#define LOOK_EVERY (APR_USEC_PER_SEC / 50)

/** When to start one again that was not: at once, then after so long, then
 *  each time after twice as long, up to the other.  Apache's parent looks
 *  every ten seconds or so. */
#define AGAIN_FIRST apr_time_from_sec(10)
#define AGAIN_MOST apr_time_from_sec(320)

/** With which lingerd ends when its command line is wrong */
#define WRONG_COMMAND_LINE 2

/** A lingerd that Apache has started */
typedef struct {
    apr_proc_t proc;
    /** With what it was started; see own.command */
    const char *command;
    const char *socket;
    apr_time_t since;
    /** Whether it was told to end, as it is not wanted any more */
    int dismissed;
} own_lingerd;

/** What outlives a restart.  Who changes this changes the key, too: the one
 *  that wrote it may be an older module. */
typedef struct {
    /** One that serves, or is about to; and while it takes over the other */
    own_lingerd lingerd[2];
    int serving;
    /** When to start one again, and how long to wait the next time */
    apr_time_t again;
    apr_interval_time_t delay;
    /** The command that lingerd finds wrong: it is not tried again */
    const char *wrong;
    /** Whether one serves there that is not ours */
    int others;
} own_retained;

#define OWN_KEY "mod_lingerd LingerdExec 1"

/** Of this reading of the configuration; in the parent only */
static struct {
    server_rec *server;
    apr_pool_t *pool;
    own_retained *kept;
    /** NULL: there is to be none */
    const char **argv;
    /** All that makes it another one if it changes */
    const char *command;
    const char *socket;
} own;

static void tend(void);

static int lives(const own_lingerd *lingerd)
{
    return lingerd->proc.pid != NOBODY;
}

static own_lingerd *serving(void)
{
    return &own.kept->lingerd[own.kept->serving];
}

static own_lingerd *previous(void)
{
    return &own.kept->lingerd[!own.kept->serving];
}

/** Puts the next start off; see AGAIN_FIRST.
 *  @param by_itself Whether it ended itself, which it will do again */
static void put_off(apr_interval_time_t lived, int by_itself)
{
    own_retained *kept = own.kept;

    if (lived >= STEADY) {
        kept->delay = 0;
    }
    else if (by_itself && kept->delay < AGAIN_FIRST) {
        kept->delay = AGAIN_FIRST;
    }
    kept->again = apr_time_now() + kept->delay;
    kept->delay = kept->delay ? kept->delay * 2 : AGAIN_FIRST;
    if (kept->delay > AGAIN_MOST) {
        kept->delay = AGAIN_MOST;
    }
}

/** One has ended.
 *  @param status Its exit status or the signal that killed it; the MPMs do
 *                not tell which.  What waitpid(2) said, on other ways. */
static void has_ended(own_lingerd *lingerd, int status)
{
    int pid = (int)lingerd->proc.pid;
    int mpm = AP_MPMQ_STARTING;
    int takes_over = lingerd == serving() && lives(previous())
                     && !previous()->dismissed;

    if (status > 255) {
        status >>= 8;
    }
    lingerd->proc.pid = NOBODY;
    if (ap_mpm_query(AP_MPMQ_MPM_STATE, &mpm) == APR_SUCCESS
        && mpm == AP_MPMQ_STOPPING) {
        return;
    }
    if (lingerd->dismissed || (lingerd != serving() && status == 0)) {
        ap_log_error(APLOG_MARK, APLOG_INFO, 0, own.server,
                     "lingerd (process %d) has ended as it was to", pid);
    }
    else if (lingerd != serving()) {
        ap_log_error(APLOG_MARK, APLOG_ERR, 0, own.server,
                     "lingerd (process %d) died (status or signal %d) while "
                     "another one was to take over from it", pid, status);
    }
    else {
        /* 0: somebody told it to stop, or has taken over from it. */
        put_off(apr_time_now() - lingerd->since,
                status == 1 || status == WRONG_COMMAND_LINE);
        if (status == WRONG_COMMAND_LINE) {
            own.kept->wrong = lingerd->command;
        }
        if (takes_over) {
            own.kept->serving = !own.kept->serving;
            ap_log_error(APLOG_MARK, APLOG_ERR, 0, own.server,
                         "lingerd (process %d), which was to take over, has "
                         "failed (status or signal %d), and said in this log "
                         "why: lingerd (process %d) serves on, with what it "
                         "was started with", pid, status,
                         (int)serving()->proc.pid);
        }
        else {
            ap_log_error(APLOG_MARK, status ? APLOG_ERR : APLOG_NOTICE, 0,
                         own.server,
                         "lingerd (process %d) has ended (status or signal "
                         "%d): %s, and workers linger themselves until then",
                         pid, status,
                         status == WRONG_COMMAND_LINE
                         ? "the options of LingerdExec are wrong, this log "
                           "says how; it is started again when Apache is"
                         : "it is started again");
        }
    }
    tend();
}

static void lingerd_maintenance(int reason, void *lingerd, int status)
{
    if (reason == APR_OC_REASON_DEATH || reason == APR_OC_REASON_LOST) {
        apr_proc_other_child_unregister(lingerd);
        has_ended(lingerd, status);
    }
}

/** Has Apache's main loop say when it ends. */
static void watch(own_lingerd *lingerd)
{
    apr_proc_other_child_register(&lingerd->proc, lingerd_maintenance,
                                  lingerd, NULL, own.pool);
}

/** Whether anybody takes connections at the socket. */
static int somebody_serves(const char *socket)
{
    lingerd_sender sender;
    int serves;

    if (lingerd_init(&sender, socket) != 0) {
        return 0;
    }
    serves = lingerd_open(&sender) == 0 || lingerd_transient(errno);
    lingerd_drop(&sender, 0);
    return serves;
}

/**
 * What becomes of the child of fork(2).
 *
 * It is in a process group of its own, as Apache tells the whole of its group
 * to stop, which lingerd must not hear twice.  What Apache's own service
 * manager has said to Apache is not for it.
 */
static void become_lingerd(const char **argv)
{
    static const char *const not_its_own[] = {
        "NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC",
        "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"
    };
    static const int handled[] = {
        SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGCHLD, SIGPIPE, SIGALRM,
        AP_SIG_GRACEFUL, AP_SIG_GRACEFUL_STOP
    };
    sigset_t none;
    size_t i;
    long most;
    int fd, null;

    setpgid(0, 0);
    apr_pool_cleanup_for_exec();
    null = open("/dev/null", O_RDWR);
    if (null >= 0) {
        dup2(null, STDIN_FILENO);
        dup2(null, STDOUT_FILENO);
        if (null > STDERR_FILENO) {
            close(null);
        }
    }
    /* Whatever Apache has open, and had when it was started, is not its. */
    most = sysconf(_SC_OPEN_MAX);
    for (fd = STDERR_FILENO + 1; fd < (most > 0 && most < 65536 ? most : 65536);
         fd++) {
        close(fd);
    }
    /* A signal that has come since fork(2) is for it, and none of Apache's
     * handlers; they were blocked until now. */
    for (i = 0; i < sizeof(handled) / sizeof(handled[0]); i++) {
        signal(handled[i], SIG_DFL);
    }
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    for (i = 0; i < sizeof(not_its_own) / sizeof(not_its_own[0]); i++) {
        unsetenv(not_its_own[i]);
    }
    execv(argv[0], (char **)argv);
    fprintf(stderr, "LingerdExec: %s: %s\n", argv[0], strerror(errno));
    _exit(1);
}

/** Start the one that is wanted; it takes over from the one that is there. */
static void start_lingerd(void)
{
    own_lingerd *old = serving(), *new = previous();
    apr_pool_t *process = own.server->process->pool;
    int take_over = lives(old) && !old->dismissed
                    && strcmp(old->socket, own.socket) == 0;
    sigset_t all, before;
    pid_t pid;

    own.argv[1] = take_over ? "-fr" : "-f";
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    pid = access(own.argv[0], X_OK) == 0 ? fork() : -1;
    if (pid == 0) {
        become_lingerd(own.argv);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    if (pid < 0) {
        ap_log_error(APLOG_MARK, APLOG_ERR, errno, own.server,
                     "LingerdExec: cannot start %s", own.argv[0]);
        put_off(0, 1);
        return;
    }
    new->proc.pid = pid;
    new->command = apr_pstrdup(process, own.command);
    new->socket = apr_pstrdup(process, own.socket);
    new->since = apr_time_now();
    new->dismissed = 0;
    watch(new);
    own.kept->serving = !own.kept->serving;
    if (take_over) {
        ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, own.server,
                     "lingerd (process %d) is to take over from process %d, "
                     "which was started with another configuration",
                     (int)pid, (int)old->proc.pid);
    }
    else {
        ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, own.server,
                     "started lingerd (process %d)", (int)pid);
    }
}

/** See to it that the lingerd that is wanted runs; at the next opportunity,
 *  if it cannot be now. */
static void tend(void)
{
    own_retained *kept = own.kept;
    own_lingerd *lingerd = serving();
    int others;

    if (lives(lingerd) && !lingerd->dismissed && own.argv
        && strcmp(lingerd->command, own.command) == 0) {
        return;
    }
    if (lives(lingerd) && !lingerd->dismissed
        && (!own.argv || strcmp(lingerd->socket, own.socket) != 0)) {
        ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, own.server,
                     "lingerd (process %d) is not wanted any more at %s, and "
                     "ends when what lingers there has",
                     (int)lingerd->proc.pid, lingerd->socket);
        lingerd->dismissed = 1;
        kill(lingerd->proc.pid, SIGTERM);
    }
    if (!own.argv || lives(previous()) || apr_time_now() < kept->again
        || (kept->wrong && strcmp(kept->wrong, own.command) == 0)) {
        return;
    }
    others = (!lives(lingerd) || lingerd->dismissed) && somebody_serves(own.socket);
    if (others && !kept->others) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, 0, own.server,
                     "a lingerd that this Apache has not started serves at "
                     "%s: connections are handed over to that one, and "
                     "LingerdExec starts none until it has gone.  It is a "
                     "service of the system, or was left there by an Apache "
                     "that was killed; 'lingerd -k -s %s' ends it",
                     own.socket, own.socket);
    }
    kept->others = others;
    if (!others) {
        start_lingerd();
    }
}

/** Apache's parent comes here every ten seconds or so. */
static int lingerd_monitor(apr_pool_t *p, server_rec *s)
{
    (void)s;
    park_monitor(p);
    if (own.kept) {
        tend();
    }
    return DECLINED;
}

/** Which file a descriptor or a path is, and for a path as of when. */
static const char *identity(apr_pool_t *p, const struct stat *file, int dated)
{
    return apr_psprintf(p, "\n%" APR_UINT64_T_FMT " %" APR_UINT64_T_FMT
                        " %" APR_UINT64_T_FMT, (apr_uint64_t)file->st_dev,
                        (apr_uint64_t)file->st_ino,
                        dated ? (apr_uint64_t)file->st_mtime : 0);
}

/** Whether an option is among words, as the first or only one of a word. */
static int is_given(const apr_array_header_t *words, char option)
{
    int i;

    for (i = 0; i < words->nelts; i++) {
        const char *word = APR_ARRAY_IDX(words, i, const char *);
        if (word[0] == '-' && word[1] == option) {
            return 1;
        }
    }
    return 0;
}

/** The whole command line, its second word for start_lingerd() to say. */
static apr_array_header_t *command_line(apr_pool_t *p,
                                        const apr_array_header_t *command)
{
    apr_array_header_t *argv = apr_array_make(p, command->nelts + 6,
                                              sizeof(const char *));
    const char *option = NULL;
    const unixd_config_rec *apache = &ap_unixd_config;
    int i;

    APR_ARRAY_PUSH(argv, const char *) = APR_ARRAY_IDX(command, 0,
                                                       const char *);
    APR_ARRAY_PUSH(argv, const char *) = "-f";
    APR_ARRAY_PUSH(argv, const char *) = "-s";
    APR_ARRAY_PUSH(argv, const char *) = own.socket;
    if (geteuid() == 0 && apache->user_id != 0
        && apache->user_id != (uid_t)-1) {
        if (!is_given(command, 'u')) {
            option = apr_psprintf(p, "-u%lu:%lu",
                                  (unsigned long)apache->user_id,
                                  (unsigned long)apache->group_id);
        }
        else if (!is_given(command, 'g')) {
            option = apr_psprintf(p, "-g%lu",
                                  (unsigned long)apache->group_id);
        }
    }
    if (option) {
        APR_ARRAY_PUSH(argv, const char *) = option;
    }
    for (i = 1; i < command->nelts; i++) {
        APR_ARRAY_PUSH(argv, const char *) = APR_ARRAY_IDX(command, i,
                                                           const char *);
    }
    return argv;
}

/**
 * The configuration goes, and if that is because Apache ends, lingerd is to be
 * told so, once: the second time it would cut off what lingers.  As process 1
 * of a container Apache has told it already, by a signal to its process group,
 * of which the number is 1: to kill(2) that is everybody.  From then on
 * lingerd lets nobody in.  It is only waited for then; all others are told
 * when the pool of the process ends, see set_up_own().
 */
static apr_status_t lingerd_forget(void *unused)
{
    apr_time_t deadline = apr_time_now() + TOLD_WITHIN;
    int i, serves;

    (void)unused;
    /* One that stands still would not hear that it is to end, and APR takes
     * it for one that has. */
    for (i = 0; i < 2
                && ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_EXITING; i++) {
        if (lives(&own.kept->lingerd[i])) {
            kill(own.kept->lingerd[i].proc.pid, SIGCONT);
        }
    }
    for (i = 0; i < 2 && getpgrp() == 1
                && ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_EXITING; i++) {
        own_lingerd *lingerd = &own.kept->lingerd[i];

        if (!lives(lingerd)) {
            continue;
        }
        while ((serves = somebody_serves(lingerd->socket)) != 0
               && apr_time_now() < deadline) {
            apr_sleep(LOOK_EVERY);
        }
        if (!serves) {
            apr_proc_wait(&lingerd->proc, NULL, NULL, APR_WAIT);
            lingerd->proc.pid = NOBODY;
        }
    }
    return APR_SUCCESS;
}

/** Start lingerd, or keep the one that runs, or have it replaced. */
static void set_up_own(apr_pool_t *p, server_rec *s)
{
    const lingerd_config *conf = ap_get_module_config(s->module_config,
                                                      &lingerd_module);
    own_retained *kept = ap_retained_data_get(OWN_KEY);
    const char *chroot_dir = ap_unixd_config.chroot_dir;
    struct stat file;
    int i;

    memset(&own, 0, sizeof(own));
    if (!kept) {
        if (!conf->command) {
            return;
        }
        kept = ap_retained_data_create(OWN_KEY, sizeof(*kept));
        for (i = 0; i < 2; i++) {
            kept->lingerd[i].proc.pid = NOBODY;
            /* Whatever becomes of Apache, even if it cannot read its
             * configuration any more and we are not there: SIGTERM, and
             * wait. */
            apr_pool_note_subprocess(s->process->pool,
                                     &kept->lingerd[i].proc,
                                     APR_KILL_ONLY_ONCE);
        }
    }
    own.server = s;
    own.pool = p;
    own.kept = kept;
    kept->again = 0;
    kept->delay = 0;
    kept->wrong = NULL;
    kept->others = 0;
    apr_pool_cleanup_register(p, NULL, lingerd_forget, apr_pool_cleanup_null);
    for (i = 0; i < 2; i++) {
        pid_t *pid = &kept->lingerd[i].proc.pid;

        /* While the module was not loaded somebody else may have heard that
         * it has ended, and the number may be another process's. */
        if (lives(&kept->lingerd[i]) && waitpid(*pid, NULL, WNOHANG) != 0) {
            *pid = NOBODY;
        }
        if (lives(&kept->lingerd[i])) {
            watch(&kept->lingerd[i]);
        }
    }
    if (conf->command && !mpm_is_async()) {
        apr_array_header_t *argv;

        /* Only Apache's children are in there. */
        own.socket = chroot_dir ? apr_pstrcat(p, chroot_dir, conf->path, NULL)
                                : conf->path;
        argv = command_line(p, conf->command);
        own.command = apr_array_pstrcat(p, argv, '\n');
        if (stat(APR_ARRAY_IDX(argv, 0, const char *), &file) == 0) {
            own.command = apr_pstrcat(p, own.command, identity(p, &file, 1),
                                      NULL);
        }
        if (fstat(STDERR_FILENO, &file) == 0) {
            own.command = apr_pstrcat(p, own.command, identity(p, &file, 0),
                                      NULL);
        }
        APR_ARRAY_PUSH(argv, const char *) = NULL;
        own.argv = (const char **)argv->elts;
    }
    tend();
}

/** Say once that an asynchronous MPM is in use, and set up the complaint. */
static int lingerd_post_config(apr_pool_t *p, apr_pool_t *plog,
                               apr_pool_t *ptemp, server_rec *s)
{
    const lingerd_config *conf = config_of(s);
    apr_shm_t *shm;

    (void)plog;
    (void)ptemp;

    /* At startup the configuration is read twice. */
    if (ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_CREATE_PRE_CONFIG) {
        return OK;
    }

    if (mpm_is_async() && !ap_retained_data_get(RETAINED_KEY)) {
        ap_retained_data_create(RETAINED_KEY, 1);
        ap_log_error(APLOG_MARK, APLOG_NOTICE, 0, s,
                     "mod_lingerd has nothing to do: the MPM %s lingers "
                     "without tying up a worker", ap_show_mpm());
    }

    if (conf->spool && !mpm_is_async()     /* -1, not given, is On */
        && strlen(conf->path) + strlen(".2") > LINGERD_PATH_MAX) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, 0, s,
                     "%s.2 would be too long for a Unix socket, "
                     "so that nothing is spooled", conf->path);
    }
    spool_post_config(p);
    park_post_config(p, s);

    /* Without shared memory each child complains for itself. */
    if (apr_shm_create(&shm, sizeof(*child.complaint), NULL, p)
        == APR_SUCCESS) {
        child.complaint = apr_shm_baseaddr_get(shm);
        memset(child.complaint, 0, sizeof(*child.complaint));
    }
    else {
        child.complaint = apr_pcalloc(p, sizeof(*child.complaint));
    }

    /* With -X Apache never comes to the end of its parent. */
    if (!ap_exists_config_define("DEBUG")
        && !ap_exists_config_define("ONE_PROCESS")) {
        set_up_own(p, s);
    }
    return OK;
}

/** The link lives as long as the child. */
static apr_status_t lingerd_child_exit(void *unused)
{
    (void)unused;
    child.active = 0;
    lingerd_drop(&child.sender, 0);
    lingerd_drop(&child.spooler, 0);
    return APR_SUCCESS;
}

/** Get ready; the first connection to be closed opens the link, so that the
 *  start does not depend on lingerd. */
static void lingerd_child_init(apr_pool_t *p, server_rec *s)
{
    lingerd_config *conf = ap_get_module_config(s->module_config,
                                                &lingerd_module);

    if (mpm_is_async()) {
        return;
    }
#if APR_HAS_THREADS
    {
        int threaded = AP_MPMQ_NOT_SUPPORTED;
        apr_status_t rv;

        if (ap_mpm_query(AP_MPMQ_IS_THREADED, &threaded) == APR_SUCCESS
            && threaded != AP_MPMQ_NOT_SUPPORTED) {
            rv = apr_thread_mutex_create(&child.mutex,
                                         APR_THREAD_MUTEX_DEFAULT, p);
            if (rv != APR_SUCCESS) {
                ap_log_error(APLOG_MARK, APLOG_ERR, rv, s,
                             "no mutex, so this child lingers by itself");
                return;
            }
        }
    }
#endif
    child.server = s;
    if (lingerd_init(&child.sender, conf->path) == 0) {
        child.active = 1;
        child.ends.score = LUCK_MOST;
        child.is_strange = has_strangers();
        child.spools = lingerd_init_spool(&child.spooler, conf->path) == 0;
        if (child.spools) {
            park_child_init();
        }
        apr_pool_cleanup_register(p, NULL, lingerd_child_exit,
                                  apr_pool_cleanup_null);
    }
}

static void *lingerd_create_config(apr_pool_t *p, server_rec *s)
{
    lingerd_config *conf = apr_pcalloc(p, sizeof(*conf));

    (void)s;
    conf->enabled = conf->spool = conf->park = conf->head = -1;
    conf->spool_max = SPOOL_MAX;
    conf->spool_max_of_all = SPOOL_MAX * SPOOL_MAX_OF_ALL;
    conf->path = LINGERD_SOCKET;
    return conf;
}

/** A virtual host takes over what it does not say itself. */
static void *lingerd_merge_config(apr_pool_t *p, void *basev, void *addv)
{
    lingerd_config *base = basev;
    lingerd_config *add = addv;
    lingerd_config *conf = apr_pcalloc(p, sizeof(*conf));

    conf->enabled = add->enabled < 0 ? base->enabled : add->enabled;
    conf->spool = add->spool < 0 ? base->spool : add->spool;
    conf->park = add->park < 0 ? base->park : add->park;
    conf->head = add->head < 0 ? base->head : add->head;
    conf->spool_max = base->spool_max;
    conf->spool_max_of_all = base->spool_max_of_all;
    conf->path = base->path;
    return conf;
}

static const char *set_socket(cmd_parms *cmd, void *dummy, const char *arg)
{
    lingerd_config *conf = ap_get_module_config(cmd->server->module_config,
                                                &lingerd_module);
    const char *error = ap_check_cmd_context(cmd, GLOBAL_ONLY);
    const char *path;

    (void)dummy;
    if (error) {
        return error;
    }
    path = ap_runtime_dir_relative(cmd->pool, arg);
    if (!path) {
        return apr_pstrcat(cmd->pool, "LingerdSocket: ", arg,
                           " is not a valid path", NULL);
    }
    if (strlen(path) > LINGERD_PATH_MAX) {
        return apr_psprintf(cmd->pool, "LingerdSocket: %s has %" APR_SIZE_T_FMT
                            " bytes, but the path of a Unix socket may have no"
                            " more than %d", path, strlen(path),
                            (int)LINGERD_PATH_MAX);
    }
    conf->path = path;
    return NULL;
}

static const char *set_exec(cmd_parms *cmd, void *dummy, int argc,
                            char *const argv[])
{
    lingerd_config *conf = ap_get_module_config(cmd->server->module_config,
                                                &lingerd_module);
    const char *error = ap_check_cmd_context(cmd, GLOBAL_ONLY);
    const char *program, *option;
    int i;

    (void)dummy;
    if (error) {
        return error;
    }
    if (argc < 1 || !argv[0][0]) {
        return "LingerdExec takes the path of lingerd, and its options";
    }
    program = ap_server_root_relative(cmd->pool, argv[0]);
    if (!program) {
        return apr_pstrcat(cmd->pool, "LingerdExec: ", argv[0],
                           " is not a valid path", NULL);
    }
    conf->command = apr_array_make(cmd->pool, argc, sizeof(const char *));
    APR_ARRAY_PUSH(conf->command, const char *) = program;
    for (i = 1; i < argc; i++) {
        APR_ARRAY_PUSH(conf->command, const char *) = argv[i];
    }
    for (option = "fsrkShVw"; *option; option++) {
        if (is_given(conf->command, *option)) {
            return apr_psprintf(cmd->pool, "LingerdExec: -%c is not for here:"
                                " Apache gives lingerd -f, -r and -s itself,"
                                " with the path of LingerdSocket; -k and -S"
                                " are for the command line", *option);
        }
    }
    return NULL;
}

/** One that is On or Off, which the command says where to put. */
static const char *set_flag(cmd_parms *cmd, void *dummy, int on)
{
    char *conf = ap_get_module_config(cmd->server->module_config,
                                      &lingerd_module);

    (void)dummy;
    *(int *)(conf + (apr_size_t)cmd->info) = on;
    return NULL;
}

#define FLAG_AT(member) (void *)APR_OFFSETOF(lingerd_config, member)

/** A number of bytes, or -1 */
static apr_off_t bytes_of(const char *arg)
{
    apr_off_t bytes;
    char *end;

    if (apr_strtoff(&bytes, arg, &end, 10) != APR_SUCCESS || *end || end == arg
        || bytes < 0) {
        return -1;
    }
    return bytes;
}

static const char *set_spool_max(cmd_parms *cmd, void *dummy, const char *arg,
                                 const char *all)
{
    lingerd_config *conf = ap_get_module_config(cmd->server->module_config,
                                                &lingerd_module);
    const char *error = ap_check_cmd_context(cmd, GLOBAL_ONLY);

    (void)dummy;
    if (error) {
        return error;
    }
    conf->spool_max = bytes_of(arg);
    /* No product overflows that is of a number of 40 bits. */
    conf->spool_max_of_all = all ? bytes_of(all)
        : conf->spool_max < (apr_off_t)1 << 40
          ? conf->spool_max * SPOOL_MAX_OF_ALL : conf->spool_max;
    if (conf->spool_max < 0 || conf->spool_max_of_all < 0) {
        return "LingerdSpoolMax: how many bytes of a response to keep, and "
               "how many of all";
    }
    return NULL;
}

static const command_rec lingerd_commands[] = {
    AP_INIT_TAKE1("LingerdSocket", set_socket, NULL, RSRC_CONF,
                  "the path of the socket on which lingerd listens"),
    AP_INIT_TAKE_ARGV("LingerdExec", set_exec, NULL, RSRC_CONF,
                      "the path of lingerd, and its options: Apache starts "
                      "and ends it"),
    AP_INIT_FLAG("Lingerd", set_flag, FLAG_AT(enabled), RSRC_CONF,
                 "whether connections to be closed are handed over to "
                 "lingerd: On (default) or Off"),
    AP_INIT_FLAG("LingerdSpool", set_flag, FLAG_AT(spool), RSRC_CONF,
                 "whether lingerd writes what a client is slow to read: On "
                 "(default) or Off"),
    AP_INIT_FLAG("LingerdPark", set_flag, FLAG_AT(park), RSRC_CONF,
                 "whether lingerd waits for the next request: On or Off "
                 "(default)"),
    AP_INIT_FLAG("LingerdHead", set_flag, FLAG_AT(head), RSRC_CONF,
                 "whether lingerd waits until the head of a request is whole:"
                 " On or Off (default)"),
    AP_INIT_TAKE12("LingerdSpoolMax", set_spool_max, NULL, RSRC_CONF,
                   "how many bytes of a response to keep for lingerd to "
                   "write, and how many of all responses"),
    { NULL }
};

static void lingerd_register_hooks(apr_pool_t *p)
{
    /* In the process that it makes, and not in the one that waits for that. */
    static const char *const after[] = { "mpm_itk.c", NULL };

    (void)p;
    ap_hook_post_config(lingerd_post_config, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_monitor(lingerd_monitor, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_child_init(lingerd_child_init, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_pre_close_connection(lingerd_pre_close, NULL, NULL,
                                 APR_HOOK_REALLY_LAST);

    spool_register_hooks();
    park_register_hooks();
    status_register_hooks();
    ap_hook_process_connection(lingerd_process_connection, after, NULL,
                               APR_HOOK_REALLY_FIRST);
    ap_hook_post_read_request(lingerd_post_read_request, NULL, NULL,
                              APR_HOOK_FIRST);
    ap_hook_log_transaction(lingerd_log_transaction, NULL, NULL,
                            APR_HOOK_REALLY_FIRST);
}

module AP_MODULE_DECLARE_DATA lingerd_module = {
    STANDARD20_MODULE_STUFF,
    NULL,                   /* create per-directory configuration */
    NULL,                   /* merge per-directory configurations */
    lingerd_create_config,
    lingerd_merge_config,
    lingerd_commands,
    lingerd_register_hooks,
#ifdef AP_MODULE_FLAG_NONE
    AP_MODULE_FLAG_NONE
#endif
};
