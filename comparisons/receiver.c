/* SPDX-License-Identifier: BSD-3-Clause
 *
 * The least that can be done with connections that are handed over: half-close, read and throw away what comes, close
 * at the end of the stream. No time-outs, no limit, no table, no counters; whoever is silent stays for ever, and what a
 * sender may do wrong is believed. Only that the sender has half-closed it does not rely on, and does so itself: a system
 * call that neither lingerd makes then nor this with -a. It is what lingerd is measured against (benches/receiver.rs), and
 * nothing to be used.
 *
 * With -a it asks the kernel all that lingerd asks of each connection, and makes next to nothing of the answers: what is
 * still between that and lingerd is lingerd's own.
 *
 * Linux: receiver [-a] path
 */

#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define EVENTS 256              /* as many as lingerd takes at once */
#define DISCARD (256 * 1024)
#define SOCKETS 253             /* SCM_MAX_FD */

static const uint64_t LISTENER = (uint64_t) 1 << 32, SENDER = (uint64_t) 1 << 33;
static int epoll, asks;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

/* Has it a time of its own, and would close(2) wait for it, or reset? */
static void ask_for_linger(int fd)
{
    struct linger value;
    socklen_t size = sizeof value;

    if (asks)
        getsockopt(fd, SOL_SOCKET, SO_LINGER, &value, &size);
}

/* Is it half-closed, has the client acknowledged that, and if so, is it MPTCP, of which neither is known? */
static void ask_how_far_it_is(int fd)
{
    struct tcp_info info;
    int protocol;
    socklen_t sizes[] = { sizeof info, sizeof protocol };

    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &sizes[0]) == 0 && info.tcpi_state != TCP_CLOSE)
        getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &protocol, &sizes[1]);
}

static void watch(int fd, uint64_t what)
{
    struct epoll_event event = { EPOLLIN | EPOLLRDHUP, { .u64 = what | (uint64_t) fd } };

    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) != 0)
        fail("epoll_ctl");
}

/* Reads what there is. Whether more may come. */
static int discard(int fd)
{
    ssize_t got;

    do
        got = recv(fd, NULL, DISCARD, MSG_TRUNC | MSG_DONTWAIT);
    while (got > 0);
    return got < 0;
}

/* What lingerd asks of one that is handed over, and in its order: whether it is TCP, by what tells how far it is closed,
 * too, if the last one waits for its client. Whether it does. */
static int ask(int fd)
{
    static int waits = 1;
    int info_first = waits, value;
    socklen_t size = sizeof value;

    if (info_first)
        ask_how_far_it_is(fd);
    else
        getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, &size);
    waits = discard(fd);
    if (waits && !info_first)
        ask_how_far_it_is(fd);
    ask_for_linger(fd);
    return waits;
}

static void receive(int sender)
{
    char byte;
    struct iovec iov = { &byte, 1 };
    /* It need not be cleared: the kernel says how much of it is there. */
    static union { struct cmsghdr align; char bytes[CMSG_SPACE(SOCKETS * sizeof(int))]; } control;
    struct msghdr message = { .msg_iov = &iov, .msg_iovlen = 1,
                              .msg_control = &control, .msg_controllen = sizeof control };
    struct cmsghdr *header;
    int count, i, fds[SOCKETS];

    if (recvmsg(sender, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC) <= 0) {
        close(sender);
        return;
    }
    header = CMSG_FIRSTHDR(&message);
    if (header == NULL || header->cmsg_type != SCM_RIGHTS)
        return;
    count = (int) ((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    memcpy(fds, CMSG_DATA(header), count * sizeof(int));
    for (i = 0; i < count; i++) {
        if (!asks)              /* lingerd asks the kernel, and does it where the sender has not */
            shutdown(fds[i], SHUT_WR);
        if (asks ? ask(fds[i]) : discard(fds[i]))
            watch(fds[i], 0);
        else
            close(fds[i]);
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    struct epoll_event events[EVENTS];
    struct rlimit limit;
    int listener, ready, i;

    asks = argc > 1 && strcmp(argv[1], "-a") == 0;
    argc -= asks;
    argv += asks;
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: receiver [-a] path\n");
        return 2;
    }
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
    strcpy(address.sun_path, argv[1]);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    if (listener < 0 || epoll < 0)
        fail("socket");
    if (bind(listener, (struct sockaddr *) &address, sizeof address) != 0 || listen(listener, 128) != 0)
        fail(argv[1]);
    watch(listener, LISTENER);
    for (;;) {
        ready = epoll_wait(epoll, events, EVENTS, -1);
        for (i = 0; i < ready; i++) {
            uint64_t what = events[i].data.u64;
            int fd = (int) (uint32_t) what;

            if (what & LISTENER) {
                int sender = accept(fd, NULL, NULL);

                if (sender >= 0)
                    watch(sender, SENDER);
            } else if (what & SENDER) {
                receive(fd);
            } else if (!discard(fd)) {
                if (asks)       /* the sender may have a copy, which would be reported still */
                    epoll_ctl(epoll, EPOLL_CTL_DEL, fd, &events[i]);
                ask_for_linger(fd);
                close(fd);
            }
        }
    }
}
