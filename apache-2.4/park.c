/*
 * SPDX-License-Identifier: BSD-3-Clause
 *
 * The part of mod_lingerd that has lingerd(8) wait for clients: for the next
 * request of a connection that is kept alive, and for the head of the first
 * one.  mod_lingerd.c includes it, as it does spool.c.
 *
 * Prefork sets how its listeners accept, and no module has a say in that.  So
 * what comes back does so through a listener of Apache's: a Unix socket beside
 * lingerd's, at the end of its list.  Whichever worker accepts there is given a
 * client's connection by lingerd, puts it in the place of lingerd's, and goes
 * on as if it had accepted it from the network.
 *
 * There is one moment in which a connection can go: the response is written,
 * and nothing of the next request has been read.  As only whoever reads the
 * requests knows of it, the loop around them is here, in the place of the one in
 * mod_http, for connections that may be parked.
 *
 * Whatever keeps something between two requests that is in this process only
 * (TLS, for one) keeps its worker, too.  So does all, while lingerd is away,
 * hangs, or is one that does not park.
 *
 * What it must not know: how lingerd is reached, see give_parked(), how long it
 * takes, and what a message looks like.
 */

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <poll.h>
#include <unistd.h>

/** So many connections may be on their way back; lingerd has the others. */
#define PARK_BACKLOG 256

/** How long to wait for what is to come over a way back, in milliseconds */
#define PARK_BACK_WITHIN 1000

/** How long to wait for a client here, if that is worth it, in milliseconds */
#define PARK_WAIT 1

/** How long a worker waits for lingerd that would wait for a head, in
 *  milliseconds */
#define PARK_MOMENT 100

/** How often to try again, whatever happens, while lingerd takes none */
#define PARK_AGAIN apr_time_from_sec(1)

/** How long a client may have a worker for itself that others wait for */
#define PARK_STAY apr_time_from_msec(100)

/** How much of a request to look at; a longer head is read at once. */
#define PARK_PEEK 8192

/** Listeners that others may wait at, beyond which nobody is asked for */
#define PARK_LISTENERS 16

/** Without it mod_reqtimeout has 20 s, 40 at most, and 500 bytes a second. */
#define PARK_HEAD_DIRECTIVE "RequestReadTimeout"
#define PARK_HEAD_INITIAL 20
#define PARK_HEAD_MOST 40
#define PARK_HEAD_RATE 500

/** What is to be waited for no longer is waited for so long. */
#define PARK_NO_TIME apr_time_from_msec(1)

/** What outlives a restart.  Who changes this changes the key, too. */
typedef struct {
    /** The way back, or NULL.  It is among ap_listeners but when these are
     *  read anew. */
    ap_listen_rec *listener;
    char *path;
    /** The hand-off socket's */
    char *beside;
    /** Which file it is there, made when, and whose to remove */
    dev_t device;
    ino_t file;
    time_t made;
    pid_t parent;
} park_retained;

#define PARK_KEY "mod_lingerd LingerdPark 3"

/** A hexadecimal number of 12 digits follows. */
#define PARK_NAME "apache-"
#define PARK_NAME_SIZE (sizeof(PARK_NAME) + 12)

/** What is told once, by bit; see link_complaint.told */
typedef enum {
    PARK_TOLD_FILTER = 1,
    PARK_TOLD_PROTOCOL = 2,
    PARK_TOLD_PROXY = 4,
    PARK_TOLD_LOGIN = 8
} park_told;

/** What goes with a connection and comes back; no longer than that.  Who changes
 *  it changes the mark, too, as it may come back to a newer module. */
typedef struct {
    unsigned char mark[4];
    /** Requests so far */
    apr_int32_t keepalives;
    /** Of a head: since when it is waited for */
    apr_time_t since;
} park_own;

typedef char park_own_fits[sizeof(park_own) <= LINGERD_OWN ? 1 : -1];

static const unsigned char park_mark[4] = { 'A', 'P', '2', 1 };

/** How long a head may take, in microseconds; see RequestReadTimeout.
 *  0: no limit. */
typedef struct park_patience {
    apr_interval_time_t initial, most, of_byte;
} park_patience;

/** Of a child, which serves one connection at a time */
static struct {
    /** Whether connections can come back */
    int active;
    char name[PARK_NAME_SIZE];
    /** mod_remoteip, or NULL */
    module *remoteip;
    /** Whether to wait for a client here */
    luck kept, fresh;
    /** The connection at hand, if it came over the way back */
    apr_socket_t *socket;
    /** Whether it brought none */
    int is_none;
    /** When its head is late, if it is not read yet */
    apr_time_t late_at;
    /** Whether the client has said something that is not read yet */
    int says;
    lingerd_parked back;
    park_own own;
} park;

/** Hand over; see lingerd_park().  Never waits. */
static int give_parked(int sock, const char *name, const lingerd_parked *parked);

/** The descriptor over which lingerd says that it has one more, or -1 */
static int parking_link(void);

/** Whether to say something of which all children know by this bit */
static int tell_once(apr_uint32_t bit);

static int tcp_socket(conn_rec *c);

/** Reads a head whose time is up */
static ap_filter_rec_t *park_late;

/* ---- The way back -------------------------------------------------------- */

/** The same for each Apache of this configuration, and for no other one: what
 *  an earlier one has parked comes back to the next. */
static void park_set_name(void)
{
    const char *words[2];
    apr_uint64_t hash = APR_UINT64_C(14695981039346656037);
    int i;

    words[0] = ap_server_root;
    words[1] = ap_pid_fname;
    for (i = 0; i < 2; i++) {
        const char *c = words[i] ? words[i] : "";

        do {    /* FNV-1a, with the NUL */
            hash = (hash ^ (unsigned char)*c) * APR_UINT64_C(1099511628211);
        } while (*c++);
    }
    apr_snprintf(park.name, sizeof(park.name), PARK_NAME "%06x%06x",
                 (unsigned)(hash >> 40), (unsigned)(hash >> 16) & 0xffffff);
}

