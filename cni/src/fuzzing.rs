//! Fuzz targets for the input that a container runtime gives the CNI plugin; see the crate
//! `meshward-fuzzing`.

use crate::{Environment, read};
use meshward_fuzzing::{Bytes, blocks};

meshward_fuzzing::targets! {
    cni: cni, samples;
}

const NAMES: [&str; 5] = ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"];
const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];

/// A block for each variable, then the configuration: the call is read, or refused with a code of
/// the specification.
fn cni(data: &[u8]) {
    let mut bytes = Bytes(data);
    let variables = NAMES.map(|name| (name.to_owned(), bytes.text()));
    match read(&Environment(variables.into_iter().collect()), bytes.0) {
        Ok(call) => assert!(call.config.declared.labels.check_unreserved().is_ok()),
        Err((version, error)) => {
            assert!(error.to_json(&version)["code"].as_u64().is_some_and(|code| code > 0));
        }
    }
}

fn samples() -> Vec<Vec<u8>> {
    let config = r#"{"cniVersion":"1.1.0","name":"shop","type":"meshward-cni","network":"shop",
        "labels":"app=web",
        "ipam":{},"prevResult":{"interfaces":[],"ips":[{"address":"10.0.0.2/24"}]},
        "runtimeConfig":{},
        "kubernetes":{"server":"https://192.0.2.1:6443","ca_file":"/a","token_file":"/b"},
        "cni.dev/valid-attachments":[{"containerID":"c1","ifname":"eth0"}]}"#;
    let arguments = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0";
    let call = |command: &str| {
        [blocks([command, "c1", "eth0", "/proc/7/ns/net", arguments]), config.as_bytes().to_vec()]
            .concat()
    };
    COMMANDS.iter().map(|command| call(command)).collect()
}
