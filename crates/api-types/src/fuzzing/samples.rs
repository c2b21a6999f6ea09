//! Inputs to begin with.

pub(super) fn api_bodies() -> Vec<Vec<u8>> {
    let all = [
        r#"{"name":"shop","prefixes":["10.42.0.0/16","fd42::/48"],"mtu":1420}"#,
        r#"{"uses":3,"ttl_seconds":600,"site":"a","networks":["shop"],"labels":"a=b"}"#,
        r#"{"files":[{"name":"a.yaml","text":"network: shop\n"}],"prune":true}"#,
        r#"{"label":"app=web","workload":null,"network":"shop","why":"odd","lasts":"10m"}"#,
        r#"{"name":"ops","role":"operator","networks":["shop"]}"#,
        r#"{"network":"shop","labels":"app=web","netns":"/proc/7/ns/net","name":"web",
        "accept_from":["app=a"]}"#,
        r#"{"runtime":"docker","images":[{"repository":"docker.io/library/web",
        "digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"}],
        "config":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "privileges":["privileged"]}"#,
    ];
    all.iter().map(|text| text.as_bytes().to_vec()).collect()
}
