/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * A server with liblingerd, for the suite that any sender passes:
 * tests/conformance of lingerd's repository says what is asked of it. With TLS
 * where it is compiled with -DTLS, and OpenSSL.
 */

#include <lingerd.h>

#include <sys/types.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#ifdef TLS
#include <openssl/ssl.h>
static SSL_CTX *tls;
#endif

#define PATIENCE 300000         /* milliseconds */

static lingerd *way;
static int listener, seconds, spool;

/* What is asked of it in the environment, or 0. */
static int number(const char *name)
{
    const char *value = getenv(name);

    return value == NULL ? 0 : atoi(value);
}

/* What a server does without lingerd. */
static void linger(int sock)
{
    struct timeval two_seconds = { 2, 0 };
    time_t until = time(NULL) + 30;
    char buffer[4096];

    shutdown(sock, SHUT_WR);
    setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &two_seconds,
               sizeof(two_seconds));
    while (time(NULL) < until && recv(sock, buffer, sizeof(buffer), 0) > 0) {
    }
    close(sock);
}

static void reset(int sock)
{
    struct linger at_once = { 1, 0 };

    setsockopt(sock, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    close(sock);
}

/* All is written. */
static void end(int sock)
{
    if (seconds == 0) {
        if (lingerd_finish(way, sock) != 0) {
            linger(sock);
        }
    }
    else if (lingerd_linger(way, sock, seconds) == 0) {
        close(sock);
    }
    else {
        linger(sock);
    }
}

/* What the client does not take lingerd writes, if that is asked for. */
static void respond(int sock, const char *at, size_t left)
{
    while (left > 0) {
        ssize_t n = send(sock, at, left, spool ? MSG_DONTWAIT : 0);
        struct pollfd either[2];
        lingerd_piece rest;

        if (n > 0) {
            at += n;
            left -= (size_t)n;
            continue;
        }
        if (errno != EAGAIN) {
            reset(sock);
            return;
        }
        memset(&rest, 0, sizeof(rest));
        rest.data = at;
        rest.length = (int64_t)left;
        if (lingerd_write_rest(way, sock, &rest, 1, PATIENCE) == 0) {
            close(sock);
            return;
        }
        either[0].fd = sock;
        either[0].events = POLLOUT;
        either[1].fd = lingerd_link(way);
        either[1].events = POLLIN;
        if (poll(either, 2, PATIENCE) == 0) {
            reset(sock);
            return;
        }
    }
    end(sock);
}

/* How many bytes are asked for, with the head before them; NULL: none. */
static char *response(const char *request, size_t *size)
{
    long length = strncmp(request, "GET /", 5) == 0 ? atol(request + 5) : 0;
    char *all = (char *)malloc((size_t)length + 100);
    int head;

    if (length <= 0 || all == NULL) {
        free(all);
        return NULL;
    }
    head = sprintf(all, "HTTP/1.1 200 OK\r\nContent-Length: %ld\r\n\r\n", length);
    memset(all + head, 'x', (size_t)length);
    *size = (size_t)(head + length);
    return all;
}

#ifdef TLS
static void serve_tls(int sock)
{
    char request[65536], *all = NULL;
    SSL *ssl = SSL_new(tls);
    size_t size;
    int n;

    SSL_set_fd(ssl, sock);
    if (SSL_accept(ssl) == 1
        && (n = SSL_read(ssl, request, sizeof(request) - 1)) > 0) {
        request[n] = '\0';
        all = response(request, &size);
    }
    if (all != NULL && SSL_write(ssl, all, (int)size) == (int)size) {
        (void)SSL_shutdown(ssl);
        SSL_free(ssl);
        end(sock);
    }
    else {
        SSL_free(ssl);
        reset(sock);
    }
    free(all);
}
#endif

static void serve(int sock)
{
    char request[65536], *all = NULL;
    size_t size;
    ssize_t n;

#ifdef TLS
    if (tls != NULL) {
        serve_tls(sock);
        return;
    }
#endif
    n = recv(sock, request, sizeof(request) - 1, 0);
    if (n > 0) {
        request[n] = '\0';
        all = response(request, &size);
    }
    if (all != NULL) {
        respond(sock, all, size);
    }
    else {
        close(sock);
    }
    free(all);
}

static void *serve_all(void *unused)
{
    for (;;) {
        int sock = accept(listener, NULL, NULL);

        if (sock >= 0) {
            serve(sock);
        }
    }
    return unused;
}

int main(void)
{
    struct sockaddr_in here;
    int processes = number("PROCESSES"), threads = number("THREADS"), on = 1;

    signal(SIGPIPE, SIG_IGN);
    seconds = number("LINGER_SECONDS");
    spool = number("SPOOL");
    if (getenv("TLS_CERT") != NULL) {
#ifdef TLS
        tls = SSL_CTX_new(TLS_server_method());
        if (SSL_CTX_use_certificate_chain_file(tls, getenv("TLS_CERT")) != 1
            || SSL_CTX_use_PrivateKey_file(tls, getenv("TLS_KEY"),
                                           SSL_FILETYPE_PEM) != 1) {
            return 1;
        }
#else
        printf("lacks: it was compiled without OpenSSL\n");
        return 0;
#endif
    }
    memset(&here, 0, sizeof(here));
    here.sin_family = AF_INET;
    here.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    here.sin_port = htons((unsigned short)number("PORT"));
    way = lingerd_new(getenv("LINGERD_SOCKET"));
    listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (way == NULL || listener < 0
        || bind(listener, (struct sockaddr *)&here, sizeof(here)) != 0
        || listen(listener, 1024) != 0) {
        perror("cannot serve");
        return 1;
    }
    if (processes > 1) {
        int sock = accept(listener, NULL, NULL);

        if (sock >= 0) {
            serve(sock);
        }
    }
    while (--processes > 0 && fork() > 0) {
    }
    while (--threads > 0) {
        pthread_t thread;

        if (pthread_create(&thread, NULL, serve_all, NULL) != 0) {
            return 1;
        }
    }
    serve_all(NULL);
    return 0;
}
