//! A key and a prefix have one owner, whatever is claimed and withdrawn: who had it first keeps it.

use super::*;
use crate::{
    plans::routes,
    records::EndpointRecord,
    world::{KeyOwner, NetworkState},
};
use ::ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use meshward_api_types::ApproveRoute;
use meshward_control_proto::ImageSignatures;
use meshward_types::measurement::ImageSignature;
use std::net::SocketAddr;

#[derive(Debug, Clone)]
enum Claim {
    Join(u8),
    Remove(u8),
    Endpoint(u8, u8),
    Device(u8, u8, u8),
    Route(u8, u8, &'static str),
    Stop(u8, u8),
    Approve(u8, u8, bool),
}

fn claim() -> impl Strategy<Value = Claim> {
    let labels = prop_oneof![Just("net=a"), Just("net=b")];
    prop_oneof![
        (0..3u8).prop_map(Claim::Join),
        (0..3u8).prop_map(Claim::Remove),
        (0..3u8, 0..4u8).prop_map(|(node, key)| Claim::Endpoint(node, key)),
        (0..3u8, 0..4u8, 0..4u8).prop_map(|(node, id, key)| Claim::Device(node, id, key)),
        (0..3u8, 0..2u8, labels)
            .prop_map(|(node, prefix, labels)| Claim::Route(node, prefix, labels)),
        (0..3u8, 0..4u8).prop_map(|(node, id)| Claim::Stop(node, id)),
        (0..3u8, 0..2u8, any::<bool>())
            .prop_map(|(node, prefix, on)| Claim::Approve(node, prefix, on)),
    ]
}

fn node(at: u8) -> NodeName {
    format!("node-{at}").parse().unwrap()
}

fn prefix(at: u8) -> ipnet::IpNet {
    format!("10.9.{at}.0/24").parse().unwrap()
}

fn endpoint(key: u8) -> EndpointReport {
    EndpointReport {
        relays: vec![],
        network: shop(),
        public_key: PublicKey([key; 32]),
        port: 1,
        advertised: vec![],
        reflexive: vec![],
        interfaces: vec![],
    }
}

fn make(mesh: &mut Mesh, claim: &Claim) -> Option<()> {
    match claim {
        Claim::Join(at) => mesh.join(node(*at).as_str(), &any_token()).ok(),
        Claim::Remove(at) => {
            let plan = nodes::remove(&mesh.world, &node(*at));
            mesh.commit(plan).ok()
        }
        Claim::Endpoint(at, key) => {
            let (reports, logged) = ([endpoint(*key)], BTreeSet::new());
            let plan = set_endpoints(&mesh.world, &node(*at), &claims(&reports, &logged));
            mesh.commit(plan).ok().map(drop)
        }
        Claim::Device(at, id, key) => {
            let mut report = report(&mesh.world, &node(*at), *id, "device")?;
            report.device = Some(PublicKey([*key; 32]));
            report.name = format!("d{at}{id}").parse().unwrap();
            mesh.start(&node(*at), vec![report]).ok().map(drop)
        }
        Claim::Route(at, of, labels) => {
            let mut report = report(&mesh.world, &node(*at), 10 + of, "x")?;
            (report.prefixes, report.labels) = (vec![prefix(*of)], labels.parse().unwrap());
            mesh.start(&node(*at), vec![report]).ok().map(drop)
        }
        Claim::Stop(at, id) => {
            let id = if *id < 2 { *id } else { 8 + id };
            let id = format!("{}-{id}", node(*at)).parse().unwrap();
            mesh.report(&[(node(*at), vec![Report::Stopped(id)])]).remove(0).ok().map(drop)
        }
        Claim::Approve(at, of, on) => {
            let wanted =
                ApproveRoute { network: Some(shop()), node: node(*at), prefix: prefix(*of) };
            let plan = match on {
                true => routes::approve(&mesh.world, &wanted, &[]),
                false => routes::disapprove(&mesh.world, &wanted, &[]),
            };
            mesh.commit(plan).ok().map(drop)
        }
    }
}

fn actor(claim: &Claim) -> NodeName {
    match claim {
        Claim::Join(at)
        | Claim::Remove(at)
        | Claim::Endpoint(at, _)
        | Claim::Device(at, ..)
        | Claim::Route(at, ..)
        | Claim::Stop(at, _)
        | Claim::Approve(at, ..) => node(*at),
    }
}

/// The keys that are in use, each with the node that it is on and its owner.
fn keys(world: &World) -> Result<BTreeMap<PublicKey, (NodeName, String)>, TestCaseError> {
    let mut all: BTreeMap<PublicKey, (NodeName, String)> = BTreeMap::new();
    let endpoints = world.nodes.values().flat_map(|node| {
        let owner = KeyOwner::Node(node.name.clone()).to_string();
        let keys = node.endpoints.values().flat_map(EndpointRecord::keys);
        keys.map(move |key| (key, (node.name.clone(), owner.clone())))
    });
    let devices =
        world.networks.values().flat_map(NetworkState::all_workloads).filter_map(|known| {
            let owner = KeyOwner::Device(known.id().clone()).to_string();
            Some((known.device()?, (known.node().clone(), owner)))
        });
    for (key, owner) in endpoints.chain(devices) {
        prop_assert_eq!(world.keys.owner(&key).map(ToString::to_string), Some(owner.1.clone()));
        if let Some(other) = all.insert(key, owner.clone()) {
            prop_assert_eq!(other, owner, "two have one key");
        }
    }
    Ok(all)
}

/// The routes that are let in, by prefix and node.
fn routes_let_in(world: &World) -> BTreeMap<(ipnet::IpNet, NodeName), String> {
    let all = world.networks.values().flat_map(NetworkState::all_workloads);
    let admitted = all.filter(|known| matches!(known, WorkloadRef::Admitted(_)));
    admitted
        .flat_map(|known| {
            let labels = known.labels().to_string();
            known
                .prefixes()
                .iter()
                .map(move |prefix| ((*prefix, known.node().clone()), labels.clone()))
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_is_claimed_who_had_it_first_keeps_it(
        claims in prop::collection::vec(claim(), 1..50),
    ) {
        let mut mesh = Mesh::default();
        mesh.network("shop", &["10.42.0.0/22"]).unwrap();
        for claim in &claims {
            let (keys_before, routes_before) = (keys(&mesh.world)?, routes_let_in(&mesh.world));
            make(&mut mesh, claim);
            let (keys_after, routes_after) = (keys(&mesh.world)?, routes_let_in(&mesh.world));
            let others = |owner: &NodeName| *owner != actor(claim);
            for (key, owner) in keys_before.iter().filter(|(_, (node, _))| others(node)) {
                prop_assert_eq!(keys_after.get(key), Some(owner), "after {:?}", claim);
            }
            for (route, labels) in routes_before.iter().filter(|((_, node), _)| others(node)) {
                prop_assert_eq!(routes_after.get(route), Some(labels), "after {:?}", claim);
            }
            // What comes to somebody comes by his own claim, or by his approval.
            for (prefix, node) in routes_after.keys().filter(|(_, node)| others(node)) {
                prop_assert!(
                    routes_before.contains_key(&(*prefix, node.clone())),
                    "after {:?}",
                    claim
                );
            }
            for of in 0..2 {
                let labels: BTreeSet<_> = routes_after
                    .iter()
                    .filter(|((own, _), _)| *own == prefix(of))
                    .map(|(_, labels)| labels)
                    .collect();
                prop_assert!(labels.len() < 2, "one prefix under two labels after {:?}", claim);
            }
        }
        let records = mesh.records.clone();
        let loaded = World::load(mesh.world.revision, records).unwrap();
        prop_assert_eq!(keys(&loaded)?, keys(&mesh.world)?);
    }
}

#[test]
fn a_key_that_is_somebodys_is_refused_and_said_once() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/22"]).unwrap();
    for at in 0..2 {
        make(&mut mesh, &Claim::Join(at)).unwrap();
        make(&mut mesh, &Claim::Endpoint(at, at)).unwrap();
    }
    let claim = |logged: &BTreeSet<PublicKey>| {
        set_endpoints(&mesh.world, &node(1), &claims(&[endpoint(0)], logged)).unwrap()
    };
    let plan = claim(&BTreeSet::new());
    assert!(plan.mutations.is_empty());
    assert!(plan.action.contains("belongs to node node-0"), "{}", plan.action);
    assert!(
        plan.outcome[0].reason.contains("meshctl keys rotate --node node-1"),
        "{:?}",
        plan.outcome
    );
    let again = claim(&[PublicKey([0; 32])].into());
    assert!(again.action.is_empty() && again.outcome.len() == 1);
}

#[test]
fn the_key_that_a_node_had_before_is_still_nobody_elses() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/22"]).unwrap();
    for (at, key) in [(0, 0), (1, 1), (0, 2)] {
        let _ = make(&mut mesh, &Claim::Join(at));
        make(&mut mesh, &Claim::Endpoint(at, key)).unwrap();
    }
    let owner = |mesh: &Mesh, key: u8| mesh.world.keys.owner(&PublicKey([key; 32])).cloned();
    make(&mut mesh, &Claim::Endpoint(1, 0)).unwrap();
    assert_eq!(owner(&mesh, 0), Some(KeyOwner::Node(node(0))), "peers may know it as this node's");
    assert_eq!(mesh.world.nodes[&node(1)].endpoints[&shop()].public_key, PublicKey([1; 32]));
    // It has it only until it has had another one since, and takes it back if it likes.
    make(&mut mesh, &Claim::Endpoint(0, 0)).unwrap();
    make(&mut mesh, &Claim::Endpoint(0, 3)).unwrap();
    assert_eq!((owner(&mesh, 2), owner(&mesh, 0)), (None, Some(KeyOwner::Node(node(0)))));
}

#[test]
fn an_address_is_that_of_the_node_whose_session_comes_from_it() {
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/22"]).unwrap();
    (0..3).for_each(|at| make(&mut mesh, &Claim::Join(at)).unwrap());
    let at: [IpAddr; 3] = ["192.0.2.1", "192.0.2.2", "192.0.2.2"].map(|text| text.parse().unwrap());
    let others = |own: &NodeName| (0..3).find(|one| node(*one) == *own).map(|one| at[one as usize]);
    let report = |mesh: &mut Mesh, one: u8, advertised: &[&str]| {
        let advertised = advertised.iter().map(|text| text.parse().unwrap()).collect();
        let wanted = EndpointReport { advertised, port: 51820, ..endpoint(one) };
        let (reports, logged) = ([wanted], BTreeSet::new());
        let claims = EndpointClaims {
            session_address: at[one as usize],
            session_address_of: &others,
            ..claims(&reports, &logged)
        };
        let plan = set_endpoints(&mesh.world, &node(one), &claims);
        mesh.commit(plan).map(drop).unwrap();
    };
    let has = |mesh: &Mesh, one: u8, text: &str| {
        let address: SocketAddr = text.parse().unwrap();
        mesh.world.nodes[&node(one)].endpoints[&shop()].candidates.contains(&address)
    };
    // Claimed before it is there, and afterwards.
    report(&mut mesh, 1, &["192.0.2.1:51820", "192.168.0.1:51820"]);
    assert!(has(&mesh, 1, "192.0.2.1:51820"));
    report(&mut mesh, 0, &["192.0.2.1:51820", "192.168.0.1:51820"]);
    assert!(has(&mesh, 0, "192.0.2.1:51820") && !has(&mesh, 1, "192.0.2.1:51820"));
    report(&mut mesh, 1, &["192.0.2.1:51820", "192.168.0.1:51820"]);
    assert!(has(&mesh, 0, "192.0.2.1:51820") && !has(&mesh, 1, "192.0.2.1:51820"));
    assert!(
        has(&mesh, 0, "192.168.0.1:51820") && has(&mesh, 1, "192.168.0.1:51820"),
        "many hosts have that"
    );
    // Two behind one NAT, whose session comes from one address.
    report(&mut mesh, 1, &["192.0.2.2:51820"]);
    report(&mut mesh, 2, &["192.0.2.2:51820"]);
    assert!(has(&mesh, 1, "192.0.2.2:51820") && has(&mesh, 2, "192.0.2.2:51820"));
}

#[test]
fn the_key_of_a_certificate_is_one_members() {
    let mut mesh = Mesh::default();
    make(&mut mesh, &Claim::Join(0)).unwrap();
    make(&mut mesh, &Claim::Join(1)).unwrap();
    let refused = nodes::set_key(&mesh.world, &node(1), "key-node-0").err().unwrap().to_string();
    assert!(refused.contains("that of node-0"), "{refused}");
}

struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref(), &random);
        Self(pair.unwrap())
    }

    fn policy(&self) -> String {
        // A SubjectPublicKeyInfo of a key on P-256 (RFC 5480 §2).
        let head = "3059301306072a8648ce3d020106082a8648ce3d030107034200";
        let mut der: Vec<u8> = (0..head.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&head[at..at + 2], 16).unwrap())
            .collect();
        der.extend(self.0.public_key().as_ref());
        let pem = BASE64_STANDARD.encode(der);
        format!(
            "network: shop\nkeys: {{ release: \"-----BEGIN PUBLIC KEY-----\\n{pem}\\n\
            -----END PUBLIC KEY-----\" }}\nadmission: [{{ name: web, signed_by: [release] }}]"
        )
    }

    fn sign(&self, image: &Image) -> ImageSignature {
        let (name, digest) = (image.repository.as_ref().unwrap(), &image.digest);
        let payload = format!(
            r#"{{"critical":{{"identity":{{"docker-reference":"{name}"}},
            "image":{{"docker-manifest-digest":"{digest}"}},
            "type":"cosign container image signature"}},"optional":null}}"#
        );
        let signature = self.0.sign(&SystemRandom::new(), payload.as_bytes()).unwrap();
        ImageSignature { signature: BASE64_STANDARD.encode(signature.as_ref()), payload }
    }
}

