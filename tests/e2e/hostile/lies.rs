//! The lies of a member, in each kind of message and in each answer.

use crate::support::Shop;
use meshward_control_proto::{
    Answer, EndpointReport, Fired, FromNode, InstanceId, InstanceLoad, LinkCount, LoggedFlow,
    MAX_LOADS, Question, ResourceKey, WorkloadCuts, WorkloadFlows, WorkloadReport,
    view::{Digest, Hash128, ResourceHashes},
};
use meshward_lab::Workload;
use meshward_types::{
    Count, Health, IdentityId, NetworkName, Protocol, PublicKey, Revision, WorkloadId,
    relay::RelayNumber,
};
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// The messages of a liar in one session, after a valid hello.
pub(super) struct Lie {
    pub(super) what: &'static str,
    pub(super) says: Vec<FromNode>,
}

fn lie(what: &'static str, says: Vec<FromNode>) -> Lie {
    Lie { what, says }
}

fn network() -> NetworkName {
    "shop".parse().unwrap()
}

pub(super) fn hello() -> FromNode {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
    FromNode::Hello {
        version: "crafted".into(),
        instance: InstanceId([7; 16]),
        clock,
        revision: Revision(0),
        digest: Digest::default(),
    }
}

pub(super) fn endpoint(public_key: PublicKey) -> EndpointReport {
    EndpointReport {
        network: network(),
        public_key,
        port: 51820,
        reflexive: vec![],
        advertised: vec![],
        interfaces: vec![],
        relays: vec![],
    }
}

fn workload(id: &str, labels: &str, addresses: Vec<IpAddr>) -> WorkloadReport {
    WorkloadReport::of_process(
        id.parse().unwrap(),
        network(),
        "mine".parse().unwrap(),
        labels.parse().unwrap(),
        addresses,
    )
}

fn fired(workload: &WorkloadId, trigger: &str) -> FromNode {
    FromNode::Fired(Fired {
        network: network(),
        trigger: trigger.into(),
        workload: workload.clone(),
        denied_flows: u32::MAX,
        distinct_ports: u32::MAX,
        distinct_addresses: u32::MAX,
    })
}

fn load(instance: &WorkloadId) -> InstanceLoad {
    InstanceLoad {
        network: network(),
        service: "api".parse().unwrap(),
        instance: instance.clone(),
        open: u32::MAX,
        begun: u32::MAX,
        connect_time: Some(Duration::MAX),
    }
}

/// Those whom the lies are about.
pub(super) struct Others {
    keys: Vec<PublicKey>,
    workloads: Vec<(WorkloadId, Vec<IpAddr>)>,
    places: Vec<SocketAddr>,
    /// The first address of the liar's own block.
    base: Ipv4Addr,
}

impl Others {
    pub(super) fn of(shop: &Shop, base: Ipv4Addr) -> Self {
        let own = |workload: &Workload| (workload.id.parse().unwrap(), workload.addresses.clone());
        let endpoints = shop.nodes.each_ref().map(|node| node.endpoint().unwrap());
        let place =
            |at: usize| -> SocketAddr { (shop.nodes[at].site.v4, endpoints[at].port).into() };
        Self {
            keys: endpoints.iter().map(|one| one.public_key.parse().unwrap()).collect(),
            workloads: vec![own(&shop.web), own(&shop.api)],
            places: vec![place(0), place(1)],
            base,
        }
    }

    pub(super) fn own(&self, id: &str, labels: &str) -> WorkloadReport {
        let at = id.bytes().map(u32::from).sum::<u32>() % 200;
        workload(id, labels, vec![Ipv4Addr::from_bits(self.base.to_bits() + 2 + at).into()])
    }

