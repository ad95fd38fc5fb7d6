//! The border to Go: every `unsafe` of tailway, behind safe functions and owned handles.
//!
//! Contracts (threads, blocking, ownership) are those of `tailscale.h`.
#![allow(unsafe_code)]

use super::{Error, node::StateStore};
use libtailscale_sys as sys;
use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    fmt,
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{FromRawFd, IntoRawFd, OwnedFd},
    pin::Pin,
    ptr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};
use tokio::sync::oneshot;

pub(super) use sys::tailscale_conn_stats as ConnStats;
pub use sys::tailscale_counts as Counts;

/// A node of the library; closing it is explicit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeHandle(c_int);

/// A connection of the library. Dropping it gives the handle back, which resets a connection
/// that was neither opened nor spliced and leaves a running stream alone.
#[derive(Debug)]
pub(super) struct ConnHandle(sys::tailscale_conn);

/// Addresses of a connection, and whose they are.
#[derive(Clone, Copy, Debug)]
pub(super) struct RawFlow {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    /// Same key, same answer of [`NodeHandle::whois`]. `None`: the peer is unknown.
    pub(super) peer: Option<(u64, u64)>,
}

/// Receives the connections of a node. Called on Go's threads; must not block.
pub(super) trait Acceptor: Send + Sync + 'static {
    fn admit(&self, flow: &RawFlow) -> bool;
    fn accept(&self, connection: ConnHandle, flow: RawFlow);
    /// The node accepts no more; the last call.
    fn closed(&self);
}

/// A running operation; dropping it cancels it.
pub(super) struct Operation<T> {
    id: sys::tailscale_op,
    result: oneshot::Receiver<Result<T, Error>>,
}

type Outcome<T> = Result<T, Error>;

// === errors, strings, buffers ===

fn last_error() -> Error {
    let mut buffer = [0u8; 2048];
    // SAFETY: the buffer is writable for the length given, and the text is NUL-terminated.
    unsafe { sys::tailscale_errmsg(0, buffer.as_mut_ptr().cast::<c_char>(), buffer.len()) };
    let text = CStr::from_bytes_until_nul(&buffer)
        .map(|text| text.to_string_lossy().into_owned())
        .unwrap_or_default();
    Error::Engine(text)
}

fn check(code: c_int) -> Outcome<()> {
    match code {
        0 => Ok(()),
        libc::EBADF => Err(Error::Closed),
        -1 => Err(last_error()),
        code => Err(Error::Engine(format!(
            "the library answered with code {code}"
        ))),
    }
}

fn c_string(text: &str) -> Outcome<CString> {
    CString::new(text).map_err(|_| Error::Engine(format!("{text:?} holds a NUL character")))
}

/// Text that a callback was given.
///
/// # Safety
/// `text` is NULL or readable for `len` bytes.
unsafe fn text_of(text: *const c_char, len: usize) -> String {
    if text.is_null() || len == 0 {
        return String::new();
    }
    // SAFETY: as the caller promises.
    let bytes = unsafe { std::slice::from_raw_parts(text.cast::<u8>(), len) };
    String::from_utf8_lossy(bytes).into_owned()
}

fn outcome(status: c_int, text: String) -> Outcome<String> {
    match status {
        0 => Ok(text),
        libc::ECANCELED => Err(Error::Cancelled),
        _ => Err(Error::Engine(text)),
    }
}

/// Calls a function that answers through `char **out, size_t *len`.
fn take_text(call: impl FnOnce(*mut *mut c_char, *mut usize) -> c_int) -> Outcome<String> {
    let mut out: *mut c_char = ptr::null_mut();
    let mut len = 0usize;
    check(call(&mut out, &mut len))?;
    // SAFETY: on success `out` holds `len` bytes that are ours to free, and no longer read after.
    unsafe {
        let text = text_of(out, len);
        sys::tailscale_free(out.cast::<c_void>());
        Ok(text)
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX)
        .max(1)
}

// === operations ===

/// Starts an operation whose callback fills a oneshot.
fn operate<T: Send + 'static>(
    start: impl FnOnce(*mut c_void, *mut sys::tailscale_op) -> c_int,
) -> Outcome<Operation<T>> {
    let (sender, result) = oneshot::channel::<Outcome<T>>();
    let user = Box::into_raw(Box::new(sender));
    let mut id = 0;
    if let Err(error) = check(start(user.cast::<c_void>(), &mut id)) {
        // SAFETY: a function that fails never calls back, so the box is still ours.
        drop(unsafe { Box::from_raw(user) });
        return Err(error);
    }
    Ok(Operation { id, result })
}

