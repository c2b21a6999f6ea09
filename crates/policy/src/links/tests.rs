use super::{acl_cache::Pair, *};
use crate::{
    budget::Budget,
    cases::run_tests,
    compile::compile,
    decide::NewFlow,
    document::{Action, Declarations, ForensicsRule, LetIn, Mode, Policy, Rule},
    target::Target,
};
use meshward_types::{
    AcceptFrom, Acl, IdentityId, Labels, OnDeny, OnRevoke, PortRange, PortSpec, Protocol, Selector,
    Verdict,
};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    sync::Arc,
};

fn selector() -> impl Strategy<Value = Selector> {
    let part = prop_oneof![
        Just("app=a"),
        Just("app=b"),
        Just("app!=a"),
        Just("env in (p,q)"),
        Just("env notin (p,q)"),
        Just("env"),
        Just("!env"),
    ];
    prop::collection::vec(part, 0..3)
        .prop_map(|parts| parts.join(","))
        .prop_filter_map("two requirements on one key", |text| text.parse().ok())
}

fn labels() -> impl Strategy<Value = Labels> {
    let app = prop_oneof![Just(""), Just("app=a"), Just("app=b"), Just("app=c")];
    let env = prop_oneof![Just(""), Just("env=p"), Just("env=q"), Just("env=r")];
    (app, env).prop_map(|(app, env)| format!("{app},{env}").parse().unwrap())
}

/// Generates ports near each other and near both ends, so that ranges meet, nest and touch.
fn port() -> impl Strategy<Value = u16> {
    prop_oneof![0..4u16, 98..104u16, 65_532..=65_535u16]
}

fn spec() -> impl Strategy<Value = PortSpec> {
    let protocol = prop_oneof![
        Just(None),
        Just(Some(Protocol::Tcp)),
        Just(Some(Protocol::Udp)),
        Just(Some(Protocol::Sctp)),
        Just(Some(Protocol::Icmp)),
    ];
    (protocol, port(), port(), any::<bool>()).prop_map(|(protocol, a, b, all)| {
        let ports = if all || !protocol.is_some_and(Protocol::has_ports) {
            PortRange::ALL
        } else {
            PortRange { first: a.min(b), last: a.max(b) }
        };
        PortSpec { protocol, ports }
    })
}

fn rules(prefix: &'static str) -> impl Strategy<Value = Vec<Rule>> {
    let on_deny = prop_oneof![
        2 => Just(None),
        1 => Just(Some(OnDeny::Drop)),
        2 => Just(Some(OnDeny::Reject)),
    ];
    let rule = (selector(), selector(), prop::collection::vec(spec(), 1..3), (0..3u8, on_deny));
    prop::collection::vec(rule, 0..4).prop_map(move |rules| {
        type Made = (Selector, Selector, Vec<PortSpec>, (u8, Option<OnDeny>));
        let named = |(at, (from, to, ports, (kind, on_deny))): (usize, Made)| {
            let (allow, deny) = if kind == 0 { (ports, vec![]) } else { (vec![], ports) };
            Rule {
                name: format!("{prefix}{at}"),
                from,
                to,
                target: Target::Labels,
                allow,
                deny,
                observe: kind == 2,
                on_deny,
            }
        };
        rules.into_iter().enumerate().map(named).collect()
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let parts = (rules("r"), rules("g"), 0..5u8, any::<bool>(), letting_in());
    parts.prop_map(|(rules, guardrails, mode, open, (forensics, _))| Policy {
        forensics,
        on_deny: if mode == 1 { OnDeny::Reject } else { OnDeny::Drop },
        on_revoke: if mode == 2 { OnRevoke::Reset } else { OnRevoke::Drop },
        mode: if mode == 0 { Mode::Observe } else { Mode::Enforce },
        declarations: if open { Declarations::Open } else { Declarations::Narrow },
        rules,
        guardrails,
        ..Policy::deny_all("shop".parse().unwrap())
    })
}

/// Generates the rules and exceptions for quarantined workloads.
fn letting_in() -> impl Strategy<Value = (Vec<ForensicsRule>, Vec<LetIn>)> {
    let rule = |prefix: &'static str, at: usize, from, to, allow| {
        Rule::allowing(format!("{prefix}{at}"), from, to, allow)
    };
    let named = (selector(), selector(), prop::collection::vec(spec(), 1..3), any::<bool>());
    let named = prop::collection::vec(named, 0..3).prop_map(move |all| {
        let one = |(at, (from, to, ports, over_guardrails))| ForensicsRule {
            rule: rule("f", at, from, to, ports),
            over_guardrails,
        };
        all.into_iter().enumerate().map(one).collect()
    });
    let let_in =
        prop::collection::vec((selector(), selector(), any::<bool>()), 0..3).prop_map(move |all| {
            let one = |(at, (from, to, by_admin))| LetIn {
                rule: rule("quarantine ", at, from, to, vec![PortSpec::ANY]),
                by_admin,
            };
            all.into_iter().enumerate().map(one).collect()
        });
    (named, let_in)
}

fn accepts() -> impl Strategy<Value = Vec<AcceptFrom>> {
    let one = (selector(), prop::collection::vec(spec(), 0..2))
        .prop_map(|(from, ports)| AcceptFrom { from, ports });
    prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec(one, 1..3)]
}

