//! Sites behind one router.

use crate::{
    capture::Watch,
    host::host,
    process::output,
    uplink::{LOSSY, NO_UDP, NatProfile, ONE_WAY, Uplink},
};
use anyhow::{Context, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use meshward_netns::Netns;
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::Command,
};

/// A router with a link to every site. Subnets come from 198.18.0.0/15 (RFC 2544) and
/// `2001:db8::/32` (RFC 3849).
#[derive(Debug)]
pub struct Internet {
    router: Netns,
    sites: u8,
    /// The routers of sites behind a NAT.
    gateways: Vec<Netns>,
    /// `true` if new sites have a provider between them and the router.
    providers: bool,
    /// The cables on the way of each site to the router, by its name: its own first.
    cables: BTreeMap<String, Vec<Cable>>,
    /// The hosts with addresses of the internet, and those behind them, by name.
    hosts: Vec<(String, Netns)>,
    /// Captures of what these carry.
    watch: Option<Watch>,
}

impl Drop for Internet {
    fn drop(&mut self) {
        if let Some(watch) = &self.watch {
            watch.end();
        }
    }
}

/// A cable: the interfaces at both of its ends.
#[derive(Debug, Clone)]
struct Cable([(Netns, String); 2]);

/// A cable on a site's way to the router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// The site's own.
    Own,
    /// The last, between two routers if there are providers.
    Last,
}

/// Makes two sites with nothing but a cable in between: for benchmarks.
///
/// # Errors
/// Fails if namespaces or links cannot be made.
pub fn back_to_back(names: [&str; 2]) -> Result<[Site; 2]> {
    let sites = [(1, names[0]), (2, names[1])].map(|(number, name)| -> Result<Site> {
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, number);
        let v4 = Ipv4Addr::new(198, 18, 0, number as u8);
        Ok(Site { name: name.to_owned(), netns: host()?, v4, v6 })
    });
    let [a, b] = sites;
    let sites = [a?, b?];
    sites[0].netns.links(async |links| {
        links.add_veth("eth0", "far").await?;
        links.move_to("far", &sites[1].netns, "eth0").await
    })?;
    for site in &sites {
        site.netns.links(async |links| {
            links.add_address("eth0", site.v4.into(), 24).await?;
            links.add_address("eth0", site.v6.into(), 64).await?;
            links.set_up("eth0").await
        })?;
    }
    Ok(sites)
}

impl Internet {
    /// Narrows the link between the router and a site to packets of `mtu` bytes.
    ///
    /// # Errors
    /// Fails if the link cannot be changed.
    pub fn narrow(&self, site: &Site, mtu: u32) -> Result<()> {
        let port = format!("site{}", site.v4.octets()[2]);
        self.router.links(async |links| links.set_mtu(&port, mtu).await)?;
        Ok(site.netns.links(async |links| links.set_mtu("eth0", mtu).await)?)
    }
}

