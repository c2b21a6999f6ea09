//! The provider: its configuration, and the types that it offers.

use crate::{
    lookup::Lookup,
    mesh::{Mesh, sentence, told},
    resources::{
        Admission, DeviceResource, JoinToken, NetworkResource, NodeResource, PolicyResource,
        RouteResource, ServiceAccount,
    },
    sources::{LinksSource, NodeSource, PolicyCheck, ServiceSource},
};
use meshward_api_client::{Client, Error, context};
use meshward_api_types::{Context, operations};
use meshward_terraform::{
    Answer, Attribute, Block, DataSource, Diagnostic, Diagnostics, Ephemeral, Offers, Path,
    Provider, Resource, Schema, Type, Value,
};
use std::{path::PathBuf, sync::Arc};

/// The provider.
pub(crate) struct Meshward {
    mesh: Arc<Mesh>,
    offers: Offers,
}

impl Meshward {
    pub(crate) fn new() -> Self {
        let mesh = Arc::new(Mesh::default());
        let m = || mesh.clone();
        let resources: [(&str, Box<dyn Resource>); 8] = [
            ("network", Box::new(NetworkResource(m()))),
            ("policy", Box::new(PolicyResource(m()))),
            ("admission", Box::new(Admission(m()))),
            ("join_token", Box::new(JoinToken(m()))),
            ("node", Box::new(NodeResource(m()))),
            ("service_account", Box::new(ServiceAccount(m()))),
            ("route", Box::new(RouteResource(m()))),
            ("device", Box::new(DeviceResource(m()))),
        ];
        let network = Lookup::of(NetworkResource(m()), "a network", &["name"], &[]);
        let policy =
            Lookup::of(PolicyResource(m()), "the policy of a network", &["network"], &["message"]);
        let admission = Lookup::of(Admission(m()), "the admission of a network", &["network"], &[]);
        let token = Lookup::of(
            JoinToken(m()),
            "a join token",
            &["id"],
            &["token", "ttl", "uses", "renew_before"],
        );
        let account = Lookup::of(
            ServiceAccount(m()),
            "a service account",
            &["name"],
            &["token", "context", "rotation", "lifetime", "renew_before"],
        );
        let route = Lookup::of(RouteResource(m()), "a route", &["network", "node", "prefix"], &[]);
        let own = &["gateway_public_key", "endpoint", "prefixes", "mtu", "configuration"];
        let device = Lookup::of(DeviceResource(m()), "a device", &["network", "name"], own);
        let data_sources: [(&str, Box<dyn DataSource>); 11] = [
            ("network", Box::new(network)),
            ("policy", Box::new(policy)),
            ("admission", Box::new(admission)),
            ("join_token", Box::new(token)),
            ("node", Box::new(NodeSource(m()))),
            ("service_account", Box::new(account)),
            ("route", Box::new(route)),
            ("service", Box::new(ServiceSource(m()))),
            ("device", Box::new(device)),
            ("policy_check", Box::new(PolicyCheck(m()))),
            ("links", Box::new(LinksSource(m()))),
        ];
        let ephemerals: [(&str, Box<dyn Ephemeral>); 1] =
            [("join_token", Box::new(JoinToken(m())))];
        let named = |name: &str| format!("meshward_{name}");
        let offers = Offers {
            resources: resources.into_iter().map(|(name, own)| (named(name), own)).collect(),
            data_sources: data_sources.into_iter().map(|(name, own)| (named(name), own)).collect(),
            ephemerals: ephemerals.into_iter().map(|(name, own)| (named(name), own)).collect(),
        };
        Self { mesh, offers }
    }

    async fn connect(&self, config: Value) -> Result<(), Diagnostics> {
        if !config.is_known() {
            return Ok(());
        }
        let context = read(&config)?;
        let client = Client::coordinator(context.clone());
        match client.read(&operations::STATUS, &[], &[]).await {
            Ok(_) => {
                self.mesh.configure(context);
                Ok(())
            }
            Err(error) => Err(at_attribute(&config, error)),
        }
    }
}

/// Returns the coordinator's addresses and the credential: the configured values, and for the
/// others those of the context file.
fn read(config: &Value) -> Result<Context, Diagnostics> {
    let named = config.get("context").text().map(at_home);
    let named = named.or_else(|| std::env::var_os("MESHCTL_CONTEXT").map(PathBuf::from));
    let named = named.map(|named| named.to_string_lossy().into_owned());
    let set = |name: &str| config.get(name).text().map(ToOwned::to_owned);
    if let (Some(server), Some(ca), Some(token)) = (set("server"), set("ca"), set("token")) {
        return Ok(Context { server, more_servers: vec![], ca, token });
    }
    let found = context::find(named.as_deref()).map_err(|error| {
        Diagnostic::error("The context cannot be read", sentence(&error.to_string()))
            .at(Path::of("context"))
    })?;
    let Some(found) = found else {
        let text = format!(
            "The provider does not know which coordinator to talk to. Set `server`, `ca` and \
             `token`, or name a context file with `context` or the environment variable \
             MESHCTL_CONTEXT, or copy the coordinator's admin.json to {}.",
            context::default_paths()[0].display()
        );
        return Err(Diagnostic::error("No coordinator is named", text).into());
    };
    let more_servers = if set("server").is_some() { vec![] } else { found.more_servers };
    Ok(Context {
        more_servers,
        server: set("server").unwrap_or(found.server),
        ca: set("ca").unwrap_or(found.ca),
        token: set("token").unwrap_or(found.token),
    })
}

/// Expands `~/` at the beginning of a path, as a shell does.
fn at_home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => path.into(),
    }
}

/// Converts an error of the first request to diagnostics, at the configured attribute that probably
/// causes it.
fn at_attribute(config: &Value, error: Error) -> Diagnostics {
    let about = match &error {
        Error::Refused { status: Some(401 | 403), .. } => "token",
        Error::Refused { status: None, .. } | Error::Failed(_) => "ca",
        Error::Refused { .. } | Error::Unreachable(_) => "server",
    };
    let about = [about, "context"].into_iter().find(|name| !config.get(name).is_null());
    let path = about.map(Path::of).unwrap_or_default();
    told(error).into_iter().map(|one| one.at(path.clone())).collect()
}

impl Provider for Meshward {
    fn schema(&self) -> Schema {
        let text = "Manages the networks, policies, nodes and credentials of a Meshward mesh: an \
                    overlay network in which every container is its own authenticated, policed \
                    network entity, in any cloud.\n\nThe provider uses the coordinator's API. Name \
                    the coordinator and the credential with a context file of `meshctl` \
                    (`context`, the environment variable `MESHCTL_CONTEXT`, or \
                    `~/.config/meshward/context.json`), or with `server`, `ca` and `token`.";
        Schema::new(
            text,
            Block::of(vec![
                Attribute::optional(
                    "context",
                    Type::String,
                    "A context file: the coordinator's `admin.json`, or the output of `meshctl \
                     credential create`.",
                ),
                Attribute::optional(
                    "server",
                    Type::String,
                    "`HOST:PORT` of the coordinator's API.",
                ),
                Attribute::optional("ca", Type::String, "The mesh's CA certificate, in PEM."),
                Attribute::optional(
                    "token",
                    Type::String,
                    "The token of a credential, such as that of a `meshward_service_account`.",
                )
                .sensitive(),
            ]),
        )
    }

    fn offers(&self) -> &Offers {
        &self.offers
    }

    fn configure(&self, config: Value) -> Answer<'_, ()> {
        Box::pin(self.connect(config))
    }

    fn stop(&self) {
        self.mesh.stop();
    }
}
