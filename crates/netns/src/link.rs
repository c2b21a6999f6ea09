//! Links and addresses of the namespace that the calling thread is in, by rtnetlink(7).

use crate::{Error, Netns};
use futures::TryStreamExt;
use ipnet::IpNet;
use nix::errno::Errno;
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressFlags},
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags},
    },
};
use std::{
    net::IpAddr,
    os::fd::{AsFd, AsRawFd},
};

/// A netlink connection to one namespace.
pub struct Links {
    pub(crate) handle: Handle,
}

impl Links {
    pub(crate) fn connect() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Thread)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Returns the index of an interface (`if_nametoindex(3)`).
    pub(crate) async fn index(&self, name: &str) -> Result<u32, Error> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        match found.try_next().await {
            Ok(Some(link)) => Ok(link.header.index),
            _ => Err(Error::NoLink(name.to_owned())),
        }
    }

    /// Returns `true` if there is an interface of this name.
    pub async fn exists(&self, name: &str) -> bool {
        self.index(name).await.is_ok()
    }

    /// Returns `true` if an interface exists, is up, has these addresses, and has routes to these
    /// prefixes in the main table.
    pub async fn is_set_up(&self, name: &str, addresses: &[IpAddr], prefixes: &[IpNet]) -> bool {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        let Ok(Some(link)) = found.try_next().await else { return false };
        let index = link.header.index;
        link.header.flags.contains(LinkFlags::Up)
            && self.has_addresses(index, addresses).await
            && self.has_routes(index, prefixes).await
    }

    async fn has_addresses(&self, index: u32, addresses: &[IpAddr]) -> bool {
        let mut own = self.handle.address().get().set_link_index_filter(index).execute();
        let mut missing = addresses.to_vec();
        while let Ok(Some(message)) = own.try_next().await {
            for attribute in message.attributes {
                if let AddressAttribute::Address(there) | AddressAttribute::Local(there) = attribute
                {
                    missing.retain(|address| *address != there);
                }
            }
        }
        missing.is_empty()
    }

    /// Deletes an interface.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn delete(&self, name: &str) -> Result<(), Error> {
        let index = self.index(name).await?;
        self.handle.link().del(index).execute().await.map_err(failed(format!("delete {name}")))
    }

    /// Creates a pair of virtual Ethernet interfaces.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn add_veth(&self, name: &str, peer: &str) -> Result<(), Error> {
        let request = self.handle.link().add(LinkVeth::new(name, peer).build());
        request.execute().await.map_err(failed(format!("make the pair {name}, {peer}")))
    }

    /// Moves an interface into another namespace and renames it to `as_name`.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn move_to(&self, name: &str, to: &Netns, as_name: &str) -> Result<(), Error> {
        let index = self.index(name).await?;
        let message = LinkUnspec::new_with_index(index)
            .setns_by_fd(to.as_fd().as_raw_fd())
            .name(as_name)
            .build();
        self.handle.link().set(message).execute().await.map_err(failed(format!("move {name}")))
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn set_up(&self, name: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(self.index(name).await?).up().build();
        self.handle.link().set(message).execute().await.map_err(failed(format!("set {name} up")))
    }

    /// Sets an interface down.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn set_down(&self, name: &str) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(self.index(name).await?).down().build();
        self.handle.link().set(message).execute().await.map_err(failed(format!("set {name} down")))
    }

    /// Sets the MTU of an interface, in bytes.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn set_mtu(&self, name: &str, mtu: u32) -> Result<(), Error> {
        let message = LinkUnspec::new_with_index(self.index(name).await?).mtu(mtu).build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(failed(format!("set the MTU of {name}")))
    }

    /// Returns the MTU of an interface, in bytes.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn mtu(&self, name: &str) -> Result<u32, Error> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        let link = found.try_next().await.ok().flatten();
        let mtu = link.and_then(|link| {
            link.attributes.iter().find_map(|attribute| match attribute {
                LinkAttribute::Mtu(mtu) => Some(*mtu),
                _ => None,
            })
        });
        mtu.ok_or_else(|| Error::NoLink(name.to_owned()))
    }

    /// Keeps the kernel from giving an interface a link-local IPv6 address, and from sending
    /// packets from it.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn no_link_local(&self, name: &str) -> Result<(), Error> {
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let message = LinkUnspec::new_with_index(self.index(name).await?)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![
                mode,
            ])]))
            .build();
        let done = self.handle.link().set(message).execute().await;
        done.map_err(failed(format!("turn off link-local addresses on {name}")))
    }

    /// Adds an address to an interface; one that exists stays. IPv6 addresses are usable at once,
    /// without duplicate address detection (RFC 4862 §5.4), since nobody else on the link can have
    /// them.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn add_address(&self, name: &str, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let mut request =
            self.handle.address().add(self.index(name).await?, address, prefix).replace();
        if address.is_ipv6() {
            let message = request.message_mut();
            message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        request.execute().await.map_err(failed(format!("add address {address} to {name}")))
    }

    /// Removes an address from an interface.
    ///
    /// # Errors
    /// Fails if there is no such interface, or the kernel refuses.
    pub async fn remove_address(&self, name: &str, address: IpAddr) -> Result<(), Error> {
        let index = self.index(name).await?;
        let mut own = self
            .handle
            .address()
            .get()
            .set_link_index_filter(index)
            .set_address_filter(address)
            .execute();
        while let Some(message) = own.try_next().await.map_err(failed(format!("read {name}")))? {
            let request = self.handle.address().del(message);
            request.execute().await.map_err(failed(format!("remove {address} from {name}")))?;
        }
        Ok(())
    }

    /// Returns the global addresses of all interfaces but loopback.
    ///
    /// # Errors
    /// Fails if the kernel does not answer.
    pub async fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let mut found = Vec::new();
        let mut all = self.handle.address().get().execute();
        while let Some(message) = all.try_next().await.map_err(failed("read addresses".into()))? {
            let family = message.header.family;
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            let Some(address) = address else { continue };
            let usable = match address {
                IpAddr::V4(a) => {
                    family == AddressFamily::Inet && !a.is_loopback() && !a.is_link_local()
                }
                IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local(),
            };
            if usable {
                found.push(address);
            }
        }
        Ok(found)
    }
}

/// Treats one error of the kernel as success.
pub(crate) fn unless(
    done: Result<(), rtnetlink::Error>,
    harmless: Errno,
) -> Result<(), rtnetlink::Error> {
    match done {
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -(harmless as i32) => {
            Ok(())
        }
        other => other,
    }
}

/// Names the operation that failed.
pub(crate) fn failed(what: String) -> impl FnOnce(rtnetlink::Error) -> Error {
    move |source| Error::Netlink { what, source }
}
