/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * What tests/library.rs does with liblingerd.
 *
 *     server SOCKET
 *
 * prints its port, and then a line for each connection. The request is one of
 * the lines below.
 *
 *     finish             end it
 *     linger SECONDS     only hand it over
 *     rest SIZE          that many bytes follow, as rest_byte() has them, in
 *                        pieces of memory, of a file, and of memory again, when
 *                        lingerd takes them
 *     now rest SIZE      the same, but without waiting for that
 *     threads N          hand over N copies, in as many threads at once
 *     fork               a child of fork(2) ends it
 *     daemon             a child that has closed all descriptors, and has opened
 *                        others, ends it
 *     busy N             while a thread hands over copies all the time, N children
 *                        hand over one each, one after the other
 *     signal N           the handler of a signal makes N children, while copies are
 *                        handed over all the time
 *     wrong              what is to be refused
 *
 * The line says "done" or "given", or else "kept ERRNO"; and then what
 * lingerd_error() says.
 */

#if defined(__linux__)
#define _GNU_SOURCE 1
#endif

#include "../../senders/c/lingerd.h"

#include <sys/types.h>
#include <sys/socket.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static lingerd *way;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void check(int holds, const char *what)
{
    if (!holds) {
        printf("%s: errno %d\n", what, errno);
        exit(1);
    }
}

/** The request, up to its newline or the end of the stream. */
static void read_line(int sock, char *line, size_t size)
{
    size_t length = 0;

    while (length + 1 < size && read(sock, line + length, 1) == 1
           && line[length] != '\n') {
        length++;
    }
    line[length] = '\0';
}

static char rest_byte(long n)
{
    return (char)(n % 251);
}

static int has_so_linger(int sock)
{
    struct linger linger;
    socklen_t length = sizeof(linger);

    return getsockopt(sock, SOL_SOCKET, SO_LINGER, &linger, &length) != 0
           || linger.l_onoff;
}

static int write_rest(int sock, long size, int now)
{
    long half = size / 2, third = size / 3, n;
    char *bytes = (char *)malloc((size_t)size);
    FILE *file = tmpfile();
    lingerd_piece pieces[3];
    int rc;

    check(bytes != NULL && file != NULL, "no room");
    for (n = 0; n < size; n++) {
        bytes[n] = rest_byte(n);
    }
    check(fwrite("???", 1, 3, file) == 3, "fwrite");
    check(fwrite(bytes + third, 1, (size_t)(half - third), file)
          == (size_t)(half - third), "fwrite");
    check(fflush(file) == 0, "fflush");
    memset(pieces, 0, sizeof(pieces));
    pieces[0].data = bytes;
    pieces[0].length = third;
    pieces[0].fd = -1;
    pieces[1].fd = fileno(file);
    pieces[1].offset = 3;
    pieces[1].length = half - third;
    pieces[2].data = bytes + half;
    pieces[2].length = size - half;
    pieces[2].fd = -1;
    while ((rc = lingerd_write_rest(way, sock, pieces, 3, 1000000)) != 0
           && errno == EAGAIN && !now && lingerd_link(way) >= 0) {
        struct pollfd link;

        link.fd = lingerd_link(way);
        link.events = POLLIN;
        (void)poll(&link, 1, -1);
    }
    if (rc != 0) {
        int error = errno;

        check(!has_so_linger(sock), "SO_LINGER was left on");
        check(write(sock, bytes, (size_t)size) == size, "write");
        errno = error;
    }
    memset(bytes, '!', (size_t)size);   /* nobody needs them any more */
    free(bytes);
    (void)fclose(file);
    return rc;
}

/* Held until all threads are there. */
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

static void *hand_over(void *copy)
{
    (void)pthread_mutex_lock(&gate);
    (void)pthread_mutex_unlock(&gate);
    check(lingerd_linger(way, *(int *)copy, 0) == 0, "a thread");
    return NULL;
}

static int in_threads(int sock, int number)
{
    pthread_t threads[64];
    int n;

    (void)pthread_mutex_lock(&gate);
    for (n = 0; n < number; n++) {
        check(pthread_create(&threads[n], NULL, hand_over, &sock) == 0,
              "pthread_create");
    }
    (void)pthread_mutex_unlock(&gate);
    for (n = 0; n < number; n++) {
        (void)pthread_join(threads[n], NULL);
    }
    return 0;
}

/** How many links, of any process, are open here. */
static int links(void)
{
    int fd, count = 0;

    for (fd = 0; fd < 64; fd++) {
        union {
            struct sockaddr any;
            struct sockaddr_un room;
        } name;
        socklen_t size = sizeof(name);

        count += getsockname(fd, &name.any, &size) == 0
                 && name.any.sa_family == AF_UNIX;
    }
    return count;
}

