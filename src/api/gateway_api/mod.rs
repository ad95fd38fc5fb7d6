//! Generated from the CRDs of the Gateway API v1.7.0 by src/api/gen.sh.
pub mod gatewayclasses;
pub mod gateways;
pub mod referencegrants;
pub mod tcproutes;
