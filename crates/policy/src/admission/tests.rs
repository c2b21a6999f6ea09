use super::*;
use crate::admission_rules::{ImagePattern, P256};
use base64::{Engine, prelude::BASE64_STANDARD};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};

struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
                .unwrap();
        Self(
            EcdsaKeyPair::from_pkcs8(
                &ECDSA_P256_SHA256_ASN1_SIGNING,
                pkcs8.as_ref(),
                &SystemRandom::new(),
            )
            .unwrap(),
        )
    }

    fn pem(&self) -> String {
        let der = [&P256[..], self.0.public_key().as_ref()].concat();
        format!(
            "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
            BASE64_STANDARD.encode(der)
        )
    }

    fn sign(&self, name: &str, digest: &Sha256) -> ImageSignature {
        let payload = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{name}"}},
            "image":{{"docker-manifest-digest":"{digest}"}},
            "type":"cosign container image signature"}},"optional":null}}"#
        );
        let signature = self.0.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
        ImageSignature { signature: BASE64_STANDARD.encode(signature.as_ref()), payload }
    }
}

fn image(name: &str, content: &str) -> Image {
    Image {
        repository: Some(Repository::of_reference(name).unwrap()),
        digest: Sha256::of(content.as_bytes()),
    }
}

fn measured(image: Image) -> Measurement {
    Measurement {
        runtime: "docker".into(),
        images: vec![image],
        config: Sha256::of(b"c"),
        privileges: vec![],
        sharing: vec![],
    }
}

fn sharing(name: &str, image: Option<Image>) -> SharingContainer {
    let config = Sha256::of(name.as_bytes());
    SharingContainer { name: name.into(), image, config, privileges: vec![], objection: None }
}

fn policy(text: &str) -> Policy {
    Policy::parse(&format!("network: shop\n{text}")).unwrap()
}

fn evaluate(
    policy: &Policy,
    labels: &str,
    measurement: Option<&Measurement>,
    signatures: &[ImageSignature],
) -> AdmissionDecision {
    let node = "rack".parse().unwrap();
    let labels = labels.parse().unwrap();
    let candidate = Candidate {
        labels: &labels,
        site: Some("dc1"),
        node: &node,
        measurement,
        prefixes: &[],
        is_egress_gateway: false,
    };
    policy
        .evaluate(&candidate, policy.speaks_of_nodes(), |image| policy.signers(image, signatures))
        .unwrap()
}

fn signed_policy(signer: &Signer) -> Policy {
    let pem = signer.pem().replace('\n', "\n    ");
    policy(&format!(
        "keys:\n  release: |\n    {pem}\nadmission:\n  - {{ name: web, for: {{ app: web }}, \
        images: [registry.example/shop/*], signed_by: [release] }}\n"
    ))
}

#[test]
fn an_image_that_is_signed_by_the_right_key_under_its_name_is_let_in() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let policy = signed_policy(&signer);
    let web = measured(image("registry.example/shop/web", "web"));
    let digest = web.images[0].digest;
    let right = signer.sign("registry.example/shop/web:1.0", &digest);
    let decision = evaluate(&policy, "app=web", Some(&web), std::slice::from_ref(&right));
    assert_eq!(decision.reasons, Vec::<String>::new());
    assert_eq!(decision.labels.get("meshward/image.signed-by"), Some("release"));
    assert_eq!(decision.labels.get("meshward/image.repo"), Some("registry.example/shop/web"));
    assert_eq!(decision.labels.get("meshward/site"), Some("dc1"));
    assert_eq!(decision.labels.get("meshward/node"), None, "the policy does not speak of nodes");

    let tampered =
        ImageSignature { payload: right.payload.replace("null", "true"), ..right.clone() };
    for wrong in [
        vec![],
        vec![stranger.sign("registry.example/shop/web", &digest)],
        vec![signer.sign("registry.example/shop/web", &Sha256::of(b"other"))],
        vec![signer.sign("registry.example/shop/api", &digest)],
        vec![tampered],
    ] {
        let decision = evaluate(&policy, "app=web", Some(&web), &wrong);
        assert!(
            decision.reasons[0].contains("no valid signature by release"),
            "{:?}",
            decision.reasons
        );
        assert_eq!(decision.labels.get("meshward/image.signed-by"), None);
    }
}

