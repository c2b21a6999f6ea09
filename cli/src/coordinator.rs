//! Commands about the mesh that are one request each.

use crate::{
    Mistake,
    arguments::{self, Common, Credential, Keys, Network, Nodes, Output, Quarantine, Relay, Target, Token},
    client::{self, Client},
    output::{bad, bytes, good, list, note_dry_run, show, whole},
};
use anyhow::Result;
use meshward_model::{
    NetworkName, Selector,
    api::{
        self, CreateNetwork, CreateToken, CreatedToken, QuarantineResult, QuarantineTarget, RotateKeys,
        RotatedKeys,
    },
};

pub async fn token(common: &Common, verb: Token) -> Result<()> {
    let client = Client::coordinator(common)?;
    match verb {
        Token::Create { uses, ttl, site, networks, relay, needs_approval } => {
            let ttl_seconds = ttl.as_secs();
            let wanted = CreateToken { uses, ttl_seconds, site, networks, relay, needs_approval };
            let created: CreatedToken = client.post("/v1/tokens", &wanted).await?;
            note_dry_run(common);
            if !whole(common, &created)? && !common.dry_run {
                // Alone on stdout, so that it can be piped on.
                println!("{}", created.token);
                let kept = &created.kept;
                let (what, join) = match kept.relay {
                    true => ("relay", "meshward-coordinator relay join TOKEN@HOST --name NAME"),
                    false => ("node", "meshward-node join TOKEN@HOST"),
                };
                eprintln!("token {}: for {} {what}(s), good until {}", kept.id, kept.uses_left, kept.expires);
                eprintln!("on the machine that is to join: {join}");
            }
            Ok(())
        }
        Token::List => {
            let all: Vec<api::Token> = client.get("/v1/tokens").await?;
            let row = |token: &api::Token| {
                let site = token.site.clone().unwrap_or("-".into());
                let networks = match token {
                    _ if token.relay => "relays".into(),
                    _ if token.networks.is_empty() => "all".into(),
                    _ => list(&token.networks),
                };
                let networks =
                    if token.needs_approval { format!("{networks}, once approved") } else { networks };
                [token.id.clone(), token.uses_left.to_string(), token.expires.clone(), site, networks]
            };
            show(common, &all, ["ID", "USES LEFT", "EXPIRES", "SITE", "NETWORKS"], row, "no join tokens")
        }
        Token::Revoke { id } => {
            client.delete(&format!("/v1/tokens/{id}")).await?;
            done(common, format!("token {id} is revoked"))
        }
    }
}

pub async fn network(common: &Common, verb: Network) -> Result<()> {
    let client = Client::coordinator(common)?;
    match verb {
        Network::Create { name, prefixes, block_v4, block_v6, mtu } => {
            let wanted = CreateNetwork { name, prefixes, block_v4, block_v6, mtu };
            let made: api::Network = client.post("/v1/networks", &wanted).await?;
            if whole(common, &made)? {
                return Ok(());
            }
            done(
                common,
                format!(
                    "network {} ({}) is there; its policy denies everything until one is applied",
                    made.name,
                    list(&made.prefixes)
                ),
            )
        }
        Network::List => {
            let all: Vec<api::Network> = client.get("/v1/networks").await?;
            let row = |network: &api::Network| {
                let blocks = network.prefixes.iter().map(|prefix| {
                    format!("/{}", if prefix.addr().is_ipv4() { network.block_v4 } else { network.block_v6 })
                });
                [network.name.to_string(), list(&network.prefixes), list(blocks), network.mtu.to_string()]
            };
            let none = "no networks; make one with: meshctl network create NAME --cidr 10.42.0.0/16";
            show(common, &all, ["NAME", "PREFIXES", "BLOCK PER NODE", "MTU"], row, none)
        }
        Network::Delete { name } => {
            client.delete(&format!("/v1/networks/{name}")).await?;
            done(common, format!("network {name} is deleted"))
        }
    }
}

