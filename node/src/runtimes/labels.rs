//! Labels of containers that become labels of workloads.

use meshward_types::{
    AcceptFrom, LabelKey, Labels, accept::LABEL as ACCEPT_FROM, labels::MAX_LABELS,
};
use std::collections::HashMap;

/// Labels that tools keep their own notes in: they say nothing of what a container is for, or are
/// others in each container. Compose's project and service are what people call their containers
/// by. (Cilium leaves out the same of Kubernetes'.)
const NOTES: [&str; 18] = [
    "com.docker.",
    "!com.docker.compose.project",
    "com.docker.compose.project.",
    "!com.docker.compose.service",
    "desktop.docker.io/",
    "org.opencontainers.image.",
    "org.label-schema.",
    "io.podman.",
    "io.containers.",
    "io.buildah.",
    "io.kubernetes.",
    "kubernetes.io/metadata.name",
    "pod-template-",
    "controller-revision-hash",
    "controller-uid",
    "batch.kubernetes.io/",
    "apps.kubernetes.io/pod-index",
    "statefulset.kubernetes.io/pod-name",
];

/// The largest number of labels that are used of a container: some of those that a workload may
/// carry are for what is verified, and for what triggers give.
const MOST: usize = MAX_LABELS - 56;

/// A filter of labels: prefixes of keys to ignore, and, with a `!` in front, to use; the last that
/// matches decides.
#[derive(Debug, Clone)]
pub struct LabelFilter(Vec<String>);

/// The labels of a workload, as far as they are used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SelectedLabels {
    pub labels: Labels,
    /// The workloads that they let reach this one.
    pub accepts: Vec<AcceptFrom>,
    /// The keys of those that were not selected though no filter leaves them out, sorted: they
    /// cannot be labels here, or are too many.
    pub left_out: Vec<String>,
}

impl LabelFilter {
    /// Creates the default filter with a configuration's additions.
    pub fn new(more: &[String]) -> Self {
        let more = more.iter().filter(|entry| !entry.trim_start_matches('!').is_empty());
        Self(NOTES.iter().map(ToString::to_string).chain(more.cloned()).collect())
    }

    fn allows(&self, key: &str) -> bool {
        let fits = |entry: &&String| key.starts_with(entry.strip_prefix('!').unwrap_or(entry));
        self.0.iter().rev().find(fits).is_none_or(|entry| entry.starts_with('!'))
    }

    /// The labels that count, and what they declare about who may reach the container. What cannot
    /// be a label of ours is left out: whoever writes labels could leave it out as well. Of too
    /// many, those with plain keys are selected first. One that only Meshward may set, and a
    /// declaration that makes no sense, are mistakes.
    ///
    /// # Errors
    /// The mistake.
    pub fn select(&self, said: &HashMap<String, String>) -> Result<SelectedLabels, String> {
        let mut selected = SelectedLabels::default();
        let mut kept = Vec::new();
        for (key, value) in said {
            if key == ACCEPT_FROM {
                selected.accepts = AcceptFrom::parse_all(value)
                    .map_err(|error| format!("label {key}: {error}"))?;
                continue;
            }
            if !self.allows(key) {
                continue;
            }
            let text = format!("{key}={value}");
            match Labels::parse_each([text.as_str()]) {
                Ok(label) => {
                    label.check_unreserved().map_err(|error| error.to_string())?;
                    kept.push((key, text));
                }
                Err(_) => selected.left_out.push(key.clone()),
            }
        }
        kept.sort_unstable_by_key(|(key, _)| (key.contains(['.', '/']), *key));
        selected.left_out.extend(kept.drain(MOST.min(kept.len())..).map(|(key, _)| key.clone()));
        selected.left_out.sort_unstable();
        let labels = kept.iter().map(|(_, text)| text.as_str());
        selected.labels = Labels::parse_each(labels).map_err(|error| error.to_string())?;
        Ok(selected)
    }

    /// The labels of what something belongs to, below a prefix. What would be no label of ours is
    /// left out.
    pub fn select_below(&self, prefix: &str, said: &HashMap<String, String>) -> Vec<String> {
        let mut all: Vec<String> = said
            .iter()
            .filter(|(key, _)| self.allows(key))
            .map(|(key, value)| (format!("{prefix}{key}"), value))
            .filter(|(key, _)| key.parse::<LabelKey>().is_ok())
            .map(|(key, value)| format!("{key}={value}"))
            .filter(|text| Labels::parse_each([text.as_str()]).is_ok())
            .collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
    }

    fn usual() -> LabelFilter {
        LabelFilter::new(&[])
    }

    #[test]
    fn labels_are_those_that_say_what_a_container_is_for() {
        let said = map(&[
            ("app", "web"),
            ("env", "prod"),
            ("maintainer", "A, B <c@d>"),
            ("proxy.rule", "Host(`shop.example`)"),
            ("com.docker.compose.project", "x"),
            ("com.docker.compose.project.working_dir", "/home"),
            ("com.docker.compose.service", "web"),
            ("com.docker.compose.config-hash", "0123"),
            ("pod-template-hash", "7f"),
            ("meshward.accept-from", "app=a, port=tcp/80; app=b"),
        ]);
        let selected = usual().select(&said).unwrap();
        let labels = "app=web,com.docker.compose.project=x,com.docker.compose.service=web,env=prod";
        assert_eq!((selected.labels.to_string().as_str(), selected.accepts.len()), (labels, 2));
        assert_eq!(selected.left_out, ["maintainer", "proxy.rule"]);
    }

    #[test]
    fn what_would_be_a_lie_or_is_no_declaration_is_a_mistake() {
        for (key, value) in [("meshward/image.repo", "x"), ("meshward.accept-from", "port=x")] {
            assert!(usual().select(&map(&[(key, value)])).is_err(), "{key}");
        }
    }

    #[test]
    fn a_configuration_adds_to_what_is_left_out_and_takes_back_from_it() {
        let filter = LabelFilter::new(&[
            "traefik.".into(),
            "!com.docker.stack.".into(),
            String::new(),
            "!".into(),
        ]);
        let said = map(&[
            ("traefik.enable", "true"),
            ("com.docker.stack.namespace", "shop"),
            ("com.docker.x", "y"),
        ]);
        assert_eq!(
            filter.select(&said).unwrap().labels.to_string(),
            "com.docker.stack.namespace=shop"
        );
    }

    #[test]
    fn however_many_labels_there_are_the_plain_ones_are_taken() {
        let mut said: HashMap<String, String> =
            (0..70).map(|number| (format!("label-{number}"), "x".to_owned())).collect();
        let selected = usual().select(&said).unwrap();
        assert_eq!((selected.labels.len(), selected.left_out.len()), (70, 0));
        said.extend((0..1000).map(|number| (format!("example.com/{number}"), "x".to_owned())));
        said.insert("zone".into(), "a".into());
        let selected = usual().select(&said).unwrap();
        assert_eq!((selected.labels.len(), selected.left_out.len()), (MOST, 1071 - MOST));
        assert_eq!(
            (selected.labels.get("zone"), selected.labels.get("label-69")),
            (Some("a"), Some("x"))
        );
        assert_eq!(usual().select(&said).unwrap(), selected, "the same of the same");
    }

    #[test]
    fn labels_of_a_namespace_stand_below_a_prefix() {
        let long = "x".repeat(120);
        let said = map(&[
            ("team", "pay"),
            ("kubernetes.io/metadata.name", "shop"),
            (&long, "x"),
            ("odd", "a,b"),
        ]);
        assert_eq!(usual().select_below("namespace/", &said), ["namespace/team=pay"]);
    }
}