/** Whether somebody wants it. */
static int park_is_wanted(const server_rec *s)
{
    for (; s; s = s->next) {
        if (config_of(s)->park > 0) {
            return 1;
        }
    }
    return 0;
}

/** Whether heads are to wait where nothing is parked, and nowhere else. */
static int park_head_is_alone(const server_rec *s)
{
    int is_alone = 0;

    for (; s; s = s->next) {
        if (config_of(s)->head > 0) {
            if (config_of(s)->park > 0) {
                return 0;
            }
            is_alone = 1;
        }
    }
    return is_alone;
}

/** Why it cannot be, or NULL. */
static const char *park_obstacle(apr_pool_t *p)
{
    const ap_directive_t *d;

    if (strcmp(ap_show_mpm(), "prefork") != 0) {
        return apr_pstrcat(p, "the MPM is ", ap_show_mpm(),
                           ", and it is for prefork", NULL);
    }
    for (d = ap_conftree; d; d = d->next) {
        if (strcasecmp(d->directive, "ListenCoresBucketsRatio") == 0
            && atoi(d->args) > 0) {
            return "it does not go with ListenCoresBucketsRatio";
        }
    }
#if AP_MODULE_MAGIC_AT_LEAST(20120211, 76)
    if (ap_unixd_mpm_get_retained_data()->was_graceful
        && ap_unixd_mpm_get_retained_data()->num_buckets > 1) {
        return "it does not go with ListenCoresBucketsRatio, which holds until "
               "Apache is stopped and started";
    }
#endif
#if !APR_HAVE_SOCKADDR_UN
    return "this APR has no Unix sockets";
#else
    return NULL;
#endif
}

/** Whether somebody else listens there. */
static int park_is_anothers(const struct sockaddr_un *addr)
{
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    int listens = 0;

    if (fd >= 0 && fcntl(fd, F_SETFL, O_NONBLOCK) == 0) {
        listens = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) == 0
                  || errno == EAGAIN || errno == EINPROGRESS;
    }
#ifdef SO_PEERCRED
    if (listens) {
        /* Not one of this Apache, of a module that it has loaded before. */
        struct ucred who;
        socklen_t size = sizeof(who);

        listens = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &size) != 0
                  || who.pid != getpid();
    }
#endif
    if (fd >= 0) {
        close(fd);
    }
    return listens;
}

/** What is there from an earlier time is in the way; anything else stays. */
static int park_make_room(const struct sockaddr_un *addr)
{
    struct stat file;

    if (lstat(addr->sun_path, &file) != 0) {
        return errno == ENOENT ? 0 : -1;
    }
    if (!S_ISSOCK(file.st_mode)) {
        errno = EEXIST;
        return -1;
    }
    if (park_is_anothers(addr)) {
        errno = EADDRINUSE;
        return -1;
    }
    return unlink(addr->sun_path);
}

