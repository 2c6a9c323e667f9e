//! Tests of what the conformance suite cannot see.
