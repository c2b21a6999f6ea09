//! Connections through services whose flows a crash has lost, as long as the client has not spoken.
//!
//! If the client sends first, its packet is translated by a new choice, which is nearly always the
//! same. If the instance sends first, as in a running download, its packet does not show whether
//! the client has connected to the service or to the instance itself. It is presumed to be a
//! connection through the service. If that is wrong, the client's kernel, which knows no such
//! connection, answers with a reset: that goes nowhere, and the connection goes on without the
//! service.

use super::service::Opening;
use crate::{
    drop_reason::DropReason,
    filter::Passed,
    headers::{Fragment, Headers, RST, SYN},
    packet_batch::PacketBatch,
    rules::Party,
    services::{
        connections::ClientKey,
        directory::Front,
        load::Micros,
        mapping::{Mapping, Socket},
        translation::{Replacement, Target, Translation},
    },
    tables::local_entry::LocalEntry,
};
use meshward_types::IdentityId;
use std::sync::Arc;

impl PacketBatch<'_> {
    /// Returns the connection through a service that a packet is presumed to belong to, which an
    /// instance may have sent: if flows from before a crash may be missing, and it has none.
    /// `sender`: the identity that has sent it.
    ///
    /// # Errors
    /// The reason to drop it: flows are still to be imported, or its client has another instance.
    #[inline]
    pub(crate) fn presume(
        &self,
        sender: impl FnOnce() -> Option<IdentityId>,
        headers: &Headers,
    ) -> Result<Option<Arc<Translation>>, DropReason> {
        if !self.state.filter.may_lack_flows(self.now) {
            return Ok(None);
        }
        sender().map_or(Ok(None), |sender| self.presume_answer(sender, headers))
    }

    #[cold]
    fn presume_answer(
        &self,
        sender: IdentityId,
        headers: &Headers,
    ) -> Result<Option<Arc<Translation>>, DropReason> {
        let goes_on = headers.ip_protocol == 6
            && headers.tcp_flags & (SYN | RST) == 0
            && !matches!(headers.fragment, Fragment::Later(_));
        let client = self.tables.local_at(headers.destination);
        let client = client.and_then(|(_, local)| local.party()).filter(|_| goes_on);
        let Some(client) = client else { return Ok(None) };
        let instance = Socket { address: headers.source, port: headers.source_port };
        let fronts = self.tables.services.fronts(sender, instance);
        if fronts.is_empty() || self.state.filter.has_flow(self.now, headers) {
            return Ok(None);
        }
        if self.state.filter.awaits_flows() {
            return Err(DropReason::AwaitsFlows);
        }
        let now = self.micros;
        let mapping = |front: &Front<'_>| Mapping {
            client: Socket { address: headers.destination, port: headers.destination_port },
            service: Socket { address: front.address, port: front.port.port },
            instance,
            source_port: headers.destination_port,
            ip_protocol: headers.ip_protocol,
        };
        let is_chosen = |front: &&Front<'_>| {
            let request = mapping(front).request().headers(headers.ip_protocol);
            let chosen = self.instance_for(&Opening::of(front, client, &request, now));
            chosen.is_ok_and(|chosen| chosen.address == instance.address)
        };
        let Some(front) = fronts.iter().find(is_chosen).or(fronts.first()) else {
            return Ok(None);
        };
        let mapping = mapping(front);
        if self.state.services.connections.get(&ClientKey::of_request(&mapping)).is_some() {
            return Err(DropReason::Moved);
        }
        let target =
            Target { counters: front.service.counters.clone(), load: front.instance.load.clone() };
        Ok(Some(Arc::new(Translation::presumed(mapping, Some(target), now))))
    }

    /// Notes a connection that is presumed, the first packet of which may pass: it is to be
    /// translated as an answer.
    #[cold]
    pub(crate) fn note_presumed(&self, translation: Arc<Translation>, passed: &mut Passed) {
        let client = self.tables.local_at(translation.mapping.client.address);
        if let Some((_, LocalEntry { owner, .. })) = client {
            self.state.services.put(self.now, *owner, &translation);
            translation.begin();
        }
        passed.translation = Some(translation);
    }

    /// Forgets a connection that was presumed: its client knows none with the service.
    #[cold]
    pub(super) fn forget_presumed(&mut self, translation: &Translation) {
        let mapping = &translation.mapping;
        self.last_connection = None;
        self.state.services.connections.remove(&ClientKey::of_request(mapping));
        let outer = mapping.outer_request().headers(mapping.ip_protocol);
        self.state.filter.forget_translation(self.now, &outer);
        translation.note_replaced(Replacement::Same);
    }
}

impl<'a> Opening<'a> {
    /// A connection that a client may have opened, of which no packet is there.
    fn of(front: &Front<'a>, source: Party, headers: &'a Headers, now: Micros) -> Self {
        let Front { service, port, .. } = *front;
        Self { service, port, source, headers, packet: &[], now, tried: vec![] }
    }
}
