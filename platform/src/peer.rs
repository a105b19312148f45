// SPDX-License-Identifier: BSD-3-Clause

//! Who is at the other end of a Unix socket: SO_PEERCRED and its like.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// The process at the other end, as it was when it called connect(2) or listen(2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its effective group first, then its supplementary groups.
    pub groups: Vec<u32>,
    /// Whether these are all: NetBSD and OpenBSD tell of no supplementary group, the other BSDs and macOS
    /// of 15 at most.
    pub all_groups: bool,
    /// Its process id, where the system tells.
    pub pid: Option<i32>,
}

/// For the log.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}", self.uid)?;
        self.groups.first().map_or(Ok(()), |group| write!(f, ", group {group}"))?;
        self.pid.map_or(Ok(()), |pid| write!(f, ", process {pid}"))
    }
}

/// Asks the kernel who is at the other end of `link`.
///
/// # Errors
/// What the kernel says, ENOTCONN for instance.
pub fn peer(link: &impl AsFd) -> io::Result<Peer> {
    let (uid, groups, all_groups, pid) = credentials(link.as_fd().as_raw_fd())?;
    // A process that this one cannot see (another pid namespace, another zone) has none, or 0.
    Ok(Peer { uid, groups, all_groups, pid: (pid > 0).then_some(pid) })
}