/// A host of its own subnet.
#[derive(Debug, Clone)]
pub struct Site {
    /// The name.
    pub name: String,
    /// The namespace of the site's host.
    pub netns: Netns,
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl Internet {
    /// Makes an internet without sites.
    ///
    /// # Errors
    /// Fails if namespaces cannot be made.
    pub fn new() -> Result<Self> {
        let router = router()?;
        let hosts = vec![("the router".to_owned(), router.clone())];
        let cables = BTreeMap::new();
        Ok(Self {
            router,
            sites: 0,
            gateways: vec![],
            providers: false,
            cables,
            hosts,
            watch: None,
        })
    }

    /// Captures what the router and the hosts of all sites carry, from now on: a packet with an
    /// address of a mesh, outside of WireGuard, panics when this ends.
    ///
    /// # Errors
    /// Fails if their interfaces cannot be captured.
    pub fn watch(&mut self) -> Result<()> {
        if self.watch.is_none() {
            let watch = Watch::default();
            self.hosts.iter().try_for_each(|(name, netns)| watch.host(name, netns))?;
            self.watch = Some(watch);
        }
        Ok(())
    }

    fn add_host(&mut self, name: &str, netns: &Netns) -> Result<()> {
        self.hosts.push((name.to_owned(), netns.clone()));
        self.watch.as_ref().map_or(Ok(()), |watch| watch.host(name, netns))
    }

    /// The captures, if there are any.
    pub fn watched(&self) -> Option<&Watch> {
        self.watch.as_ref()
    }

    /// Has sites that come from now on reach the router by one more router, their provider's.
    pub fn add_providers(&mut self) {
        self.providers = true;
    }

    /// Adds a site.
    ///
    /// # Errors
    /// Fails if links cannot be made.
    pub fn site(&mut self, name: &str) -> Result<Site> {
        self.sites += 1;
        let number = self.sites;
        let netns = host()?;
        let v4 = |host| Ipv4Addr::new(198, 18, number, host);
        let v6 = |host| Ipv6Addr::new(0x2001, 0xdb8, u16::from(number), 0, 0, 0, 0, host);
        let port = format!("site{number}");
        let near = if self.providers { self.provider(name, number)? } else { self.router.clone() };
        let inside = if self.providers { "site" } else { &port };
        near.links(async |links| {
            links.add_veth(inside, "uplink").await?;
            links.move_to("uplink", &netns, "eth0").await?;
            links.add_address(inside, v4(1).into(), 24).await?;
            links.add_address(inside, v6(1).into(), 64).await?;
            links.set_up(inside).await
        })?;
        let cable = Cable([(netns.clone(), "eth0".into()), (near, inside.into())]);
        self.cables.entry(name.to_owned()).or_default().insert(0, cable);
        join(&netns, "eth0", [(v4(2).into(), v4(1).into(), 24), (v6(2).into(), v6(1).into(), 64)])?;
        self.add_host(name, &netns)?;
        Ok(Site { name: name.to_owned(), netns, v4: v4(2), v6: v6(2) })
    }

    /// Makes the router of a site's provider.
    fn provider(&mut self, name: &str, number: u8) -> Result<Netns> {
        let provider = router()?;
        let v4 = |host| Ipv4Addr::new(198, 19, number, host);
        let v6 = |host| Ipv6Addr::new(0x2001, 0xdb8, 0x1900 + u16::from(number), 0, 0, 0, 0, host);
        let port = format!("site{number}");
        let site: [(IpNet, IpAddr); 2] = [
            (Ipv4Net::new_assert(Ipv4Addr::new(198, 18, number, 0), 24).into(), v4(2).into()),
            (
                Ipv6Net::new_assert(Ipv6Addr::new(0x2001, 0xdb8, number.into(), 0, 0, 0, 0, 0), 64)
                    .into(),
                v6(2).into(),
            ),
        ];
        self.router.links(async |links| {
            links.add_veth(&port, "uplink").await?;
            links.move_to("uplink", &provider, "eth0").await?;
            links.add_address(&port, v4(1).into(), 24).await?;
            links.add_address(&port, v6(1).into(), 64).await?;
            links.set_up(&port).await?;
            for (prefix, by) in site {
                links.add_route(&port, prefix, Some(by), None).await?;
            }
            Ok(())
        })?;
        join(
            &provider,
            "eth0",
            [(v4(2).into(), v4(1).into(), 24), (v6(2).into(), v6(1).into(), 64)],
        )?;
        let cable = Cable([(provider.clone(), "eth0".into()), (self.router.clone(), port)]);
        self.cables.entry(name.to_owned()).or_default().insert(0, cable);
        self.add_host(&format!("the provider of {name}"), &provider)?;
        Ok(provider)
    }

    /// Limits a cable on a site's way to the router to packets of `mtu` bytes; routers report it
    /// (RFC 1191, RFC 8201).
    ///
    /// # Errors
    /// Fails if there is no such site, or the cable cannot be changed.
    pub fn set_mtu(&self, site: &str, hop: Hop, mtu: u32) -> Result<()> {
        let cables = self.cables.get(site).context("there is no such site")?;
        let cable = if hop == Hop::Own { cables.first() } else { cables.last() };
        for (netns, interface) in &cable.context("the site has no cable")?.0 {
            netns.links(async |links| links.set_mtu(interface, mtu).await)?;
        }
        Ok(())
    }

    /// Adds a site with an uplink, and returns it with the IPv4 address at which others see it.
    /// Behind a NAT, a site has a private IPv4 address, which is the same at every such site, and
    /// no IPv6.
    ///
    /// # Errors
    /// Fails if links cannot be made, or `nft` or `tc` is missing.
    pub fn site_with_uplink(&mut self, name: &str, uplink: Uplink) -> Result<(Site, Ipv4Addr)> {
        let nats = uplink.nats();
        if !nats.is_empty() {
            return self.site_behind_nats(name, &nats);
        }
        let site = self.site(name)?;
        match uplink {
            Uplink::Open | Uplink::Nat(_) | Uplink::DoubleNat => {}
            Uplink::Firewall => drop_unsolicited(&site.netns)?,
            Uplink::TcpOnly => {
                drop_unsolicited(&site.netns)?;
                nft(&site.netns, NO_UDP)?;
            }
            Uplink::OneWay => nft(&site.netns, ONE_WAY)?,
            Uplink::Lossy => nft(&site.netns, LOSSY)?,
            Uplink::Slow => {
                let shape = "qdisc add dev eth0 root tbf rate 20mbit burst 64kb latency 50ms";
                output(&site.netns, Command::new("tc").args(shape.split(' ')))
                    .context("tc of iproute2 is needed")?;
            }
            Uplink::LowMtu => self.narrow_silently(&site, 1280)?,
        }
        let seen_at = site.v4;
        Ok((site, seen_at))
    }

    /// Adds a site behind a chain of NATs, the outermost first.
    fn site_behind_nats(&mut self, name: &str, nats: &[NatProfile]) -> Result<(Site, Ipv4Addr)> {
        let gateway = self.site(&format!("{name}-gateway"))?;
        let (mut netns, mut v4) = (gateway.netns.clone(), gateway.v4);
        for (profile, subnet) in nats.iter().zip(1..) {
            (netns, v4) = self.add_nat(name, &netns, subnet, *profile)?;
        }
        let cables = self.cables.remove(&gateway.name).unwrap_or_default();
        self.cables.entry(name.to_owned()).or_default().extend(cables);
        Ok((Site { name: name.to_owned(), netns, v4, v6: Ipv6Addr::UNSPECIFIED }, gateway.v4))
    }

    /// Makes `gateway` a NAT, and returns a new host behind it with its address, in
    /// 192.168.`subnet`.0/24.
    fn add_nat(
        &mut self,
        name: &str,
        gateway: &Netns,
        subnet: u8,
        profile: NatProfile,
    ) -> Result<(Netns, Ipv4Addr)> {
        let netns = host()?;
        let address = |host| Ipv4Addr::new(192, 168, subnet, host);
        gateway.links(async |links| {
            links.add_veth("inside", "uplink").await?;
            links.move_to("uplink", &netns, "eth0").await?;
            links.add_address("inside", address(1).into(), 24).await?;
            links.set_up("inside").await
        })?;
        netns.links(async |links| {
            links.set_up("eth0").await?;
            links.add_address("eth0", address(2).into(), 24).await?;
            // A literal is a prefix.
            let all = "0.0.0.0/0".parse().expect("the default route is a prefix");
            links.add_route("eth0", all, Some(address(1).into()), None).await
        })?;
        gateway.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1"))??;
        nft(gateway, &profile.rules(address(2)))?;
        drop_unsolicited(gateway)?;
        self.gateways.push(gateway.clone());
        let cable = Cable([(netns.clone(), "eth0".into()), (gateway.clone(), "inside".into())]);
        self.cables.entry(name.to_owned()).or_default().insert(0, cable);
        self.add_host(&format!("{name} behind NAT {subnet}"), &netns)?;
        Ok((netns, address(2)))
    }
}

impl Internet {
    /// Makes a black hole: packets of more than `mtu` bytes to or from a site are lost, and so are
    /// all fragments. No ICMP error reports it.
    ///
    /// # Errors
    /// Fails if the link cannot be changed, or `nft` is missing.
    pub fn narrow_silently(&self, site: &Site, mtu: u32) -> Result<()> {
        let port = format!("site{}", site.v4.octets()[2]);
        self.router.links(async |links| links.set_mtu(&port, mtu).await)?;
        let before = "table inet silent {}\ndelete table inet silent\n";
        let silent = "chain out {
type filter hook output priority 0
icmp type destination-unreachable drop
icmpv6 type packet-too-big drop
}";
        nft(&self.router, &format!("{before}table inet silent {{\n{silent}\n}}\n"))?;
        let rules = "ip frag-off & 0x3fff != 0 drop\nexthdr frag exists drop";
        // Before the kernel puts fragments together.
        let chain = format!("chain in {{\ntype filter hook prerouting priority -450\n{rules}\n}}");
        nft(&site.netns, &format!("table inet narrow {{\n{chain}\n}}\n"))
    }

