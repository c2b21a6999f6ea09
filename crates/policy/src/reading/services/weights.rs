//! The weights of a service's instances.

use super::super::{
    reader::{Parts, Reader, Sets},
    tree::Node,
};
use meshward_types::{Weight, WeightRule};

/// The largest number of weights of a service.
const MAX_WEIGHTS: usize = 64;

impl Reader {
    pub(super) fn weights(&mut self, parts: &Parts, sets: &Sets) -> Vec<WeightRule> {
        let items = self.list(parts, "weights");
        if items.len() > MAX_WEIGHTS {
            let at = parts.get("weights").map_or(parts.at, |node| node.at);
            self.problem(parts.file, at, format!("a service has at most {MAX_WEIGHTS} weights"));
        }
        let items = items.iter().take(MAX_WEIGHTS);
        items.filter_map(|item| self.weight(parts.file, sets, item)).collect()
    }

    fn weight(&mut self, file: &str, sets: &Sets, node: &Node) -> Option<WeightRule> {
        let parts = self.parts(file, "a weight", node, &["for", "weight"])?;
        let instances = self.whom(&parts, sets, "for");
        let node = self.there(&parts, "weight")?;
        let number = node.text().and_then(|text| text.parse().ok());
        let weight = number.and_then(Weight::new);
        if weight.is_none() {
            let text = format!(
                "a number from 0 (no connections) to {} was expected here, not {}; instances \
                without a weight have {}",
                Weight::MOST,
                node.called(),
                Weight::default()
            );
            self.problem(file, node.at, text);
        }
        Some(WeightRule { instances: instances?, weight: weight? })
    }
}
