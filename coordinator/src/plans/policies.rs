//! Policies: checked by their own tests, compared with what is there, applied.

use super::networks::find;
use crate::{
    mesh::{Plan, Refusal},
    records::{Mutation, PolicyRecord, Record},
    world::{NetworkState, World},
};
use meshward_model::{
    Acl, IdentityId, Labels, PortSpec, Selector,
    api::{ExplainQuery, Explanation, Link, LinkChange, PolicyResult},
    selector::Requirement,
};
use meshward_policy::{Links, Policy, PolicyStep, compile, run_tests};
use std::sync::Arc;

/// The most pairs that one explanation covers.
const MAX_PAIRS: usize = 400;

/// Checks a policy and works out what it changes.
pub fn apply(world: &World, source: &str) -> Result<Plan<PolicyResult>, Refusal> {
    let policy = Policy::parse(source).map_err(|error| Refusal::Invalid(error.to_string()))?;
    let network = find(world, &policy.network)?;
    let failures = run_tests(&policy);
    if !failures.is_empty() {
        let each: Vec<String> = failures.iter().map(ToString::to_string).collect();
        return Err(Refusal::Invalid(format!(
            "the policy's own tests fail; nothing was applied\n{}",
            each.join("\n")
        )));
    }
    let policy = Arc::new(policy);
    let (opened, closed) = changes(&network.links, &network.links.step(policy.clone()));
    let record = PolicyRecord { network: policy.network.clone(), source: source.to_owned() };
    let same = network.policy_source == source;
    Ok(Plan {
        mutations: if same { vec![] } else { vec![Mutation::Put(Record::Policy(record))] },
        action: format!("applied the policy of {}", policy.network),
        outcome: PolicyResult {
            rules: policy.rules.len() + policy.guardrails.len(),
            tests_passed: policy.tests.len(),
            network: policy.network.clone(),
            revision: None,
            opened,
            closed,
        },
    })
}

/// The links that open and those that close; one that does both stands in both.
fn changes(links: &Links, step: &PolicyStep) -> (Vec<LinkChange>, Vec<LinkChange>) {
    let nothing = Acl::default();
    let (mut opened, mut closed) = (Vec::new(), Vec::new());
    for change in &step.changes {
        let old = change.before.as_deref().unwrap_or(&nothing);
        let new = change.after.as_deref().unwrap_or(&nothing);
        let (Some(from), Some(to)) = (links.labels(change.from), links.labels(change.to)) else { continue };
        let change = LinkChange {
            from: from.clone(),
            to: to.clone(),
            before: old.to_string(),
            after: new.to_string(),
        };
        if !covers(old, new) {
            opened.push(change.clone());
        }
        if !covers(new, old) {
            closed.push(change);
        }
    }
    for list in [&mut opened, &mut closed] {
        list.sort_unstable_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
    }
    (opened, closed)
}

/// Whether everything that `inner` allows is allowed by `outer`.
fn covers(outer: &Acl, inner: &Acl) -> bool {
    inner
        .entries()
        .iter()
        .all(|entry| outer.allows_all(PortSpec { protocol: Some(entry.protocol), ports: entry.ports }))
}

/// The links of a network, without counters.
pub fn links(network: &NetworkState) -> Vec<((IdentityId, IdentityId), Link)> {
    let link = |(from, to, acl): (IdentityId, IdentityId, &Arc<Acl>)| {
        let link = Link {
            network: network.record.name.clone(),
            from: network.links.labels(from)?.clone(),
            to: network.links.labels(to)?.clone(),
            acl: Acl::clone(acl),
            packets: 0,
            bytes: 0,
            denied: 0,
        };
        Some(((from, to), link))
    };
    network.links.all().filter_map(link).collect()
}

/// Says which rule decides between two selectors.
pub fn explain(world: &World, query: &ExplainQuery) -> Result<Vec<Explanation>, Refusal> {
    let network = match &query.network {
        Some(name) => find(world, name)?,
        None if world.networks.len() == 1 => world.networks.values().next().ok_or_else(no_network)?,
        None if world.networks.is_empty() => return Err(no_network()),
        None => return Err(Refusal::Invalid("there are several networks; add `--network NAME`".into())),
    };
    let (from, to) = (parties(network, &query.from)?, parties(network, &query.to)?);
    let pairs = from.iter().flat_map(|a| to.iter().map(move |b| (a, b)));
    Ok(pairs.take(MAX_PAIRS).map(|(a, b)| verdict(world, network, a, b, query.port)).collect())
}

fn no_network() -> Refusal {
    Refusal::Missing("there is no network yet; make one with `meshctl network create NAME --cidr ...`".into())
}

struct Labelled {
    labels: Labels,
    live: bool,
}

/// The live identities that a selector selects; where there is none, the labels that it spells out.
fn parties(network: &NetworkState, selector: &Selector) -> Result<Vec<Labelled>, Refusal> {
    let selected = network.links.identities().filter(|(_, labels)| selector.matches(labels));
    let live: Vec<Labelled> =
        selected.map(|(_, labels)| Labelled { labels: labels.clone(), live: true }).collect();
    if !live.is_empty() {
        return Ok(live);
    }
    let spelled = selector.requirements().map(|(key, requirement)| match requirement {
        Requirement::In(values) if values.len() == 1 => Ok(format!("{key}={}", values[0])),
        _ => Err(Refusal::Missing(format!(
            "no workload of network `{}` is selected by `{selector}`; give exact labels, such as app=web, to ask about one that is not there yet",
            network.record.name
        ))),
    });
    let spelled = spelled.collect::<Result<Vec<String>, _>>()?;
    let labels = Labels::parse_each(spelled.iter().map(String::as_str))
        .map_err(|error| Refusal::Invalid(error.to_string()))?;
    Ok(vec![Labelled { labels, live: false }])
}

fn verdict(
    world: &World,
    network: &NetworkState,
    from: &Labelled,
    to: &Labelled,
    port: PortSpec,
) -> Explanation {
    let name = &network.record.name;
    let policy = network.links.policy();
    let held = [from, to].into_iter().find_map(|end| {
        let quarantine = world.quarantine_of(name, &end.labels, None)?;
        Some(format!("quarantine {} holds {}", quarantine.id, end.labels))
    });
    let (allowed, because) = match (held, port.protocol) {
        (Some(because), _) => (false, because),
        (None, Some(protocol)) if port.ports.first == port.ports.last || !protocol.has_ports() => {
            let decision = policy.decide(&from.labels, &to.labels, protocol, port.ports.first);
            (decision.allowed, decision.reason.to_string())
        }
        _ => {
            let acl = compile(policy, &from.labels, &to.labels);
            let because = if acl.allows_all(port) {
                "all of it is allowed".to_owned()
            } else if acl.allows_some(port) {
                format!("only a part is allowed: {acl}; ask for a single port to see its rule")
            } else {
                "none of it is allowed; ask for a single port to see its rule".to_owned()
            };
            (acl.allows_all(port), because)
        }
    };
    Explanation {
        from: from.labels.clone(),
        to: to.labels.clone(),
        port,
        allowed,
        because,
        live: from.live && to.live,
    }
}
