// SPDX-License-Identifier: BSD-3-Clause

//! The process's own standing: users and groups, limits, signals to others, locks.
//!
//! Wraps one call each; what to do about an error is the caller's business.

use crate::check;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A user of the system's database.
#[derive(Clone, Debug)]
pub struct User {
    /// The name that the database has.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its login group.
    pub gid: u32,
}

/// Buffers for getpwnam_r(3) and its like start here and double on ERANGE.
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
    user_entry(|entry, buffer, found| {
        // SAFETY: getpwnam_r(3) reads the NUL-terminated name, writes one passwd, at most `len`
        // bytes of strings and one pointer; all of them outlive the call.
        unsafe { libc::getpwnam_r(c_name.as_ptr(), entry, buffer.as_mut_ptr(), buffer.len(), found) }
    })
}

/// Looks a user up by id; of several the one that the database has first. `Ok(None)` when there is none.
///
/// # Errors
/// What getpwuid_r(3) says; `InvalidData` for a name that is no UTF-8.
pub fn user_with_id(uid: u32) -> io::Result<Option<User>> {
    user_entry(|entry, buffer, found| {
        // SAFETY: getpwuid_r(3) takes a number, writes one passwd, at most `len` bytes of strings and
        // one pointer; all of them outlive the call.
        unsafe { libc::getpwuid_r(uid, entry, buffer.as_mut_ptr(), buffer.len(), found) }
    })
}

/// What `look_up`, one of the calls of getpwnam_r(3), finds: it fills in the entry, and sets the
/// pointer if there is one.
fn user_entry(
    look_up: impl Fn(*mut libc::passwd, &mut [libc::c_char], *mut *mut libc::passwd) -> libc::c_int,
) -> io::Result<Option<User>> {
    let found = with_buffer(|buffer| {
        let mut entry = MaybeUninit::<libc::passwd>::uninit();
        let mut found = std::ptr::null_mut();
        match (look_up(entry.as_mut_ptr(), buffer, &raw mut found), found.is_null()) {
            (0, true) => Ok(None),
            (0, false) => {
                // SAFETY: getpwnam_r(3): when it returns 0 and sets the pointer, the entry is
                // filled in.
                let entry = unsafe { entry.assume_init_ref() };
                // SAFETY: getpwnam_r(3): the name is a NUL-terminated string in `buffer`, which is
                // still there.
                let name = unsafe { CStr::from_ptr(entry.pw_name) }.to_owned();
                Ok(Some((name, entry.pw_uid, entry.pw_gid)))
            }
            (errno, _) if is_unknown(errno) => Ok(None),
            (errno, _) => Err(errno),
        }
    })?;
    let Some((name, uid, gid)) = found else { return Ok(None) };
    let name = name.into_string().map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
    Ok(Some(User { name, uid, gid }))
}

/// Does `act` with the rights of `uid` and `gid`, if root is to and there is such a user; else with those that this
/// process has. It must have one thread.
///
/// # Errors
/// What setegid(2) and seteuid(2) say, or `act`. That root cannot be had back is one, too: `act` was done then.
pub fn as_user<T>(uid: Option<u32>, gid: Option<u32>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let Some(uid) = uid.filter(|_| effective_uid() == 0) else { return act() };
    let before = effective_gid();
    // SAFETY: setegid(2) takes a number.
    let set_group = |gid: u32| check(unsafe { libc::setegid(gid) });
    // SAFETY: seteuid(2) takes a number.
    let set_user = |uid: u32| check(unsafe { libc::seteuid(uid) });
    set_group(gid.unwrap_or(before))?;
    let done = match set_user(uid) {
        Ok(_) => {
            let done = act();
            set_user(0)?;
            done
        }
        Err(e) => Err(e),
    };
    set_group(before)?;
    done
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
            (errno, _) if is_unknown(errno) => Ok(None),
            (errno, _) => Err(errno),
        }
    })
}

/// Whether that is what getpwnam_r(3) says where there is no such entry, or no database at all, as in a
/// container that has hardly a file.
const fn is_unknown(errno: libc::c_int) -> bool {
    matches!(errno, libc::ENOENT | libc::ESRCH)
}

/// The effective user of this process.
pub fn effective_uid() -> u32 {
    // SAFETY: geteuid(2) takes nothing and always succeeds.
    unsafe { libc::geteuid() }
}

