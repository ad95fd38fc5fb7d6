//! One stream, as the pod sees it.

use super::{
    client::{Answer, Client, ClientSettings, KeyError, PROGRAM_VERSION, Received},
    proto::{self, discovery_client::DiscoveryClient, from_pod, to_pod},
    wire::{self, Resources},
};
use crate::tailnet::Secret;
use std::{io, path::Path, sync::Arc, time::Duration};
use tokio::sync::mpsc;
use tonic::{
    Code, Request, Status, Streaming,
    codegen::tokio_stream::wrappers::ReceiverStream,
    metadata::MetadataValue,
    transport::{Certificate, ClientTlsConfig, Endpoint},
};

pub(super) struct Session {
    inbound: Streaming<proto::ToPod>,
    outbound: mpsc::Sender<proto::FromPod>,
    /// Version that was pushed last.
    version: Option<String>,
    /// A key was asked for on this stream, and the answer has not come.
    asked: bool,
}

/// Why a stream ended, or none began.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error("{path} cannot be read: {error}")]
    File { path: String, error: io::Error },
    #[error("{0} holds no certificate")]
    NoCa(String),
    #[error("the token in {0} is no text")]
    Token(String),
    #[error("{}", chain(.0))]
    Connect(#[from] tonic::transport::Error),
    #[error("it took longer than {0:?}")]
    Slow(Duration),
    #[error("{} ({:?})", .0.message(), .0.code())]
    Refused(Box<Status>),
    #[error("the controller ended the stream")]
    Ended,
}

/// Of one message: a Snapshot with thousands of endpoints and certificates.
const MAX_MESSAGE: usize = 64 << 20;

/// Messages to the controller on their way; it reads them at once.
const OUTBOUND: usize = 8;

// === impl Session ===

impl Session {
    /// Connects, and says what is wanted and what is there already.
    pub(super) async fn open(
        settings: &ClientSettings,
        held: &Resources,
    ) -> Result<Self, SessionError> {
        let token = text(&settings.token).await?;
        let mut bearer = MetadataValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| SessionError::Token(settings.token.display().to_string()))?;
        bearer.set_sensitive(true);
        let channel = endpoint(settings).await?.connect().await?;
        let (outbound, messages) = mpsc::channel(OUTBOUND);
        let held = held.values().map(|resource| proto::Held {
            id: resource.id.clone(),
            hash: resource.hash.clone(),
        });
        let subscribe = proto::Subscribe {
            gateway: Some(wire::name_out(&settings.gateway)),
            pod: settings.pod.clone(),
            program_version: PROGRAM_VERSION.into(),
            held: held.collect(),
        };
        let mut session_messages = Request::new(ReceiverStream::new(messages));
        session_messages
            .metadata_mut()
            .insert("authorization", bearer);
        send(&outbound, from_pod::Message::Subscribe(subscribe)).await?;
        let response = DiscoveryClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .follow(session_messages)
            .await?;
        Ok(Self {
            inbound: response.into_inner(),
            outbound,
            version: None,
            asked: false,
        })
    }

    pub(super) async fn run(&mut self, client: &mut Client) -> SessionError {
        loop {
            if let Err(error) = self.step(client).await {
                return error;
            }
        }
    }

    /// Waits for one thing to happen, and does what follows.
    async fn step(&mut self, client: &mut Client) -> Result<(), SessionError> {
        client.waiting.retain(|request| !request.is_closed());
        if !self.asked && !client.waiting.is_empty() {
            self.asked = true;
            send(
                &self.outbound,
                from_pod::Message::NeedKey(proto::NeedKey {}),
            )
            .await?;
        }
        tokio::select! {
            message = self.inbound.message() => {
                let message = message?.ok_or(SessionError::Ended)?;
                self.take(message, client).await
            }
            // Its sender lives as long as the client.
            Ok(()) = client.answers.changed() => self.answer(client).await,
            Some(request) = client.keys.recv() => {
                client.waiting.push(request);
                Ok(())
            }
        }
    }

    async fn take(
        &mut self,
        message: proto::ToPod,
        client: &mut Client,
    ) -> Result<(), SessionError> {
        match message.message {
            Some(to_pod::Message::Push(push)) => self.push(push, client).await?,
            Some(to_pod::Message::AuthKey(key)) => {
                self.asked = false;
                client.give(Ok(Secret::new(key.key)));
            }
            Some(to_pod::Message::KeyRefused(refused)) => {
                self.asked = false;
                client.give(Err(KeyError::Refused {
                    message: refused.message,
                    retry_after: Duration::from_secs(refused.retry_after_seconds.into()),
                }));
            }
            Some(to_pod::Message::Waiting(waiting)) => client.waiting(waiting.message),
            // Of a controller that is newer than this pod.
            None => {}
        }
        Ok(())
    }

    async fn push(&mut self, push: proto::Push, client: &mut Client) -> Result<(), SessionError> {
        client.connected();
        self.version = Some(push.version.clone());
        let version = push.version.clone();
        match client.receive(push) {
            Ok(()) => self.answer(client).await,
            Err(reason) => {
                tracing::warn!(
                    version,
                    "the snapshot from the controller is refused: {reason}"
                );
                let nack = proto::Nack { version, reason };
                send(&self.outbound, from_pod::Message::Nack(nack)).await
            }
        }
    }

    /// Passes on what the data plane made of the version that was pushed last, if it is known: of
    /// an older one nobody waits to hear.
    async fn answer(&mut self, client: &mut Client) -> Result<(), SessionError> {
        let answer = client.answers.borrow_and_update().clone();
        let Some(Answer { version, refusal }) =
            answer.filter(|answer| self.version.as_ref() == Some(&answer.version))
        else {
            return Ok(());
        };
        let message = match refusal {
            None => from_pod::Message::Ack(proto::Ack { version }),
            Some(reason) => from_pod::Message::Nack(proto::Nack { version, reason }),
        };
        send(&self.outbound, message).await
    }
}

