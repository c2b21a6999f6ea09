//! The captures of every end-to-end test: one for each host's interfaces but for those of a mesh. A
//! packet with an address of the mesh that passes there in clear, on its own or quoted in an ICMP
//! error, fails the test.
//!
//! The kernel looks for them: a filter of packet(7)'s socket takes nothing else, and what it has
//! taken waits in the socket for the end. So there is no thread, and other packets cost some
//! instructions.

use crate::hex::hex;
use anyhow::{Context, Result};
use ipnet::IpNet;
use meshward_netns::{Netns, NetnsId};
use nix::{
    errno::Errno,
    net::if_::{if_indextoname, if_nametoindex},
    sys::socket::{LinkAddr, recvfrom},
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::{
    net::IpAddr,
    os::fd::AsRawFd,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
};

/// The protocol that stands for all of them, as packet(7) has it: big-endian.
const ALL: i32 = 0x0003_u16.to_be() as i32;
/// The type of Ethernet's devices (`linux/if_arp.h`); a TUN, and so every interface of the mesh,
/// has another.
const ETHERNET: u32 = 1;
/// The type of a packet that leaves (`linux/if_packet.h`).
const OUTGOING: u32 = 4;
/// The length that a captured packet is cut to, in bytes.
const SNAP: u32 = 128;
/// The most packets that a test tells of.
const MOST: usize = 16;

/// The captures of an internet.
#[derive(Debug, Default)]
pub struct Watch(Mutex<Captures>);

#[derive(Debug, Default)]
struct Captures {
    hosts: Vec<Capture>,
    prefixes: Vec<IpNet>,
}

#[derive(Debug)]
struct Capture {
    host: String,
    netns: Netns,
    id: NetnsId,
    socket: Socket,
    /// Interfaces to what is behind a gateway, by index.
    lans: Vec<u32>,
}

impl Watch {
    /// Adds a prefix to those of the mesh.
    ///
    /// # Errors
    /// Fails if the kernel does not take the filters.
    pub fn add(&self, prefix: IpNet) -> Result<()> {
        let mut captures = self.lock();
        captures.prefixes.push(prefix);
        captures.hosts.iter().try_for_each(|capture| capture.filter(&captures.prefixes))
    }

    /// Says that an interface leads to machines behind a gateway: packets of the mesh come from
    /// there, and errors about them go there. What leaves by it for the mesh is astray as
    /// elsewhere.
    ///
    /// # Errors
    /// Fails if the namespace or the interface is not known here.
    pub fn lan(&self, netns: &Netns, interface: &str) -> Result<()> {
        let (id, mut captures) = (netns.id()?, self.lock());
        let Captures { hosts, prefixes } = &mut *captures;
        let capture =
            hosts.iter_mut().find(|capture| capture.id == id).context("the host is not watched")?;
        capture.lans.push(netns.run(|| if_nametoindex(interface))??);
        capture.filter(prefixes)
    }

    /// Captures what a host's interfaces carry.
    pub(crate) fn host(&self, name: &str, netns: &Netns) -> Result<()> {
        let open = || Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(ALL)));
        let socket = netns.run(open)?.with_context(|| format!("cannot capture on {name}"))?;
        socket.set_nonblocking(true)?;
        let (host, id, netns) = (name.to_owned(), netns.id()?, netns.clone());
        let capture = Capture { host, netns, id, socket, lans: vec![] };
        let mut captures = self.lock();
        capture.filter(&captures.prefixes)?;
        // What came before there was a filter.
        while !capture.strays().is_empty() {}
        captures.hosts.push(capture);
        Ok(())
    }

    /// The packets that were where they should not have been, since this was asked last.
    pub fn strays(&self) -> Vec<String> {
        self.lock().hosts.iter().flat_map(Capture::strays).take(MOST).collect()
    }

    /// Ends the captures.
    ///
    /// # Panics
    /// Panics if a packet was seen that should not have been.
    pub(crate) fn end(&self) {
        let strays = self.strays();
        if strays.is_empty() {
            return;
        }
        let text =
            format!("packets of the mesh's prefixes outside of the mesh:\n{}", strays.join("\n"));
        assert!(thread::panicking(), "{text}");
        eprintln!("{text}");
    }

    fn lock(&self) -> MutexGuard<'_, Captures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Capture {
    fn filter(&self, prefixes: &[IpNet]) -> Result<()> {
        let program: Vec<SockFilter> =
            program(prefixes, &self.lans).into_iter().map(Step::into).collect();
        self.socket
            .attach_filter(&program)
            .with_context(|| format!("cannot filter on {}", self.host))
    }

    fn strays(&self) -> Vec<String> {
        let mut bytes = [0; SNAP as usize];
        let mut strays = Vec::new();
        while strays.len() < MOST {
            match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut bytes) {
                Ok((length, link)) => {
                    let index = link.map_or(0, |link| link.ifindex()) as u32;
                    strays.push(self.describe(index, &bytes[..length.min(SNAP as usize)]));
                }
                // An interface went down, which is said once.
                Err(Errno::ENETDOWN | Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        strays
    }

    fn describe(&self, index: u32, bytes: &[u8]) -> String {
        let name = self.netns.run(|| if_indextoname(index));
        let name = name.ok().and_then(Result::ok).map(|name| name.to_string_lossy().into_owned());
        let name = name.unwrap_or_else(|| format!("interface {index}"));
        let hex = hex(bytes);
        let way = addresses(bytes).map_or_else(String::new, |(from, to)| format!("{from} > {to} "));
        format!("{way}on {name} of {}: {hex}", self.host)
    }
}

fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
    let v6 = |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(at..at + 16)?).ok()?));
    match packet.first()? >> 4 {
        4 => Some((v4(12)?, v4(16)?)),
        6 => Some((v6(8)?, v6(24)?)),
        _ => None,
    }
}

