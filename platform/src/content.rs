// SPDX-License-Identifier: BSD-3-Clause

//! What is to be sent on somebody's behalf: regular files, most of them in memory, which came with a connection.
//!
//! Whoever passed one on may still have it open: it can shrink, grow and change at any time, and be held by whoever
//! writes to it. Must not know what it is sent to.

use crate::backend::Descriptor;
use crate::is_out_of_memory;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
#[cfg(any(target_os = "linux", target_os = "android"))]
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

/// The contract of a file whose content is to be sent. What there is to be known of it is asked once, when it comes.
/// Nothing but [`read`](Self::read) asks its file system, which may be another machine that does not answer. Dropping
/// closes it, which may take as long: that is a [`Reader`](crate::reader::Reader)'s business.
pub trait Content: Descriptor + Sized {
    /// A descriptor that may be anything.
    type Received;

    /// What was read, in memory. The default is empty.
    type Piece: Default;

    /// Takes `received` for what it is, if that is a regular file; else gives it back untouched. A socket, a FIFO is
    /// none, nor is a directory or a device; but where only its file system can tell, these are taken too, and to
    /// read them fails.
    ///
    /// # Errors
    /// The descriptor itself.
    fn of(received: Self::Received) -> Result<Self, Self::Received>;

    /// The descriptor again.
    ///
    /// # Errors
    /// Itself, where a reader has it just now.
    fn into_received(self) -> Result<Self::Received, Self>;

    /// Whether there is nothing in it, as far as anybody knew when it came. So it is with the files of /proc, which say
    /// what their reader may know, and not what whoever has opened them may (proc(5)): nobody is to be sent that.
    fn is_empty(&self) -> bool;

    /// Whether a read never waits: neither for a disk or another machine, nor for whoever writes to it.
    fn is_prompt(&self) -> bool;

    /// Whether it is in memory, as far as anybody can tell.
    fn is_in_memory(&self) -> bool;

    /// Whether it has a name, or may have one: without one it takes what it takes for nobody but those who have it open.
    fn has_name(&self) -> bool;

    /// How many bytes of memory or of a disk it took when it came, about: holes take none. `None` where nobody can tell.
    fn size_on_medium(&self) -> Option<u64>;

    /// Replaces what is in `piece` by what there is at `offset`, at most `most` bytes, and tells how many: less
    /// than that only where the file ends, and 0 behind its end.
    ///
    /// # Errors
    /// What pread(2) says, EBADF of what may not be read; `InvalidInput` of what turns out to be no regular file;
    /// `OutOfMemory` when the system is short of memory, and it can be tried again. Never EINTR.
    fn read(&self, offset: u64, most: usize, piece: &mut Self::Piece) -> io::Result<usize>;
}

/// The least that there is a point in giving back, and what it has to be a multiple of: a page, on every system.
pub const PAGE: u64 = 64 * 1024;

/// How often in a row a read may be interrupted: a file system that always says so would never be done.
const INTERRUPTIONS: usize = 100;

/// What a file is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(dead_code, reason = "few systems tell all of this")]
pub(crate) enum Medium {
    Memory,
    /// A file system, by its number.
    System(u64),
    /// Whatever it is: nobody can tell without asking it.
    Unknown,
}

/// A file, and what was asked when it came.
pub struct Regular {
    open: Arc<Open>,
    pub(crate) medium: Medium,
    is_empty: bool,
    has_name: bool,
    size_on_medium: Option<u64>,
    /// Whether it may be written, which giving memory back is.
    pub(crate) is_ours_to_write: bool,
}

/// As it is open. What closes it last counts it off then.
pub(crate) struct Open {
    file: File,
    /// After the file: it goes when that is closed.
    closing: OnceLock<Counted>,
}

/// One of those that are counted.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Regular {
    /// For whoever is to find it gone when nobody else has it any more.
    pub(crate) fn weak(&self) -> Weak<Open> {
        Arc::downgrade(&self.open)
    }

    /// For whoever is to close it: it is one of `closing` until that is done, by whomever.
    pub(crate) fn into_closing(self, closing: &Arc<AtomicUsize>) -> Arc<Open> {
        closing.fetch_add(1, Ordering::Relaxed);
        // Were it counted already, this one would be counted off here.
        let _ = self.open.closing.set(Counted(Arc::clone(closing)));
        self.open
    }
}

impl Open {
    /// Whether nobody wants what it has any more.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get().is_some()
    }

    /// As [`Content::read`].
    pub(crate) fn read(&self, offset: u64, most: usize, piece: &mut Vec<u8>) -> io::Result<usize> {
        if !TELLS_FILES && facts_of_memory(&self.file).is_none() && !self.file.metadata()?.is_file() {
            return Err(ErrorKind::InvalidInput.into());
        }
        piece.resize(most, 0);
        let got = fill(piece, offset, |part, offset| self.file.read_at(part, offset))?;
        piece.truncate(got);
        Ok(got)
    }

    /// Gives back the memory of a range, of whole pages.
    pub(crate) fn forget(&self, start: u64, end: u64) {
        punch(&self.file, start, end - start);
    }
}

