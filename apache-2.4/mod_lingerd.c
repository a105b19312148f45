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
 * socket to lingerd instead and the worker is free at once.
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
 * It can only help: whatever goes wrong with lingerd, the worker lingers by
 * itself as if the module were not there.
 *
 * What the module must not know: how long lingerd waits, for what, and what
 * becomes of a socket.  Nothing ever comes back.
 *
 * It is for the MPMs prefork and worker.  The event MPM lingers by itself
 * without tying up a thread, so there it stands aside.
 *
 *     apxs -c -I../apache-1.3 mod_lingerd.c ../apache-1.3/ap_lingerd.c
 */

/* The sender, which is the same for all servers: ../apache-1.3/ap_lingerd.c */
#include "ap_lingerd.h"

#include "httpd.h"
#include "http_config.h"
#include "http_connection.h"
#include "http_core.h"
#include "http_log.h"
#include "ap_mpm.h"
#include "apr_atomic.h"
#include "apr_portable.h"
#include "apr_shm.h"
#include "apr_strings.h"
#include "apr_thread_mutex.h"

#include <errno.h>
#include <string.h>

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

/** The name under which something outlives a restart */
#define RETAINED_KEY "mod_lingerd"

module AP_MODULE_DECLARE_DATA lingerd_module;
APLOG_USE_MODULE(lingerd);

typedef struct {
    /** Lingerd On|Off, or -1 for not given */
    int enabled;
    /** LingerdSocket; of the main server only */
    const char *path;
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

/** What the children have in common: how they share one voice */
typedef struct {
    /** When one of them complained last, in seconds */
    apr_uint32_t when;
    /** Whether that outage goes on, as far as they know */
    apr_uint32_t outage;
} link_complaint;

/** All there is to a child.  The parent only sets the complaint. */
static struct {
    int active;
    server_rec *server;
#if APR_HAS_THREADS
    /** Guards the sender and what follows; NULL without threads */
    apr_thread_mutex_t *mutex;
#endif
    lingerd_sender sender;
    link_state state;
    /** When LINK_BUSY was entered */
    apr_time_t since;
    /** sender.links as of the last good hand-over */
    unsigned long links;
    /** In memory shared by all children */
    link_complaint *complaint;
} child;

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

/** What to do with the sender, see lingerd_open() and lingerd_give() */
typedef enum {
    LINK_OPEN,
    LINK_GIVE
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

#if APR_HAS_THREADS
    if (child.mutex) {
        apr_thread_mutex_lock(child.mutex);
    }
#endif
    rc = use == LINK_OPEN ? lingerd_open(&child.sender)
                          : lingerd_give(&child.sender, sock);
    error = rc < 0 ? errno : 0;
    if (error || use == LINK_GIVE) {
        news = note_outcome(error, &level);
    }
#if APR_HAS_THREADS
    if (child.mutex) {
        apr_thread_mutex_unlock(child.mutex);
    }
#endif
    log_news(news, level, error);
    return rc == 0;
}

/**
 * Hand a connection over, if its client is not done.  While there is no link
 * the connection stays untouched.
 * @return Whether Apache may close its copy now
 */
static int hand_over(int sock)
{
    return use_link(LINK_OPEN, -1)
           && (lingerd_half_close(sock) || use_link(LINK_GIVE, sock));
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

/**
 * Runs when Apache is about to start its lingering close, as the last of its
 * kind: the other modules have said goodbye by then.
 *
 * All output is flushed here, as Apache would do next, mod_ssl's close_notify
 * at the end of it.  It may take its time with a slow client, but this is
 * time that a worker needs in any case: only lingering can be handed over.
 * Requests whose log lines had to wait for their last byte are logged now,
 * while c->aborted still tells the truth about the client.
 *
 * Afterwards c->aborted is only a message to Apache, that it close its own
 * copy of the socket now.  With any other outcome Apache goes on, finds
 * nothing left to flush, and lingers.
 *
 * mod_http2 lets no one run after it has said its own goodbye, so that Apache
 * lingers itself after HTTP/2 on the MPM worker.
 */
static int lingerd_pre_close(conn_rec *c)
{
    const lingerd_config *conf;
    int sock;

    /* A stream of HTTP/2 has no socket of its own. */
    if (!child.active || c->master || c->aborted) {
        return DECLINED;
    }
    conf = ap_get_module_config(c->base_server->module_config,
                                &lingerd_module);
    if (!conf->enabled) {       /* -1, not given, is On */
        return DECLINED;
    }
    sock = tcp_socket(c);
    if (sock < 0) {
        return DECLINED;
    }

    ap_flush_conn(c);
    if (c->aborted) {
        return DECLINED;
    }
    if (hand_over(sock)) {
        c->aborted = 1;
    }
    return OK;
}

/** An asynchronous MPM lingers in its listener, at no cost to a thread. */
static int mpm_is_async(void)
{
    int async = 0;

    return ap_mpm_query(AP_MPMQ_IS_ASYNC, &async) == APR_SUCCESS && async;
}

/** Say once that an asynchronous MPM is in use, and set up the complaint. */
static int lingerd_post_config(apr_pool_t *p, apr_pool_t *plog,
                               apr_pool_t *ptemp, server_rec *s)
{
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

    /* Without shared memory each child complains for itself. */
    if (apr_shm_create(&shm, sizeof(*child.complaint), NULL, p)
        == APR_SUCCESS) {
        child.complaint = apr_shm_baseaddr_get(shm);
        memset(child.complaint, 0, sizeof(*child.complaint));
    }
    else {
        child.complaint = apr_pcalloc(p, sizeof(*child.complaint));
    }
    return OK;
}

/** The link lives as long as the child. */
static apr_status_t lingerd_child_exit(void *unused)
{
    (void)unused;
    child.active = 0;
    lingerd_drop(&child.sender, 0);
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
        apr_pool_cleanup_register(p, NULL, lingerd_child_exit,
                                  apr_pool_cleanup_null);
    }
}

static void *lingerd_create_config(apr_pool_t *p, server_rec *s)
{
    lingerd_config *conf = apr_pcalloc(p, sizeof(*conf));

    (void)s;
    conf->enabled = -1;
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

static const char *set_enabled(cmd_parms *cmd, void *dummy, int on)
{
    lingerd_config *conf = ap_get_module_config(cmd->server->module_config,
                                                &lingerd_module);

    (void)dummy;
    conf->enabled = on;
    return NULL;
}

static const command_rec lingerd_commands[] = {
    AP_INIT_TAKE1("LingerdSocket", set_socket, NULL, RSRC_CONF,
                  "the path of the socket on which lingerd listens"),
    AP_INIT_FLAG("Lingerd", set_enabled, NULL, RSRC_CONF,
                 "whether connections to be closed are handed over to "
                 "lingerd: On (default) or Off"),
    { NULL }
};

static void lingerd_register_hooks(apr_pool_t *p)
{
    (void)p;
    ap_hook_post_config(lingerd_post_config, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_child_init(lingerd_child_init, NULL, NULL, APR_HOOK_MIDDLE);
    ap_hook_pre_close_connection(lingerd_pre_close, NULL, NULL,
                                 APR_HOOK_REALLY_LAST);
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