pub async fn nodes(common: &Common, verb: Option<Nodes>) -> Result<()> {
    let client = Client::coordinator(common)?;
    match verb {
        Some(Nodes::Remove { name }) => {
            client.delete(&format!("/v1/nodes/{name}")).await?;
            return done(common, format!("node {name} is removed"));
        }
        Some(Nodes::Approve { name, labels }) => {
            let wanted = api::ApproveNode { labels: arguments::labels(&labels)? };
            let node: api::Node = client.put(&format!("/v1/nodes/{name}"), &wanted).await?;
            if whole(common, &node)? {
                return Ok(());
            }
            let next = match node.state {
                api::NodeState::Expected => "; it has not joined yet",
                _ => "",
            };
            return done(common, format!("node {name} is approved{next}"));
        }
        Some(Nodes::List) | None => {}
    }
    let all: Vec<api::Node> = client.get("/v1/nodes").await?;
    let row = |node: &api::Node| {
        let state = match node.state {
            api::NodeState::Expected => "expected".into(),
            api::NodeState::Waiting => bad("waiting"),
            api::NodeState::Member if node.degraded.is_some() => bad("degraded"),
            api::NodeState::Member if node.connected => good("connected"),
            api::NodeState::Member => bad("away"),
        };
        let blocks = node.blocks.iter().flat_map(|block| &block.prefixes);
        [
            node.name.to_string(),
            node.site.clone().unwrap_or("-".into()),
            state,
            node.enforced.map_or("-".into(), |revision| revision.to_string()),
            node.workloads.to_string(),
            list(blocks),
            node.address.map_or("-".into(), |address| address.ip().to_string()),
        ]
    };
    let columns = ["NAME", "SITE", "STATE", "ENFORCES", "WORKLOADS", "BLOCKS", "ADDRESS"];
    show(common, &all, columns, row, "no nodes; make a token with: meshctl token create")?;
    if common.output == Output::Table {
        let problems = |node: &'_ api::Node| {
            let degraded = node.degraded.iter().map(|why| format!("degraded: {why}"));
            let all: Vec<_> = node.problems.iter().cloned().chain(degraded).collect();
            all.into_iter().map(|problem| (node.name.clone(), problem)).collect::<Vec<_>>()
        };
        for (node, problem) in all.iter().flat_map(problems) {
            anstream::eprintln!("{} {node}: {problem}", bad("problem:"));
        }
    }
    Ok(())
}

pub async fn keys(common: &Common, verb: Keys) -> Result<()> {
    let Keys::Rotate { node, network, keep_old } = verb;
    let wanted = RotateKeys { node, network, keep_old_seconds: keep_old.as_secs() };
    let rotated: RotatedKeys = Client::coordinator(common)?.post("/v1/keys/rotate", &wanted).await?;
    if whole(common, &rotated)? {
        return Ok(());
    }
    done(common, format!("{} of {} endpoints have another key", rotated.rotated, rotated.endpoints))?;
    if !rotated.away.is_empty() {
        anstream::eprintln!(
            "{} {} keep theirs until they are asked again",
            bad("away:"),
            list(&rotated.away)
        );
    }
    Ok(())
}

pub async fn relay(common: &Common, verb: Relay) -> Result<()> {
    let client = Client::coordinator(common)?;
    if let Relay::Remove { name } = verb {
        client.delete(&format!("/v1/relays/{name}")).await?;
        return done(common, format!("relay {name} is removed"));
    }
    let all: Vec<api::Relay> = client.get("/v1/relays").await?;
    let row = |relay: &api::Relay| {
        [
            relay.name.to_string(),
            relay.number.to_string(),
            relay.site.clone().unwrap_or("-".into()),
            if relay.connected { good("connected") } else { bad("away") },
            relay.nodes.to_string(),
            list(&relay.addresses),
        ]
    };
    let columns = ["NAME", "NUMBER", "SITE", "STATE", "NODES", "ADDRESSES"];
    let none = "no relays but the coordinator; make a token with: meshctl token create --relay";
    show(common, &all, columns, row, none)
}

