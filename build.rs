//! Turns target and features into one cfg for each compiled backend: `backend_readiness` and `backend_io_uring`.
//! Fails with one clear sentence when none is left.

use std::env;

fn main() {
    println!("cargo::rustc-check-cfg=cfg(backend_readiness, backend_io_uring)");
    println!("cargo::rerun-if-changed=build.rs");
    let target = env::var("CARGO_CFG_TARGET_OS").unwrap_or_default();
    let feature = |name: &str| env::var_os(format!("CARGO_FEATURE_{name}")).is_some();
    let bsd = ["macos", "ios", "freebsd", "netbsd", "openbsd", "dragonfly"].contains(&target.as_str());
    let readiness = (target == "linux" && feature("EPOLL")) || (bsd && feature("KQUEUE"));
    let io_uring = target == "linux" && feature("IO_URING");
    if readiness {
        println!("cargo::rustc-cfg=backend_readiness");
    }
    if io_uring {
        println!("cargo::rustc-cfg=backend_io_uring");
    }
    if !readiness && !io_uring {
        println!(
            "cargo::error=no backend is left for target {target}: enable the feature `epoll` or `io-uring` on Linux, \
             `kqueue` on macOS and the BSDs"
        );
    }
}
