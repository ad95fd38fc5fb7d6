//! Sets of an API server: read, counted up, and told how they are served.

use super::{
    hooks::{request, service, set},
    messages::{Match, configuration, host, route, route_names},
};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tailway::{
    extension::{Hooks, Keeper, Known, Notes, Settings},
    metrics::Metrics,
};
use tokio::{net::TcpListener, sync::broadcast, sync::watch, task::JoinHandle};

/// An API server that knows sets and nothing else.
#[derive(Clone)]
struct ApiServer {
    objects: Arc<Mutex<Vec<Value>>>,
    events: broadcast::Sender<Value>,
}

impl ApiServer {
    fn start_with(objects: Vec<Value>) -> Self {
        Self {
            objects: Arc::new(Mutex::new(objects)),
            events: broadcast::channel(64).0,
        }
    }

    async fn serve(&self) -> kube::Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = self.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let server = server.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, Infallible>(server.answer(request).await) }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
            }
        });
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        kube::Client::try_from(config).unwrap()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let path = request.uri().path().to_owned();
        if request.method() == Method::PATCH {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            return self.patch(&path, &serde_json::from_slice(&body).unwrap());
        }
        if query.contains("watch=true") {
            // What has changed since the list, then what changes.
            let objects = self.objects.lock().unwrap();
            let mut events = self.events.subscribe();
            let changed = objects
                .iter()
                .filter(|o| o["metadata"]["resourceVersion"] != "1");
            let changed = changed.map(|object| json!({ "type": "MODIFIED", "object": object }));
            let mut changed = changed.collect::<Vec<_>>().into_iter();
            drop(objects);
            let stream = async_stream(move || {
                let event = changed.next().or_else(|| events.try_recv().ok());
                event.map(|event| Bytes::from(format!("{event}\n")))
            });
            return Response::new(stream);
        }
        let list = json!({
            "apiVersion": "gateway.tailscale.com/v1alpha1",
            "kind": "TailscaleEgressSetList",
            "metadata": { "resourceVersion": "1" },
            "items": *self.objects.lock().unwrap(),
        });
        whole(200, &list)
    }

    /// A merge patch (RFC 7386), refused when it is of another version.
    fn patch(&self, path: &str, patch: &Value) -> Response<BoxBody<Bytes, Infallible>> {
        let mut objects = self.objects.lock().unwrap();
        let name = path.rsplit('/').next().unwrap();
        let object = objects
            .iter_mut()
            .find(|o| o["metadata"]["name"] == name)
            .unwrap();
        let version = object["metadata"]["resourceVersion"].clone();
        let asked = &patch["metadata"]["resourceVersion"];
        if !asked.is_null() && *asked != version {
            let status = json!({ "kind": "Status", "status": "Failure", "code": 409,
                "reason": "Conflict", "message": "another version" });
            return whole(409, &status);
        }
        merge(object, patch);
        let next = version.as_str().unwrap().parse::<u64>().unwrap() + 1;
        object["metadata"]["resourceVersion"] = json!(next.to_string());
        // Nobody may be watching yet; who comes is told of it then.
        let _ = self
            .events
            .send(json!({ "type": "MODIFIED", "object": object }));
        whole(200, object)
    }

    fn object(&self, gateway: &str) -> Value {
        let objects = self.objects.lock().unwrap();
        let name = format!("{gateway}-egress");
        let object = objects
            .iter()
            .find(|o| o["metadata"]["name"] == name.as_str());
        object.unwrap().clone()
    }
}

fn whole(status: u16, body: &Value) -> Response<BoxBody<Bytes, Infallible>> {
    let response = Response::builder()
        .status(status)
        .header("content-type", "application/json");
    response.body(Full::from(body.to_string()).boxed()).unwrap()
}