pub async fn workloads(common: &Common, network: Option<NetworkName>) -> Result<()> {
    let client = Client::coordinator(common)?;
    let all: Vec<api::Workload> = client.get(&in_network("/v1/workloads", network)).await?;
    let row = |workload: &api::Workload| {
        let state = match workload {
            _ if !workload.refused.is_empty() => bad("refused"),
            _ if workload.quarantined => bad("quarantined"),
            _ => good("open"),
        };
        let measured = workload.measurement.as_ref();
        [
            workload.id.to_string(),
            workload.name.to_string(),
            workload.network.to_string(),
            workload.node.to_string(),
            list(&workload.addresses),
            workload.labels.to_string(),
            measured.map_or("-".into(), |measured| measured.runtime.clone()),
            state,
        ]
    };
    let columns = ["ID", "NAME", "NETWORK", "NODE", "ADDRESSES", "LABELS", "RUNTIME", "STATE"];
    let none = "no workloads; start one on a node with: meshctl run --network NAME -- COMMAND";
    show(common, &all, columns, row, none)?;
    if common.output == Output::Table {
        for workload in &all {
            for reason in &workload.refused {
                anstream::eprintln!("{} {} ({}): {reason}", bad("refused:"), workload.name, workload.id);
            }
        }
    }
    Ok(())
}

pub async fn credential(common: &Common, verb: Credential) -> Result<()> {
    let client = Client::coordinator(common)?;
    match verb {
        Credential::Create { name, role, networks } => {
            let wanted = api::CreateCredential { name, role: role.into(), networks };
            let created: api::CreatedCredential = client.post("/v1/credentials", &wanted).await?;
            note_dry_run(common);
            if !whole(common, &created)? && !common.dry_run {
                // Alone on stdout, so that it can be kept in a file.
                let context = api::Context { token: created.token, ..client::context(common)? };
                println!("{}", serde_json::to_string_pretty(&context)?);
                eprintln!("keep this, it is not shown again: meshctl --context FILE uses it");
            }
            Ok(())
        }
        Credential::Change { name, role, networks } => {
            let wanted = api::ChangeCredential { role: role.into(), networks };
            let changed: api::Credential = client.patch(&format!("/v1/credentials/{name}"), &wanted).await?;
            if whole(common, &changed)? {
                return Ok(());
            }
            done(common, format!("the credential {name} is changed"))
        }
        Credential::List => {
            let all: Vec<api::Credential> = client.get("/v1/credentials").await?;
            let row = |credential: &api::Credential| {
                let networks = match credential.networks.is_empty() {
                    true => "all".into(),
                    false => list(&credential.networks),
                };
                [credential.name.clone(), format!("{:?}", credential.role).to_lowercase(), networks]
            };
            show(common, &all, ["NAME", "ROLE", "NETWORKS"], row, "no credentials")
        }
        Credential::Revoke { name } => {
            client.delete(&format!("/v1/credentials/{name}")).await?;
            done(common, format!("the credential {name} is revoked"))
        }
    }
}

pub async fn links(
    common: &Common,
    network: Option<NetworkName>,
    denied: bool,
    observed: bool,
) -> Result<()> {
    let client = Client::coordinator(common)?;
    let mut all: api::Links = client.get(&in_network("/v1/links", network)).await?;
    if denied {
        all.links.retain(|link| link.denied > 0);
    }
    if observed {
        all.links.retain(|link| link.observed > 0);
    }
    if whole(common, &all)? {
        return Ok(());
    }
    let row = |link: &api::Link| {
        let allowed = if link.acl.is_empty() { bad("nothing") } else { link.acl.to_string() };
        let denied = if link.denied > 0 { bad(link.denied) } else { "0".into() };
        [
            link.network.to_string(),
            link.from.to_string(),
            link.to.to_string(),
            allowed,
            link.packets.to_string(),
            bytes(link.bytes),
            denied,
            if link.observed > 0 { bad(link.observed) } else { "0".into() },
        ]
    };
    let columns = ["NETWORK", "FROM", "TO", "MAY USE", "PACKETS", "BYTES", "DENIED", "WOULD DENY"];
    show(
        common,
        &all.links,
        columns,
        row,
        "no links: no policy lets running workloads talk, and none has tried",
    )?;
    if !all.nodes_silent.is_empty() {
        eprintln!("without the counters of: {}", list(&all.nodes_silent));
    }
    Ok(())
}

