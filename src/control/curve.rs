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
    /// Standard error of the cost near each corner, relative to it.
    errors: Vec<f64>,
    /// Cost of a row before the first corner, and of one after the last.
    before: f64,
    beyond: f64,
}

/// How far above what others say it can be at most a cost may lie before it is held to be that of a disturbed pass.
const CONTRADICTION: f64 = 1.1;
/// Passes that are not all disturbed: where so many say that a cost is high, as where another program takes the core that only
/// wide passes need, it is.
const OFTEN: f64 = 4.0;
/// How far single times lie apart, relative to them.
const NOISE: f64 = 0.06;
/// Rows that a tile's first one may cost as much as.
const TILE: f64 = 4.0;
/// Passes of one number of rows that are as good as independent: the speed they are compared at errs for all of them.
const INDEPENDENT: f64 = 20.0;
/// Numbers of rows so close to one another, relative to them, share what they are off the chain.
const BLUR: f64 = 0.04;
/// Relative standard error of a cost that is well known.
const WELL_KNOWN: f64 = 0.025;
/// Points so close, relative to their rows, tell of each other.
const NEAR: f64 = 0.1;
/// Of a cost, what is left of it at least however others say it should be.
const LEAST_COST: f64 = 0.05;
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
        let mut points = undisturbed(points);
        let lines = chain(&points);
        let along = |p: &Point| {
            let heights = lines.iter().map(|line| line.cost + line.slope * (p.rows - line.rows));
            // However steeply it falls, some cost is left.
            heights.fold(LEAST_COST * p.cost, f64::max)
        };
        let chained: Vec<f64> = points.iter().map(|p| if lines.is_empty() { p.cost } else { along(p) }).collect();
        let off = deviations(&points, &chained);
        for ((p, chained), off) in points.iter_mut().zip(chained).zip(off) {
            p.cost = chained * (1.0 + off);
        }
        let corners = ascending(&points);
        let unknown = |&(rows, cost): &(f64, f64)| UNKNOWN_ROW * cost / rows;
        let (flattest, steepest) = (lines.first().map(|l| l.slope), lines.last().map(|l| l.slope));
        Some(Self {
            before: flattest.unwrap_or(f64::INFINITY).min(unknown(corners.first()?)),
            beyond: steepest.unwrap_or(0.0).max(unknown(corners.last()?)),
            corners,
            errors: errors(&points),
        })
    }

    /// The curve as low as it may be: lowered by its standard errors, and where nothing was measured for many rows
    /// bent down to the lines on either side.
    pub fn hopeful(&self) -> Self {
        let mut corners: Vec<(f64, f64)> = Vec::with_capacity(2 * self.corners.len());
        for (i, (&(rows, cost), error)) in self.corners.iter().zip(&self.errors).enumerate() {
            corners.extend(i.checked_sub(1).and_then(|before| self.bend(before)));
            corners.push((rows, cost * (1.0 - error)));
        }
        let mut least = f64::INFINITY;
        for corner in corners.iter_mut().rev() {
            corner.1 = corner.1.min(least);
            least = corner.1;
        }
        Self { corners, errors: Vec::new(), ..*self }
    }

    /// Where the lines before corner `i` and after the next one meet, if the gap between them is wide.
    fn bend(&self, i: usize) -> Option<(f64, f64)> {
        let slope = |from: usize| {
            let (a, b) = (self.corners.get(from)?, self.corners.get(from + 1)?);
            Some((b.1 - a.1) / (b.0 - a.0))
        };
        let (a, b) = (self.corners.get(i)?, self.corners.get(i + 1)?);
        let before = i.checked_sub(1).and_then(slope).unwrap_or(0.0);
        let (between, after) = (slope(i)?, slope(i + 1).unwrap_or(self.beyond));
        let wide = b.0 - a.0 > 1.0 && b.0 > a.0 * (1.0 + NEAR);
        (wide && before < between && between < after).then(|| {
            let rows = (a.1 - b.1 + after * b.0 - before * a.0) / (after - before);
            (rows, a.1 + before * (rows - a.0))
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

    /// The cost of a pass with this many rows, if passes like it were measured so often that it is well known.
    pub fn known(&self, rows: f64) -> Option<f64> {
        let above = self.corners.partition_point(|corner| corner.0 < rows);
        let near = |&i: &usize| (self.corners[i].0 - rows).abs() <= NEAR * rows && self.errors[i] <= WELL_KNOWN;
        let known = [above.checked_sub(1), Some(above)].into_iter().flatten().filter(|&i| i < self.corners.len());
        known.filter(near).count().gt(&0).then(|| self.at(rows))
    }

    /// `(rows, cost)` where it was measured.
    pub fn corners(&self) -> &[(f64, f64)] {
        &self.corners
    }
}

/// The points without those of disturbed passes: others measured as often took less time with more rows, or would take
/// less if they were played until there were as many rows.
fn undisturbed(points: &[Point]) -> Vec<Point> {
    let later = credible(points.iter().rev(), |other, _| other.cost);
    credible(later.iter().rev(), |other, p| (p.rows / other.rows).ceil() * other.cost)
}

/// The points, one after the other, that were measured often, or cost at most what those before them that were measured as often
/// say they can.
fn credible<'a>(points: impl Iterator<Item = &'a Point>, most: impl Fn(&Point, &Point) -> f64) -> Vec<Point> {
    let mut credible: Vec<Point> = Vec::new();
    for p in points {
        if p.weight >= OFTEN {
            credible.push(*p);
            continue;
        }
        let as_often = credible.iter().filter(|other| other.weight >= p.weight);
        if as_often.map(|other| most(other, p)).fold(f64::INFINITY, f64::min) * CONTRADICTION >= p.cost {
            credible.push(*p);
        }
    }
    credible
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
        // Points close by say little of a slope: as much as the noise lets them, it is taken to be that before.
        let doubt = (NOISE * pair[1].rows / pair[1].cost).powi(2);
        let flatter = slopes.last().map_or(0.0, |s| s.0.max(0.0));
        let slope = (pair[1].cost - pair[0].cost) / width;
        let slope = (slope * certainty + flatter * doubt) / (certainty + doubt);
        let mut pooled = (slope, certainty, from, from + 1);
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

/// How far costs are off the chain, relative to it, as far as that is believed.
fn deviations(points: &[Point], chained: &[f64]) -> Vec<f64> {
    let weight = |p: &Point| p.weight.min(INDEPENDENT);
    let deviation = |p: &Point| {
        let near = (p.rows * BLUR).floor();
        let from = points.partition_point(|other| other.rows < p.rows - near);
        let to = points.partition_point(|other| other.rows <= p.rows + near);
        let near = || points[from..to].iter().zip(&chained[from..to]);
        let off: f64 = near().map(|(other, chained)| weight(other) * (other.cost / chained - 1.0)).sum();
        let passes: f64 = near().map(|(other, _)| weight(other)).sum();
        (off / (passes + 1.0 + (NOISE * p.rows / TILE).powi(2))).max(LEAST_COST - 1.0)
    };
    points.iter().map(deviation).collect()
}

/// The relative standard errors of the points' costs, from all that was measured near them.
fn errors(points: &[Point]) -> Vec<f64> {
    let (mut from, mut to, mut passes) = (0, 0, 0.0);
    let error = |p: &Point| {
        while to < points.len() && points[to].rows <= p.rows * (1.0 + NEAR) {
            passes += points[to].weight;
            to += 1;
        }
        while points[from].rows < p.rows * (1.0 - NEAR) {
            passes -= points[from].weight;
            from += 1;
        }
        NOISE / (1.0 + passes).sqrt()
    };
    points.iter().map(error).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::{Philox, Purpose};

    /// The curve through passes of these rows, each measured so often, at times off by up to a tenth.
    fn measured(cost: impl Fn(usize) -> f64, rows: &[usize], times: usize) -> Curve {
        let mut noise = Philox::new(1, 0, Purpose::Bonus, 0);
        let mut mean =
            |rows| (0..times).map(|_| cost(rows) * (0.9 + 0.2 * noise.uniform())).sum::<f64>() / times as f64;
        let points: Vec<Point> =
            rows.iter().map(|&n| Point { rows: n as f64, cost: mean(n), weight: times as f64 }).collect();
        Curve::fit(&points).unwrap()
    }

    fn worst(curve: &Curve, cost: impl Fn(usize) -> f64, rows: impl Iterator<Item = usize>) -> f64 {
        rows.map(|n| (curve.at(n as f64) / cost(n) - 1.0).abs()).fold(0.0, f64::max)
    }

    const PROFILE: [usize; 18] = [1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 16, 18, 20, 24, 32, 36, 40, 72];

    #[test]
    fn a_kink_is_found_in_few_noisy_times() {
        let cost = |rows: usize| 1.0 + rows.saturating_sub(8) as f64 / 8.0;
        let curve = measured(cost, &PROFILE, 2);
        assert!(worst(&curve, cost, 1..=80) < 0.1, "{curve:?}");
        let often = measured(cost, &PROFILE, 30);
        assert!(worst(&often, cost, PROFILE.into_iter()) < 0.03, "{often:?}");
    }

    #[test]
    fn tiles_show_where_passes_were_measured_often() {
        let cost = |rows: usize| 1.0 + 0.075 * (rows - 1) as f64 + 0.45 * ((rows - 1) / 6) as f64;
        let all: Vec<usize> = (1..=24).collect();
        let curve = measured(cost, &all, 30);
        assert!(worst(&curve, cost, 1..=19) < 0.06, "{curve:?}");
        let (opens, fills) = (curve.at(13.0) - curve.at(12.0), curve.at(12.0) - curve.at(11.0));
        assert!(opens > 0.3 && fills < 0.15, "{opens} to open a tile, {fills} to fill one");
    }

    #[test]
    fn a_time_far_too_long_or_short_bends_nothing() {
        let cost = |rows: usize| 1.0 + 0.05 * (rows - 1) as f64;
        let point = |&rows: &usize| Point { rows: rows as f64, cost: cost(rows), weight: 1.0 };
        for wrong in [0, 3, 7, 12, 17] {
            for factor in [0.5, 10.0] {
                let mut points: Vec<Point> = PROFILE.iter().map(point).collect();
                points.iter_mut().filter(|p| p.rows != PROFILE[wrong] as f64).for_each(|p| p.weight = 10.0);
                points[wrong].cost *= factor;
                let curve = Curve::fit(&points).unwrap();
                // Of the fewest and the most rows nobody can tell that they took too short.
                let told = PROFILE.into_iter().filter(|&rows| rows != PROFILE[wrong] || factor > 1.0);
                assert!(worst(&curve, cost, told) < 0.3, "{} by {factor}: {curve:?}", PROFILE[wrong]);
                let others = PROFILE.into_iter().filter(|&rows| rows != PROFILE[wrong]);
                assert!(worst(&curve, cost, others) < 0.15, "{} by {factor}: {curve:?}", PROFILE[wrong]);
            }
        }
    }

    #[test]
    fn what_was_not_measured_lies_between_nothing_and_the_whole() {
        assert_eq!(Curve::fit(&[]), None);
        let one = Curve::fit(&[Point { rows: 8.0, cost: 4.0, weight: 3.0 }]).unwrap();
        assert_eq!((one.at(8.0), one.at(16.0), one.at(4.0)), (4.0, 6.0, 3.0));
        let flat = measured(|_| 1.0, &[1, 2, 4, 8], 20);
        assert!((flat.at(16.0) - 1.5).abs() < 0.05, "a row beyond costs half of what all did: {flat:?}");
        assert!(flat.known(9.0).is_none() && flat.known(8.0).is_some(), "{flat:?}");
    }

    #[test]
    fn hope_is_never_dearer_and_finds_the_kink_in_a_gap() {
        let cost = |rows: usize| 1.0 + rows.saturating_sub(64) as f64 / 64.0;
        let curve = measured(cost, &[16, 32, 48, 96, 144], 30);
        let hopeful = curve.hopeful();
        assert!((1..200).all(|n| hopeful.at(f64::from(n)) <= curve.at(f64::from(n)) + 1e-12));
        assert!(curve.at(64.0) > 1.12 && hopeful.at(64.0) < 1.04, "{} {}", curve.at(64.0), hopeful.at(64.0));
    }

    #[test]
    fn costs_ascend_whatever_was_measured() {
        let mut random = Philox::new(2, 0, Purpose::Bonus, 0);
        for _ in 0..200 {
            let (mut rows, mut points) = (0.0, Vec::new());
            for _ in 0..1 + random.word() % 30 {
                rows += (1 + random.word() % 9) as f64;
                points.push(Point { rows, cost: 10.0 * random.uniform(), weight: 0.01 + 20.0 * random.uniform() });
            }
            let curve = Curve::fit(&points).unwrap();
            for curve in [curve.hopeful(), curve] {
                let costs: Vec<f64> = (1..400).map(|n| curve.at(f64::from(n))).collect();
                assert!(costs.iter().all(|cost| *cost > 0.0), "{curve:?}");
                assert!(costs.windows(2).all(|pair| pair[0] <= pair[1] + 1e-9), "{curve:?}");
            }
        }
    }
}
