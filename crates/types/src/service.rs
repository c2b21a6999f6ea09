//! Services: a name and virtual addresses in front of the workloads that a selector picks.

use crate::{
    labels::Labels,
    names::ServiceName,
    ports::Protocol,
    selector::{self, Selector},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, fmt, ops::RangeInclusive, str::FromStr, time::Duration};
use utoipa::ToSchema;

/// A port of a service, and the port of its instances that it stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ServicePort {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The port at the service's virtual addresses.
    pub port: u16,
    /// The port at the instances.
    pub target: u16,
}

impl fmt::Display for ServicePort {
    /// Writes `tcp/80`, or `tcp/80 to 8080` if the instances have another port.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, port, target } = self;
        let text = match port == target {
            true => format!("{protocol}/{port}"),
            false => format!("{protocol}/{port} to {target}"),
        };
        f.pad(&text)
    }
}

impl FromStr for ServicePort {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let refuse = || {
            let text: String = text.chars().take(60).collect();
            format!("`{text}` is no port of a service: write tcp/80, or tcp/80 to 8080")
        };
        let (own, target) = match text.split_once(" to ") {
            Some((own, target)) => (own, Some(target)),
            None => (text, None),
        };
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0);
        let (protocol, port) = own.split_once('/').ok_or_else(refuse)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(refuse()),
        };
        let port = number(port).ok_or_else(refuse)?;
        let target = target.map_or(Some(port), number).ok_or_else(refuse)?;
        Ok(Self { protocol, port, target })
    }
}

/// A kind of nearness by which instances are preferred.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Nearness {
    /// Instances on the client's own node.
    Node,
    /// Instances on nodes of the client's site.
    Site,
}

/// A check of an instance's health, made by the instance's own node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// The attempt that shows whether an instance is healthy.
    pub probe: HealthProbe,
    /// The port of the instance; `None` for the target of the service's first port.
    pub port: Option<u16>,
    /// The time between the beginnings of two probes.
    pub every: Duration,
    /// The time within which a probe succeeds.
    pub timeout: Duration,
    /// The number of failures in a row that make an instance unhealthy.
    pub failures: u32,
}

impl HealthCheck {
    /// The default of [`Self::every`].
    pub const EVERY: Duration = Duration::from_secs(5);
    /// The default of [`Self::timeout`].
    pub const TIMEOUT: Duration = Duration::from_secs(1);
    /// The default of [`Self::failures`].
    pub const FAILURES: u32 = 3;
}

/// An attempt that shows whether an instance is healthy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum HealthProbe {
    /// A GET request for this path, which is answered with a status from 200 to 399.
    Http(String),
    /// A TCP connection, which is accepted.
    Tcp,
    /// A request of gRPC's health checking protocol (`grpc.health.v1`) about this service, the
    /// empty name being the whole server, which is answered with `SERVING`.
    Grpc(String),
    /// A command in the instance's namespaces, with its arguments, which ends with status 0.
    Exec(Vec<String>),
}

/// The number of a service's instances that the node of a client is linked with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FanOut {
    /// As many as their load needs: from [`FanOut::LEAST`] up.
    #[default]
    Auto,
    /// All instances.
    All,
    /// This many.
    Exactly(u32),
    /// As many as their load needs, in these bounds.
    Between {
        /// The number without load; at least 1.
        least: u32,
        /// The largest number.
        most: u32,
    },
}

impl FanOut {
    /// The number that `auto` means for a client without load.
    pub const LEAST: u32 = 20;
    /// The largest number that can be set.
    pub const MOST: u32 = 10_000;

    /// Returns the bounds in which the number follows the load; `None` if it does not.
    pub fn bounds(self) -> Option<RangeInclusive<u32>> {
        match self {
            Self::Auto => Some(Self::LEAST..=Self::MOST),
            Self::Between { least, most } => Some(least..=most),
            Self::All | Self::Exactly(_) => None,
        }
    }
}

impl fmt::Display for FanOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.pad("auto"),
            Self::All => f.pad("all"),
            Self::Exactly(number) => f.pad(&number.to_string()),
            Self::Between { least, most } => f.pad(&format!("{least}-{most}")),
        }
    }
}

impl FromStr for FanOut {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |text: &str| text.parse().ok().filter(|number| (1..=Self::MOST).contains(number));
        let between = || {
            let (least, most) = text.split_once('-')?;
            let (least, most) = (number(least)?, number(most)?);
            (least <= most).then_some(Self::Between { least, most })
        };
        match text {
            "auto" => Ok(Self::Auto),
            "all" => Ok(Self::All),
            _ => number(text).map(Self::Exactly).or_else(between).ok_or_else(|| {
                let text: String = text.chars().take(60).collect();
                format!(
                    "`{text}` is no fan-out: write auto, all, a number from 1 to 10000, or a range \
                    of them such as 5-50"
                )
            }),
        }
    }
}

/// The choice of instances for the later connections of a client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Affinity {
    /// A new choice for each connection.
    #[default]
    None,
    /// The instance of the client's last connection, if that was used within this time.
    Client(Duration),
}

