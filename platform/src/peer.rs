//! Who is at the other end of a Unix socket: SO_PEERCRED and its like.

use std::io;
use std::os::fd::AsFd;

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
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn peer(link: &impl AsFd) -> io::Result<Peer> {
    use std::mem;
    use std::os::fd::AsRawFd;
    let mut cred = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut size = mem::size_of_val(&cred) as libc::socklen_t;
    // SAFETY: getsockopt(2) writes at most `size` bytes to `cred`, a ucred as unix(7) says of
    // SO_PEERCRED; both outlive the call.
    super::check(unsafe {
        libc::getsockopt(
            link.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut cred).cast(),
            &raw mut size,
        )
    })?;
    // A peer outside this pid namespace is 0.
    Ok(Peer { uid: cred.uid, pid: (cred.pid > 0).then_some(cred.pid) })
}

/// Asks the kernel who is at the other end of `link`.
///
/// # Errors
/// What the kernel says, ENOTCONN for instance; `Unsupported` on a system without getpeereid(3).
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub fn peer(link: &impl AsFd) -> io::Result<Peer> {
    cfg_if::cfg_if! {
        if #[cfg(any(target_os = "illumos", target_os = "solaris"))] {
            let _ = link;
            Err(io::ErrorKind::Unsupported.into())
        } else {
            use std::os::fd::AsRawFd;
            let (mut uid, mut gid) = (0, 0);
            // SAFETY: getpeereid(3) writes one id to each pointer; both outlive the call.
            super::check(unsafe { libc::getpeereid(link.as_fd().as_raw_fd(), &raw mut uid, &raw mut gid) })?;
            Ok(Peer { uid, pid: None })
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
        #[cfg(target_os = "linux")]
        assert_eq!(peer.pid, Some(std::process::id() as i32));
    }
}
