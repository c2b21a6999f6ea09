//! Figures: a table for people, JSON for programs.

use serde::{Deserialize, Serialize};

/// A figure of a report.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// The benchmark.
    pub bench: String,
    /// The load and the setting: `tcp1/real`.
    pub case: String,
    /// The quantity.
    pub metric: String,
    /// The unit of the value.
    pub unit: String,
    /// Our median.
    pub value: f64,
    /// The smallest and the largest of ours.
    pub spread: [f64; 2],
    /// The contender that it is compared with.
    pub against: Option<String>,
    /// Their median.
    pub against_value: Option<f64>,
    /// The median of the ratios, pair by pair.
    pub ratio: Option<f64>,
    /// The target, in words.
    pub target: Option<String>,
    /// `true` if the target is met.
    pub met: Option<bool>,
}

/// The median; the mean of the middle two where their number is even. Zero for none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        length if length % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The value that ninety-nine in a hundred do not exceed. Zero for none.
pub fn p99(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get((sorted.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Prints a table.
pub fn print(rows: &[Row]) {
    let head = ["case", "metric", "ours", "spread", "against", "theirs", "ratio", "target", "met"];
    let mut lines = vec![head.map(str::to_owned)];
    for row in rows {
        let number = |value: f64| format!("{value:.2}");
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        lines.push([
            row.case.clone(),
            row.metric.clone(),
            format!("{} {}", number(row.value), row.unit),
            format!("{}..{}", number(row.spread[0]), number(row.spread[1])),
            or_dash(row.against.clone()),
            or_dash(row.against_value.map(number)),
            or_dash(row.ratio.map(number)),
            or_dash(row.target.clone()),
            or_dash(row.met.map(|met| if met { "yes" } else { "NO" }.to_owned())),
        ]);
    }
    let widths: Vec<usize> = (0..head.len())
        .map(|at| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0))
        .collect();
    for line in &lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "halves of small numbers are exact")]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
