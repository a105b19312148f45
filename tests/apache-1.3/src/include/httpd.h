/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * A stand-in for Apache 1.3's headers: what ap_lingerd.h and lingering_close()
 * need of them, and no more.
 */
#ifndef APACHE_HTTPD_H
#define APACHE_HTTPD_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define APACHE_RELEASE 10300000

typedef struct {
    int fd;
} BUFF;

typedef struct {
    BUFF *client;
    unsigned aborted : 1;
} conn_rec;

typedef struct {
    conn_rec *connection;
} request_rec;

void ap_block_alarms(void);
void ap_unblock_alarms(void);
void ap_kill_timeout(request_rec *r);
int ap_bclose(BUFF *fb);

#endif
