//! What a pass costs as a function of its rows, from what passes of some numbers of rows were measured to cost.
//!
//! More rows never cost less, and about each costs at least what the one before it did: the arithmetic of the
//! first ones hides behind reading the weights. But kernels take rows in tiles, and the row that opens a tile costs
//! more than those that fill it. So the curve is the convex chain of lines that best joins the points, and each point
//! moves it as far as it was measured often; a last pass over the result makes it ascend.

/// What passes with a number of rows were measured to cost.
#[derive(Debug, Clone, Copy)]
pub struct Point {
    /// Rows of the pass.
    pub rows: f64,
    /// Its cost, in any unit; above 0.
    pub cost: f64,
    /// Passes measured, old ones counting for less.
    pub weight: f64,
}

/// A cost that ascends with the rows: lines between corners, and one beyond the last.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// `(rows, cost)`, ascending in both.
    corners: Vec<(f64, f64)>,
    /// Cost of a row before the first corner, and of one after the last.
    before: f64,
    beyond: f64,
}

/// How far above a later point one may lie before it is held to be too long a time, of a pass that was disturbed.
const CONTRADICTION: f64 = 1.1;
/// Passes that the chain of lines counts for at each point.
const CHAIN_PRIOR: f64 = 3.0;
/// A row where nothing was measured costs this share of what rows cost on average up to there: of all that is
/// possible, between nothing and the whole, the middle.
const UNKNOWN_ROW: f64 = 0.5;

/// A line through `(rows, cost)`.
#[derive(Debug, Clone, Copy)]
struct Line {
    rows: f64,
    cost: f64,
    slope: f64,
}

impl Curve {
    /// The curve through points in ascending order of rows; `None` if there are none.
    pub fn fit(points: &[Point]) -> Option<Self> {
        let mut points = points.to_vec();
        let mut least = f64::INFINITY;
        for p in points.iter_mut().rev() {
            p.cost = p.cost.min(least * CONTRADICTION);
            least = least.min(p.cost);
        }
        let (first, last) = (*points.first()?, *points.last()?);
        let lines = chain(&points);
        let along = |rows: f64| {
            lines.iter().map(|line| line.cost + line.slope * (rows - line.rows)).fold(f64::NEG_INFINITY, f64::max)
        };
        points.iter_mut().for_each(|p| {
            p.cost = (p.weight * p.cost + CHAIN_PRIOR * along(p.rows)) / (p.weight + CHAIN_PRIOR);
        });
        let unknown = |p: Point| UNKNOWN_ROW * p.cost / p.rows;
        let (flattest, steepest) = (lines.first().map(|l| l.slope), lines.last().map(|l| l.slope));
        Some(Self {
            before: flattest.unwrap_or(f64::INFINITY).min(unknown(first)),
            beyond: steepest.unwrap_or(0.0).max(unknown(last)),
            corners: ascending(&points),
        })
    }

    /// The cost of a pass with this many rows.
    pub fn at(&self, rows: f64) -> f64 {
        let above = self.corners.partition_point(|corner| corner.0 < rows);
        match (above.checked_sub(1).map(|below| self.corners[below]), self.corners.get(above)) {
            (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (rows - a.0) / (b.0 - a.0),
            (None, Some(b)) => b.1 - self.before * (b.0 - rows),
            (Some(a), None) => a.1 + self.beyond * (rows - a.0),
            (None, None) => 0.0,
        }
    }

    /// Whether passes with at least and with at most this many rows were measured.
    pub fn covers(&self, rows: f64) -> bool {
        self.corners.first().is_some_and(|c| c.0 <= rows) && self.corners.last().is_some_and(|c| c.0 >= rows)
    }

    /// `(rows, cost)` where it was measured.
    pub fn corners(&self) -> &[(f64, f64)] {
        &self.corners
    }
}

/// The convex chain of lines, the highest of which counts, in ascending order of slopes; none for a single point.
///
/// The slopes between neighbours are made ascending by pooling adjacent violators (Ayer et al., Annals of Mathematical
/// Statistics 1955); neighbours pooled share the line through their middle.
fn chain(points: &[Point]) -> Vec<Line> {
    // Errors of times grow with them.
    let weight = |p: &Point| p.weight / (p.cost * p.cost);
    // Slopes, what each weighs, and the first and last point that it joins.
    let mut slopes: Vec<(f64, f64, usize, usize)> = Vec::with_capacity(points.len());
    for (from, pair) in points.windows(2).enumerate() {
        let width = pair[1].rows - pair[0].rows;
        let certainty = width * width / (1.0 / weight(&pair[0]) + 1.0 / weight(&pair[1]));
        let mut pooled = ((pair[1].cost - pair[0].cost) / width, certainty, from, from + 1);
        while let Some((slope, certainty, from, _)) = slopes.pop_if(|flatter| flatter.0 > pooled.0) {
            let both = certainty + pooled.1;
            pooled = ((slope * certainty + pooled.0 * pooled.1) / both, both, from, pooled.3);
        }
        slopes.push(pooled);
    }
    let line = |&(slope, _, from, to): &(f64, f64, usize, usize)| {
        let joined = &points[from..=to];
        let all: f64 = joined.iter().map(weight).sum();
        let middle = |value: fn(&Point) -> f64| joined.iter().map(|p| weight(p) * value(p)).sum::<f64>() / all;
        Line { rows: middle(|p| p.rows), cost: middle(|p| p.cost), slope: slope.max(0.0) }
    };
    slopes.iter().map(line).collect()
}

/// The points' costs made ascending, by pooling adjacent violators again.
fn ascending(points: &[Point]) -> Vec<(f64, f64)> {
    // Costs, what each weighs, and how many points share it.
    let mut levels: Vec<(f64, f64, usize)> = Vec::with_capacity(points.len());
    for p in points {
        let mut pooled = (p.cost, p.weight, 1);
        while let Some((cost, weight, shared)) = levels.pop_if(|higher| higher.0 > pooled.0) {
            let both = weight + pooled.1;
            pooled = ((cost * weight + pooled.0 * pooled.1) / both, both, shared + pooled.2);
        }
        levels.push(pooled);
    }
    let costs = levels.iter().flat_map(|&(cost, _, shared)| std::iter::repeat_n(cost, shared));
    points.iter().map(|p| p.rows).zip(costs).collect()
}
