//! The status in JSON. Keys are added, never renamed: the status page and other programs read them.

use ::time::OffsetDateTime;
use serde_json::{Value, json};

use super::{LeaseView, ShellView, View, cut, role_name};
use crate::VERSION;
use crate::stats::Second;

/// The media type.
pub const CONTENT_TYPE: &[u8] = b"application/json";

/// The whole status, in at most 48 KiB: fewer changes are shown if they are long.
pub fn json(view: &View<'_>, shell: &ShellView) -> String {
    let mut status = json!({
        "version": VERSION,
        "now": time(view.now.unix_ms),
        "started": time(shell.started_unix_ms),
        "state": view.state.name(),
        "listening": listening(shell),
        "config": {"read": time(shell.configured_unix_ms), "reloaded": shell.is_reloaded},
        "node": node(view),
        "patroni": patroni(view, shell),
        "lease": lease(view),
        "routes": routes(view),
        "clients": {
            "open": view.clients.0,
            "max": view.clients.1,
            "accepted_total": view.stats.clients_accepted,
            "refused_total": view.stats.clients_refused,
        },
        "rates": rates(&view.seconds),
    });
    let changes = changes(view);
    let mut shown = changes.len();
    loop {
        status["changes"] = Value::from(&changes[..shown]);
        let text = status.to_string() + "\n";
        if text.len() <= BYTES_MAX || shown == 0 {
            return text;
        }
        shown /= 2;
    }
}

fn listening(shell: &ShellView) -> Value {
    let ports = shell.listening.iter();
    ports.map(|(name, address)| ((*name).to_owned(), Value::from(address.as_str()))).collect()
}

fn node(view: &View<'_>) -> Value {
    let Some((report, since)) = view.node else { return Value::Null };
    let member = &report.patroni;
    let text = |field: &Option<String>| field.as_deref().map(cut).map(str::to_owned);
    json!({
        "name": text(&member.name),
        "scope": text(&member.scope),
        "role": cut(role_name(&report.role)),
        "state": cut(&report.state),
        "timeline": report.timeline,
        "since": time(view.unix_ms(since)),
        "dcs_last_seen": report.dcs_last_seen.map(|seen| time(seen.saturating_mul(1_000))),
        "patroni_version": text(&member.version),
    })
}

fn patroni(view: &View<'_>, shell: &ShellView) -> Value {
    let patroni = &view.stats.patroni;
    let failure = patroni.failure.map(|(failure, times)| {
        json!({"reason": failure.name(), "text": failure.to_string(), "times": times})
    });
    json!({
        "address": shell.patroni,
        "state": view.standing.0.name(),
        "since": time(view.unix_ms(view.standing.1)),
        "last_answer": patroni.answered_at.map(|at| time(view.unix_ms(at))),
        "failure": failure,
    })
}

fn lease(view: &View<'_>) -> Value {
    let intervals = view.intervals;
    let (left_ms, source, why_not) = match &view.lease {
        LeaseView::Sure { left_ms, source } => (Some(*left_ms), Some(source.name()), None),
        LeaseView::Not { why } => (None, None, Some(why)),
    };
    json!({
        "sure_until": left_ms.map(|ms| time(view.now.unix_ms.saturating_add(ms))),
        "remaining_seconds": left_ms.map(seconds),
        "source": source,
        "why_not": why_not,
        "ttl": intervals.map(|intervals| intervals.ttl),
        "loop_wait": intervals.map(|intervals| intervals.loop_wait),
        "retry_timeout": intervals.map(|intervals| intervals.retry_timeout),
    })
}

fn routes(view: &View<'_>) -> Value {
    let entries = view.entries.iter().take(ROUTES_MAX);
    let routes = entries.map(|entry| {
        json!({
            "target": cut(entry.target),
            "status": entry.status,
            "age_seconds": entry.age_ms.map(seconds),
            "served": entry.served.name(),
            "requests_per_second": (entry.per_second * 10.0).round() / 10.0,
            "waiters": entry.waiters,
        })
    });
    routes.collect()
}

fn rates(counted: &[Second]) -> Value {
    let series = |of: fn(&Second) -> u32| counted.iter().map(of).collect::<Vec<u32>>();
    json!({
        "interval_seconds": 1,
        "requests": series(|second| second.requests),
        "fetches": series(|second| second.fetches),
        "stale": series(|second| second.stale),
        "failed": series(|second| second.failed),
    })
}

fn changes(view: &View<'_>) -> Vec<Value> {
    let changes = view.changes.iter().map(|change| {
        let level = match change.level {
            log::Level::Error => "error",
            log::Level::Warn => "warning",
            _ => "info",
        };
        json!({
            "at": time(view.unix_ms(change.at)),
            "level": level,
            "kind": change.kind.name(),
            "text": change.text,
        })
    });
    changes.collect()
}

/// Milliseconds as seconds with one decimal place.
fn seconds(ms: u64) -> f64 {
    (ms / 100) as f64 / 10.0
}

/// Unix milliseconds as a time of RFC 3339 in UTC; years after 9999 have no such form.
fn time(unix_ms: u64) -> String {
    let seconds = i64::try_from(unix_ms / 1_000).unwrap_or(i64::MAX);
    let at = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second) = at.to_hms();
    let (month, ms) = (u8::from(month), unix_ms % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Maximum bytes of the status.
const BYTES_MAX: usize = 48 * 1024;
/// Maximum targets: all routes without parameters, and as many with them.
const ROUTES_MAX: usize = 48;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_rfc_3339() {
        let table = [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_796_072_462_004, "2026-11-30T21:01:02.004Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ];
        for (unix_ms, text) in table {
            assert_eq!(time(unix_ms), text);
        }
    }
}
