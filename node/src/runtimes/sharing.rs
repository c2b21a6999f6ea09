//! Containers in the network namespace of another: what they send is the other's, so they are
//! measured with it.

use bollard::models::ContainerSummary;
use std::collections::{BTreeMap, HashMap};

/// The longest chain of containers from one to the one whose namespace it shares.
const MOST_STEPS: usize = 8;

/// The containers that run, as a runtime lists them.
#[derive(Debug, Default)]
pub struct Running {
    /// Their ids by those of their endpoints.
    pub by_endpoint: HashMap<String, String>,
    /// The other's name, by the ids of those that share its namespace.
    joined: BTreeMap<String, String>,
    /// Their ids by their names.
    by_name: HashMap<String, String>,
    ids: Vec<String>,
}

impl Running {
    /// Reads a list. `modes` has network modes that are not in it, by ids.
    pub fn of(all: Vec<ContainerSummary>, modes: &HashMap<String, String>) -> Self {
        let mut running = Self::default();
        for container in all {
            let Some(id) = container.id else { continue };
            let networks = container.network_settings.and_then(|settings| settings.networks);
            for endpoint in networks.unwrap_or_default().into_values() {
                running
                    .by_endpoint
                    .extend(endpoint.endpoint_id.map(|endpoint| (endpoint, id.clone())));
            }
            let mode = modes
                .get(&id)
                .cloned()
                .or(container.host_config.and_then(|host| host.network_mode));
            if let Some(other) = mode.as_deref().and_then(|mode| mode.strip_prefix("container:")) {
                running.joined.insert(id.clone(), other.to_owned());
            }
            let names = container.names.unwrap_or_default().into_iter();
            running
                .by_name
                .extend(names.map(|name| (name.trim_start_matches('/').to_owned(), id.clone())));
            running.ids.push(id);
        }
        running
    }

    /// The ids of the containers that share the namespace of one, in their order.
    pub fn sharing(&self, id: &str) -> Vec<String> {
        self.joined
            .keys()
            .filter(|other| *other != id && self.root(other) == Some(id))
            .cloned()
            .collect()
    }

    /// The container whose namespace one is in.
    fn root<'a>(&'a self, id: &'a str) -> Option<&'a str> {
        let mut at = id;
        for _ in 0..MOST_STEPS {
            match self.joined.get(at) {
                None => return Some(at),
                Some(other) => at = self.named(other)?,
            }
        }
        None
    }

    /// The id of a container that is called by its id, a part of it, or its name.
    fn named<'a>(&'a self, called: &str) -> Option<&'a str> {
        let exact = self.ids.iter().find(|id| *id == called);
        let found = exact.or_else(|| self.by_name.get(called)).or_else(|| {
            let mut all = self.ids.iter().filter(|id| called.len() >= 12 && id.starts_with(called));
            all.next().filter(|_| all.next().is_none())
        });
        found.map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ContainerSummaryHostConfig;

    fn container(id: &str, mode: &str) -> ContainerSummary {
        let host =
            ContainerSummaryHostConfig { network_mode: Some(mode.into()), ..Default::default() };
        let names = Some(vec![format!("/name-{id}")]);
        ContainerSummary {
            id: Some(id.into()),
            names,
            host_config: Some(host),
            ..Default::default()
        }
    }

    #[test]
    fn those_that_share_a_namespace_are_found_however_they_call_it_and_over_others() {
        let web = "0123456789abcdef";
        let all = vec![
            container(web, "shop"),
            container("by-id", &format!("container:{web}")),
            container("by-name", &format!("container:name-{web}")),
            container("by-part", "container:0123456789ab"),
            container("over", "container:by-id"),
            container("elsewhere", "container:gone"),
            container("round", "container:about"),
            container("about", "container:round"),
            container("host", "host"),
        ];
        let running = Running::of(all, &HashMap::new());
        assert_eq!(running.sharing(web), ["by-id", "by-name", "by-part", "over"]);
        assert_eq!(
            running.sharing("by-id"),
            Vec::<String>::new(),
            "it has no namespace of its own"
        );
        assert_eq!(running.sharing("host"), Vec::<String>::new());
    }

    #[test]
    fn a_mode_that_the_list_does_not_have_is_taken_from_elsewhere() {
        let all = vec![container("infra", "host"), container("web", "host")];
        let modes = HashMap::from([("web".to_owned(), "container:infra".to_owned())]);
        assert_eq!(Running::of(all, &modes).sharing("infra"), ["web"]);
    }
}
