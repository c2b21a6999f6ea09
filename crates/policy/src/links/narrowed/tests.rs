use crate::{Links, Policy};
use meshward_types::IdentityId;
use std::sync::Arc;

const CLIENT: IdentityId = IdentityId(1);
const INSTANCE: IdentityId = IdentityId(2);

/// Makes the links of a web workload and an instance of two services under a policy.
fn links(rest: &str) -> Links {
    let mut links = Links::new(policy(rest));
    links.insert(CLIENT, "app=web".parse().unwrap(), Arc::new([]));
    links.insert(INSTANCE, "app=api,kind=http".parse().unwrap(), Arc::new([]));
    links
}

fn policy(rest: &str) -> Arc<Policy> {
    let text = format!(
        "network: shop\nservices:\n  - {{ name: api, for: {{ app: api }}, ports: [{{ port: 80 }}] }}\n  \
         - {{ name: all, for: {{ app: api }}, ports: [{{ port: 81 }}], fan_out: all }}\n{rest}"
    );
    Arc::new(Policy::parse(&text).unwrap())
}

fn narrowed(links: &Links) -> Option<String> {
    let services = links.narrowed(CLIENT, INSTANCE)?;
    Some(services.iter().map(ToString::to_string).collect::<Vec<_>>().join(","))
}

const BY_SERVICE: &str = "  - { name: a, from: { app: web }, to: { service: api } }\n";
const BY_LABELS: &str = "  - { name: b, from: { app: web }, to: { kind: http }, allow: [tcp/9] }\n";

#[test]
fn a_link_is_narrowed_if_rules_about_services_alone_open_it() {
    let rules = |rules: &str| format!("rules:\n{rules}");
    assert_eq!(narrowed(&links(&rules(BY_SERVICE))).as_deref(), Some("api"));
    assert_eq!(narrowed(&links(&rules(&format!("{BY_SERVICE}{BY_LABELS}")))), None);
    assert_eq!(narrowed(&links("")), None, "there is no link");
    let denied = "  - { name: c, from: { app: web }, to: { app: api }, deny: [udp/1] }\n";
    let some = links(&rules(&format!("{BY_SERVICE}{denied}")));
    assert_eq!(narrowed(&some).as_deref(), Some("api"), "what denies opens nothing");
    let to_all = "  - { name: d, from: { app: web }, to: { service: all } }\n";
    assert_eq!(narrowed(&links(&rules(&format!("{BY_SERVICE}{to_all}")))), None);
    assert_eq!(narrowed(&links(&format!("mode: observe\nrules:\n{BY_SERVICE}"))), None);
}

#[test]
fn links_are_narrowed_alike_whether_rules_or_identities_come_first() {
    let both = format!("rules:\n{BY_SERVICE}{BY_LABELS}");
    let one = format!("rules:\n{BY_SERVICE}");
    let mut links = links(&both);
    for (rest, expected) in [(&one, Some("api")), (&both, None), (&one, Some("api"))] {
        let step = links.step(policy(rest));
        links.apply_step(&step);
        assert_eq!(narrowed(&links).as_deref(), expected);
    }
    links.remove(INSTANCE);
    assert_eq!(narrowed(&links), None);
    assert_eq!(links.all_narrowed().count(), 0);
    links.insert(INSTANCE, "app=api".parse().unwrap(), Arc::new([]));
    assert_eq!(narrowed(&links).as_deref(), Some("api"));
    assert!(!links.are_widely_linked(CLIENT, INSTANCE));
}
