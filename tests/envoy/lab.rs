//! Namespaces of a test's own, and programs in them.

use crate::{cluster::network::Network, tailnet::world::eventually};
use std::{
    fs::{self, File},
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};
use tempfile::TempDir;

/// The directory with `envoy` and `envoy-gateway`, built if that was not done before.
pub fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        let built = Command::new(script("build.sh"))
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(built.status.success(), "the lab is not built, see above");
        String::from_utf8(built.stdout).unwrap().trim().into()
    })
}

/// A program of the folder `lab`.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/envoy/lab")
        .join(name)
}

/// Network, mount and process namespaces. There is a loopback and nothing else, and names are
/// looked up at 127.0.0.1. They end with their value, or with the process of the tests.
pub struct Namespaces {
    first: Child,
    network: Network,
    // Last, as programs write there.
    directory: TempDir,
}

impl Namespaces {
    /// `hosts` is what programs find in /etc/hosts.
    pub fn new(hosts: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("tailway-envoy-")
            .tempdir()
            .unwrap();
        for (name, text) in [("hosts", hosts), ("resolv.conf", "nameserver 127.0.0.1\n")] {
            fs::write(directory.path().join(name), text).unwrap();
        }
        fs::create_dir(directory.path().join("log")).unwrap();
        let mut first = Command::new("unshare")
            .args(["--net", "--mount", "--pid", "--fork", "--kill-child"])
            .arg("--mount-proc")
            .arg(script("namespaces.sh"))
            .arg(directory.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(first.stdout.take().unwrap())
            .read_line(&mut said)
            .unwrap();
        assert_eq!(said, "ready\n", "there are no namespaces, see above");
        Self {
            network: Network::enter(Path::new(&format!("/proc/{}/ns/net", first.id()))),
            first,
            directory,
        }
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Futures on it have their sockets in there.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Starts a program in there, with what `configure` adds.
    pub fn start(
        &self,
        name: &str,
        program: &Path,
        configure: impl FnOnce(&mut Command),
    ) -> Program {
        let first = self.first.id().to_string();
        let log = self.directory().join("log").join(name);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &first, "--net", "--mount"])
            // A process namespace takes a child to enter it, and the child is to go with who
            // started it.
            .arg(format!("--pid=/proc/{first}/ns/pid_for_children"))
            .arg(format!("--wd={}", self.directory().display()))
            .args(["--", "setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        configure(&mut command);
        Program {
            child: command.spawn().unwrap(),
            log,
        }
    }

    /// Keeps what programs logged.
    pub fn explain(&self) {
        let name = self.directory().file_name().unwrap_or_default();
        let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let copied = Command::new("cp")
            .arg("--recursive")
            .arg(self.directory().join("log"))
            .arg(&kept)
            .status();
        if copied.is_ok_and(|status| status.success()) {
            eprintln!("the logs of the scene are in {}", kept.display());
        }
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.explain();
        }
        drop(self.first.stdin.take());
        if let Err(error) = self.first.wait() {
            eprintln!(
                "the namespaces of {:?} were not waited for: {error}",
                self.directory
            );
        }
    }
}

/// A program in namespaces. Killed with its value.
pub struct Program {
    child: Child,
    log: PathBuf,
}

impl Program {
    /// What it and those before it under its name have written.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has written `text` after the first `from` bytes of its log.
    pub async fn says(&self, text: &str, from: usize) {
        eventually(&format!("{:?} has {text:?}", self.log), || async {
            self.log()[from..].contains(text).then_some(())
        })
        .await;
    }

    /// Waits for its end, which must be a success.
    pub fn finish(mut self) {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.log());
    }

    /// Sends a signal, such as `STOP`.
    pub async fn signal(&self, name: &str) {
        let parent = self.child.id();
        let children = format!("/proc/{parent}/task/{parent}/children");
        let pid = eventually("the program is there", || async {
            let pids = fs::read_to_string(&children).ok()?;
            pids.split_whitespace().next().map(str::to_owned)
        })
        .await;
        let sent = Command::new("kill")
            .args([&format!("-{name}"), &pid])
            .status()
            .unwrap();
        assert!(sent.success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // An error is a program that has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
