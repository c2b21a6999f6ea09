//! Admission of connections under load: members and operators come before strangers, and no
//! stranger before another.

use crate::limits::{
    CONNECTIONS_OF_A_MEMBER, JOINS, KNOWN_SOURCES, RETRY_FROM, Strangers, TRUSTED_CONNECTIONS,
};
use meshward_runtime::{
    connection_permits::ConnectionPermits,
    sources::{KnownSources, OpenBySource, OpenLimit, RateBySource, Seldom, SourcePermit},
};
use parking_lot::Mutex;
use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map::Entry},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::Notify;
use tracing::warn;

/// The maximum number of sources of failed authentications that are counted one by one.
const FAILED_SOURCES: usize = 256;
/// The number of sources that a line of the audit log names.
const NAMED_SOURCES: usize = 4;

/// The guard of a process's listeners: limits on connections, handshakes, joins and failures.
#[derive(Debug)]
pub struct Guard {
    /// The permits of TCP connections.
    pub permits: Arc<ConnectionPermits>,
    /// The addresses from which members and operators have authenticated.
    known: Arc<KnownSources>,
    /// QUIC handshakes whose client has not proven its address.
    unproven: Arc<OpenBySource>,
    /// QUIC handshakes of strangers.
    strangers: Arc<OpenBySource>,
    /// QUIC handshakes of known addresses.
    members: Arc<OpenBySource>,
    joins: Arc<OpenBySource>,
    join_rate: RateBySource,
    failures: RateBySource,
    counts: Counts,
    /// Failed authentications that are not in the audit log yet.
    unaudited: Mutex<Failed>,
    /// Woken when there is one.
    pub failed: Notify,
}

/// A summary of failed authentications, of bounded size.
#[derive(Debug, Default, Clone)]
pub struct Failed {
    /// The number of failures by kind of credential and source.
    by_source: HashMap<(&'static str, IpAddr), u64>,
    /// The number of failures of further sources.
    others: u64,
}

impl Failed {
    fn note(&mut self, source: IpAddr, what: &'static str, count: u64) {
        let has_room = self.by_source.len() < FAILED_SOURCES;
        match self.by_source.entry((what, source)) {
            Entry::Occupied(mut known) => *known.get_mut() += count,
            Entry::Vacant(new) if has_room => drop(new.insert(count)),
            Entry::Vacant(_) => self.others += count,
        }
    }

    /// Returns a line for the audit log, which names the sources of most failures; `None` if there
    /// were none.
    pub fn line(&self) -> Option<String> {
        let count = self.by_source.values().sum::<u64>() + self.others;
        let mut sources: Vec<_> = self.by_source.iter().collect();
        sources.sort_unstable_by_key(|((what, source), count)| (Reverse(**count), *what, *source));
        let named: Vec<String> = sources
            .iter()
            .take(NAMED_SOURCES)
            .map(|((what, source), count)| format!("{count} by {what} from {source}"))
            .collect();
        let mut line = match count {
            0 => return None,
            1 => "an authentication failed: ".to_owned(),
            _ => format!("{count} authentications failed: "),
        } + &named.join(", ");
        if sources.len() > NAMED_SOURCES || self.others > 0 {
            line += ", and others";
        }
        Some(line)
    }
}

/// Counts of what was refused since the start.
#[derive(Debug, Default)]
pub struct Counts {
    /// QUIC handshakes that had to prove their address first.
    pub retried: AtomicU64,
    /// QUIC handshakes refused because too many were under way.
    pub refused: AtomicU64,
    /// Requests to join refused because there were too many.
    pub joins: AtomicU64,
    /// Authentications that failed.
    pub failures: AtomicU64,
    /// Authentications refused unchecked after too many failures.
    pub rate_limited: AtomicU64,
}

/// The decision about a QUIC handshake.
#[derive(Debug)]
pub enum Verdict {
    /// Continue it; it keeps the permit until it is done.
    Accept(SourcePermit),
    /// Have the client prove its address first (RFC 9000 §8.1.2).
    Retry,
    /// Refuse it: too many are under way.
    Refuse,
}

/// The state of a client's address (address validation, RFC 9000 §8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressValidation {
    /// The client has received a packet that was sent to its address.
    Proven,
    /// The address may be forged.
    Unproven,
}