/// Reads until `piece` is full or there is no more.
fn fill(
    piece: &mut [u8],
    offset: u64,
    read_at: impl Fn(&mut [u8], u64) -> io::Result<usize>,
) -> io::Result<usize> {
    let (mut got, mut interruptions) = (0, 0);
    while got < piece.len() {
        match read_at(&mut piece[got..], offset.saturating_add(got as u64)) {
            Ok(0) => break,
            Ok(count) => (got, interruptions) = (got + count, 0),
            Err(e) if e.kind() == ErrorKind::Interrupted && interruptions < INTERRUPTIONS => {
                interruptions += 1;
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => return Err(ErrorKind::TimedOut.into()),
            Err(e) if is_out_of_memory(e.raw_os_error()) => return Err(ErrorKind::OutOfMemory.into()),
            Err(e) => return Err(e),
        }
    }
    Ok(got)
}

impl Descriptor for Regular {
    fn number(&self) -> RawFd {
        self.open.file.as_raw_fd()
    }
}

impl Content for Regular {
    type Received = OwnedFd;
    type Piece = Vec<u8>;

    fn of(received: OwnedFd) -> Result<Self, OwnedFd> {
        let file = File::from(received);
        let Some(Facts { medium, is_empty, has_name, size_on_medium, is_sealed }) =
            facts_of_memory(&file).or_else(|| facts(&file))
        else {
            return Err(file.into());
        };
        let is_ours_to_write = !is_sealed && may_be_written(&file);
        let open = Arc::new(Open { file, closing: OnceLock::new() });
        Ok(Regular { open, medium, is_empty, has_name, size_on_medium, is_ours_to_write })
    }

    fn into_received(self) -> Result<OwnedFd, Self> {
        Arc::try_unwrap(self.open)
            .map(|Open { file, .. }| file.into())
            .map_err(|open| Regular { open, ..self })
    }

    fn is_empty(&self) -> bool {
        self.is_empty
    }

    /// Only Linux reads memory without the lock that whoever writes to it holds: for ever, if what he writes is in memory
    /// that does not come.
    fn is_prompt(&self) -> bool {
        self.medium == Medium::Memory && cfg!(any(target_os = "linux", target_os = "android"))
    }

    fn is_in_memory(&self) -> bool {
        self.medium == Medium::Memory
    }

    fn has_name(&self) -> bool {
        self.has_name
    }

    fn size_on_medium(&self) -> Option<u64> {
        self.size_on_medium
    }

    fn read(&self, offset: u64, most: usize, piece: &mut Vec<u8>) -> io::Result<usize> {
        self.open.read(offset, most, piece)
    }
}

// What follows is asked by who must not wait. fstat(2), fstatfs(2) and close(2) may, where a file is on another machine
// or in a program (NFS, FUSE).

/// What can be known of a file without asking its file system.
struct Facts {
    medium: Medium,
    is_empty: bool,
    has_name: bool,
    size_on_medium: Option<u64>,
    /// Whether it is not to be written any more.
    is_sealed: bool,
}

/// fcntl(2)
fn may_be_written(file: &File) -> bool {
    // SAFETY: F_GETFL takes nothing.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    flags >= 0 && flags & libc::O_ACCMODE != libc::O_RDONLY
}

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd", target_os = "netbsd"))] {
        /// <sys/fcntl.h>; libc lacks it.
        #[cfg(target_os = "netbsd")]
        const F_GET_SEALS: libc::c_int = 17;
        #[cfg(not(target_os = "netbsd"))]
        use libc::F_GET_SEALS;

        /// F_SEAL_WRITE and F_SEAL_FUTURE_WRITE, of which libc lacks one here and the other there.
        const NOT_TO_BE_WRITTEN: libc::c_int = 0x18;

        /// fcntl(2): only what is in memory has seals, be it of memfd_create(2), on FreeBSD of shm_open(2), or on Linux a
        /// file of a tmpfs.
        fn facts_of_memory(file: &File) -> Option<Facts> {
            // SAFETY: F_GET_SEALS takes nothing.
            let seals = unsafe { libc::fcntl(file.as_raw_fd(), F_GET_SEALS) };
            (seals >= 0).then(|| status_of_memory(file, seals & NOT_TO_BE_WRITTEN != 0))
        }
    } else {
        /// Nobody can tell.
        fn facts_of_memory(_: &File) -> Option<Facts> {
            None
        }
    }
}

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "linux", target_os = "android"))] {
        /// Whether [`facts`] are certain.
        const TELLS_FILES: bool = true;

        /// STATX_TYPE and STATX_BASIC_STATS, <linux/stat.h>; some libraries lack them.
        const TYPE: libc::c_uint = 1;
        const ALL: libc::c_uint = 0x7ff;

        struct Status {
            is_file: bool,
            links: u64,
            size: u64,
            size_on_medium: u64,
            system: u64,
        }

        /// statx(2): with AT_STATX_DONT_SYNC it is what this system knows; CIFS still waits for what is being written if
        /// it is asked for a size. What is not asked for comes along where it is known. Kernels before 4.11 have it
        /// not, and may ask.
        #[cfg(any(target_env = "gnu", target_env = "musl", target_os = "android"))]
        fn status(file: &File, mask: libc::c_uint) -> Option<Status> {
            const FLAGS: libc::c_int = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
            let mut it = std::mem::MaybeUninit::<libc::statx>::uninit();
            // SAFETY: statx(2) reads the empty name and fills in the structure; both outlive the call. The C library's
            // own function of that name came late.
            let told = unsafe {
                libc::syscall(libc::SYS_statx, file.as_raw_fd(), c"".as_ptr(), FLAGS, mask, it.as_mut_ptr())
            };
            if told != 0 {
                return status_asked(file, mask);
            }
            // SAFETY: it has succeeded, and so has filled it in.
            let it = unsafe { it.assume_init() };
            Some(Status {
                is_file: libc::mode_t::from(it.stx_mode) & libc::S_IFMT == libc::S_IFREG,
                links: it.stx_nlink.into(),
                size: it.stx_size,
                size_on_medium: it.stx_blocks.saturating_mul(512),
                system: (u64::from(it.stx_dev_major) << 32) | u64::from(it.stx_dev_minor),
            })
        }

        #[cfg(not(any(target_env = "gnu", target_env = "musl", target_os = "android")))]
        use status_asked as status;

        /// fstat(2).
        fn status_asked(file: &File, _: libc::c_uint) -> Option<Status> {
            let it = file.metadata().ok()?;
            let (size_on_medium, system) = (it.blocks().saturating_mul(512), it.dev());
            Some(Status { is_file: it.is_file(), links: it.nlink(), size: it.size(), size_on_medium, system })
        }

        fn status_of_memory(file: &File, is_sealed: bool) -> Facts {
            let it = status(file, ALL);
            let size_on_medium = it.as_ref().map(|it| it.size_on_medium);
            let has_name = it.is_some_and(|it| it.links > 0);
            Facts { medium: Medium::Memory, is_empty: false, has_name, size_on_medium, is_sealed }
        }

        /// What nobody can tell is no file.
        fn facts(file: &File) -> Option<Facts> {
            let it = status(file, TYPE).filter(|it| it.is_file)?;
            Some(Facts {
                medium: Medium::System(it.system),
                is_empty: it.size == 0,
                has_name: it.links > 0,
                size_on_medium: Some(it.size_on_medium),
                is_sealed: false,
            })
        }
    } else {
        const TELLS_FILES: bool = false;

        #[cfg(any(target_os = "freebsd", target_os = "netbsd"))]
        fn status_of_memory(_: &File, is_sealed: bool) -> Facts {
            let (medium, size_on_medium) = (Medium::Memory, None);
            Facts { medium, is_empty: false, has_name: false, size_on_medium, is_sealed }
        }

        /// It may be one if it is no socket. To ask for its offset would take the lock of a file that is being read.
        fn facts(file: &File) -> Option<Facts> {
            // SAFETY: getsockopt(2): SO_TYPE fills in an int.
            let asked = unsafe {
                crate::socket_option::<libc::c_int>(file.as_raw_fd(), libc::SOL_SOCKET, libc::SO_TYPE)
            };
            asked.is_err().then_some(Facts {
                medium: Medium::Unknown,
                is_empty: false,
                has_name: true,
                size_on_medium: None,
                is_sealed: false,
            })
        }
    }
}

