/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * The part of mod_lingerd that shows what it does: a section in the page of
 * mod_status, and the handler lingerd-status, which passes on what lingerd(8)
 * says of itself.  mod_lingerd.c includes it, as it does spool.c.
 *
 * lingerd opens no port.  Whoever wants its counters over the network gets them
 * from Apache, as far as Apache's configuration lets him.
 *
 * What it must not know: how anything is handed over, and what the daemon's
 * counters mean, but for the few that are in the section.
 */

#include "mod_status.h"
#include "apr_version.h"

#include <poll.h>

/** The handler's name */
#define STATUS_HANDLER "lingerd-status"

/** How long lingerd may take to answer, in milliseconds */
#define STATUS_WITHIN 2000

/** More than any answer has */
#define STATUS_MOST ((apr_size_t)256 << 10)

#if APR_VERSION_AT_LEAST(1, 7, 0)
typedef apr_uint64_t status_number;
#define status_increment(number) apr_atomic_inc64(number)
#define status_read(number) apr_atomic_read64(number)
#else
typedef apr_uint32_t status_number;
#define status_increment(number) apr_atomic_inc32(number)
#define status_read(number) apr_atomic_read32(number)
#endif

/** What the children count; since the configuration was read */
typedef enum {
    /** Given to lingerd: to linger, to be written, to wait for its client */
    STATUS_LINGERED,
    STATUS_SPOOLED,
    STATUS_PARKED,
    /** Brought back by it */
    STATUS_RETURNED,
    /** Lingered by their workers, as lingerd was away, or took none */
    STATUS_AWAY,
    STATUS_BUSY,
    STATUS_COUNTS
} status_count;

static const struct {
    /** In the page for programs */
    const char *key;
    /** For Prometheus: a metric of which there are several, and a label */
    const char *label;
    /** In the page for people */
    const char *text;
} status_names[STATUS_COUNTS] = {
    { "Lingered", "given_total{to=\"linger\"}", "handed over to linger" },
    { "Spooled", "given_total{to=\"write\"}", "handed over to be written" },
    { "Parked", "given_total{to=\"park\"}", "handed over to wait for a request" },
    { "Returned", "returned_total", "came back with a request" },
    { "Away", "kept_total{reason=\"away\"}",
      "lingered here, as lingerd was away" },
    { "Busy", "kept_total{reason=\"busy\"}",
      "lingered here, as lingerd took none" }
};

/** Of the daemon's, those that say how much is with it now: its name for each,
 *  and the ones here */
static const struct {
    const char *name, *key, *text;
} status_gauges[] = {
    { "lingering", "LingerdLingering", "linger" },
    { "spooling", "LingerdSpooling", "are written" },
    { "parked", "LingerdWaiting", "wait for a request" }
};

#define STATUS_GAUGES (sizeof(status_gauges) / sizeof(status_gauges[0]))

typedef struct {
    status_number of[STATUS_COUNTS];
} status_counts;

/** Of all children; NULL where nothing is handed over */
static status_counts *shared_counts(void);

static void status_note(status_count what)
{
    status_counts *counts = shared_counts();

    if (counts) {
        status_increment(&counts->of[what]);
    }
}

static apr_uint64_t status_of(status_count what)
{
    return status_read(&shared_counts()->of[what]);
}

/** Wait until the link is ready, but no longer than until then. */
static int status_wait(const lingerd_sender *link, short events,
                       apr_time_t until)
{
    apr_interval_time_t left = until - apr_time_now();
    struct pollfd ready;

    ready.fd = link->fd;
    ready.events = events;
    ready.revents = 0;
    if (left <= 0 || link->fd < 0
        || poll(&ready, 1, (int)apr_time_as_msec(left) + 1) == 0) {
        errno = ETIMEDOUT;
        return -1;
    }
    return 0;
}

