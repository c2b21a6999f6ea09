//! Explanations: the rule that decides, now or in the past.

use super::basis::Basis;
use crate::{
    Refusal,
    records::{PolicyRecord, QuarantineRecord, Record},
};
use meshward_api_types::{ExplainQuery, Explanation};
use meshward_policy::{
    LetIn, LinkInputs, NewFlow, Policy, Rule, compile, compile_for, egress_gateways,
};
use meshward_types::{
    AcceptFrom, Acl, Labels, NetworkName, OnDeny, OutsideTarget, PortSpec, Selector, ServiceName,
    Verdict, selector::Requirement,
};
use std::sync::Arc;

/// The largest number of pairs of identities in one explanation.
const MAX_PAIRS: usize = 400;

/// The policies and quarantines of a revision.
pub struct Past(pub Vec<Record>);

impl Past {
    /// Returns the policy of a network.
    pub fn policy(&self, name: &NetworkName) -> Option<&PolicyRecord> {
        self.0.iter().find_map(|record| match record {
            Record::Policy(policy) if policy.network == *name => Some(policy),
            _ => None,
        })
    }

    fn quarantine_of(&self, network: &NetworkName, labels: &Labels) -> Option<&QuarantineRecord> {
        self.0.iter().find_map(|record| match record {
            Record::Quarantine(quarantine) if selects(quarantine, network, labels) => {
                Some(quarantine)
            }
            _ => None,
        })
    }
}

fn selects(quarantine: &QuarantineRecord, network: &NetworkName, labels: &Labels) -> bool {
    let target = &quarantine.target;
    let selected = target.selector.as_ref().is_some_and(|selector| selector.matches(labels));
    selected && target.network.as_ref().is_none_or(|own| own == network)
}

/// The policies and quarantines by which pairs are explained.
struct Explaining<'a> {
    basis: &'a Basis,
    name: &'a NetworkName,
    policy: Arc<Policy>,
    past: Option<&'a Past>,
    /// The address or name outside of the mesh that is asked about.
    outside: Option<&'a OutsideTarget>,
}

/// Explains which rules decide between two selectors, by the policies and quarantines of now or of
/// `past`.
///
/// # Errors
/// [`Refusal::Missing`] and [`Refusal::Invalid`] if the network or the labels are not known.
pub fn explain(
    basis: &Basis,
    query: &ExplainQuery,
    past: Option<&Past>,
) -> Result<Vec<Explanation>, Refusal> {
    let name = match &query.network {
        Some(name) => name,
        None if basis.networks.len() == 1 => basis.networks.keys().next().ok_or_else(no_network)?,
        None if basis.networks.is_empty() => return Err(no_network()),
        None => {
            return Err(Refusal::Invalid(
                "there are several networks; add `--network NAME`".into(),
            ));
        }
    };
    let inputs = &basis.find(name)?.inputs;
    let policy = match past.map(|past| past.policy(name)) {
        None => inputs.policy().clone(),
        Some(Some(record)) => record.policy().map_err(Refusal::Conflict)?,
        Some(None) => Arc::new(Policy::deny_all(name.clone())),
    };
    let outside = query.outside.as_ref();
    let (to, ports) = match &query.service {
        None if outside.is_some() => (egress_gateways(&query.to), vec![query.port]),
        None => (query.to.clone(), vec![query.port]),
        Some(_) if outside.is_some() => {
            let text = "either `service` or `outside` is asked about; leave one of them out";
            return Err(Refusal::Invalid(text.into()).about("outside"));
        }
        Some(service) => instances(&policy, service, query)?,
    };
    let explaining = Explaining { basis, name, policy, past, outside };
    let (from, to) = (parties(inputs, name, &query.from)?, parties(inputs, name, &to)?);
    let pairs = from.iter().flat_map(|a| to.iter().map(move |b| (a, b)));
    let asked = pairs.flat_map(|(a, b)| ports.iter().map(move |port| (a, b, *port)));
    Ok(asked.take(MAX_PAIRS).map(|(a, b, port)| explaining.verdict(a, b, port)).collect())
}

/// Returns the selector of a service's instances, and their ports behind the port of a query.
fn instances(
    policy: &Policy,
    name: &ServiceName,
    query: &ExplainQuery,
) -> Result<(Selector, Vec<PortSpec>), Refusal> {
    if !query.to.is_empty() {
        let text = "either `to` or `service` is the server; leave one of them out";
        return Err(Refusal::Invalid(text.into()).about("service"));
    }
    let service = policy
        .find_service(name)
        .map_err(|error| Refusal::Missing(error.to_string()).about("service"))?;
    let ports = service.targets(&[query.port]);
    if ports.is_empty() {
        let text = format!(
            "service `{name}` has no port {}; it has {}",
            query.port,
            service.listed_ports()
        );
        return Err(Refusal::Invalid(text).about("port"));
    }
    Ok((service.instances.clone(), ports))
}

fn no_network() -> Refusal {
    Refusal::Missing(
        "there is no network yet; make one with `meshctl network create NAME --cidr ...`".into(),
    )
}