    /// Reports of workloads that are not so.
    fn false_reports(&self) -> Vec<(&'static str, Vec<WorkloadReport>)> {
        let (id, addresses) = &self.workloads[1];
        let route = |prefix: &str| WorkloadReport {
            prefixes: vec![prefix.parse().unwrap()],
            ..self.own("liar-route", "app=web")
        };
        vec![
            ("another's address", vec![workload("liar-1", "app=web", addresses.clone())]),
            (
                "an address of nobody's",
                vec![workload("liar-2", "app=web", vec!["8.8.8.8".parse().unwrap()])],
            ),
            ("another's workload", vec![workload(id.as_str(), "app=web", addresses.clone())]),
            ("another's workload, at home", vec![self.own(id.as_str(), "app=web")]),
            ("one twice", vec![self.own("liar-3", "app=web"), self.own("liar-3", "app=api")]),
            ("a label that only the mesh gives", vec![self.own("liar-4", "meshward/verified=yes")]),
            ("another's site", vec![self.own("liar-5", "site=cloud,node=cloud")]),
            ("a route to others", vec![route("10.42.0.0/16")]),
            ("a route to everywhere", vec![route("0.0.0.0/0")]),
            (
                "another's key as a device",
                vec![WorkloadReport {
                    device: Some(self.keys[0]),
                    ..self.own("liar-6", "app=web")
                }],
            ),
            (
                "more than a thousand addresses",
                vec![workload("liar-7", "app=web", vec![addresses[0]; 1024])],
            ),
        ]
    }

    fn false_endpoints(&self) -> Vec<(&'static str, EndpointReport)> {
        let own = endpoint(PublicKey([9; 32]));
        let many =
            (0..256).map(|at| SocketAddr::from(([192, 0, 2, at as u8], 1000 + at))).collect();
        vec![
            ("another's key", endpoint(self.keys[0])),
            ("another's key, too", endpoint(self.keys[1])),
            ("a key that is none", endpoint(PublicKey([0; 32]))),
            (
                "others' addresses",
                EndpointReport { advertised: self.places.clone(), ..own.clone() },
            ),
            (
                "others' addresses as seen",
                EndpointReport { reflexive: self.places.clone(), ..own.clone() },
            ),
            ("many addresses", EndpointReport { interfaces: many, ..own.clone() }),
            (
                "relays that are not there",
                EndpointReport { relays: vec![RelayNumber(9); 1000], ..own.clone() },
            ),
            (
                "a network that is not there",
                EndpointReport { network: "none".parse().unwrap(), ..own.clone() },
            ),
            ("no port", EndpointReport { port: 0, ..own }),
        ]
    }

