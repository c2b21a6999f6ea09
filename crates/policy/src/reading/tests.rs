use super::*;
use crate::document::{Action, Expect, Mode};
use std::fmt::Write;

const SHOP: &str = "
network: shop
rules:
  - name: web-to-api
    from: { app: web }
    to:   { app: api, env: { in: [prod, stage] } }
    allow: [tcp/8080, icmp]
guardrails:
  - name: dev-never-reaches-prod
    from: { env: dev }
    to:   { env: prod }
    deny: [any]
tests:
  - { from: { app: web }, to: { app: db }, port: tcp/5432, expect: deny }
";

fn file(name: &str, text: &str) -> PolicyFile {
    PolicyFile { name: name.into(), text: text.into() }
}

#[test]
fn the_language_of_the_design_page_is_read() {
    let policy = Policy::parse(SHOP).unwrap();
    assert_eq!(policy.rules[0].allow.len(), 2);
    assert_eq!(policy.guardrails[0].action(), Action::Deny);
    assert_eq!(policy.tests[0].expect, Expect::Deny);
}

#[test]
fn a_mistake_is_named_with_its_place_and_its_mend() {
    for (find, replace, says) in [
        (
            "tcp/8080",
            "tpc/8080",
            "policy:7:13: `tpc/8080` is not a port: no protocol is called `tpc`",
        ),
        ("tcp/8080", "tpc/8080", "did you mean `tcp`?"),
        ("allow: [tcp/8080, icmp]", "alow: [tcp/8080]", "alow"),
        ("in: [prod, stage]", "in: []", "empty list"),
        ("expect: deny", "expect: maybe", "maybe"),
        ("{ app: web }\n    to", "webs\n    to", "no selector is called `webs`"),
    ] {
        let text = SHOP.replace(find, replace);
        assert_ne!(text, SHOP, "{find}");
        let error = Policy::parse(&text).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert!(error.starts_with("policy:") && !error.contains(" at line "), "{error}");
    }
}

#[test]
fn a_rule_does_one_thing_under_a_name_of_its_own() {
    let said = |text: &str| Policy::parse(text).unwrap_err().to_string();
    let neither = SHOP.replace("    allow: [tcp/8080, icmp]\n", "");
    assert!(said(&neither).contains("either `allow` or `deny`"));
    let twice = SHOP.replace("dev-never-reaches-prod", "web-to-api");
    assert!(
        said(&twice).contains("policy:9:11: there is a `web-to-api` already, at policy:4:11"),
        "{}",
        said(&twice)
    );
    let observed = SHOP.replace("icmp]", "icmp]\n    observe: true");
    assert!(said(&observed).contains("nothing to observe"));
}

