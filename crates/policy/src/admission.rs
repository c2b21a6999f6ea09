//! Admission: which workloads are let into a network, by what their nodes have measured.
//!
//! A rule speaks of the workloads that it selects, by labels that their owners declared or that are
//! verified. A workload is let in if every rule that selects it is content. So whoever wants to be
//! `app=web` has to be what that takes, and whoever does not say so gets nothing of what policy
//! gives `app=web`.

use crate::document::Policy;
use base64::{Engine, prelude::BASE64_STANDARD};
use ipnet::IpNet;
use meshward_types::{
    Labels, NodeName, Selector,
    labels::{BadLabel, RESERVED_PREFIX},
    measurement::{
        Image, ImageSignature, MAX_SIGNED, Measurement, Repository, Sha256, SharingContainer,
    },
};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::{SubjectPublicKeyInfoDer, pem::PemObject};
use serde::{Deserialize, Serialize, Serializer};
use std::{collections::BTreeMap, fmt, str::FromStr};

/// The fact that names the node. It stands only in networks whose policy speaks of it: every node
/// would otherwise have identities of its own.
const NODE: &str = "meshward/node";

/// The most signatures of one image that are looked at: verified ones, and those that nodes report.
pub const MAX_LOOKED_AT: usize = 96;

/// One rule of admission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdmissionRule {
    /// Its name, unique in the policy.
    pub name: String,
    /// The workloads that it speaks of; all if it is empty.
    #[serde(rename = "for", skip_serializing_if = "Selector::is_empty")]
    pub who: Selector,
    /// Where their images may come from; anywhere if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImagePattern>,
    /// The keys, of which one must have signed each image; none if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub signed_by: Vec<String>,
    /// How they may be set up; in any way if there is none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub config: Vec<Sha256>,
    /// What they may do that a container usually may not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub privileges: Vec<String>,
    /// What becomes of containers that share their network namespace.
    #[serde(skip_serializing_if = "Shared::is_judged")]
    pub shared: Shared,
}

/// What a rule of admission makes of the containers that share the network namespace of a workload:
/// what they send is the workload's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shared {
    /// They have to be what the workload has to be.
    #[default]
    Judge,
    /// They may be anything.
    Allow,
}

impl Shared {
    fn is_judged(&self) -> bool {
        *self == Self::Judge
    }
}

/// Repositories: one by name, or with `/*` at its end all below it; `*` is every image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImagePattern {
    /// Every image, those that were never in a registry included.
    Any,
    /// Everything below a registry or a path in it, which ends with `/`.
    Below(String),
    /// One repository.
    One(Repository),
}

impl ImagePattern {
    fn takes(&self, image: &Image) -> bool {
        match (self, &image.repository) {
            (Self::Any, _) => true,
            (Self::Below(prefix), Some(repository)) => {
                repository.as_str().starts_with(prefix.as_str())
            }
            (Self::One(one), Some(repository)) => one == repository,
            (_, None) => false,
        }
    }
}

impl FromStr for ImagePattern {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "*" {
            return Ok(Self::Any);
        }
        let Some(prefix) = text.strip_suffix("/*") else {
            return Repository::of_reference(text)
                .map(Self::One)
                .map_err(|error| error.to_string());
        };
        // Read as if it went on, so that what it begins with is read as a registry where that is
        // meant.
        let whole = Repository::of_reference(&format!("{prefix}/x")).map_err(|_| {
            format!("`{text}` is no pattern: write REGISTRY/PATH, REGISTRY/PATH/* for all below it, or *")
        })?;
        Ok(Self::Below(whole.as_str().trim_end_matches('x').to_owned()))
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(prefix) => write!(f, "{prefix}*"),
            Self::One(repository) => write!(f, "{repository}"),
        }
    }
}

impl Serialize for ImagePattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A key that signs images: ECDSA on P-256, as cosign and skopeo make them.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningKey {
    pem: String,
    /// The point, uncompressed (SEC 1 §2.3.3).
    point: Vec<u8>,
}

