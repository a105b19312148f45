/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * A stand-in for the file of this name in Apache 1.3: what apstatus.diff
 * changes, in a function that writes to standard output in place of a client.
 */

#include "httpd.h"
#include "scoreboard.h"

#define ap_rprintf fprintf

void status(FILE *r, int short_report)
{
    int busy = 3, ready = 2;

    if (!short_report)
	ap_rprintf(r, "%d requests currently being processed\n", busy);
    else
	ap_rprintf(r, "BusyServers: %d\nIdleServers: %d\n", busy, ready);

    ap_rprintf(r, "\n");
}
