//! The hooks as a gRPC server.

use super::{
    Plan,
    hooks::{Answer, Hooks, Told},
    listener::{Connection, Listener, Peer},
    proto::{
        PostClusterModifyRequest, PostClusterModifyResponse, PostEndpointsModifyRequest,
        PostEndpointsModifyResponse, PostHttpListenerModifyRequest, PostHttpListenerModifyResponse,
        PostRouteModifyRequest, PostRouteModifyResponse, PostTranslateModifyRequest,
        PostTranslateModifyResponse, PostVirtualHostModifyRequest, PostVirtualHostModifyResponse,
        envoy_gateway_extension_server::{EnvoyGatewayExtension, EnvoyGatewayExtensionServer},
    },
};
use crate::drain::Drain;
use prost::Message;
use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status, codegen::tokio_stream::wrappers::ReceiverStream};

/// A kind of call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    Route,
    VirtualHost,
    HttpListener,
    Cluster,
    Endpoints,
    Translation,
}

/// A call that has been answered.
#[derive(Clone, Debug)]
pub struct Call {
    pub hook: Hook,
    pub took: Duration,
    /// Of the request and of the answer, in bytes.
    pub sizes: (usize, usize),
    /// `Err` says why it failed.
    pub result: Result<Told, String>,
}

/// Who is told of calls. It must not wait.
pub trait Observer: Send + Sync + 'static {
    fn called(&self, call: Call);
}

/// The sets that are known beside what requests bring: `None` until all have been read.
pub type Known = watch::Receiver<Option<Arc<Plan>>>;

#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// Largest request and answer, in bytes.
    pub max_message: usize,
    /// What a call may take.
    pub bound: Duration,
    /// How long calls are put off that need sets which have not all been read. Afterwards they are
    /// answered without.
    pub patience: Duration,
    /// How long calls may go on once the end has begun.
    pub farewell: Duration,
}