cfg_if::cfg_if! {
    if #[cfg(any(target_os = "linux", target_os = "android"))] {
        /// Whether [`punch`] does anything.
        pub(crate) const FORGETS: bool = true;

        /// fallocate(2). It waits for whoever writes to the file.
        fn punch(file: &File, start: u64, length: u64) {
            const MODE: libc::c_int = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            let (Ok(start), Ok(length)) = (start.try_into(), length.try_into()) else { return };
            // SAFETY: fallocate(2) takes numbers.
            let _ = crate::check(unsafe { libc::fallocate(file.as_raw_fd(), MODE, start, length) });
        }
    } else if #[cfg(target_os = "freebsd")] {
        pub(crate) const FORGETS: bool = true;

        /// fspacectl(2). It waits for whoever writes to the file.
        fn punch(file: &File, start: u64, length: u64) {
            let (Ok(r_offset), Ok(r_len)) = (start.try_into(), length.try_into()) else { return };
            let range = libc::spacectl_range { r_offset, r_len };
            let nothing = std::ptr::null_mut();
            // SAFETY: fspacectl(2) reads the range, which outlives the call; null is for who does not ask what is left.
            let _ = crate::check(unsafe {
                libc::fspacectl(file.as_raw_fd(), libc::SPACECTL_DEALLOC, &raw const range, 0, nothing)
            });
        }
    } else {
        pub(crate) const FORGETS: bool = false;

        /// The memory is given back at the end.
        fn punch(_: &File, _: u64, _: u64) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::{Real, content::content_tests};

    content_tests!(Real);

    fn content(file: File) -> Regular {
        Regular::of(file.into()).expect("it is a file")
    }

    #[cfg(target_os = "linux")]
    fn memory(bytes: usize) -> File {
        use std::io::Write;
        use std::os::fd::FromRawFd;
        let flags = libc::MFD_ALLOW_SEALING;
        // SAFETY: memfd_create(2) reads the name and returns a descriptor that nobody else has.
        let file =
            unsafe { File::from_raw_fd(crate::check(libc::memfd_create(c"test".as_ptr(), flags)).unwrap()) };
        (&file).write_all(&vec![7; bytes]).unwrap();
        file
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_memory_file_is_prompt_and_gives_its_memory_back() {
        let file = memory(1 << 20);
        let blocks = file.try_clone().unwrap();
        let content = content(file);
        assert!(
            content.is_prompt() && content.is_in_memory() && !content.has_name() && content.is_ours_to_write
        );
        assert_eq!(content.size_on_medium(), Some(1 << 20));
        content.open.forget(0, 1 << 19);
        assert_eq!(blocks.metadata().unwrap().blocks() * 512, 1 << 19);
        let mut piece = Vec::new();
        assert_eq!(content.read(1 << 19, 1 << 19, &mut piece).unwrap(), 1 << 19);
        assert!(piece.iter().all(|&byte| byte == 7));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_is_sealed_or_was_opened_to_be_read_gives_nothing_back() {
        let file = memory(1);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert!(!content(File::open(path).unwrap()).is_ours_to_write);
        // SAFETY: F_ADD_SEALS takes an int.
        crate::check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) })
            .unwrap();
        assert!(!content(file).is_ours_to_write);
    }

    /// Nothing but its type is asked of what is on a disk.
    #[test]
    #[cfg(target_os = "linux")]
    fn what_a_file_on_a_disk_is_comes_along() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        let file = File::open(path).unwrap();
        let is = file.metadata().unwrap();
        let content = content(file);
        let it = status(&content.open.file, TYPE).unwrap();
        assert_eq!((it.size, it.links, it.size_on_medium), (is.size(), is.nlink(), is.blocks() * 512));
        assert!(!content.is_prompt() && !content.is_in_memory() && content.has_name());
        assert_eq!(content.medium, Medium::System(it.system));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn what_proc_says_is_nothing_to_be_sent() {
        // An emulator makes some of them itself, as /proc/self/stat, but not this one.
        assert!(content(File::open("/proc/self/status").unwrap()).is_empty());
        assert!(!content(File::open("/proc/self/exe").unwrap()).is_empty());
        assert!(!content(memory(0)).is_empty());
    }

    #[test]
    fn what_may_not_be_read_says_so() {
        use std::io::Write;
        let path = std::env::temp_dir().join(format!("lingerd-write-only-{}", std::process::id()));
        let mut file = File::create(&path).unwrap();
        file.write_all(b"x").unwrap();
        std::fs::remove_file(&path).unwrap();
        let error = content(file).read(0, 1, &mut Vec::new()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    #[test]
    fn who_is_always_interrupted_gives_up_and_who_is_now_and_then_does_not() {
        use std::cell::Cell;
        let interrupted = || io::Error::from(ErrorKind::Interrupted);
        let mut piece = [0; 1_000];
        let error = fill(&mut piece, 0, |_, _| Err(interrupted())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        let calls = Cell::new(0);
        let now_and_then = |part: &mut [u8], offset| {
            calls.set(calls.get() + 1);
            part[0] = (offset % 7) as u8;
            if calls.get() % 2 == 0 { Ok(1) } else { Err(interrupted()) }
        };
        assert_eq!(fill(&mut piece, 5, now_and_then).unwrap(), 1_000);
        assert!((5_u64..).zip(piece).all(|(offset, byte)| byte == (offset % 7) as u8));
    }
}