/// Returns the verdict according to the documentation, written independently of `decide` and
/// `compile`.
fn naive(policy: &Policy, flow: &NewFlow<'_>) -> Verdict {
    let NewFlow { from, to, accepts, protocol, port, .. } = *flow;
    let speaks_of = |ports: &[PortSpec]| {
        ports.iter().any(|spec| match spec.protocol {
            Some(own) if own != protocol => false,
            None | Some(Protocol::Icmp) => true,
            Some(_) => spec.ports.first <= port && port <= spec.ports.last,
        })
    };
    let any = |rules: &[Rule], action: Action, counts: &dyn Fn(&Rule) -> bool| {
        rules.iter().filter(|rule| counts(rule)).any(|rule| {
            let ports = match action {
                Action::Allow => &rule.allow,
                Action::Deny => &rule.deny,
            };
            rule.from.matches(from) && rule.to.matches(to) && speaks_of(ports)
        })
    };
    let declares = |accept: &AcceptFrom| {
        accept.from.matches(from) && (accept.ports.is_empty() || speaks_of(&accept.ports))
    };
    let declared = accepts.iter().any(declares);
    if !accepts.is_empty() && !declared {
        return Verdict::Denied;
    }
    let opened = declared && policy.declarations == Declarations::Open;
    let all: &dyn Fn(&Rule) -> bool = &|_| true;
    let firm: &dyn Fn(&Rule) -> bool = &|rule| !rule.observe;
    let allowed =
        |guardrails: &dyn Fn(&Rule) -> bool, rules: &dyn Fn(&Rule) -> bool, default: bool| {
            if any(&policy.guardrails, Action::Deny, guardrails) {
                return false;
            }
            if any(&policy.guardrails, Action::Allow, guardrails) {
                return true;
            }
            !any(&policy.rules, Action::Deny, rules)
                && (default || any(&policy.rules, Action::Allow, rules))
        };
    let observes = policy.mode == Mode::Observe;
    let none: &dyn Fn(&Rule) -> bool = &|rule| !rule.allow.is_empty();
    if allowed(all, all, opened) {
        Verdict::Allowed
    } else if allowed(firm, if observes { none } else { firm }, opened || observes) {
        Verdict::Observed
    } else {
        Verdict::Denied
    }
}

/// Returns the answer to a denied packet according to the documentation.
fn naive_on_deny(
    policy: &Policy,
    from: &Labels,
    to: &Labels,
    protocol: Protocol,
    port: u16,
) -> OnDeny {
    let matches = |rule: &&Rule| rule.from.matches(from) && rule.to.matches(to);
    let denies = |rule: &&Rule| {
        let enforced = !rule.observe;
        enforced && matches(rule) && rule.deny.iter().any(|spec| spec.matches(protocol, port))
    };
    let guardrails: Vec<&Rule> = policy.guardrails.iter().filter(denies).collect();
    let lifted = policy.mode == Mode::Observe;
    let rules = policy.rules.iter().filter(|rule| !lifted && denies(rule));
    let deciding = if guardrails.is_empty() { rules.collect() } else { guardrails };
    let silent_first = |said: Vec<OnDeny>| match said.contains(&OnDeny::Drop) {
        true => Some(OnDeny::Drop),
        false => said.first().copied(),
    };
    let said = silent_first(deciding.iter().filter_map(|rule| rule.on_deny).collect());
    let allowing =
        policy.guardrails.iter().chain(&policy.rules).filter(|rule| !rule.allow.is_empty());
    let otherwise =
        silent_first(allowing.filter(matches).filter_map(|rule| rule.on_deny).collect());
    said.or(otherwise).unwrap_or(policy.on_deny)
}