impl Guard {
    /// Creates a guard for a process that may have `descriptors` connections.
    pub fn new(limits: &Strangers, descriptors: usize) -> Arc<Self> {
        let known = Arc::new(KnownSources::new(KNOWN_SOURCES));
        let tcp = limits.tcp(descriptors);
        let trusted = descriptors.saturating_sub(tcp.total * 3 / 2).clamp(1, TRUSTED_CONNECTIONS);
        let quic = limits.quic();
        // One source may have all of them: a whole site may come back behind one address.
        let members =
            OpenLimit { per_address: quic.total, per_prefix: quic.total, total: quic.total };
        Arc::new(Self {
            permits: ConnectionPermits::new(tcp, trusted, known.clone()),
            known,
            unproven: OpenBySource::new(OpenLimit {
                per_address: RETRY_FROM,
                per_prefix: RETRY_FROM,
                total: RETRY_FROM,
            }),
            strangers: OpenBySource::new(quic),
            members: OpenBySource::new(members),
            joins: OpenBySource::new(JOINS),
            join_rate: RateBySource::new(limits.joins()),
            failures: RateBySource::new(limits.failures()),
            counts: Counts::default(),
            unaudited: Mutex::default(),
            failed: Notify::new(),
        })
    }

    /// Decides about a QUIC handshake.
    pub fn decide(&self, source: IpAddr, validation: AddressValidation) -> Verdict {
        let is_proven = validation == AddressValidation::Proven || source.is_loopback();
        let permits = match (is_proven, source.is_loopback() || self.known.contains(source)) {
            (false, _) => &self.unproven,
            (true, true) => &self.members,
            (true, false) => &self.strangers,
        };
        match permits.open(source) {
            Some(permit) => Verdict::Accept(permit),
            None if is_proven => {
                self.counts.refused.fetch_add(1, Relaxed);
                Verdict::Refuse
            }
            None => {
                self.counts.retried.fetch_add(1, Relaxed);
                Verdict::Retry
            }
        }
    }

    /// Records that a member or an operator has authenticated from an address.
    pub fn note_known(&self, source: IpAddr) {
        self.known.note(source);
    }

    /// Returns the permit of a request to join, to be kept while it is served; `None` if there are
    /// too many.
    pub fn permit_join(&self, source: IpAddr, now: Instant) -> Option<SourcePermit> {
        let permit = self
            .joins
            .open(source)
            .filter(|_| source.is_loopback() || self.join_rate.take(source, now));
        if permit.is_none() {
            self.counts.joins.fetch_add(1, Relaxed);
        }
        permit
    }

    /// Returns `false` for a source with too many failed authentications. A source from which a
    /// member or operator has authenticated before is let through, so that nobody locks an operator
    /// out by failing beside them.
    pub fn may_authenticate(&self, source: IpAddr, now: Instant) -> bool {
        let is_allowed = source.is_loopback()
            || self.known.contains(source)
            || self.failures.allows(source, now);
        if !is_allowed {
            self.counts.rate_limited.fetch_add(1, Relaxed);
        }
        is_allowed
    }

    /// Counts a failed authentication, and logs one at most every five seconds. `what` is the kind
    /// of credential, such as "an API token".
    pub fn note_failure(&self, source: IpAddr, what: &'static str, now: Instant) {
        static LINES: Seldom = Seldom::every(Duration::from_secs(5));
        self.counts.failures.fetch_add(1, Relaxed);
        self.failures.take(source, now);
        self.unaudited.lock().note(source.to_canonical(), what, 1);
        self.failed.notify_one();
        if let Some(more) = LINES.due(now) {
            warn!(from = %source, unlogged_before = more, "failed authentication by {what}");
        }
    }

    /// Returns the failures that are not in the audit log yet, and removes them. If they cannot be
    /// written, they go back by [`Self::restore_failed`].
    pub fn drain_failed(&self) -> Failed {
        std::mem::take(&mut self.unaudited.lock())
    }

    /// Restores failures that could not be written.
    pub fn restore_failed(&self, failed: Failed) {
        let mut unaudited = self.unaudited.lock();
        unaudited.others += failed.others;
        for ((what, source), count) in failed.by_source {
            unaudited.note(source, what, count);
        }
        drop(unaudited);
        self.failed.notify_one();
    }

