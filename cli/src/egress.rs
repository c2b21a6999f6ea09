//! Egress gateways, by which workloads reach what is outside of the mesh: routes of the default
//! prefixes.

use crate::{
    Mistake,
    arguments::{self, Common, Egress, EgressOf, Labelled, RouteOf, verb_or_list},
    client::Client,
    listing,
    output::{Change, tell},
    routes,
};
use anyhow::Result;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use meshward_api_types::{
    Route,
    local::{Advertise, LocalWorkload},
    operations,
};
use meshward_types::NetworkName;

pub(crate) async fn egress(common: &Common, verb: Option<Egress>, which: Labelled) -> Result<()> {
    match verb_or_list(verb, which, Egress::List)? {
        Egress::Start { network, labels, name, ipv4, ipv6, patience } => {
            let mut prefixes = vec![];
            if !ipv6 {
                prefixes.push(Ipv4Net::default().into());
            }
            if !ipv4 {
                prefixes.push(Ipv6Net::default().into());
            }
            let labels = arguments::labels(&labels)?;
            let wanted = Advertise { network, prefixes, labels, name };
            routes::advertise(common, &wanted, patience).await
        }
        Egress::Stop { network } => stop(common, &network).await,
        Egress::List(which) => list(common, which).await,
        Egress::Approve(of) => approve(common, of, "approve", "approved").await,
        Egress::Disapprove(of) => approve(common, of, "disapprove", "not approved any more").await,
    }
}

async fn stop(common: &Common, network: &NetworkName) -> Result<()> {
    let client = Client::node(common);
    let attached: Vec<LocalWorkload> = client.get("/v1/workloads").await?;
    let own = attached.iter().filter(|workload| workload.network == *network);
    let Some(prefix) = own.flat_map(|workload| &workload.prefixes).find(|p| is_default(p)) else {
        let text = format!(
            "this node is no egress gateway of network {network}; `meshctl egress list` shows \
            which are"
        );
        return Err(Mistake(text).into());
    };
    client.delete(&format!("/v1/routes?network={network}&prefix={prefix}")).await?;
    let would = format!("end the egress gateway of network {network}");
    let done = format!("this node is no egress gateway of network {network} any more");
    tell(common, &Change { would, done, effects: vec![], result: None })
}

async fn approve(common: &Common, of: EgressOf, verb: &str, past: &str) -> Result<()> {
    let EgressOf { node, network } = of;
    let all = Client::coordinator(common)?.all(&operations::ROUTES, &[]).await?;
    let is_of = |route: &&Route| {
        is_default(&route.prefix)
            && route.node == node
            && network.as_ref().is_none_or(|network| *network == route.network)
    };
    let own: Vec<&Route> = all.iter().filter(is_of).collect();
    let Some(first) = own.first() else {
        let text =
            format!("node {node} is no egress gateway; on it: meshctl egress start --network NAME");
        return Err(Mistake(text).into());
    };
    if let Some(other) = own.iter().find(|route| route.network != first.network) {
        let text =
            format!("say which network with --network: {}, {}", first.network, other.network);
        return Err(Mistake(text).into());
    }
    for Route { network, prefix, node, .. } in own {
        let of = RouteOf { prefix: *prefix, node: node.clone(), network: Some(network.clone()) };
        routes::approve(common, of, verb, past).await?;
    }
    Ok(())
}

async fn list(common: &Common, Labelled { selector, watching }: Labelled) -> Result<()> {
    let client = Client::coordinator(common)?;
    let query: Vec<_> = listing::by_selector(selector.as_ref()).into_iter().collect();
    let read = async || {
        let mut all = client.all(&operations::ROUTES, &query).await?;
        all.retain(|route| is_default(&route.prefix));
        Ok(all)
    };
    let none = "no egress gateways; on a machine that is to be one: meshctl egress start \
        --network NAME --label KEY=VALUE";
    let none = listing::none(selector.is_some(), "egress gateways", none);
    listing::list(watching, read, |all| routes::print(common, all, &none)).await
}

fn is_default(prefix: &IpNet) -> bool {
    prefix.prefix_len() == 0
}
