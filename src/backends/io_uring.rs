//! Completions on Linux through io_uring.