#[test]
fn a_rule_speaks_of_what_it_selects_and_every_such_rule_must_be_content() {
    let policy = signed_policy(&Signer::new());
    let other = measured(image("elsewhere.example/web", "web"));
    assert_eq!(evaluate(&policy, "app=web", Some(&other), &[]).reasons.len(), 2);
    assert_eq!(evaluate(&policy, "app=db", Some(&other), &[]).reasons.len(), 0);
    let process = evaluate(&policy, "app=web", None, &[]);
    assert!(process.reasons[0].contains("no container runtime"), "{:?}", process.reasons);
}

#[test]
fn privileges_and_set_up_must_be_the_expected_ones() {
    let config = Sha256::of(b"c");
    let policy = policy(&format!(
        "admission:\n  - {{ name: plain }}\n  - {{ name: fixed, for: {{ meshward/node: rack }}, \
        config: ['{config}'], privileges: [capability NET_ADMIN] }}\n"
    ));
    assert!(policy.speaks_of_nodes());
    let mut web = measured(image("web", "web"));
    let decision = evaluate(&policy, "app=web", Some(&web), &[]);
    assert_eq!((decision.reasons.len(), decision.labels.get("meshward/node")), (0, Some("rack")));
    web.privileges = vec!["capability NET_ADMIN".into()];
    assert_eq!(
        evaluate(&policy, "", Some(&web), &[]).reasons,
        ["plain: it has privileges that are not listed: capability NET_ADMIN"]
    );
    web = Measurement { privileges: vec![], config: Sha256::of(b"other"), ..web };
    assert!(
        evaluate(&policy, "", Some(&web), &[]).reasons[0]
            .starts_with("fixed: it is set up in another way")
    );
    assert!(evaluate(&policy, "", None, &[]).reasons[0].starts_with("fixed: it is a process"));
}

#[test]
fn what_shares_a_namespace_has_to_be_what_the_workload_has_to_be() {
    let signer = Signer::new();
    let policy = signed_policy(&signer);
    let (own, other) =
        (image("registry.example/shop/web", "web"), image("elsewhere.example/debug", "d"));
    let signatures = [signer.sign("registry.example/shop/web", &own.digest)];
    let alone = measured(own.clone());
    assert!(evaluate(&policy, "app=web", Some(&alone), &signatures).reasons.is_empty());

    let with = |sharing: Vec<SharingContainer>| Measurement { sharing, ..alone.clone() };
    let twin = with(vec![sharing("twin", Some(own))]);
    let decision = evaluate(&policy, "app=web", Some(&twin), &signatures);
    assert!(decision.reasons.is_empty(), "{:?}", decision.reasons);
    assert_eq!(decision.labels.get("meshward/image.signed-by"), Some("release"));

    let debug = with(vec![sharing("debug", Some(other))]);
    let decision = evaluate(&policy, "app=web", Some(&debug), &signatures);
    assert_eq!(decision.reasons.len(), 2, "{:?}", decision.reasons);
    for reason in &decision.reasons {
        assert!(
            reason.starts_with("web: container debug (elsewhere.example/debug@sha256:"),
            "{reason}"
        );
    }
    for fact in ["meshward/image.signed-by", "meshward/image.repo"] {
        assert_eq!(decision.labels.get(fact), None, "no fact about all of it");
    }
    assert!(
        evaluate(&policy, "app=db", Some(&debug), &signatures).reasons.is_empty(),
        "no rule speaks of it"
    );

    let early = with(vec![sharing("late", None)]);
    let decision = evaluate(&policy, "app=web", Some(&early), &signatures);
    assert!(
        decision.reasons[0].contains("container late")
            && decision.reasons[0].contains("not known yet")
    );
    let none = Measurement { images: vec![], ..early };
    assert_eq!(evaluate(&policy, "app=web", Some(&none), &signatures).reasons.len(), 2);
    assert_eq!(
        evaluate(&policy, "app=web", Some(&none), &signatures).labels.get("meshward/image.repo"),
        None
    );
}