/// The effective group of this process.
pub fn effective_gid() -> u32 {
    // SAFETY: getegid(2) takes nothing and always succeeds.
    unsafe { libc::getegid() }
}

/// Becomes the user `uid` with group `gid`, for good: supplementary groups first, which are those that
/// the database has for `name` and `gid`, or without a name that one alone; then the group, then the
/// user, each real, effective and saved. Checks that there is no way back.
///
/// # Errors
/// What initgroups(3), setgroups(2), setgid(2) or setuid(2) say (EPERM without privilege), or `Other`
/// when root could be had back.
pub fn drop_privileges(name: Option<&str>, uid: u32, gid: u32) -> io::Result<()> {
    match name {
        Some(name) => {
            let name = CString::new(name)?;
            // SAFETY: initgroups(3) reads the NUL-terminated name, which outlives the call.
            check(unsafe { libc::initgroups(name.as_ptr(), gid as _) })?;
        }
        // SAFETY: setgroups(2) reads one number, which outlives the call.
        None => drop(check(unsafe { libc::setgroups(1, &raw const gid) })?),
    }
    // SAFETY: setgid(2) takes a number. As root it sets all three ids.
    check(unsafe { libc::setgid(gid) })?;
    become_user(uid)?;
    // SAFETY: setuid(2) takes a number.
    if uid != 0 && unsafe { libc::setuid(0) } == 0 {
        return Err(io::Error::other("the kernel gave root back after setuid"));
    }
    Ok(())
}

/// Becomes the user with this id, real, effective and saved; the groups stay.
///
/// # Errors
/// What setuid(2) says: EPERM without privilege.
fn become_user(uid: u32) -> io::Result<()> {
    // SAFETY: setuid(2) takes a number. As root it sets all three ids.
    check(unsafe { libc::setuid(uid) }).map(drop)
}

/// Raises the soft limit of open descriptors to the hard one, as far as the system lets it, and
/// returns how many there can be now.
///
/// # Errors
/// What getrlimit(2) says. A raise that the system refuses or cuts is no error.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let limit = descriptor_limit()?;
    // The second is OPEN_MAX, beyond which older macOS refuses; others may cut, and say nothing.
    for wanted in [limit.rlim_max, limit.rlim_max.min(10_240)] {
        let raised = libc::rlimit { rlim_cur: wanted, ..limit };
        // SAFETY: setrlimit(2) reads one rlimit, which outlives the call.
        if wanted > limit.rlim_cur && unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) } == 0
        {
            break;
        }
    }
    // rlim_t is signed on some systems; infinity is beyond any table either way.
    #[allow(clippy::unnecessary_cast)]
    let now = descriptor_limit()?.rlim_cur as u64;
    Ok(now.min(descriptor_cap()))
}

/// Has the table of this process's descriptors grow now to where it has a place for `number` of them, and not while it
/// serves: on Linux, once there is a second thread, each time that it doubles takes until every processor has
/// passed a point of rest (expand_fdtable, synchronize_rcu), which is 5 to 30 ms. Other systems wait for nobody, and a place
/// takes more memory there: nothing is done. `of` is any that is open.
///
/// # Errors
/// What fcntl(2) says, EINVAL where that is more than the limit.
pub fn reserve_descriptors(number: usize, of: &impl AsFd) -> io::Result<()> {
    if !cfg!(any(target_os = "linux", target_os = "android")) {
        return Ok(());
    }
    let last = number.saturating_sub(1).try_into().unwrap_or(libc::c_int::MAX);
    // SAFETY: fcntl(2) with F_DUPFD_CLOEXEC takes two numbers and touches no memory.
    let copy = check(unsafe { libc::fcntl(of.as_fd().as_raw_fd(), libc::F_DUPFD_CLOEXEC, last) })?;
    // SAFETY: fcntl(2): it is a new descriptor, and nobody else's.
    drop(unsafe { OwnedFd::from_raw_fd(copy) });
    Ok(())
}

fn descriptor_limit() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: getrlimit(2) writes one rlimit, which outlives the call.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(limit)
}