/// The share of new connections that an instance gets, in proportion to the weights of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Weight(u16);

impl Weight {
    /// The largest weight.
    pub const MOST: u16 = 1000;

    /// Creates a weight; `None` if it is above [`Self::MOST`].
    pub fn new(number: u16) -> Option<Self> {
        (number <= Self::MOST).then_some(Self(number))
    }

    /// Returns the number; 0 for instances that get no connections.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(100)
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The weight of some of a service's instances.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightRule {
    /// These instances.
    #[serde(with = "selector::as_text")]
    pub instances: Selector,
    /// Their weight.
    pub weight: Weight,
}

impl WeightRule {
    /// Returns the weight of an instance with these labels: that of the first rule which selects
    /// it, or the default.
    pub fn weight_of(rules: &[Self], labels: &Labels) -> Weight {
        let own = rules.iter().find(|rule| rule.instances.matches(labels));
        own.map_or(Weight::default(), |rule| rule.weight)
    }
}

/// An instance's state, as far as the choice of instances is concerned.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Serving {
    /// It gets new connections.
    #[default]
    Ready,
    /// It gets no new connections, and keeps those that it has: somebody drains it or its node.
    Draining,
    /// It gets no new connections while there is a ready one: its health check fails.
    Unhealthy,
}

impl fmt::Display for Serving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Unhealthy => "unhealthy",
        })
    }
}

/// The states of a workload as an instance of services.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceStates {
    /// `true` if somebody drains it or its node: it drains in all services.
    pub draining: bool,
    /// The services whose health check of it fails.
    pub unhealthy: BTreeSet<ServiceName>,
}

impl InstanceStates {
    /// Returns the state as an instance of a service.
    pub fn serving(&self, service: &ServiceName) -> Serving {
        match (self.draining, self.unhealthy.contains(service)) {
            (true, _) => Serving::Draining,
            (false, true) => Serving::Unhealthy,
            (false, false) => Serving::Ready,
        }
    }

    /// Returns the state as an instance of all its services: unhealthy if it is that for any.
    pub fn serving_all(&self) -> Serving {
        match self.unhealthy.first() {
            Some(service) => self.serving(service),
            None if self.draining => Serving::Draining,
            None => Serving::Ready,
        }
    }
}

/// The finding of a health check of an instance for a service, by the instance's own node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Health {
    /// It passes, or there is none.
    #[default]
    Healthy,
    /// It fails.
    Unhealthy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fan_out_is_read_and_printed_alike() {
        for text in ["auto", "all", "1", "10000", "2-50", "7-7"] {
            assert_eq!(text.parse::<FanOut>().unwrap().to_string(), text);
        }
        for text in ["", "0", "10001", "-1", "some", "0-3", "3-2", "3-", "1-10001", "1-2-3"] {
            let said = text.parse::<FanOut>().unwrap_err();
            assert!(said.contains("write auto, all, a number from 1 to 10000"), "{said}");
        }
    }

    #[test]
    fn an_instance_is_unhealthy_for_the_services_whose_check_fails_and_drains_for_all() {
        let [api, db]: [ServiceName; 2] = ["api", "db"].map(|name| name.parse().unwrap());
        let mut states = InstanceStates::default();
        assert_eq!((states.serving(&api), states.serving(&db)), (Serving::Ready, Serving::Ready));
        assert_eq!(states.serving_all(), Serving::Ready);
        states.unhealthy.insert(api.clone());
        assert_eq!(
            (states.serving(&api), states.serving(&db)),
            (Serving::Unhealthy, Serving::Ready)
        );
        assert_eq!(states.serving_all(), Serving::Unhealthy);
        states.draining = true;
        assert_eq!(
            (states.serving(&api), states.serving(&db)),
            (Serving::Draining, Serving::Draining)
        );
    }

    #[test]
    fn the_first_rule_that_selects_an_instance_says_its_weight() {
        let rule = |selector: &str, weight| WeightRule {
            instances: selector.parse().unwrap(),
            weight: Weight::new(weight).unwrap(),
        };
        let rules = [rule("version=2", 5), rule("size=large", 200)];
        let weight = |labels: &str| WeightRule::weight_of(&rules, &labels.parse().unwrap()).get();
        assert_eq!(weight("app=api,size=large,version=2"), 5);
        assert_eq!(weight("app=api,size=large"), 200);
        assert_eq!(weight("app=api"), 100);
        assert_eq!(Weight::new(1001), None);
    }

    #[test]
    fn a_port_of_a_service_names_its_target_if_that_differs() {
        let port = |target| ServicePort { protocol: Protocol::Tcp, port: 80, target };
        for (port, text) in [(port(80), "tcp/80"), (port(8080), "tcp/80 to 8080")] {
            assert_eq!((port.to_string().as_str(), text.parse()), (text, Ok(port)));
        }
        for text in ["80", "tcp", "sctp/80", "tcp/0", "tcp/80 to", "tcp/80 to 70000", "tcp/80-90"] {
            assert!(text.parse::<ServicePort>().is_err(), "{text}");
        }
    }
}
