//! A seeded network in memory, for tests.
