//! The bootstrap on a machine with cloud-init and systemd.

use super::{Terraform, mesh, modules};
use crate::support::{Echo, PATIENCE, tcp_echoes};
use meshward_lab::{Machine, Site};
use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::Command,
    thread,
};

/// Serves a file by HTTP on a site, for as long as the test runs.
fn serve(site: &Site, file: &Path) -> String {
    let listener = site.netns.run(|| TcpListener::bind((site.v4, 0))).unwrap().unwrap();
    let address = listener.local_addr().unwrap();
    let body = fs::read(file).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4096]);
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body));
        }
    });
    format!("http://{address}/package.tar")
}

fn printed(command: &mut Command) -> String {
    let out = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}: {}{said}", String::from_utf8_lossy(&out.stdout));
    String::from_utf8(out.stdout).unwrap()
}

/// Only what the user data says, and nothing of what cloud-init does to whole machines.
const CLOUD: &str = "datasource_list: [NoCloud]
cloud_init_modules: [write-files]
cloud_config_modules: [runcmd]
cloud_final_modules: [scripts-user]
";

#[test]
#[expect(clippy::too_many_lines, reason = "one story of one machine")]
fn a_machine_becomes_a_node_by_its_user_data_alone() {
    let mut mesh = mesh();
    mesh.meshctl(&["network", "create", "shop", "--cidr", "10.42.0.0/16"]).unwrap();
    mesh.apply(
        "network: shop
rules: [{ name: web-to-api, from: { app: web }, to: { app: api }, allow: [tcp/8080] }]
",
    )
    .unwrap();
    let package = mesh.folder().join("package.tar");
    let folder = mesh.binaries.folder().to_owned();
    printed(
        Command::new("tar")
            .arg("-C")
            .arg(&folder)
            .arg("-cf")
            .arg(&package)
            .args(["meshward-node", "meshctl"]),
    );
    let sum = printed(Command::new("sha256sum").arg(&package));
    let (sum, url) = (sum.split_whitespace().next().unwrap(), serve(&mesh.site, &package));
    let root = |token: &str, sum: &str| {
        format!(
            "module \"bootstrap\" {{\n  source      = \"{}//node-bootstrap\"\n  name        = \
             \"rack-7\"\n  coordinator = \"{}\"\n  token       = \"{token}\"\n  labels      = {{ \
             rack = \"r7\" }}\n  settings    = {{ first_port = 51900, port_mapping = false, \
             docker_plugin = \"/run/docker/plugins/meshward.sock\" }}\n  firewall_ports = {{ first \
             = 51900, last = 51915 }}\n  package     = {{ url = \"{url}\", sha256 = \"{sum}\" }}\n\
             }}\noutput \"user_data\" {{\n  value     = module.bootstrap.user_data\n  sensitive = \
             true\n}}\n",
            modules().display(),
            mesh.site.v4,
        )
    };
    let token = mesh.token(&["--site", "rack"]).unwrap();
    let user_data = {
        let terraform = Terraform::new(&mesh, "");
        terraform.write_whole(&root(&token, sum));
        terraform.ok(&["get"]);
        terraform.apply();
        terraform.output("user_data").as_str().unwrap().to_owned()
    };
    let file = mesh.folder().join("user-data");
    fs::write(&file, &user_data).unwrap();
    let said = printed(Command::new("cloud-init").arg("schema").arg("--config-file").arg(&file));
    assert!(said.contains("Valid cloud-config"), "{said}");

    let site = mesh.internet.site("rack-7").unwrap();
    let place = mesh.folder().join("machine");
    fs::create_dir(&place).unwrap();
    let machine = Machine::start(&site, &place, &folder).unwrap();
    machine.write("/etc/cloud/cloud.cfg", CLOUD).unwrap();
    machine.run(&["rm", "-rf", "/etc/cloud/cloud.cfg.d"]).unwrap();
    machine.write("/var/lib/cloud/seed/nocloud/user-data", &user_data).unwrap();
    machine
        .write(
            "/var/lib/cloud/seed/nocloud/meta-data",
            "instance-id: rack-7\nlocal-hostname: rack-7\n",
        )
        .unwrap();
    for step in [
        &["cloud-init", "init"][..],
        &["cloud-init", "modules", "--mode=config"],
        &["cloud-init", "modules", "--mode=final"],
    ] {
        machine.run(step).unwrap();
    }
    let log = || {
        machine.run(&[
            "sh",
            "-c",
            "cat /var/log/cloud-init-output.log; journalctl --no-pager -u meshward-node",
        ])
    };
    let state = machine.run(&["systemctl", "is-active", "meshward-node"]);
    assert!(state.is_ok(), "{state:?}\n{}", log().unwrap());
    mesh.wait(|| mesh.nodes().unwrap()[0].connected).unwrap();
    let node = mesh.node_named("rack-7").unwrap();
    assert_eq!(node.site.as_deref(), Some("rack"));
    assert!(node.labels.to_string().contains("rack=r7"), "{}", node.labels);
    assert!(
        machine.run(&["test", "-e", "/etc/meshward/join-token"]).is_err(),
        "the token is still there"
    );

    machine.run(&["test", "-S", "/run/docker/plugins/meshward.sock"]).unwrap();

    // The unit is well-formed, and the daemon may do little.
    let unit = "/etc/systemd/system/meshward-node.service";
    let verified = machine.output(&["systemd-analyze", "verify", "--man=no", unit]).unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success() && !said.contains("meshward-node"), "{said}");
    let exposed =
        machine.run(&["systemd-analyze", "security", "--offline=yes", "--threshold=40", unit]);
    assert!(exposed.is_ok(), "{exposed:?}");
    let status = machine
        .run(&["sh", "-c", "cat /proc/$(systemctl show -p MainPID --value meshward-node)/status"])
        .unwrap();
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    let rules = machine.run(&["nft", "list", "table", "inet", "meshward_machine"]).unwrap();
    assert!(
        rules.contains("udp dport 51900-51915 accept") && rules.contains("policy drop"),
        "{rules}"
    );

    // Its workloads are on the mesh, for which its firewall is open.
    machine
        .run(&[
            "sh",
            "-c",
            "\"$@\" > /tmp/api.log 2>&1 &",
            "api",
            "meshctl",
            "run",
            "--network",
            "shop",
            "--name",
            "api",
            "-l",
            "app=api",
            "--",
            "/mnt/shop",
            "--name",
            "api",
            "--port",
            "8080",
        ])
        .unwrap();
    let cloud = mesh.node("cloud").start().unwrap();
    let web = cloud.attach("shop", "app=web").unwrap();
    let _echo = Echo::start(&web.netns, 9);
    mesh.wait(|| mesh.workloads().unwrap().len() == 2).unwrap();
    let workloads = mesh.workloads().unwrap();
    let api = workloads.iter().find(|own| own.name.as_str() == "api").unwrap();
    let address = api.addresses[0];
    let fetch = || {
        let url = format!("http://{address}:8080/");
        let mut curl = Command::new("curl");
        curl.args(["--fail", "--silent", "--max-time", "5", &url]);
        web.netns.run(|| curl.status()).unwrap().unwrap().success()
    };
    mesh.wait(fetch).unwrap();
    assert!(!tcp_echoes(&web.netns, site.v4.into(), 22, 1, PATIENCE / 10));

    // Again: nothing is installed or joined anew, and the workload does not notice.
    let again = machine.run(&["/usr/local/lib/meshward/bootstrap"]).unwrap();
    assert!(!again.contains("installing") && again.contains("has joined the mesh"), "{again}");
    assert!(fetch());

    // Something else than what was promised is not unpacked.
    let script = machine.run(&["cat", "/usr/local/lib/meshward/bootstrap"]).unwrap();
    let wrong = "0".repeat(64);
    machine.write("/root/wrong", &script.replace(sum, &wrong)).unwrap();
    let refused = machine.run(&["sh", "/root/wrong"]).unwrap_err().to_string();
    assert!(
        refused.contains("the SHA-256 of") && refused.contains("nothing was installed"),
        "{refused}"
    );
    machine.run(&["systemctl", "is-active", "meshward-node"]).unwrap();
}
