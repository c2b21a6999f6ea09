//! Egress gateways, by which workloads reach what is outside of the mesh: routes of the default
//! prefixes.

use crate::{
    Mistake,
    arguments::{self, Common, Egress, EgressOf, Labelled, verb_or_list},
    client::Client,
    listing,
    output::{Change, tell},
    routes::{self, Verdict},
};
use anyhow::Result;
use ipnet::{Ipv4Net, Ipv6Net};
use meshward_api_types::{
    ApproveEgress,
    local::{Advertise, LocalWorkload},
    operations,
};
use meshward_types::{NetworkName, outside::is_default};

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
        Egress::Approve(of) => approve(common, of, Verdict::Approve).await,
        Egress::Disapprove(of) => approve(common, of, Verdict::Disapprove).await,
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

async fn approve(common: &Common, of: EgressOf, verdict: Verdict) -> Result<()> {
    let wanted = ApproveEgress { network: of.network, node: of.node };
    let change = match verdict {
        Verdict::Approve => operations::APPROVE_EGRESS,
        Verdict::Disapprove => operations::DISAPPROVE_EGRESS,
    };
    let changed = Client::coordinator(common)?.write(&change, &[], &wanted).await?;
    routes::tell_of(common, &changed, verdict, &changed)
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
