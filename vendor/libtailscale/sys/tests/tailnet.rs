//! Two nodes of a local tailnet through the C functions: callbacks, fds, ends and signals.

use libtailscale_sys as sys;
use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{FromRawFd, IntoRawFd},
        unix::net::UnixStream,
    },
    path::PathBuf,
    process::{Child, Command, Stdio},
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

const DEADLINE: Duration = Duration::from_secs(60);
const DEADLINE_MS: u64 = 60_000;

// === the tailnet ===

struct Tailnet {
    control_url: CString,
    auth_key: CString,
    _process: Child,
}

fn tailnet() -> &'static Tailnet {
    static TAILNET: OnceLock<Tailnet> = OnceLock::new();
    TAILNET.get_or_init(|| {
        // It ends when this process does, and with it the pipe.
        let mut process = Command::new(program())
            .arg("-exit-with-stdin")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        let text = |name: &str| CString::new(ready[name].as_str().unwrap()).unwrap();
        for (name, value) in ready["env"].as_object().unwrap() {
            let (name, value) = (
                CString::new(name.as_str()),
                CString::new(value.as_str().unwrap()),
            );
            // SAFETY: both strings are NUL-terminated.
            let code =
                unsafe { sys::tailscale_setenv(name.unwrap().as_ptr(), value.unwrap().as_ptr()) };
            assert_eq!(code, 0);
        }
        Tailnet {
            control_url: text("control_url"),
            auth_key: text("auth_key"),
            _process: process,
        }
    })
}

/// The program localtailnet: `TAILWAY_LOCALTAILNET`, else built for these tests.
fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("TAILWAY_LOCALTAILNET").map(PathBuf::from)
        && program.is_file()
    {
        return program;
    }
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("localtailnet");
    let built = Command::new("go")
        .args([
            "build",
            "-trimpath",
            "-buildvcs=false",
            "-tags",
            "netgo,osusergo",
            "-o",
        ])
        .arg(&program)
        .arg("./cmd/localtailnet")
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .unwrap();
    assert!(built.success());
    program
}

// === callbacks ===

type Ended = (c_int, String);

/// # Safety
/// `text` is readable for `len` bytes.
unsafe fn owned(text: *const c_char, len: usize) -> String {
    // SAFETY: as the caller promises.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    String::from_utf8(bytes.to_vec()).unwrap()
}

unsafe extern "C" fn done(user: *mut c_void, status: c_int, text: *const c_char, len: usize) {
    // SAFETY: `user` is a sender that lives for ever; the text is readable for `len` bytes.
    let (sender, text) = unsafe { (&*user.cast::<mpsc::Sender<Ended>>(), owned(text, len)) };
    sender.send((status, text)).unwrap();
}

enum Accepted {
    Connection(u64, SocketAddr, SocketAddr, u64),
    End,
}

unsafe extern "C" fn decide(user: *mut c_void, flow: *const sys::tailscale_flow) -> c_int {
    assert!(!user.is_null());
    // SAFETY: the flow is readable during the call.
    c_int::from(unsafe { (*flow).dst_port } != 81)
}

unsafe extern "C" fn accept(user: *mut c_void, conn: u64, flow: *const sys::tailscale_flow) {
    // SAFETY: `user` is a sender that lives for ever; the flow is NULL or readable.
    let (sender, flow) = unsafe { (&*user.cast::<mpsc::Sender<Accepted>>(), flow.as_ref()) };
    let event = match flow {
        None => Accepted::End,
        Some(flow) => Accepted::Connection(
            conn,
            address(flow.family, &flow.src_ip, flow.src_port),
            address(flow.family, &flow.dst_ip, flow.dst_port),
            flow.node,
        ),
    };
    sender.send(event).unwrap();
}

unsafe extern "C" fn dialed(
    user: *mut c_void,
    status: c_int,
    conn: u64,
    flow: *const sys::tailscale_flow,
    text: *const c_char,
    len: usize,
) {
    // SAFETY: `user` is a sender that lives for ever; the text is readable for `len` bytes.
    let (sender, text) = unsafe {
        (
            &*user.cast::<mpsc::Sender<(c_int, u64, String)>>(),
            owned(text, len),
        )
    };
    assert_eq!(flow.is_null(), status != 0);
    sender.send((status, conn, text)).unwrap();
}

unsafe extern "C" fn spliced(user: *mut c_void, stats: *const sys::tailscale_conn_stats) {
    // SAFETY: `user` is a sender that lives for ever; the statistics are readable.
    let (sender, stats) = unsafe {
        (
            &*user.cast::<mpsc::Sender<sys::tailscale_conn_stats>>(),
            *stats,
        )
    };
    sender.send(stats).unwrap();
}

