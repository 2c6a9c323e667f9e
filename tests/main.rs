//! The one integration test binary. Each module holds the tests of one part.

mod backends;
mod cli;
mod queue;
mod supervision;
mod tidy;
mod worker;
