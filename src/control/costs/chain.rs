//! The convex chain of lines that best joins what verifying some numbers of rows was measured to cost.

/// Pulls the cost of a row towards 0 as this many rounds one row away from the mean would.
const ROW_PRIOR: f64 = 2.0;
/// Rounds on the one straight line through all rounds that count for each number of rows.
const LINE_PRIOR: f64 = 1.0;

/// What verifying a number of rows was measured to cost, in that many rounds.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Rows verified.
    pub rows: f64,
    /// In draft steps.
    pub cost: f64,
    /// Rounds measured, old ones counting for less.
    pub weight: f64,
}

/// A convex function of the rows: the highest of some lines.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    lines: Vec<Line>,
}

/// The line through `(rows, cost)`; costs in draft steps.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Line {
    rows: f64,
    cost: f64,
    slope: f64,
}

impl Chain {
    /// The cost of this many rows.
    pub fn at(&self, rows: f64) -> f64 {
        self.lines.iter().map(|line| line.cost + line.slope * (rows - line.rows)).fold(f64::NEG_INFINITY, f64::max)
    }

    /// The chain through points in ascending order of rows; `None` if there are none.
    ///
    /// The slopes between neighbours are made ascending by pooling adjacent violators (Ayer et al., Annals
    /// of Mathematical Statistics 1955).
    pub fn fit(points: &[Point]) -> Option<Self> {
        let first = points.first()?.rows;
        let (rows, cost) = (mean(points, |p| p.rows), mean(points, |p| p.cost));
        let (mut covariance, mut variance) = (0.0, ROW_PRIOR);
        for p in points {
            covariance += p.weight * (p.rows - rows) * (p.cost - cost);
            variance += p.weight * (p.rows - rows) * (p.rows - rows);
        }
        let straight = (covariance / variance).max(0.0);

        // A number of rows that few rounds had is believed only so far.
        let believed = |p: &Point| {
            let line = cost + straight * (p.rows - rows);
            let weight = p.weight + LINE_PRIOR;
            Point { rows: p.rows, cost: (p.weight * p.cost + LINE_PRIOR * line) / weight, weight }
        };

        // Slopes, what each weighs, and how many neighbours it joins.
        let mut slopes: Vec<(f64, f64, usize)> = Vec::with_capacity(points.len());
        for (a, b) in std::iter::zip(points, &points[1..]) {
            let (a, b) = (believed(a), believed(b));
            let width = b.rows - a.rows;
            let mut pooled = ((b.cost - a.cost) / width, width * width / (1.0 / a.weight + 1.0 / b.weight), 1);
            while let Some((slope, weight, joins)) = slopes.pop_if(|flatter| flatter.0 > pooled.0) {
                let both = weight + pooled.1;
                pooled = ((slope * weight + pooled.0 * pooled.1) / both, both, joins + pooled.2);
            }
            slopes.push(pooled);
        }

        // From height 0 at first, then moved up to where the points are on average.
        let mut chain = Self { lines: Vec::with_capacity(slopes.len() + 1) };
        let (mut from, mut height) = (0, 0.0);
        for (slope, _, joins) in slopes {
            let slope = slope.max(0.0);
            chain.lines.push(Line { rows: points[from].rows, cost: height, slope });
            height += slope * (points[from + joins].rows - points[from].rows);
            from += joins;
        }
        if chain.lines.is_empty() {
            chain.lines.push(Line { rows: first, cost: 0.0, slope: 0.0 });
        }
        let lift = cost - mean(points, |p| chain.at(p.rows));
        chain.lines.iter_mut().for_each(|line| line.cost += lift);
        // A plain round never costs nothing.
        chain.lines.push(Line { rows: 1.0, cost: cost * 0.05, slope: 0.0 });
        Some(chain)
    }
}

fn mean(points: &[Point], value: impl Fn(&Point) -> f64) -> f64 {
    let weight: f64 = points.iter().map(|p| p.weight).sum();
    points.iter().map(|p| p.weight * value(p)).sum::<f64>() / weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_ascend_and_extend_beyond_what_was_measured() {
        let point = |(rows, cost, weight)| Point { rows, cost, weight };
        let points = [(1.0, 5.0, 30.0), (2.0, 6.5, 1.0), (3.0, 6.0, 30.0), (5.0, 9.0, 30.0)].map(point);
        let chain = Chain::fit(&points).unwrap();
        let next = |rows: f64| chain.at(rows + 1.0) - chain.at(rows);
        assert!((1..20).all(|rows| next(f64::from(rows)) <= next(f64::from(rows + 1)) + 1e-12), "{chain:?}");
        assert!((next(1.0) - 0.5).abs() < 0.2 && (next(10.0) - 1.5).abs() < 0.1, "{chain:?}");
        assert_eq!(Chain::fit(&[]), None);
        assert_eq!(Chain::fit(&points[..1]).unwrap().at(9.0), 5.0, "one point tells nothing of more rows");
    }
}
