//! All tests of tailway that are not beside the code they test: one binary.

mod floors;
