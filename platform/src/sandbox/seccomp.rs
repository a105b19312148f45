// SPDX-License-Identifier: BSD-3-Clause

//! Linux: the system calls that a daemon makes once it serves, seccomp(2).
//!
//! Three answers. What is on the list is done. What only an intruder would try ends the process. To
//! anything else the kernel says that it does not have it (ENOSYS): the C library knows that from older
//! kernels, and falls back on what it did before, so that the next release of it ends nobody's lingers.
//!
//! A call whose answer does not depend on its arguments costs next to nothing: since 5.11 the kernel
//! keeps these answers in a bitmap, and runs the filter for the others only.

use libc::c_long;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};
use std::collections::BTreeMap;
use std::io;

pub const LINUX_BUILT_IN: &str = "no_new_privs, Landlock, capabilities, seccomp";

/// What is done, whatever the arguments.
const ALLOWED: &[&[c_long]] = &[
    // To wait, on whichever backend.
    &[libc::SYS_epoll_create1, libc::SYS_epoll_ctl, libc::SYS_epoll_pwait, libc::SYS_ppoll],
    // Sockets that are there: connections, senders, who asks, the log, signals. Descriptors come and go
    // with recvmsg and sendmsg.
    &[
        libc::SYS_recvfrom,
        libc::SYS_recvmsg,
        libc::SYS_sendto,
        libc::SYS_sendmsg,
        libc::SYS_read,
        libc::SYS_readv,
        libc::SYS_write,
        libc::SYS_writev,
        libc::SYS_pwrite64,
        libc::SYS_shutdown,
        libc::SYS_getsockopt,
        libc::SYS_getpeername,
        libc::SYS_getsockname,
        libc::SYS_fcntl,
        libc::SYS_close,
    ],
    // Sockets that come: senders; the log, when the syslog daemon was restarted (see below for socket).
    // Landlock keeps TCP from being connected.
    &[libc::SYS_accept, libc::SYS_accept4, libc::SYS_connect, libc::SYS_socketpair],
    // The names that go at the end, and the pid file, which is emptied before.
    &[
        libc::SYS_newfstatat,
        libc::SYS_statx,
        libc::SYS_fstat,
        libc::SYS_unlinkat,
        libc::SYS_ftruncate,
        libc::SYS_lseek,
        libc::SYS_flock,
    ],
    // Files whose content is sent, which senders pass. (What they are fcntl and statx tell.)
    &[libc::SYS_pread64, libc::SYS_fallocate],
    // Letting go of the terminal.
    &[libc::SYS_dup, libc::SYS_dup3],
    // Time; where the kernel's clock cannot be read without a call.
    &[
        libc::SYS_clock_gettime,
        libc::SYS_clock_getres,
        libc::SYS_gettimeofday,
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
    ],
    // Memory (see below for mmap and mprotect), and the seeds of hash tables.
    &[libc::SYS_brk, libc::SYS_munmap, libc::SYS_mremap, libc::SYS_madvise, libc::SYS_getrandom],
    // Threads (see below for clone): to start, to wait for each other, to end.
    &[
        libc::SYS_futex,
        libc::SYS_set_robust_list,
        libc::SYS_rseq,
        libc::SYS_set_tid_address,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_membarrier,
        libc::SYS_gettid,
    ],
    // Signals that arrive, and what a call does that one of them has interrupted.
    &[
        libc::SYS_rt_sigaction,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
    ],
    // Who it is, and its end.
    &[
        libc::SYS_getpid,
        libc::SYS_getuid,
        libc::SYS_geteuid,
        libc::SYS_getgid,
        libc::SYS_getegid,
        libc::SYS_exit,
        libc::SYS_exit_group,
    ],
    #[cfg(target_arch = "x86_64")]
    OLD,
];

/// The older forms of some of these, which the other processors never had.
#[cfg(target_arch = "x86_64")]
const OLD: &[c_long] = &[
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_unlink,
    libc::SYS_dup2,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];