/** A socket that listens there, or -1. */
static int park_listen(const struct sockaddr_un *addr, mode_t mode)
{
    mode_t before;
    int fd, rc, error;

    if (park_make_room(addr) != 0) {
        return -1;
    }
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0) {
        return -1;
    }
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    before = umask(0777 & ~mode);
    rc = bind(fd, (const struct sockaddr *)addr, sizeof(*addr));
    error = errno;
    umask(before);
    if (rc == 0) {
        rc = listen(fd, PARK_BACKLOG);
        error = errno;
    }
    if (rc != 0) {
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

/** As whom lingerd runs that Apache starts itself, see command_line(); or -1. */
static uid_t park_own_user(apr_pool_t *p, const apr_array_header_t *command)
{
    const unixd_config_rec *apache = &ap_unixd_config;
    const char *name = NULL;
    char *end;
    unsigned long number;
    uid_t uid;
    gid_t gid;
    int i;

    if (!command || geteuid() != 0) {
        return (uid_t)-1;
    }
    for (i = 1; i < command->nelts; i++) {
        const char *word = APR_ARRAY_IDX(command, i, const char *);

        if (word[0] == '-' && word[1] == 'u') {
            name = word[2] ? word + 2
                 : i + 1 < command->nelts
                 ? APR_ARRAY_IDX(command, i + 1, const char *) : NULL;
        }
    }
    if (!name) {
        return apache->user_id != 0 ? apache->user_id : (uid_t)-1;
    }
    name = apr_pstrndup(p, name, strcspn(name, ":"));
    number = strtoul(name, &end, 10);
    if (end != name && !*end) {
        return (uid_t)number;
    }
    return apr_uid_get(&uid, &gid, name, p) == APR_SUCCESS ? uid : (uid_t)-1;
}

/** Have the directory that such a lingerd makes, which is to start later.  What
 *  is given to it is what was made, whatever has that name by now. */
static int park_make_directory(apr_pool_t *p, const char *path, uid_t uid)
{
    char *directory = ap_make_dirstr_parent(p, path);
    apr_size_t length = strlen(directory);
    struct stat made;
    mode_t before;
    int fd, rc;

    while (length > 1 && directory[length - 1] == '/') {
        directory[--length] = '\0';
    }
    before = umask(022);
    rc = mkdir(directory, 0755);
    umask(before);
    if (rc != 0) {
        return errno == EEXIST ? 0 : -1;
    }
    if (uid == (uid_t)-1) {
        return 0;
    }
    fd = open(directory, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0) {
        return -1;
    }
    rc = fstat(fd, &made);
    if (rc == 0 && made.st_uid != geteuid()) {
        errno = EPERM;
        rc = -1;
    }
    if (rc == 0) {
        rc = fchown(fd, uid, (gid_t)-1);
    }
    close(fd);
    return rc;
}

/**
 * Give the way back to whoever is lingerd, where its directory is root's alone:
 * to the owner of the control socket there; if there is none, as whom lingerd
 * is to run.  Elsewhere nothing is to be done, nor where neither is known: once
 * it is, park_monitor() does it.
 * @return 0, or -1 with errno
 */
static int park_give_to_lingerd(apr_pool_t *p, const char *back,
                                const char *path, uid_t uid)
{
    const char *of_back = apr_filepath_name_get(back);
    const char *ctl = apr_pstrcat(p, apr_filepath_name_get(path), ".ctl",
                                  NULL);
    int directory, error, rc = 0;
    struct stat of, file;

    if (geteuid() != 0) {
        return 0;
    }
    /* Whatever has its name later, it is this one that was looked at. */
    directory = open(ap_make_dirstr_parent(p, back), O_RDONLY | O_DIRECTORY);
    if (directory < 0) {
        return 0;
    }
    if (fstat(directory, &of) == 0 && of.st_uid == 0
        && !(of.st_mode & (S_IWGRP | S_IWOTH))) {
        if (fstatat(directory, ctl, &file, AT_SYMLINK_NOFOLLOW) == 0) {
            uid = file.st_uid;
        }
        if (uid != (uid_t)-1
            && (fstatat(directory, of_back, &file, AT_SYMLINK_NOFOLLOW) != 0
                || file.st_uid != uid)) {
            rc = fchownat(directory, of_back, uid, (gid_t)-1,
                          AT_SYMLINK_NOFOLLOW);
        }
    }
    error = errno;
    close(directory);
    errno = error;
    return rc;
}

/**
 * The same, of which only who may make sockets in that directory may make use,
 * which lingerd commonly may.  Where the directory is root's alone it is for
 * whoever is lingerd.
 *
 * root does it with the rights of whose the directory is, and not with its own:
 * that one could lead it elsewhere.
 * @param path The hand-off socket's
 * @param lingerd As whom lingerd is to run, or -1
 */
static int park_listen_as_owner(apr_pool_t *p, const struct sockaddr_un *addr,
                                const char *path, uid_t lingerd)
{
    const char *directory = ap_make_dirstr_parent(p, addr->sun_path);
    uid_t uid = geteuid();
    gid_t gid = getegid();
    struct stat of;
    int fd = -1, error = EPERM;

    if (stat(directory, &of) != 0) {
        return -1;
    }
    if ((uid == 0 || uid == of.st_uid)
        && (uid != 0 || (setegid(of.st_gid) == 0 && seteuid(of.st_uid) == 0))) {
        fd = park_listen(addr, of.st_mode & S_IWGRP ? 0660 : 0600);
        error = errno;
    }
    else if (uid == 0) {
        error = errno;
    }
    if (uid == 0 && (seteuid(uid) != 0 || setegid(gid) != 0)) {
        abort();    /* nobody may go on with half of root's rights */
    }
    if (fd >= 0
        && ((uid != 0 && gid != of.st_gid && of.st_mode & S_IWGRP
             && lchown(addr->sun_path, (uid_t)-1, of.st_gid) != 0)
            || park_give_to_lingerd(p, addr->sun_path, path, lingerd) != 0)) {
        error = errno;
        (void)unlink(addr->sun_path);
        close(fd);
        fd = -1;
    }
    errno = error;
    return fd;
}

/** Apache's view of it.  It is in the pool of the process, as other listeners
 *  are, and takes no part in opening these. */
static ap_listen_rec *park_listener(apr_pool_t *p, int fd,
                                    struct sockaddr_un *addr)
{
    ap_listen_rec *listener = apr_pcalloc(p, sizeof(*listener));
    apr_sockaddr_t *bound = apr_pcalloc(p, sizeof(*bound));
    apr_os_sock_info_t info;

    memset(&info, 0, sizeof(info));
    info.os_sock = &fd;
    info.local = (struct sockaddr *)addr;
    info.family = AF_UNIX;
    info.type = SOCK_STREAM;
    if (apr_os_sock_make(&listener->sd, &info, p) != APR_SUCCESS) {
        return NULL;
    }
    (void)apr_socket_opt_set(listener->sd, APR_SO_NONBLOCK, 1);
    bound->pool = p;
    bound->hostname = apr_pstrdup(p, addr->sun_path);
    bound->family = AF_UNIX;
    bound->salen = sizeof(*addr);
    bound->ipaddr_ptr = bound->hostname;
    bound->ipaddr_len = (int)strlen(bound->hostname);
    listener->bind_addr = bound;
    listener->active = 1;
    /* Apache wakes its children by a request to the first of "http". */
    listener->protocol = apr_pstrdup(p, "lingerd");
    return listener;
}

/** Whether the file there is the one that was made for it: the number of one that
 *  has gone may have become another's. */
static int park_is_there(const park_retained *kept)
{
    struct stat file;

    return lstat(kept->path, &file) == 0 && file.st_dev == kept->device
           && file.st_ino == kept->file && file.st_mtime == kept->made;
}

/** Close it, and remove its file if that is still the one. */
static void park_give_up(park_retained *kept)
{

    if (!kept->listener) {
        return;
    }
    if (kept->listener->active) {
        apr_socket_close(kept->listener->sd);
    }
    if (park_is_there(kept)) {
        (void)unlink(kept->path);
    }
    kept->listener = NULL;
}

/** Have a way back, the one that there is or a new one. */
static int park_make_way(apr_pool_t *process, apr_pool_t *p,
                         park_retained *kept, const char *path,
                         const apr_array_header_t *command)
{
    uid_t lingerd = park_own_user(p, command);
    struct sockaddr_un addr;
    struct stat file;
    int fd, error;

    if (lingerd_way_back(&addr, path, park.name) != 0) {
        return errno;
    }
    if (kept->listener && kept->listener->active
        && strcmp(kept->path, addr.sun_path) == 0 && park_is_there(kept)) {
        /* It may be another user's by now. */
        if (park_give_to_lingerd(p, addr.sun_path, path, lingerd) == 0) {
            return 0;
        }
        error = errno;
        park_give_up(kept);
        return error;
    }
    park_give_up(kept);
    if (command && park_make_directory(p, path, lingerd) != 0) {
        return errno;
    }
    fd = park_listen_as_owner(p, &addr, path, lingerd);
    if (fd < 0) {
        return errno;
    }
    if (lstat(addr.sun_path, &file) != 0) {
        close(fd);
        return ENOENT;
    }
    kept->listener = park_listener(process, fd, &addr);
    if (!kept->listener) {
        close(fd);
        return ENOMEM;
    }
    kept->path = apr_pstrdup(process, addr.sun_path);
    kept->beside = apr_pstrdup(process, path);
    kept->device = file.st_dev;
    kept->file = file.st_ino;
    kept->made = file.st_mtime;
    kept->parent = getpid();
    return 0;
}

/** Apache's listeners are about to be read anew: it closes those that it does
 *  not find among them, and this one is in no file. */
static int park_pre_config(apr_pool_t *p, apr_pool_t *plog, apr_pool_t *ptemp)
{
    park_retained *kept = ap_retained_data_get(PARK_KEY);
    ap_listen_rec **at;

    (void)p;
    (void)plog;
    (void)ptemp;
    for (at = &ap_listeners; *at; at = &(*at)->next) {
        if (kept && *at == kept->listener) {
            *at = (*at)->next;
            kept->listener->next = NULL;
            break;
        }
    }
    return OK;
}

/** The configuration goes; remove the way back if Apache ends with that.  Its
 *  children come here, too. */
static apr_status_t park_forget(void *data)
{
    park_retained *kept = data;

    if (kept->parent == getpid()
        && ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_EXITING) {
        park_give_up(kept);
    }
    return APR_SUCCESS;
}

/** Why LingerdPark has no effect, if it has none that it should have.  Apache
 *  opens its log after it has looked at its listeners, and may have no other
 *  place by then. */
static struct {
    const char *reason;
    int level, error;
} park_complaint;

static void park_complain(int level, int error, const char *reason)
{
    park_complaint.reason = reason;
    park_complaint.level = level;
    park_complaint.error = error;
}

/** Once all is read: have a way back, if that is wanted.  The first time that
 *  the configuration is read may be all there is, as with -t. */
static int park_check_config(apr_pool_t *p, apr_pool_t *plog,
                             apr_pool_t *ptemp, server_rec *s)
{
    park_retained *kept = ap_retained_data_get(PARK_KEY);
    const char *chroot_dir = ap_unixd_config.chroot_dir;
    const char *path = config_of(s)->path;
    const char *obstacle;
    ap_listen_rec **at;
    int error;

    (void)plog;
    if (ap_state_query(AP_SQ_MAIN_STATE) == AP_SQ_MS_CREATE_PRE_CONFIG) {
        return OK;
    }
    if (!kept) {
        kept = ap_retained_data_create(PARK_KEY, sizeof(*kept));
    }
    park_complaint.reason = NULL;
    if (!park_is_wanted(s) || !ap_listeners) {
        park_give_up(kept);
        return OK;
    }
    obstacle = park_obstacle(ptemp);
    if (obstacle) {
        park_give_up(kept);
        park_complain(APLOG_WARNING, 0, obstacle);
        return OK;
    }
    if (chroot_dir) {
        path = apr_pstrcat(p, chroot_dir, path, NULL);
    }
    park_set_name();
    error = park_make_way(s->process->pool, ptemp, kept, path,
                          config_of(s)->command);
    if (error) {
        path = apr_pstrcat(p, "cannot listen at ", path, ".back.", park.name,
                           ", beside lingerd, where connections are to come "
                           "back", error == EADDRINUSE
                           ? ".  Another Apache with the same ServerRoot and "
                             "PidFile does: give one of them another PidFile"
                           : error == ENOENT
                           ? ".  Start lingerd, which makes that folder, and "
                             "then Apache"
                           : "", NULL);
        park_complain(APLOG_ERR, error, path);
        return OK;
    }
    for (at = &ap_listeners; *at; at = &(*at)->next) {
    }
    *at = kept->listener;
    apr_pool_cleanup_register(p, kept, park_forget, apr_pool_cleanup_null);
    return OK;
}

/** Now and then, in the parent: lingerd may run as another user by now. */
static void park_monitor(apr_pool_t *p)
{
    park_retained *kept = ap_retained_data_get(PARK_KEY);

    if (kept && kept->listener && kept->parent == getpid()
        && park_is_there(kept) && apr_pool_create(&p, p) == APR_SUCCESS) {
        (void)park_give_to_lingerd(p, kept->path, kept->beside, (uid_t)-1);
        apr_pool_destroy(p);
    }
}

static void park_child_init(void)
{
    const park_retained *kept = ap_retained_data_get(PARK_KEY);
    const ap_listen_rec *listener;

    for (listener = ap_listeners; listener; listener = listener->next) {
        park.active |= kept && listener == kept->listener;
    }
    park.remoteip = ap_find_linked_module("mod_remoteip.c");
}

/* ---- A connection comes back --------------------------------------------- */

/** Have an address as accept(2) leaves it for a socket of its own family. */
static void park_mend_address(apr_sockaddr_t *sa, apr_pool_t *p)
{
    sa->pool = p;
    sa->hostname = sa->servname = NULL;
    sa->next = NULL;
    sa->family = sa->sa.sin.sin_family;
    if (sa->family == APR_INET) {
        sa->salen = sizeof(sa->sa.sin);
        sa->addr_str_len = 16;
        sa->ipaddr_ptr = &sa->sa.sin.sin_addr;
        sa->ipaddr_len = sizeof(sa->sa.sin.sin_addr);
    }
#if APR_HAVE_IPV6
    else if (sa->family == APR_INET6) {
        sa->salen = sizeof(sa->sa.sin6);
        sa->addr_str_len = 46;
        sa->ipaddr_ptr = &sa->sa.sin6.sin6_addr;
        sa->ipaddr_len = sizeof(sa->sa.sin6.sin6_addr);
    }
#endif
}

/** One of nowhere, for a connection that is none. */
static void park_clear_address(apr_sockaddr_t *sa, apr_pool_t *p)
{
    memset(&sa->sa, 0, sizeof(sa->sa));
    sa->sa.sin.sin_family = AF_INET;
    sa->port = 0;
    park_mend_address(sa, p);
}

static int park_is_stream(int sock)
{
    int type = 0;
    socklen_t size = sizeof(type);

    return getsockopt(sock, SOL_SOCKET, SO_TYPE, &type, &size) == 0
           && type == SOCK_STREAM;
}

static int park_is_of_tcp(const apr_sockaddr_t *sa)
{
#if APR_HAVE_IPV6
    if (sa->family == APR_INET6) {
        return 1;
    }
#endif
    return sa->family == APR_INET;
}

/** Take what lingerd brings, for which its message may still have to come: a
 *  connection, or -1. */
static int park_take_back(int link)
{
    struct pollfd readable;
    int sock = lingerd_take_back(link, &park.back);

    if (sock < 0 && errno == EAGAIN) {
        readable.fd = link;
        readable.events = POLLIN;
        (void)poll(&readable, 1, PARK_BACK_WITHIN);
        sock = lingerd_take_back(link, &park.back);
    }
    if (sock < 0) {
        return -1;
    }
    memcpy(&park.own, park.back.own, sizeof(park.own));
    if (memcmp(park.own.mark, park_mark, sizeof(park_mark)) != 0
        || park.own.keepalives < 0 || !park_is_stream(sock)) {
        close(sock);
        return -1;
    }
    return sock;
}

/**
 * Runs before core's, which makes the connection of what is there then.  Of
 * lingerd's a client's becomes; or one of nobody, which park_pre_connection()
 * has closed.
 */
static conn_rec *park_create_connection(apr_pool_t *p, server_rec *s,
                                        apr_socket_t *socket, long id,
                                        void *sbh, apr_bucket_alloc_t *alloc)
{
    apr_sockaddr_t *remote, *local;
    apr_os_sock_t link, sock;

    (void)s;
    (void)id;
    (void)alloc;
    if (!park.active || !sbh) {     /* one of mod_proxy's own has none */
        return NULL;
    }
    park.socket = NULL;
    if (apr_socket_addr_get(&remote, APR_REMOTE, socket) != APR_SUCCESS
        || remote->family != AF_UNIX
        || apr_socket_addr_get(&local, APR_LOCAL, socket) != APR_SUCCESS
        || apr_os_sock_get(&link, socket) != APR_SUCCESS) {
        return NULL;
    }
    park.socket = socket;
    sock = park_take_back(link);
    park.is_none = sock < 0;
    if (park.is_none) {
        park_clear_address(remote, p);
        park_clear_address(local, p);
        return NULL;
    }
    status_note(STATUS_RETURNED);
    (void)apr_os_sock_put(&socket, &sock, p);
    close(link);
    /* What fails here core finds out, too. */
    if (apr_socket_addr_get(&local, APR_LOCAL, socket) == APR_SUCCESS) {
        park_mend_address(local, p);
    }
    if (apr_socket_addr_get(&remote, APR_REMOTE, socket) == APR_SUCCESS) {
        park_mend_address(remote, p);
        if (!park_is_of_tcp(remote)) {
            park.is_none = 1;
            park_clear_address(remote, p);
            park_clear_address(local, p);
        }
    }
    return NULL;
}

static int park_has_come_back(const void *socket)
{
    return park.active && park.socket && socket == park.socket;
}

/** The first of its kind.  Nobody else need know of a connection that is none:
 *  Apache closes what is aborted. */
static int park_pre_connection(conn_rec *c, void *socket)
{
    if (c->master || !park_has_come_back(socket)) {
        return DECLINED;
    }
    if (park.is_none) {
        ap_set_core_module_config(c->conn_config, socket);
        c->aborted = 1;
        return DONE;
    }
    c->keepalives = park.own.keepalives;
    return DECLINED;
}

/* ---- Which connections may go -------------------------------------------- */

static int park_is_among(const char *name, const char *const *names)
{
    while (*names && strcasecmp(name, *names) != 0) {
        names++;
    }
    return *names != NULL;
}

static void park_decline(conn_rec *c, park_told what, const char *kind,
                         const char *name)
{
    if (tell_once(what)) {
        ap_log_cerror(APLOG_MARK, APLOG_NOTICE, 0, c,
                      "not parked, as what is between two requests may not "
                      "all be in the connection: %s%s", kind, name);
    }
}

/** Whether a filter is among those of which it is known that they keep nothing
 *  between two requests.  Each is looked at twice a request.  There may be two
 *  of a name, for input and for output. */
static int park_knows_filter(const ap_filter_rec_t *filter)
{
    static const char *const names[] = {
        "core_in", "core", "reqtimeout", "log_input_output", "lingerd_spool",
        "lingerd_late", NULL
    };
    static const ap_filter_rec_t *known[2 * sizeof(names) / sizeof(names[0])];
    int i = 0;

    while (known[i] && known[i] != filter) {
        i++;
    }
    if (!known[i] && park_is_among(filter->name, names)) {
        known[i] = filter;
    }
    return known[i] == filter;
}

static int park_knows_filters(conn_rec *c, const ap_filter_t *f)
{
    for (; f; f = f->next) {
        if (!park_knows_filter(f->frec)) {
            park_decline(c, PARK_TOLD_FILTER, "the filter ", f->frec->name);
            return 0;
        }
    }
    return 1;
}

/** Whether nothing of a connection is in this process only, between two
 *  requests. */
static int park_may_go(conn_rec *c)
{
    const char *protocol = ap_get_protocol(c);

    if (strcasecmp(protocol, AP_PROTOCOL_HTTP1) != 0) {
        park_decline(c, PARK_TOLD_PROTOCOL, "the protocol ", protocol);
        return 0;
    }
    if (park.remoteip && ap_get_module_config(c->conn_config, park.remoteip)) {
        park_decline(c, PARK_TOLD_PROXY, "RemoteIPProxyProtocol", "");
        return 0;
    }
    return park_knows_filters(c, c->input_filters)
           && park_knows_filters(c, c->output_filters);
}

/** Whether a request logs in its connection, and not itself */
static int park_is_login(request_rec *r)
{
    static const char *const fields[] = {
        "Authorization", "Proxy-Authorization"
    };
    int i;

    for (i = 0; i < 2; i++) {
        const char *value = apr_table_get(r->headers_in, fields[i]);

        if (value && (strncasecmp(value, "NTLM", 4) == 0
                      || strncasecmp(value, "Negotiate", 9) == 0)) {
            park_decline(r->connection, PARK_TOLD_LOGIN, fields[i],
                         ": NTLM or Negotiate");
            return 1;
        }
    }
    return 0;
}

/* ---- A connection goes --------------------------------------------------- */

/** Whether lingerd may come back that way: where Apache was here first it is
 *  root's until park_monitor() finds lingerd.  Once it may it does. */
static int park_is_given(const conn_rec *c)
{
    static int is_given;
    const char *path = config_of(c->base_server)->path;
    struct stat ctl, back;

    if (is_given) {
        return 1;
    }
    if (lstat(apr_pstrcat(c->pool, path, ".ctl", NULL), &ctl) != 0) {
        /* Who may not look there leaves it to lingerd, as without a look. */
        is_given = errno != ENOENT;
    }
    else {
        is_given = lstat(apr_pstrcat(c->pool, path, ".back.", park.name, NULL),
                         &back) != 0
                   || back.st_uid != 0 || back.st_mode & S_IWGRP
                   || ctl.st_uid == 0;
    }
    return is_given;
}

/** @return Whether lingerd has it.  Apache closes our own copy then. */
static int park_give(conn_rec *c, int sock, lingerd_kind kind,
                     apr_interval_time_t patience, apr_time_t since)
{
    lingerd_parked parked;
    park_own own;

    memset(&parked, 0, sizeof(parked));
    memset(&own, 0, sizeof(own));
    memcpy(own.mark, park_mark, sizeof(park_mark));
    own.keepalives = c->keepalives;
    own.since = since;
    memcpy(parked.own, &own, sizeof(own));
    parked.kind = kind;
    parked.patience = (unsigned long)apr_time_as_msec(patience);
    if (parked.patience == 0) {
        parked.patience = 1;
    }
    if (!park_is_given(c) || !give_parked(sock, park.name, &parked)) {
        return 0;
    }
    let_go(c);
    return 1;
}

/** Whether anybody else waits for a worker, or the client has said something:
 *  which of the two, after no longer than that many milliseconds. */
static int park_poll(int sock, int is_to_share, int *others)
{
    struct pollfd any[1 + PARK_LISTENERS];
    const ap_listen_rec *l;
    int count = 1, i, patience = PARK_WAIT;

    memset(any, 0, sizeof(any));
    any[0].fd = sock;
    any[0].events = POLLIN;
    for (l = is_to_share ? ap_listeners : NULL; l && count <= PARK_LISTENERS;
         l = l->next) {
        apr_os_sock_t fd;

        if (apr_os_sock_get(&fd, l->sd) == APR_SUCCESS && l->active) {
            any[count].fd = fd;
            any[count++].events = POLLIN;
        }
    }
    *others = 0;
    if (poll(any, count, patience) <= 0) {
        return 0;
    }
    for (i = 1; i < count; i++) {
        *others |= any[i].revents != 0;
    }
    park.says = any[0].revents != 0;
    return park.says;
}

/**
 * Whether a client is served on here, as it has said something by now.
 *
 * Many a client asks again at once, and to have that travel through lingerd
 * costs more than to wait for it.  Others think first, and to wait for them is
 * in vain: what the last ones did tells.  One that has had its share goes behind
 * those that wait for a worker.
 */
static int park_waits_here(luck *l, int sock, apr_time_t came)
{
    int is_to_share = apr_time_now() - came >= PARK_STAY;
    int others, says;

    if (!luck_looks(l)) {
        return 0;
    }
    says = park_poll(sock, is_to_share, &others);
    if (says || !others) {
        luck_note(l, says);
    }
    return says && !others;
}

/* ---- Heads --------------------------------------------------------------- */

/** What RequestReadTimeout says in a section, or in none. */
static void park_read_patience(apr_pool_t *p, const ap_directive_t *d,
                               park_patience *patience)
{
    for (; d; d = d->next) {
        const char *args = d->args;

        if (strcasecmp(d->directive, PARK_HEAD_DIRECTIVE) != 0) {
            continue;
        }
        while (*args) {
            const char *word = ap_getword_conf(p, &args);
            const char *rate = ap_strcasestr(word, ",minrate=");
            const char *most;

            if (strncasecmp(word, "header=", 7) != 0) {
                continue;
            }
            most = strchr(word, '-');
            patience->initial = apr_time_from_sec(atoi(word + 7));
            patience->most = most ? apr_time_from_sec(atoi(most + 1)) : 0;
            rate = rate ? rate + 9 : NULL;
            patience->of_byte = rate && atoi(rate) > 0
                                ? APR_USEC_PER_SEC / atoi(rate) : 0;
        }
    }
}

/** For how long Apache would wait for a head that comes in at an address. */
static void park_set_patience(apr_pool_t *p, server_rec *s, int reqtimeout)
{
    lingerd_config *conf = ap_get_module_config(s->module_config,
                                                &lingerd_module);
    park_patience *patience = apr_pcalloc(p, sizeof(*patience));
    const ap_directive_t *d;

    conf->head_patience = patience;
    patience->initial = s->timeout;
    if (!reqtimeout) {
        return;
    }
    patience->initial = apr_time_from_sec(PARK_HEAD_INITIAL);
    patience->most = apr_time_from_sec(PARK_HEAD_MOST);
    patience->of_byte = APR_USEC_PER_SEC / PARK_HEAD_RATE;
    park_read_patience(p, ap_conftree, patience);
    for (d = s->is_virtual ? ap_conftree : NULL; d; d = d->next) {
        if (strcasecmp(d->directive, "<VirtualHost") == 0 && s->defn_name
            && d->line_num == (int)s->defn_line_number
            && strcmp(d->filename, s->defn_name) == 0) {
            park_read_patience(p, d->first_child, patience);
        }
    }
    if (patience->initial == 0) {
        patience->initial = s->timeout;
        patience->most = patience->of_byte = 0;
    }
}

static void park_post_config(apr_pool_t *p, server_rec *s)
{
    int reqtimeout = ap_find_linked_module("mod_reqtimeout.c") != NULL;

    if (park_complaint.reason) {
        ap_log_error(APLOG_MARK, park_complaint.level, park_complaint.error, s,
                     "LingerdPark has no effect: %s", park_complaint.reason);
    }
    if (park_head_is_alone(s)) {
        ap_log_error(APLOG_MARK, APLOG_WARNING, 0, s,
                     "LingerdHead has no effect without LingerdPark On");
    }
    for (; s; s = s->next) {
        park_set_patience(p, s, reqtimeout);
    }
}

/** How long a head of which so many bytes are there may still take */
static apr_interval_time_t park_head_time(const conn_rec *c, apr_size_t bytes,
                                          apr_time_t since)
{
    const park_patience *patience = config_of(c->base_server)->head_patience;
    apr_interval_time_t all = patience->initial
                              + (apr_interval_time_t)bytes * patience->of_byte;
    apr_interval_time_t gone = apr_time_now() - since;

    if (patience->most > 0 && all > patience->most) {
        all = patience->most;
    }
    return all - (gone > 0 ? gone : 0);
}

/** Whether the client says nothing more, behind what there is to be read.
 *  Where the system does not tell it is waited for all the same. */
static int park_has_ended(int sock)
{
#ifdef POLLRDHUP
    struct pollfd client;

    client.fd = sock;
    client.events = POLLRDHUP;
    return poll(&client, 1, 0) > 0;
#else
    (void)sock;
    return 0;
#endif
}

/**
 * Whether all of a head is there; or nothing that could be waited for, as it is
 * more than can be seen, not HTTP of our time, or the end.
 * @param bytes How much there is of one that is not
 */
static int park_is_whole(int sock, apr_size_t *bytes)
{
    char head[PARK_PEEK];
    const char *begin, *line, *next;
    ssize_t n;

    do {
        n = recv(sock, head, sizeof(head) - 1, MSG_PEEK | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    *bytes = 0;
    if (n < 0) {
        return errno != EAGAIN && errno != EWOULDBLOCK;
    }
    *bytes = (apr_size_t)n;
    if (n == 0 || n == (ssize_t)sizeof(head) - 1
        || memchr(head, '\0', (size_t)n)) {
        return 1;
    }
    head[n] = '\0';
    begin = head + strspn(head, "\r\n");     /* Apache skips empty lines, too */
    line = strchr(begin, '\n');
    if (line && !ap_strstr_c(begin, "HTTP/")) {
        return 1;
    }
    for (; line; line = next) {
        next = strchr(line + 1, '\n');
        if (next == line + 1 || (next == line + 2 && line[1] == '\r')) {
            return 1;
        }
    }
    return park_has_ended(sock);
}

/** Whether a head that is looked at without being read comes in as a whole. */
static int park_has_room(int sock)
{
    int size = 0;
    socklen_t length = sizeof(size);

    return getsockopt(sock, SOL_SOCKET, SO_RCVBUF, &size, &length) == 0
           && size >= 4 * PARK_PEEK;
}

/** The same for a head: how long lingerd says nothing is no moment any more.
 *  That the client says something is no reason to stay, as it is not all. */
static int park_insist_on_head(conn_rec *c, int sock,
                               apr_interval_time_t left, apr_time_t since)
{
    static int in_vain;

    while (!park_give(c, sock, LINGERD_HEAD, left, since)) {
        struct pollfd link;

        link.fd = parking_link();
        link.events = POLLIN;
        if (link.fd < 0) {
            return 0;
        }
        /* One that hangs is waited for once. */
        if (poll(&link, 1, in_vain ? 0 : PARK_MOMENT) <= 0) {
            in_vain = 1;
            return 0;
        }
    }
    in_vain = 0;
    return 1;
}

/**
 * A head that was waited for in vain is read to where it ends, or until its time
 * is up.  Whoever reads it would else wait for each line of it as if it were the
 * first: a time-out of the socket lasts until the request line is there, and
 * mod_reqtimeout begins to count.  What that one does then is done here.
 */
static apr_status_t park_read_late(ap_filter_t *f, apr_bucket_brigade *bb,
                                   ap_input_mode_t mode, apr_read_type_e block,
                                   apr_off_t bytes)
{
    if (!park.late_at || block != APR_BLOCK_READ) {
        return ap_get_brigade(f->next, bb, mode, block, bytes);
    }
    for (;;) {
        apr_status_t rc = ap_get_brigade(f->next, bb, mode, APR_NONBLOCK_READ,
                                         bytes);
        apr_interval_time_t left = park.late_at - apr_time_now();
        struct pollfd client;

        if (!APR_STATUS_IS_EAGAIN(rc)
            && (rc != APR_SUCCESS || !APR_BRIGADE_EMPTY(bb))) {
            return rc;
        }
        if (left <= 0) {
            ap_log_cerror(APLOG_MARK, APLOG_INFO, 0, f->c,
                          "the head of a request was not whole in its time");
            apr_table_setn(f->c->notes, BRIEF_NOTE, "1");
            return APR_TIMEUP;
        }
        client.fd = tcp_socket(f->c);
        client.events = POLLIN;
        (void)poll(&client, 1, (int)apr_time_as_msec(left) + 1);
    }
}

/**
 * Before a head is read: whether it is handed over, as it is not whole.  One
 * whose time is up, Apache reads, and finds that out at once.
 */
static int park_head(conn_rec *c, apr_socket_t *socket, int sock)
{
    const lingerd_config *conf = config_of(c->base_server);
    apr_interval_time_t left;
    apr_time_t now, since;
    apr_size_t bytes;
    int back;

    if (conf->head <= 0 || conf->park <= 0) {
        return 0;
    }
    back = park_has_come_back(socket);
    now = since = apr_time_now();
    if ((back && park.back.kind == LINGERD_HEAD && !park.back.late)
        || park_is_whole(sock, &bytes)) {
        return 0;
    }
    if (back && park.back.kind == LINGERD_HEAD) {
        since = park.own.since;
    }
    else if (!back && bytes == 0 && park_waits_here(&park.fresh, sock, now)
             && park_is_whole(sock, &bytes)) {
        return 0;
    }
    left = park_head_time(c, bytes, since);
    if (left > 0 && park_has_room(sock)
        && park_insist_on_head(c, sock, left, since)) {
        return 1;
    }
    if (back && park.back.kind == LINGERD_HEAD) {
        park.late_at = apr_time_now() + left;
        ap_add_input_filter_handle(park_late, NULL, NULL, c);
    }
    return 0;
}

/* ---- The requests of a connection ---------------------------------------- */

static int park_is_stopping(void)
{
    int mpm_state = 0;

    return ap_mpm_query(AP_MPMQ_MPM_STATE, &mpm_state) != APR_SUCCESS
           || mpm_state == AP_MPMQ_STOPPING;
}

/** Whether there are to be workers when this one has gone: at a restart Apache
 *  counts up before it tells those that there are. */
static int park_has_successors(void)
{
    int generation = 0;

    return ap_mpm_query(AP_MPMQ_GENERATION, &generation) == APR_SUCCESS
           && ap_exists_scoreboard_image()
           && ap_get_scoreboard_global()->running_generation != generation;
}

/**
 * Hand over; or wait for the client here, and meanwhile for lingerd to have
 * room: one that is only slow keeps no worker for long.
 * @param left How long to wait; then, how long is left to wait here
 */
static int park_insist(conn_rec *c, int sock, apr_interval_time_t *left)
{
    apr_interval_time_t patience = *left;
    apr_time_t until = apr_time_now() + patience;

    while (!park_give(c, sock, LINGERD_KEPT, *left, 0)) {
        struct pollfd both[2];
        int n;

        both[0].fd = sock;
        both[1].fd = parking_link();
        both[0].events = both[1].events = POLLIN;
        *left = until - apr_time_now();
        if (*left <= 0) {
            *left = PARK_NO_TIME;
            return 0;
        }
        n = poll(both, both[1].fd < 0 ? 1 : 2,
                 (int)apr_time_as_msec(*left < PARK_AGAIN ? *left
                                                          : PARK_AGAIN) + 1);
        park.says = n > 0 && both[0].revents != 0;
        if (park.says || park_is_stopping()) {
            return 0;
        }
    }
    return 1;
}

/**
 * Whether the connection goes, after a response.
 * @param patience How long to wait for the next request; then, here
 * @param heads Whether a head that is not whole is waited for there
 */
static int park_next(conn_rec *c, int sock, apr_interval_time_t *patience,
                     apr_time_t came, int heads)
{
    const spool *s = ap_get_module_config(c->conn_config, &lingerd_module);
    apr_time_t now;
    apr_size_t bytes;

    if (c->data_in_input_filters || c->data_in_output_filters
        || (s && s->state == SPOOL_KEEP) || !park_may_go(c)
        || (park_is_stopping() && !park_has_successors())) {
        return 0;
    }
    if (!park_waits_here(&park.kept, sock, came)) {
        return park_insist(c, sock, patience);
    }
    if (!heads || park_is_whole(sock, &bytes)) {
        return 0;
    }
    now = apr_time_now();
    return park_insist_on_head(c, sock, park_head_time(c, bytes, now), now);
}

/**
 * As mod_http does it for a synchronous MPM, and in between the connection may
 * go.  It may also when this child is to end: another one has it then.
 */
static int park_process_connection(conn_rec *c)
{
    const spool *s = ap_get_module_config(c->conn_config, &lingerd_module);
    apr_socket_t *socket;
    int sock, is_login = 0;
    apr_time_t came;
    request_rec *r;

    if (!park.active || !s || !park_may_go(c)) {
        return DECLINED;
    }
    socket = s->socket;
    sock = spool_sock(s);
    came = apr_time_now();
    park.late_at = 0;
    if (park_head(c, socket, sock)) {
        return OK;
    }
    ap_update_child_status_from_conn(c->sbh, SERVER_BUSY_READ, c);
    while ((r = ap_read_request(c)) != NULL) {
        const lingerd_config *conf = config_of(r->server);
        apr_interval_time_t patience = r->server->keep_alive_timeout_set
            ? r->server->keep_alive_timeout
            : c->base_server->keep_alive_timeout;

        park.late_at = 0;
        is_login = is_login || park_is_login(r);
        if (r->status == HTTP_OK) {
            if (c->cs) {
                c->cs->state = CONN_STATE_HANDLER;
            }
            ap_update_child_status(c->sbh, SERVER_BUSY_WRITE, r);
            ap_process_request(r);  /* and it is gone */
        }
        if (c->keepalive != AP_CONN_KEEPALIVE || c->aborted) {
            break;
        }
        ap_update_child_status(c->sbh, SERVER_BUSY_KEEPALIVE, NULL);
        park.says = 0;
        if (conf->park > 0 && !is_login
            && park_next(c, sock, &patience, came, conf->head > 0)) {
            break;
        }
        if (park_is_stopping()) {
            break;
        }
        if (!park.says) {
            /* Whoever reads next waits first. */
            (void)apr_socket_opt_set(socket, APR_INCOMPLETE_READ, 1);
        }
        (void)apr_socket_timeout_set(socket, patience);
    }
    return OK;
}

static void park_register_hooks(void)
{
    static const char *const before[] = { "prefork.c", NULL };
    /* Who adds filters to a connection, or takes it, comes first. */
    static const char *const after[] = {
        "mod_reqtimeout.c", "mod_http2.c", NULL
    };

    /* Just above mod_reqtimeout's, which waits for what it lets through. */
    park_late = ap_register_input_filter("LINGERD_LATE", park_read_late, NULL,
                                         AP_FTYPE_CONNECTION + 7);
    ap_hook_pre_config(park_pre_config, NULL, before, APR_HOOK_REALLY_FIRST);
    ap_hook_check_config(park_check_config, NULL, NULL, APR_HOOK_REALLY_LAST);
    ap_hook_create_connection(park_create_connection, NULL, NULL,
                              APR_HOOK_REALLY_FIRST);
    ap_hook_pre_connection(park_pre_connection, NULL, NULL,
                           APR_HOOK_REALLY_FIRST);
    ap_hook_process_connection(park_process_connection, after, NULL,
                               APR_HOOK_LAST);
}
