//! What the keys of the DCS say about Patroni's last answer: that it still holds, the contrary, or
//! neither.

use std::fmt;

use super::etcd::{ReadFailure, TimeLeft};
use super::strict::{Json, Object};
use super::{Evidence, LeaseTime, Outcome, Standing};
use crate::http::json;
use crate::node::intervals::Intervals;
use crate::node::lease::Until;
use crate::node::report::NodeReport;
use crate::time::Now;

/// What Patroni's last answer said, as far as the DCS can confirm it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The member's name.
    pub name: String,
    /// The cluster's name.
    pub scope: String,
    system_identifier: String,
    role: Role,
    timeline: Option<u64>,
    /// The last known intervals, for a `config` key whose intervals cannot be read.
    intervals: Option<Intervals>,
}

/// A role, in the words of any version of Patroni.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `primary`; `master` before Patroni 4.0.
    Primary,
    /// `standby_leader`
    StandbyLeader,
    /// `replica`
    Replica,
}

/// The keys of one member of a cluster; `None`: the key does not exist.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The leader's name.
    pub leader: Option<Key>,
    /// What the member published about itself.
    pub member: Option<Key>,
    /// The dynamic configuration.
    pub config: Option<Key>,
    /// The cluster's system identifier.
    pub initialize: Option<Key>,
}

/// A key that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its value.
    pub value: Vec<u8>,
    /// The lease that it is attached to.
    pub lease: Option<i64>,
}

/// What Patroni said last holds as long as this lease lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holding {
    /// The lease.
    pub lease: i64,
    /// Which routes it is about.
    pub standing: Standing,
    /// Patroni's intervals.
    pub intervals: Intervals,
}

