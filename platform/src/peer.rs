//! Who is at the other end of a Unix socket: SO_PEERCRED and its like.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The process at the other end, as it was when it called connect(2) or listen(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its process id, where the system tells.
    pub pid: Option<i32>,
}

/// Asks the kernel who is at the other end of `link`.
///
/// # Errors
/// What the kernel says, ENOTCONN for instance.
pub fn peer(link: &impl AsFd) -> io::Result<Peer> {
    let (uid, pid) = credentials(link.as_fd().as_raw_fd())?;
    // A process that this one cannot see (another pid namespace, another zone) has none, or 0.
    Ok(Peer { uid, pid: (pid > 0).then_some(pid) })
}

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "linux", target_os = "android"))] {
        fn credentials(fd: libc::c_int) -> io::Result<(libc::uid_t, libc::pid_t)> {
            // SAFETY: unix(7): SO_PEERCRED fills in a ucred, plain numbers.
            let cred: libc::ucred = unsafe { crate::socket_option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED) }?;
            Ok((cred.uid, cred.pid))
        }
    } else if #[cfg(target_os = "openbsd")] {
        fn credentials(fd: libc::c_int) -> io::Result<(libc::uid_t, libc::pid_t)> {
            // SAFETY: getsockopt(2): SO_PEERCRED fills in a sockpeercred, plain numbers.
            let cred: libc::sockpeercred = unsafe { crate::socket_option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED) }?;
            Ok((cred.uid, cred.pid))
        }
    } else if #[cfg(target_os = "netbsd")] {
        fn credentials(fd: libc::c_int) -> io::Result<(libc::uid_t, libc::pid_t)> {
            const SOL_LOCAL: libc::c_int = 0; // unix(4): options are at level 0
            // SAFETY: unix(4): LOCAL_PEEREID fills in an unpcbid, plain numbers.
            let cred: libc::unpcbid = unsafe { crate::socket_option(fd, SOL_LOCAL, libc::LOCAL_PEEREID) }?;
            Ok((cred.unp_euid, cred.unp_pid))
        }
    } else if #[cfg(target_os = "freebsd")] {
        fn credentials(fd: libc::c_int) -> io::Result<(libc::uid_t, libc::pid_t)> {
            // SAFETY: unix(4): LOCAL_PEERCRED fills in an xucred, numbers and one pointer.
            let cred: libc::xucred = unsafe { crate::socket_option(fd, libc::SOL_LOCAL, libc::LOCAL_PEERCRED) }?;
            // SAFETY: unix(4): cr_pid is the member in use; both are numbers or null.
            Ok((cred.cr_uid, unsafe { cred.cr_pid__c_anonymous_union.cr_pid }))
        }
    } else if #[cfg(any(target_os = "illumos", target_os = "solaris"))] {
        fn credentials(fd: libc::c_int) -> io::Result<(libc::uid_t, libc::pid_t)> {
            let mut cred = std::ptr::null_mut();
            // SAFETY: getpeerucred(3C) allocates a credential where the pointer is null.
            crate::check(unsafe { libc::getpeerucred(fd, &raw mut cred) })?;
            // SAFETY: ucred_get(3C): these read what getpeerucred made, -1 for what it does not say.
            let ids = unsafe { (libc::ucred_geteuid(cred), libc::ucred_getpid(cred)) };
            // SAFETY: ucred_free(3C) frees what getpeerucred made; nobody uses it after this.
            unsafe { libc::ucred_free(cred) };
            if ids.0 == libc::uid_t::MAX { Err(io::ErrorKind::Unsupported.into()) } else { Ok(ids) }
        }
    } else {
        fn credentials(fd: libc::c_int) -> io::Result<(libc::uid_t, libc::pid_t)> {
            let (mut uid, mut gid) = (0, 0);
            // SAFETY: getpeereid(3) writes one id to each pointer; both outlive the call.
            crate::check(unsafe { libc::getpeereid(fd, &raw mut uid, &raw mut gid) })?;
            cfg_if::cfg_if! {
                if #[cfg(target_os = "macos")] {
                    // SAFETY: LOCAL_PEERPID of <sys/un.h> fills in a pid_t.
                    let pid = unsafe { crate::socket_option(fd, libc::SOL_LOCAL, libc::LOCAL_PEERPID) }.unwrap_or(0);
                } else {
                    let pid = 0;
                }
            }
            Ok((uid, pid))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peer_of_a_pair_is_this_process() {
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let peer = peer(&a).unwrap();
        assert_eq!(peer.uid, crate::process::effective_uid());
        #[cfg(not(target_os = "dragonfly"))] // it does not tell
        assert_eq!(peer.pid, Some(std::process::id() as i32));
    }
}
