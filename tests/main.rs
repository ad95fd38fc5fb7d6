//! All tests of tailway that are not beside the code they test: one binary.
#![allow(unreachable_pub, reason = "helpers are shared by the modules of one binary")]

mod floors;
mod tailnet;