/// A report of a container from one image, with signatures.
fn container(
    world: &World,
    at: u8,
    id: u8,
    signatures: Vec<ImageSignature>,
) -> (WorkloadReport, Image) {
    let mut report = report(world, &node(at), id, "web").unwrap();
    let image = Image {
        repository: Repository::of_reference("a.example/w").ok(),
        digest: Sha256::of(b"the same everywhere"),
    };
    let mut measured = Measurement::clone(report.measurement.as_ref().unwrap());
    (measured.images, measured.privileges) = (vec![image.clone()], vec![]);
    report.measurement = Some(measured.into());
    report.signatures = vec![ImageSignatures { image: image.digest, signatures }];
    (report, image)
}

#[test]
fn junk_signatures_keep_no_genuine_one_out() {
    let (signer, stranger) = (Signer::new(), Signer::new());
    let mut mesh = Mesh::default();
    mesh.network("shop", &["10.42.0.0/20"]).unwrap();
    (0..7).for_each(|at| make(&mut mesh, &Claim::Join(at)).unwrap());
    let plan = apply(&mesh.world, &signer.policy());
    mesh.commit(plan).unwrap();
    // Six nodes that run the image report as many signatures by somebody else as are taken ...
    for at in 1..7 {
        let (mut junk, image) = container(&mesh.world, at, 1, vec![]);
        let signatures = (0..16).map(|_| stranger.sign(&image)).collect();
        junk.signatures = vec![ImageSignatures { image: image.digest, signatures }];
        mesh.start(&node(at), vec![junk]).unwrap();
    }
    // ... and one reports them of an image that it does not run.
    let mut process = report(&mesh.world, &node(1), 2, "web").unwrap();
    process.signatures = vec![ImageSignatures {
        image: Sha256::of(b"another"),
        signatures: vec![stranger.sign(&container(&mesh.world, 1, 1, vec![]).1)],
    }];
    mesh.start(&node(1), vec![process]).unwrap();
    assert!(mesh.world.images.get(&Sha256::of(b"another")).is_none());

    let (mut genuine, image) = container(&mesh.world, 0, 1, vec![]);
    let signatures = vec![signer.sign(&image)];
    genuine.signatures = vec![ImageSignatures { image: image.digest, signatures }];
    let id = genuine.id.clone();
    mesh.start(&node(0), vec![genuine]).unwrap();
    assert!(matches!(mesh.world.workload(&id), Some(WorkloadRef::Admitted(_))));
    let kept = mesh.world.images.get(&image.digest).unwrap();
    assert_eq!(kept.verified[&shop()].len(), 1);
    assert!(kept.reported.len() <= 4 && kept.reported.values().all(|own| own.len() <= 16));

    // A node that comes later, and finds no signature, profits from the one that is proved.
    let (report, _) = container(&mesh.world, 1, 1, vec![]);
    let id = report.id.clone();
    mesh.start(&node(1), vec![report]).unwrap();
    assert!(matches!(mesh.world.workload(&id), Some(WorkloadRef::Admitted(_))));
}
