//! Names in containers of a real Docker.

use super::resolver;
use crate::docker::Host;
use std::net::IpAddr;

const POLICY: &str = "network: shop
dns: intercept
rules:
  - { name: web-to-api, from: { app: web }, to: { app: api }, allow: [tcp/7000] }
";

#[test]
fn containers_get_names_by_dockers_own_server() {
    let host = Host::new(POLICY);
    let named = host.other.workload("shop", "app=api").named("api").attach().unwrap();
    // Docker forwards to this server from the container's namespace.
    let server = resolver(&host.node)[0].to_string();
    host.start("web", &["app=web"], &["--dns", &server]);
    let lookup = |name: &str| {
        let printed = host.docker.run(&["exec", "web", "busybox", "nslookup", name]);
        printed.unwrap_or_else(|error| format!("{error:#}"))
    };
    let wait = |name: &str, address: IpAddr| {
        host.mesh.wait(|| lookup(name).contains(&address.to_string())).unwrap();
    };
    wait("api.shop.mesh", named.v4());

    // A container that says nothing is answered all the same.
    host.start("plain", &["app=web"], &[]);
    let printed = host.docker.run(&["exec", "plain", "busybox", "nslookup", "api.shop.mesh"]);
    let printed = printed.unwrap_or_else(|error| format!("{error:#}"));
    assert!(printed.contains(&named.v4().to_string()), "{printed}");
}