/** What lingerd answers, or NULL with errno: EPROTO if it is none that does. */
static const char *status_ask(apr_pool_t *p, lingerd_form form)
{
    apr_time_t until = apr_time_now() + apr_time_from_msec(STATUS_WITHIN);
    lingerd_sender link;
    char *answer;
    apr_size_t length = 0;
    long n = 1;
    int error = 0;

    if (lingerd_init_spool(&link, config_of(ap_server_conf)->path) != 0) {
        return NULL;
    }
    answer = apr_palloc(p, STATUS_MOST + 1);
    while (!error && lingerd_ask(&link, form) != 0) {
        error = errno;
        if ((error == EINPROGRESS || error == EALREADY)
            && status_wait(&link, POLLOUT, until) == 0) {
            error = 0;
        }
    }
    while (!error && n != 0 && length < STATUS_MOST) {
        n = lingerd_answer(&link, answer + length, STATUS_MOST - length);
        if (n > 0) {
            length += (apr_size_t)n;
        }
        else if (n < 0) {
            error = errno;
            if (error == EAGAIN && status_wait(&link, POLLIN, until) == 0) {
                error = 0;
            }
            else if (error == EAGAIN) {
                error = ETIMEDOUT;
            }
        }
    }
    lingerd_drop(&link, 0);
    answer[length] = '\0';
    if (!error && length == 0) {
        error = EPROTO;     /* one that was older hangs up */
    }
    errno = error;
    return error ? NULL : answer;
}

/** Why there is no answer. */
static const char *status_why(apr_pool_t *p, int error)
{
    char text[128];

    return apr_psprintf(p, "lingerd at %s.2 does not answer: %s",
                        config_of(ap_server_conf)->path,
                        error == EPROTO ? "it is an older one, or ends"
                        : apr_strerror(error, text, sizeof(text)));
}

/** The number of a counter in the table, if it is there. */
static int status_find(const char *table, const char *name, apr_int64_t *number)
{
    apr_size_t length = strlen(name);
    const char *line;

    for (line = table; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, length) == 0 && line[length] == ' ') {
            *number = apr_atoi64(line + length + strspn(line + length, " "));
            return 1;
        }
    }
    return 0;
}

/* ---- In the page of mod_status ------------------------------------------- */

static void status_section(request_rec *r, const char *table, int error)
{
    apr_int64_t number;
    apr_size_t i;

    ap_rputs("<hr />\n<h2>Connections and lingerd</h2>\n<dl>\n", r);
    if (table) {
        ap_rputs("<dt>With lingerd now: ", r);
        for (i = 0; i < STATUS_GAUGES; i++) {
            if (status_find(table, status_gauges[i].name, &number)) {
                ap_rprintf(r, "%s%" APR_INT64_T_FMT " %s", i ? ", " : "",
                           number, status_gauges[i].text);
            }
        }
        ap_rputs("</dt>\n", r);
    }
    else {
        ap_rvputs(r, "<dt>", ap_escape_html(r->pool, status_why(r->pool, error)),
                  "</dt>\n", NULL);
    }
    for (i = 0; i < STATUS_COUNTS; i++) {
        ap_rprintf(r, "<dt>%" APR_UINT64_T_FMT " %s</dt>\n", status_of(i),
                   status_names[i].text);
    }
    ap_rputs("</dl>\n", r);
}

static void status_lines(request_rec *r, const char *table)
{
    apr_int64_t number;
    apr_size_t i;

    ap_rprintf(r, "LingerdReachable: %d\n", table != NULL);
    for (i = 0; table && i < STATUS_GAUGES; i++) {
        if (status_find(table, status_gauges[i].name, &number)) {
            ap_rprintf(r, "%s: %" APR_INT64_T_FMT "\n", status_gauges[i].key,
                       number);
        }
    }
    for (i = 0; i < STATUS_COUNTS; i++) {
        ap_rprintf(r, "Lingerd%s: %" APR_UINT64_T_FMT "\n",
                   status_names[i].key, status_of(i));
    }
}