#[test]
fn a_rule_allows_domain_names_and_denies_none() {
    let policy = |rule: &str| {
        let head = "network: shop\nrules:\n  - { name: a, from: {}, to: ";
        Policy::parse(&format!("{head}{rule} }}\n")).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(policy("{ dns: [example.com, \"*.example.com\"] }, allow: [tcp/443]"), Ok(()));
    for to in ["{ dns: \"*\" }", "{ dns: [a.example], cidr: 192.0.2.1 }"] {
        let said = policy(&format!("{to}, deny: [any]")).unwrap_err();
        assert!(said.contains("policy:3:5: a rule cannot deny domain names"), "{said}");
    }
}

#[test]
fn files_and_documents_of_a_network_are_one_policy_and_share_their_sets() {
    let sets =
        "network: shop\nports: { web: [tcp/80, tcp/443] }\nselectors: { front: { app: web } }\n";
    let use_of = "network: shop\n\
        rules: [{ name: a, from: front, to: { app: api }, allow: [web, icmp] }]\n---\n\
        network: lab\nmode: observe\n";
    let all = read(&[file("sets.yaml", sets), file("b.yaml", use_of)]).unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!((all[0].policy.network.as_str(), all[0].policy.mode), ("lab", Mode::Observe));
    let rule = &all[1].policy.rules[0];
    assert_eq!((rule.from.to_string().as_str(), rule.allow.len()), ("app=web", 3));
    assert_eq!(all[1].named["a"].to_string(), "b.yaml:2:17");
    let error =
        read(&[file("a.yaml", use_of), file("b.yaml", "network: shop\nports: { wob: [tcp/80] }")])
            .unwrap_err();
    assert_eq!(error.0.len(), 2, "{error}");
    assert!(error.to_string().contains("did you mean `wob`?"), "{error}");
}

#[test]
fn settings_and_sets_are_said_once() {
    let one = "network: shop\nmode: observe\nports: { web: [tcp/80] }";
    let other = "network: shop\nmode: enforce\nports: { web: [tcp/81] }";
    let error = read(&[file("a", one), file("b", other)]).unwrap_err();
    assert_eq!(error.0.len(), 2, "{error}");
    assert!(
        read(&[file("a", "network: shop\nports: { tcp: [tcp/80] }")])
            .unwrap_err()
            .to_string()
            .contains("is a protocol")
    );
}

#[test]
fn triggers_are_read_and_checked() {
    let text = |then: &str| {
        format!(
            "network: shop\n\
            triggers: [{{ name: scan, when: {{ denied_flows: 20, distinct_ports: 10, within: 10s \
            }}, then: {then}, for: 10m }}]"
        )
    };
    let policy = Policy::parse(&text("quarantine")).unwrap();
    assert_eq!(
        policy.triggers[0].lasts,
        Some(meshward_types::Lasting(std::time::Duration::from_mins(10)))
    );
    assert!(Policy::parse(&text("{ label: { suspect: yes } }")).is_ok());
    for (then, says) in
        [("{ label: {} }", "gives no label"), ("{ webhook: x }", "is no URL"), ("sleep", "sleep")]
    {
        let error = Policy::parse(&text(then)).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
    let nothing = text("quarantine").replace("denied_flows: 20, distinct_ports: 10, ", "");
    assert!(Policy::parse(&nothing).unwrap_err().to_string().contains("denied_flows"));
}

#[test]
fn hostile_yaml_is_refused() {
    let bomb = "a: &a [x,x,x,x]\nb: &b [*a,*a,*a,*a]\nnetwork: shop";
    assert!(Policy::parse(bomb).is_err());
    assert!(Policy::parse(&"[".repeat(100_000)).is_err());
    assert!(Policy::parse("").is_err());
}

#[test]
fn all_mistakes_are_told_at_once_each_in_its_place() {
    let text = "network: shop
mode: watch
selectors: { front: { app: [] }, back: { app: api } }
rules:
  - name: one
    from: { app: web }
    to: bak
    alow: [tcp/80]
  - { name: two, from: {}, to: 7, allow: [tpc/80, udp/99999, tcp/1], observe: maybe }
  - { from: {}, to: {}, allow: [any] }
  - just text
guardrails: none
tests:
  - { from: { app: web }, to: [], port: tcp/x, expect: perhaps }
triggers: [{ name: t, when: { denied_flows: many, within: soon }, then: sleep }]
routes: [{ name: r, within: [10.8.0.0/99] }]
rules: []
---
networks: lab
---
network: lab
rules: [
";
    let found = Policy::parse(text).unwrap_err();
    let said = found.to_string();
    for expected in [
        "policy:2:7: `watch` is not known here; write `enforce`, `observe`",
        "policy:3:",
        "policy:7:9: no selector is called `bak`; did you mean `back`?",
        "policy:8:5: `alow` is not known here; did you mean `allow`?",
        "policy:5:5: rule `one` must have either `allow` or `deny`",
        "policy:9:32: no selector is called `7`",
        "policy:9:43: `tpc/80` is not a port",
        "policy:9:51: ",
        "policy:9:79: a boolean was expected here, not `maybe`",
        "policy:10:5: `name` is missing in a rule",
        "policy:11:5: a rule is written with `name`, `from`",
        "policy:12:13: `guardrails` is a list; `none` stands here",
        "policy:14:31: ",
        "policy:14:41: ",
        "policy:14:56: `perhaps` is not known here; write `allow`, `deny`",
        "policy:15:45: ",
        "policy:15:73: `sleep` is not known here; write `quarantine`, `label`, `webhook`",
        "policy:16:30: `10.8.0.0/99` is no prefix",
        "policy:17:1: `rules` stands here twice",
        "policy:19:1: `networks` is not known here; did you mean `network`?",
        "policy:19:1: `network` is missing in a policy",
        "this is not YAML",
    ] {
        assert!(said.contains(expected), "{expected}\nis not in\n{said}");
    }
    assert!(found.0.is_sorted(), "in their order");
}

#[test]
fn four_mebibytes_are_read_and_more_are_refused_with_what_to_do() {
    let mut text = "network: shop\nrules:\n".to_owned();
    let mut at = 0;
    while text.len() < MAX_SOURCE - 100 {
        let (from, to) = ("{ a: b }", "{ c: d }");
        writeln!(text, "- {{ name: r{at}, from: {from}, to: {to}, allow: [tcp/1, udp/2] }}")
            .unwrap();
        at += 1;
    }
    assert_eq!(Policy::parse(&text).unwrap().rules.len(), at);
    let refused = Policy::parse(&text.repeat(2)).unwrap_err().to_string();
    assert!(refused.contains("4194304 are taken; make several networks"), "{refused}");
}

#[test]
fn what_names_and_aliases_repeat_is_bounded() {
    let ports: Vec<String> = (1..=1000).map(|port| format!("tcp/{port}")).collect();
    let mut text = format!("network: shop\nports: {{ many: [{}] }}\nrules:\n", ports.join(", "));
    for at in 0..1001 {
        writeln!(text, "- {{ name: r{at}, from: {{}}, to: {{}}, allow: [many] }}").unwrap();
    }
    let refused = Policy::parse(&text).unwrap_err();
    assert_eq!(refused.0.len(), 1, "said once");
    assert!(refused.to_string().contains("name more than 1000000 ports"), "{refused}");
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x]\n".to_owned();
    for at in 1..12 {
        let before = format!("*a{}", at - 1);
        writeln!(bomb, "a{at}: &a{at} [{}]", [before.as_str(); 8].join(", ")).unwrap();
    }
    let refused = Policy::parse(&bomb).unwrap_err().to_string();
    assert!(refused.contains("values, with what aliases repeat"), "{refused}");
    let deep = format!("network: {}{}", "[".repeat(65), "]".repeat(65));
    assert!(Policy::parse(&deep).unwrap_err().to_string().contains("more than 64 deep"));
    assert!(Policy::parse(&format!("network: {}", "[".repeat(100_000))).is_err());
}

#[test]
fn a_number_as_a_label_is_the_text_that_was_written() {
    let policy = Policy::parse(
        "network: shop\n\
        rules: [{ name: a, from: { v: 007, w: 7, x: 1.0 }, to: { on: true }, allow: [any] }]",
    )
    .unwrap();
    assert_eq!(policy.rules[0].from.to_string(), "v=007,w=7,x=1.0");
    assert_eq!(policy.rules[0].to.to_string(), "on=true");
}