#[test]
fn a_rule_may_allow_what_shares_a_namespace_and_speaks_for_itself_alone() {
    let strict = "{ name: plain, for: { tier: front } }";
    let lax = "{ name: ours, for: { app: web }, images: [registry.example/*], shared: allow }";
    let policy = policy(&format!("admission: [{strict}, {lax}]\n"));
    let mut web = measured(image("registry.example/shop/web", "web"));
    let mut debug = sharing("debug", Some(image("elsewhere.example/debug", "d")));
    debug.privileges = vec!["privileged".into()];
    web.sharing = vec![debug.clone()];
    assert!(evaluate(&policy, "app=web", Some(&web), &[]).reasons.is_empty());
    assert_eq!(
        evaluate(&policy, "app=web,tier=front", Some(&web), &[]).reasons.len(),
        1,
        "another rule has to be content as well"
    );
    web.images[0] = image("elsewhere.example/web", "web");
    assert_eq!(
        evaluate(&policy, "app=web", Some(&web), &[]).reasons.len(),
        1,
        "itself, it is decision"
    );

    web.images.clear();
    debug.objection = Some("it cannot be measured".into());
    let unclear = Measurement { sharing: vec![debug], ..measured(image("registry.example/a", "")) };
    assert!(evaluate(&policy, "app=web", Some(&unclear), &[]).reasons.is_empty());
    let closed = evaluate(&policy, "app=db", Some(&unclear), &[]).reasons;
    assert!(closed[0].starts_with("container debug (elsewhere.example/debug@"), "{closed:?}");
    assert!(closed[0].ends_with("it cannot be measured"), "{closed:?}");
}

#[test]
fn patterns_take_what_is_below_them_and_nothing_else() {
    for (pattern, taken, not_taken) in [
        ("registry.example/*", "registry.example/a/b", "registry.example.evil/a"),
        ("registry.example/shop/*", "registry.example/shop/web", "registry.example/shopping/web"),
        ("shop/web", "docker.io/shop/web", "docker.io/shop/webs"),
        ("nginx", "docker.io/library/nginx", "docker.io/nginx/nginx"),
    ] {
        let pattern: ImagePattern = pattern.parse().unwrap();
        assert!(pattern.matches(&image(taken, "")), "{pattern}");
        assert!(!pattern.matches(&image(not_taken, "")), "{pattern}");
        assert!(!pattern.matches(&Image { repository: None, digest: Sha256::of(b"") }));
    }
    assert!(ImagePattern::Any.matches(&Image { repository: None, digest: Sha256::of(b"") }));
    assert!("a b/*".parse::<ImagePattern>().is_err());
}

#[test]
fn a_mistake_in_admission_is_named_with_its_mend() {
    let said =
        |text: &str| Policy::parse(&format!("network: shop\n{text}")).unwrap_err().to_string();
    let unknown = said("admission: [{ name: a, signed_by: [relase] }]");
    assert!(unknown.contains("policy:2:36: no key is called `relase`"), "{unknown}");
    assert!(said("keys: { a: nonsense }").contains("BEGIN PUBLIC KEY"));
    assert!(said("admission: [{ name: a, config: ['sha256:1'] }]").contains("64 hexadecimal"));
    assert!(said("admission: [{ name: a, images: ['a b/*'] }]").contains("is no pattern"));
    assert!(said("admission: [{ name: a, imges: [] }]").contains("imges"));
    let shared = said("admission: [{ name: a, shared: maybe }]");
    assert!(shared.contains("maybe") && shared.contains("allow"), "{shared}");
}

#[test]
fn an_egress_gateway_is_verified_and_approved_by_rules_that_name_its_prefixes() {
    let prefixes = ["0.0.0.0/0".parse().unwrap()];
    let (labels, node) = ("role=out".parse().unwrap(), "gw1".parse().unwrap());
    let candidate = Candidate {
        labels: &labels,
        site: None,
        node: &node,
        measurement: None,
        prefixes: &prefixes,
        is_egress_gateway: true,
    };
    let evaluate = |within: &str| {
        let text = format!("routes: [{{ name: out, within: [{within}] }}]");
        policy(&text).evaluate(&candidate, false, |_| vec![]).unwrap()
    };
    let halves = evaluate("0.0.0.0/1, 128.0.0.0/1");
    assert!(halves.reasons[0].contains("`meshctl egress approve gw1`"), "{:?}", halves.reasons);
    let decision = evaluate("0.0.0.0/0");
    assert_eq!(decision.reasons, Vec::<String>::new());
    assert_eq!(decision.labels.to_string(), "meshward/route=egress,role=out");
}
