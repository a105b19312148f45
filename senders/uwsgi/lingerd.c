/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * A plugin of uWSGI: what comes in at an --http-socket is closed by lingerd(8).
 *
 * uWSGI closes a connection without having read what the client has sent of a
 * body that the application did not want, and without waiting for what it still
 * sends; the kernel answers either with a reset, which destroys what the client
 * has not yet read of the response (RFC 9112 section 9.6).
 *
 * This must not know what a message to lingerd looks like: that is ap_lingerd.c.
 */

#include <uwsgi.h>
#include "../../apache-1.3/ap_lingerd.h"

extern struct uwsgi_server uwsgi;

static struct {
    /* --lingerd-socket, or the environment's */
    char *path;
    lingerd_sender sender;
    pthread_mutex_t lock;
    /* Whether it was said that there is no lingerd */
    int alone;
} lingerd = { .lock = PTHREAD_MUTEX_INITIALIZER };

static struct uwsgi_option lingerd_options[] = {
    {"lingerd-socket", required_argument, 0, "where lingerd listens",
     uwsgi_opt_set_str, &lingerd.path, 0},
    UWSGI_END_OF_OPTIONS
};

/* Whether lingerd has it.  Never waits: the lock is held for two system calls. */
static int given(int fd)
{
    int gave, alone, error;

    pthread_mutex_lock(&lingerd.lock);
    gave = lingerd_give(&lingerd.sender, fd) == 0;
    error = lingerd.sender.error;
    alone = !gave && lingerd.sender.fd < 0;
    if (alone != lingerd.alone && (alone || gave)) {
        lingerd.alone = alone;
        if (alone) {
            uwsgi_log("lingerd: %s: %s: closing without it\n", lingerd.path,
                      strerror(error));
        }
        else {
            uwsgi_log("lingerd: at %s again\n", lingerd.path);
        }
    }
    pthread_mutex_unlock(&lingerd.lock);
    return gave;
}

static void lingerd_close(struct wsgi_request *request)
{
    if (!lingerd_half_close(request->fd)) {
        given(request->fd);
    }
    uwsgi_proto_base_close(request);
}

/* In each process that serves, before it does. */
static void lingerd_post_fork(void)
{
    struct uwsgi_socket *each;

    if (lingerd.path == NULL) {
        lingerd.path = getenv("LINGERD_SOCKET");
    }
    if (lingerd.path == NULL || *lingerd.path == '\0') {
        lingerd.path = LINGERD_SOCKET;
    }
    if (lingerd_init(&lingerd.sender, lingerd.path) != 0) {
        uwsgi_log("lingerd: %s: %s: closing without it\n", lingerd.path,
                  strerror(errno));
        return;
    }
    for (each = uwsgi.sockets; each != NULL; each = each->next) {
        /* Not what keeps connections, or speaks TLS: these close otherwise. */
        if (each->proto_name != NULL && strcmp(each->proto_name, "http") == 0
            && each->proto_close == uwsgi_proto_base_close
            && (each->family == AF_INET || each->family == AF_INET6)) {
            each->proto_close = lingerd_close;
        }
    }
}

struct uwsgi_plugin lingerd_plugin = {
    .name = "lingerd",
    .options = lingerd_options,
    .post_fork = lingerd_post_fork,
};
