// SPDX-License-Identifier: BSD-3-Clause

//! `KQUEUE_LIB_DIR`, if set, names the folder of a built libkqueue: it is linked in the emulation's
//! place. The dynamic linker has to find it too (LD_LIBRARY_PATH).

fn main() {
    println!("cargo::rerun-if-env-changed=KQUEUE_LIB_DIR");
    println!("cargo::rustc-check-cfg=cfg(libkqueue)");
    if let Ok(folder) = std::env::var("KQUEUE_LIB_DIR") {
        println!("cargo::rustc-cfg=libkqueue");
        println!("cargo::rustc-link-search=native={folder}");
        println!("cargo::rustc-link-lib=kqueue");
    }
}
