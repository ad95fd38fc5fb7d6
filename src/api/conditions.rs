//! Condition types and reasons, spelled as the Gateway API does (v1.7, `apis/v1`).

pub const ACCEPTED: &str = "Accepted";
pub const PROGRAMMED: &str = "Programmed";
pub const RESOLVED_REFS: &str = "ResolvedRefs";
pub const CONFLICTED: &str = "Conflicted";

pub const PENDING: &str = "Pending";
pub const INVALID: &str = "Invalid";

// GatewayClass
pub const INVALID_PARAMETERS: &str = "InvalidParameters";
/// Ours, of a GatewayClass that is not accepted: its credentials were tried.
pub const INVALID_CREDENTIALS: &str = "InvalidCredentials";
pub const MISSING_SCOPE: &str = "MissingScope";
pub const API_UNREACHABLE: &str = "APIUnreachable";
pub const API_RATE_LIMITED: &str = "APIRateLimited";
/// All reasons for which a GatewayClass is not accepted.
pub const CLASS_REFUSALS: &[&str] = &[
    INVALID_PARAMETERS,
    INVALID_CREDENTIALS,
    MISSING_SCOPE,
    API_UNREACHABLE,
    API_RATE_LIMITED,
];

// TailscaleEndpoints
/// Whether the tailnet could be asked what there is in it.
pub const DISCOVERED: &str = "Discovered";

// Gateway
pub const LISTENERS_NOT_VALID: &str = "ListenersNotValid";
pub const UNSUPPORTED_ADDRESS: &str = "UnsupportedAddress";
pub const ADDRESS_NOT_ASSIGNED: &str = "AddressNotAssigned";
pub const ADDRESS_NOT_USABLE: &str = "AddressNotUsable";
pub const INVALID_CLIENT_CERTIFICATE_REF: &str = "InvalidClientCertificateRef";
pub const LISTENERS_NOT_RESOLVED: &str = "ListenersNotResolved";
/// Condition of a Gateway that lets clients in whose certificates are not valid.
pub const INSECURE_FRONTEND_VALIDATION_MODE: &str = "InsecureFrontendValidationMode";
pub const CONFIGURATION_CHANGED: &str = "ConfigurationChanged";

// ListenerSet
pub const NOT_ALLOWED: &str = "NotAllowed";
pub const PARENT_NOT_ACCEPTED: &str = "ParentNotAccepted";
pub const PARENT_NOT_PROGRAMMED: &str = "ParentNotProgrammed";

// Listener
pub const UNSUPPORTED_PROTOCOL: &str = "UnsupportedProtocol";
pub const UNSUPPORTED_VALUE: &str = "UnsupportedValue";
pub const INVALID_ROUTE_KINDS: &str = "InvalidRouteKinds";
pub const INVALID_CERTIFICATE_REF: &str = "InvalidCertificateRef";
pub const INVALID_CA_CERTIFICATE_REF: &str = "InvalidCACertificateRef";
pub const INVALID_CA_CERTIFICATE_KIND: &str = "InvalidCACertificateKind";
pub const NO_VALID_CA_CERTIFICATE: &str = "NoValidCACertificate";
pub const REF_NOT_PERMITTED: &str = "RefNotPermitted";
pub const HOSTNAME_CONFLICT: &str = "HostnameConflict";
pub const PROTOCOL_CONFLICT: &str = "ProtocolConflict";
pub const NO_CONFLICTS: &str = "NoConflicts";
pub const OVERLAPPING_TLS_CONFIG: &str = "OverlappingTLSConfig";
pub const OVERLAPPING_HOSTNAMES: &str = "OverlappingHostnames";

// Route
pub const NO_MATCHING_PARENT: &str = "NoMatchingParent";
pub const NO_MATCHING_LISTENER_HOSTNAME: &str = "NoMatchingListenerHostname";
pub const INCOMPATIBLE_FILTERS: &str = "IncompatibleFilters";
/// Condition of a route some of whose rules are left out.
pub const PARTIALLY_INVALID: &str = "PartiallyInvalid";
pub const NOT_ALLOWED_BY_LISTENERS: &str = "NotAllowedByListeners";
pub const BACKEND_NOT_FOUND: &str = "BackendNotFound";
pub const INVALID_KIND: &str = "InvalidKind";
/// Ours, of a route's parent: `True` when a listener serves an older route instead. The
/// specification lets both be accepted and names no condition for it.
pub const ROUTE_CONFLICTED: &str = "tailway.michaelbeaumont.github.io/Conflicted";
pub const OLDER_ROUTE: &str = "OlderRoute";

/// Ours, of a Gateway or a route's parent: `True` when annotations have no effect.
pub const INVALID_ANNOTATIONS: &str = "tailway.michaelbeaumont.github.io/InvalidAnnotations";

/// Ours, of a Gateway: whether its node is up in the tailnet under the name asked for.
pub const TAILNET_READY: &str = "TailnetReady";
pub const TAILNET_UP: &str = "Ready";
pub const TAILNET_JOINING: &str = "Joining";
pub const TAILNET_LOGIN_NEEDED: &str = "LoginNeeded";
pub const TAILNET_APPROVAL_NEEDED: &str = "ApprovalNeeded";
pub const TAILNET_KEY_EXPIRED: &str = "KeyExpired";
pub const TAILNET_NAME_TAKEN: &str = "NameTaken";
pub const TAILNET_MAGIC_DNS_DISABLED: &str = "MagicDNSDisabled";
pub const TAILNET_CONTROL_UNAVAILABLE: &str = "ControlUnavailable";

/// Ours, of a Gateway that serves the tailnet's certificate: whether there is one.
pub const CERTIFICATE_READY: &str = "CertificateReady";
pub const CERTIFICATE_ISSUED: &str = "Issued";
pub const CERTIFICATE_RATE_LIMITED: &str = "RateLimited";
pub const CERTIFICATE_HTTPS_DISABLED: &str = "HTTPSDisabled";
pub const CERTIFICATE_FAILED: &str = "Failed";