unsafe extern "C" fn text_done(user: *mut c_void, status: c_int, text: *const c_char, len: usize) {
    // SAFETY: `user` is the box made by `operate::<String>`, handed back exactly once.
    let sender = unsafe { Box::from_raw(user.cast::<oneshot::Sender<Outcome<String>>>()) };
    // SAFETY: the text is readable during the callback.
    let text = unsafe { text_of(text, len) };
    // Nobody may be waiting any more, which is fine.
    let _ = sender.send(outcome(status, text));
}

unsafe extern "C" fn dial_done(
    user: *mut c_void,
    status: c_int,
    conn: sys::tailscale_conn,
    flow: *const sys::tailscale_flow,
    text: *const c_char,
    len: usize,
) {
    // SAFETY: `user` is the box made by `operate::<(ConnHandle, RawFlow)>`, handed back once.
    let sender =
        unsafe { Box::from_raw(user.cast::<oneshot::Sender<Outcome<(ConnHandle, RawFlow)>>>()) };
    // SAFETY: text and flow are readable during the callback; flow is set when status is 0.
    let result = unsafe {
        match (status, flow.as_ref()) {
            (0, Some(flow)) => Ok((ConnHandle(conn), RawFlow::of(flow))),
            (libc::ECANCELED, _) => Err(Error::Cancelled),
            _ => Err(Error::Engine(text_of(text, len))),
        }
    };
    // A result that nobody takes is dropped, which releases the connection.
    let _ = sender.send(result);
}

unsafe extern "C" fn splice_done(user: *mut c_void, stats: *const ConnStats) {
    // SAFETY: `user` is the box made by `operate::<ConnStats>`, handed back exactly once.
    let sender = unsafe { Box::from_raw(user.cast::<oneshot::Sender<Outcome<ConnStats>>>()) };
    // SAFETY: the statistics are readable during the callback.
    let _ = sender.send(unsafe { stats.as_ref() }.copied().ok_or(Error::Closed));
}

impl<T> Future for Operation<T> {
    type Output = Outcome<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.result)
            .poll(context)
            .map(|result| result.unwrap_or(Err(Error::Closed)))
    }
}

impl<T> Drop for Operation<T> {
    fn drop(&mut self) {
        if self.id != 0 {
            // SAFETY: takes a number; cancelling an operation that ended is no error.
            unsafe { sys::tailscale_cancel(self.id) };
        }
    }
}

// === process ===

/// Where log lines go: the node they are of, if of one, the level and the line.
pub(super) type LogSink = fn(Option<NodeHandle>, c_int, &str);

pub(super) const LOG_INFO: c_int = sys::TAILSCALE_LOG_INFO as c_int;
pub(super) const LOG_WARN: c_int = sys::TAILSCALE_LOG_WARN as c_int;

unsafe extern "C" fn log_line(
    user: *mut c_void,
    node: c_int,
    level: c_int,
    line: *const c_char,
    len: usize,
) {
    // SAFETY: `user` is the function pointer that `set_log` passed.
    let sink = unsafe { std::mem::transmute::<*mut c_void, LogSink>(user) };
    // SAFETY: the line is readable during the callback.
    let line = unsafe { text_of(line, len) };
    sink((node != 0).then_some(NodeHandle(node)), level, &line);
}

pub(super) fn set_log(sink: LogSink) -> Outcome<()> {
    // SAFETY: a function lives for ever, so the callback may run at any time.
    check(unsafe { sys::tailscale_set_log(Some(log_line), sink as *mut c_void) })
}

pub(super) fn set_environment(name: &str, value: &str) -> Outcome<()> {
    let (name, value) = (c_string(name)?, c_string(value)?);
    // SAFETY: both strings are copied by the call.
    check(unsafe { sys::tailscale_setenv(name.as_ptr(), value.as_ptr()) })
}

pub(super) fn set_memory(limit_bytes: Option<u64>, gc_percent: Option<u32>) -> Outcome<()> {
    let limit = limit_bytes.map_or(0, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let percent = gc_percent.map_or(-1, |percent| c_int::try_from(percent).unwrap_or(c_int::MAX));
    // SAFETY: takes numbers only.
    check(unsafe { sys::tailscale_set_memory(limit, percent) })
}

pub(super) fn signals_onstack() -> Outcome<()> {
    // SAFETY: only adds SA_ONSTACK to handlers that are installed; every thread of this process
    // that may run one has an alternate stack (Go) or a normal one, which the flag leaves as is.
    check(unsafe { sys::tailscale_signals_onstack() })
}

pub(super) fn version() -> &'static str {
    // SAFETY: a static string.
    unsafe { CStr::from_ptr(sys::tailscale_version()) }
        .to_str()
        .unwrap_or("unknown")
}

