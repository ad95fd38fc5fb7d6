//! Sockets in another network namespace: a lab's, or a host's in a lab.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::{fs::File, net::SocketAddr, os::fd::AsFd, path::Path, sync::mpsc, thread};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// A thread in a network namespace, with a runtime of its own: futures that run on it have their
/// sockets there. It holds the namespace as long as it lives.
pub struct Network {
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Network {
    /// The namespace that `path` names, such as `/proc/1/ns/net`.
    pub fn enter(path: &Path) -> Self {
        let namespace = File::open(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let (told, ready) = mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter a network namespace");
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            told.send(runtime.handle().clone()).unwrap();
            // An error is a sender that was dropped, which asks for the same.
            let _ = runtime.block_on(stopped);
        });
        Self {
            runtime: ready.recv().expect("the thread has its runtime"),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    /// What `future` gives, which panics here if it panics there.
    pub async fn run<F>(&self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        match self.runtime.spawn(future).await {
            Ok(output) => output,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// An address on this machine's loopback that leads to `address` in the namespace.
    pub fn forward(&self, address: SocketAddr) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let here = listener.local_addr().unwrap();
        self.runtime.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((mut outside, _)) = listener.accept().await {
                tokio::spawn(async move {
                    // Whoever refuses or resets inside does so outside, by the end of `outside`.
                    let mut inside = TcpStream::connect(address).await?;
                    copy_bidirectional(&mut outside, &mut inside).await
                });
            }
        });
        here
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in there was reported by who waited for it.
            let _ = thread.join();
        }
    }
}
