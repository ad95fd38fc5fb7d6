//! What the border answers without any network: wrong, closed and never issued handles, NULL where
//! something is required, options, a node that is closed before it was started.

use libtailscale_sys as sys;
use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    io::Read,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd},
    os::unix::net::UnixStream,
    ptr,
    sync::mpsc,
    time::Duration,
};

// Of Linux, which is what the library runs on.
const EBADF: c_int = 9;
const EINVAL: c_int = 22;
const ERANGE: c_int = 34;

const DEADLINE: Duration = Duration::from_secs(30);

fn last_error() -> String {
    let mut text = [0u8; 4096];
    // SAFETY: the buffer is writable for the length given.
    let code = unsafe { sys::tailscale_errmsg(0, text.as_mut_ptr().cast::<c_char>(), text.len()) };
    assert_eq!(code, 0);
    CStr::from_bytes_until_nul(&text)
        .unwrap()
        .to_str()
        .unwrap()
        .to_owned()
}

type Ended = (c_int, String);

unsafe extern "C" fn done(user: *mut c_void, status: c_int, text: *const c_char, len: usize) {
    // SAFETY: `user` is the sender made by `ending`, given back once; the text is readable for len.
    let (sender, text) = unsafe {
        (
            Box::from_raw(user.cast::<mpsc::Sender<Ended>>()),
            std::slice::from_raw_parts(text.cast::<u8>(), len),
        )
    };
    sender
        .send((status, String::from_utf8(text.to_vec()).unwrap()))
        .unwrap();
}

fn ending() -> (*mut c_void, mpsc::Receiver<Ended>) {
    let (sender, receiver) = mpsc::channel::<Ended>();
    (Box::into_raw(Box::new(sender)).cast::<c_void>(), receiver)
}

unsafe extern "C" fn accepts_nothing(
    _: *mut c_void,
    _: sys::tailscale_conn,
    _: *const sys::tailscale_flow,
) {
}

unsafe extern "C" fn decides_nothing(_: *mut c_void, _: *const sys::tailscale_flow) -> c_int {
    0
}

unsafe extern "C" fn dialed_nothing(
    _: *mut c_void,
    _: c_int,
    _: sys::tailscale_conn,
    _: *const sys::tailscale_flow,
    _: *const c_char,
    _: usize,
) {
}

unsafe extern "C" fn spliced_nothing(_: *mut c_void, _: *const sys::tailscale_conn_stats) {}

unsafe extern "C" fn ends_nothing(_: *mut c_void, _: c_int, _: *const c_char, _: usize) {}

unsafe extern "C" fn reads_nothing(
    _: *mut c_void,
    _: *const c_char,
    _: *mut *mut c_char,
    _: *mut usize,
) -> c_int {
    5
}

unsafe extern "C" fn writes_nothing(
    _: *mut c_void,
    _: *const c_char,
    _: *const c_char,
    _: usize,
) -> c_int {
    5
}

/// What every function that takes a node answers for `sd`.
fn codes_of(sd: sys::tailscale) -> Vec<(&'static str, c_int)> {
    let text = c"100.64.0.1:80".as_ptr();
    let (mut out, mut len, mut op, mut fd, mut port) = (ptr::null_mut(), 0usize, 0u64, -1, 0u16);
    let none = ptr::null_mut();
    // SAFETY: strings are NUL-terminated, results are valid for writing, callbacks use no state.
    unsafe {
        vec![
            ("set_dir", sys::tailscale_set_dir(sd, text)),
            ("set_memory_store", sys::tailscale_set_memory_store(sd)),
            (
                "set_store",
                sys::tailscale_set_store(sd, Some(reads_nothing), Some(writes_nothing), none),
            ),
            ("set_hostname", sys::tailscale_set_hostname(sd, text)),
            ("set_authkey", sys::tailscale_set_authkey(sd, text)),
            (
                "set_client_secret",
                sys::tailscale_set_client_secret(sd, text),
            ),
            ("set_tags", sys::tailscale_set_tags(sd, text)),
            ("set_ephemeral", sys::tailscale_set_ephemeral(sd, 1)),
            ("set_control_url", sys::tailscale_set_control_url(sd, text)),
            ("set_port", sys::tailscale_set_port(sd, 1)),
            ("set_tcp_buffers", sys::tailscale_set_tcp_buffers(sd, 1, 1)),
            ("start", sys::tailscale_start(sd)),
            (
                "up",
                sys::tailscale_up(sd, 1, Some(ends_nothing), none, &mut op),
            ),
            ("close", sys::tailscale_close(sd, 1, None, none)),
            ("status", sys::tailscale_status(sd, &mut out, &mut len)),
            (
                "watch",
                sys::tailscale_watch(sd, Some(ends_nothing), none, &mut op),
            ),
            (
                "listen",
                sys::tailscale_listen(sd, Some(decides_nothing), Some(accepts_nothing), none),
            ),
            ("unlisten", sys::tailscale_unlisten(sd)),
            (
                "dial",
                sys::tailscale_dial(sd, text, 1, Some(dialed_nothing), none, &mut op),
            ),
            (
                "listen_packet",
                sys::tailscale_listen_packet(sd, text, &mut fd, &mut port),
            ),
            ("whois", sys::tailscale_whois(sd, text, &mut out, &mut len)),
            (
                "cert_pair",
                sys::tailscale_cert_pair(sd, text, 0, 1, Some(ends_nothing), none, &mut op),
            ),
            ("metrics", sys::tailscale_metrics(sd, &mut out, &mut len)),
        ]
    }
}