static int status_hook(request_rec *r, int flags)
{
    const char *table;

    if (!shared_counts()) {
        return DECLINED;    /* there is nothing to count */
    }
    table = status_ask(r->pool, LINGERD_TABLE);
    if (flags & AP_STATUS_SHORT) {
        status_lines(r, table);
    }
    else {
        status_section(r, table, errno);
    }
    return OK;
}

/* ---- The handler ------------------------------------------------------------ */

/** Apache's own, beside the daemon's */
static void status_metrics(request_rec *r, int is_up)
{
    static const char *const heads[STATUS_COUNTS] = {
        "# HELP mod_lingerd_given_total Connections that Apache's workers have"
        " handed over.\n# TYPE mod_lingerd_given_total counter\n",
        NULL, NULL,
        "# HELP mod_lingerd_returned_total Parked connections that came back"
        " with a request.\n# TYPE mod_lingerd_returned_total counter\n",
        "# HELP mod_lingerd_kept_total Connections that workers lingered"
        " themselves.\n# TYPE mod_lingerd_kept_total counter\n",
        NULL
    };
    int i;

    ap_rprintf(r, "# HELP mod_lingerd_up Whether lingerd answers.\n"
               "# TYPE mod_lingerd_up gauge\nmod_lingerd_up %d\n", is_up);
    for (i = 0; i < STATUS_COUNTS; i++) {
        if (heads[i]) {
            ap_rputs(heads[i], r);
        }
        ap_rprintf(r, "mod_lingerd_%s %" APR_UINT64_T_FMT "\n",
                   status_names[i].label, status_of(i));
    }
}

/** Whether a form is asked for: ?json, and for those who can only have a value,
 *  ?json=1 */
static int status_is_asked(const request_rec *r, const char *form)
{
    apr_size_t length = strlen(form);

    return r->args && strncmp(r->args, form, length) == 0
           && (r->args[length] == '\0' || r->args[length] == '=');
}

static int status_handler(request_rec *r)
{
    lingerd_form form = LINGERD_TABLE;
    const char *accept, *answer;
    int error;

    if (!r->handler || strcmp(r->handler, STATUS_HANDLER) != 0) {
        return DECLINED;
    }
    r->allowed = AP_METHOD_BIT << M_GET;
    if (r->method_number != M_GET) {
        return HTTP_METHOD_NOT_ALLOWED;
    }
    /* What scrapes says which version of the format it knows. */
    accept = apr_table_get(r->headers_in, "Accept");
    if (status_is_asked(r, "prometheus")
        || (!r->args && accept && ap_strstr_c(accept, "version=0.0.4"))) {
        form = LINGERD_PROMETHEUS;
    }
    else if (status_is_asked(r, "json")) {
        form = LINGERD_JSON;
    }
    ap_set_content_type(r, form == LINGERD_JSON ? "application/json"
                           : form == LINGERD_PROMETHEUS
                           ? "text/plain; version=0.0.4; charset=utf-8"
                           : "text/plain; charset=utf-8");
    apr_table_setn(r->headers_out, "Cache-Control", "no-store");
    answer = status_ask(r->pool, form);
    error = errno;
    if (!answer && form != LINGERD_PROMETHEUS) {
        ap_log_rerror(APLOG_MARK, APLOG_ERR, 0, r, "%s",
                      status_why(r->pool, error));
        return HTTP_SERVICE_UNAVAILABLE;
    }
    if (r->header_only) {
        return OK;
    }
    if (answer) {
        ap_rputs(answer, r);
    }
    if (form == LINGERD_PROMETHEUS && shared_counts()) {
        status_metrics(r, answer != NULL);
    }
    return OK;
}

static void status_register_hooks(void)
{
    APR_OPTIONAL_HOOK(ap, status_hook, status_hook, NULL, NULL,
                      APR_HOOK_MIDDLE);
    ap_hook_handler(status_handler, NULL, NULL, APR_HOOK_MIDDLE);
}