pub(super) fn counts() -> Counts {
    // SAFETY: all-zero is a value of this struct of integers.
    let mut counts: Counts = unsafe { std::mem::zeroed() };
    // SAFETY: writes the struct only; a failure leaves zeros.
    unsafe { sys::tailscale_count(&mut counts) };
    counts
}

// === node ===

/// An option of a node that is a string.
#[derive(Clone, Copy, Debug)]
pub(super) enum Text {
    Directory,
    Hostname,
    AuthKey,
    ClientSecret,
    Tags,
    ControlUrl,
}

impl NodeHandle {
    pub(super) fn new() -> Self {
        // SAFETY: takes nothing and never fails.
        Self(unsafe { sys::tailscale_new() })
    }

    pub(super) fn set_text(self, option: Text, value: &str) -> Outcome<()> {
        let value = c_string(value)?;
        let set = match option {
            Text::Directory => sys::tailscale_set_dir,
            Text::Hostname => sys::tailscale_set_hostname,
            Text::AuthKey => sys::tailscale_set_authkey,
            Text::ClientSecret => sys::tailscale_set_client_secret,
            Text::Tags => sys::tailscale_set_tags,
            Text::ControlUrl => sys::tailscale_set_control_url,
        };
        // SAFETY: the string is copied by the call.
        check(unsafe { set(self.0, value.as_ptr()) })
    }

    pub(super) fn set_memory_store(self) -> Outcome<()> {
        // SAFETY: takes a number.
        check(unsafe { sys::tailscale_set_memory_store(self.0) })
    }

    /// The store lives as long as the process: the library may call it until the node's last
    /// goroutine is gone, which nothing tells.
    pub(super) fn set_store(self, store: Arc<dyn StateStore>) -> Outcome<()> {
        let user = Box::into_raw(Box::new(store)).cast::<c_void>();
        // SAFETY: both callbacks get `user`, a box that is never freed.
        check(unsafe {
            sys::tailscale_set_store(self.0, Some(store_read), Some(store_write), user)
        })
    }

    pub(super) fn set_ephemeral(self, ephemeral: bool) -> Outcome<()> {
        // SAFETY: takes numbers.
        check(unsafe { sys::tailscale_set_ephemeral(self.0, c_int::from(ephemeral)) })
    }

    pub(super) fn set_port(self, port: u16) -> Outcome<()> {
        // SAFETY: takes numbers.
        check(unsafe { sys::tailscale_set_port(self.0, port) })
    }

    pub(super) fn set_tcp_buffers(self, receive_max: u32, send_max: u32) -> Outcome<()> {
        // SAFETY: takes numbers.
        check(unsafe { sys::tailscale_set_tcp_buffers(self.0, receive_max, send_max) })
    }

    /// Blocks for some 100 ms.
    pub(super) fn start(self) -> Outcome<()> {
        // SAFETY: takes a number.
        check(unsafe { sys::tailscale_start(self.0) })
    }

    pub(super) fn up(self, timeout: Option<Duration>) -> Outcome<Operation<String>> {
        // SAFETY: `text_done` matches the box that `operate` makes.
        operate(|user, op| unsafe {
            sys::tailscale_up(self.0, timeout.map_or(0, millis), Some(text_done), user, op)
        })
    }

    pub(super) fn close(self, timeout: Duration) -> Outcome<Operation<String>> {
        // SAFETY: `text_done` matches the box that `operate` makes.
        operate(|user, _| unsafe {
            sys::tailscale_close(self.0, millis(timeout), Some(text_done), user)
        })
    }

    /// Closes without waiting.
    pub(super) fn abandon(self, timeout: Duration) {
        // SAFETY: no callback; a node that is closed already is no error here.
        unsafe { sys::tailscale_close(self.0, millis(timeout), None, ptr::null_mut()) };
    }

    pub(super) fn status(self) -> Outcome<String> {
        // SAFETY: `out` and `len` are valid for writing.
        take_text(|out, len| unsafe { sys::tailscale_status(self.0, out, len) })
    }

