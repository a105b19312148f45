//! The process's own standing: users and groups, limits, signals to others, locks.
//!
//! Wraps one call each; what to do about an error is the caller's business.

use crate::check;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

/// A user of the system's database.
#[derive(Clone, Debug)]
pub struct User {
    /// The name as it was looked up.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its login group.
    pub gid: u32,
}

/// Buffers for getpwnam_r(3) and getgrnam_r(3) start here and double on ERANGE.
const LOOKUP_BYTES: usize = 1024;

/// Calls `lookup` with growing buffers until it no longer answers ERANGE.
fn with_buffer<R>(mut lookup: impl FnMut(&mut [libc::c_char]) -> Result<R, libc::c_int>) -> io::Result<R> {
    let mut buffer = vec![0; LOOKUP_BYTES];
    loop {
        match lookup(&mut buffer) {
            Err(libc::ERANGE) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 2, 0),
            Err(errno) => return Err(io::Error::from_raw_os_error(errno)),
            Ok(found) => return Ok(found),
        }
    }
}

/// Looks a user up by name. `Ok(None)` when there is none.
///
/// # Errors
/// What getpwnam_r(3) says; `InvalidInput` for a name with a NUL byte.
pub fn user(name: &str) -> io::Result<Option<User>> {
    let c_name = CString::new(name)?;
    with_buffer(|buffer| {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: getpwnam_r(3) reads the NUL-terminated name, writes one passwd, at most `len`
        // bytes of strings and one pointer; all of them outlive the call.
        let errno = unsafe {
            libc::getpwnam_r(
                c_name.as_ptr(),
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            )
        };
        match (errno, found.is_null()) {
            (0, true) => Ok(None),
            (0, false) => {
                // SAFETY: getpwnam_r(3): when it returns 0 and sets the pointer, the entry is
                // filled in.
                let entry = unsafe { entry.assume_init_ref() };
                Ok(Some(User { name: name.to_owned(), uid: entry.pw_uid, gid: entry.pw_gid }))
            }
            (errno, _) => Err(errno),
        }
    })
}

/// Looks a group's id up by its name. `Ok(None)` when there is none.
///
/// # Errors
/// What getgrnam_r(3) says; `InvalidInput` for a name with a NUL byte.
pub fn group(name: &str) -> io::Result<Option<u32>> {
    let c_name = CString::new(name)?;
    with_buffer(|buffer| {
        let mut entry = MaybeUninit::<libc::group>::uninit();
        let mut found = std::ptr::null_mut();
        // SAFETY: getgrnam_r(3) reads the NUL-terminated name, writes one group, at most `len`
        // bytes of strings and one pointer; all of them outlive the call.
        let errno = unsafe {
            libc::getgrnam_r(
                c_name.as_ptr(),
                entry.as_mut_ptr(),
                buffer.as_mut_ptr(),
                buffer.len(),
                &raw mut found,
            )
        };
        match (errno, found.is_null()) {
            (0, true) => Ok(None),
            // SAFETY: getgrnam_r(3): when it returns 0 and sets the pointer, the entry is filled
            // in.
            (0, false) => Ok(Some(unsafe { entry.assume_init_ref() }.gr_gid)),
            (errno, _) => Err(errno),
        }
    })
}

/// The effective user of this process.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid(2) takes nothing and always succeeds.
    unsafe { libc::geteuid() }
}

/// Becomes `user` with group `gid`, for good: supplementary groups first, then the group, then the
/// user, each real, effective and saved. Checks that there is no way back.
///
/// # Errors
/// What initgroups(3), setgid(2) or setuid(2) say (EPERM without privilege), or `Other` when root
/// could be had back.
pub fn drop_privileges(user: &User, gid: u32) -> io::Result<()> {
    let name = CString::new(user.name.as_str())?;
    // SAFETY: initgroups(3) reads the NUL-terminated name, which outlives the call.
    check(unsafe { libc::initgroups(name.as_ptr(), gid as _) })?;
    // SAFETY: setgid(2) takes a number. As root it sets all three ids.
    check(unsafe { libc::setgid(gid) })?;
    become_user(user.uid)?;
    // SAFETY: setuid(2) takes a number.
    if user.uid != 0 && unsafe { libc::setuid(0) } == 0 {
        return Err(io::Error::other("the kernel gave root back after setuid"));
    }
    Ok(())
}