    /// The lies that can be told in messages of one kind, and the kind after that. What is new in
    /// the protocol has to be lied about here.
    #[expect(clippy::too_many_lines, reason = "one arm for each kind of message")]
    pub(super) fn lies(&self, kind: &FromNode) -> (Vec<Lie>, Option<FromNode>) {
        let [(web, _), (api, _)] = &self.workloads[..] else { panic!() };
        let (web, api) = (web.clone(), api.clone());
        match kind {
            FromNode::Hello { clock, .. } => {
                let made =
                    |version: String, clock: i64, revision: u64, digest: Digest| FromNode::Hello {
                        version,
                        instance: InstanceId([8; 16]),
                        clock,
                        revision: Revision(revision),
                        digest,
                    };
                let none = Digest::default();
                let lies = vec![
                    lie("a second hello", vec![hello(); 3]),
                    lie("another clock", vec![made("x".into(), i64::MIN, 0, none)]),
                    lie(
                        "another start of the daemon",
                        vec![made("x".into(), *clock, u64::MAX, none)],
                    ),
                    lie("a long version", vec![made("\u{1b}[2J".repeat(1 << 17), *clock, 0, none)]),
                ];
                (
                    lies,
                    Some(FromNode::Inventory {
                        endpoints: vec![],
                        workloads: vec![],
                        is_last: true,
                    }),
                )
            }
            FromNode::Inventory { .. } => {
                let has = |endpoints, workloads| {
                    vec![FromNode::Inventory { endpoints, workloads, is_last: true }]
                };
                let mut lies: Vec<Lie> = self
                    .false_reports()
                    .into_iter()
                    .map(|(what, all)| lie(what, has(vec![], all)))
                    .collect();
                lies.extend(
                    self.false_endpoints()
                        .into_iter()
                        .map(|(what, one)| lie(what, has(vec![one], vec![]))),
                );
                let long = workload("liar-8", "app=web", vec![[10, 42, 0, 7].into(); 64]);
                let endless = FromNode::Inventory {
                    endpoints: vec![],
                    workloads: vec![long; 1000],
                    is_last: false,
                };
                lies.push(lie("parts without end", vec![endless; 40]));
                (
                    lies,
                    Some(FromNode::ResourceHashes { part: ResourceHashes::new(), is_last: true }),
                )
            }
            FromNode::ResourceHashes { .. } => {
                let resource = |at: u32| {
                    (ResourceKey::Identity(network(), IdentityId(at)), Hash128::default())
                };
                let part = |at: u32| FromNode::ResourceHashes {
                    part: (at * 4096..(at + 1) * 4096).map(resource).collect(),
                    is_last: false,
                };
                let lies = vec![
                    lie("an answer that nobody asked for", vec![kind.clone(); 3]),
                    lie("a view without end", (0..40).map(part).collect()),
                ];
                (lies, Some(FromNode::Endpoint(endpoint(PublicKey([9; 32])))))
            }
            FromNode::Endpoint(_) => {
                let false_ones = self.false_endpoints().into_iter();
                let mut lies: Vec<Lie> = false_ones
                    .map(|(what, one)| lie(what, vec![FromNode::Endpoint(one)]))
                    .collect();
                let turning = (0..4000).map(|at: u16| {
                    let key =
                        PublicKey(std::array::from_fn(|place| (at >> (8 * (place % 2))) as u8));
                    FromNode::Endpoint(EndpointReport { port: at + 1, ..endpoint(key) })
                });
                lies.push(lie("another key and port each time", turning.collect()));
                (lies, Some(FromNode::Started(self.own("liar-9", "app=web"))))
            }
            FromNode::Started(_) => {
                let mut lies: Vec<Lie> = (self.false_reports().into_iter())
                    .map(|(what, all)| lie(what, all.into_iter().map(FromNode::Started).collect()))
                    .collect();
                let many = (0..6000).map(|at| {
                    FromNode::Started(self.own(&format!("liar-{at}"), &format!("n=v{at}")))
                });
                lies.push(lie("workloads and labels without end", many.collect()));
                (lies, Some(FromNode::Stopped(web)))
            }
            FromNode::Stopped(_) => {
                let ends = vec![FromNode::Stopped(web), FromNode::Stopped(api)];
                (
                    vec![lie("the end of others' workloads", ends)],
                    Some(FromNode::Enforced(Revision(0))),
                )
            }
            FromNode::Enforced(_) => {
                let lies = [1_000_000, u64::MAX]
                    .map(|at| lie("what is not there yet", vec![FromNode::Enforced(Revision(at))]));
                (lies.into(), Some(fired(&web, "scan")))
            }
            FromNode::Fired(_) => {
                let all = [&web, &api]
                    .into_iter()
                    .flat_map(|own| [fired(own, "scan"), fired(own, "none")]);
                let lies = vec![
                    lie("what a trigger caught of others", all.collect()),
                    lie(
                        "triggers without end",
                        vec![fired(&"liar-1".parse().unwrap(), &"t".repeat(1000)); 2000],
                    ),
                ];
                (
                    lies,
                    Some(FromNode::PunchHole { network: network(), peer: "rack".parse().unwrap() }),
                )
            }
            FromNode::PunchHole { .. } => {
                let to = |network: &str, peer: &str| FromNode::PunchHole {
                    network: network.parse().unwrap(),
                    peer: peer.parse().unwrap(),
                };
                let lies = vec![
                    lie("calls without end", vec![kind.clone(); 4000]),
                    lie(
                        "calls of nobody",
                        vec![to("none", "rack"), to("shop", "none"), to("shop", "liar")],
                    ),
                ];
                (lies, Some(FromNode::Renew { csr: vec![] }))
            }
            FromNode::Renew { .. } => {
                let renew = |csr| FromNode::Renew { csr };
                let lies = vec![
                    lie("a request for nothing", vec![renew(vec![0x30; 5000]), renew(vec![])]),
                    lie(
                        "a long request",
                        vec![
                            renew(vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff]),
                            renew(vec![0; 1 << 19]),
                        ],
                    ),
                ];
                (lies, Some(FromNode::Degraded(None)))
            }
            FromNode::Degraded(_) => {
                let text =
                    |at: usize| FromNode::Degraded(Some(format!("\u{1b}[31m{}", "x".repeat(at))));
                let lies = vec![lie(
                    "trouble without end",
                    (0..300).map(|at| text(at * 10)).chain([text(1 << 19)]).collect(),
                )];
                let (service, health) = ("api".parse().unwrap(), Health::Healthy);
                (lies, Some(FromNode::Health { workload: web, service, health }))
            }
            FromNode::Health { .. } => {
                let ill = |workload: WorkloadId, service: &str| FromNode::Health {
                    workload,
                    service: service.parse().unwrap(),
                    health: Health::Unhealthy,
                };
                let services = (0..4000).map(|number| format!("s{number}"));
                let lies = vec![
                    lie("another's illness", vec![ill(api, "api"), ill(web.clone(), "api")]),
                    lie("illnesses of nobody", vec![ill("nobody".parse().unwrap(), "api"); 300]),
                    lie(
                        "illnesses for services without end",
                        services.map(|service| ill(web.clone(), &service)).collect(),
                    ),
                ];
                (lies, Some(FromNode::Load(vec![])))
            }
            FromNode::Load(_) => {
                let lies = vec![
                    lie("the load of others' workloads", vec![FromNode::Load(vec![load(&api)]); 3]),
                    lie(
                        "more load than there can be",
                        vec![FromNode::Load(vec![load(&web); MAX_LOADS + 1])],
                    ),
                    lie("load without end", vec![FromNode::Load(vec![load(&web); MAX_LOADS]); 300]),
                ];
                (lies, Some(FromNode::Leave))
            }
            // Taken as the first word of a connection alone, and then of whoever has the
            // certificate.
            FromNode::Leave => {
                (vec![lie("a farewell in the middle", vec![FromNode::Leave; 3])], None)
            }
        }
    }
}