#[test]
fn a_handle_that_was_never_issued_is_refused_everywhere() {
    for sd in [0, -1, c_int::MIN, c_int::MAX] {
        for (function, code) in codes_of(sd) {
            assert_eq!(code, EBADF, "tailscale_{function} of handle {sd}");
        }
    }
}

#[test]
fn a_closed_handle_is_refused_everywhere_and_never_issued_again() {
    // SAFETY: takes nothing.
    let sd = unsafe { sys::tailscale_new() };
    let (user, ended) = ending();
    // SAFETY: `done` takes what `ending` made.
    let code = unsafe { sys::tailscale_close(sd, 5000, Some(done), user) };
    assert_eq!(code, 0);
    assert_eq!(ended.recv_timeout(DEADLINE).unwrap(), (0, String::new()));
    for (function, code) in codes_of(sd) {
        assert_eq!(code, EBADF, "tailscale_{function} of a closed handle");
    }
    // SAFETY: takes nothing.
    assert!((0..100).all(|_| unsafe { sys::tailscale_new() } != sd));
}

#[test]
fn null_is_refused_where_something_is_required() {
    // SAFETY: takes nothing.
    let sd = unsafe { sys::tailscale_new() };
    let none = ptr::null();
    // SAFETY: NULL is what these calls are to refuse.
    unsafe {
        assert_eq!(sys::tailscale_set_dir(sd, none), EINVAL);
        assert_eq!(
            sys::tailscale_set_store(sd, None, None, ptr::null_mut()),
            EINVAL
        );
        assert_eq!(sys::tailscale_set_hostname(sd, none), EINVAL);
        assert_eq!(sys::tailscale_set_authkey(sd, none), EINVAL);
        assert_eq!(sys::tailscale_set_client_secret(sd, none), EINVAL);
        assert_eq!(sys::tailscale_set_tags(sd, none), EINVAL);
        assert_eq!(sys::tailscale_set_control_url(sd, none), EINVAL);
        assert_eq!(
            sys::tailscale_up(sd, 1, None, ptr::null_mut(), ptr::null_mut()),
            EINVAL
        );
        assert_eq!(sys::tailscale_setenv(none, c"1".as_ptr()), EINVAL);
        assert_eq!(sys::tailscale_setenv(c"TS_NOTHING".as_ptr(), none), EINVAL);
        assert_eq!(sys::tailscale_setenv(c"".as_ptr(), c"1".as_ptr()), EINVAL);
        assert_eq!(
            sys::tailscale_setenv(c"A=B".as_ptr(), c"1".as_ptr()),
            EINVAL
        );
        assert_eq!(sys::tailscale_count(ptr::null_mut()), EINVAL);
        assert_eq!(sys::tailscale_errmsg(0, ptr::null_mut(), 10), EINVAL);
        sys::tailscale_free(ptr::null_mut());
    }
}

#[test]
fn a_node_that_is_not_started_says_so() {
    // SAFETY: takes nothing.
    let sd = unsafe { sys::tailscale_new() };
    let (mut out, mut len) = (ptr::null_mut(), 0usize);
    // SAFETY: both results are valid for writing.
    assert_eq!(unsafe { sys::tailscale_status(sd, &mut out, &mut len) }, -1);
    assert_eq!(
        last_error(),
        "the node is not started: call tailscale_start or tailscale_up first"
    );
}

#[test]
fn a_node_without_a_place_for_its_state_does_not_start() {
    // SAFETY: takes nothing.
    let sd = unsafe { sys::tailscale_new() };
    // SAFETY: takes a number.
    assert_eq!(unsafe { sys::tailscale_start(sd) }, -1);
    assert_eq!(
        last_error(),
        "cannot start the node: the node has nowhere to keep its state: set a directory, a store or the memory store"
    );
}