/// Returns `true` if a quarantined workload may be reached, according to the documentation.
fn naive_forensics(
    policy: &Policy,
    from: &Labels,
    to: &Labels,
    protocol: Protocol,
    port: u16,
) -> bool {
    let matches = |rule: &Rule| rule.from.matches(from) && rule.to.matches(to);
    let speaks_of = |ports: &[PortSpec]| ports.iter().any(|spec| spec.matches(protocol, port));
    let let_in: Vec<bool> =
        policy.let_in.iter().filter(|one| matches(&one.rule)).map(|one| one.by_admin).collect();
    let denied = |rule: &Rule| matches(rule) && !rule.observe && speaks_of(&rule.deny);
    let guarded = policy.guardrails.iter().any(denied);
    let named = |own: &&ForensicsRule| matches(&own.rule) && speaks_of(&own.rule.allow);
    let mut named = policy.forensics.iter().filter(named);
    let by_admin = let_in.contains(&true) && !guarded;
    !let_in.is_empty() && (by_admin || named.any(|own| own.over_guardrails || !guarded))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_compiled_acl_is_what_a_naive_reader_decides(
        policy in policy(),
        (_, let_in) in letting_in(),
        from in labels(),
        to in labels(),
        accepts in accepts(),
        packets in prop::collection::vec((0..5usize, port()), 1..24),
    ) {
        let policy = Policy { let_in, ..policy };
        let acl = compile(&policy, &from, &to, &accepts);
        for (protocol, port) in packets {
            let protocol = Protocol::ALL[protocol];
            let flow = NewFlow { from: &from, to: &to, outside: None, accepts: &accepts, protocol, port };
            let expected = naive(&policy, &flow);
            prop_assert_eq!(
                acl.verdict(protocol, port),
                expected,
                "{} {} in {}",
                protocol,
                port,
                acl
            );
            prop_assert_eq!(policy.decide(&flow).verdict, expected);
            // A declaration is no rule, and has no answer.
            if expected == Verdict::Denied && accepts.is_empty() {
                let told = acl.on_deny(protocol, port).unwrap_or(policy.on_deny);
                prop_assert_eq!(
                    told,
                    naive_on_deny(&policy, &from, &to, protocol, port),
                    "{} {}",
                    protocol,
                    port
                );
                let (one, whole) = (PortRange { first: port, last: port }, PortRange::ALL);
                let ports = if protocol.has_ports() { one } else { whole };
                let spec = PortSpec { protocol: Some(protocol), ports };
                prop_assert_eq!(
                    acl.rejects_all(spec, policy.on_deny),
                    told == OnDeny::Reject,
                    "{} in {}",
                    spec,
                    acl
                );
            }
            let let_in = naive_forensics(&policy, &from, &to, protocol, port);
            prop_assert_eq!(
                acl.allows_forensics(protocol, port),
                let_in,
                "{} {} in {}",
                protocol,
                port,
                acl
            );
        }
    }

    #[test]
    fn a_policy_survives_its_yaml(policy in policy()) {
        let text = serde_saphyr::to_string(&policy).unwrap();
        prop_assert_eq!(Policy::parse(&text).unwrap(), policy);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn links_kept_step_by_step_are_those_compiled_at_once(
        policies in prop::collection::vec(policy(), 1..3),
        steps in prop::collection::vec((0u32..6, any::<bool>(), labels(), accepts()), 1..20),
    ) {
        let mut links = Links::new(Arc::new(policies[0].clone()));
        let mut there: BTreeMap<IdentityId, (Labels, Vec<AcceptFrom>)> = BTreeMap::new();
        let mut told: BTreeMap<Pair, Acl> = BTreeMap::new();
        for (at, (id, insert, labels, accepts)) in steps.into_iter().enumerate() {
            let id = IdentityId(id);
            let changes = if at % 4 == 3 {
                let policy = Arc::new(policies[at % policies.len()].clone());
                let step = links.step(policy.clone());
                let beside = links.inputs().clone().step(policy, &Bounds::usual()).unwrap();
                prop_assert_eq!(sorted(&step.changes), sorted(&beside.changes));
                prop_assert!(links.are_inputs_of(&beside));
                links.apply_step(&step);
                let changes = step.changes;
                prop_assert!(!links.are_inputs_of(&beside));
                changes
            } else if insert {
                there.entry(id).or_insert((labels.clone(), accepts.clone()));
                links.insert(id, labels, accepts.into())
            } else {
                there.remove(&id);
                links.remove(id)
            };
            for LinkChange { from, to, before, after } in changes {
                prop_assert_eq!(told.get(&(from, to)), before.as_deref());
                match after {
                    Some(acl) => told.insert((from, to), Acl::clone(&acl)),
                    None => told.remove(&(from, to)),
                };
            }
            let expected: BTreeMap<Pair, Acl> = there
                .iter()
                .flat_map(|(a, from)| there.iter().map(move |(b, to)| ((*a, *b), (from, to))))
                .map(|(pair, (from, to))| (pair, compile(links.policy(), &from.0, &to.0, &to.1)))
                .filter(|(_, acl)| !acl.is_empty())
                .collect();
            let kept: BTreeMap<Pair, Acl> =
                links.all().map(|(a, b, acl)| ((a, b), Acl::clone(acl))).collect();
            prop_assert_eq!(&kept, &expected);
            prop_assert_eq!(&told, &expected);
            prop_assert_eq!(links.count(), kept.len());
            for (a, b) in kept.keys() {
                prop_assert!(links.arriving(*b).any(|(from, _)| from == *a));
                prop_assert!(links.neighbours(*a).contains(b));
            }
            for selector in links.policy().rules.iter().map(|rule| &rule.from) {
                let selected: BTreeSet<_> = links.select(selector).into_iter().collect();
                let naive: BTreeSet<_> = there
                    .iter()
                    .filter(|(_, l)| selector.matches(&l.0))
                    .map(|(id, _)| *id)
                    .collect();
                prop_assert_eq!(selected, naive);
            }
        }
    }
}

fn sorted(changes: &[LinkChange]) -> Vec<LinkChange> {
    let mut changes = changes.to_vec();
    changes.sort_by_key(|change| (change.from, change.to));
    changes
}

fn links_of(identities: u32, policy: Policy) -> Links {
    let mut links = Links::new(Arc::new(policy));
    for id in 0..identities {
        links.insert(IdentityId(id), format!("app=a{id}").parse().unwrap(), Arc::new([]));
    }
    links
}

#[test]
fn what_is_worked_out_beside_the_links_stays_as_it_was() {
    let rule = "network: shop\nrules: [{ name: a, from: {}, to: {}, allow: [tcp/80] }]";
    let mut links = links_of(3, Policy::deny_all("shop".parse().unwrap()));
    let inputs = links.inputs().clone();
    links.insert(IdentityId(7), "app=new".parse().unwrap(), Arc::new([]));
    links.remove(IdentityId(0));
    let step = inputs.step(Arc::new(Policy::parse(rule).unwrap()), &Bounds::usual()).unwrap();
    assert_eq!(step.changes.len(), 9, "three identities, as when it was taken");
    assert!(!links.are_inputs_of(&step));
    assert_eq!(inputs.identities().count(), 3);
}

#[test]
fn a_policy_that_takes_too_much_work_is_refused_and_not_worked_out() {
    let text = |rules: usize, tests: usize| {
        let mut text = "network: shop\nrules:\n".to_owned();
        for at in 0..rules {
            let port = 1 + at;
            writeln!(text, "  - {{ name: r{at}, from: {{}}, to: {{}}, allow: [tcp/{port}] }}")
                .unwrap();
        }
        text += if tests == 0 { "" } else { "tests:\n" };
        for at in 0..tests {
            let port = 1 + at;
            writeln!(text, "  - {{ from: {{ a: b }}, to: {{}}, port: tcp/{port}, expect: allow }}")
                .unwrap();
        }
        Policy::parse(&text).unwrap()
    };
    assert_eq!(run_tests(&text(100, 100), &Budget::of(Budget::PLAN)), Ok(vec![]));
    let refused = run_tests(&text(100, 100), &Budget::of(10_000)).unwrap_err();
    assert!(refused.to_string().contains("more than 10000 steps"), "{refused}");
    let inputs = links_of(100, Policy::deny_all("shop".parse().unwrap())).inputs().clone();
    let step = |pairs, budget| {
        let bounds = Bounds { pairs, budget: Budget::of(budget) };
        inputs.step(Arc::new(text(10, 0)), &bounds).map(|step| step.changes.len())
    };
    assert_eq!(step(10_000, Budget::PLAN), Ok(10_000));
    assert!(step(9_999, Budget::PLAN).unwrap_err().to_string().contains("9999 pairs"));
    assert!(matches!(step(10_000, 50_000).unwrap_err(), TooMuch::Work(_)));
}

fn schema() -> jsonschema::Validator {
    jsonschema::validator_for(&serde_json::from_str(crate::SCHEMA).unwrap()).unwrap()
}

fn as_json(text: &str) -> serde_json::Value {
    serde_saphyr::from_str(text).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_schema_takes_every_policy(policy in policy()) {
        let json = as_json(&policy.to_yaml().unwrap());
        let problems: Vec<String> =
            schema().iter_errors(&json).map(|error| error.to_string()).collect();
        prop_assert_eq!(problems, Vec::<String>::new());
    }
}

#[test]
fn the_schema_and_the_reader_agree_on_what_is_wrong() {
    let good = "network: shop
mode: observe
declarations: open
ports: { web: [tcp/80, tcp/443] }
selectors: { front: { app: { in: [web, shop] }, old: { exists: false }, tier: { not: test } } }
rules: [{ name: a, from: front, to: {}, allow: [web, udp/1-2, icmp] },
    { name: b, from: {}, to: {}, deny: [any], observe: true }]
tests: [{ from: { app: x }, to: {}, port: tcp/1, expect: deny }]
triggers: [{ name: t, watch: { app: web },
    when: { denied_flows: 2, distinct_addresses: 3, within: 10s }, then: { label: { a: b } },
    for: 1h 30m, alone: false }]
keys: { release: \"-----BEGIN PUBLIC KEY-----\\n\
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEHVa+EP28zoqbHfJPw68hBTIe7k1\\n\
tphgauhERyCZMNKgJG+Te05jabQb8AWYCY3psrjzfRB7NaCRBgWqC/yw5A==\\n\
-----END PUBLIC KEY-----\" }
forensics: [{ name: f, from: front, to: { app: api }, allow: [tcp/22, web],
    over_guardrails: true }, { name: g, from: {} }]
admission: [{ name: c, for: front, images: [registry.example/shop/*, web, '*'],
    signed_by: [release],
    config: ['sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'],
    privileges: [privileged] }]
";
    assert!(schema().is_valid(&as_json(good)));
    Policy::parse(good).unwrap();
    for (find, replace) in [
        ("mode: observe", "mode: watch"),
        ("declarations: open", "declare: open"),
        ("tcp/443", "tpc/443"),
        ("udp/1-2", "udp/1-"),
        (", allow: [web, udp/1-2, icmp]", ""),
        (", deny: [any]", ", deny: [any], allow: [any]"),
        ("exists: false", "exist: false"),
        ("expect: deny", "expect: no"),
        ("denied_flows: 2, distinct_addresses: 3, ", ""),
        ("denied_flows: 2", "denied_flows: 0"),
        ("then: { label: { a: b } }", "then: sleep"),
        ("within: 10s", "within: soon"),
        ("network: shop", "network: Shop"),
        ("BEGIN PUBLIC KEY", "BEGIN SECRET KEY"),
        ("sha256:e3", "sha256:E3"),
        ("signed_by:", "signed:"),
        ("name: c, ", ""),
        ("over_guardrails: true", "over: true"),
        ("{ name: g, from: {} }", "{ name: g }"),
    ] {
        let bad = good.replace(find, replace);
        assert_ne!(bad, good, "{find}");
        assert!(!schema().is_valid(&as_json(&bad)), "the schema takes {replace}");
        assert!(Policy::parse(&bad).is_err(), "the reader takes {replace}");
    }
}

#[test]
fn a_failing_policy_test_says_what_decided() {
    let text = "
network: shop
rules: [{ name: all, from: {}, to: {}, allow: [any] }]
tests:
  - { from: { app: web }, to: { app: db }, port: tcp/5432, expect: deny }
  - { from: { app: web }, to: { app: db }, port: any, expect: allow }
";
    let failures = run_tests(&Policy::parse(text).unwrap(), &Budget::of(Budget::PLAN)).unwrap();
    assert_eq!(failures.len(), 1);
    let said = failures[0].to_string();
    assert!(said.contains("policy test 1 failed") && said.contains("rule `all`"), "{said}");
}
