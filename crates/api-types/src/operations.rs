//! The operations of the coordinator's API: the only list of its paths. The coordinator serves
//! them, and `meshward-api-client` calls them.

use crate::{
    ApproveEgress, ApproveNode, ApproveRoute, AuditEntry, BeginDrain, ChangeCredential,
    CreateCredential, CreateDevice, CreateNetwork, CreateToken, CreatedCredential, CreatedDevice,
    CreatedToken, Credential, Device, Drain, DrainProgress, DrainResult, DrainTarget, ExplainQuery,
    Explanation, ExternalMetricValueList, Impose, Links, Network, Node, Page, Policy,
    PolicyDifference, PolicyRevision, Quarantine, QuarantineResult, QuarantineTarget, Relay,
    Rollback, RotateKeys, RotatedKeys, Route, Service, ServiceDetails, Status, SubmitPolicy,
    SubmitResult, Token, Workload,
};
use std::{
    fmt::{Display, Write as _},
    marker::PhantomData,
};

/// The path of an operation, with variables as `{NAME}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Template(pub &'static str);

impl Template {
    /// Returns the path with the variables replaced by `arguments`, in their order.
    pub fn fill(self, arguments: &[&(dyn Display + Sync)]) -> String {
        let mut arguments = arguments.iter();
        let parts = self.0.split('/').map(|part| {
            if part.starts_with('{') {
                arguments.next().map(|text| escaped(&text.to_string())).unwrap_or_default()
            } else {
                part.to_owned()
            }
        });
        let path = parts.collect::<Vec<_>>().join("/");
        debug_assert!(arguments.next().is_none(), "more arguments than {} has names", self.0);
        path
    }
}

/// Escapes text as one segment of a path or one value of a query (RFC 3986 §2.1): all but
/// unreserved characters.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                out.push(byte.into());
            }
            _ => write!(out, "%{byte:02X}").expect("a string can be written to"),
        }
    }
    out
}

