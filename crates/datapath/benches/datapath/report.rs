//! Measuring, and the rows of the report.

use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Runs something for `time`, and returns nanoseconds for each of the `each` things that one run
/// does.
pub(crate) fn nanoseconds(time: Duration, each: usize, mut run: impl FnMut()) -> f64 {
    for _ in 0..16 {
        run();
    }
    let (begun, mut count) = (Instant::now(), 0u64);
    while begun.elapsed() < time {
        for _ in 0..16 {
            run();
        }
        count += 16;
    }
    begun.elapsed().as_nanos() as f64 / (count as f64 * each as f64)
}

/// Returns a row without a comparison.
pub(crate) fn row(case: &str, metric: &str, unit: &str, values: &[f64]) -> Value {
    json!({
        "bench": "datapath", "case": case, "metric": metric, "unit": unit,
        "value": median(values), "spread": spread(values),
        "against": null, "against_value": null, "ratio": null, "target": null, "met": null,
    })
}

/// Nanoseconds of ours beside those of something else, run by run.
pub(crate) struct Comparison<'a> {
    pub(crate) case: &'a str,
    pub(crate) metric: &'a str,
    pub(crate) ours: &'a [f64],
    /// The name of what ours is compared with.
    pub(crate) against: &'a str,
    pub(crate) theirs: &'a [f64],
}

impl Comparison<'_> {
    /// Returns the row, whose ratio is the median of the ratios of runs.
    pub(crate) fn row(&self) -> Value {
        let pairs = self.ours.iter().zip(self.theirs);
        let ratios: Vec<f64> = pairs.map(|(ours, theirs)| ours / theirs).collect();
        let mut row = row(self.case, self.metric, "ns", self.ours);
        row["against"] = json!(self.against);
        row["against_value"] = json!(median(self.theirs));
        row["ratio"] = json!(median(&ratios));
        row
    }
}

/// Gives a row a target for the figure in one of its fields.
pub(crate) fn aim(row: &mut Value, target: &str, field: &str, is_met: impl Fn(f64) -> bool) {
    row["met"] = json!(row[field].as_f64().is_some_and(is_met));
    row["target"] = json!(target);
}

/// Returns the least and the greatest of some values.
fn spread(values: &[f64]) -> [f64; 2] {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    [least, values.iter().copied().fold(f64::NEG_INFINITY, f64::max)]
}

/// Returns the median of some values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
