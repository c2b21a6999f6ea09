//! The state of services that all workers of an endpoint share.

use super::{
    connections::{ClientKey, Connections, MAX_CONNECTIONS},
    expiring::Expiring,
    load::Micros,
    mapping::{Ends, Mapping, Socket},
    translation::{Target, Translation},
};
use crate::{
    headers::{Fragment, Headers},
    owner::QuotaOwner,
};
use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Seconds for which the rest of a packet may follow its first fragment, as in the filter.
const FRAGMENT_LIFETIME: u32 = 30;
const MAX_FRAGMENTS: usize = 16_384;
/// Maximum number of clients whose last instance is known.
const MAX_CLIENTS: usize = 1 << 17;
/// The time for which the last instance of a client of QUIC is known: as long as a flow of UDP that
/// is idle.
pub(crate) const QUIC_LIFETIME: Duration = Duration::from_mins(3);

/// A packet whose fragments are rewritten alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FragmentKey {
    source: IpAddr,
    destination: IpAddr,
    id: u32,
    ip_protocol: u8,
}

impl FragmentKey {
    fn of(headers: &Headers) -> Option<Self> {
        let (Fragment::First(id) | Fragment::Later(id)) = headers.fragment else { return None };
        let Headers { source, destination, ip_protocol, .. } = *headers;
        let ip_protocol = if source.is_ipv4() { ip_protocol } else { 0 };
        Some(Self { source, destination, id, ip_protocol })
    }
}

/// A client of a service, whose connections are to go to one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ClientOf {
    /// Any connections of an address, where the service keeps them together.
    Service { client: IpAddr, service: IpAddr },
    /// Connections of QUIC, which go on from other ports of the client.
    Quic { client: IpAddr, service: Socket },
}

/// The instance that a client talked to last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastInstance {
    pub(crate) client: ClientOf,
    /// The instance's address.
    pub(crate) instance: IpAddr,
    /// The time for which it is known.
    pub(crate) kept: Duration,
}

/// The state of services that all workers of an endpoint share.
#[derive(Debug)]
pub(crate) struct ServiceState {
    start: Instant,
    pub(crate) connections: Connections,
    /// The address of the instance that a client talked to last.
    last_instances: Expiring<ClientOf, IpAddr>,
    /// The ends of packets of which the first fragment was rewritten.
    fragments: Expiring<FragmentKey, Ends>,
}

impl ServiceState {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            start: now,
            connections: Connections::new(MAX_CONNECTIONS),
            last_instances: Expiring::new(MAX_CLIENTS),
            fragments: Expiring::new(MAX_FRAGMENTS),
        }
    }

    /// Returns the microseconds since the start.
    pub(crate) fn micros(&self, now: Instant) -> Micros {
        // Nothing has the time 0.
        Micros(now.saturating_duration_since(self.start).as_micros() as u64 + 1)
    }

    pub(crate) fn seconds(&self, now: Instant) -> u32 {
        now.saturating_duration_since(self.start).as_secs() as u32
    }

    /// Notes the ends that the first fragment of a packet gets, before it is rewritten.
    pub(crate) fn note_fragment(
        &self,
        now: Instant,
        headers: &Headers,
        owner: QuotaOwner,
        ends: &Ends,
    ) {
        if let (Fragment::First(_), Some(key)) = (headers.fragment, FragmentKey::of(headers)) {
            self.fragments.put(key, owner, *ends, self.seconds(now) + FRAGMENT_LIFETIME);
        }
    }

    /// Returns the ends that a later fragment gets.
    pub(crate) fn ends_of_fragment(&self, now: Instant, headers: &Headers) -> Option<Ends> {
        let key = FragmentKey::of(headers)?;
        self.fragments.get(self.seconds(now), &key)
    }

    /// Returns the address of the instance that a client talked to last.
    pub(crate) fn last_instance(&self, now: Instant, client: &ClientOf) -> Option<IpAddr> {
        self.last_instances.get(self.seconds(now), client)
    }

    /// Notes the instance that a client talks to.
    pub(crate) fn note_instance(&self, now: Instant, owner: QuotaOwner, last: LastInstance) {
        let LastInstance { client, instance, kept } = last;
        let seconds = kept.as_secs().try_into().unwrap_or(u32::MAX).max(1);
        let deadline = self.seconds(now).saturating_add(seconds);
        self.last_instances.put(client, owner, instance, deadline);
    }

    /// Takes up a connection from before a restart. `target`: the instance that it counts for, if
    /// that is still there.
    pub(crate) fn restore(
        &self,
        now: Instant,
        owner: QuotaOwner,
        mapping: Mapping,
        target: Option<Target>,
    ) -> Arc<Translation> {
        let translation = Arc::new(Translation::restored(mapping, target, self.micros(now)));
        translation.begin();
        self.put(now, owner, &translation);
        translation
    }

    /// Notes a connection. Returns the one of the same addresses and ports that it replaces.
    pub(crate) fn put(
        &self,
        now: Instant,
        owner: QuotaOwner,
        translation: &Arc<Translation>,
    ) -> Option<Arc<Translation>> {
        let (mapping, seconds) = (&translation.mapping, self.seconds(now));
        let key = ClientKey::of_request(mapping);
        let before = self.connections.put(key, owner, translation.clone(), seconds);
        if mapping.is_hairpin() {
            let key = ClientKey::of_looped_answer(mapping);
            self.connections.put(key, owner, translation.clone(), seconds);
        }
        before
    }

    /// Forgets what is over.
    pub(crate) fn tick(&self, now: Instant) {
        let seconds = self.seconds(now);
        self.connections.expire(seconds);
        self.last_instances.expire(seconds);
        self.fragments.expire(seconds);
    }
}