/// How often a client that says nothing is asked whether it is there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Why Envoy Gateway cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("Envoy Gateway cannot be served: {0}")]
pub struct ServeError(#[from] tonic::transport::Error);

/// The extension server.
pub struct Server {
    shared: Arc<Shared>,
}

struct Shared {
    hooks: Hooks,
    /// `None` when only what requests bring counts.
    known: Option<Known>,
    observer: Arc<dyn Observer>,
    settings: ServerSettings,
    started: Instant,
}

struct Service(Arc<Shared>);

impl Server {
    pub fn new(
        hooks: Hooks,
        known: Option<Known>,
        observer: Arc<dyn Observer>,
        settings: ServerSettings,
    ) -> Self {
        let shared = Shared {
            hooks,
            known,
            observer,
            settings,
            started: Instant::now(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Serves until the drain stops, and what has begun then to its end.
    ///
    /// # Errors
    /// When the transport cannot be set up.
    pub async fn serve(self, listener: Listener, drain: Drain) -> Result<(), ServeError> {
        let settings = self.shared.settings;
        let (health, health_service) = tonic_health::server::health_reporter();
        health
            .set_serving::<EnvoyGatewayExtensionServer<Service>>()
            .await;
        let service = EnvoyGatewayExtensionServer::new(Service(self.shared))
            .max_decoding_message_size(settings.max_message)
            .max_encoding_message_size(settings.max_message);
        let stopping = drain.clone();
        let stop = async move {
            stopping.stopping().await;
            health
                .set_not_serving::<EnvoyGatewayExtensionServer<Service>>()
                .await;
        };
        let incoming = listener.accept(drain.clone());
        let serving = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(KEEPALIVE))
            .add_service(health_service)
            .add_service(service)
            .serve_with_incoming_shutdown(
                ReceiverStream::<Result<Connection, Infallible>>::new(incoming),
                stop,
            );
        let forced = async {
            drain.stopping().await;
            tokio::time::sleep(settings.farewell).await;
        };
        tokio::select! {
            served = serving => Ok(served?),
            () = forced => Ok(()),
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("settings", &self.shared.settings)
            .finish_non_exhaustive()
    }
}

impl Service {
    /// Answers a call apart from all others, so that neither a slow one nor a panic is more than
    /// an error of its own. An error leaves Envoy with what it has.
    async fn answer<Q, A>(
        &self,
        hook: Hook,
        request: Request<Q>,
        answer: impl FnOnce(&Hooks, Q) -> Answer<A> + Send + 'static,
    ) -> Result<Response<A>, Status>
    where
        Q: Message + 'static,
        A: Message + 'static,
    {
        let started = Instant::now();
        let request = request.into_inner();
        let asked = request.encoded_len();
        let shared = Arc::clone(&self.0);
        let work = tokio::task::spawn_blocking(move || answer(&shared.hooks, request));
        let result = match tokio::time::timeout(self.0.settings.bound, work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(panic)) => Err(Status::internal(format!("the hook failed: {panic}"))),
            // Asked again by Envoy Gateway.
            Err(_) => Err(Status::unavailable("the hook took too long")),
        };
        let result = result.map(|answer| (answer.message, answer.told));
        self.tell(hook, started, asked, &result);
        result.map(|(message, _)| Response::new(message))
    }

    fn tell<A: Message>(
        &self,
        hook: Hook,
        started: Instant,
        asked: usize,
        result: &Result<(A, Told), Status>,
    ) {
        let answered = result
            .as_ref()
            .map_or(0, |(message, _)| message.encoded_len());
        self.0.observer.called(Call {
            hook,
            took: started.elapsed(),
            sizes: (asked, answered),
            result: match result {
                Ok((_, told)) => Ok(told.clone()),
                Err(status) => Err(status.message().to_owned()),
            },
        });
    }

    /// What is known of the sets; waits for it as long as a call may take.
    ///
    /// Envoy may have routes from the time before this process: an answer without them would
    /// remove them, an error leaves them. But who never answers lets nothing else through either.
    async fn known(&self) -> Result<Option<Arc<Plan>>, Status> {
        let Some(mut known) = self.0.known.clone() else {
            return Ok(None);
        };
        if let Some(plan) = &*known.borrow() {
            return Ok(Some(Arc::clone(plan)));
        }
        let left = self
            .0
            .settings
            .patience
            .saturating_sub(self.0.started.elapsed());
        if left.is_zero() {
            return Ok(None);
        }
        let bound = self.0.settings.bound.min(left);
        let first = known.wait_for(Option::is_some);
        let first = match tokio::time::timeout(bound, first).await {
            Ok(Ok(plan)) => Ok(plan.clone()),
            Ok(Err(_)) | Err(_) => Err(()),
        };
        first.map_err(|()| Status::unavailable("the services have not all been read yet"))
    }

    /// Answers an error of [`Self::known`].
    fn put_off<A: Message>(&self, hook: Hook, asked: usize, status: Status) -> Status {
        let result: Result<(A, Told), Status> = Err(status.clone());
        self.tell(hook, Instant::now(), asked, &result);
        status
    }
}

#[tonic::async_trait]
impl EnvoyGatewayExtension for Service {
    async fn post_route_modify(
        &self,
        request: Request<PostRouteModifyRequest>,
    ) -> Result<Response<PostRouteModifyResponse>, Status> {
        let echo = |_: &Hooks, request: PostRouteModifyRequest| {
            Answer::unchanged(PostRouteModifyResponse {
                route: request.route,
            })
        };
        self.answer(Hook::Route, request, echo).await
    }

    async fn post_virtual_host_modify(
        &self,
        request: Request<PostVirtualHostModifyRequest>,
    ) -> Result<Response<PostVirtualHostModifyResponse>, Status> {
        let hook = Hook::VirtualHost;
        let known = self.known().await.map_err(|status| {
            let asked = request.get_ref().encoded_len();
            self.put_off::<PostVirtualHostModifyResponse>(hook, asked, status)
        })?;
        let answer = move |hooks: &Hooks, request: PostVirtualHostModifyRequest| {
            let answer = hooks.virtual_host(request.virtual_host, known.as_deref());
            answer.map(|virtual_host| PostVirtualHostModifyResponse { virtual_host })
        };
        self.answer(hook, request, answer).await
    }

    async fn post_http_listener_modify(
        &self,
        request: Request<PostHttpListenerModifyRequest>,
    ) -> Result<Response<PostHttpListenerModifyResponse>, Status> {
        let echo = |_: &Hooks, request: PostHttpListenerModifyRequest| {
            Answer::unchanged(PostHttpListenerModifyResponse {
                listener: request.listener,
            })
        };
        self.answer(Hook::HttpListener, request, echo).await
    }

    async fn post_cluster_modify(
        &self,
        request: Request<PostClusterModifyRequest>,
    ) -> Result<Response<PostClusterModifyResponse>, Status> {
        let answer = |hooks: &Hooks, request: PostClusterModifyRequest| {
            let answer = hooks.cluster(request);
            answer.map(|cluster| PostClusterModifyResponse { cluster })
        };
        self.answer(Hook::Cluster, request, answer).await
    }

    async fn post_endpoints_modify(
        &self,
        request: Request<PostEndpointsModifyRequest>,
    ) -> Result<Response<PostEndpointsModifyResponse>, Status> {
        let echo = |_: &Hooks, request: PostEndpointsModifyRequest| {
            Answer::unchanged(PostEndpointsModifyResponse {
                load_assignment: request.load_assignment,
            })
        };
        self.answer(Hook::Endpoints, request, echo).await
    }

    async fn post_translate_modify(
        &self,
        request: Request<PostTranslateModifyRequest>,
    ) -> Result<Response<PostTranslateModifyResponse>, Status> {
        let hook = Hook::Translation;
        let peer = request.extensions().get::<Peer>().cloned();
        let peer = peer.unwrap_or_default();
        // An Envoy Gateway that ever brings routes has them put in here, and asks for no virtual
        // host: what is known is not for it.
        let known = if !Hooks::needs_known(request.get_ref()) {
            peer.brings_routes();
            None
        } else if peer.has_brought_routes() {
            None
        } else {
            self.known().await.map_err(|status| {
                let asked = request.get_ref().encoded_len();
                self.put_off::<PostTranslateModifyResponse>(hook, asked, status)
            })?
        };
        let answer = move |hooks: &Hooks, request| hooks.translation(request, known.as_deref());
        self.answer(hook, request, answer).await
    }
}

// === impl Hook ===

impl Hook {
    /// As Envoy Gateway's configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Route => "Route",
            Self::VirtualHost => "VirtualHost",
            Self::HttpListener => "HTTPListener",
            Self::Cluster => "Cluster",
            Self::Endpoints => "Endpoints",
            Self::Translation => "Translation",
        }
    }
}

// === impl ServerSettings ===

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            max_message: 1_000_000_000,
            bound: Duration::from_secs(1),
            patience: Duration::from_secs(60),
            farewell: Duration::from_secs(5),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extension::Settings;
    use std::sync::Mutex;
    use tonic::Code;

    #[derive(Default)]
    struct Calls(Mutex<Vec<Call>>);

    impl Observer for Calls {
        fn called(&self, call: Call) {
            self.0.lock().unwrap().push(call);
        }
    }

    fn service(bound: Duration) -> (Service, Arc<Calls>) {
        let calls = Arc::new(Calls::default());
        let settings = ServerSettings {
            bound,
            ..ServerSettings::default()
        };
        let observer = Arc::clone(&calls) as Arc<dyn Observer>;
        let hooks = Hooks::new(Settings::default());
        let server = Server::new(hooks, None, observer, settings);
        (Service(server.shared), calls)
    }

    fn request() -> Request<PostRouteModifyRequest> {
        Request::new(PostRouteModifyRequest {
            route: "a route".into(),
            post_route_context: None,
        })
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_call_alone() {
        let (service, calls) = service(Duration::from_secs(60));
        let failed = service.answer(
            Hook::Route,
            request(),
            |_, _| -> Answer<PostRouteModifyResponse> { panic!("a bug") },
        );
        assert_eq!(failed.await.err().map(|e| e.code()), Some(Code::Internal));
        let next = service.post_route_modify(request()).await.unwrap();
        assert_eq!(next.into_inner().route, "a route");
        let results: Vec<_> = calls.0.lock().unwrap().drain(..).collect();
        assert!(results[0].result.is_err());
        assert!(results[1].result.is_ok());
    }

    #[tokio::test]
    async fn a_call_that_takes_too_long_is_given_up_so_that_it_comes_again() {
        let (service, _) = service(Duration::from_millis(20));
        let (release, released) = std::sync::mpsc::channel::<()>();
        let slow = service.answer(Hook::Route, request(), move |_, request| {
            // Until the test lets go.
            let _ = released.recv();
            Answer::unchanged(PostRouteModifyResponse {
                route: request.route,
            })
        });
        assert_eq!(slow.await.err().map(|e| e.code()), Some(Code::Unavailable));
        let next = service.post_route_modify(request()).await.unwrap();
        assert_eq!(next.into_inner().route, "a route");
        drop(release);
    }
}
