/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * A server of one process that serves one client at a time, as small as one
 * can be that hands its connections over with ap_lingerd.c.
 *
 *     server SOCKET [NAME]
 *
 * with the name of a way back, where it listens too then;
 *
 * prints its port, and then a line for each connection. The request is one
 * of the lines below, or any other, and the response is always the same:
 *
 *     sendmsg ERRNO N    the next N times sendmsg(2) fails with that errno
 *     connect ERRNO N    the same for connect(2)
 *     later              from here on it is a second later to the sender
 *     apache             half-close as Apache 1.3 does, by itself
 *     bad                hand over what is no descriptor, before all else
 *     for SECONDS        hand over, for no longer than that
 *     spool SIZE         that many bytes more follow, as spool_byte() has them,
 *                        in two parts of one file and one of another, when
 *                        lingerd takes them
 *     now spool SIZE     the same, but without waiting for that
 *     bad spool SIZE     the same, but before that with a file that is none
 *     go                 wait until lingerd takes one, without giving it one
 *     fork spool SIZE    as the first, by a child of fork(2) with its own link
 *     keep MS            park it until it says something, or its time is up
 *     head MS            the same until the head of its next request is whole
 *     partial N          of the next N messages sendmsg(2) sends half
 *     window             park copies until lingerd is to be given no more
 *
 * The line says what became of the connection:
 *
 *     given              lingerd has it
 *     go                 lingerd would have one
 *     done               the client is done, there was nothing to hand over
 *     kept ERRNO         lingerd did not take it; what was to be spooled has
 *                        been written
 *     back KIND LATE     one that was parked has come back, and is served:
 *                        what becomes of it follows on the next line
 *     nothing ERRNO      and so does what is no such connection
 *
 * and then how many links there were, how many descriptors are open, and how
 * often connect(2) was called; the links to the second socket where it was to
 * be spooled or parked.
 */

#include "../../apache-1.3/ap_lingerd.h"

#include <netinet/in.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* ap_lingerd.c is compiled to call these in place of the system's own. */
static int sendmsg_errno, sendmsg_times;
static int connect_errno, connect_times, connects, partial_times;
static time_t now = 1000000000;

ssize_t faulty_sendmsg(int fd, const struct msghdr *msg, int flags);
int faulty_connect(int fd, const struct sockaddr *addr, socklen_t size);
time_t faulty_time(time_t *result);

/* It is of POSIX, and C89 has it not. */
int fileno(FILE *stream);

ssize_t faulty_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    if (sendmsg_times > 0) {
        sendmsg_times--;
        errno = sendmsg_errno;
        return -1;
    }
    if (partial_times > 0) {
        struct msghdr part = *msg;
        struct iovec iov = *msg->msg_iov;

        partial_times--;
        iov.iov_len /= 2;
        part.msg_iov = &iov;
        return sendmsg(fd, &part, flags);
    }
    return sendmsg(fd, msg, flags);
}

int faulty_connect(int fd, const struct sockaddr *addr, socklen_t size)
{
    connects++;
    if (connect_times > 0) {
        connect_times--;
        errno = connect_errno;
        return -1;
    }
    return connect(fd, addr, size);
}

time_t faulty_time(time_t *result)
{
    if (result != NULL) {
        *result = now;
    }
    return now;
}

