//! Readiness through mio: epoll on Linux, kqueue on macOS and the BSDs.