/// Why a read is no evidence; its text is the rest of a log line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The read failed.
    Failed(ReadFailure),
    /// Patroni's answer has no such field.
    Unreported(&'static str),
    /// Patroni's own answer does not rest on the lease: pause, failsafe mode, no leader, or
    /// PostgreSQL does not run.
    NotUnderLease,
    /// Patroni's own answer has an unknown role.
    UnknownRole(String),
    /// `initialize` has another system identifier: the keys are another cluster's.
    OtherCluster {
        /// By the DCS.
        found: String,
        /// By Patroni's last answer.
        ours: String,
    },
    /// There is no leader key.
    NoLeader {
        /// Whether the `initialize` key is missing as well.
        nothing_there: bool,
    },
    /// The leader key names another member.
    OtherLeader(String),
    /// This key does not exist.
    KeyMissing(&'static str),
    /// This key is not what Patroni writes.
    KeyUnreadable(&'static str),
    /// This key is not attached to a lease.
    KeyWithoutLease(&'static str),
    /// Member key and leader key are attached to different leases: Patroni changes leases in two
    /// steps.
    OtherLease,
    /// The cluster is in maintenance mode.
    Paused,
    /// The configuration has `standby_cluster`, and the last answer was a primary's, or the
    /// reverse.
    StandbyCluster(bool),
    /// The member key has another role.
    OtherRole(String),
    /// The member key has another state than `running`.
    OtherState(String),
    /// The member key has another timeline.
    OtherTimeline {
        /// By the DCS.
        found: i64,
        /// By Patroni's last answer.
        ours: u64,
    },
    /// The lease does not exist.
    LeaseGone,
    /// The DCS tells an impossible time left, as etcd does for a moment after an election.
    ImpossibleTime(i64),
}

impl Subject {
    /// The subject of a read, from Patroni's last answer. The error says why the DCS cannot confirm
    /// that answer.
    pub fn new(report: &NodeReport, intervals: Option<Intervals>) -> Result<Subject, Why> {
        let known = |field: &Option<String>, name| {
            field.clone().filter(|value| !value.is_empty()).ok_or(Why::Unreported(name))
        };
        if !report.is_under_lease() {
            return Err(Why::NotUnderLease);
        }
        Ok(Subject {
            name: known(&report.patroni.name, "patroni.name")?,
            scope: known(&report.patroni.scope, "patroni.scope")?,
            system_identifier: known(
                &report.database_system_identifier,
                "database_system_identifier",
            )?,
            role: Role::from_word(&report.role)
                .ok_or_else(|| Why::UnknownRole(report.role.clone()))?,
            timeline: report.timeline,
            intervals,
        })
    }

    /// Whether it is about the answers of leader routes.
    pub fn is_leader(&self) -> bool {
        self.role != Role::Replica
    }
}

impl Role {
    fn from_word(word: &str) -> Option<Role> {
        match word {
            "primary" | "master" => Some(Role::Primary),
            "standby_leader" => Some(Role::StandbyLeader),
            "replica" => Some(Role::Replica),
            _ => None,
        }
    }
}

/// Compares the keys with what Patroni said. The error is the outcome of the read.
pub fn holding(subject: &Subject, found: &Found) -> Result<Holding, Outcome> {
    check_cluster(subject, found)?;
    let leader_lease = match subject.is_leader() {
        true => Some(leader_lease(subject, found)?),
        false => None,
    };
    let initialize = "initialize";
    found.initialize.as_ref().ok_or_else(|| nothing(Why::KeyMissing(initialize)))?;
    let intervals = check_config(subject, found)?;
    let member_lease = check_member(subject, found, leader_lease)?;
    let standing = if subject.is_leader() { Standing::Leader } else { Standing::Replica };
    Ok(Holding { lease: member_lease, standing, intervals })
}

/// The outcome of a read that began at `t0`, once the time left of the lease is known.
pub fn outcome(t0: Now, margin_ms: u64, holding: Holding, time: TimeLeft) -> Outcome {
    let Some(lease) = time.lease_time() else {
        return nothing(match time.left {
            -1 => Why::LeaseGone,
            left => Why::ImpossibleTime(left),
        });
    };
    let margin_ms = margin_ms.min(margin_ms_max(lease, holding.intervals));
    let lasts_ms = (lease.left_seconds * 1_000).saturating_sub(margin_ms);
    let until = Until::after_ms(t0, lasts_ms);
    Outcome::Evidence(Evidence { standing: holding.standing, until, lease: Some(lease) })
}

/// The time that a healthy leader's lease still has just before a renewal: with a larger margin its
/// evidence would end. Uses the intervals in force; the `config` key has them as written.
fn margin_ms_max(lease: LeaseTime, intervals: Intervals) -> u64 {
    let Intervals { loop_wait, retry_timeout, .. } = intervals.lowered_to(lease.granted_seconds);
    let spare = lease.granted_seconds.saturating_sub(loop_wait).saturating_sub(retry_timeout);
    spare.saturating_mul(1_000).min(MARGIN_MS_MAX)
}

/// Clusters with the same scope in different namespaces are common; their system identifiers
/// differ.
fn check_cluster(subject: &Subject, found: &Found) -> Result<(), Outcome> {
    let ours = &subject.system_identifier;
    match &found.initialize {
        Some(key) if key.value != ours.as_bytes() => {
            Err(contradiction(Why::OtherCluster { found: shown(&key.value), ours: ours.clone() }))
        }
        _ => Ok(()),
    }
}

fn leader_lease(subject: &Subject, found: &Found) -> Result<i64, Outcome> {
    let Some(leader) = &found.leader else {
        let nothing_there = found.initialize.is_none();
        return Err(contradiction(Why::NoLeader { nothing_there }));
    };
    if leader.value != subject.name.as_bytes() {
        return Err(contradiction(Why::OtherLeader(shown(&leader.value))));
    }
    leader.lease.ok_or_else(|| nothing(Why::KeyWithoutLease("leader")))
}

fn check_config(subject: &Subject, found: &Found) -> Result<Intervals, Outcome> {
    let config = object(&found.config, "config")?;
    if is_paused(&config) {
        return Err(contradiction(Why::Paused));
    }
    let is_standby = is_standby_cluster(&config);
    let differs = match subject.role {
        Role::Primary => is_standby,
        Role::StandbyLeader => !is_standby,
        Role::Replica => false,
    };
    if differs {
        return Err(contradiction(Why::StandbyCluster(is_standby)));
    }
    let written = intervals(&config).or(subject.intervals);
    written.ok_or_else(|| nothing(Why::KeyUnreadable("config")))
}

fn check_member(
    subject: &Subject,
    found: &Found,
    leader_lease: Option<i64>,
) -> Result<i64, Outcome> {
    let key = "members/<name>";
    let member = object(&found.member, key)?;
    let lease = found.member.as_ref().and_then(|member| member.lease);
    let lease = lease.ok_or_else(|| nothing(Why::KeyWithoutLease(key)))?;
    if leader_lease.is_some_and(|leader_lease| leader_lease != lease) {
        return Err(nothing(Why::OtherLease));
    }
    let unreadable = || nothing(Why::KeyUnreadable(key));
    let role = member.text("role").map_err(|_| unreadable())?;
    let state = member.text("state").map_err(|_| unreadable())?;
    if role.is_empty() || state.is_empty() {
        return Err(unreadable());
    }
    if Role::from_word(role) != Some(subject.role) {
        return Err(contradiction(Why::OtherRole(shown(role.as_bytes()))));
    }
    if state != "running" {
        return Err(contradiction(Why::OtherState(shown(state.as_bytes()))));
    }
    if is_paused(&member) {
        return Err(contradiction(Why::Paused));
    }
    match (member.get("timeline"), subject.timeline.filter(|_| subject.is_leader())) {
        (None | Some(Json::Integer(_)), None) | (None, _) => Ok(lease),
        (Some(Json::Integer(found)), Some(ours)) if u64::try_from(*found) == Ok(ours) => Ok(lease),
        (Some(Json::Integer(found)), Some(ours)) => {
            Err(contradiction(Why::OtherTimeline { found: *found, ours }))
        }
        (Some(_), _) => Err(unreadable()),
    }
}

/// The JSON that Patroni wrote into a key.
fn object(key: &Option<Key>, name: &'static str) -> Result<Object, Outcome> {
    let key = key.as_ref().ok_or_else(|| nothing(Why::KeyMissing(name)))?;
    let object = Object::from_slice(&json::lenient(&key.value));
    object.ok_or_else(|| nothing(Why::KeyUnreadable(name)))
}

/// `pause` as in `GlobalConfig.check_mode`, but any truthy value counts as true: the safe side.
fn is_paused(object: &Object) -> bool {
    object.get("pause").is_some_and(Json::is_truthy)
}

/// As Patroni's `GlobalConfig.is_standby_cluster`.
fn is_standby_cluster(config: &Object) -> bool {
    let Some(Json::Object(standby)) = config.get("standby_cluster") else { return false };
    let is_set = |name: &str| standby.get(name).is_some_and(Json::is_truthy);
    ["host", "port", "restore_command"].into_iter().any(is_set)
}

/// The intervals as written. `None`: one is not a whole number.
fn intervals(config: &Object) -> Option<Intervals> {
    let seconds = |name: &str, default: u64| match config.get(name) {
        None => Some(default),
        Some(Json::Integer(seconds)) => u64::try_from(*seconds).ok(),
        Some(_) => None,
    };
    let default = Intervals::default();
    Some(Intervals {
        ttl: seconds("ttl", default.ttl)?,
        loop_wait: seconds("loop_wait", default.loop_wait)?,
        retry_timeout: seconds("retry_timeout", default.retry_timeout)?,
    })
}

fn contradiction(why: Why) -> Outcome {
    Outcome::Contradiction(why)
}

fn nothing(why: Why) -> Outcome {
    Outcome::Nothing(why)
}

/// A value of the DCS, shortened and escaped for a log line.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    text.escape_debug().to_string()
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Failed(failure) => failure.fmt(f),
            Why::Unreported(field) => {
                write!(f, "Patroni's answer has no {field}; Patroni 3.2 or newer is needed")
            }
            Why::NotUnderLease => f.write_str("Patroni's last answer does not rest on a lease"),
            Why::UnknownRole(role) => write!(f, "Patroni's last answer has the role {role}"),
            Why::OtherCluster { found, ours } => write!(
                f,
                "the keys are of database system {found}, not {ours}; are dcs.hosts and \
                 dcs.namespace right?"
            ),
            Why::NoLeader { nothing_there: false } => f.write_str("there is no leader key"),
            Why::NoLeader { nothing_there: true } => f.write_str(
                "there is no key of the cluster; are dcs.hosts, dcs.namespace and dcs.group right?",
            ),
            Why::OtherLeader(name) => write!(f, "the leader is {name}"),
            Why::KeyMissing(key) => write!(f, "there is no key {key}"),
            Why::KeyUnreadable(key) => write!(f, "the key {key} is not as Patroni writes it"),
            Why::KeyWithoutLease(key) => write!(f, "the key {key} has no lease"),
            Why::OtherLease => f.write_str("member key and leader key have different leases"),
            Why::Paused => f.write_str("the cluster is paused"),
            Why::StandbyCluster(true) => f.write_str("the cluster is a standby cluster"),
            Why::StandbyCluster(false) => f.write_str("the cluster is not a standby cluster"),
            Why::OtherRole(role) => write!(f, "the role is {role}"),
            Why::OtherState(state) => write!(f, "the state is {state}"),
            Why::OtherTimeline { found, ours } => write!(f, "the timeline is {found}, not {ours}"),
            Why::LeaseGone => f.write_str("the lease has ended"),
            Why::ImpossibleTime(left) => write!(f, "etcd says that the lease lasts {left} s"),
        }
    }
}

/// Maximum, and default, of `dcs.margin`.
pub const MARGIN_MS_MAX: u64 = 10_000;
/// Maximum characters of a value of the DCS in a log line.
const SHOWN_CHARS_MAX: usize = 64;
