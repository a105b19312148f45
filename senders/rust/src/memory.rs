// SPDX-License-Identifier: BSD-3-Clause

//! Files that nobody else has, for what is in memory.

use crate::Part;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use std::fs::File;
use std::io::{self, Write};

/// One with all that is in memory, in order; `None` where nothing is.
///
/// # Errors
/// EFBIG, too, for more than RLIMIT_FSIZE lets a file have: a write(2) beyond it is a signal that ends the process.
pub fn of(parts: &[Part<'_>]) -> io::Result<Option<File>> {
    let length = |part: &Part<'_>| if let Part::Memory(bytes) = part { bytes.len() as u64 } else { 0 };
    if getrlimit(Resource::Fsize).current.is_some_and(|most| parts.iter().map(length).sum::<u64>() > most) {
        return Err(Errno::FBIG.into());
    }
    let mut memory = None;
    for part in parts {
        if let Part::Memory(bytes) = part {
            let file = match &mut memory {
                Some(file) => file,
                none => none.insert(unnamed()?),
            };
            file.write_all(bytes)?;
        }
    }
    Ok(memory)
}

/// A file without a name, which no program inherits.
#[cfg(any(target_os = "linux", target_os = "android", target_os = "freebsd"))]
fn unnamed() -> io::Result<File> {
    use rustix::fs::{MemfdFlags, memfd_create};

    // That it is no program: a Linux may be told to have no others, and one older than 6.3 does not know it.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    match memfd_create(c"lingerd", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => {}
        made => return Ok(made?.into()),
    }
    Ok(memfd_create(c"lingerd", MemfdFlags::CLOEXEC)?.into())
}

/// The same where files in memory have names, or are none that can be written to.
#[cfg(not(any(target_os = "linux", target_os = "android", target_os = "freebsd")))]
fn unnamed() -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    static NEXT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..100 {
        let name = format!("lingerd.{}.{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        match File::options().read(true).write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => {
                let file = made?;
                std::fs::remove_file(path)?;
                return Ok(file);
            }
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}