/// A read of one resource.
#[derive(Debug)]
pub struct Read<R>(&'static str, PhantomData<fn() -> R>);

/// A read of a list, in pages of the type `P`.
#[derive(Debug)]
pub struct List<P>(&'static str, PhantomData<fn() -> P>);

/// A question that has a body, and changes nothing.
#[derive(Debug)]
pub struct Ask<B, R>(&'static str, PhantomData<fn(B) -> R>);

/// The HTTP method of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Creates a resource, or carries out an action.
    Post,
    /// Replaces a resource.
    Put,
    /// Changes a part of a resource.
    Patch,
}

/// A write. It can be a dry run: then it is checked and answered, and nothing is changed.
#[derive(Debug)]
pub struct Write<B, R>(pub Verb, &'static str, PhantomData<fn(B) -> R>);

/// A removal, which answers with what was removed. It can be a dry run.
#[derive(Debug)]
pub struct Remove<R>(&'static str, PhantomData<fn() -> R>);

macro_rules! with_path {
    ($($type:ident<$($of:ident),*> $at:tt;)*) => {
        $(
            impl<$($of),*> $type<$($of),*> {
                /// Returns the path, as [`Template`] has it.
                pub const fn path(&self) -> &'static str {
                    self.$at
                }
            }
        )*
    };
}

with_path! {
    Read<R> 0;
    List<P> 0;
    Ask<B, R> 0;
    Write<B, R> 1;
    Remove<R> 0;
}

/// The kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Read`].
    Read,
    /// [`List`].
    List,
    /// [`Ask`].
    Ask,
    /// [`Write`].
    Write,
    /// [`Remove`].
    Remove,
}

/// An operation, without its types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    /// The name of its constant.
    pub name: &'static str,
    /// The kind: the name of its type.
    pub kind: Kind,
    /// The HTTP method, in lower case.
    pub method: &'static str,
    /// The path, as [`Template`] has it.
    pub path: &'static str,
}

impl Described {
    /// Returns `true` if the operation changes something.
    pub fn writes(&self) -> bool {
        matches!(self.kind, Kind::Write | Kind::Remove)
    }
}

macro_rules! operations {
    ($(
        $(#[$doc:meta])*
        $name:ident: $kind:ident<$($type:ty),*>($($verb:ident,)? $path:literal);
    )*) => {
        $(
            $(#[$doc])*
            pub const $name: $kind<$($type),*> = $kind($(Verb::$verb,)? $path, PhantomData);
        )*

        /// Every operation.
        pub const ALL: &[Described] = &[$(Described {
            name: stringify!($name),
            kind: Kind::$kind,
            method: method!($kind $($verb)?),
            path: $path,
        }),*];
    };
}

macro_rules! method {
    (Read) => {
        "get"
    };
    (List) => {
        "get"
    };
    (Ask) => {
        "post"
    };
    (Remove) => {
        "delete"
    };
    (Write Post) => {
        "post"
    };
    (Write Put) => {
        "put"
    };
    (Write Patch) => {
        "patch"
    };
}

operations! {
    /// The status of the mesh.
    STATUS: Read<Status>("/v1/status");
    /// The audit log, the newest line first.
    AUDIT: List<Page<AuditEntry>>("/v1/audit");

    /// A backup: a file.
    BACKUP: Read<Vec<u8>>("/v1/backup");

    /// The nodes.
    NODES: List<Page<Node>>("/v1/nodes");
    /// A node.
    NODE: Read<Node>("/v1/nodes/{name}");
    /// Approves a node by name.
    APPROVE_NODE: Write<ApproveNode, Node>(Put, "/v1/nodes/{name}");
    /// Removes a node.
    REMOVE_NODE: Remove<Node>("/v1/nodes/{name}");

    /// The workloads.
    WORKLOADS: List<Page<Workload>>("/v1/workloads");
    /// A workload.
    WORKLOAD: Read<Workload>("/v1/workloads/{id}");

    /// The services.
    SERVICES: List<Page<Service>>("/v1/services");
    /// A service, with its instances.
    SERVICE: Read<ServiceDetails>("/v1/services/{network}/{name}");

    /// The drains.
    DRAINS: List<Page<Drain>>("/v1/drains");
    /// Drains a workload or a node: it gets no new connections through services.
    BEGIN_DRAIN: Write<BeginDrain, DrainResult>(Post, "/v1/drains");
    /// Ends a drain.
    END_DRAIN: Write<DrainTarget, DrainResult>(Post, "/v1/drains/end");
    /// The flows that drained workloads still have.
    DRAIN_PROGRESS: Ask<DrainTarget, DrainProgress>("/v1/drains/progress");

    /// A metric of services, as Kubernetes reads it.
    EXTERNAL_METRIC: Read<ExternalMetricValueList>(
        "/apis/external.metrics.k8s.io/v1beta1/namespaces/{namespace}/{metric}"
    );

    /// The links, with counters.
    LINKS: List<Links>("/v1/links");

    /// Rotates the keys of endpoints.
    ROTATE_KEYS: Write<RotateKeys, RotatedKeys>(Post, "/v1/keys/rotate");

    /// The devices.
    DEVICES: List<Page<Device>>("/v1/devices");
    /// A device.
    DEVICE: Read<Device>("/v1/devices/{network}/{name}");
    /// Creates a device.
    CREATE_DEVICE: Write<CreateDevice, CreatedDevice>(Post, "/v1/devices");
    /// Removes a device.
    REMOVE_DEVICE: Remove<Device>("/v1/devices/{network}/{name}");

    /// The prefixes behind gateways.
    ROUTES: List<Page<Route>>("/v1/routes");
    /// A prefix behind a gateway. Its slash is escaped: `10.0.0.0%2F8`.
    ROUTE: Read<Route>("/v1/routes/{network}/{node}/{prefix}");
    /// Approves a prefix behind a node.
    APPROVE_ROUTE: Write<ApproveRoute, Route>(Post, "/v1/routes/approve");
    /// Withdraws an approval.
    DISAPPROVE_ROUTE: Write<ApproveRoute, Route>(Post, "/v1/routes/disapprove");
    /// Approves an egress gateway.
    APPROVE_EGRESS: Write<ApproveEgress, Vec<Route>>(Post, "/v1/egress/approve");
    /// Withdraws the approval of an egress gateway.
    DISAPPROVE_EGRESS: Write<ApproveEgress, Vec<Route>>(Post, "/v1/egress/disapprove");

    /// The relays, apart from the coordinator.
    RELAYS: List<Page<Relay>>("/v1/relays");
    /// A relay.
    RELAY: Read<Relay>("/v1/relays/{name}");
    /// Removes a relay.
    REMOVE_RELAY: Remove<Relay>("/v1/relays/{name}");

    /// The join tokens, without their secrets.
    TOKENS: List<Page<Token>>("/v1/tokens");
    /// A join token, without its secret.
    TOKEN: Read<Token>("/v1/tokens/{id}");
    /// Creates a join token.
    CREATE_TOKEN: Write<CreateToken, CreatedToken>(Post, "/v1/tokens");
    /// Revokes a join token.
    REVOKE_TOKEN: Remove<Token>("/v1/tokens/{id}");

    /// The networks.
    NETWORKS: List<Page<Network>>("/v1/networks");
    /// A network.
    NETWORK: Read<Network>("/v1/networks/{name}");
    /// Creates a network.
    CREATE_NETWORK: Write<CreateNetwork, Network>(Post, "/v1/networks");
    /// Deletes a network.
    DELETE_NETWORK: Remove<Network>("/v1/networks/{name}");

    /// The credentials, without their secrets.
    CREDENTIALS: List<Page<Credential>>("/v1/credentials");
    /// A credential, without its secret.
    CREDENTIAL: Read<Credential>("/v1/credentials/{name}");
    /// Creates a credential.
    CREATE_CREDENTIAL: Write<CreateCredential, CreatedCredential>(Post, "/v1/credentials");
    /// Changes the rights of a credential.
    CHANGE_CREDENTIAL: Write<ChangeCredential, Credential>(Patch, "/v1/credentials/{name}");
    /// Revokes a credential.
    REVOKE_CREDENTIAL: Remove<Credential>("/v1/credentials/{name}");

    /// The policies of all networks.
    POLICIES: List<Page<Policy>>("/v1/policies");
    /// Checks and applies policy.
    SUBMIT_POLICY: Write<SubmitPolicy, SubmitResult>(Post, "/v1/policies");
    /// The policy of a network.
    POLICY: Read<Policy>("/v1/networks/{name}/policy");
    /// The states that the policy of a network had.
    POLICY_LOG: List<Page<PolicyRevision>>("/v1/networks/{name}/policy/log");
    /// The links between two states of a policy.
    POLICY_DIFFERENCE: Read<PolicyDifference>("/v1/networks/{name}/policy/difference");
    /// Applies the policy of a revision.
    ROLL_POLICY_BACK: Write<Rollback, SubmitResult>(Post, "/v1/networks/{name}/policy/rollback");
    /// The smallest policy that allows the observed flows.
    POLICY_SUGGESTION: Read<Policy>("/v1/networks/{name}/policy/suggestion");
    /// Explains whether a flow is allowed, and which rule decides.
    EXPLAIN: Ask<ExplainQuery, Vec<Explanation>>("/v1/explain");

    /// The active quarantines.
    QUARANTINES: List<Page<Quarantine>>("/v1/quarantines");
    /// A quarantine in force.
    QUARANTINE: Read<Quarantine>("/v1/quarantines/{id}");
    /// Cuts every link of workloads.
    IMPOSE_QUARANTINE: Write<Impose, QuarantineResult>(Post, "/v1/quarantines");
    /// Ends a quarantine.
    RELEASE_QUARANTINE: Write<QuarantineTarget, QuarantineResult>(Post, "/v1/quarantines/release");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_filled_in_order_and_each_argument_stays_one_segment() {
        let path = Template(DEVICE.path()).fill(&[&"shop", &"a/b ?é"]);
        assert_eq!(path, "/v1/devices/shop/a%2Fb%20%3F%C3%A9");
    }

    #[test]
    fn no_operation_is_there_twice() {
        let mut all: Vec<_> = ALL.iter().map(|one| (one.method, one.path)).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), ALL.len());
    }
}
