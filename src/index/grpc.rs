//! Rules of a GRPCRoute: those of an HTTPRoute with other words. A call of gRPC is a request whose
//! path is `/service/method`.

use super::http;
use crate::api::gateway_api::{
    grpcroutes::{
        GrpcRouteRules, GrpcRouteRulesMatches, GrpcRouteRulesMatchesMethod,
        GrpcRouteRulesMatchesMethodType as MethodType,
    },
    httproutes::{
        HttpRouteRules, HttpRouteRulesMatches, HttpRouteRulesMatchesPath,
        HttpRouteRulesMatchesPathType as PathType,
    },
};
use regex::Regex;

/// One segment of a path, whatever it is.
const ANY: &str = "[^/]+";

pub(super) fn rules(rules: &[GrpcRouteRules]) -> Vec<HttpRouteRules> {
    rules.iter().map(rule).collect()
}

fn rule(rule: &GrpcRouteRules) -> HttpRouteRules {
    let matches = rule.matches.iter().flatten().map(matched);
    HttpRouteRules {
        name: rule.name.clone(),
        matches: Some(matches.collect()),
        // The same words, of other types.
        filters: super::same(rule.filters.as_ref()),
        backend_refs: super::same(rule.backend_refs.as_ref()),
        ..http::EMPTY_RULE
    }
}

fn matched(wanted: &GrpcRouteRulesMatches) -> HttpRouteRulesMatches {
    HttpRouteRulesMatches {
        path: wanted.method.as_ref().and_then(path),
        headers: super::same(wanted.headers.as_ref()),
        method: None,
        query_params: None,
    }
}

/// The path of the calls of a service or a method; `None`: of all.
fn path(wanted: &GrpcRouteRulesMatchesMethod) -> Option<HttpRouteRulesMatchesPath> {
    // Either may be left out or empty, which is every one.
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let (service, method) = (given(&wanted.service), given(&wanted.method));
    let (kind, value) = match (wanted.r#type.as_ref(), service, method) {
        (_, None, None) => return None,
        (None | Some(MethodType::Exact), Some(service), Some(method)) => {
            (PathType::Exact, format!("/{service}/{method}"))
        }
        (None | Some(MethodType::Exact), Some(service), None) => {
            (PathType::PathPrefix, format!("/{service}"))
        }
        (None | Some(MethodType::Exact), None, Some(method)) => {
            let method = regex::escape(&method);
            (PathType::RegularExpression, format!("/{ANY}/{method}"))
        }
        (Some(MethodType::RegularExpression), service, method) => {
            (PathType::RegularExpression, expression(service, method))
        }
    };
    Some(HttpRouteRulesMatchesPath {
        r#type: Some(kind),
        value: Some(value),
    })
}

/// What is none stays as it is, so that the error shows what was written.
fn expression(service: Option<String>, method: Option<String>) -> String {
    let parts = [service, method].map(|part| part.unwrap_or_else(|| ANY.into()));
    match parts.iter().find(|part| Regex::new(part).is_err()) {
        Some(wrong) => wrong.clone(),
        None => format!("/(?:{})/(?:{})", parts[0], parts[1]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_call_is_meant_by_its_path() {
        for (method, kind, value) in [
            (
                json!({"service": "a.B", "method": "Get"}),
                "Exact",
                "/a.B/Get",
            ),
            (json!({"service": "a.B"}), "PathPrefix", "/a.B"),
            (
                json!({"method": "Get", "type": "Exact"}),
                "RegularExpression",
                "/[^/]+/Get",
            ),
            (
                json!({"service": "a\\..*", "method": "Get|Set", "type": "RegularExpression"}),
                "RegularExpression",
                "/(?:a\\..*)/(?:Get|Set)",
            ),
            (
                json!({"method": "G.*", "type": "RegularExpression"}),
                "RegularExpression",
                "/(?:[^/]+)/(?:G.*)",
            ),
            (
                json!({"service": "a)(b", "type": "RegularExpression"}),
                "RegularExpression",
                "a)(b",
            ),
        ] {
            let wanted = serde_json::from_value(method.clone()).unwrap();
            let given = serde_json::to_value(path(&wanted)).unwrap();
            assert_eq!(given, json!({"type": kind, "value": value}), "{method}");
        }
        let every = serde_json::from_value(json!({"service": ""})).unwrap();
        assert_eq!(path(&every), None);
    }
}