/// Becomes the user with this id, real, effective and saved; the groups stay.
///
/// # Errors
/// What setuid(2) says: EPERM without privilege.
pub fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: setuid(2) takes a number. As root it sets all three ids.
    check(unsafe { libc::setuid(uid) }).map(drop)
}

/// Raises the soft limit of open descriptors to the hard one, and returns what is now in force.
///
/// # Errors
/// What getrlimit(2) says. A raise that the system refuses (macOS has a limit of its own) is no
/// error: the number returned is the one in force.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one rlimit, which outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, rlim_max: limit.rlim_max };
    // SAFETY: setrlimit(2) reads one rlimit, which outlives the call.
    let now = match check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) }) {
        Ok(_) => raised.rlim_cur,
        Err(_) => limit.rlim_cur,
    };
    // rlim_t is signed on some systems; infinity is beyond any table either way.
    #[allow(clippy::unnecessary_cast)]
    Ok(now as u64)
}

/// Sends signal `signal` to process `pid`.
///
/// # Errors
/// What kill(2) says: ESRCH (no such process), EPERM.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) takes two numbers.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Sets the mask of permissions that new files do not get, and returns the one before.
pub fn umask(mask: u32) -> u32 {
    // SAFETY: umask(2) takes a number and always succeeds.
    let before = unsafe { libc::umask(mask as libc::mode_t) };
    #[allow(clippy::unnecessary_cast)] // mode_t is 16 bits on some systems
    let before = before as u32;
    before
}

/// Closes every descriptor from 3 up, which only whoever started this process can have opened. To
/// be called before the process opens any itself: what is inherited by mistake would take room,
/// and would be kept open for as long as the daemon lives.
pub fn close_inherited() {
    cfg_if::cfg_if! {
        if #[cfg(any(target_os = "linux", target_os = "android"))] {
            // By number, as the C library may be older than the kernel.
            // SAFETY: close_range(2) takes three numbers. No descriptor from 3 up is ours yet.
            let done = unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) } == 0;
        } else {
            let done = false;
        }
    }
    if !done {
        // ENOSYS before Linux 5.9. Nobody inherits numbers beyond these by mistake.
        for fd in 3..1024 {
            // SAFETY: close(2) takes a number. No descriptor from 3 up is ours yet.
            unsafe { libc::close(fd) };
        }
    }
}

/// How many descriptors this process has open, as far as one looks for them: numbers below 1024.
pub fn open_descriptors() -> usize {
    // SAFETY: fcntl(2) with F_GETFD takes two numbers and touches no memory.
    (0..1024).filter(|&fd| unsafe { libc::fcntl(fd, libc::F_GETFD) } != -1).count()
}

/// open(2): do not wait for the other end of a FIFO.
pub const O_NONBLOCK: i32 = libc::O_NONBLOCK;

/// open(2): fail where the last part of the path is a symbolic link.
pub const O_NOFOLLOW: i32 = libc::O_NOFOLLOW;

/// Locks `file` as a whole and without waiting; `Ok(false)` when another process has it. The lock
/// lives as long as any copy of the descriptor, also across fork(2).
///
/// # Errors
/// What flock(2) says but EWOULDBLOCK.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: flock(2) takes two numbers.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether a shutdown of the receiving side keeps what is queued there readable, so that a daemon
/// that stops can first shut its door and then empty its post box. On Linux unix(7) sockets it
/// does; elsewhere shutdown(2) may throw the queue away, with the descriptors in it.
pub const SHUTDOWN_KEEPS_QUEUE: bool = cfg!(any(target_os = "linux", target_os = "android"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_nobody_of_that_name_is_not() {
        assert_eq!(user("root").unwrap().unwrap().uid, 0);
        assert!(user("no-such-user-here").unwrap().is_none());
        assert!(group("no-such-group-here").unwrap().is_none());
        assert!(user("nul\0byte").is_err());
    }

    #[test]
    fn the_second_lock_is_refused_and_the_third_is_not() {
        let path = std::env::temp_dir().join(format!("lingerd-lock-{}", std::process::id()));
        let first = File::create(&path).unwrap();
        let second = File::open(&path).unwrap();
        assert!(try_lock(&first).unwrap());
        assert!(!try_lock(&second).unwrap());
        drop(first);
        assert!(try_lock(&second).unwrap());
        std::fs::remove_file(path).unwrap();
    }
}
