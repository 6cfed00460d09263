//! A small reader of Prometheus' text format, version 0.0.4, as strict as a server that scrapes it.

use std::collections::BTreeMap;

/// Samples by name and labels.
pub type Samples = BTreeMap<(String, String), f64>;

/// What a page says.
#[derive(Debug)]
pub struct Metrics {
    /// Kind of each family.
    pub kinds: BTreeMap<String, String>,
    pub samples: Samples,
}

impl Metrics {
    /// The sample without labels.
    pub fn one(&self, name: &str) -> f64 {
        self.labelled(name, "")
    }

    /// The sample with these labels, as they are written.
    pub fn labelled(&self, name: &str, labels: &str) -> f64 {
        *self.samples.get(&(name.into(), labels.into())).unwrap_or_else(|| panic!("no {name}{{{labels}}}"))
    }

    /// A histogram's bounds with the values up to each, its sum and its count.
    pub fn histogram(&self, name: &str) -> (Vec<(f64, f64)>, f64, f64) {
        let bucket = format!("{name}_bucket");
        let bound = |labels: &str| number(labels.strip_prefix("le=\"").unwrap().strip_suffix('"').unwrap());
        let of_name = self.samples.iter().filter(|((name, _), _)| *name == bucket);
        let mut buckets: Vec<(f64, f64)> = of_name.map(|((_, labels), &count)| (bound(labels), count)).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        (buckets, self.one(&format!("{name}_sum")), self.one(&format!("{name}_count")))
    }
}

fn number(text: &str) -> f64 {
    match text {
        "+Inf" => f64::INFINITY,
        text => text.parse().unwrap_or_else(|_| panic!("{text:?} is no number")),
    }
}

fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    name.starts_with(first) && name.chars().all(|c| first(c) || c.is_ascii_digit())
}

/// Splits `name{labels} value`; checks the labels.
fn sample(line: &str) -> (String, String, f64) {
    let (series, value) = line.rsplit_once(' ').unwrap();
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
        None => (series, ""),
    };
    assert!(is_name(name), "{line}");
    let mut rest = labels;
    while !rest.is_empty() {
        let (label, value) = rest.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
        assert!(is_name(label), "{line}");
        let mut escaped = false;
        let end = value.find(|c| {
            let ends = c == '"' && !escaped;
            assert!(!escaped || ['\\', '"', 'n'].contains(&c), "{line}");
            escaped = c == '\\' && !escaped;
            ends
        });
        rest = &value[end.unwrap_or_else(|| panic!("{line}")) + 1..];
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
    (name.into(), labels.into(), number(value))
}

/// Reads a page and checks all that the format and the naming conventions ask for.
pub fn parse(text: &str) -> Metrics {
    assert!(text.ends_with('\n'), "the last line has no end");
    let mut metrics = Metrics { kinds: BTreeMap::new(), samples: Samples::new() };
    let (mut helped, mut family) = (String::new(), String::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(name.starts_with("eesd_") && help.len() > 5, "{line}");
            helped = name.into();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, helped, "a type without help");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(name.ends_with("_total"), kind == "counter", "{line}");
            assert!(metrics.kinds.insert(name.into(), kind.into()).is_none(), "{name} has two types");
            family = name.into();
        } else {
            let (name, labels, value) = sample(line);
            let suffixes: &[&str] = match metrics.kinds[&family].as_str() {
                "histogram" => &["_bucket", "_sum", "_count"],
                _ => &[""],
            };
            assert!(suffixes.iter().any(|suffix| name == format!("{family}{suffix}")), "{line} is not of {family}");
            assert!(metrics.samples.insert((name, labels), value).is_none(), "{line} is there twice");
        }
    }
    for (name, _) in metrics.kinds.iter().filter(|(_, kind)| *kind == "histogram") {
        let (buckets, sum, count) = metrics.histogram(name);
        assert!(buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1), "{name}: {buckets:?}");
        assert_eq!(buckets.last(), Some(&(f64::INFINITY, count)), "{name}");
        // Each value is above the bound below its bucket's, and not above its own.
        let counts: Vec<f64> =
            (0..buckets.len()).map(|i| buckets[i].1 - if i > 0 { buckets[i - 1].1 } else { 0.0 }).collect();
        let least: f64 = counts.iter().skip(1).zip(&buckets).map(|(count, (bound, _))| count * bound).sum();
        let most: f64 = counts.iter().zip(&buckets).map(|(&n, (bound, _))| if n > 0.0 { n * bound } else { 0.0 }).sum();
        assert!(sum >= least * 0.999_999 && sum <= most * 1.000_001, "{name}: {sum} is not from {least} to {most}");
    }
    metrics
}

/// Checks that nothing that only grows has shrunk from one page to a later one.
pub fn assert_grown(earlier: &Metrics, later: &Metrics) {
    for ((name, labels), &before) in &earlier.samples {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name);
        let kind = |name: &str| earlier.kinds.get(name).map(String::as_str);
        if kind(name) == Some("counter") || kind(family) == Some("histogram") {
            let after = later.labelled(name, labels);
            assert!(after >= before, "{name}{{{labels}}} went from {before} to {after}");
        }
    }
}