fn address(family: u8, ip: &[u8; 16], port: u16) -> SocketAddr {
    let ip: IpAddr = if family == 4 {
        Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]).into()
    } else {
        Ipv6Addr::from(*ip).into()
    };
    SocketAddr::new(ip, port)
}

/// A channel whose sender outlives every callback.
fn channel<T>() -> (*mut c_void, mpsc::Receiver<T>) {
    let (sender, receiver) = mpsc::channel::<T>();
    (Box::into_raw(Box::new(sender)).cast::<c_void>(), receiver)
}

// === nodes ===

fn last_error() -> String {
    let mut text = [0u8; 4096];
    // SAFETY: the buffer is writable for the length given.
    unsafe { sys::tailscale_errmsg(0, text.as_mut_ptr().cast::<c_char>(), text.len()) };
    CStr::from_bytes_until_nul(&text)
        .unwrap()
        .to_string_lossy()
        .into_owned()
}

fn new_node(hostname: &CStr, key: Option<&CStr>) -> sys::tailscale {
    let tailnet = tailnet();
    // SAFETY: all strings are NUL-terminated.
    unsafe {
        let sd = sys::tailscale_new();
        assert_eq!(sys::tailscale_set_memory_store(sd), 0);
        assert_eq!(sys::tailscale_set_hostname(sd, hostname.as_ptr()), 0);
        assert_eq!(
            sys::tailscale_set_control_url(sd, tailnet.control_url.as_ptr()),
            0
        );
        if let Some(key) = key {
            assert_eq!(sys::tailscale_set_authkey(sd, key.as_ptr()), 0);
        }
        sd
    }
}

/// A node that is up, and its address.
fn up(hostname: &CStr) -> (sys::tailscale, IpAddr) {
    let sd = new_node(hostname, Some(&tailnet().auth_key));
    let (user, ended) = channel::<Ended>();
    // SAFETY: `done` takes what `channel` made.
    let code = unsafe { sys::tailscale_up(sd, DEADLINE_MS, Some(done), user, ptr::null_mut()) };
    assert_eq!(code, 0);
    let (status, text) = ended.recv_timeout(DEADLINE).unwrap();
    assert_eq!(status, 0, "{text}");
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["state"], "Running");
    (sd, status["ips"][0].as_str().unwrap().parse().unwrap())
}

fn listen(sd: sys::tailscale) -> mpsc::Receiver<Accepted> {
    let (user, accepted) = channel::<Accepted>();
    // SAFETY: the callbacks take what `channel` made.
    let code = unsafe { sys::tailscale_listen(sd, Some(decide), Some(accept), user) };
    assert_eq!(code, 0, "{}", last_error());
    accepted
}

/// Connects, trying again while the node has not heard of the other.
fn dial(sd: sys::tailscale, to: SocketAddr) -> Result<u64, String> {
    let (user, ended) = channel::<(c_int, u64, String)>();
    let to = CString::new(to.to_string()).unwrap();
    let started = Instant::now();
    loop {
        // SAFETY: the string is NUL-terminated; `dialed` takes what `channel` made.
        let code = unsafe {
            let op = ptr::null_mut();
            sys::tailscale_dial(sd, to.as_ptr(), DEADLINE_MS, Some(dialed), user, op)
        };
        assert_eq!(code, 0);
        let (status, conn, text) = ended.recv_timeout(DEADLINE).unwrap();
        match status {
            0 => return Ok(conn),
            _ if text.contains("nobody in the tailnet") && started.elapsed() < DEADLINE => {
                thread::sleep(Duration::from_millis(10));
            }
            _ => return Err(text),
        }
    }
}

fn accepted(from: &mpsc::Receiver<Accepted>) -> (u64, SocketAddr, SocketAddr, u64) {
    match from.recv_timeout(DEADLINE).unwrap() {
        Accepted::Connection(conn, source, destination, node) => (conn, source, destination, node),
        Accepted::End => panic!("the listener ended"),
    }
}

fn open(conn: u64) -> UnixStream {
    let mut fd = -1;
    // SAFETY: `fd` is valid for writing; on success it is open and ours.
    let stream = unsafe {
        assert_eq!(sys::tailscale_conn_fd(conn, &mut fd), 0, "{}", last_error());
        UnixStream::from_raw_fd(fd)
    };
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// One of these tests sends signals to all threads, which interrupts reads with a timeout.
fn read(from: &mut UnixStream, to: &mut [u8]) -> usize {
    loop {
        match from.read(to) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            result => return result.unwrap(),
        }
    }
}

