/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * A server of one process that serves one client at a time, as small as one
 * can be that hands its connections over with ap_lingerd.c.
 *
 *     server SOCKET
 *
 * prints its port, and then a line for each connection. The request is one
 * of the lines below, or any other, and the response is always the same:
 *
 *     sendmsg ERRNO N    the next N times sendmsg(2) fails with that errno
 *     connect ERRNO N    the same for connect(2)
 *     later              from here on it is a second later to the sender
 *     apache             half-close as Apache 1.3 does, by itself
 *     bad                hand over what is no descriptor, before all else
 *
 * The line says what became of the connection:
 *
 *     given              lingerd has it
 *     done               the client is done, there was nothing to hand over
 *     kept ERRNO         lingerd did not take it
 *
 * and then how many links there were, how many descriptors are open, and how
 * often connect(2) was called.
 */

#include "../../apache-1.3/ap_lingerd.h"

#include <netinet/in.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ap_lingerd.c is compiled to call these in place of the system's own. */
static int sendmsg_errno, sendmsg_times;
static int connect_errno, connect_times, connects;
static time_t now = 1000000000;

ssize_t faulty_sendmsg(int fd, const struct msghdr *msg, int flags);
int faulty_connect(int fd, const struct sockaddr *addr, socklen_t size);
time_t faulty_time(time_t *result);

ssize_t faulty_sendmsg(int fd, const struct msghdr *msg, int flags)
{
    if (sendmsg_times > 0) {
        sendmsg_times--;
        errno = sendmsg_errno;
        return -1;
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

static void serve(lingerd_sender *sender, int sock)
{
    char line[128];
    int error = 0, done, apache;

    read_line(sock, line, sizeof(line));
    (void)sscanf(line, "sendmsg %d %d", &sendmsg_errno, &sendmsg_times);
    (void)sscanf(line, "connect %d %d", &connect_errno, &connect_times);
    now += strcmp(line, "later") == 0;
    if (write(sock, "ok\n", 3) != 3) {
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
    else if (lingerd_give(sender, sock) == 0) {
        printf("given");
    }
    else {
        error = errno;
        printf("kept %d", error);
    }
    if (sender->fd >= 0 && fcntl(sender->fd, F_GETFD) != FD_CLOEXEC) {
        printf(" inheritable");
    }
    printf(" links %lu descriptors %d connects %d\n",
           sender->links, open_descriptors(), connects);
    fflush(stdout);
    if (error) {
        /* As a server does without lingerd. */
        while (read(sock, line, sizeof(line)) > 0) {
        }
    }
}

int main(int argc, char **argv)
{
    static lingerd_sender sender;
    struct sockaddr_in addr;
    socklen_t size = sizeof(addr);
    int listener;

    if (argc != 2 || lingerd_init(&sender, argv[1]) != 0) {
        perror("lingerd_init");
        return 2;
    }
    listener = socket(AF_INET, SOCK_STREAM, 0);
    memset(&addr, 0, sizeof(addr));
    addr.sin_family = AF_INET;
    addr.sin_addr.s_addr = inet_addr("127.0.0.1");
    if (listener < 0
        || bind(listener, (struct sockaddr *)&addr, size) != 0
        || listen(listener, 1024) != 0
        || getsockname(listener, (struct sockaddr *)&addr, &size) != 0) {
        perror("listen");
        return 1;
    }
    printf("%d\n", (int)ntohs(addr.sin_port));
    fflush(stdout);
    for (;;) {
        int sock = accept(listener, NULL, NULL);

        if (sock < 0) {
            return 1;
        }
        serve(&sender, sock);
        close(sock);
    }
}
