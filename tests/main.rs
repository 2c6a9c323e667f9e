//! The one integration test binary. Each module holds the tests of one part.

mod backends;
mod checking;
mod cli;
mod configuration;
mod conformance;
mod control;
mod crowds;
mod environment;
mod hot_reload;
mod listen;
mod lives;
mod logs;
mod module;
mod panics;
mod proxy;
mod queue;
mod readiness;
mod simulation;
mod supervision;
mod support;
mod tidy;
mod units;
mod upgrades;
mod upstreams;
mod worker;