/// What stands in front of an uncompressed point on P-256 in a SubjectPublicKeyInfo (RFC 5480 §2).
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

impl FromStr for SigningKey {
    type Err = String;
    fn from_str(pem: &str) -> Result<Self, String> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()).map_err(|_| {
            "this is no public key: put in the whole PEM text, from -----BEGIN PUBLIC KEY----- on (`cosign public-key`, or the .pub file)"
        })?;
        match der.as_ref().strip_prefix(&P256) {
            Some(point) if point.len() == 65 && point[0] == 4 => {
                Ok(Self { pem: pem.trim().to_owned(), point: point.to_vec() })
            }
            _ => Err("this is no key on P-256: image signatures of cosign and skopeo are made with ECDSA P-256 keys".into()),
        }
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", Sha256::of(&self.point))
    }
}

impl Serialize for SigningKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.pem)
    }
}

impl SigningKey {
    /// Whether a signature is by this key.
    fn signed(&self, signature: &ImageSignature) -> bool {
        let Ok(bytes) = BASE64_STANDARD.decode(&signature.signature) else { return false };
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point);
        key.verify(signature.payload.as_bytes(), &bytes).is_ok()
    }
}

#[derive(Deserialize)]
struct Payload {
    critical: Critical,
}

#[derive(Deserialize)]
struct Critical {
    identity: SignedName,
    image: SignedImage,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SignedName {
    docker_reference: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct SignedImage {
    docker_manifest_digest: Sha256,
}

/// Whether a signature's payload (containers-signature(5)) is about an image. The name counts, too:
/// an image that was signed as one thing is not let in as another.
fn is_about(signature: &ImageSignature, image: &Image) -> bool {
    if signature.payload.len() > MAX_SIGNED || signature.signature.len() > MAX_SIGNED {
        return false;
    }
    let Ok(Payload { critical }) = serde_json::from_str::<Payload>(&signature.payload) else {
        return false;
    };
    let name = Repository::of_reference(&critical.identity.docker_reference).ok();
    critical.kind == "cosign container image signature"
        && critical.image.docker_manifest_digest == image.digest
        && name.is_some()
        && name == image.repository
}

/// Who wants to be let in.
pub struct Candidate<'a> {
    /// What its owner declared, and what a trigger gave it.
    pub labels: &'a Labels,
    /// The site of its node.
    pub site: Option<&'a str>,
    /// Its node.
    pub node: &'a NodeName,
    /// What its node has measured; nothing for a process that no container runtime runs.
    pub measurement: Option<&'a Measurement>,
    /// The prefixes behind it that nobody has approved by hand.
    pub prefixes: &'a [IpNet],
}

/// What comes out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// What policy sees of the workload: its labels and what is verified.
    pub labels: Labels,
    /// Why it is not let in; it is, if there is nothing.
    pub reasons: Vec<String>,
}

