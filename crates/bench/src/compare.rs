//! Figures of ours beside those of others, run by run.

use crate::report::{Row, median};

/// A target of a figure.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// The ratio is at least this.
    AtLeast(f64),
    /// The ratio is at most this.
    AtMost(f64),
    /// Nothing: the figure is for the reader.
    None,
}

impl Target {
    fn text(self) -> Option<String> {
        match self {
            Self::AtLeast(least) => Some(format!(">= {least}")),
            Self::AtMost(most) => Some(format!("<= {most}")),
            Self::None => None,
        }
    }

    fn is_met_by(self, value: f64) -> Option<bool> {
        match self {
            Self::AtLeast(least) => Some(value >= least),
            Self::AtMost(most) => Some(value <= most),
            Self::None => None,
        }
    }
}

/// A quantity, measured in several runs.
pub struct Figures<'a> {
    /// The benchmark.
    pub bench: &'static str,
    /// The load and the setting.
    pub case: String,
    /// The quantity, such as `throughput`.
    pub metric: &'static str,
    /// The unit, such as `Gbit/s`; empty for a count.
    pub unit: &'static str,
    /// Ours, run by run.
    pub ours: &'a [f64],
}

impl Figures<'_> {
    /// Ours beside somebody's, whose figures are of the same runs.
    pub fn against(&self, name: &str, theirs: &[f64], target: Target) -> Row {
        let ratios: Vec<f64> =
            self.ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect();
        let ratio = median(&ratios);
        Row {
            against: Some(name.to_owned()),
            against_value: Some(median(theirs)),
            ratio: Some(ratio),
            target: target.text(),
            met: target.is_met_by(ratio),
            ..self.alone()
        }
    }

    /// Ours by itself, beside a figure that is aimed at.
    pub fn absolute(&self, target: Target) -> Row {
        let row = self.alone();
        Row { target: target.text(), met: target.is_met_by(row.value), ..row }
    }

    fn alone(&self) -> Row {
        let least = self.ours.iter().copied().fold(f64::INFINITY, f64::min);
        let most = self.ours.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Row {
            bench: self.bench.to_owned(),
            case: self.case.clone(),
            metric: self.metric.to_owned(),
            unit: self.unit.to_owned(),
            value: median(self.ours),
            spread: [least, most],
            against: None,
            against_value: None,
            ratio: None,
            target: None,
            met: None,
        }
    }
}

/// The best of several by its median: the greatest, or the least.
pub(crate) fn best<'a>(
    all: &'a [(&'static str, Vec<f64>)],
    greatest: bool,
) -> Option<&'a (&'static str, Vec<f64>)> {
    let by_median =
        |a: &&(&str, Vec<f64>), b: &&(&str, Vec<f64>)| median(&a.1).total_cmp(&median(&b.1));
    if greatest { all.iter().max_by(by_median) } else { all.iter().min_by(by_median) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "the figures are handed on, not computed")]
    fn the_ratio_is_the_median_pair_by_pair() {
        let figures = Figures {
            bench: "b",
            case: "c".into(),
            metric: "m",
            unit: "u",
            ours: &[2.0, 4.0, 9.0],
        };
        let row = figures.against("them", &[1.0, 4.0, 3.0], Target::AtLeast(1.5));
        assert_eq!((row.value, row.ratio, row.met), (4.0, Some(2.0), Some(true)));
        assert_eq!(row.spread, [2.0, 9.0]);
        assert_eq!(figures.absolute(Target::AtMost(3.0)).met, Some(false));
    }
}
