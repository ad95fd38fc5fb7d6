//! Builds the Go module beside this crate as a C archive and links it.
//!
//! `LIBTAILSCALE_LIB_DIR` names a directory with a `libtailscale.a` that was built before; no Go
//! is needed then.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const ARCHIVE: &str = "libtailscale.a";

fn main() -> ExitCode {
    println!("cargo::rerun-if-env-changed=LIBTAILSCALE_LIB_DIR");
    let directory = match env::var_os("LIBTAILSCALE_LIB_DIR") {
        Some(directory) if !directory.is_empty() => prebuilt(PathBuf::from(directory)),
        _ => build(),
    };
    match directory {
        Ok(directory) => {
            println!("cargo::rustc-link-search=native={}", directory.display());
            // Not bundled: copying 30 MB into the rlib gains nothing.
            println!("cargo::rustc-link-lib=static:-bundle=tailscale");
            ExitCode::SUCCESS
        }
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn prebuilt(directory: PathBuf) -> Result<PathBuf, String> {
    let archive = directory.join(ARCHIVE);
    println!("cargo::rerun-if-changed={}", archive.display());
    if archive.is_file() {
        Ok(directory)
    } else {
        Err(format!(
            "LIBTAILSCALE_LIB_DIR is {}, where there is no {ARCHIVE}: build it there with \
             `go build -buildmode=c-archive` in vendor/libtailscale, or unset the variable",
            directory.display()
        ))
    }
}

fn build() -> Result<PathBuf, String> {
    let module =
        variable("CARGO_MANIFEST_DIR").map(|crate_directory| crate_directory.join(".."))?;
    let output = variable("OUT_DIR")?;
    watch(&module)?;
    require_go(&module)?;
    let run = go(&module)
        .args([
            "build",
            "-buildmode=c-archive",
            "-trimpath",
            "-buildvcs=false",
        ])
        .args(["-tags", "netgo,osusergo", "-ldflags", "-s -w", "-o"])
        .arg(output.join(ARCHIVE))
        .arg(".")
        .status()
        .map_err(|error| format!("cannot run go build: {error}"))?;
    if run.success() {
        Ok(output)
    } else {
        Err(format!(
            "go build of {} failed, see its messages above; it needs a C compiler, and the module \
             proxy or a filled module cache",
            module.display()
        ))
    }
}

/// Says what the archive is made of.
fn watch(module: &Path) -> Result<(), String> {
    println!(
        "cargo::rerun-if-changed={}",
        module.join("engine").display()
    );
    let entries = fs::read_dir(module)
        .map_err(|error| format!("cannot read {}: {error}", module.display()))?;
    for path in entries.flatten().map(|entry| entry.path()) {
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("go" | "c" | "h" | "mod" | "sum")) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    for name in ["CC", "CGO_CFLAGS", "GOFLAGS", "GOTOOLCHAIN", "PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    Ok(())
}

fn go(module: &Path) -> Command {
    let mut command = Command::new("go");
    command.current_dir(module).env("CGO_ENABLED", "1");
    let architecture = match env::var("CARGO_CFG_TARGET_ARCH").as_deref() {
        Ok("x86_64") => Some("amd64"),
        Ok("aarch64") => Some("arm64"),
        _ => None,
    };
    if let Some(architecture) = architecture {
        command.env("GOOS", "linux").env("GOARCH", architecture);
    }
    command
}

fn require_go(module: &Path) -> Result<(), String> {
    let needed = needed_version(module)?;
    let advice = format!(
        "install Go {needed} or newer from https://go.dev/dl, or set LIBTAILSCALE_LIB_DIR to a \
         directory with a prebuilt {ARCHIVE}"
    );
    let answer = go(module)
        .args(["env", "GOVERSION"])
        .output()
        .map_err(|error| {
            format!("libtailscale is written in Go, and go cannot be run ({error}): {advice}")
        })?;
    let found = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    if !answer.status.success() {
        let reason = String::from_utf8_lossy(&answer.stderr)
            .trim()
            .replace('\n', " ");
        return Err(format!("go refuses this module ({reason}): {advice}"));
    }
    // A version that does not read like one is a development build, which may be anything.
    match (numbers(found.trim_start_matches("go")), numbers(&needed)) {
        (Some(have), Some(want)) if have < want => Err(format!(
            "libtailscale needs Go {needed} and this is {found}: {advice}"
        )),
        _ => Ok(()),
    }
}

/// The version on the `go` line of go.mod.
fn needed_version(module: &Path) -> Result<String, String> {
    let path = module.join("go.mod");
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("go "))
        .map(|version| version.trim().to_owned())
        .ok_or_else(|| format!("{} has no go line", path.display()))
}

fn numbers(version: &str) -> Option<Vec<u32>> {
    let plain = version
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()?;
    plain.split('.').map(|part| part.parse().ok()).collect()
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is not set: this is to be run by cargo"))
}
