//! Tokens reviewed by an API server that the test plays.

use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Bytes, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
};
use tailway::{
    discovery::{AuthError, Authenticator, TokenReviewer},
    model::ObjectName,
};
use tokio::net::TcpListener;

/// What the API server is asked and answers.
#[derive(Clone, Default)]
struct Reviews {
    status: Arc<Mutex<Value>>,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Reviews {
    async fn serve(&self) -> kube::Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let reviews = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let reviews = reviews.clone();
                let service = service_fn(move |request| {
                    let reviews = reviews.clone();
                    async move { Ok::<_, Infallible>(reviews.answer(request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(connection);
            }
        });
        let url = format!("http://{address}").parse().unwrap();
        kube::Client::try_from(kube::Config::new(url)).unwrap()
    }

    async fn answer(&self, request: Request<hyper::body::Incoming>) -> Response<Full<Bytes>> {
        assert_eq!(
            request.uri().path(),
            "/apis/authentication.k8s.io/v1/tokenreviews"
        );
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut review: Value = serde_json::from_slice(&body).unwrap();
        self.asked.lock().unwrap().push(review["spec"].clone());
        review["status"] = self.status.lock().unwrap().clone();
        Response::new(Full::new(review.to_string().into()))
    }

    fn say(&self, status: Value) {
        *self.status.lock().unwrap() = status;
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

fn known(user: &str) -> Value {
    json!({"authenticated": true, "audiences": ["tailway-discovery"], "user": {"username": user}})
}

fn gateway_of(account: &str) -> Option<ObjectName> {
    (account == "web").then(|| ObjectName::new("default", "web"))
}

#[tokio::test]
async fn a_service_accounts_token_names_its_gateway() {
    let reviews = Reviews::default();
    reviews.say(known("system:serviceaccount:tailway-system:web"));
    let reviewer = TokenReviewer::new(reviews.serve().await, "tailway-system", gateway_of);
    let gateway = reviewer.authenticate("secret-token").await;
    assert_eq!(gateway, Ok(ObjectName::new("default", "web")));
    assert_eq!(
        *reviews.asked.lock().unwrap(),
        [json!({"token": "secret-token", "audiences": ["tailway-discovery"]})]
    );
    // It is not asked again for a while, also when it is away.
    reviews.say(json!({}));
    let gateway = reviewer.authenticate("secret-token").await;
    assert_eq!(gateway, Ok(ObjectName::new("default", "web")));
    assert_eq!(reviews.asked(), 1);
    assert!(!format!("{reviewer:?}").contains("secret-token"));
}

#[tokio::test]
async fn what_is_wrong_with_a_token_is_told_and_not_remembered() {
    let reviews = Reviews::default();
    let reviewer = TokenReviewer::new(reviews.serve().await, "tailway-system", gateway_of);
    let invalid = |cause: &str| AuthError::Invalid(cause.into());
    let stranger = |cause: &str| AuthError::Stranger(cause.into());
    let mut without_audience = known("system:serviceaccount:tailway-system:web");
    without_audience["audiences"] = json!(["https://kubernetes.default.svc"]);
    let mut without_any = without_audience.clone();
    without_any["audiences"] = Value::Null;
    for (status, error) in [
        (json!({}), invalid("the API server does not know it")),
        (
            json!({"authenticated": false, "error": "it has expired"}),
            invalid("it has expired"),
        ),
        (
            without_audience,
            invalid("it is not for the audience tailway-discovery"),
        ),
        (
            without_any,
            invalid("it is not for the audience tailway-discovery"),
        ),
        (
            known("system:serviceaccount:default:web"),
            stranger("system:serviceaccount:default:web is no ServiceAccount in tailway-system"),
        ),
        (
            known("system:serviceaccount:tailway-system:"),
            stranger(
                "system:serviceaccount:tailway-system: is no ServiceAccount in tailway-system",
            ),
        ),
        (
            known("admin"),
            stranger("admin is no ServiceAccount in tailway-system"),
        ),
    ] {
        let before = reviews.asked();
        reviews.say(status);
        assert_eq!(reviewer.authenticate("token").await, Err(error));
        assert_eq!(reviews.asked(), before + 1);
    }
    reviews.say(known("system:serviceaccount:tailway-system:nobody"));
    let belongs = stranger("ServiceAccount tailway-system/nobody belongs to no Gateway");
    assert_eq!(reviewer.authenticate("token").await, Err(belongs));
}

#[tokio::test]
async fn an_api_server_that_is_away_is_another_matter_than_a_wrong_token() {
    let (_held, address) = crate::proxy::scene::dead();
    let url = format!("http://{address}").parse().unwrap();
    let client = kube::Client::try_from(kube::Config::new(url)).unwrap();
    let reviewer = TokenReviewer::new(client, "tailway-system", gateway_of);
    let error = reviewer.authenticate("secret-token").await.unwrap_err();
    assert!(
        matches!(&error, AuthError::Unavailable(cause) if !cause.contains("secret-token")),
        "{error:?}"
    );
}