// A program of Linux's classic BPF (Documentation/networking/filter.rst). It ends, and takes
// nothing, where it looks beyond a packet's end. Offsets are from the IP header on.

/// An instruction (`struct sock_filter` in linux/filter.h).
#[derive(Debug, Clone, Copy)]
struct Step {
    code: u16,
    /// The number of instructions that are skipped if the condition holds.
    skip_if: u8,
    /// The number of instructions that are skipped unless it holds.
    skip_unless: u8,
    operand: u32,
}

impl From<Step> for SockFilter {
    fn from(Step { code, skip_if, skip_unless, operand }: Step) -> Self {
        Self::new(code, skip_if, skip_unless, operand)
    }
}

const fn byte(at: u32) -> Step {
    Step { code: 0x30, skip_if: 0, skip_unless: 0, operand: at }
}

const fn word(at: u32) -> Step {
    Step { code: 0x20, skip_if: 0, skip_unless: 0, operand: at }
}

/// Loads the kernel's metadata of a packet (linux/filter.h: `SKF_AD_*`).
const fn ancillary(which: u32) -> Step {
    word(0xffff_f000 + which)
}

const PACKET_TYPE: Step = ancillary(4);
const INTERFACE: Step = ancillary(8);
const DEVICE_TYPE: Step = ancillary(28);

const fn mask(mask: u32) -> Step {
    Step { code: 0x54, skip_if: 0, skip_unless: 0, operand: mask }
}

/// Skips so many instructions unless what was loaded is `value`.
const fn unless(value: u32, skip: u8) -> Step {
    Step { code: 0x15, skip_if: 0, skip_unless: skip, operand: value }
}

/// Ends with so many bytes of the packet.
const fn take(bytes: u32) -> Step {
    Step { code: 0x06, skip_if: 0, skip_unless: 0, operand: bytes }
}

/// Runs `body` if the loaded value, under the mask `bits`, is `value`.
fn when(load: Step, bits: u32, value: u32, body: &[Step]) -> Vec<Step> {
    let over = Step { code: 0x05, skip_if: 0, skip_unless: 0, operand: body.len() as u32 };
    let is_it = Step { code: 0x15, skip_if: 1, skip_unless: 0, operand: value };
    [&[load, mask(bits), is_it, over], body].concat()
}

/// Accepts a packet with an address of the prefix at offset `at`.
fn within(prefix: &IpNet, at: u32) -> Vec<Step> {
    let words = |bytes: &[u8]| -> Vec<u32> {
        bytes
            .chunks(4)
            .map(|four| four.iter().fold(0, |word, byte| word << 8 | u32::from(*byte)))
            .collect()
    };
    let (network, netmask) = match prefix {
        IpNet::V4(prefix) => (words(&prefix.network().octets()), words(&prefix.netmask().octets())),
        IpNet::V6(prefix) => (words(&prefix.network().octets()), words(&prefix.netmask().octets())),
    };
    let looked_at = netmask.iter().filter(|bits| **bits != 0).count();
    let tests = (0..looked_at).flat_map(|number| {
        let left = 3 * (looked_at - number - 1) + 1;
        [word(at + 4 * number as u32), mask(netmask[number]), unless(network[number], left as u8)]
    });
    tests.chain([take(SNAP)]).collect()
}

fn any_within(prefixes: &[IpNet], at: &[u32]) -> Vec<Step> {
    at.iter().flat_map(|at| prefixes.iter().flat_map(|prefix| within(prefix, *at))).collect()
}

/// Returns the filter that accepts packets of these prefixes on Ethernet.
fn program(prefixes: &[IpNet], lans: &[u32]) -> Vec<Step> {
    let (v4, v6): (Vec<IpNet>, Vec<IpNet>) =
        prefixes.iter().copied().partition(|prefix| matches!(prefix, IpNet::V4(_)));
    let of_v4 = |body: &[Step]| when(byte(0), 0xf0, 0x40, body);
    let of_v6 = |body: &[Step]| when(byte(0), 0xf0, 0x60, body);
    let for_mesh = [of_v4(&any_within(&v4, &[16])), of_v6(&any_within(&v6, &[24]))].concat();
    let leaving = [when(PACKET_TYPE, !0, OUTGOING, &for_mesh), vec![take(0)]].concat();
    let by_lan = lans.iter().flat_map(|lan| when(INTERFACE, !0, *lan, &leaving));
    // Errors (RFC 792, RFC 4443) have the packet that they are about behind eight bytes of their
    // own.
    let echo = |kind| when(byte(20), 0xff, kind, &[take(0)]);
    let errors = [echo(0), echo(8), any_within(&v4, &[40, 44])].concat();
    let errors = when(byte(0), 0xff, 0x45, &when(byte(9), 0xff, 1, &errors));
    let errors_v6 = when(byte(6), 0xff, 58, &when(byte(40), 0x80, 0, &any_within(&v6, &[56, 72])));
    let all = [
        of_v4(&[any_within(&v4, &[12, 16]), errors].concat()),
        of_v6(&[any_within(&v6, &[8, 24]), errors_v6].concat()),
    ];
    let body: Vec<Step> = by_lan.chain(all.concat()).collect();
    [when(DEVICE_TYPE, !0, ETHERNET, &body), vec![take(0)]].concat()
}