/** The errno with which a child hands it over, or 0. */
static int in_child(int sock, int as_daemon)
{
    pid_t pid = fork();
    int status = 0;

    if (pid == 0) {
        int others[64], n;

        alarm(60);      /* one that hangs is to end */
        if (as_daemon) {
            int null = open("/dev/null", O_RDONLY);

            for (n = 3; n < 64; n++) {
                if (n != sock && n != null) {
                    (void)close(n);
                }
            }
            for (n = 0; n < 8; n++) {
                others[n] = dup(null);
            }
        }
        if (lingerd_linger(way, sock, 0) != 0) {
            _exit(errno);
        }
        if (links() != 1) {
            _exit(EMLINK);      /* it has its parent's, too */
        }
        for (n = 0; as_daemon && n < 8; n++) {
            struct stat still;

            if (fstat(others[n], &still) != 0 || !S_ISCHR(still.st_mode)) {
                _exit(EBADF);
            }
        }
        _exit(0);
    }
    check(pid > 0 && waitpid(pid, &status, 0) == pid && WIFEXITED(status),
          "a child");
    return WEXITSTATUS(status);
}

static volatile int busy;

static void *hand_over_for_ever(void *copy)
{
    while (busy) {
        (void)lingerd_linger(way, *(int *)copy, 0);
    }
    return NULL;
}

static int in_children_of_the_busy(int sock, int number)
{
    pthread_t thread;
    int n, error = 0;

    busy = 1;
    check(pthread_create(&thread, NULL, hand_over_for_ever, &sock) == 0,
          "pthread_create");
    for (n = 0; n < number && error == 0; n++) {
        error = in_child(sock, 0);
        /* The kernel takes no more just now: that is no fault. */
        error = error == EAGAIN || error == ETOOMANYREFS ? 0 : error;
    }
    busy = 0;
    (void)pthread_join(thread, NULL);
    return error;
}

static volatile sig_atomic_t made;

static void make_child(int signal)
{
    int saved = errno;
    pid_t pid = fork();

    (void)signal;
    if (pid == 0) {
        _exit(0);
    }
    (void)waitpid(pid, NULL, 0);
    made++;
    errno = saved;
}

static int in_a_handler(int sock, int number)
{
    struct itimerval often, never;
    struct sigaction action;

    memset(&action, 0, sizeof(action));
    action.sa_handler = make_child;
    action.sa_flags = SA_RESTART;
    memset(&never, 0, sizeof(never));
    memset(&often, 0, sizeof(often));
    often.it_value.tv_usec = often.it_interval.tv_usec = 2000;
    made = 0;
    check(sigaction(SIGALRM, &action, NULL) == 0
          && setitimer(ITIMER_REAL, &often, NULL) == 0, "a signal");
    while (made < number) {
        (void)lingerd_linger(way, sock, 0);
    }
    check(setitimer(ITIMER_REAL, &never, NULL) == 0, "a signal");
    return 0;
}

