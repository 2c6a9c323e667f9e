//! The one integration test binary. Each module holds the tests of one part.

mod backends;
mod simulation;
mod cli;
mod proxy;
mod supervision;
mod support;
mod tidy;
mod worker;