    /// Calls `event` with each status document until the node is closed.
    pub(super) fn watch(self, event: Box<dyn Fn(&str) + Send + Sync>) -> Outcome<()> {
        let user = Box::into_raw(Box::new(event));
        let mut op = 0;
        // SAFETY: `watch_event` frees the box at its last call, which closing the node brings.
        let code = unsafe {
            sys::tailscale_watch(self.0, Some(watch_event), user.cast::<c_void>(), &mut op)
        };
        check(code).inspect_err(|_| {
            // SAFETY: a function that fails never calls back, so the box is still ours.
            drop(unsafe { Box::from_raw(user) });
        })
    }

    pub(super) fn listen(self, acceptor: Arc<dyn Acceptor>) -> Outcome<()> {
        let user = Box::into_raw(Box::new(acceptor));
        // SAFETY: `accept` frees the box at its last call, which closing the node brings.
        let code = unsafe {
            sys::tailscale_listen(self.0, Some(decide), Some(accept), user.cast::<c_void>())
        };
        check(code).inspect_err(|_| {
            // SAFETY: a function that fails never calls back, so the box is still ours.
            drop(unsafe { Box::from_raw(user) });
        })
    }

    pub(super) fn dial(
        self,
        address: &str,
        timeout: Duration,
    ) -> Outcome<Operation<(ConnHandle, RawFlow)>> {
        let address = c_string(address)?;
        // SAFETY: the string is copied; `dial_done` matches the box that `operate` makes.
        operate(|user, op| unsafe {
            sys::tailscale_dial(
                self.0,
                address.as_ptr(),
                millis(timeout),
                Some(dial_done),
                user,
                op,
            )
        })
    }

    pub(super) fn listen_packet(self, address: &str) -> Outcome<(OwnedFd, u16)> {
        let address = c_string(address)?;
        let (mut fd, mut port) = (-1, 0);
        // SAFETY: the string is copied, both results are valid for writing.
        check(unsafe {
            sys::tailscale_listen_packet(self.0, address.as_ptr(), &mut fd, &mut port)
        })?;
        // SAFETY: on success the fd is open and ours.
        Ok((unsafe { OwnedFd::from_raw_fd(fd) }, port))
    }

    pub(super) fn look_up(self, host: &str) -> Outcome<String> {
        let host = c_string(host)?;
        // SAFETY: the string is copied; `out` and `len` are valid for writing.
        take_text(|out, len| unsafe { sys::tailscale_look_up(self.0, host.as_ptr(), out, len) })
    }

    pub(super) fn whois(self, address: &str) -> Outcome<String> {
        let address = c_string(address)?;
        // SAFETY: the string is copied; `out` and `len` are valid for writing.
        take_text(|out, len| unsafe { sys::tailscale_whois(self.0, address.as_ptr(), out, len) })
    }

    pub(super) fn certificate(
        self,
        domain: &str,
        min_validity: Duration,
        timeout: Duration,
    ) -> Outcome<Operation<String>> {
        let domain = c_string(domain)?;
        // SAFETY: the string is copied; `text_done` matches the box that `operate` makes.
        operate(|user, op| unsafe {
            sys::tailscale_cert_pair(
                self.0,
                domain.as_ptr(),
                min_validity.as_secs(),
                millis(timeout),
                Some(text_done),
                user,
                op,
            )
        })
    }

    pub(super) fn metrics(self) -> Outcome<String> {
        // SAFETY: `out` and `len` are valid for writing.
        take_text(|out, len| unsafe { sys::tailscale_metrics(self.0, out, len) })
    }
}

unsafe extern "C" fn watch_event(
    user: *mut c_void,
    status: c_int,
    text: *const c_char,
    len: usize,
) {
    let event = user.cast::<Box<dyn Fn(&str) + Send + Sync>>();
    if status != 0 {
        // SAFETY: the last call; the box made by `watch` is not used any more.
        drop(unsafe { Box::from_raw(event) });
        return;
    }
    // SAFETY: the box lives until the last call; the text is readable during this one.
    let (event, text) = unsafe { (&*event, text_of(text, len)) };
    event(&text);
}

unsafe extern "C" fn store_read(
    user: *mut c_void,
    key: *const c_char,
    value: *mut *mut c_char,
    len: *mut usize,
) -> c_int {
    // SAFETY: `user` is the box made by `set_store`; the key is NUL-terminated.
    let (store, key) = unsafe { (&*user.cast::<Arc<dyn StateStore>>(), CStr::from_ptr(key)) };
    let bytes = match store.read(&key.to_string_lossy()) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return libc::ENOENT,
        Err(error) => return error.raw_os_error().unwrap_or(libc::EIO),
    };
    // SAFETY: malloc'ed memory of at least the length copied; the library frees it. Both results
    // are valid for writing.
    unsafe {
        let memory = libc::malloc(bytes.len().max(1)).cast::<u8>();
        if memory.is_null() {
            return libc::ENOMEM;
        }
        ptr::copy_nonoverlapping(bytes.as_ptr(), memory, bytes.len());
        *value = memory.cast::<c_char>();
        *len = bytes.len();
    }
    0
}

