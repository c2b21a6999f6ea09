use super::*;
use proptest::prelude::*;

fn environment(command: &str) -> Environment {
    let pairs = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c0ffee"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/run/netns/a"),
        ("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-7f"),
    ];
    Environment(pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).into())
}

fn refused(environment: &Environment, stdin: &str) -> (Code, String) {
    let (_, error) = read(environment, stdin.as_bytes()).unwrap_err();
    (error.code, error.details)
}

const CONFIG: &str = r#"{"cniVersion":"1.0.0","name":"shop","type":"meshward-cni"}"#;

#[test]
fn a_call_is_read_with_all_that_the_runtime_says() {
    let config = r#"{"cniVersion":"1.1.0","name":"cluster","type":"meshward-cni","network":"shop",
        "labels":{"env":"prod"},"args":{"cni":{"labels":[{"key":"app","value":"web"}]}},
        "runtimeConfig":{"ips":["10.42.0.9/24"],
        "io.kubernetes.cri.pod-annotations":{"meshward.accept-from":"app=a; app=b, port=tcp/80"}},
        "kubernetes":{"server":"https://10.96.0.1","token_file":"/t","ca_file":"/c"}}"#;
    let call = read(&environment("ADD"), config.as_bytes()).unwrap();
    assert_eq!((call.command, call.version.as_str()), (Command::Add, "1.1.0"));
    assert_eq!(call.config.network.as_str(), "shop");
    assert_eq!(
        call.config.declared.labels.to_string(),
        "app=web,env=prod,io.kubernetes.pod.namespace=shop"
    );
    assert_eq!(call.config.declared.accepts.len(), 2);
    assert_eq!(call.config.addresses, ["10.42.0.9".parse::<IpAddr>().unwrap()]);
    assert_eq!(call.config.pod.unwrap().name, "web-7f");
    assert_eq!(call.attachment.unwrap().interface, "eth0");
}

#[test]
fn behind_another_plugin_the_interface_has_a_name_of_its_own() {
    let chained =
        CONFIG.replace("\"type\"", r#""prevResult":{"interfaces":[{"name":"eth0"}]},"type""#);
    let interface = |command: &str, text: &str| {
        read(&environment(command), text.as_bytes()).unwrap().attachment.unwrap().named
    };
    assert_eq!(interface("ADD", &chained), "mesh0");
    assert_eq!(
        interface("ADD", &chained.replace("\"type\"", r#""interface":"shop0","type""#)),
        "shop0"
    );
    assert_eq!(interface("ADD", CONFIG), "eth0");
}

#[test]
fn mistakes_have_the_codes_of_the_specification() {
    let without = |name: &str| {
        let mut environment = environment("ADD");
        environment.0.remove(name);
        environment
    };
    for name in ["CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"] {
        let (code, details) = refused(&without(name), CONFIG);
        assert_eq!(code, Code::InvalidEnvironment);
        assert!(details.contains(name), "{details}");
    }
    for (command, config, code) in [
        ("DANCE", CONFIG, Code::InvalidEnvironment),
        ("ADD", "{", Code::Undecodable),
        ("ADD", "[]", Code::Undecodable),
        ("ADD", r#"{"cniVersion":"0.2.0","name":"shop"}"#, Code::IncompatibleVersion),
        ("ADD", r#"{"name":"shop"}"#, Code::IncompatibleVersion),
        ("ADD", r#"{"cniVersion":"1.0.0","name":"A B"}"#, Code::InvalidConfig),
        (
            "ADD",
            r#"{"cniVersion":"1.0.0","name":"shop","labels":{"meshward/site":"x"}}"#,
            Code::InvalidConfig,
        ),
        (
            "ADD",
            r#"{"cniVersion":"1.0.0","name":"shop","runtimeConfig":{"ips":["x"]}}"#,
            Code::InvalidConfig,
        ),
        (
            "ADD",
            r#"{"cniVersion":"1.0.0","name":"shop","interface":"a/b"}"#,
            Code::InvalidEnvironment,
        ),
        ("CHECK", CONFIG, Code::InvalidConfig),
    ] {
        assert_eq!(refused(&environment(command), config).0, code, "{command} {config}");
    }
    let mut odd = environment("ADD");
    odd.0.insert("CNI_CONTAINERID".into(), "../x".into());
    assert_eq!(refused(&odd, CONFIG).0, Code::InvalidEnvironment);
    odd = environment("ADD");
    odd.0.insert("CNI_ARGS".into(), "nonsense".into());
    assert_eq!(refused(&odd, CONFIG).0, Code::InvalidEnvironment);
}

#[test]
fn del_and_version_ask_for_little() {
    let mut environment = environment("DEL");
    environment.0.remove("CNI_NETNS");
    environment.0.remove("CNI_ARGS");
    assert!(read(&environment, CONFIG.as_bytes()).unwrap().attachment.unwrap().netns.is_none());
    let version = Environment([("CNI_COMMAND".to_owned(), "VERSION".to_owned())].into());
    assert!(read(&version, br#"{"cniVersion":"9.9.9"}"#).is_ok());
}

proptest! {
    #[test]
    fn whatever_comes_is_read_or_refused(
        command in prop::sample::select(vec!["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", ""]),
        stdin in prop::collection::vec(any::<u8>(), 0..300),
        texts in prop::collection::vec(".{0,40}", 5),
    ) {
        let mut environment = environment(command);
        let _ = read(&environment, &stdin);
        for (name, text) in
            ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS", "CNI_ARGS"].iter().zip(&texts)
        {
            environment.0.insert((*name).to_owned(), text.clone());
        }
        let _ = read(&environment, CONFIG.as_bytes());
        let odd = serde_json::json!({
            "cniVersion": "1.0.0", "name": "shop", "network": texts[4],
            "labels": { texts[0].clone(): texts[1] },
            "runtimeConfig": {
                "ips": [texts[2]],
                "io.kubernetes.cri.pod-annotations": { ACCEPT_FROM: texts[3] },
            },
            "prevResult": texts[1],
        });
        if let Ok(call) = read(&environment, odd.to_string().as_bytes()) {
            prop_assert!(call.config.declared.labels.check_unreserved().is_ok());
            if let Some(attachment) = call.attachment {
                prop_assert!(
                    !attachment.named.contains('/') && !attachment.container.contains('/')
                );
            }
        }
    }
}