impl Policy {
    /// The keys that have signed an image, by name. Of many signatures, the first [`MAX_LOOKED_AT`]
    /// are looked at.
    pub fn signers<'a>(
        &self,
        image: &Image,
        signatures: impl IntoIterator<Item = &'a ImageSignature>,
    ) -> Vec<String> {
        let about = signatures.into_iter().take(MAX_LOOKED_AT).filter(|one| is_about(one, image));
        let about: Vec<&ImageSignature> = about.collect();
        let signed = |key: &SigningKey| about.iter().any(|signature| key.signed(signature));
        self.keys.iter().filter(|(_, key)| signed(key)).map(|(name, _)| name.clone()).collect()
    }

    /// Whether one of the keys has made a signature of an image.
    pub fn verifies(&self, image: &Image, signature: &ImageSignature) -> bool {
        is_about(signature, image) && self.keys.values().any(|key| key.signed(signature))
    }

    /// Whether any part of the policy speaks of nodes.
    pub fn speaks_of_nodes(&self) -> bool {
        let in_rules =
            self.rules.iter().chain(&self.guardrails).flat_map(|rule| [&rule.from, &rule.to]);
        let in_triggers = self.triggers.iter().map(|trigger| &trigger.watch);
        let in_admission = self.admission.iter().map(|rule| &rule.who);
        let in_routes = self.routes.iter().map(|rule| &rule.who);
        let in_forensics = self.forensics.iter().flat_map(|own| [&own.rule.from, &own.rule.to]);
        let in_rules = in_rules.chain(in_forensics);
        let mut selectors = in_rules.chain(in_triggers).chain(in_admission).chain(in_routes);
        selectors.any(|selector| selector.requirements().any(|(key, _)| key.as_str() == NODE))
    }

    /// Whether a workload is judged alike by this policy and another.
    pub fn admits_like(&self, other: &Self) -> bool {
        self.admission == other.admission
            && self.routes == other.routes
            && self.keys == other.keys
            && self.speaks_of_nodes() == other.speaks_of_nodes()
    }

    /// Judges a workload. `signers`: the names of the keys that have signed an image; `name_node`:
    /// whether the node is among its labels ([`Self::speaks_of_nodes`]).
    ///
    /// # Errors
    /// If the labels are too many with the verified ones.
    pub fn judge(
        &self,
        candidate: &Candidate,
        name_node: bool,
        mut signers: impl FnMut(&Image) -> Vec<String>,
    ) -> Result<Judgement, BadLabel> {
        let images = candidate.measurement.map_or(&[][..], |measured| &measured.images);
        let sharing = candidate.measurement.map_or(&[][..], |measured| &measured.sharing);
        let signed: Vec<Vec<String>> = images.iter().map(&mut signers).collect();
        let signed_sharing: Vec<Vec<String>> = sharing
            .iter()
            .map(|other| other.image.as_ref().map(&mut signers).unwrap_or_default())
            .collect();
        let labels = facts(candidate, name_node, &signed, &signed_sharing)?;
        let mut reasons = Vec::new();
        let rules: Vec<_> =
            self.admission.iter().filter(|rule| rule.who.matches(&labels)).collect();
        for rule in &rules {
            let own = candidate.measurement.map(|measured| Subject::of(measured, &signed));
            let objections = rule.objections(own.as_ref());
            reasons.extend(objections.into_iter().map(|text| format!("{}: {text}", rule.name)));
            if rule.shared == Shared::Allow {
                continue;
            }
            for (other, signers) in sharing.iter().zip(&signed_sharing) {
                let objections = rule.objections(Some(&Subject::sharing(other, signers)));
                let called = called(other);
                reasons.extend(
                    objections.into_iter().map(|text| format!("{}: {called}: {text}", rule.name)),
                );
            }
        }
        if rules.iter().all(|rule| rule.shared == Shared::Judge) {
            let objections =
                sharing.iter().filter_map(|other| Some((called(other), other.objection.as_ref()?)));
            reasons.extend(objections.map(|(called, text)| format!("{called}: {text}")));
        }
        for prefix in candidate.prefixes {
            if !self.routes.iter().any(|rule| rule.approves(&labels, prefix)) {
                reasons.push(format!(
                    "the prefix {prefix} is not approved: `meshctl route approve {prefix} --node {}` does that, or a rule under `routes:` in the policy",
                    candidate.node
                ));
            }
        }
        Ok(Judgement { labels, reasons })
    }
}

/// What a rule looks at.
struct Subject<'a> {
    /// Its images, and the keys that have signed each.
    images: Vec<(&'a Image, &'a [String])>,
    config: &'a Sha256,
    privileges: &'a [String],
}

impl<'a> Subject<'a> {
    fn of(measured: &'a Measurement, signed: &'a [Vec<String>]) -> Self {
        let images = measured.images.iter().zip(signed.iter().map(Vec::as_slice)).collect();
        Self { images, config: &measured.config, privileges: &measured.privileges }
    }

    fn sharing(other: &'a SharingContainer, signers: &'a [String]) -> Self {
        let images = other.image.iter().map(|image| (image, signers)).collect();
        Self { images, config: &other.config, privileges: &other.privileges }
    }
}