/// How many descriptors a process can have whatever its limit says: macOS takes any limit, but has
/// sysctl(3)'s kern.maxfilesperproc beside it.
#[cfg(target_os = "macos")]
fn descriptor_cap() -> u64 {
    let mut cap: libc::c_int = 0;
    let mut size = size_of_val(&cap);
    // SAFETY: sysctlbyname(3) reads the NUL-terminated name and writes at most `size` bytes to `cap`.
    let asked = unsafe {
        libc::sysctlbyname(
            c"kern.maxfilesperproc".as_ptr(),
            (&raw mut cap).cast(),
            &raw mut size,
            std::ptr::null_mut(),
            0,
        )
    };
    if asked == 0 { cap.try_into().unwrap_or(u64::MAX) } else { u64::MAX }
}

/// How many descriptors a process can have whatever its limit says: the limit says it all.
#[cfg(not(target_os = "macos"))]
fn descriptor_cap() -> u64 {
    u64::MAX
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

/// Closes the descriptors from 3 up, which only whoever started this process can have opened. To
/// be called before the process opens any itself: what is inherited by mistake would take room,
/// and would be kept open for as long as the daemon lives.
pub fn close_inherited() {
    cfg_if::cfg_if! {
        if #[cfg(any(
            target_os = "freebsd",
            target_os = "netbsd",
            target_os = "openbsd",
            target_os = "dragonfly",
        ))] {
            // SAFETY: closefrom(2) takes a number. No descriptor from 3 up is ours yet.
            unsafe { libc::closefrom(3) };
        } else if #[cfg(any(target_os = "illumos", target_os = "solaris"))] {
            unsafe extern "C" {
                /// closefrom(3C), which the crate libc lacks.
                fn closefrom(lowest: libc::c_int);
            }
            // SAFETY: closefrom(3C) takes a number. No descriptor from 3 up is ours yet.
            unsafe { closefrom(3) };
        } else {
            // By number, as the C library may be older than the kernel.
            // SAFETY: close_range(2) takes three numbers. No descriptor from 3 up is ours yet.
            #[cfg(any(target_os = "linux", target_os = "android"))]
            if unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) } == 0 {
                return;
            }
            // ENOSYS before Linux 5.9. Nobody inherits numbers beyond these by mistake.
            for fd in 3..1024 {
                // SAFETY: close(2) takes a number. No descriptor from 3 up is ours yet.
                unsafe { libc::close(fd) };
            }
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

/// Locks `file`, which is open for writing, as a whole and without waiting; `Ok(false)` when another
/// process has it. The lock lives as long as this process has the file open; on Solaris, where it is
/// fcntl(2)'s, until it closes any descriptor of the file, and a child that it forks has none.
///
/// # Errors
/// What flock(2) says but EWOULDBLOCK; on Solaris, which has none, fcntl(2).
pub fn try_lock(file: &File) -> io::Result<bool> {
    cfg_if::cfg_if! {
        if #[cfg(target_os = "solaris")] {
            // SAFETY: flock is plain numbers, for which zeroes (from the start, to the end) are a value.
            let mut lock: libc::flock = unsafe { std::mem::zeroed() };
            lock.l_type = libc::F_WRLCK;
            // SAFETY: fcntl(2): F_SETLK reads one flock, which outlives the call.
            let locked = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLK, &raw const lock) });
        } else {
            // SAFETY: flock(2) takes two numbers.
            let locked = check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) });
        }
    }
    match locked {
        Ok(_) => Ok(true),
        // fcntl(2) may say EACCES instead.
        Err(e) if matches!(e.raw_os_error(), Some(libc::EWOULDBLOCK | libc::EACCES)) => Ok(false),
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
    fn a_user_is_known_by_its_id_too() {
        let root = user_with_id(0).unwrap().unwrap();
        assert_eq!((user(&root.name).unwrap().unwrap().uid, root.uid), (0, 0));
        assert!(user_with_id(u32::MAX - 2).unwrap().is_none());
    }

    #[test]
    #[cfg(not(target_os = "solaris"))] // there one process has one lock, however often it opens the file
    fn the_second_lock_is_refused_and_the_third_is_not() {
        let path = std::env::temp_dir().join(format!("lingerd-lock-{}", std::process::id()));
        let first = File::create(&path).unwrap();
        let second = File::options().write(true).open(&path).unwrap();
        assert!(try_lock(&first).unwrap());
        assert!(!try_lock(&second).unwrap());
        drop(first);
        assert!(try_lock(&second).unwrap());
        std::fs::remove_file(path).unwrap();
    }
}
