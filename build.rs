//! Compiles the messages of `src/discovery`, without protoc.

use std::process::ExitCode;

const DIRECTORY: &str = "src/discovery";
const FILE: &str = "src/discovery/snapshot.proto";

/// Messages that hold a secret: their `Debug` is written by hand, beside them.
const SECRET: [&str; 2] = [
    "tailway.discovery.v1.AuthKey",
    "tailway.discovery.v1.Certificate",
];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed={FILE}");
    let compiled = protox::compile([FILE], [DIRECTORY])
        .map_err(|error| error.to_string())
        .and_then(|descriptors| {
            tonic_prost_build::configure()
                .skip_debug(SECRET)
                .compile_fds(descriptors)
                .map_err(|error| error.to_string())
        });
    match compiled {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={FILE}: {error}");
            ExitCode::FAILURE
        }
    }
}