/// What is done with some arguments only: the call, which of its arguments, and what that must be. Several
/// lines of one call are alternatives.
#[allow(clippy::unnecessary_cast)] // an ioctl's number is an int in some C libraries
fn allowed_with() -> Vec<(c_long, u8, SeccompCmpOp, u64)> {
    vec![
        // What is unread, what is unacknowledged, and flags of new sockets. None of a terminal.
        (libc::SYS_ioctl, 1, Eq, libc::FIONREAD as u64),
        (libc::SYS_ioctl, 1, Eq, libc::TIOCOUTQ as u64),
        (libc::SYS_ioctl, 1, Eq, libc::FIONBIO as u64),
        (libc::SYS_ioctl, 1, Eq, libc::FIOCLEX as u64),
        // SO_LINGER and its like, of no protocol.
        (libc::SYS_setsockopt, 1, Eq, libc::SOL_SOCKET as u64),
        // To the syslog daemon, and nowhere else.
        (libc::SYS_socket, 0, Eq, libc::AF_UNIX as u64),
        // A thread, but no process. (clone3 has its flags where no filter can see them. It is on no list,
        // and the C library falls back on clone.)
        (libc::SYS_clone, 0, MaskedEq(libc::CLONE_THREAD as u64), libc::CLONE_THREAD as u64),
        // Its name.
        (libc::SYS_prctl, 0, Eq, libc::PR_SET_NAME as u64),
        // Data, and no code.
        (libc::SYS_mmap, 2, MaskedEq(libc::PROT_EXEC as u64), 0),
        (libc::SYS_mprotect, 2, MaskedEq(libc::PROT_EXEC as u64), 0),
        // Itself, when it aborts.
        (libc::SYS_tgkill, 0, Eq, std::process::id().into()),
    ]
}

/// What ends the process, and leaves a trace in the kernel's audit log: nothing that a daemon, or a
/// library of it, might do by mistake.
const HOSTILE: &[c_long] = &[
    // Other programs, and other processes' memory and descriptors.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    // Another view of the file system, and ways around this one.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_open_by_handle_at,
    // Into the kernel.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_kexec_load,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
];

/// Puts the filter into force.
pub fn filter() -> io::Result<()> {
    apply().map_err(|error| match error {
        Error::Prctl(error) | Error::Seccomp(error) => error,
        other => io::Error::other(other),
    })
}

/// Two filters, as one of seccompiler's has two answers only; of both the kernel takes the harder one.
fn apply() -> Result<(), Error> {
    let hostile = HOSTILE.iter().map(|&call| (call, Vec::new()));
    let hostile = compile(hostile, SeccompAction::KillProcess, SeccompAction::Allow)?;
    let anything = ALLOWED.iter().copied().flatten().map(|&call| (call, Vec::new()));
    let some = allowed_with().into_iter().map(|(call, argument, compare, with)| {
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, compare, with)?;
        Ok((call, vec![SeccompRule::new(vec![condition])?]))
    });
    let some = some.collect::<Result<Vec<_>, Error>>()?;
    let allowed = compile(anything.chain(some), SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))?;
    seccompiler::apply_filter(&hostile)?;
    seccompiler::apply_filter(&allowed) // the last: it allows no other one
}

fn compile(
    calls: impl Iterator<Item = (c_long, Vec<SeccompRule>)>,
    listed: SeccompAction,
    other: SeccompAction,
) -> Result<BpfProgram, Error> {
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for (call, alternatives) in calls {
        rules.entry(call).or_default().extend(alternatives);
    }
    let filter = SeccompFilter::new(rules, other, listed, std::env::consts::ARCH.try_into()?)?;
    Ok(filter.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::enter;

    /// In a thread of its own, which alone has that filter.
    #[test]
    fn what_a_kernel_lacks_is_reported_and_no_more() {
        let older_kernel = || {
            let lacks = [libc::SYS_seccomp, libc::SYS_landlock_create_ruleset, libc::SYS_capset];
            let lacks = lacks.map(|call| (call, Vec::new()));
            let answer = SeccompAction::Errno(libc::ENOSYS as u32);
            let filter = compile(lacks.into_iter(), answer, SeccompAction::Allow).unwrap();
            seccompiler::apply_filter(&filter).ok()?;
            let beside = std::env::temp_dir().join("none");
                let ways = crate::back::Ways::beside(&beside).unwrap();
                Some(enter(&[], &ways))
        };
        let report = std::thread::spawn(older_kernel).join().unwrap();
        let Some(report) = report else { return }; // this one lacks it, too
        assert_eq!(report.applied, ["no_new_privs"]);
        let parts: Vec<_> = report.missing.iter().filter_map(|why| why.split(':').next()).collect();
        assert_eq!(parts, ["Landlock", "capabilities", "seccomp"], "{report:?}");
    }
}