/** More in memory than a file may have, which is no signal. */
static void refuse_large(int sock)
{
    struct rlimit limit, small;
    lingerd_piece piece;
    int rc;

    memset(&piece, 0, sizeof(piece));
    piece.data = "ab";
    piece.length = 2;
    check(getrlimit(RLIMIT_FSIZE, &limit) == 0, "getrlimit");
    small = limit;
    small.rlim_cur = 1;
    check(setrlimit(RLIMIT_FSIZE, &small) == 0, "setrlimit");
    while ((rc = lingerd_write_rest(way, sock, &piece, 1, 1000000)) != 0
           && errno == EAGAIN && lingerd_link(way) >= 0) {
        struct pollfd link;

        link.fd = lingerd_link(way);
        link.events = POLLIN;
        (void)poll(&link, 1, -1);
    }
    check(rc != 0 && errno == EFBIG, "a large file");
    check(!has_so_linger(sock), "SO_LINGER was left on");
    check(setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
}

static void refuse(int sock)
{
    lingerd_piece piece;
    int ends[2], n;

    memset(&piece, 0, sizeof(piece));
    piece.data = "";
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "socketpair");
    check(lingerd_linger(way, ends[0], 0) != 0 && errno == EAFNOSUPPORT, "unix");
    check(lingerd_finish(way, ends[0]) != 0 && errno == EAFNOSUPPORT, "unix");
    check(lingerd_write_rest(way, ends[0], &piece, 1, 1) != 0
          && errno == EAFNOSUPPORT, "unix");
    check(write(ends[0], "", 1) == 1, "it was half-closed");
    for (n = 0; n < 2; n++) {
        int other = socket(AF_INET, n == 0 ? SOCK_DGRAM : SOCK_STREAM, 0);

        check(n == 0 || listen(other, 1) == 0, "listen");
        check(lingerd_linger(way, other, 0) != 0 && errno == EAFNOSUPPORT,
              "no connection");
        check(lingerd_finish(way, other) != 0 && errno == EAFNOSUPPORT,
              "no connection");
        check(lingerd_write_rest(way, other, &piece, 1, 1) != 0
              && errno == EAFNOSUPPORT, "no connection");
        (void)close(other);
    }
    check(lingerd_linger(way, fileno(stdin), 0) != 0 && errno == ENOTSOCK, "null");
    check(lingerd_linger(way, -1, 0) != 0 && errno == EBADF, "-1");
    check(lingerd_linger(way, sock, -1) != 0 && errno == EINVAL, "seconds");
    check(lingerd_write_rest(way, sock, &piece, 0, 1) != 0 && errno == EINVAL,
          "no piece");
    check(lingerd_write_rest(way, sock, &piece, LINGERD_PIECES + 1, 1) != 0
          && errno == EINVAL, "many pieces");
    check(lingerd_write_rest(way, sock, &piece, 1, 0) != 0 && errno == EINVAL,
          "no patience");
    piece.length = -1;
    check(lingerd_write_rest(way, sock, &piece, 1, 1) != 0 && errno == EINVAL,
          "a negative length");
    piece.data = NULL;
    piece.length = 0;
    piece.offset = -1;
    check(lingerd_write_rest(way, sock, &piece, 1, 1) != 0 && errno == EINVAL,
          "a negative offset");
    piece.length = 1;
    piece.offset = (int64_t)((uint64_t)-1 / 2);
    check(lingerd_write_rest(way, sock, &piece, 1, 1) != 0 && errno == EOVERFLOW,
          "more than a file can have");
    check(lingerd_new("") == NULL && errno == EINVAL, "no path");
    (void)close(ends[0]);
    (void)close(ends[1]);
}

/** Whether the socket is closed already. */
static int serve(int sock)
{
    char line[128];
    long number = 0;
    int rc, is_closed = 0;

    read_line(sock, line, sizeof(line));
    if (write(sock, "ok\n", 3) != 3) {
        return 0;
    }
    if (strcmp(line, "finish") == 0) {
        rc = lingerd_finish(way, sock);
        is_closed = rc == 0;
        check(!is_closed || fcntl(sock, F_GETFD) == -1, "it was not closed");
    }
    else if (sscanf(line, "linger %ld", &number) == 1) {
        rc = lingerd_linger(way, sock, (int)number);
    }
    else if (sscanf(line, "rest %ld", &number) == 1
             || sscanf(line, "now rest %ld", &number) == 1) {
        rc = write_rest(sock, number, line[0] == 'n');
    }
    else if (sscanf(line, "threads %ld", &number) == 1) {
        rc = in_threads(sock, (int)number);
    }
    else if (sscanf(line, "busy %ld", &number) == 1) {
        rc = errno = in_children_of_the_busy(sock, (int)number);
    }
    else if (sscanf(line, "signal %ld", &number) == 1) {
        rc = in_a_handler(sock, (int)number);
    }
    else if (strcmp(line, "wrong") == 0) {
        refuse(sock);
        refuse_large(sock);
        rc = 0;
    }
    else {
        rc = errno = in_child(sock, strcmp(line, "daemon") == 0);
    }
    if (rc == 0) {
        printf("given");
    }
    else {
        printf("kept %d", errno);
    }
    printf(" error %d\n", lingerd_error(way));
    (void)fflush(stdout);
    return is_closed;
}

int main(int argc, char **argv)
{
    struct sockaddr_in addr;
    socklen_t size = sizeof(addr);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    lingerd *other;

    memset(&addr, 0, sizeof(addr));
    addr.sin_family = AF_INET;
    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (argc != 2 || bind(listener, (struct sockaddr *)&addr, size) != 0
        || listen(listener, 1024) != 0
        || getsockname(listener, (struct sockaddr *)&addr, &size) != 0) {
        fail("listen");
    }
    /* There may be any number, and each of them may go. */
    other = lingerd_new(argv[1]);
    way = lingerd_new(argv[1]);
    if (other == NULL || way == NULL) {
        fail("lingerd_new");
    }
    lingerd_free(other);
    lingerd_free(lingerd_new(NULL));
    lingerd_free(NULL);
    check(lingerd_error(way) == 0 && lingerd_link(way) == -1, "nothing was asked");
    printf("%d\n", (int)ntohs(addr.sin_port));
    (void)fflush(stdout);
    for (;;) {
        int sock = accept(listener, NULL, NULL);

        if (sock < 0) {
            fail("accept");
        }
        if (!serve(sock)) {
            (void)close(sock);
        }
    }
}
