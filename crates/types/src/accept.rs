//! A workload's declaration of the workloads that may reach it.

use crate::{
    ports::{BadPort, PortSpec},
    selector::{BadSelector, Selector, split},
};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The label of a container that holds its declarations, separated by `;`.
pub const LABEL: &str = "meshward.accept-from";

/// The largest number of declarations of one workload.
pub const MAX_ACCEPTS: usize = 16;

/// One declaration: the workloads that may begin flows to this one, and the ports. Written as
/// `app=web, port=tcp/8080`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AcceptFrom {
    /// The workloads that may begin flows.
    pub from: Selector,
    /// The destination ports; empty for every port.
    pub ports: Vec<PortSpec>,
}

/// The error for text that is not a declaration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadAccept {
    /// The selector is malformed.
    #[error(transparent)]
    Selector(#[from] BadSelector),
    /// A port is malformed.
    #[error(transparent)]
    Port(#[from] BadPort),
    /// A part uses `port` as if it were a label.
    #[error("`port` names ports here, not a label: write port=tcp/8080")]
    PortLabel,
    /// There are more than [`MAX_ACCEPTS`] declarations.
    #[error("{0} declarations are too many: one workload may carry 16")]
    TooMany(usize),
}

impl AcceptFrom {
    /// Returns the ports that it names, or [`PortSpec::ANY`] if it names none.
    pub fn ports(&self) -> &[PortSpec] {
        if self.ports.is_empty() { &[PortSpec::ANY] } else { &self.ports }
    }

    /// Reads declarations that are separated by `;`.
    ///
    /// # Errors
    /// The first malformed declaration, or [`BadAccept::TooMany`].
    pub fn parse_all(text: &str) -> Result<Vec<Self>, BadAccept> {
        let parts = text.split(';').map(str::trim).filter(|part| !part.is_empty());
        let all: Vec<Self> = parts.map(str::parse).collect::<Result<_, _>>()?;
        Self::check_count(&all)?;
        Ok(all)
    }

    /// Refuses more than [`MAX_ACCEPTS`] declarations.
    ///
    /// # Errors
    /// [`BadAccept::TooMany`].
    pub fn check_count(all: &[Self]) -> Result<(), BadAccept> {
        if all.len() > MAX_ACCEPTS { Err(BadAccept::TooMany(all.len())) } else { Ok(()) }
    }
}

impl FromStr for AcceptFrom {
    type Err = BadAccept;
    fn from_str(text: &str) -> Result<Self, BadAccept> {
        let parts = split(text).ok_or_else(|| BadSelector::Form(text.to_owned()))?;
        let (mut ports, mut labels) = (Vec::new(), Vec::new());
        for part in parts {
            match port_of(part) {
                Some(port) => ports.push(port.parse()?),
                None => labels.push(part),
            }
        }
        let from: Selector = labels.join(",").parse()?;
        if from.requirements().any(|(key, _)| key.as_str() == "port") {
            return Err(BadAccept::PortLabel);
        }
        Ok(Self { from, ports })
    }
}

/// Returns the text after `port=`, with or without blanks around the equals sign; `None` if the
/// part does not name a port.
fn port_of(part: &str) -> Option<&str> {
    Some(part.strip_prefix("port")?.trim_start().strip_prefix('=')?.trim())
}

impl TryFrom<String> for AcceptFrom {
    type Error = BadAccept;
    fn try_from(text: String) -> Result<Self, BadAccept> {
        text.parse()
    }
}

impl From<AcceptFrom> for String {
    fn from(accept: AcceptFrom) -> String {
        accept.to_string()
    }
}

impl fmt::Display for AcceptFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = (!self.from.is_empty()).then(|| self.from.to_string());
        let ports = self.ports.iter().map(|port| format!("port={port}"));
        f.pad(&from.into_iter().chain(ports).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_read_and_printed_alike() {
        for text in [
            "app=web, port=tcp/8080",
            "app=web,env in (p,q), port=tcp/8080, port=icmp",
            "port = tcp",
            "ports=a",
            "",
        ] {
            let accept: AcceptFrom = text.parse().unwrap();
            assert_eq!(accept.to_string().parse::<AcceptFrom>().unwrap(), accept, "{text}");
        }
        let one: AcceptFrom = "app=web, port=tcp/8080".parse().unwrap();
        assert_eq!((one.from.to_string().as_str(), one.ports.len()), ("app=web", 1));
        assert_eq!("app=web".parse::<AcceptFrom>().unwrap().ports(), [PortSpec::ANY]);
    }

    #[test]
    fn malformed_declarations_are_refused() {
        for bad in
            ["app=web, port=tcp/x", "app in (web, port=tcp/1", "a b, port=tcp", "port =", "port=="]
        {
            assert!(bad.parse::<AcceptFrom>().is_err(), "{bad}");
        }
        for bad in ["port in (tcp)", "port notin (a,b)", "port!=a", "!port", "port"] {
            assert_eq!(bad.parse::<AcceptFrom>(), Err(BadAccept::PortLabel), "{bad}");
        }
    }
}
