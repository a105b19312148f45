/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * A stand-in for the file of this name in Apache 1.3, written for the tests
 * of aplinger.diff: a program that serves one connection, standard input, by
 * closing it as Apache does, and says how it went.
 */

#undef connect /* in here it is the system's own, see watched_connect() */

#include "httpd.h"
#include "scoreboard.h"

#include <sys/socket.h>
#include <unistd.h>

static scoreboard the_scoreboard;
scoreboard *ap_scoreboard_image = &the_scoreboard;

void status(FILE *r, int short_report); /* mod_status.c */

static int alarms_blocked;
static int timeouts_killed;
static int wrong;

/* ap_lingerd.c is compiled to call this: no alarm may come meanwhile. */
int watched_connect(int fd, const struct sockaddr *addr, socklen_t size);

int watched_connect(int fd, const struct sockaddr *addr, socklen_t size)
{
    if (alarms_blocked == 0) {
        wrong = 1;
    }
    return connect(fd, addr, size);
}

void ap_block_alarms(void)
{
    alarms_blocked++;
}

void ap_unblock_alarms(void)
{
    alarms_blocked--;
}

void ap_kill_timeout(request_rec *r)
{
    (void)r;
    timeouts_killed++;
}

int ap_bclose(BUFF *fb)
{
    return close(fb->fd);
}

/* Special version of timeout for lingering_close */

static int lingered;

static void lingering_close(request_rec *r)
{
    int lsd;

    lsd = r->connection->client->fd;

    if ((shutdown(lsd, 1) != 0) || r->connection->aborted) {
	ap_kill_timeout(r);
	ap_bclose(r->connection->client);
	return;
    }
    lingered = 1;
    ap_bclose(r->connection->client);
    ap_kill_timeout(r);
}

int main(void)
{
    static BUFF client;
    static conn_rec connection;
    static request_rec request;

    connection.client = &client;
    request.connection = &connection;
    errno = 12345;
    lingering_close(&request);
    if (errno != 12345 || alarms_blocked != 0 || timeouts_killed != 1) {
        wrong = 1;
    }
    printf("%s, %s\n", lingered ? "lingered" : "closed", wrong ? "wrong" : "all as before");
    status(stdout, 1);
    return 0;
}
