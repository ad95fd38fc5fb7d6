//! The node itself: identity, refusal, state, UDP.

use super::world::{DEADLINE, Tailnet, soon};
use serde_json::json;
use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
};
use tailway::tailnet::{Node, State, StateStore};

#[tokio::test(flavor = "multi_thread")]
async fn each_of_many_peers_is_known_for_who_it_is() {
    let tailnet = Tailnet::start().await;
    let server = tailnet.node("server").await;
    let mut listener = server.listen(80, Arc::new(|_, _| true)).unwrap();
    let mut peers = HashMap::new();
    for number in 0..5 {
        let name = format!("peer{number}");
        let peer = tailnet.node(&name).await;
        if number == 0 {
            tailnet
                .post("/nodes/peer0/tags", json!({"tags": ["tag:web"]}))
                .await;
        } else {
            let login = format!("{name}@example.com");
            tailnet
                .post(
                    &format!("/nodes/{name}/login"),
                    json!({"login": login, "display_name": "P"}),
                )
                .await;
        }
        peers.insert(peer.status().unwrap().ips[0], (name, peer));
    }
    super::world::eventually("the tags are known", || async {
        let ip = peers
            .iter()
            .find(|(_, (name, _))| name == "peer0")
            .map(|(ip, _)| *ip)?;
        (server.whois(ip).ok()?.tags == ["tag:web"]).then_some(())
    })
    .await;
    let dials: Vec<_> = peers
        .values()
        .cycle()
        .take(40)
        .map(|(_, peer)| {
            let peer = peer.clone();
            tokio::spawn(async move { peer.dial("server:80", DEADLINE).await.unwrap() })
        })
        .collect();
    for _ in 0..40 {
        let pending = soon("a connection", listener.accept()).await.unwrap();
        let (name, _) = &peers[&pending.source().ip()];
        let identity = pending.identity().unwrap();
        assert_eq!(identity.node, format!("{name}.{}", tailnet.domain()));
        if name == "peer0" {
            assert_eq!(
                (identity.tags.clone(), identity.login.as_str()),
                (vec!["tag:web".to_owned()], "")
            );
        } else {
            assert_eq!(identity.login, format!("{name}@example.com"));
        }
    }
    for dial in dials {
        soon("a dial", dial).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_ports_refused_peers_and_strangers_are_not_reached() {
    let tailnet = Tailnet::start().await;
    let (server, client) = (tailnet.node("refuses").await, tailnet.node("asks").await);
    let _listener = server.listen(81, Arc::new(|_, _| false)).unwrap();
    for address in ["refuses:80", "refuses:81"] {
        let error = client
            .dial(address, DEADLINE)
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("refused"), "{error}");
    }
    for address in [
        "nobody:80",
        "127.0.0.1:80",
        "localhost:80",
        "192.0.2.1:80",
        "refuses",
    ] {
        assert!(client.dial(address, DEADLINE).await.is_err(), "{address}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_keep_their_boundaries_and_senders() {
    let tailnet = Tailnet::start().await;
    let (server, client) = (
        tailnet.node("udp-server").await,
        tailnet.node("udp-client").await,
    );
    let socket = |node: &Node| {
        let ip = node.status().unwrap().ips[0];
        node.listen_packet((ip, 0).into()).unwrap()
    };
    let (receiver, sender) = (socket(&server), socket(&client));
    // UDP may lose what is sent before the path is there.
    super::world::eventually("a datagram arrives", || async {
        sender.send(b"first", receiver.address()).await.unwrap();
        let received =
            tokio::time::timeout(std::time::Duration::from_secs(1), receiver.receive()).await;
        received.ok().map(|received| received.unwrap())
    })
    .await;
    for payload in [&b""[..], b"a", &[7; 1200]] {
        sender.send(payload, receiver.address()).await.unwrap();
        let received = soon("a datagram", async {
            loop {
                let (received, from) = receiver.receive().await.unwrap();
                if received != b"first" {
                    break (received, from);
                }
            }
        })
        .await;
        assert_eq!(received, (payload.to_vec(), sender.address()));
    }
    server.close(DEADLINE).await.unwrap();
    let end = soon("the end of the socket", async {
        loop {
            if let Err(error) = receiver.receive().await {
                return error.kind();
            }
        }
    })
    .await;
    assert_eq!(end, io::ErrorKind::UnexpectedEof);
}

#[derive(Default)]
struct MapStore(Mutex<HashMap<String, Vec<u8>>>);

impl StateStore for MapStore {
    fn read(&self, key: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }

    fn write(&self, key: &str, value: &[u8]) -> io::Result<()> {
        self.0.lock().unwrap().insert(key.into(), value.into());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_ours_makes_it_the_same_node_again() {
    let tailnet = Tailnet::start().await;
    let store = Arc::new(MapStore::default());
    let config = tailnet.config("stored", State::Store(store.clone()));
    let mut ids = Vec::new();
    for _ in 0..2 {
        let node = Node::start(config.clone()).await.unwrap();
        ids.push(soon("the node is up", node.up(None)).await.unwrap().node_id);
        node.close(DEADLINE).await.unwrap();
    }
    assert!(!ids[0].is_empty());
    assert_eq!(ids[0], ids[1]);
    assert!(!store.0.lock().unwrap().is_empty());
}