fn called(other: &SharingContainer) -> String {
    match &other.image {
        Some(image) => {
            format!("container {} ({image}), which shares its network namespace", other.name)
        }
        None => format!("container {}, which shares its network namespace", other.name),
    }
}

/// The labels, and what is verified: of its images what holds for all that is in its network
/// namespace.
fn facts(
    candidate: &Candidate,
    name_node: bool,
    signed: &[Vec<String>],
    signed_sharing: &[Vec<String>],
) -> Result<Labels, BadLabel> {
    let mut labels = candidate.labels.clone();
    let mut add = |fact: &str, value: &str| -> Result<(), BadLabel> {
        labels = std::mem::take(&mut labels).with_fact(fact, value)?;
        Ok(())
    };
    if let Some(site) = candidate.site {
        add("site", site)?;
    }
    if name_node {
        add(NODE.trim_start_matches(RESERVED_PREFIX), candidate.node.as_str())?;
    }
    let Some(measured) = candidate.measurement else { return Ok(labels) };
    if measured.sharing.iter().any(|other| other.image.is_none()) {
        return Ok(labels);
    }
    if let Some(first) = measured.images.first() {
        if let Some(repository) = &first.repository
            && measured.all_images().all(|image| image.repository == first.repository)
        {
            add("image.repo", repository.as_str())?;
        }
        let of_all = signed.first().into_iter().flatten();
        let all = signed.iter().chain(signed_sharing);
        let mut of_all = of_all.filter(|key| all.clone().all(|keys| keys.contains(key)));
        if let Some(key) = of_all.next() {
            add("image.signed-by", key)?;
        }
    }
    Ok(labels)
}

impl AdmissionRule {
    fn objections(&self, measured: Option<&Subject>) -> Vec<String> {
        let wants_image =
            !(self.images.is_empty() && self.signed_by.is_empty() && self.config.is_empty());
        let Some(measured) = measured else {
            let text = "it is a process that no container runtime runs, so it has no image that could be checked";
            return if wants_image { vec![text.to_owned()] } else { vec![] };
        };
        let mut objections = Vec::new();
        if wants_image && measured.images.is_empty() {
            objections.push("it has not started, so its image is not known yet".to_owned());
        }
        for (image, signers) in &measured.images {
            if !self.images.is_empty() && !self.images.iter().any(|pattern| pattern.takes(image)) {
                let allowed: Vec<String> = self.images.iter().map(ToString::to_string).collect();
                objections.push(format!(
                    "image {image} comes from elsewhere than {}",
                    allowed.join(", ")
                ));
            }
            if !self.signed_by.is_empty() && !self.signed_by.iter().any(|key| signers.contains(key))
            {
                let keys = self.signed_by.join(" or ");
                objections.push(format!("image {image} has no valid signature by {keys}"));
            }
        }
        if !self.config.is_empty() && !self.config.contains(measured.config) {
            objections.push(format!(
                "it is set up in another way than expected: its configuration is {}",
                measured.config
            ));
        }
        let more =
            measured.privileges.iter().filter(|privilege| !self.privileges.contains(privilege));
        let more: Vec<&str> = more.map(String::as_str).collect();
        if !more.is_empty() {
            objections.push(format!("it has privileges that are not listed: {}", more.join(", ")));
        }
        objections
    }
}

/// The keys of a policy, by name.
pub type Keys = BTreeMap<String, SigningKey>;

#[cfg(test)]
mod tests {
    use super::*;
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
                r#"{{"critical":{{"identity":{{"docker-reference":"{name}"}},"image":{{"docker-manifest-digest":"{digest}"}},"type":"cosign container image signature"}},"optional":null}}"#
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

    fn judge(
        policy: &Policy,
        labels: &str,
        measurement: Option<&Measurement>,
        signatures: &[ImageSignature],
    ) -> Judgement {
        let node = "rack".parse().unwrap();
        let labels = labels.parse().unwrap();
        let candidate = Candidate {
            labels: &labels,
            site: Some("dc1"),
            node: &node,
            measurement,
            prefixes: &[],
        };
        policy
            .judge(&candidate, policy.speaks_of_nodes(), |image| policy.signers(image, signatures))
            .unwrap()
    }

