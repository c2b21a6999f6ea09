//! The addresses and ports of a connection through a service, as each side of the translation sees
//! them.

use crate::headers::Headers;
use std::net::IpAddr;

/// An address and a port (a socket, in the words of RFC 9293 §4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Socket {
    pub(crate) address: IpAddr,
    pub(crate) port: u16,
}

/// The addresses and ports of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) source: Socket,
    pub(crate) destination: Socket,
}

impl Ends {
    /// Returns headers with these ends, of a packet of which only this is known.
    pub(crate) fn headers(&self, ip_protocol: u8) -> Headers {
        let Self { source, destination } = *self;
        Headers {
            source_port: source.port,
            destination_port: destination.port,
            ..Headers::between(source.address, destination.address, ip_protocol)
        }
    }
}

/// A connection through a service: who talks to what, and who answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// The client, as it knows itself.
    pub(crate) client: Socket,
    /// The service, as the client knows it.
    pub(crate) service: Socket,
    /// The instance that answers.
    pub(crate) instance: Socket,
    /// The client's port as the instance sees it: another one only if the client uses its own for
    /// another connection to that port of the instance.
    pub(crate) source_port: u16,
    /// TCP (6) or UDP (17).
    pub(crate) ip_protocol: u8,
}

impl Mapping {
    /// Returns whether the client is the instance itself.
    pub(crate) fn is_hairpin(&self) -> bool {
        self.client.address == self.instance.address
    }

    /// The client, as the filters of both nodes and the instance see it.
    fn outer_client(&self) -> Socket {
        Socket { address: self.client.address, port: self.source_port }
    }

    /// The service as an instance sees it that is its own client: no host takes a packet from
    /// itself off an interface.
    pub(crate) fn looped_client(&self) -> Socket {
        Socket { address: self.service.address, port: self.source_port }
    }

    /// Returns the ends of a packet of the client, as it sends it.
    pub(crate) fn request(&self) -> Ends {
        Ends { source: self.client, destination: self.service }
    }

    /// Returns the ends of a packet of the client, as it goes to the instance.
    pub(crate) fn outer_request(&self) -> Ends {
        Ends { source: self.outer_client(), destination: self.instance }
    }

    /// Returns the ends of a packet of a client that is the instance, as the instance receives it.
    pub(crate) fn looped_request(&self) -> Ends {
        Ends { source: self.looped_client(), destination: self.instance }
    }

    /// Returns the ends of a packet of the instance to a client that is itself, as it sends it.
    pub(crate) fn looped_answer(&self) -> Ends {
        Ends { source: self.instance, destination: self.looped_client() }
    }

    /// Returns the ends of a packet of the instance, as the client receives it.
    pub(crate) fn answer(&self) -> Ends {
        Ends { source: self.service, destination: self.client }
    }

    /// Returns the ends of a packet of the instance, as it comes from there.
    pub(crate) fn outer_answer(&self) -> Ends {
        Ends { source: self.instance, destination: self.outer_client() }
    }
}
