/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * A stand-in for the file of this name in Apache 1.3: what apstatus.diff
 * changes, with as little around it as the patch looks at.
 */
#ifndef APACHE_SCOREBOARD_H
#define APACHE_SCOREBOARD_H

#define USE_MMAP_SCOREBOARD

typedef struct {
    int running_generation;
} global_score;

typedef struct {
    global_score global;
} scoreboard;

extern scoreboard *ap_scoreboard_image;

#endif
