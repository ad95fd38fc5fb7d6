//! Connections between real nodes: every byte, every end, no leak.

use super::world::{DEADLINE, Tailnet, Tailway, echo, eventually, gateway, soon};
use std::{sync::Arc, time::Duration};
use tailway::{
    net::{Accepted, End, Network, Outbound, SpliceOptions, Stream},
    tailnet::{Connection, Listener, Node, Pending},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

struct Pair {
    _tailnet: Tailnet,
    client: Node,
    listener: Listener,
}

async fn pair() -> Pair {
    let tailnet = Tailnet::start().await;
    let (server, client) = (tailnet.node("server").await, tailnet.node("client").await);
    let listener = server.listen(80, Arc::new(|_, _| true)).unwrap();
    Pair {
        _tailnet: tailnet,
        client,
        listener,
    }
}

impl Pair {
    async fn connect(&mut self) -> (Connection, Pending) {
        let (dialled, accepted) = tokio::join!(
            self.client.dial("server:80", DEADLINE),
            soon("a connection", self.listener.accept())
        );
        (dialled.unwrap().open().unwrap(), accepted.unwrap())
    }

    /// The client's stream, and a backend's that the server splices it to.
    async fn spliced(
        &mut self,
    ) -> (
        Connection,
        TcpStream,
        tokio::task::JoinHandle<tailway::net::Transfer>,
    ) {
        let (client, accepted) = self.connect().await;
        let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(
            TcpStream::connect(backend.local_addr().unwrap()),
            backend.accept()
        );
        let splice = Accepted::splice(
            accepted,
            Outbound::Host(near.unwrap()),
            SpliceOptions::default(),
        );
        (client, far.unwrap().0, tokio::spawn(splice))
    }
}

/// Byte `at` of the stream that is sent: no two neighbouring megabytes are alike.
fn pattern(at: u64) -> u8 {
    ((at ^ (at >> 8) ^ (at >> 20)) as u8).wrapping_mul(31)
}

const MIB: u64 = 1 << 20;

async fn send(stream: &mut (impl AsyncWriteExt + Unpin), total: u64) {
    let mut at = 0;
    while at < total {
        let chunk: Vec<u8> = (at..(at + 256 * 1024).min(total)).map(pattern).collect();
        stream.write_all(&chunk).await.unwrap();
        at += chunk.len() as u64;
    }
    stream.shutdown().await.unwrap();
}

async fn receive(stream: &mut (impl AsyncReadExt + Unpin), total: u64) {
    let mut buffer = vec![0; 256 * 1024];
    let mut at = 0;
    loop {
        let length = stream.read(&mut buffer).await.unwrap();
        if length == 0 {
            break;
        }
        let expected = (at..at + length as u64).map(pattern);
        assert!(
            buffer[..length].iter().copied().eq(expected),
            "a byte is wrong within {length} after {at}"
        );
        at += length as u64;
    }
    assert_eq!(at, total);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quarter_of_a_gigabyte_arrives_whole_each_way() {
    let mut pair = pair().await;
    let (client, mut backend, splice) = pair.spliced().await;
    let (mut read, mut write) = tokio::io::split(client);
    let (mut backend_read, mut backend_write) = backend.split();
    let total = 256 * MIB;
    let transfer = async {
        tokio::join!(
            send(&mut write, total),
            receive(&mut read, total),
            receive(&mut backend_read, total),
            send(&mut backend_write, total),
        )
    };
    tokio::time::timeout(Duration::from_secs(300), transfer)
        .await
        .expect("the transfer ends");
    let transfer = soon("the splice ends", splice).await.unwrap();
    assert_eq!(
        (transfer.received, transfer.sent, transfer.end),
        (total, total, End::Eof)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_may_finish_first_and_still_hear_the_other() {
    let mut pair = pair().await;
    for client_first in [true, false] {
        let (mut client, mut backend, splice) = pair.spliced().await;
        let (first, second): (&mut (dyn Both + Send), &mut (dyn Both + Send)) = if client_first {
            (&mut client, &mut backend)
        } else {
            (&mut backend, &mut client)
        };
        half_close(first, second).await;
        assert_eq!(soon("the splice ends", splice).await.unwrap().end, End::Eof);

        let (mut client, accepted) = pair.connect().await;
        let mut server = accepted.open().unwrap();
        let (first, second): (&mut (dyn Both + Send), &mut (dyn Both + Send)) = if client_first {
            (&mut client, &mut server)
        } else {
            (&mut server, &mut client)
        };
        half_close(first, second).await;
    }
}

trait Both: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> Both for T {}

/// `first` says something and finishes; `second` hears it and the end, then says 100 kB.
async fn half_close(first: &mut (dyn Both + Send), second: &mut (dyn Both + Send)) {
    first.write_all(b"that is all").await.unwrap();
    first.shutdown().await.unwrap();
    let mut heard = Vec::new();
    soon("the first half", second.read_to_end(&mut heard))
        .await
        .unwrap();
    assert_eq!(heard, b"that is all");
    let answer = vec![9; 100_000];
    let (sent, received) = tokio::join!(
        async {
            second.write_all(&answer).await.unwrap();
            second.shutdown().await.unwrap();
        },
        async {
            let mut heard = Vec::new();
            soon("the second half", first.read_to_end(&mut heard))
                .await
                .unwrap();
            heard
        }
    );
    let () = sent;
    assert!(received == answer, "{} bytes", received.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_reaches_the_other_side() {
    let mut pair = pair().await;

    let (client, mut backend, splice) = pair.spliced().await;
    client.reset();
    let error = soon("the reset", backend.read(&mut [0; 8]))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(
        soon("the splice ends", splice).await.unwrap().end,
        End::PeerReset
    );

    let (mut client, backend, splice) = pair.spliced().await;
    tailway::net::host::reset_on_close(&backend);
    drop(backend);
    let _ = soon("the end", client.read(&mut [0; 8])).await;
    assert!(client.was_reset());
    assert_eq!(
        soon("the splice ends", splice).await.unwrap().end,
        End::BackendReset
    );

    let (mut client, accepted) = pair.connect().await;
    let server = accepted.open().unwrap();
    server.reset();
    let _ = soon("the end", client.read(&mut [0; 8])).await;
    assert!(client.was_reset());

    let (client, accepted) = pair.connect().await;
    let mut server = accepted.open().unwrap();
    client.reset();
    let _ = soon("the end", server.read(&mut [0; 8])).await;
    assert!(server.was_reset());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_reader_loses_nothing_and_takes_bounded_memory() {
    let mut pair = pair().await;
    let (client, mut backend, splice) = pair.spliced().await;
    let (mut read, mut write) = tokio::io::split(client);
    write.shutdown().await.unwrap();
    let total = 32 * MIB;
    let sender = tokio::spawn(async move { send(&mut backend, total).await });
    // Nobody reads: the sender is held up by then, however long one waits.
    tokio::time::timeout(Duration::from_millis(500), async {
        std::future::pending::<()>().await
    })
    .await
    .unwrap_err();
    assert!(!sender.is_finished(), "32 MiB went into buffers");
    tokio::time::timeout(Duration::from_secs(120), receive(&mut read, total))
        .await
        .unwrap();
    soon("the sender ends", sender).await.unwrap();
    assert_eq!(soon("the splice ends", splice).await.unwrap().sent, total);
}

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn process_entries(pid: u32, directory: &str) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/{directory}"))
        .unwrap()
        .count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_idle_connections_hold_no_thread_and_few_descriptors() {
    let tailnet = Tailnet::start().await;
    let tailway = Tailway::start_with(
        &tailnet,
        &super::world::Options {
            yaml: &gateway("idle", echo().await),
            auth_key: Some(tailnet.field("auth_key")),
            arguments: &["--max-connections-per-peer", "2000"],
        },
    )
    .await;
    tailway.ready().await;
    let pid = tailway.child.id().unwrap();
    let client = tailnet.node("idle-client").await;
    let name = format!("idle.{}", tailnet.domain());
    let (threads, descriptors) = (process_entries(pid, "task"), process_entries(pid, "fd"));
    let memory = resident(pid);
    let mut open = Vec::new();
    for number in 0..1000 {
        let mut stream = client
            .dial("idle:7000", DEADLINE)
            .await
            .unwrap()
            .open()
            .unwrap();
        stream.write_all(b"x").await.unwrap();
        soon("an echo", stream.read_exact(&mut [0; 1]))
            .await
            .unwrap();
        open.push(stream);
        if number == 0 {
            // One TLS connection among them.
            let mut tls = tailnet.tls(&client, "idle:443", &name).await;
            tls.write_all(b"y").await.unwrap();
            soon("an echo", tls.read_exact(&mut [0; 1])).await.unwrap();
        }
    }
    let (more_threads, more) = (
        process_entries(pid, "task") - threads.min(process_entries(pid, "task")),
        process_entries(pid, "fd") - descriptors,
    );
    assert!(more_threads < 16, "{more_threads} threads more");
    assert!(more <= 1100, "{more} descriptors more for 1000 connections");
    let grown = resident(pid).saturating_sub(memory);
    assert!(
        grown < 100 * 1024,
        "{grown} KiB more for 1000 idle connections"
    );
    drop(open);
    eventually("the descriptors are given back", || async {
        (process_entries(pid, "fd") < descriptors + 50).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_connections_is_refused_beyond_the_limit_and_the_rest_is_served() {
    let tailnet = Tailnet::start().await;
    let yaml = gateway("flood", echo().await);
    let options = super::world::Options {
        yaml: &yaml,
        auth_key: Some(tailnet.field("auth_key")),
        arguments: &["--max-connections-per-peer", "20"],
    };
    let tailway = Tailway::start_with(&tailnet, &options).await;
    tailway.ready().await;
    let client = tailnet.node("flood-client").await;
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut stream = client
            .dial("flood:7000", DEADLINE)
            .await
            .unwrap()
            .open()
            .unwrap();
        stream.write_all(b"x").await.unwrap();
        soon("an echo", stream.read_exact(&mut [0; 1]))
            .await
            .unwrap();
        held.push(stream);
    }
    let dials: Vec<_> = (0..200)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { client.dial("flood:7000", DEADLINE).await.is_err() })
        })
        .collect();
    for dial in dials {
        assert!(
            soon("a dial", dial).await.unwrap(),
            "a connection beyond the limit was let in"
        );
    }
    for stream in &mut held {
        stream.write_all(b"x").await.unwrap();
        soon("an echo", stream.read_exact(&mut [0; 1]))
            .await
            .unwrap();
    }
    let metrics = tailway.page("/metrics").await.1;
    assert!(metrics.contains("tailway_connections_refused_total{gateway=\"default/flood\",listener=\"tcp\",reason=\"peer_limit\"} 200"), "{metrics}");
    drop(held);
    eventually("places are free again", || async {
        client
            .dial("flood:7000", DEADLINE)
            .await
            .is_ok()
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_node_resets_its_connections_and_leaves_nothing() {
    let mut pair = pair().await;
    let (mut client, accepted) = pair.connect().await;
    let server = accepted.open().unwrap();
    let node = pair.client.clone();
    node.close(DEADLINE).await.unwrap();
    let _ = soon("the end", client.read(&mut [0; 8])).await;
    assert_eq!(
        node.dial("server:80", DEADLINE).await.unwrap_err(),
        tailway::tailnet::Error::Closed
    );
    drop(server);
    let bound: Result<_, _> =
        Network::bind(&node, 81, Arc::new(|_: &tailway::net::Flow| true)).await;
    drop(bound);
}
