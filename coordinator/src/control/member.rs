//! The connection of an authenticated member.

use meshward_runtime::tls::MemberCertificate;
use quinn::{Connection, RecvStream, SendStream};
use std::net::SocketAddr;

/// A member's connection, whose first stream is open.
pub(super) struct MemberConnection {
    /// The QUIC connection.
    pub(super) connection: Connection,
    /// The member's certificate, which was checked but for its expiry.
    pub(super) certificate: MemberCertificate,
    /// The address from which the member's packets come.
    pub(super) from: SocketAddr,
    /// The sending side of the first stream.
    pub(super) send: SendStream,
    /// The receiving side of the first stream.
    pub(super) receive: RecvStream,
}