struct Party {
    labels: Labels,
    accepts: Vec<AcceptFrom>,
    live: bool,
}

/// Returns the live identities that a selector selects, or the exact labels that it has.
fn parties(
    inputs: &LinkInputs,
    name: &NetworkName,
    selector: &Selector,
) -> Result<Vec<Party>, Refusal> {
    let party = |id| {
        let (labels, accepts) = (inputs.labels(id)?.clone(), inputs.accepts(id).to_vec());
        Some(Party { labels, accepts, live: true })
    };
    let selected = inputs.select(selector).into_iter();
    // More than these would not be paired with anybody.
    let live: Vec<Party> = selected.filter_map(party).take(MAX_PAIRS).collect();
    if !live.is_empty() {
        return Ok(live);
    }
    let spelled = selector.requirements().map(|(key, requirement)| match requirement {
        Requirement::In(values) if values.len() == 1 => Ok(format!("{key}={}", values[0])),
        _ => Err(Refusal::Missing(format!(
            "no workload of network `{name}` is selected by `{selector}`; give exact labels, such \
            as app=web, to ask about one that is not there yet"
        ))),
    });
    let spelled = spelled.collect::<Result<Vec<String>, _>>()?;
    let labels = Labels::parse_each(spelled.iter().map(String::as_str))
        .map_err(|error| Refusal::Invalid(error.to_string()))?;
    Ok(vec![Party { labels, accepts: vec![], live: false }])
}

impl Explaining<'_> {
    /// Returns the quarantine that isolates workloads with these labels.
    fn quarantine(&self, labels: &Labels) -> Option<&QuarantineRecord> {
        match self.past {
            Some(past) => past.quarantine_of(self.name, labels),
            None => self
                .basis
                .quarantines
                .iter()
                .find(|quarantine| selects(quarantine, self.name, labels)),
        }
    }

    /// Returns what a quarantine lets pass to workloads that it isolates.
    fn let_in(&self, quarantine: &QuarantineRecord, from: &Party, to: &Party) -> Option<Acl> {
        let name = format!("quarantine {}", quarantine.id);
        let let_in = quarantine.allow_from.clone()?;
        let rule = Rule::allowing(name, let_in, Selector::default(), vec![PortSpec::ANY]);
        let let_in = vec![LetIn { rule, by_admin: quarantine.by_admin }];
        let policy = Policy { let_in, ..Policy::clone(&self.policy) };
        let acl = compile(&policy, &from.labels, &to.labels, &to.accepts);
        Some(Acl::new(acl.forensic().to_vec()))
    }

    /// Returns the answer to the sender of a denied packet.
    fn on_deny(&self, from: &Party, to: &Party, port: PortSpec) -> OnDeny {
        if self.quarantine(&from.labels).is_some() {
            return self.policy.on_quarantine;
        }
        let acl = self.compile(from, to);
        if acl.rejects_all(port, self.policy.on_deny) { OnDeny::Reject } else { OnDeny::Drop }
    }

    fn compile(&self, from: &Party, to: &Party) -> Acl {
        compile_for(&self.policy, &from.labels, &to.labels, &to.accepts, self.outside)
    }

    fn verdict(&self, from: &Party, to: &Party, port: PortSpec) -> Explanation {
        let policy = &self.policy;
        let isolated =
            [from, to].into_iter().find_map(|end| Some((self.quarantine(&end.labels)?, end)));
        let (verdict, because) = match (isolated, port.protocol) {
            (Some((quarantine, end)), _) => {
                let forensic = self.quarantine(&from.labels).is_none()
                    && self.let_in(quarantine, from, to).is_some_and(|acl| acl.allows_all(port));
                let text = format!("quarantine {} holds {}", quarantine.id, end.labels);
                match forensic {
                    true => (Verdict::Allowed, format!("{text}, and lets {} in", from.labels)),
                    false => (Verdict::Denied, text),
                }
            }
            (None, Some(protocol))
                if port.ports.first == port.ports.last || !protocol.has_ports() =>
            {
                let decision = policy.decide(&NewFlow {
                    from: &from.labels,
                    to: &to.labels,
                    outside: self.outside,
                    accepts: &to.accepts,
                    protocol,
                    port: port.ports.first,
                });
                (decision.verdict, decision.reason.to_string())
            }
            _ => {
                let acl = self.compile(from, to);
                let verdict = if acl.allows_all(port) { Verdict::Allowed } else { Verdict::Denied };
                let because = if acl.allows_all(port) {
                    "all of it is allowed".to_owned()
                } else if acl.allows_some(port) || !acl.observed().is_empty() {
                    format!("only a part passes: {acl}; ask for a single port to see its rule")
                } else {
                    "none of it is allowed; ask for a single port to see its rule".to_owned()
                };
                (verdict, because)
            }
        };
        let on_deny = (verdict == Verdict::Denied).then(|| self.on_deny(from, to, port));
        Explanation {
            on_deny,
            from: from.labels.clone(),
            to: to.labels.clone(),
            port,
            allowed: verdict != Verdict::Denied,
            observed: verdict == Verdict::Observed,
            because,
            live: from.live && to.live,
        }
    }
}
