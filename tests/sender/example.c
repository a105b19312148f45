/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * A server around the example in ap_lingerd.h, which EXAMPLE names: for each
 * request, a line, the file is sent.
 *
 *     example SOCKET FILE
 *
 * prints its port.
 */

#include "../../apache-1.3/ap_lingerd.h"

#include <netinet/in.h>
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include EXAMPLE

int main(int argc, char **argv)
{
    struct sockaddr_in addr;
    socklen_t size = sizeof(addr);
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    memset(&addr, 0, sizeof(addr));
    addr.sin_family = AF_INET;
    addr.sin_addr.s_addr = inet_addr("127.0.0.1");
    if (argc != 3 || start(argv[1]) != 0
        || bind(listener, (struct sockaddr *)&addr, size) != 0
        || listen(listener, 1024) != 0
        || getsockname(listener, (struct sockaddr *)&addr, &size) != 0) {
        perror("example");
        return 1;
    }
    printf("%d\n", (int)ntohs(addr.sin_port));
    fflush(stdout);
    for (;;) {
        int sock = accept(listener, NULL, NULL);
        int fd = open(argv[2], O_RDONLY);
        char byte = '\0';

        while (byte != '\n' && read(sock, &byte, 1) == 1) {
        }
        send_and_close(sock, fd, 0, lseek(fd, 0, SEEK_END));
        close(fd);
    }
}