/// Returns a liar's answers to a question.
pub(super) fn false_answers(question: &Question, web: &WorkloadId) -> Vec<Answer> {
    let most = Count { packets: u64::MAX, bytes: u64::MAX, denied: u64::MAX, observed: u64::MAX };
    let pairs =
        (0..60u32).flat_map(|from| (0..60).map(move |to| (IdentityId(from), IdentityId(to))));
    match question {
        Question::Alive => vec![Answer::Links(vec![])],
        Question::Links => {
            let count = |(from, to)| LinkCount { network: network(), from, to, count: most };
            vec![Answer::Links(pairs.map(count).collect()); 3]
        }
        Question::Cuts { .. } => {
            let cuts = WorkloadCuts { workload: web.clone(), flows: u64::MAX };
            vec![Answer::Cuts(vec![cuts; 2]); 3]
        }
        Question::Flows { .. } => {
            let flow = |(from, to)| LoggedFlow {
                from,
                to,
                protocol: Protocol::Tcp,
                port: 6666,
                passed: true,
            };
            vec![Answer::Flows(pairs.map(flow).collect())]
        }
        Question::OpenFlows { .. } => {
            let flows = WorkloadFlows { workload: web.clone(), flows: u64::MAX };
            vec![Answer::OpenFlows(vec![flows; 2]); 3]
        }
        // Not asked here of a liar; whoever asks believes nothing of it but its form.
        Question::AddDevice(_) | Question::RemoveDevice(_) => {
            vec![Answer::Removed(Err("\u{1b}[2J".into()))]
        }
    }
}
