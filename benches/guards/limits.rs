//! The table of limits, and the comparison of a measured value with it.

use std::fmt;

/// The table of `limits.txt`.
pub struct Limits(Vec<Row>);

/// One row: `name | limit | unit | provider | measured`.
struct Row {
    name: String,
    limit: f64,
    /// `None`: any.
    provider: Option<String>,
    measured: String,
}

/// A guard by its name, `WORK: UNIT`.
pub struct Guard<'a> {
    name: &'a str,
    unit: &'a str,
}

/// Outcome of a comparison, and its line.
pub enum Verdict {
    /// Within the limit.
    Kept(String),
    /// More than the tolerance above the limit.
    Worse(String),
    /// More than the tolerance below the limit.
    Better(String),
    /// The table has no row for it.
    Unlimited(String),
}

impl Limits {
    /// Reads the table; panics at a row that is no row.
    pub fn read(text: &str) -> Limits {
        let rows = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        Limits(rows.map(Row::read).collect())
    }

    /// Compares a value with its limit.
    pub fn judge(&self, guard: &Guard<'_>, value: f64, provider: &str) -> Verdict {
        let (name, unit) = (guard.name, guard.unit);
        let is_row = |row: &&Row| {
            row.name == name && row.provider.as_deref().is_none_or(|named| named == provider)
        };
        let Some(row) = self.0.iter().find(is_row) else {
            let text = format!("{name}: {value} {unit}: NO LIMIT for {provider} in the table");
            return Verdict::Unlimited(text);
        };
        let Row { limit, measured, .. } = row;
        let percent = (value / limit - 1.0) * 100.0;
        let line = format!("{name}: {value} {unit}, limit {limit}, {percent:+.1} %");
        if percent > TOLERANCE_PERCENT && value - limit > TOLERANCE_PER_HIT {
            Verdict::Worse(format!("{line}: WORSE than on {measured}"))
        } else if percent < -TOLERANCE_PERCENT {
            Verdict::Better(format!("{line}: better, lower the limit"))
        } else {
            Verdict::Kept(line)
        }
    }
}

impl Row {
    fn read(line: &str) -> Row {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [name, limit, _, provider, measured] = cells[..] else {
            panic!("not a row of five cells: {line}");
        };
        let limit = limit.parse().unwrap_or_else(|_| panic!("no limit: {line}"));
        assert!(limit > 0.0, "a limit of zero has no percentage: {line}");
        Row {
            name: name.to_owned(),
            limit,
            provider: (provider != ANY).then(|| provider.to_owned()),
            measured: measured.to_owned(),
        }
    }
}

impl<'a> Guard<'a> {
    /// The guard of this name.
    pub fn of(name: &'a str) -> Guard<'a> {
        let unit =
            if name.contains("bytes") || name.contains("binary") { "bytes" } else { "per hit" };
        Guard { name, unit }
    }

    /// Its row with this value as the limit. The work without TLS costs the same with any provider.
    pub fn row(&self, value: f64, provider: &str, measured: &str) -> String {
        let Guard { name, unit } = self;
        let depends = name.starts_with("TLS") || name.starts_with("binary");
        let provider = if depends { provider } else { ANY };
        format!("{name} | {value} | {unit} | {provider} | {measured}")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Verdict::Kept(text)
        | Verdict::Worse(text)
        | Verdict::Better(text)
        | Verdict::Unlimited(text)) = self;
        f.write_str(text)
    }
}

/// Above it a guard fails; below it the limit is worth lowering.
const TOLERANCE_PERCENT: f64 = 3.0;
/// A guard does not fail for less than this: what the daemon does once a second is spread over the
/// hits of that second, and a slow machine has fewer of them.
const TOLERANCE_PER_HIT: f64 = 0.25;
const ANY: &str = "any";