static int open_descriptors(void)
{
    int fd, number = 0;

    for (fd = 0; fd < 256; fd++) {
        if (fcntl(fd, F_GETFD) != -1) {
            number++;
        }
    }
    return number;
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

static char spool_byte(long n)
{
    return (char)(n % 251);
}

/** A file with so many bytes of what follows, after as many as skip of others. */
static FILE *file_with(long first, long length, long skip)
{
    FILE *file = tmpfile();
    long n;

    if (file == NULL) {
        perror("tmpfile");
        exit(1);
    }
    for (n = 0; n < skip; n++) {
        (void)putc('?', file);
    }
    for (n = first; n < first + length; n++) {
        (void)putc(spool_byte(n), file);
    }
    (void)fflush(file);
    return file;
}

static int has_so_linger(int sock)
{
    struct linger linger;
    socklen_t length = sizeof(linger);

    return getsockopt(sock, SOL_SOCKET, SO_LINGER, &linger, &length) != 0
           || linger.l_onoff;
}

/** Wait until lingerd takes one; whether it does, or there is no link. */
static int wait_for_lingerd(lingerd_sender *spooler)
{
    struct pollfd link;
    int may;

    while ((may = lingerd_may_spool(spooler)) == 0) {
        link.fd = spooler->fd;
        link.events = POLLIN;
        (void)poll(&link, 1, -1);
    }
    return may > 0;
}

/** Have the rest written as the request says; if lingerd does not take it, write
 *  it here. */
static void spool(lingerd_sender *spooler, int sock, long size, const char *request)
{
    long half = size / 2, rest = size - size / 4, n;
    FILE *ours = file_with(0, rest, 3), *other = file_with(rest, size - rest, 7);
    lingerd_part parts[LINGERD_PARTS + 1];

    memset(parts, 0, sizeof(parts));
    parts[0].fd = parts[1].fd = fileno(ours);
    parts[0].ours = parts[1].ours = 1;
    parts[0].offset = 3;
    parts[0].length = half;
    parts[1].offset = 3 + half;
    parts[1].length = rest - half;
    parts[2].fd = fileno(other);
    parts[2].offset = 7;
    parts[2].length = size - rest;
    if (request[0] != 'n') {
        (void)wait_for_lingerd(spooler);
    }
    if (lingerd_spool(spooler, sock, parts, 0, 1) == 0 || errno != EINVAL
        || lingerd_spool(spooler, sock, parts, LINGERD_PARTS + 1, 1) == 0
        || errno != EINVAL
        || lingerd_spool(spooler, sock, parts, 3, 0) == 0 || errno != EINVAL) {
        printf("what is no spool was taken\n");
    }
    if (request[0] == 'b') {
        parts[2].fd = -1;
        if (lingerd_spool(spooler, sock, parts, 3, 1000000) == 0
            || errno != EBADF || has_so_linger(sock)) {
            printf("what is no file was taken\n");
        }
        parts[2].fd = fileno(other);
    }
    if (lingerd_spool(spooler, sock, parts, 3, 1000000) == 0) {
        printf("given");
    }
    else {
        printf("kept %d", errno);
        if (has_so_linger(sock)) {
            printf(" with SO_LINGER");
        }
        for (n = 0; n < size; n++) {
            char byte = spool_byte(n);

            if (write(sock, &byte, 1) != 1) {
                break;
            }
        }
    }
    (void)fclose(ours);
    (void)fclose(other);
}

/** The name of the way back, and what goes with one that is parked and has to
 *  come back with it */
static const char *way_back = "other";

static unsigned char own_byte(int n)
{
    return (unsigned char)(n * 7 + 3);
}

static int park(lingerd_sender *parker, int sock, lingerd_kind kind, long time)
{
    lingerd_parked parked;
    int n;

    parked.kind = kind;
    parked.patience = (unsigned long)time;
    for (n = 0; n < LINGERD_OWN; n++) {
        parked.own[n] = own_byte(n);
    }
    return lingerd_park(parker, sock, way_back, &parked);
}

/** What is accepted at the way back; a connection, or -1. */
static int take_back(int link)
{
    lingerd_parked parked;
    struct pollfd readable;
    int sock, n;

    readable.fd = link;
    readable.events = POLLIN;
    while ((sock = lingerd_take_back(link, &parked)) < 0 && errno == EAGAIN) {
        (void)poll(&readable, 1, -1);
    }
    if (sock < 0) {
        printf("nothing %d", errno);
        return -1;
    }
    printf("back %c %d", parked.kind, parked.late);
    for (n = 0; n < LINGERD_OWN; n++) {
        if (parked.own[n] != own_byte(n)) {
            printf(" with what is not its own");
            break;
        }
    }
    if (fcntl(sock, F_GETFD) != FD_CLOEXEC) {
        printf(" inheritable");
    }
    return sock;
}

/** The rest of a line */
static void tell(const lingerd_sender *sender)
{
    if (sender->fd >= 0 && fcntl(sender->fd, F_GETFD) != FD_CLOEXEC) {
        printf(" inheritable");
    }
    printf(" links %lu descriptors %d connects %d\n",
           sender->links, open_descriptors(), connects);
    fflush(stdout);
}

/* Whether close(2) would, with SO_LINGER. */
static int waits_at_close(int sock)
{
    struct linger linger;
    socklen_t size = sizeof(linger);

    return getsockopt(sock, SOL_SOCKET, SO_LINGER, (void *)&linger, &size) == 0
           && linger.l_onoff != 0;
}

static void serve(lingerd_sender *sender, lingerd_sender *spooler, int sock)
{
    char line[128];
    const char *spooled;
    int error = 0, done, apache;
    long size;

    read_line(sock, line, sizeof(line));
    (void)sscanf(line, "sendmsg %d %d", &sendmsg_errno, &sendmsg_times);
    (void)sscanf(line, "connect %d %d", &connect_errno, &connect_times);
    (void)sscanf(line, "partial %d", &partial_times);
    now += strcmp(line, "later") == 0;
    if (write(sock, "ok\n", 3) != 3) {
        return;
    }

    spooled = strstr(line, "spool ");
    if (spooled != NULL && sscanf(spooled, "spool %ld", &size) == 1) {
        if (line[0] != 'f') {
            spool(spooler, sock, size, line);
        }
        else if (fork() == 0) {
            lingerd_drop(spooler, 0);
            now++;
            spool(spooler, sock, size, line);
            tell(spooler);
            _exit(0);
        }
        else {
            (void)wait(NULL);
            return;     /* the child has told */
        }
        tell(spooler);
        return;
    }
    if (sscanf(line, "keep %ld", &size) == 1
        || sscanf(line, "head %ld", &size) == 1) {
        lingerd_kind kind = line[0] == 'k' ? LINGERD_KEPT : LINGERD_HEAD;

        if (park(spooler, sock, kind, 0) == 0 || errno != EINVAL) {
            printf("what has no time was taken\n");
        }
        if (park(spooler, sock, kind, size) == 0) {
            printf("given");
        }
        else {
            printf("kept %d", errno);
        }
        tell(spooler);
        return;
    }
    if (strcmp(line, "window") == 0) {
        for (size = 0; park(spooler, sock, LINGERD_KEPT, 1000000) == 0; size++) {
        }
        printf("kept %d after %ld", errno, size);
        tell(spooler);
        return;
    }
    if (strcmp(line, "go") == 0) {
        printf(wait_for_lingerd(spooler) ? "go" : "no link");
        tell(spooler);
        return;
    }
    if (strcmp(line, "bad") == 0 && lingerd_give(sender, -1) == 0) {
        printf("what is no descriptor was taken\n");
    }
    apache = strcmp(line, "apache") == 0;
    if (apache) {
        (void)shutdown(sock, 1);
    }
    errno = 12345;
    done = apache ? lingerd_client_done(sock) : lingerd_half_close(sock);
    if (errno != 12345) {
        printf("errno was not kept: %d\n", errno);
    }
    else if (done) {
        printf("done");
    }
    else if ((sscanf(line, "for %ld", &size) == 1
              ? lingerd_give_for(sender, sock, (int)size)
              : lingerd_give(sender, sock)) == 0) {
        printf("given");
    }
    else {
        error = errno;
        printf("kept %d%s", error, waits_at_close(sock) ? " and waits" : "");
    }
    tell(sender);
    if (error) {
        /* As a server does without lingerd. */
        while (read(sock, line, sizeof(line)) > 0) {
        }
    }
}

static int listen_at(const struct sockaddr *addr, socklen_t size)
{
    int listener = socket(addr->sa_family, SOCK_STREAM, 0);

    if (listener < 0 || bind(listener, addr, size) != 0
        || listen(listener, 1024) != 0) {
        perror("listen");
        exit(1);
    }
    return listener;
}

int main(int argc, char **argv)
{
    static lingerd_sender sender, spooler;
    struct sockaddr_in addr;
    struct sockaddr_un back;
    socklen_t size = sizeof(addr);
    struct pollfd either[2];

    if (argc < 2 || lingerd_init(&sender, argv[1]) != 0) {
        perror("lingerd_init");
        return 2;
    }
    if (lingerd_init_spool(&spooler, argv[1]) != 0 && errno != ENAMETOOLONG) {
        perror("lingerd_init_spool");
        return 2;
    }
    either[0].events = either[1].events = POLLIN;
    either[1].fd = -1;
    if (argc > 2) {
        way_back = argv[2];
        if (lingerd_way_back(&back, argv[1], way_back) != 0) {
            perror("lingerd_way_back");
            return 2;
        }
        either[1].fd = listen_at((struct sockaddr *)&back, sizeof(back));
    }
    memset(&addr, 0, sizeof(addr));
    addr.sin_family = AF_INET;
    addr.sin_addr.s_addr = inet_addr("127.0.0.1");
    either[0].fd = listen_at((struct sockaddr *)&addr, size);
    if (getsockname(either[0].fd, (struct sockaddr *)&addr, &size) != 0) {
        perror("getsockname");
        return 1;
    }
    printf("%d\n", (int)ntohs(addr.sin_port));
    fflush(stdout);
    for (;;) {
        int sock, comes_back;

        if (poll(either, 2, -1) < 0) {
            return 1;
        }
        comes_back = either[0].revents == 0;
        sock = accept(either[comes_back].fd, NULL, NULL);
        if (sock < 0) {
            return 1;
        }
        if (comes_back) {
            int link = sock;

            sock = take_back(link);
            close(link);
            tell(&spooler);
        }
        if (sock >= 0) {
            serve(&sender, &spooler, sock);
            close(sock);
        }
    }
}
