//! Schemas of formatted text and numbers (JSON Schema 2020-12): names, prefixes, labels, selectors.
//!
//! utoipa's builders cover only a part of JSON Schema. So each type has only a name there, and
//! [`forms`] has its schema.

use crate::{
    acl::Acl,
    labels::Labels,
    names::{IdentityId, NetworkName, NodeName, Revision, ServiceName, WorkloadId, WorkloadName},
    outside::OutsideTarget,
    ports::PortSpec,
    selector::Selector,
};
use serde_json::{Value, json};
use std::borrow::Cow;
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{ObjectBuilder, RefOr, Schema},
};

/// An IP prefix in CIDR notation (RFC 4632 §3.1, RFC 4291 §2.3).
pub struct Cidr;

/// An IP address as text.
pub struct Address;

/// An IP address and a port: `192.0.2.1:7443`, `[2001:db8::1]:7443`.
pub struct SocketAddress;

/// A time in UTC (RFC 3339).
pub struct Time;

/// A credential's name.
pub struct CredentialName;

/// A WireGuard public key in base64.
pub struct WireGuardKey;

macro_rules! named {
    ($($type:ident)*) => {
        $(
            impl PartialSchema for $type {
                fn schema() -> RefOr<Schema> {
                    ObjectBuilder::new().into()
                }
            }

            impl ToSchema for $type {
                fn name() -> Cow<'static, str> {
                    stringify!($type).into()
                }
            }
        )*
    };
}

named!(
    Cidr Address SocketAddress Time CredentialName WireGuardKey
    NetworkName NodeName ServiceName WorkloadName WorkloadId Revision IdentityId Labels Selector PortSpec Acl
    OutsideTarget
);

const NAME: &str = "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
const LABEL_KEY: &str = "^[a-zA-Z0-9][a-zA-Z0-9._/-]{0,127}$";
const LABEL_VALUE: &str = "^[^\\u0000-\\u001f\\u007f-\\u009f,=()\"']*$";
const PORT: &str =
    "([0-9]|[1-9][0-9]{1,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])";

/// Returns the schemas by the names of their types.
pub fn forms() -> Vec<(&'static str, Value)> {
    vec![
        ("NetworkName", name("The name of a network", "shop")),
        ("NodeName", name("The name of a node, a relay included", "node-a")),
        ("ServiceName", name("The name of a service", "api")),
        ("WorkloadName", name("What people call a workload", "web")),
        ("WorkloadId", name("The id of a workload", "w-5f0c1a9b2d3e")),
        (
            "Revision",
            whole(
                "A version number of everything that the coordinator distributes.",
                i64::MAX as u64,
            ),
        ),
        ("IdentityId", whole("The number of an identity.", u64::from(u32::MAX))),
        ("Cidr", cidr()),
        ("Address", address()),
        (
            "SocketAddress",
            json!({
                "type": "string", "examples": ["192.0.2.1:7443", "[2001:db8::1]:7443"],
                "description": "An IP address and a port."
            }),
        ),
        (
            "Time",
            json!({
                "type": "string", "format": "date-time", "examples": ["2026-01-31T12:00:00Z"],
                "description": "A time in UTC (RFC 3339)."
            }),
        ),
        (
            "CredentialName",
            json!({
                "type": "string", "minLength": 1, "maxLength": 63,
                "pattern": "^[a-zA-Z0-9_.@-]{1,63}$",
                "examples": ["ci@shop"], "description": "The name of a credential."
            }),
        ),
        (
            "WireGuardKey",
            json!({
                "type": "string", "minLength": 44, "maxLength": 44,
                "pattern": "^[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=$",
                "examples": ["xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg="],
                "description": "A WireGuard public key: 32 bytes in base64."
            }),
        ),
        ("Labels", labels()),
        ("Selector", selector()),
        ("PortSpec", port_spec()),
        ("Acl", acl()),
        ("OutsideTarget", outside_target()),
    ]
}

fn name(what: &str, example: &str) -> Value {
    json!({
        "type": "string", "minLength": 1, "maxLength": 63, "pattern": NAME, "examples": [example],
        "description": format!("{what}: a DNS label (RFC 1123 §2.1).")
    })
}

fn whole(what: &str, most: u64) -> Value {
    json!({
        "type": "integer", "format": "int64", "minimum": 0, "maximum": most, "description": what,
    })
}

fn outside_target() -> Value {
    let [v4, v6] = prefix_patterns();
    let label = "[a-zA-Z0-9_]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?";
    let name = format!("^(\\*|(\\*\\.)?{label}(\\.{label}){{0,126}})$");
    json!({
        "type": "string", "maxLength": 200,
        "examples": ["203.0.113.0/24", "api.example.com", "*.example.com"],
        "anyOf": [{ "pattern": v4 }, { "pattern": v6 }, { "pattern": name }],
        "description": "Addresses outside of the mesh: a prefix, an address, a domain name, or \
            all names below one."
    })
}