#[test]
fn a_failed_up_ends_its_operation_with_the_reason() {
    // SAFETY: takes nothing.
    let sd = unsafe { sys::tailscale_new() };
    let (user, ended) = ending();
    let mut op = 0;
    // SAFETY: `done` takes what `ending` made; `op` is valid for writing.
    let code = unsafe { sys::tailscale_up(sd, 5000, Some(done), user, &mut op) };
    assert_eq!(code, 0);
    assert_ne!(op, 0);
    let (status, text) = ended.recv_timeout(DEADLINE).unwrap();
    assert_eq!(status, -1);
    assert!(text.contains("nowhere to keep its state"), "{text}");
    // SAFETY: takes a number.
    let code = unsafe { sys::tailscale_cancel(op) };
    assert_eq!(code, 0, "cancelling what has ended is no error");
}

#[test]
fn a_connection_that_was_never_issued_is_refused_and_its_socket_closed() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut fd, mut stats) = (
        -1,
        sys::tailscale_conn_stats {
            received: 0,
            sent: 0,
            end: 0,
        },
    );
    // SAFETY: results are valid for writing; the socket is given away.
    unsafe {
        for conn in [0, 1 << 40, u64::MAX] {
            assert_eq!(sys::tailscale_conn_fd(conn, &mut fd), EBADF);
            assert_eq!(sys::tailscale_conn_abort(conn), EBADF);
            assert_eq!(sys::tailscale_conn_stat(conn, &mut stats), EBADF);
            assert_eq!(sys::tailscale_conn_release(conn), EBADF);
        }
        let given = theirs.into_raw_fd();
        assert_eq!(
            sys::tailscale_conn_splice(
                0,
                given,
                ptr::null(),
                0,
                0,
                Some(spliced_nothing),
                ptr::null_mut()
            ),
            EBADF
        );
        assert_eq!(
            sys::tailscale_conn_splice(
                0,
                -1,
                ptr::null(),
                0,
                0,
                Some(spliced_nothing),
                ptr::null_mut()
            ),
            EINVAL
        );
    }
    let mut ours = ours;
    ours.set_read_timeout(Some(DEADLINE)).unwrap();
    assert_eq!(
        ours.read(&mut [0]).unwrap(),
        0,
        "the library owns the socket also when it fails"
    );
    // The descriptor numbers stay usable: ours was not closed by mistake.
    // SAFETY: dup of an open descriptor; the copy is owned and dropped here.
    drop(unsafe { UnixStream::from_raw_fd(ours.try_clone().unwrap().into_raw_fd()) });
    assert!(ours.as_raw_fd() >= 0);
}

#[test]
fn an_error_text_that_does_not_fit_is_cut_and_said_to_be() {
    // SAFETY: takes nothing; then a number.
    unsafe { sys::tailscale_start(sys::tailscale_new()) };
    let mut text = [1u8; 8];
    // SAFETY: the buffer is writable for the length given.
    let code = unsafe { sys::tailscale_errmsg(0, text.as_mut_ptr().cast::<c_char>(), text.len()) };
    assert_eq!((code, &text), (ERANGE, b"cannot \0"));
}

#[test]
fn an_error_text_belongs_to_its_thread() {
    // SAFETY: takes nothing; then a number.
    unsafe { sys::tailscale_start(sys::tailscale_new()) };
    let elsewhere = std::thread::spawn(last_error).join().unwrap();
    assert_eq!(elsewhere, "");
    assert_ne!(last_error(), "");
}

#[test]
fn a_knob_with_a_value_it_cannot_parse_is_refused() {
    let name = CString::new("TS_DEBUG_NETSTACK").unwrap();
    // SAFETY: both strings are NUL-terminated.
    unsafe {
        assert_eq!(
            sys::tailscale_setenv(name.as_ptr(), c"perhaps".as_ptr()),
            -1
        );
        assert_eq!(
            last_error(),
            "cannot set TS_DEBUG_NETSTACK to \"perhaps\": the value cannot be parsed"
        );
        assert_eq!(sys::tailscale_setenv(name.as_ptr(), c"false".as_ptr()), 0);
    }
}

#[test]
fn the_version_is_that_of_go_mod() {
    // SAFETY: a static string.
    let version = unsafe { CStr::from_ptr(sys::tailscale_version()) }
        .to_str()
        .unwrap();
    let modules = include_str!("../../go.mod");
    assert!(
        modules.contains(&format!("tailscale.com v{version}\n")),
        "{version}"
    );
}

#[test]
fn memory_bounds_and_counts_can_be_asked_for() {
    let mut counts = sys::tailscale_counts {
        connections: 9,
        handles: 9,
        operations: 9,
        goroutines: 0,
        heap_bytes: 0,
        pooled_bytes: 9,
    };
    // SAFETY: takes numbers; the result is valid for writing.
    unsafe {
        assert_eq!(sys::tailscale_set_memory(1 << 30, 100), 0);
        assert_eq!(sys::tailscale_set_memory(0, -1), 0);
        assert_eq!(sys::tailscale_count(&mut counts), 0);
    }
    assert_eq!(
        (counts.connections, counts.handles, counts.pooled_bytes),
        (0, 0, 0)
    );
    assert!(counts.goroutines > 0 && counts.heap_bytes > 0);
}