    /// Returns the counts since the start.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// The number of connections of each member, by protocol.
#[derive(Debug, Default)]
pub struct MemberConnections(Arc<Mutex<HashMap<String, usize>>>);

/// The permit of one connection. It is free again when this is dropped.
#[derive(Debug)]
pub struct MemberPermit {
    counts: Arc<Mutex<HashMap<String, usize>>>,
    key: String,
}

impl MemberConnections {
    /// Reserves a permit for a connection of a member; `None` if it has too many.
    pub fn open(&self, member: &str, alpn: &[u8]) -> Option<MemberPermit> {
        let key = format!("{member} {}", alpn.escape_ascii());
        let mut counts = self.0.lock();
        let count = counts.entry(key.clone()).or_default();
        if *count >= CONNECTIONS_OF_A_MEMBER {
            return None;
        }
        *count += 1;
        Some(MemberPermit { counts: self.0.clone(), key })
    }
}

impl Drop for MemberPermit {
    fn drop(&mut self) {
        let mut counts = self.counts.lock();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        AddressValidation::{Proven, Unproven},
        *,
    };

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn forged_addresses_leave_room_for_proven_ones_and_strangers_for_members() {
        let guard = Guard::new(&Strangers::default(), 10_000);
        let forged: Vec<Verdict> = (0..10_000u32)
            .map(|at| guard.decide(IpAddr::from((0x0a00_0000 + at * 256).to_be_bytes()), Unproven))
            .collect();
        let accepted =
            forged.iter().filter(|verdict| matches!(verdict, Verdict::Accept(_))).count();
        assert_eq!(accepted, RETRY_FROM);
        assert!(matches!(forged[9_999], Verdict::Retry));
        assert!(matches!(guard.decide(ip("192.0.2.1"), Proven), Verdict::Accept(_)));

        guard.note_known(ip("192.0.2.1"));
        let real: Vec<Verdict> = (0..10_000u32)
            .map(|at| guard.decide(IpAddr::from((0x0a00_0000 + at * 256).to_be_bytes()), Proven))
            .collect();
        assert!(matches!(real[9_999], Verdict::Refuse));
        assert!(
            matches!(guard.decide(ip("192.0.2.1"), Proven), Verdict::Accept(_)),
            "a member's source"
        );
        assert!(
            matches!(guard.decide(ip("192.0.2.1"), Unproven), Verdict::Retry),
            "if it is its own"
        );
        assert!(
            matches!(guard.decide(ip("127.0.0.1"), Unproven), Verdict::Accept(_)),
            "the operator's machine"
        );
    }

    #[test]
    fn failures_are_summed_up_in_a_line_that_stays_short() {
        let (guard, now) = (Guard::new(&Strangers::default(), 1000), Instant::now());
        assert_eq!(guard.drain_failed().line(), None);
        guard.note_failure(ip("192.0.2.1"), "an API token", now);
        let line = guard.drain_failed().line().unwrap();
        assert_eq!(line, "an authentication failed: 1 by an API token from 192.0.2.1");
        for at in 0..10_000u32 {
            guard.note_failure(IpAddr::from((0x0a00_0000 + at).to_be_bytes()), "a join token", now);
            guard.note_failure(ip("::ffff:192.0.2.1"), "an API token", now);
        }
        let failed = guard.drain_failed();
        assert!(failed.by_source.len() <= FAILED_SOURCES);
        let line = failed.line().unwrap();
        let begins =
            "20000 authentications failed: 10000 by an API token from 192.0.2.1, 1 by a join token";
        assert!(
            line.starts_with(begins) && line.ends_with(", and others") && line.len() < 300,
            "{line}"
        );
        guard.restore_failed(failed);
        assert_eq!(guard.drain_failed().line().unwrap(), line, "nothing is lost");
    }

    #[test]
    fn a_source_that_fails_too_often_is_refused_unchecked_and_others_are_not() {
        let guard = Guard::new(&Strangers { failures_per_minute: 3.0, ..Default::default() }, 1000);
        let now = Instant::now();
        guard.note_known(ip("198.51.100.1"));
        for _ in 0..3 {
            assert!(guard.may_authenticate(ip("192.0.2.1"), now));
            guard.note_failure(ip("192.0.2.1"), "an API token", now);
            guard.note_failure(ip("198.51.100.1"), "an API token", now);
        }
        assert!(!guard.may_authenticate(ip("192.0.2.1"), now));
        assert!(guard.may_authenticate(ip("198.51.100.1"), now));
        assert!(guard.may_authenticate(ip("192.0.2.2"), now));
        assert!(
            guard.may_authenticate(ip("192.0.2.1"), now + Duration::from_secs(20)),
            "it comes back"
        );
    }
}