fn cidr() -> Value {
    let [v4, v6] = prefix_patterns();
    json!({
        "type": "string", "maxLength": 64, "examples": ["10.42.0.0/16", "fd42::/48"],
        "anyOf": [{ "pattern": v4 }, { "pattern": v6 }],
        "description": "An IP prefix in CIDR notation."
    })
}

/// Returns the regular expressions of IPv4 and IPv6 prefixes.
fn prefix_patterns() -> [String; 2] {
    let byte = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
    let v4 = format!("^({byte}\\.){{3}}{byte}/(3[0-2]|[12]?[0-9])$");
    let group = "[0-9a-fA-F]{1,4}";
    let short = (1..=6).map(|head| format!("({group}:){{1,{head}}}(:{group}){{1,{}}}", 7 - head));
    let mut forms = vec![format!("({group}:){{7}}{group}"), format!("({group}:){{1,7}}:")];
    forms.extend(short);
    forms.push(format!(":((:{group}){{1,7}}|:)"));
    let v6 = format!("^({})/(12[0-8]|1[01][0-9]|[1-9]?[0-9])$", forms.join("|"));
    [v4, v6]
}

fn address() -> Value {
    json!({
        "type": "string", "examples": ["10.42.1.7", "fd42::1:7"],
        "anyOf": [{ "format": "ipv4" }, { "format": "ipv6" }], "description": "An IP address."
    })
}

fn labels() -> Value {
    json!({
        "type": "object", "maxProperties": crate::labels::MAX_LABELS,
        "propertyNames": { "pattern": LABEL_KEY },
        "additionalProperties": { "type": "string", "maxLength": 256, "pattern": LABEL_VALUE },
        "examples": [{ "app": "web", "env": "prod" }],
        "description": "Labels. Keys below `meshward/` carry verified facts, which nobody can set."
    })
}

fn selector() -> Value {
    let value = json!({ "type": "string", "maxLength": 256, "pattern": LABEL_VALUE });
    let several = json!({ "type": "array", "minItems": 1, "items": value });
    let values = json!({ "oneOf": [value, several] });
    let object = |field: &str, schema: &Value| {
        json!({
            "type": "object", "properties": { field: schema }, "required": [field],
            "additionalProperties": false
        })
    };
    json!({
        "type": "object", "propertyNames": { "pattern": LABEL_KEY },
        "additionalProperties": { "oneOf": [
            value,
            { "type": "boolean" },
            { "type": "integer", "format": "int64", "minimum": i64::MIN, "maximum": i64::MAX },
            object("in", &values),
            object("not", &values),
            object("exists", &json!({ "type": "boolean" })),
        ] },
        "examples": [
            { "app": "web", "env": { "in": ["prod", "stage"] }, "tier": { "not": "test" } },
        ],
        "description": "Requirements on labels, all of which must hold. None: everything is \
            selected."
    })
}

fn port_spec() -> Value {
    json!({
        "type": "string", "maxLength": 16, "examples": ["tcp/8080", "udp/5000-5999", "icmp", "any"],
        "pattern": format!("^(any|icmp|(tcp|udp|sctp)(/{PORT}(-{PORT})?)?)$"),
        "description": "A protocol, and its ports if it has any; the first of a range is not above \
            the last."
    })
}

fn outside(entries: &Value) -> Value {
    let rule = json!({
        "type": "object",
        "properties": {
            "targets": { "type": "array", "items": { "type": "string" } },
            "precedence": { "type": "string", "enum": ["guardrail", "rule"] },
            "effect": { "type": "string", "enum": ["allow", "deny", "observe"] },
            "ports": entries,
            "on_deny": { "type": ["string", "null"], "enum": ["drop", "reject", null] },
        },
        "required": ["targets", "precedence", "effect", "ports"]
    });
    json!({
        "type": ["object", "null"],
        "properties": {
            "rules": { "type": "array", "items": rule }, "observes": { "type": "boolean" }
        },
        "required": ["rules", "observes"],
        "description": "The rules that decide about addresses behind an egress gateway, if any of \
            them names such addresses; a rule without targets is about all of them."
    })
}

fn acl() -> Value {
    let port = json!({ "type": "integer", "format": "int32", "minimum": 0, "maximum": 65535 });
    let ports = json!({
        "type": "object", "properties": { "first": port, "last": port },
        "required": ["first", "last"]
    });
    let protocols = json!({ "type": "string", "enum": ["tcp", "udp", "sctp", "icmp", "other"] });
    let entries = json!({ "type": "array", "items": {
        "type": "object", "properties": { "protocol": protocols, "ports": ports },
        "required": ["protocol", "ports"]
    } });
    json!({
        "type": "object",
        "properties": {
            "allowed": entries, "observed": entries, "forensic": entries,
            "rejected": entries, "dropped": entries,
            "otherwise": { "type": ["string", "null"], "enum": ["drop", "reject", null] },
            "outside": outside(&entries),
        },
        "required": ["allowed", "observed", "forensic", "rejected", "dropped"],
        "description": "The ACL of a link: what may pass, what passes only in observe mode, what \
            passes to a quarantined workload, and the answers to denied packets, by rule and \
            otherwise (default: the network's)."
    })
}