pub async fn quarantine(common: &Common, wanted: Quarantine) -> Result<()> {
    let client = Client::coordinator(common)?;
    let Quarantine { target, allow_from, lasts, message } = wanted;
    let seconds = lasts.map(|time| time.as_secs());
    let body = api::Impose { target: parse(target)?, allow_from, seconds, message };
    let result: QuarantineResult = client.post("/v1/quarantines", &body).await?;
    report(common, &result, "quarantined")
}

pub async fn release(common: &Common, target: Target) -> Result<()> {
    let client = Client::coordinator(common)?;
    let result: QuarantineResult = client.post("/v1/quarantines/release", &parse(target)?).await?;
    report(common, &result, "released")
}

fn report(common: &Common, result: &QuarantineResult, verb: &str) -> Result<()> {
    if whole(common, result)? {
        return Ok(());
    }
    let many = if result.workloads.len() == 1 { "workload is" } else { "workloads are" };
    let nodes = match result.nodes {
        _ if common.dry_run => String::new(),
        0 => "; no node had to change anything".into(),
        1 => format!("; {} of 1 node enforces it", result.nodes_enforcing),
        nodes => format!("; {} of {nodes} nodes enforce it", result.nodes_enforcing),
    };
    done(common, format!("{} {many} {verb}{nodes}", result.workloads.len()))
}

pub async fn quarantines(common: &Common) -> Result<()> {
    let all: Vec<api::Quarantine> = Client::coordinator(common)?.get("/v1/quarantines").await?;
    let row = |quarantine: &api::Quarantine| {
        let target = &quarantine.target;
        let what = match (&target.selector, &target.workload) {
            (Some(selector), _) => selector.to_string(),
            (None, Some(workload)) => workload.to_string(),
            (None, None) => "-".into(),
        };
        let network = target.network.as_ref().map_or("all".into(), ToString::to_string);
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        [
            quarantine.id.clone(),
            what,
            network,
            quarantine.since.clone(),
            or_dash(quarantine.until.clone()),
            or_dash(quarantine.allow_from.as_ref().map(ToString::to_string)),
            quarantine.by.clone(),
            or_dash(quarantine.why.clone()),
        ]
    };
    let columns = ["ID", "HOLDS", "NETWORK", "SINCE", "UNTIL", "BUT FOR", "BY", "WHY"];
    show(common, &all, columns, row, "no quarantine stands")
}

pub async fn audit(common: &Common, limit: u32) -> Result<()> {
    let all: Vec<api::AuditEntry> =
        Client::coordinator(common)?.get(&format!("/v1/audit?limit={limit}")).await?;
    let row = |entry: &api::AuditEntry| {
        [
            entry.revision.to_string(),
            entry.at.clone(),
            entry.actor.clone(),
            entry.origin.clone().unwrap_or_else(|| "-".into()),
            entry.action.clone(),
            entry.why.clone().unwrap_or_else(|| "-".into()),
        ]
    };
    show(common, &all, ["REVISION", "AT", "WHO", "FROM", "WHAT", "WHY"], row, "nothing has been changed yet")
}

/// A word without any of the signs of a selector is the id of a workload.
fn parse(target: Target) -> Result<QuarantineTarget> {
    let Target { what, network } = target;
    if what.starts_with("w-") && !what.contains(['=', ',', '!', '(']) {
        let workload = what.parse().map_err(|error| Mistake(format!("{error}")))?;
        return Ok(QuarantineTarget { network, selector: None, workload: Some(workload) });
    }
    let selector: Selector = what.parse().map_err(|error| Mistake(format!("{error}")))?;
    if selector.is_empty() {
        return Err(Mistake(
            "an empty selector would isolate everything; name labels, or a workload's id".into(),
        )
        .into());
    }
    Ok(QuarantineTarget { network, selector: Some(selector), workload: None })
}

fn in_network(path: &str, network: Option<NetworkName>) -> String {
    network.map_or(path.to_owned(), |network| format!("{path}?network={network}"))
}

pub fn done(common: &Common, text: String) -> Result<()> {
    note_dry_run(common);
    if !common.dry_run {
        anstream::println!("{text}");
    }
    Ok(())
}