impl Client {
    /// Takes a push. `Err` says why it is no Snapshot that can be served.
    fn receive(&mut self, push: proto::Push) -> Result<(), String> {
        if push.full {
            self.held.clear();
        }
        for id in &push.removed {
            self.held.remove(id);
        }
        for resource in push.upserted {
            self.held.insert(resource.id.clone(), Arc::new(resource));
        }
        self.sound = false;
        let snapshot =
            wire::decode(&self.held, &mut self.read).map_err(|error| error.to_string())?;
        self.sound = true;
        if snapshot.gateway != self.settings.gateway {
            return Err(format!("it is of Gateway {}", snapshot.gateway));
        }
        let received = Received::new(push.version, snapshot, self.held.clone());
        self.snapshots.send_if_modified(|current| {
            let same = current.as_ref().map(|current| &current.version) == Some(&received.version);
            if !same {
                *current = Some(received);
            }
            !same
        });
        Ok(())
    }

    /// Answers the request for a key that waits longest; a refusal is for all that wait.
    fn give(&mut self, answer: Result<Secret, KeyError>) {
        match answer {
            Ok(key) => {
                let mut key = Some(key);
                while let Some(one) = key.take()
                    && !self.waiting.is_empty()
                {
                    // Given back when nobody waits there any more.
                    key = self
                        .waiting
                        .remove(0)
                        .send(Ok(one))
                        .err()
                        .and_then(Result::ok);
                }
                if key.is_some() {
                    tracing::warn!("an auth key came that nobody waits for any more");
                }
            }
            Err(error) => {
                for request in self.waiting.drain(..) {
                    // Whoever waits no more needs no answer.
                    let _ = request.send(Err(error.clone()));
                }
            }
        }
    }
}

async fn send(
    outbound: &mpsc::Sender<proto::FromPod>,
    message: from_pod::Message,
) -> Result<(), SessionError> {
    let message = proto::FromPod {
        message: Some(message),
    };
    outbound
        .send(message)
        .await
        .map_err(|_| SessionError::Ended)
}

async fn endpoint(settings: &ClientSettings) -> Result<Endpoint, SessionError> {
    let bundle = text(&settings.ca_bundle).await?;
    if !bundle.contains("-----BEGIN CERTIFICATE-----") {
        return Err(SessionError::NoCa(settings.ca_bundle.display().to_string()));
    }
    let timing = &settings.timing;
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(bundle))
        .timeout(timing.connect);
    Ok(Endpoint::from_shared(settings.endpoint.clone())?
        .tls_config(tls)?
        .connect_timeout(timing.connect)
        .http2_keep_alive_interval(timing.keepalive)
        .keep_alive_timeout(timing.keepalive)
        .keep_alive_while_idle(true))
}

async fn text(path: &Path) -> Result<String, SessionError> {
    tokio::fs::read_to_string(path)
        .await
        .map_err(|error| SessionError::File {
            path: path.display().to_string(),
            error,
        })
}

/// An error with its causes: the outermost one says only that the transport failed.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        // Some errors repeat their cause.
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

// === impl SessionError ===

impl SessionError {
    /// What the controller has against this pod; `None` when it is only away.
    pub(super) fn objection(&self) -> Option<Code> {
        match self {
            Self::Refused(status) => match status.code() {
                Code::Cancelled
                | Code::DeadlineExceeded
                | Code::Internal
                | Code::Unavailable
                | Code::Unknown => None,
                code => Some(code),
            },
            _ => None,
        }
    }
}

impl From<Status> for SessionError {
    fn from(status: Status) -> Self {
        Self::Refused(Box::new(status))
    }
}