/// The user, groups, whether these are all, and the process.
type Credentials = (libc::uid_t, Vec<libc::gid_t>, bool, libc::pid_t);

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "linux", target_os = "android"))] {
        fn credentials(fd: libc::c_int) -> io::Result<Credentials> {
            // SAFETY: unix(7): SO_PEERCRED fills in a ucred, plain numbers.
            let cred: libc::ucred = unsafe { crate::socket_option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED) }?;
            let others = supplementary_groups(fd);
            let all = others.is_some();
            let groups = [cred.gid].into_iter().chain(others.into_iter().flatten()).collect();
            Ok((cred.uid, groups, all, cred.pid))
        }

        /// None before Linux 4.13, which does not tell.
        fn supplementary_groups(fd: libc::c_int) -> Option<Vec<libc::gid_t>> {
            let mut groups: Vec<libc::gid_t> = vec![0; 64];
            loop {
                let mut size = size_of_val(&*groups) as libc::socklen_t;
                // SAFETY: getsockopt(2) writes at most `size` bytes to `groups`, and the size of all
                // of them to `size`; both outlive the call.
                let asked = unsafe {
                    libc::getsockopt(
                        fd,
                        libc::SOL_SOCKET,
                        libc::SO_PEERGROUPS,
                        groups.as_mut_ptr().cast(),
                        &raw mut size,
                    )
                };
                let number = size as usize / size_of::<libc::gid_t>();
                match crate::check(asked) {
                    Ok(_) => {
                        groups.truncate(number);
                        return Some(groups);
                    }
                    // They were told at connect(2), and do not become more.
                    Err(e) if e.raw_os_error() == Some(libc::ERANGE) && number > groups.len() => {
                        groups.resize(number, 0);
                    }
                    Err(_) => return None,
                }
            }
        }
    } else if #[cfg(target_os = "openbsd")] {
        fn credentials(fd: libc::c_int) -> io::Result<Credentials> {
            // SAFETY: getsockopt(2): SO_PEERCRED fills in a sockpeercred, plain numbers.
            let cred: libc::sockpeercred = unsafe { crate::socket_option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED) }?;
            Ok((cred.uid, vec![cred.gid], false, cred.pid))
        }
    } else if #[cfg(target_os = "netbsd")] {
        fn credentials(fd: libc::c_int) -> io::Result<Credentials> {
            const SOL_LOCAL: libc::c_int = 0; // unix(4): options are at level 0
            // SAFETY: unix(4): LOCAL_PEEREID fills in an unpcbid, plain numbers.
            let cred: libc::unpcbid = unsafe { crate::socket_option(fd, SOL_LOCAL, libc::LOCAL_PEEREID) }?;
            Ok((cred.unp_euid, vec![cred.unp_egid], false, cred.unp_pid))
        }
    } else if #[cfg(any(target_os = "freebsd", target_os = "dragonfly", target_os = "macos"))] {
        fn credentials(fd: libc::c_int) -> io::Result<Credentials> {
            const SOL_LOCAL: libc::c_int = 0; // unix(4): options are at level 0
            // SAFETY: unix(4): LOCAL_PEERCRED fills in an xucred, numbers and one pointer.
            let cred: libc::xucred = unsafe { crate::socket_option(fd, SOL_LOCAL, libc::LOCAL_PEERCRED) }?;
            // unix(4): the first is the effective group. Where there are as many as fit there may be more.
            let number = usize::try_from(cred.cr_ngroups).unwrap_or(0);
            let groups = cred.cr_groups.iter().copied().take(number).collect();
            let all = (1..cred.cr_groups.len()).contains(&number);
            cfg_if::cfg_if! {
                if #[cfg(target_os = "freebsd")] {
                    // SAFETY: unix(4): cr_pid is the member in use; both are numbers or null.
                    let pid = unsafe { cred.cr_pid__c_anonymous_union.cr_pid };
                } else if #[cfg(target_os = "macos")] {
                    // SAFETY: LOCAL_PEERPID of <sys/un.h> fills in a pid_t.
                    let pid = unsafe { crate::socket_option(fd, SOL_LOCAL, libc::LOCAL_PEERPID) }.unwrap_or(0);
                } else {
                    let pid = 0;
                }
            }
            Ok((cred.cr_uid, groups, all, pid))
        }
    } else if #[cfg(any(target_os = "illumos", target_os = "solaris"))] {
        fn credentials(fd: libc::c_int) -> io::Result<Credentials> {
            let mut cred = std::ptr::null_mut();
            // SAFETY: getpeerucred(3C) allocates a credential where the pointer is null.
            crate::check(unsafe { libc::getpeerucred(fd, &raw mut cred) })?;
            // SAFETY: ucred_get(3C): these read what getpeerucred made, -1 for what it does not say.
            let ids = unsafe { (libc::ucred_geteuid(cred), libc::ucred_getegid(cred), libc::ucred_getpid(cred)) };
            let mut list = std::ptr::null();
            // SAFETY: ucred_get(3C): it sets the pointer to the groups in what getpeerucred made, and
            // returns how many there are, or -1.
            let number = unsafe { libc::ucred_getgroups(cred, &raw mut list) };
            let mut groups = Vec::from_iter((ids.1 != libc::gid_t::MAX).then_some(ids.1));
            if let (Ok(number), false) = (usize::try_from(number), list.is_null()) {
                // SAFETY: ucred_get(3C): as many groups are there until ucred_free.
                groups.extend_from_slice(unsafe { std::slice::from_raw_parts(list, number) });
            }
            // SAFETY: ucred_free(3C) frees what getpeerucred made; nobody uses it after this.
            unsafe { libc::ucred_free(cred) };
            if ids.0 == libc::uid_t::MAX { Err(io::ErrorKind::Unsupported.into()) } else { Ok((ids.0, groups, number >= 0, ids.2)) }
        }
    } else {
        fn credentials(fd: libc::c_int) -> io::Result<Credentials> {
            let (mut uid, mut gid) = (0, 0);
            // SAFETY: getpeereid(3) writes one id to each pointer; both outlive the call.
            crate::check(unsafe { libc::getpeereid(fd, &raw mut uid, &raw mut gid) })?;
            Ok((uid, vec![gid], false, 0))
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
        assert_eq!(peer.groups[0], crate::process::effective_gid());
    }

    #[test]
    #[cfg(not(any(target_os = "netbsd", target_os = "openbsd")))] // they do not tell
    fn the_supplementary_groups_of_the_peer_are_known() {
        let mut own = [0; 16];
        // SAFETY: getgroups(2) writes at most so many numbers to `own`, which outlives the call.
        let number = unsafe { libc::getgroups(own.len() as _, own.as_mut_ptr()) };
        if !(0..15).contains(&number) {
            return; // more than every system tells
        }
        let (a, _b) = std::os::unix::net::UnixStream::pair().unwrap();
        let Peer { groups, all_groups, .. } = peer(&a).unwrap();
        assert!(all_groups);
        for group in own.iter().take(number as usize) {
            assert!(groups.contains(group), "{group} of {groups:?}");
        }
    }

    #[test]
    fn a_peer_is_named_by_what_is_known_of_it() {
        let peer = Peer { uid: 33, groups: vec![34, 4], all_groups: true, pid: Some(4711) };
        assert_eq!(peer.to_string(), "user 33, group 34, process 4711");
        let peer = Peer { uid: 33, groups: Vec::new(), all_groups: false, pid: None };
        assert_eq!(peer.to_string(), "user 33");
    }
}
