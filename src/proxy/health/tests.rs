use super::*;
use crate::{
    metrics::Metrics,
    model::{Endpoint, Probe},
    proxy::Limits,
};
use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    time::Instant,
};

impl Checks {
    /// Checks of these names that nobody makes.
    pub(in crate::proxy) fn for_tests<const N: usize>(names: [&str; N]) -> Self {
        let by_name = names.map(|name| {
            let running = Running {
                member: Member {
                    name: name.into(),
                    endpoint: Endpoint::Name(name.into(), 1),
                    weight: 1,
                    tls: None,
                    check: None,
                },
                standing: Arc::default(),
                task: None,
            };
            (name.to_owned(), running)
        });
        Self {
            by_name: by_name.into(),
            found: Arc::default(),
        }
    }

    pub(in crate::proxy) fn tell(&self, name: &str, is_healthy: bool) {
        let standing = &self.by_name[name].standing;
        standing.0.store(!is_healthy, Ordering::Relaxed);
    }
}

fn check(probe: Probe) -> HealthCheck {
    HealthCheck {
        probe,
        interval: Duration::from_secs(10),
        timeout: Duration::from_secs(3),
        healthy_threshold: 2,
        unhealthy_threshold: 3,
    }
}

fn unhealthy(reason: &str) -> Health {
    Health::Unhealthy {
        reason: reason.into(),
    }
}

#[test]
fn it_takes_several_in_a_row_to_change_what_is_known() {
    let mut tally = Tally::new(&check(Probe::Tcp), None);
    let good = || Ok(());
    let bad = |reason: &str| Err(reason.to_owned());
    // Nothing is known: the first good one counts, the first bad one does not.
    assert_eq!(tally.take(bad("a")), None);
    assert_eq!(tally.take(good()), Some(Health::Healthy));
    assert_eq!(tally.take(good()), None);
    for outcome in [bad("a"), bad("a"), good(), bad("a"), bad("a")] {
        assert_eq!(tally.take(outcome), None);
    }
    assert_eq!(tally.take(bad("b")), Some(unhealthy("b")));
    assert_eq!(tally.take(bad("b")), None);
    assert_eq!(tally.take(bad("c")), Some(unhealthy("c")));
    for outcome in [good(), bad("c"), good()] {
        assert_eq!(tally.take(outcome), None);
    }
    assert_eq!(tally.take(good()), Some(Health::Healthy));
}

fn outlet() -> Outlet {
    Outlet {
        name: "web".into(),
        standing: Arc::default(),
        found: Arc::default(),
        context: context(),
    }
}

fn context() -> Arc<Context> {
    Arc::new(Context {
        gateway: "default/web".into(),
        limits: Limits::default(),
        metrics: Metrics::default(),
    })
}

#[tokio::test(start_paused = true)]
async fn tries_come_by_the_interval_and_change_who_is_drawn_and_what_is_told() {
    let outlet = outlet();
    let (times, begun) = (RefCell::new(Vec::new()), Instant::now());
    let failed = || Err(Failure::Failed("status 503".into()));
    let outcomes = [
        Ok(()),
        failed(),
        failed(),
        failed(),
        Err(Failure::NoTailnet),
    ];
    let outcomes = RefCell::new(VecDeque::from(outcomes));
    let states = RefCell::new(Vec::new());
    let attempt = async || {
        let unhealthy = outlet.standing.is_unhealthy();
        let found = outlet.found.borrow().get("web").cloned();
        states.borrow_mut().push((unhealthy, found));
        times.borrow_mut().push(begun.elapsed());
        outcomes.borrow_mut().pop_front().unwrap_or(Ok(()))
    };
    let tally = Tally::new(&check(Probe::Tcp), None);
    let running = run(Duration::from_secs(10), tally, &outlet, attempt);
    let _ = tokio::time::timeout(Duration::from_secs(100), running).await;
    let told = unhealthy("status 503");
    let well = (false, Some(Health::Healthy));
    let ill = (true, Some(told));
    let expected = [
        (false, None),
        well.clone(),
        well.clone(),
        well.clone(),
        ill.clone(),
        ill.clone(),
        ill,
        well,
    ];
    assert_eq!(states.borrow()[..8], expected);
    let times = times.into_inner();
    assert!(times[0] <= FIRST, "{times:?}");
    for pair in times.windows(2) {
        let between = (pair[1] - pair[0]).as_millis();
        assert!((9_000..=11_001).contains(&between), "{times:?}");
    }
    let metrics = outlet.context.metrics.encode();
    let labels = "gateway=\"default/web\",endpoint=\"web\"";
    assert!(
        metrics.contains(&format!("tailway_endpoint_healthy{{{labels}}} 1")),
        "{metrics}"
    );
    let counted = format!("tailway_health_checks_total{{{labels},result=\"failed\"}} 3");
    assert!(metrics.contains(&counted), "{metrics}");
}