    /// Adds an address to a router that others see at `seen`.
    ///
    /// # Errors
    /// Fails if the links cannot be changed.
    pub fn also_at(&self, gateway: &Netns, seen: Ipv4Addr, address: Ipv4Addr) -> Result<()> {
        gateway.links(async |links| links.add_address("eth0", address.into(), 32).await)?;
        let port = format!("site{}", seen.octets()[2]);
        let prefix = ipnet::Ipv4Net::from(address).into();
        Ok(self
            .router
            .links(async |links| links.add_route(&port, prefix, Some(seen.into()), None).await)?)
    }

    /// The routers that translate addresses, in the order in which they were made.
    pub fn gateways(&self) -> &[Netns] {
        &self.gateways
    }

    /// Has the router apply these rules of nftables to the packets that it forwards, in place of
    /// earlier ones.
    ///
    /// # Errors
    /// Fails if `nft` is missing or refuses them.
    pub fn impair(&self, rules: &str) -> Result<()> {
        let before = "table inet lab {}\ndelete table inet lab\n";
        let chain = "type filter hook forward priority 0";
        nft(
            &self.router,
            &format!("{before}table inet lab {{\nchain forward {{\n{chain}\n{rules}\n}}\n}}\n"),
        )
    }
}

/// Makes a host that forwards.
fn router() -> Result<Netns> {
    let router = host()?;
    router
        .run(|| {
            fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
            fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")
        })?
        .context("cannot let the router forward")?;
    Ok(router)
}

/// Gives a host addresses, each with its router, by which it reaches everything of the family, and
/// the length of its subnet.
fn join(netns: &Netns, interface: &str, addresses: [(IpAddr, IpAddr, u8); 2]) -> Result<()> {
    let everywhere = |address: IpAddr| if address.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    Ok(netns.links(async |links| {
        links.set_up(interface).await?;
        for (own, router, length) in addresses {
            links.add_address(interface, own, length).await?;
            // A literal of either family is a prefix.
            let all = everywhere(own).parse().expect("the default route is a prefix");
            links.add_route(interface, all, Some(router), None).await?;
        }
        Ok(())
    })?)
}

/// Drops packets to a host that belong to no connection it began: address- and port-dependent
/// filtering.
fn drop_unsolicited(netns: &Netns) -> Result<()> {
    nft(
        netns,
        "table inet filter {
chain in {
type filter hook input priority 0
iifname eth0 ct state new drop
}
}
",
    )
}

fn nft(netns: &Netns, rules: &str) -> Result<()> {
    output(netns, Command::new("nft").arg(rules)).map(drop).context("nft of nftables is needed")
}