/// A body that is what `next` gives, asked every now and then.
fn async_stream(
    next: impl FnMut() -> Option<Bytes> + Send + Sync + 'static,
) -> BoxBody<Bytes, Infallible> {
    let stream = futures_util::stream::unfold(next, |mut next| async move {
        loop {
            if let Some(bytes) = next() {
                return Some((Ok(Frame::data(bytes)), next));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    BoxBody::new(StreamBody::new(stream))
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        merge(&mut target[key], value);
    }
}

struct Scene {
    server: ApiServer,
    hooks: Hooks,
    notes: Notes,
    known: Known,
    metrics: Metrics,
    keeping: JoinHandle<Infallible>,
}

impl Scene {
    async fn start(services: Vec<Value>) -> Self {
        let mut objects = vec![
            set("default", "eg", services),
            set("default", "other", vec![service("other")]),
        ];
        for object in &mut objects {
            object["metadata"]["resourceVersion"] = json!("1");
        }
        let server = ApiServer::start_with(objects);
        let hooks = Hooks::new(Settings::default());
        let (sender, known) = watch::channel(None);
        let (notes, metrics) = (Notes::default(), Metrics::default());
        let client = server.serve().await;
        let keeper = Keeper::new(
            client,
            hooks.clone(),
            sender,
            notes.clone(),
            metrics.clone(),
        );
        Self {
            server,
            hooks,
            notes,
            known,
            metrics,
            keeping: tokio::spawn(keeper.run()),
        }
    }

    /// As when Envoy Gateway asks with the set of a Gateway as it is now.
    fn translate(&self, gateway: &str) {
        let user = host("*", [route("user", Match::Prefix("/"))]);
        let request = request(&[self.server.object(gateway)], vec![configuration([user])]);
        self.notes
            .add(&self.hooks.translation(request, None).told.served);
    }

    async fn until(&self, gateway: &str, holds: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let object = self.server.object(gateway);
            if holds(&object) {
                return;
            }
            assert!(Instant::now() < deadline, "{object:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn record(object: &Value) -> Option<Value> {
        let text = object["metadata"]["annotations"]["gateway.tailscale.com/served"].as_str()?;
        Some(serde_json::from_str(text).unwrap())
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.keeping.abort();
    }
}

#[tokio::test]
async fn a_set_is_counted_up_after_the_start_and_told_how_it_is_served() {
    let mut bad = service("bad");
    bad["upstream"]["protocol"] = json!("UDP");
    let scene = Scene::start(vec![service("web"), bad]).await;
    for gateway in ["eg", "other"] {
        // On a slow machine more than once, as nobody asks.
        let counted = |object: &Value| object["spec"]["resync"].as_i64() >= Some(4);
        scene.until(gateway, counted).await;
    }
    // It is counted when the answer has come.
    let counted = |_: &Value| {
        let metrics = scene.metrics.encode();
        let mut lines = metrics.lines();
        let line = lines.find(|line| line.starts_with("tailway_extension_resyncs_total"));
        let count = line.and_then(|line| line.rsplit(' ').next());
        count.is_some_and(|count| count.parse::<u32>().unwrap() >= 2)
    };
    scene.until("eg", counted).await;
    scene.translate("eg");
    let is_told = |object: &Value| Scene::record(object).is_some();
    scene.until("eg", is_told).await;
    let mut record = Scene::record(&scene.server.object("eg")).unwrap();
    assert!(record["at"].take().is_string());
    assert!(record["resync"].take().as_i64() >= Some(4));
    assert_eq!(
        record,
        json!({
            "revision": "r1",
            "resync": null,
            "at": null,
            "skipped": [{
                "service": "bad",
                "source": "default/endpoints",
                "reason": "UnsupportedProtocol",
                "message": "UDP cannot be routed by HTTP",
            }],
        })
    );
    // The same again is nothing to write: when the other, noted after it, is told, it is not.
    let before = Scene::record(&scene.server.object("eg"));
    scene.translate("eg");
    scene.translate("other");
    scene.until("other", is_told).await;
    assert_eq!(Scene::record(&scene.server.object("eg")), before);
    scene.server.objects.lock().unwrap()[0]["spec"]["revision"] = json!("r2");
    scene.translate("eg");
    let is_next = |object: &Value| Scene::record(object).is_some_and(|r| r["revision"] == "r2");
    scene.until("eg", is_next).await;
}

#[tokio::test]
async fn what_is_read_is_what_virtual_hosts_are_answered_from() {
    let scene = Scene::start(vec![service("web")]).await;
    let mut known = scene.known.clone();
    let first = tokio::time::timeout(Duration::from_secs(60), known.wait_for(Option::is_some));
    let plan = first.await.unwrap().unwrap().clone().unwrap();
    let host = host("*", [route("user", Match::Prefix("/"))]).done();
    let answer = scene.hooks.virtual_host(host, Some(&plan));
    assert_eq!(
        route_names(&answer.message),
        ["tailscale-egress-web/grpc", "tailscale-egress-web", "user"]
    );
}