/// Tries an endpoint of this host once.
async fn attempt(probe: Probe, port: u16, timeout: u64) -> Result<(), Failure> {
    let prober = Prober {
        endpoint: Endpoint::Address([127, 0, 0, 1].into(), port),
        link: Link::Plain,
        node: None,
        probe,
        timeout: Duration::from_millis(timeout),
    };
    prober.attempt().await
}

fn failed(reason: &str) -> Result<(), Failure> {
    Err(Failure::Failed(reason.into()))
}

/// A server of HTTP that answers each connection with this, and the head of the last request.
async fn server(answer: &'static str) -> (u16, watch::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (heads, head) = watch::channel(String::new());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 4096];
            let length = stream.read(&mut bytes).await.unwrap();
            heads.send_replace(String::from_utf8_lossy(&bytes[..length]).into_owned());
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    (port, head)
}

fn get() -> Probe {
    Probe::Http {
        path: "/health?a=b".into(),
        host: "web.example".into(),
    }
}

#[tokio::test]
async fn http_is_good_when_it_answers_with_a_status_of_success() {
    let (port, head) = server("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(attempt(get(), port, 5000).await, Ok(()));
    let head = head.borrow().to_lowercase();
    assert!(head.starts_with("get /health?a=b http/1.1\r\n"), "{head}");
    assert!(head.contains("host: web.example\r\n"), "{head}");
    for (answer, expected) in [
        (
            "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
            "status 503",
        ),
        (
            "HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
            "status 302",
        ),
    ] {
        let (port, _) = server(answer).await;
        assert_eq!(attempt(get(), port, 5000).await, failed(expected));
    }
    let (port, _) = server("no HTTP at all").await;
    let Err(Failure::Failed(told)) = attempt(get(), port, 5000).await else {
        panic!("taken for HTTP");
    };
    assert!(told.starts_with("no response"), "{told}");
}

#[tokio::test]
async fn an_answer_that_comes_with_the_end_of_its_connection_is_one() {
    let (port, _) =
        server("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").await;
    // What comes first is up to chance.
    for _ in 0..200 {
        assert_eq!(attempt(get(), port, 5000).await, Ok(()));
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_not_waited_for_longer_than_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let late = attempt(get(), port, 100).await;
    assert_eq!(late, failed("no answer within 100ms"));
    // It takes connections, which is all that is asked of TCP.
    assert_eq!(attempt(Probe::Tcp, port, 5000).await, Ok(()));
    drop(listener);
    assert_eq!(
        attempt(Probe::Tcp, port, 5000).await,
        failed("connection refused")
    );
}

#[tokio::test]
async fn a_datagram_may_be_answered_or_not_but_not_refused() {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    assert_eq!(attempt(Probe::Udp, port, 50).await, Ok(()), "silence");
    let cell = Cell::new(Some(socket));
    drop(cell.take());
    assert_eq!(
        attempt(Probe::Udp, port, 5000).await,
        failed("connection refused")
    );
}

#[tokio::test]
async fn what_is_in_a_tailnet_is_not_judged_without_a_node() {
    let prober = |probe| Prober {
        endpoint: Endpoint::Tailnet("web".into(), 80),
        link: Link::Plain,
        node: None,
        probe,
        timeout: Duration::from_secs(5),
    };
    for probe in [Probe::Tcp, Probe::Udp, get()] {
        assert_eq!(prober(probe).attempt().await, Err(Failure::NoTailnet));
    }
}