    fn signed_policy(signer: &Signer) -> Policy {
        let pem = signer.pem().replace('\n', "\n    ");
        policy(&format!(
            "keys:\n  release: |\n    {pem}\nadmission:\n  - {{ name: web, for: {{ app: web }}, images: [registry.example/shop/*], signed_by: [release] }}\n"
        ))
    }

    #[test]
    fn an_image_that_is_signed_by_the_right_key_under_its_name_is_let_in() {
        let (signer, stranger) = (Signer::new(), Signer::new());
        let policy = signed_policy(&signer);
        let web = measured(image("registry.example/shop/web", "web"));
        let digest = web.images[0].digest;
        let right = signer.sign("registry.example/shop/web:1.0", &digest);
        let judged = judge(&policy, "app=web", Some(&web), std::slice::from_ref(&right));
        assert_eq!(judged.reasons, Vec::<String>::new());
        assert_eq!(judged.labels.get("meshward/image.signed-by"), Some("release"));
        assert_eq!(judged.labels.get("meshward/image.repo"), Some("registry.example/shop/web"));
        assert_eq!(judged.labels.get("meshward/site"), Some("dc1"));
        assert_eq!(judged.labels.get("meshward/node"), None, "the policy does not speak of nodes");

        let tampered =
            ImageSignature { payload: right.payload.replace("null", "true"), ..right.clone() };
        for wrong in [
            vec![],
            vec![stranger.sign("registry.example/shop/web", &digest)],
            vec![signer.sign("registry.example/shop/web", &Sha256::of(b"other"))],
            vec![signer.sign("registry.example/shop/api", &digest)],
            vec![tampered],
        ] {
            let judged = judge(&policy, "app=web", Some(&web), &wrong);
            assert!(
                judged.reasons[0].contains("no valid signature by release"),
                "{:?}",
                judged.reasons
            );
            assert_eq!(judged.labels.get("meshward/image.signed-by"), None);
        }
    }

    #[test]
    fn a_rule_speaks_of_what_it_selects_and_every_such_rule_must_be_content() {
        let policy = signed_policy(&Signer::new());
        let other = measured(image("elsewhere.example/web", "web"));
        assert_eq!(judge(&policy, "app=web", Some(&other), &[]).reasons.len(), 2);
        assert_eq!(judge(&policy, "app=db", Some(&other), &[]).reasons.len(), 0);
        let process = judge(&policy, "app=web", None, &[]);
        assert!(process.reasons[0].contains("no container runtime"), "{:?}", process.reasons);
    }

    #[test]
    fn privileges_and_set_up_must_be_the_expected_ones() {
        let config = Sha256::of(b"c");
        let policy = policy(&format!(
            "admission:\n  - {{ name: plain }}\n  - {{ name: fixed, for: {{ meshward/node: rack }}, config: ['{config}'], privileges: [capability NET_ADMIN] }}\n"
        ));
        assert!(policy.speaks_of_nodes());
        let mut web = measured(image("web", "web"));
        let judged = judge(&policy, "app=web", Some(&web), &[]);
        assert_eq!((judged.reasons.len(), judged.labels.get("meshward/node")), (0, Some("rack")));
        web.privileges = vec!["capability NET_ADMIN".into()];
        assert_eq!(
            judge(&policy, "", Some(&web), &[]).reasons,
            ["plain: it has privileges that are not listed: capability NET_ADMIN"]
        );
        web = Measurement { privileges: vec![], config: Sha256::of(b"other"), ..web };
        assert!(
            judge(&policy, "", Some(&web), &[]).reasons[0]
                .starts_with("fixed: it is set up in another way")
        );
        assert!(judge(&policy, "", None, &[]).reasons[0].starts_with("fixed: it is a process"));
    }