fn stats(conn: u64) -> sys::tailscale_conn_stats {
    let mut stats = sys::tailscale_conn_stats {
        received: 9,
        sent: 9,
        end: 9,
    };
    // SAFETY: `stats` is valid for writing.
    assert_eq!(unsafe { sys::tailscale_conn_stat(conn, &mut stats) }, 0);
    stats
}

fn await_end(conn: u64, end: u32) {
    let started = Instant::now();
    while stats(conn).end.cast_unsigned() != end {
        assert!(
            started.elapsed() < DEADLINE,
            "the end is {}, not {end}",
            stats(conn).end
        );
        thread::sleep(Duration::from_millis(2));
    }
}

fn close(sd: sys::tailscale) {
    let (user, ended) = channel::<Ended>();
    // SAFETY: `done` takes what `channel` made.
    let code = unsafe { sys::tailscale_close(sd, DEADLINE_MS, Some(done), user) };
    assert_eq!(code, 0);
    assert_eq!(ended.recv_timeout(DEADLINE).unwrap(), (0, String::new()));
}

fn release(conn: u64) {
    // SAFETY: takes a number.
    assert_eq!(unsafe { sys::tailscale_conn_release(conn) }, 0);
}

#[test]
fn a_connection_is_decided_accepted_opened_and_ended() {
    let ((client, client_ip), (server, server_ip)) = (up(c"client"), up(c"server"));
    let incoming = listen(server);

    let refused = dial(client, SocketAddr::new(server_ip, 81));
    assert!(refused.unwrap_err().contains("refused"));

    let ours = dial(client, SocketAddr::new(server_ip, 80)).unwrap();
    let (theirs, source, destination, node) = accepted(&incoming);
    assert_eq!(
        (source.ip(), destination),
        (client_ip, SocketAddr::new(server_ip, 80))
    );
    assert_ne!(node, 0);

    let (mut near, mut far) = (open(ours), open(theirs));
    near.write_all(b"question").unwrap();
    near.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    far.read_to_string(&mut text).unwrap();
    assert_eq!(text, "question");
    far.write_all(b"the answer").unwrap();
    far.shutdown(std::net::Shutdown::Write).unwrap();
    text.clear();
    near.read_to_string(&mut text).unwrap();
    assert_eq!(text, "the answer");
    await_end(ours, sys::TAILSCALE_END_EOF);
    await_end(theirs, sys::TAILSCALE_END_EOF);
    assert_eq!((stats(theirs).received, stats(theirs).sent), (8, 10));
    release(ours);
    release(theirs);

    // SAFETY: takes a number.
    assert_eq!(unsafe { sys::tailscale_unlisten(server) }, 0);
    assert!(matches!(incoming.recv_timeout(DEADLINE), Ok(Accepted::End)));
    close(client);
    close(server);
    assert!(incoming.try_recv().is_err(), "the listener ended twice");
}

#[test]
fn a_spliced_connection_reports_its_end() {
    let ((client, _), (server, server_ip)) = (up(c"splicing"), up(c"spliced"));
    let incoming = listen(server);
    let ours = dial(client, SocketAddr::new(server_ip, 80)).unwrap();
    let (theirs, ..) = accepted(&incoming);

    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let given = TcpStream::connect(backend.local_addr().unwrap()).unwrap();
    let (mut backend, _) = backend.accept().unwrap();
    let (user, ended) = channel::<sys::tailscale_conn_stats>();
    let prefix = b"first ";
    // SAFETY: the prefix is readable; `spliced` takes what `channel` made; the socket is given away.
    let code = unsafe {
        let (fd, prefix_len) = (given.into_raw_fd(), prefix.len());
        sys::tailscale_conn_splice(
            theirs,
            fd,
            prefix.as_ptr().cast(),
            prefix_len,
            0,
            Some(spliced),
            user,
        )
    };
    assert_eq!(code, 0, "{}", last_error());
    release(theirs); // a running stream goes on

    let mut near = open(ours);
    near.write_all(b"then").unwrap();
    near.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    backend.read_to_string(&mut text).unwrap();
    assert_eq!(text, "first then");
    drop(backend);
    assert_eq!(read(&mut near, &mut [0]), 0);
    let end = ended.recv_timeout(DEADLINE).unwrap();
    assert_eq!(
        (end.received, end.sent, end.end.cast_unsigned()),
        (4, 0, sys::TAILSCALE_END_EOF)
    );
    release(ours);
    close(client);
    close(server);
}

