//! Properties of any policy; see the crate `meshward-fuzzing`.

use crate::{Budget, NewFlow, ParsedPolicy, Policy, compile, read, review, run_tests};
use meshward_types::{Labels, OutsideTarget, PolicyFile, Protocol};

meshward_fuzzing::targets! {
    policy: policy, samples, |length| (16 << 20) + 1024 * length as u64;
}

/// The separator of two files.
const NEXT_FILE: char = '\u{c}';
const LABELS: [&str; 5] =
    ["", "meshward/route=egress", "app=web", "app=api,env=prod", "app=db,env=test,tier=data"];

/// Policy files: every mistake has its position in them; a valid policy is the same after it was
/// written and read again, and compiles to what it decides.
fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = |(at, text): (usize, &str)| PolicyFile {
        name: format!("{at}.yaml"),
        text: text.to_owned(),
    };
    let files: Vec<PolicyFile> = text.split(NEXT_FILE).enumerate().map(file).collect();
    match read(&files) {
        Ok(all) => all.iter().for_each(check),
        Err(bad) => {
            assert!(!bad.0.is_empty());
            for problem in &bad.0 {
                let file = files.iter().find(|file| file.name == problem.span.file);
                let text = &file.expect("it is in one of the files").text;
                let lines = text.split(['\n', '\r']).count() as u64;
                assert!((1..=lines + 1).contains(&problem.span.line), "{problem}");
                assert!(!problem.text.is_empty());
            }
        }
    }
}

fn check(parsed: &ParsedPolicy) {
    let policy = &parsed.policy;
    let yaml = policy.to_yaml().expect("a policy can be written");
    assert_eq!(
        &Policy::parse(&yaml).unwrap_or_else(|bad| panic!("{bad}\n{yaml}")),
        policy,
        "{yaml}"
    );
    review(parsed);
    run_tests(policy, &Budget::of(Budget::PLAN)).expect("a small policy takes little work");
    let labels = LABELS.map(|text| text.parse::<Labels>().expect("labels"));
    let named = policy.tiers().flat_map(|(_, rule)| rule.ports().iter());
    let edges = named.flat_map(|spec| {
        [
            spec.ports.first.saturating_sub(1),
            spec.ports.first,
            spec.ports.last,
            spec.ports.last.saturating_add(1),
        ]
    });
    let mut ports: Vec<u16> = edges.take(64).chain([0, 80, u16::MAX]).collect();
    ports.sort_unstable();
    ports.dedup();
    let named = policy.tiers().flat_map(|(_, rule)| rule.target.outside()).take(4).map(Some);
    let targets: Vec<Option<&OutsideTarget>> = named.chain([None]).collect();
    for from in &labels {
        for to in &labels {
            let acl = compile(policy, from, to, &[]);
            for protocol in Protocol::ALL {
                for (port, outside) in
                    ports.iter().flat_map(|port| targets.iter().map(move |at| (port, *at)))
                {
                    let flow = NewFlow { from, to, outside, accepts: &[], protocol, port: *port };
                    let is_at = |own: &OutsideTarget| outside.is_some_and(|at| own.covers(at));
                    let compiled = acl.verdict_on(protocol, *port, is_at);
                    let decided = policy.decide(&flow).verdict;
                    assert_eq!(compiled, decided, "{from} to {to}, {outside:?}: {protocol}/{port}");
                }
            }
        }
    }
}

fn samples() -> Vec<Vec<u8>> {
    let whole = r#"network: shop
mode: enforce
declarations: open
on_deny: reject
on_quarantine: drop
on_revoke: reset
timeouts: { udp: 2m, tcp_established: 3h }
sets:
  back: { app: { in: [api, db] } }
rules:
  - { name: web-to-api, from: { app: web }, to: { app: api }, allow: [tcp/80, tcp/8080-8090],
      on_deny: drop }
  - name: no-debug
    from: { env: { not: prod } }
    to: { tier: { exists: true } }
    deny: [udp, icmp]
    observe: true
guardrails:
  - { name: out, from: {}, to: { cidr: 192.0.2.0/24, via: { role: out } }, deny: [any] }
  - { name: db, from: { app: web }, to: { app: db }, deny: [tcp] }
tests:
  - { from: { app: web }, to: { app: api, env: prod }, port: tcp/80, expect: allow }
triggers:
  - { name: scan, watch: { app: web }, when: { denied_flows: 20, within: 10s },
      then: quarantine, for: 1h, alone: true }
keys:
  release: |
    -----BEGIN PUBLIC KEY-----
    MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEvD4MKCQCEgFNgZDFUn3GXUOq8mfQnVr3aZSn4r3dpPXx+0AXLRpOf9WxZpvT
    Zjg2b9L0vMqtxqVRf4yPqR0z7g==
    -----END PUBLIC KEY-----
admission:
  - { name: ours, for: { app: web }, images: ["registry.example/shop/*"], signed_by: [release] }
routes:
  - { from: { app: gate }, prefixes: [192.168.0.0/16] }
"#;
    let two = "network: shop\nrules: [{ name: a, from: {}, to: {}, allow: [any] }]\n\u{c}network: \
        lab\n---\nnetwork: shop\n";
    let anchors = "network: shop\nrules:\n  - &a { name: a, from: &s { app: web }, to: *s, allow: \
        [tcp/1] }\n  - { <<: *a, name: b }\n";
    let served = r#"network: shop
dns: { zone: internal, zones: { corp.example: [10.8.0.53] }, upstreams: ["tls://9.9.9.9#a.b"],
  intercept: true }
services:
  - { name: api, for: { app: api }, ports: [{ port: 80, to: 8080 },
      { port: 443, protocol: udp }], prefer: [node, site],
      health: { http: /healthz, every: 2s, failures: 5 }, fan_out: 20, affinity: { client: 10m },
      weights: [{ for: { app: api }, weight: 7 }] }
  - { name: db, for: { env: { in: [prod, test] } }, ports: [{ port: 1 }],
      health: { exec: [check, "a b"] }, fan_out: all }
rules:
  - { name: a, from: { app: web }, to: { service: api } }
  - { name: b, from: {}, to: { service: { in: [api] } }, allow: [tcp] }
guardrails:
  - { name: c, from: {}, to: { service: db }, deny: [any] }
tests:
  - { from: { app: web }, to: { service: api }, port: tcp/80, expect: allow }
"#;
    [whole, two, anchors, served, "network: [", ""].map(|text| text.as_bytes().to_vec()).to_vec()
}