    #[test]
    fn what_shares_a_namespace_has_to_be_what_the_workload_has_to_be() {
        let signer = Signer::new();
        let policy = signed_policy(&signer);
        let (own, other) =
            (image("registry.example/shop/web", "web"), image("elsewhere.example/debug", "d"));
        let signatures = [signer.sign("registry.example/shop/web", &own.digest)];
        let alone = measured(own.clone());
        assert!(judge(&policy, "app=web", Some(&alone), &signatures).reasons.is_empty());

        let with = |sharing: Vec<SharingContainer>| Measurement { sharing, ..alone.clone() };
        let twin = with(vec![sharing("twin", Some(own))]);
        let judged = judge(&policy, "app=web", Some(&twin), &signatures);
        assert!(judged.reasons.is_empty(), "{:?}", judged.reasons);
        assert_eq!(judged.labels.get("meshward/image.signed-by"), Some("release"));

        let debug = with(vec![sharing("debug", Some(other))]);
        let judged = judge(&policy, "app=web", Some(&debug), &signatures);
        assert_eq!(judged.reasons.len(), 2, "{:?}", judged.reasons);
        for reason in &judged.reasons {
            assert!(
                reason.starts_with("web: container debug (elsewhere.example/debug@sha256:"),
                "{reason}"
            );
        }
        for fact in ["meshward/image.signed-by", "meshward/image.repo"] {
            assert_eq!(judged.labels.get(fact), None, "no fact about all of it");
        }
        assert!(
            judge(&policy, "app=db", Some(&debug), &signatures).reasons.is_empty(),
            "no rule speaks of it"
        );

        let early = with(vec![sharing("late", None)]);
        let judged = judge(&policy, "app=web", Some(&early), &signatures);
        assert!(
            judged.reasons[0].contains("container late")
                && judged.reasons[0].contains("not known yet")
        );
        let none = Measurement { images: vec![], ..early };
        assert_eq!(judge(&policy, "app=web", Some(&none), &signatures).reasons.len(), 2);
        assert_eq!(
            judge(&policy, "app=web", Some(&none), &signatures).labels.get("meshward/image.repo"),
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
        assert!(judge(&policy, "app=web", Some(&web), &[]).reasons.is_empty());
        assert_eq!(
            judge(&policy, "app=web,tier=front", Some(&web), &[]).reasons.len(),
            1,
            "another rule has to be content as well"
        );
        web.images[0] = image("elsewhere.example/web", "web");
        assert_eq!(
            judge(&policy, "app=web", Some(&web), &[]).reasons.len(),
            1,
            "itself, it is judged"
        );

        web.images.clear();
        debug.objection = Some("it cannot be measured".into());
        let unclear =
            Measurement { sharing: vec![debug], ..measured(image("registry.example/a", "")) };
        assert!(judge(&policy, "app=web", Some(&unclear), &[]).reasons.is_empty());
        let closed = judge(&policy, "app=db", Some(&unclear), &[]).reasons;
        assert!(closed[0].starts_with("container debug (elsewhere.example/debug@"), "{closed:?}");
        assert!(closed[0].ends_with("it cannot be measured"), "{closed:?}");
    }

    #[test]
    fn patterns_take_what_is_below_them_and_nothing_else() {
        for (pattern, taken, not_taken) in [
            ("registry.example/*", "registry.example/a/b", "registry.example.evil/a"),
            (
                "registry.example/shop/*",
                "registry.example/shop/web",
                "registry.example/shopping/web",
            ),
            ("shop/web", "docker.io/shop/web", "docker.io/shop/webs"),
            ("nginx", "docker.io/library/nginx", "docker.io/nginx/nginx"),
        ] {
            let pattern: ImagePattern = pattern.parse().unwrap();
            assert!(pattern.takes(&image(taken, "")), "{pattern}");
            assert!(!pattern.takes(&image(not_taken, "")), "{pattern}");
            assert!(!pattern.takes(&Image { repository: None, digest: Sha256::of(b"") }));
        }
        assert!(ImagePattern::Any.takes(&Image { repository: None, digest: Sha256::of(b"") }));
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
}