unsafe extern "C" fn store_write(
    user: *mut c_void,
    key: *const c_char,
    value: *const c_char,
    len: usize,
) -> c_int {
    // SAFETY: `user` is the box made by `set_store`; the key is NUL-terminated, the value is
    // readable for `len` bytes.
    let (store, key, value) = unsafe {
        let value = if len == 0 {
            &[][..]
        } else {
            std::slice::from_raw_parts(value.cast::<u8>(), len)
        };
        (
            &*user.cast::<Arc<dyn StateStore>>(),
            CStr::from_ptr(key),
            value,
        )
    };
    match store.write(&key.to_string_lossy(), value) {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    }
}

// === accept ===

unsafe extern "C" fn decide(user: *mut c_void, flow: *const sys::tailscale_flow) -> c_int {
    // SAFETY: the box made by `listen` lives until the last call of `accept`, and the flow is
    // readable during this call.
    let (acceptor, flow) = unsafe { (&*user.cast::<Arc<dyn Acceptor>>(), flow.as_ref()) };
    c_int::from(flow.is_some_and(|flow| acceptor.admit(&RawFlow::of(flow))))
}

unsafe extern "C" fn accept(
    user: *mut c_void,
    conn: sys::tailscale_conn,
    flow: *const sys::tailscale_flow,
) {
    let acceptor = user.cast::<Arc<dyn Acceptor>>();
    // SAFETY: the flow is NULL or readable during this call.
    match unsafe { flow.as_ref() } {
        Some(flow) => {
            let connection = ConnHandle(conn);
            // SAFETY: the box lives until the last call.
            unsafe { &*acceptor }.accept(connection, RawFlow::of(flow));
        }
        None => {
            // SAFETY: the last call; the box made by `listen` is not used any more.
            unsafe { Box::from_raw(acceptor) }.closed();
        }
    }
}

impl RawFlow {
    fn of(flow: &sys::tailscale_flow) -> Self {
        let address = |ip: &[u8; 16], port| {
            let ip: IpAddr = if flow.family == 4 {
                Ipv4Addr::new(ip[0], ip[1], ip[2], ip[3]).into()
            } else {
                Ipv6Addr::from(*ip).into()
            };
            SocketAddr::new(ip, port)
        };
        Self {
            source: address(&flow.src_ip, flow.src_port),
            destination: address(&flow.dst_ip, flow.dst_port),
            peer: (flow.node != 0).then_some((flow.node, flow.epoch)),
        }
    }
}

// === connection ===

impl ConnHandle {
    pub(super) fn open(&self) -> Outcome<OwnedFd> {
        let mut fd = -1;
        // SAFETY: `fd` is valid for writing.
        check(unsafe { sys::tailscale_conn_fd(self.0, &mut fd) })?;
        // SAFETY: on success the fd is open and ours.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    pub(super) fn splice(
        &self,
        socket: OwnedFd,
        prefix: &[u8],
        idle_timeout: Option<Duration>,
    ) -> Outcome<Operation<ConnStats>> {
        // SAFETY: the library owns the socket from the call on; the prefix is copied;
        // `splice_done` matches the box that `operate` makes.
        operate(|user, _| unsafe {
            sys::tailscale_conn_splice(
                self.0,
                socket.into_raw_fd(),
                prefix.as_ptr().cast::<c_void>(),
                prefix.len(),
                idle_timeout.map_or(0, millis),
                Some(splice_done),
                user,
            )
        })
    }

    pub(super) fn abort(&self) {
        // SAFETY: takes a number; a connection that has ended is no error.
        unsafe { sys::tailscale_conn_abort(self.0) };
    }

    pub(super) fn stats(&self) -> ConnStats {
        let mut stats = ConnStats {
            received: 0,
            sent: 0,
            end: 0,
        };
        // SAFETY: writes the struct only; the handle is valid until it is released.
        unsafe { sys::tailscale_conn_stat(self.0, &mut stats) };
        stats
    }
}

impl Drop for ConnHandle {
    fn drop(&mut self) {
        // SAFETY: takes a number, once.
        unsafe { sys::tailscale_conn_release(self.0) };
    }
}

impl fmt::Display for NodeHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