#[test]
fn closing_a_node_ends_its_operations_watches_and_connections() {
    let ((client, _), (server, server_ip)) = (up(c"closing"), up(c"closed"));
    let incoming = listen(server);
    let ours = dial(client, SocketAddr::new(server_ip, 80)).unwrap();
    let (theirs, ..) = accepted(&incoming);
    let (near, mut far) = (open(ours), open(theirs));

    let (user, watched) = channel::<Ended>();
    // SAFETY: `done` takes what `channel` made.
    let code = unsafe { sys::tailscale_watch(server, Some(done), user, ptr::null_mut()) };
    assert_eq!(code, 0);
    let (status, text) = watched.recv_timeout(DEADLINE).unwrap();
    assert_eq!(status, 0);
    assert!(text.contains("\"state\":\"Running\""), "{text}");

    close(server);
    assert!(
        matches!(incoming.try_recv(), Ok(Accepted::End)),
        "the listener ended before the close"
    );
    let last = watched.try_iter().last().unwrap();
    assert_eq!(last.0, libc::ECANCELED, "the watch ended before the close");
    assert_eq!(read(&mut far, &mut [0]), 0);
    assert_eq!(stats(theirs).end.cast_unsigned(), sys::TAILSCALE_END_CLOSED);
    await_end(ours, sys::TAILSCALE_END_PEER_RESET);
    drop(near);
    release(ours);
    release(theirs);
    close(client);
}

#[test]
fn an_operation_that_is_cancelled_or_outlived_by_its_node_says_so() {
    for cancel in [true, false] {
        let sd = new_node(c"waiting", None);
        let (user, ended) = channel::<Ended>();
        let mut op = 0;
        // SAFETY: `done` takes what `channel` made; `op` is valid for writing.
        let code = unsafe { sys::tailscale_up(sd, 0, Some(done), user, &mut op) };
        assert_eq!(code, 0);
        if cancel {
            // SAFETY: takes a number.
            assert_eq!(unsafe { sys::tailscale_cancel(op) }, 0);
            assert_eq!(ended.recv_timeout(DEADLINE).unwrap().0, libc::ECANCELED);
        }
        close(sd);
        if !cancel {
            assert_eq!(
                ended.try_recv().unwrap().0,
                libc::ECANCELED,
                "it ended before the close"
            );
        }
        assert!(ended.try_recv().is_err(), "it ended twice");
    }
}

static SIGNALS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_signal(_: c_int) {
    // A few KiB of stack, which a goroutine does not have to spare.
    let frame = std::hint::black_box([1u8; 8 << 10]);
    SIGNALS.fetch_add(usize::from(frame[0]), Ordering::Relaxed);
}

#[test]
fn signals_to_every_thread_under_load_do_no_harm() {
    let ((client, _), (server, server_ip)) = (up(c"loading"), up(c"loaded"));
    let incoming = listen(server);
    let ours = dial(client, SocketAddr::new(server_ip, 80)).unwrap();
    let (theirs, ..) = accepted(&incoming);
    let (mut near, mut far) = (open(ours), open(theirs));

    // As tokio and others register theirs: without SA_ONSTACK.
    // SAFETY: the handler only adds to an atomic.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = count_signal as *const () as usize;
        action.sa_flags = libc::SA_RESTART;
        assert_eq!(libc::sigaction(libc::SIGUSR1, &action, ptr::null_mut()), 0);
        assert_eq!(sys::tailscale_signals_onstack(), 0);
        assert_eq!(libc::sigaction(libc::SIGUSR1, ptr::null(), &mut action), 0);
        assert_ne!(action.sa_flags & libc::SA_ONSTACK, 0);
    }
    static STOP: AtomicBool = AtomicBool::new(false);
    let storm = thread::spawn(|| {
        while !STOP.load(Ordering::Relaxed) {
            for thread in std::fs::read_dir("/proc/self/task").unwrap() {
                let id: libc::pid_t = thread
                    .unwrap()
                    .file_name()
                    .to_str()
                    .unwrap()
                    .parse()
                    .unwrap();
                // SAFETY: signals a thread of this process, or none when it ended.
                unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), id, libc::SIGUSR1) };
            }
            thread::sleep(Duration::from_micros(200));
        }
    });
    const SIZE: usize = 48 << 20;
    let writer = thread::spawn(move || {
        let block = vec![7u8; 1 << 20];
        for _ in 0..SIZE / block.len() {
            near.write_all(&block).unwrap();
        }
        near
    });
    let mut got = 0;
    let mut block = vec![0u8; 1 << 20];
    while got < SIZE {
        got += read(&mut far, &mut block);
    }
    let near = writer.join().unwrap();
    STOP.store(true, Ordering::Relaxed);
    storm.join().unwrap();
    assert!(
        SIGNALS.load(Ordering::Relaxed) > 100,
        "hardly a signal was sent"
    );
    drop((near, far));
    release(ours);
    release(theirs);
    close(client);
    close(server);
}
